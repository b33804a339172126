"""Run a container's command on this machine, with addresses that exist here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from tests.deploy.deployment import ROOT, USES, Part, command_of
from tests.support.kafka import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Running", "run_once", "running"]

PODWIRE: Final = [sys.executable, "-m", "deploy.cli"]


@dataclass
class Running:
    """A started part."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def get(self, path: str) -> int:
        """Status of a page of its telemetry port; 0 if nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as page:
                return int(page.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def wait_ready(self, timeout_s: float = 45.0) -> None:
        """Wait for the readiness probe."""
        deadline = time.monotonic() + timeout_s
        while self.get("/readyz") != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def stop(self, grace_s: float) -> int:
        """SIGTERM, and the exit code if it ends within the grace."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=grace_s)


def _adapted(
    part: Part, directory: Path, replaced: dict[str, Any]
) -> tuple[list[str], dict[str, str]]:
    # Settings that name places of the deployment get places of this machine; all others stay.
    arguments = list(part.arguments)
    environment = {name: value for name, value in part.environment.items() if name not in replaced}
    for inside, content in part.files.items():
        file = yaml.safe_load(content)
        for name, value in replaced.items():
            section, _, key = name.removeprefix("PODWIRE_").lower().partition("_")
            file.setdefault(section, {})[key] = value
        path = directory / inside.rpartition("/")[2]
        path.write_text(yaml.safe_dump(file))
        arguments = [str(path) if argument == inside else argument for argument in arguments]
    if not part.files:
        environment |= {name: str(value) for name, value in replaced.items()}
    for position, argument in enumerate(arguments):
        for inside, host in part.mounts.items():
            if host and argument.startswith(f"{inside}/"):
                arguments[position] = str(ROOT / host / argument.removeprefix(f"{inside}/"))
    return arguments, {**os.environ, **environment, "PYTHONPATH": str(ROOT)}


def _limited(part: Part) -> list[str]:
    # Exactly the capabilities that the deployment grants.
    if os.geteuid() != 0:
        return []
    granted = "".join(f",+{name.lower()}" for name in sorted(part.capabilities))
    return ["setpriv", f"--bounding-set=-all{granted}"]


def run_once(part: Part, directory: Path, **replaced: Any) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    arguments, environment = _adapted(part, directory, replaced)
    return subprocess.run(
        [*_limited(part), *PODWIRE, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@contextlib.contextmanager
def running(part: Part, directory: Path, **replaced: Any) -> Iterator[Running]:
    """Run a command that works until it is stopped."""
    port = free_port()
    section = USES[command_of(part)][0].SECTION.upper()
    replaced |= {
        f"PODWIRE_{section}_TELEMETRY_PORT": port,
        f"PODWIRE_{section}_TELEMETRY_HOST": "127.0.0.1",
    }
    arguments, environment = _adapted(part, directory, replaced)
    log = directory / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_limited(part), *PODWIRE, *arguments],
            cwd=directory,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        yield Running(process, port, log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
