"""The sink as people run it: a process of its own, for tests that kill it."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.kafka import free_port

_CODE = """
import argparse, logging, sys
from pathlib import Path
from schemas.errors import PodwireError
from sink import command
logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
parser = argparse.ArgumentParser()
command.add_arguments(parser)
parser.set_defaults(config=None)
try:
    sys.exit(command.run(parser.parse_args()))
except PodwireError as error:
    print(f"podwire sink: {error}", file=sys.stderr)
    sys.exit(2)
"""


class SinkProcess:
    """``podwire sink`` on an embedded engine, with its SQL endpoint."""

    def __init__(self, directory: Path, bootstrap_servers: str, *options: str) -> None:
        self.directory = directory
        self.port = free_port()
        self.log = directory / "sink.log"
        self._arguments = [
            *("--url", f"chdb://{directory}/engine", "--sql-port", str(self.port)),
            *("--bootstrap-servers", bootstrap_servers, "--rollup-delay-s", "0", *options),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CODE, *self._arguments],
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
        return self.process.wait(60)

    def query(self, sql: str) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/", data=sql.encode())
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read().decode().removesuffix("\n")

    def wait_for(self, sql: str, wanted: str, timeout_s: float = 60.0) -> None:
        """Ask until the answer is the wanted one.

        Raises:
            AssertionError: If it never is; with the last answer.
        """
        deadline = time.monotonic() + timeout_s
        answer = ""
        while time.monotonic() < deadline:
            try:
                answer = self.query(sql)
            except (urllib.error.URLError, OSError) as error:
                answer = str(error)
            if answer == wanted:
                return
            time.sleep(0.1)
        raise AssertionError(f"{sql}: {answer}, not {wanted}; {self.log.read_text()[-2000:]}")
