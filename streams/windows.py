"""When a minute of one events partition is complete, and which offsets it holds.

Pure: times come in as arguments. Every node has its own watermark, so a skewed or silent node holds
nobody back. A minute remembers the first offset that added to it; the floor is the least of these
over all minutes that are not yet stored, and no offset beyond it may be committed: whoever takes
over reads from the floor again and rebuilds what was lost.

After a take-over some of the minutes met again were stored already, up to some offset each
(`emitted`): contributions below that offset are skipped. Nothing closes until the last of these
offsets is reached again, so that the ends of blocks never go backwards in the metrics partition;
`streams.recovery` relies on it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.minutes import MinuteSums

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from schemas.events import BatchHeader
    from streams.minutes import Contribution

__all__ = ["ClosedMinute", "MinuteAggregator", "Reception", "WindowSettings"]

_MINUTE_NS = 60_000_000_000
_REMEMBERED_RUNS = 8
_REMEMBERED_GAPS = 10_000
_REMEMBERED_MINUTES = 1_000


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """When minutes close; all in seconds."""

    grace_s: float = 2.0
    node_timeout_s: float = 10.0
    close_after_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Reception:
    """What a batch's place in its run says.

    Attributes:
        duplicate: It was here before; count nothing of it.
        missing: Batches of the run that should have come before it.
        unclean: The node's previous run ended without saying so.
    """

    duplicate: bool = False
    missing: int = 0
    unclean: bool = False


@dataclass(slots=True)
class ClosedMinute:
    """A minute to store: contributions of offsets [base_offset, end_offset)."""

    minute_s: int
    base_offset: int
    end_offset: int
    sums: MinuteSums
    late: bool
    """Whether a part of this minute was stored before."""


@dataclass(slots=True)
class _Run:
    first: int
    following: int
    missing: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Node:
    run_id: str
    watermark_ns: int
    seen_s: float
    final: bool
    runs: OrderedDict[str, _Run] = field(default_factory=OrderedDict)


@dataclass(slots=True)
class _Open:
    base_offset: int
    opened_s: float
    sums: MinuteSums = field(default_factory=MinuteSums)


class MinuteAggregator:
    """The open minutes of one events partition.

    Args:
        settings: When minutes close.
        start_offset: Where reading begins.
        emitted: For minutes stored in part, the offset up to which they are.
    """

    def __init__(
        self,
        settings: WindowSettings,
        start_offset: int = 0,
        emitted: Mapping[int, int] | None = None,
    ) -> None:
        self._settings = settings
        self._emitted = dict(emitted or {})
        self._replay_end = max(self._emitted.values(), default=0)
        self._next_offset = start_offset
        self._nodes: dict[str, _Node] = {}
        self._open: dict[int, _Open] = {}
        self._closing: dict[int, int] = {}
        self._stored: OrderedDict[int, None] = OrderedDict.fromkeys(self._emitted)

    @property
    def next_offset(self) -> int:
        """The offset after the last one taken in."""
        return self._next_offset

    @property
    def floor(self) -> int:
        """The offset that may be committed: everything below it is stored."""
        bases = [minute.base_offset for minute in self._open.values()]
        return min([*bases, *self._closing.values(), self._next_offset])

    @property
    def open_minutes(self) -> int:
        """Number of minutes that are not stored."""
        return len(self._open) + len(self._closing)

    @property
    def oldest_minute_s(self) -> int | None:
        """The earliest minute that is not stored."""
        return min([*self._open, *self._closing], default=None)

    def receive(self, header: BatchHeader, now_s: float) -> Reception:
        """Note a batch's arrival: its node lives, and its run goes on, skips or repeats.

        Args:
            header: Of the batch.
            now_s: Processing time.
        """
        node = self._nodes.get(header.node)
        if node is None:
            node = self._nodes[header.node] = _Node(header.run_id, 0, now_s, False)
        unclean = False
        run = node.runs.get(header.run_id)
        if run is None:
            unclean = bool(node.runs) and not node.final
            run = node.runs[header.run_id] = _Run(header.sequence, header.sequence)
            if len(node.runs) > _REMEMBERED_RUNS:
                node.runs.popitem(last=False)
            node.run_id, node.watermark_ns, node.final = header.run_id, 0, False
        node.seen_s = now_s
        if header.sequence < run.following:
            if header.sequence not in run.missing:
                return Reception(duplicate=True)
            run.missing.discard(header.sequence)
            missing = 0
        else:
            missing = header.sequence - run.following
            if missing and len(run.missing) + missing <= _REMEMBERED_GAPS:
                run.missing.update(range(run.following, header.sequence))
            run.following = header.sequence + 1
        if header.run_id == node.run_id:
            node.watermark_ns = max(node.watermark_ns, header.watermark_ns)
            node.final = node.final or header.final
        return Reception(missing=missing, unclean=unclean)

    def add(self, offset: int, parts: Iterable[Contribution], now_s: float) -> None:
        """Add what the message at this offset contributes; every message must come here once.

        Args:
            offset: Of the message in the partition; offsets only grow.
            parts: At most one for each minute; none for a message that adds nothing.
            now_s: Processing time.
        """
        for part in parts:
            if offset < self._emitted.get(part.minute_s, 0):
                continue
            minute = self._open.get(part.minute_s)
            if minute is None:
                minute = self._open[part.minute_s] = _Open(offset, now_s)
            minute.sums.add(part)
        self._next_offset = offset + 1

    def due(self, now_s: float) -> list[int]:
        """Return the minutes to close now, oldest first."""
        if self._next_offset < self._replay_end:
            return []
        waited, any_final = self._waited_for(now_s)
        grace = self._settings.grace_s
        least_s = min(waited) / 1e9 if waited else None
        found = []
        for minute_s, minute in self._open.items():
            end_s = minute_s + 60
            if least_s is not None:
                passed = least_s >= end_s + grace
            else:
                passed = any_final or now_s >= end_s + grace
            # A minute of a skewed clock, or one met long after its time, gets the same patience
            # from when it was opened.
            patience = min(max(end_s - minute.opened_s, 0), 60) + self._settings.close_after_s
            if passed or now_s >= minute.opened_s + patience:
                found.append(minute_s)
        return sorted(found)

    def close(self, minute_s: int) -> ClosedMinute:
        """Take a minute out to be stored; the floor stays until `stored` is called."""
        minute = self._open.pop(minute_s)
        self._closing[minute_s] = minute.base_offset
        return ClosedMinute(
            minute_s, minute.base_offset, self._next_offset, minute.sums, minute_s in self._stored
        )

    def stored(self, minute_s: int) -> None:
        """Say that a closed minute is stored."""
        del self._closing[minute_s]
        self._stored[minute_s] = None
        self._stored.move_to_end(minute_s)
        if len(self._stored) > _REMEMBERED_MINUTES:
            self._stored.popitem(last=False)

    def _waited_for(self, now_s: float) -> tuple[list[int], bool]:
        # Watermarks of the nodes that hold minutes open, and whether some node ended in order.
        live = []
        any_final = False
        for name, node in list(self._nodes.items()):
            silent_s = now_s - node.seen_s
            if node.final:
                any_final = True
            elif silent_s < self._settings.node_timeout_s:
                live.append(node.watermark_ns)
            if silent_s > 3600:
                del self._nodes[name]
        if not live:
            return [], any_final
        # The clock to go by is the one next to ours; a node far behind it is skewed, not slow.
        now_ns = int(now_s * 1e9)
        reference = min(live, key=lambda watermark: abs(watermark - now_ns))
        slowest = reference - int(self._settings.close_after_s * 1e9)
        return [watermark for watermark in live if watermark >= slowest], any_final
