"""Which blocks are whole, and which are already stored. Pure.

Parts of one attempt make a block; parts of an attempt whose writer died never will. A block that
is stored is known by the events offsets that it covers: a second one over any of them would count
events twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from schemas.metrics import BlockIdentity, MetricsBlock

__all__ = ["Assembler", "Attempt", "StoredBlocks", "Verdict"]

Verdict = Literal["new", "replayed", "duplicate", "overlapping"]

PATIENCE: Final = 256
"""Messages of the partition after which an attempt without news is given up."""

KEPT_S: Final = 80 * 3600
"""How long stored blocks are remembered: longer than the metrics topic keeps messages."""

KEPT: Final = 20_000
"""Minutes remembered per partition: as long, and more, with room for late blocks."""


@dataclass(slots=True)
class Attempt:
    """The parts of one block from one attempt, as far as they have arrived."""

    identity: BlockIdentity
    first_offset: int
    parts: dict[int, MetricsBlock] = field(default_factory=dict)
    messages_since: int = 0

    @property
    def whole(self) -> bool:
        """Whether every part is there."""
        return len(self.parts) == self.identity.parts

    def ordered(self) -> list[MetricsBlock]:
        """Return the parts in order."""
        return [self.parts[index] for index in sorted(self.parts)]


class Assembler:
    """Puts the parts of one partition together."""

    def __init__(self) -> None:
        self._open: dict[BlockIdentity, Attempt] = {}

    def add(self, offset: int, block: MetricsBlock) -> Attempt | None:
        """Take one message, and return its block if it is whole now."""
        for attempt in self._open.values():
            attempt.messages_since += 1
        identity = replace(block.identity, part=0)
        attempt = self._open.setdefault(identity, Attempt(identity, offset))
        attempt.messages_since = 0
        attempt.parts[block.identity.part] = block
        if not attempt.whole:
            return None
        del self._open[identity]
        return attempt

    def is_open(self, identity: BlockIdentity) -> bool:
        """Whether other parts of the same attempt have arrived."""
        return replace(identity, part=0) in self._open

    def give_up(self, stored: BlockIdentity | None = None) -> list[Attempt]:
        """Return and forget the attempts that will not become whole.

        Args:
            stored: A block just stored: other attempts at what it covers are over.
        """
        over = [
            attempt
            for attempt in self._open.values()
            if attempt.messages_since >= PATIENCE
            or (stored is not None and _overlap(attempt.identity, stored))
        ]
        for attempt in over:
            del self._open[attempt.identity]
        return over

    def floor(self, next_offset: int) -> int:
        """Return the offset to commit: nothing after it is needed for the blocks that are open."""
        return min((a.first_offset for a in self._open.values()), default=next_offset)


def _overlap(one: BlockIdentity, other: BlockIdentity) -> bool:
    return (
        (one.topic, one.partition, one.minute_s) == (other.topic, other.partition, other.minute_s)
        and one.base_offset < other.end_offset
        and other.base_offset < one.end_offset
    )


class StoredBlocks:
    """The blocks of one partition that the database has in full."""

    def __init__(self) -> None:
        self._ranges: dict[tuple[str, int], list[tuple[int, int, int]]] = {}

    def add(self, topic: str, minute_s: int, base: int, end: int, offset: int) -> None:
        """Remember a block that is stored.

        Args:
            topic: Events topic of the block.
            minute_s: Its minute, Unix seconds.
            base: First events offset that contributed.
            end: Events offset after the last.
            offset: Metrics offset of its first part.
        """
        self._ranges.setdefault((topic, minute_s), []).append((base, end, offset))
        if len(self._ranges) > KEPT:
            del self._ranges[next(iter(self._ranges))]

    def judge(self, identity: BlockIdentity, offset: int) -> Verdict:
        """Say whether a block may be stored.

        ``replayed`` is the very message that was stored, read again after a restart;
        ``duplicate`` another copy of the block; ``overlapping`` another block over events that
        are already counted, which a correct writer never sends.
        """
        verdict: Verdict = "new"
        for base, end, first in self._ranges.get((identity.topic, identity.minute_s), ()):
            if first == offset and base == identity.base_offset:
                return "replayed"
            if base < identity.end_offset and identity.base_offset < end:
                same = (base, end) == (identity.base_offset, identity.end_offset)
                verdict = "duplicate" if same else "overlapping"
        return verdict
