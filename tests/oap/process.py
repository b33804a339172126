"""The forwarder as people run it: a process of its own, for tests that kill it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.kafka import free_port

_LINE = re.compile(
    r'^podwire_forwarder_(\w+?)(?:_total)?(?:{outcome="(\w+)"})? (\S+)$', re.MULTILINE
)


class ForwarderProcess:
    """``podwire forwarder`` with its telemetry."""

    def __init__(self, directory: Path, bootstrap_servers: str, *options: str) -> None:
        self.port = free_port()
        self.log = directory / f"forwarder-{self.port}.log"
        self._arguments = [
            *("--telemetry-port", str(self.port), "--bootstrap-servers", bootstrap_servers),
            *("--period-s", "0.3", "--retry-min-s", "0.05", "--retry-max-s", "0.5", *options),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy.cli", "forwarder", *self._arguments],
                cwd=Path(__file__).parents[2],
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def page(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as got:
                return got.status, got.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    def counts(self) -> dict[str, int]:
        """Logs by outcome, ``streams_`` and their outcome, and gauges by name."""
        found = {}
        for what, outcome, value in _LINE.findall(self.page("/metrics")[1]):
            if what.endswith("_created"):
                continue
            key = outcome if what == "logs" else f"{what}_{outcome}".removesuffix("_")
            found[key] = int(float(value))
        return found

    def wait_for(self, condition, timeout_s: float = 60.0) -> dict[str, int]:
        """Ask until the condition holds for the counts; return them."""
        deadline = time.monotonic() + timeout_s
        found: dict[str, int] = {}
        while time.monotonic() < deadline:
            try:
                found = self.counts()
                if condition(found):
                    return found
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.1)
        raise AssertionError(f"{found}; {self.log.read_text()[-2000:]}")


def balance(counts: dict[str, int]) -> int:
    """What came in less what became of it; 0 if nothing is lost in silence."""
    leaving = {
        name
        for name in counts
        if name not in ("in", "repeated", "waiting_bytes", "failing_seconds", "bytes")
        and not name.startswith("streams_")
    }
    return counts.get("in", 0) - sum(counts[name] for name in leaving)
