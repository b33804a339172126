"""The status line of ``podwire local``: alive on a terminal, a plain line at times elsewhere."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from rich.console import Console

    from deploy.local.figures import Figures
    from deploy.local.part import Part

__all__ = ["Snapshot", "StatusLine", "count", "plural", "program", "size"]

PLAIN_INTERVAL_S: Final = 10.0
RATE_WINDOW_S: Final = 3.0
WIDE: Final = 112
_STYLES: Final = {
    "running": "green",
    "done": "green",
    "restarting": "yellow",
    "failed": "bold red",
    "waiting": "dim",
    "stopped": "dim",
}


def program() -> str:
    """How this user calls podwire: by its name where that is found, else by its path."""
    if shutil.which("podwire"):
        return "podwire"
    beside = Path(sys.executable).with_name("podwire")
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)


def count(number: int) -> str:
    """``1234567`` as ``1,234,567``."""
    return f"{number:,}"


def plural(number: int, word: str) -> str:
    """``2 minutes``, ``1 minute``."""
    return f"{count(number)} {word}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """Bytes with a binary unit, three figures."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1000 or unit == "TiB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.3g} {unit}"
        number /= 1024
    raise AssertionError


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the status line shows."""

    seconds: float
    events_per_s: float
    connections: int
    minutes: int
    lost: int
    parts: Mapping[str, tuple[str, int]]
    """State and restarts by part."""

    def render(self, width: int) -> Text:
        """Return the line, in fewer words on a narrow terminal."""
        minutes, seconds = divmod(int(self.seconds), 60)
        line = Text(f"{minutes:02d}:{seconds:02d}", style="bold")
        for name, (state, restarts) in self.parts.items():
            line.append(" ● ", style=_STYLES[state])
            line.append(name)
            if state not in ("running", "done"):
                line.append(f" {state}", style=_STYLES[state])
            if restarts:
                line.append(f" {restarts}↻", style="yellow")
        rate = count(round(self.events_per_s))
        if width >= WIDE:
            line.append(f" │ {rate} events/s │ {plural(self.connections, 'connection')}")
            line.append(f" │ {plural(self.minutes, 'minute')} stored │ ")
        else:
            line.append(f" {rate}/s {count(self.connections)} conn {count(self.minutes)} min ")
        line.append(f"{count(self.lost)} lost", style="bold red" if self.lost else "")
        return line


class _ToConsole(logging.Handler):
    # Log records to a function.
    def __init__(self, show: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.INFO)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record)


class StatusLine:
    """Shows snapshots while it is entered."""

    def __init__(self, console: Console, figures: Figures, parts: Mapping[str, Part]) -> None:
        self._console = console
        self._figures = figures
        self._parts = parts
        self._started = time.monotonic()
        self._history: list[tuple[float, int]] = []
        self._next_plain = 0.0
        self._handlers: list[logging.Handler] = []
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._handlers = logging.getLogger().handlers[:]
            logging.getLogger().handlers[:] = [_ToConsole(self._show_log)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            logging.getLogger().handlers[:] = self._handlers
            self._live.stop()

    def update(self) -> None:
        """Show the present state."""
        line = self.snapshot().render(self._console.width)
        if self._live is not None:
            line.no_wrap, line.overflow = True, "ellipsis"
            self._live.update(line)
        elif time.monotonic() >= self._next_plain:
            self._next_plain = time.monotonic() + PLAIN_INTERVAL_S
            self._console.print(line, soft_wrap=True)

    def _show_log(self, record: logging.LogRecord) -> None:
        # Above the line, not through it.
        style = "red" if record.levelno >= logging.ERROR else "yellow"
        self._console.print(record.getMessage(), style=style, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Show a phase instead of numbers, such as during the stop."""
        if self._live is not None:
            self._live.update(Text(text))

    def snapshot(self) -> Snapshot:
        """Return the numbers of this moment."""
        now = time.monotonic()
        self._history.append((now, self._figures.events))
        while len(self._history) > 2 and now - self._history[0][0] > RATE_WINDOW_S:
            del self._history[0]
        (then, before), (_, events) = self._history[0], self._history[-1]
        return Snapshot(
            seconds=now - self._started,
            events_per_s=(events - before) / (now - then) if now > then else 0.0,
            connections=self._figures.connections,
            minutes=self._figures.minutes,
            lost=sum(self._figures.losses.values()),
            parts={name: (part.state, part.restarts) for name, part in self._parts.items()},
        )
