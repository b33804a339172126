"""Counting what every stage did with every event: ``in == out + dropped``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["KINDS", "REASONS", "STAGES", "Entry", "Kind", "Ledger", "Reason", "Stage"]

Stage = Literal["kernel", "collector", "streams", "sink"]
"""kernel: hooks to ring; collector: ring to Kafka; streams: Kafka to minutes; sink: to SQL."""

Kind = Literal[
    "open",
    "close",
    "transfer",
    "request",
    "drop",
    "payload",
    "payload_byte",
    "connection",
    "process",
    "block",
]
"""payload: records of captured bytes, from the kernel to the parsers; payload_byte: the bytes that
these needed; request: what they found in them."""

Reason = Literal[
    "ring_full",  # kernel: no room in the ring buffer
    "map_full",  # kernel: no memory for socket or task state
    "unannounced",  # kernel: the connection record had not fitted, so its events cannot be named
    "unpaired",  # kernel: bytes inside TLS of a session whose connection is not known
    "malformed",  # a record or row that fails its checks
    "unknown_connection",  # collector: an event of a connection that was never announced
    "untold",  # collector: bytes that a parser needed, of calls that no record tells of
    "uncaptured",  # collector: bytes that a parser needed, and that a record has only the number of
    "undelivered",  # collector: Kafka did not take the batch within the time and memory allowed
    "excluded",  # collector, streams: outside the monitoring scope by configuration
    "unclean_restart",  # streams: a collector run ended without its last batch (count of runs)
    "sequence_gap",  # streams: batches of a run that never arrived (count of batches)
    "pod_internal",  # streams, sink: both ends in one pod
    "instance_relation_dropped",  # streams: the pod behind a service IP cannot be known
    "duplicate",  # the same batch or block a second time
    "abandoned",  # sink: parts of a block whose writer died before the last part
    "sampled",  # sink: a call that is not among the share that the access log keeps
    "undecodable",  # the message went to the dead letter topic
]

STAGES: Final[tuple[str, ...]] = Stage.__args__  # type: ignore[attr-defined]
KINDS: Final[tuple[str, ...]] = Kind.__args__  # type: ignore[attr-defined]
REASONS: Final[tuple[str, ...]] = Reason.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Entry:
    """Counts of one stage, kind and reason. Reason is empty for in and out."""

    stage: str
    kind: str
    reason: str
    in_count: int = 0
    out_count: int = 0
    dropped_count: int = 0


@dataclass(slots=True)
class Ledger:
    """Increments since the last `drain`."""

    _counts: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)

    def passed(self, stage: Stage, kind: Kind, *, entered: int, left: int) -> None:
        """Count events that entered a stage and those of them that left it."""
        if entered or left:
            counts = self._counts.setdefault((stage, kind, ""), [0, 0, 0])
            counts[0] += entered
            counts[1] += left

    def dropped(self, stage: Stage, kind: Kind, reason: Reason, count: int) -> None:
        """Count events that entered a stage and stayed there, with the reason."""
        if count:
            self._counts.setdefault((stage, kind, reason), [0, 0, 0])[2] += count

    def add(self, entries: Iterable[Entry]) -> None:
        """Add increments counted elsewhere."""
        for entry in entries:
            counts = self._counts.setdefault((entry.stage, entry.kind, entry.reason), [0, 0, 0])
            counts[0] += entry.in_count
            counts[1] += entry.out_count
            counts[2] += entry.dropped_count

    def drain(self) -> list[Entry]:
        """Return the increments and start again from zero."""
        entries = [Entry(*key, *counts) for key, counts in sorted(self._counts.items())]
        self._counts.clear()
        return entries

    def open_counts(self) -> dict[tuple[str, str], int]:
        """Return ``in - out - dropped`` of each (stage, kind) that does not close."""
        sums: dict[tuple[str, str], int] = {}
        for (stage, kind, _), (entered, left, dropped) in self._counts.items():
            sums[stage, kind] = sums.get((stage, kind), 0) + entered - left - dropped
        return {key: value for key, value in sums.items() if value}
