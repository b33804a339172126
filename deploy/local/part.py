"""One supervised child process: its command, its log, its restarts.

Children get a session of their own, so that Ctrl-C in the terminal reaches only the supervisor,
which then stops them in the order that loses nothing. Where ``setpriv`` exists the kernel stops
them too should the supervisor itself be killed.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from schemas.errors import ConfigError, FatalError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from schemas.clock import Clock

__all__ = ["Part", "PartFailed", "PartSpec", "State", "last_lines"]

State = Literal["waiting", "running", "restarting", "done", "stopped", "failed"]

EXPECTED_FAILURE: Final = 2
"""Exit code of a part that says in one line why it cannot work."""
RUN_VARIABLE: Final = "PODWIRE_RUN"
"""Tells the collector which processes are parts of this run (``collector.excluded_run``)."""
BACKOFF_S: Final = (0.2, 1.0, 2.0, 5.0, 10.0)
"""Pause before each restart in a row; a long enough life starts again with the first."""
SETTLED_S: Final = 20.0
"""A life this long ends a row of quick deaths."""
QUICK_DEATHS: Final = 5
"""This many quick deaths in a row and the part is given up."""
LOG_TAIL: Final = 5


class PartFailed(FatalError):
    """A part cannot be kept alive; the message holds its last words and where its log is."""

    def __init__(self, name: str, reason: str, log_file: Path) -> None:
        super().__init__(f"{name} {reason} (log: {log_file})")
        self.name = name


@dataclass(frozen=True, slots=True)
class PartSpec:
    """What to run.

    Attributes:
        name: Short name for people, and of the log file.
        argv: Command.
        log_file: Where stdout and stderr go, appended.
        environment: The child's whole environment.
        stop_signal: What ends it in order; SIGKILL for one that has nothing to save.
        stop_timeout_s: How long an orderly end may take before SIGKILL.
        finishes: Whether it ends by itself when its work is done.
    """

    name: str
    argv: Sequence[str]
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 15.0
    finishes: bool = False


class Part:
    """A child process that is started again when it dies."""

    def __init__(self, spec: PartSpec, clock: Clock) -> None:
        self.spec = spec
        self.state: State = "waiting"
        self.restarts = 0
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._started_ns = 0
        self._restart_at_ns = 0
        self._quick_deaths = 0
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self.state == "running" else None

    def start(self) -> None:
        """Start the process.

        Raises:
            ConfigError: If the command does not exist or the log cannot be written.
        """
        spec = self.spec
        try:
            spec.log_file.parent.mkdir(parents=True, exist_ok=True)
            with spec.log_file.open("ab") as log:
                self._log_start = log.tell()
                future = _spawner().submit(
                    subprocess.Popen,
                    _tied_to_us(spec.argv, spec.stop_signal),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**spec.environment, RUN_VARIABLE: str(os.getpid())},
                    start_new_session=True,
                )
                self._process = future.result()
        except OSError as error:
            raise ConfigError(spec.name, f"cannot be started: {error}") from error
        self._started_ns = self._clock.monotonic_ns()
        self.state = "running"

    def check(self) -> bool:
        """Look whether it lives; start it again once its pause is over.

        Returns:
            Whether it was found dead just now.

        Raises:
            PartFailed: If it said on its first start why it cannot work, or keeps dying at once.
        """
        now = self._clock.monotonic_ns()
        if self.state == "restarting":
            if now >= self._restart_at_ns:
                self.restarts += 1
                self.start()
            return False
        if self.state != "running" or self._process is None:
            return False
        code = self._process.poll()
        if code is None:
            return False
        if code == 0 and self.spec.finishes:
            self.state = "done"
            return False
        settled = now - self._started_ns >= SETTLED_S * 1e9
        if code == EXPECTED_FAILURE and self.restarts == 0 and not settled:
            self.state = "failed"
            raise PartFailed(self.spec.name, f"stopped: {self._last_words()}", self.spec.log_file)
        self._quick_deaths = 0 if settled else self._quick_deaths + 1
        if self._quick_deaths >= QUICK_DEATHS:
            self.state = "failed"
            raise PartFailed(
                self.spec.name,
                f"died {QUICK_DEATHS} times in a row ({_describe(code)}): {self._last_words()}",
                self.spec.log_file,
            )
        pause = BACKOFF_S[min(self._quick_deaths, len(BACKOFF_S) - 1)]
        self._restart_at_ns = now + int(pause * 1e9)
        self.state = "restarting"
        return True

    def suspend(self) -> None:
        """End it at once; `resume` starts it again."""
        self.kill()
        self.state = "waiting"

    def resume(self) -> None:
        """Start it again after `suspend`."""
        self.restarts += 1
        self.start()

    def terminate(self) -> None:
        """Ask it to end; `join` waits for it."""
        if self._process is not None and self.state == "running":
            self._signal(self.spec.stop_signal)

    def join(self) -> bool:
        """Wait for its end, and end it by force when its time is over.

        Returns:
            Whether it ended by itself with exit code 0, or had nothing to save yet.
        """
        if self._process is None or self.state != "running":
            if self.state in ("waiting", "restarting"):
                self.state = "stopped"
            return True
        try:
            code = self._process.wait(self.spec.stop_timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        # Whatever it had started itself goes with it.
        self._signal(signal.SIGKILL)
        self.state = "stopped"
        # Ended by the bare signal, it had not come to the point of handling it: nothing to save.
        return code in (0, -self.spec.stop_signal)

    def kill(self) -> None:
        """End it at once, with everything it started."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self.state = "stopped"

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        try:
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                # Only the part itself: it knows in which order to end what it started.
                os.kill(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            # Already gone; an empty group answers so too.
            return

    def _last_words(self) -> str:
        lines = last_lines(self.spec.log_file, LOG_TAIL, self._log_start)
        return " | ".join(line.removeprefix("podwire: ") for line in lines) or "no output"


def last_lines(path: Path, count: int, start: int = 0) -> list[str]:
    """Return the last lines of a log that are not empty, from byte ``start`` on."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(start, size - 16_384))
            text = log.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]


@functools.cache
def _spawner() -> ThreadPoolExecutor:
    # The kernel ties a child to the thread that started it, so that must be one which lives as
    # long as the process (prctl(2), PR_SET_PDEATHSIG).
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawn")


def _tied_to_us(argv: Sequence[str], stop_signal: signal.Signals) -> list[str]:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return list(argv)
    return [setpriv, "--pdeathsig", stop_signal.name.removeprefix("SIG"), "--", *argv]


def _describe(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
