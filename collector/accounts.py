"""The collector's entries of the ledger: what the kernel lost, what Kafka did not take. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from collector.abi import COUNTS, Kind
from schemas.ledger import Entry, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["as_undelivered", "drop", "kernel_entries"]

_KERNEL_KINDS: Final = tuple(kind.name.lower() for kind in sorted(Kind))
_KERNEL_REASONS: Final = (COUNTS.names or ())[1:]
"""Ledger kinds and reasons are the kernel's own names: a test compares them."""


def kernel_entries(increments: NDArray[np.uint64]) -> list[Entry]:
    """Return the ledger rows of the kernel stage.

    Args:
        increments: A row for each kind of ``enum podwire_kind``: the fields of ``struct
            podwire_counts`` since the last call.
    """
    ledger = Ledger()
    for kind, counts in zip(_KERNEL_KINDS, increments.tolist(), strict=True):
        ledger.passed("kernel", kind, entered=sum(counts), left=counts[0])  # type: ignore[arg-type]
        for reason, count in zip(_KERNEL_REASONS, counts[1:], strict=True):
            ledger.dropped("kernel", kind, reason, count)  # type: ignore[arg-type]
    return ledger.drain()


def as_undelivered(entries: Iterable[Entry]) -> list[Entry]:
    """Return what a later header must say of a batch that Kafka did not take.

    What had left the collector in it has not: the same rows entered and were dropped. All other
    counts were told to nobody yet and are repeated.
    """
    ledger = Ledger()
    for entry in entries:
        gone = entry.out_count if _is_published(entry) else 0
        ledger.add([Entry(entry.stage, entry.kind, entry.reason, entry.in_count,
                          entry.out_count - gone, entry.dropped_count)])  # fmt: skip
        if gone:
            ledger.add([Entry(entry.stage, entry.kind, "undelivered", dropped_count=gone)])
    return ledger.drain()


def _is_published(entry: Entry) -> bool:
    return entry.stage == "collector" and entry.kind in (
        "open",
        "close",
        "transfer",
        "request",
        "drop",
    )


def drop(ledger: Ledger, kind: str, reason: str, count: int) -> None:
    """Count what entered the collector and stayed there."""
    ledger.passed("collector", kind, entered=count, left=0)  # type: ignore[arg-type]
    ledger.dropped("collector", kind, reason, count)  # type: ignore[arg-type]
