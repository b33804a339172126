"""Exact sums of opens, closes and transfers by relation.

Pure. Requests are only counted here: they are added up by relation and endpoint, in
`streams.requests`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.catalogue import FIGURES
from schemas.columns import UNMEASURED_U64
from schemas.events import CALL_NONE, READ_FIGURES, WRITE_FIGURES, Direction, OpenKind
from streams.exact import exact_sums, measured_sums
from streams.figures import WAITED, add_sums, is_unmeasured, long_waits, measured
from streams.histograms import Values, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.columns import U64
    from schemas.events import Closes, Opens, Requests, Transfers

__all__ = ["COLUMNS", "EVENT_COLUMNS", "PLAIN", "relation_sums"]

_STAGED: Final = (*READ_FIGURES, *WRITE_FIGURES)
PLAIN: Final = (
    *(
        column
        for figure in FIGURES
        if figure.group in ("connection", "read", "write") and figure.name not in _STAGED
        for column in ((figure.name, figure.measured_name) if figure.optional else (figure.name,))
    ),
    "transfer_events",
    "request_events",
)
"""The columns that every batch has."""
COLUMNS: Final = (*PLAIN, *_STAGED, *(f"{name}_measured_count" for name in _STAGED))
"""Columns of the sums, in order: those of every batch, then those of `Transfers.figures`.

``transfer_events`` and ``request_events`` are none of the catalogue's: the first counts the rows
that are no call as well, the second makes a relation known that has requests only.
"""

_AT: Final = {name: place for place, name in enumerate(COLUMNS)}
EVENT_COLUMNS: Final[dict[str, tuple[int, ...]]] = {
    "open": (_AT["connect_count"], _AT["accept_count"]),
    "close": (_AT["close_count"],),
    "transfer": (_AT["transfer_events"],),
    "request": (_AT["request_events"],),
}
"""By kind of event, places of the columns that together count each of them once."""

_TRANSFER: Final = _AT["transfer_events"]
_REQUEST: Final = _AT["request_events"]


def relation_sums(
    index: NDArray[np.intp],
    size: int,
    opens: Opens,
    closes: Closes,
    transfers: Transfers,
    requests: Requests,
) -> tuple[U64, list[Values]]:
    """Return the sums of each relation, and the stage values of its calls.

    Args:
        index: Shape (connections,), the relation of each.
        size: Number of relations.
        opens: Rows of one minute, as all that follow.
        closes: Likewise.
        transfers: Likewise.
        requests: Likewise.

    Returns:
        Shape (relations, columns), the first of COLUMNS or all; and the values.
    """
    staged = not is_unmeasured(transfers.figures)
    sums = np.zeros((size, len(COLUMNS) if staged else len(PLAIN)), np.uint64)
    stages: list[Values] = []
    if opens.rows:
        group = index[opens.connection]
        connects = opens.kind == OpenKind.CONNECT
        for chosen, name in ((connects, "connect"), (~connects, "accept")):
            of_kind = group[chosen]
            sums[:, _AT[f"{name}_count"]] = np.bincount(of_kind, minlength=size)
            _add_duration(sums, f"{name}_duration", of_kind, _duration_ns(opens)[chosen], size)
        good = group[connects & (opens.error == 0)]
        sums[:, _AT["connect_success_count"]] = np.bincount(good, minlength=size)
    if closes.rows:
        group = index[closes.connection]
        sums[:, _AT["close_count"]] = np.bincount(group, minlength=size)
        _add_duration(sums, "close_duration", group, _duration_ns(closes), size)
    if transfers.rows:
        group = index[transfers.connection]
        no_call = transfers.call == CALL_NONE
        called = ~no_call if no_call.any() else None
        _add_transfers(sums, group, transfers, called)
        if staged:
            stages = _add_staged(sums, group, transfers, called)
    if requests.rows:
        sums[:, _REQUEST] = np.bincount(index[requests.connection], minlength=size)
    return sums, stages


def _add_transfers(
    sums: U64, group: NDArray[np.intp], transfers: Transfers, called: NDArray[np.bool_] | None
) -> None:
    size = len(sums)
    direction, sizes, duration_ns = transfers.direction, transfers.size, _duration_ns(transfers)
    if called is not None:
        sums[:, _TRANSFER] = np.bincount(group, minlength=size)
        group, direction, sizes = group[called], direction[called], sizes[called]
        duration_ns = duration_ns[called]
    # Reads and writes in one pass: even places are reads, odd places are writes.
    side = group * 2
    side += direction == Direction.WRITE
    counts = np.bincount(side, minlength=2 * size)
    bytes_ = exact_sums(side, sizes, 2 * size)
    durations, measured_counts = measured_sums(side, duration_ns, 2 * size, counts)
    for offset, name in enumerate(("read", "write")):
        sums[:, _AT[f"{name}_count"]] = counts[offset::2]
        sums[:, _AT[f"{name}_bytes"]] = bytes_[offset::2]
        sums[:, _AT[f"{name}_duration"]] = durations[offset::2]
        sums[:, _AT[f"{name}_duration_measured_count"]] = measured_counts[offset::2]
    if called is None:
        sums[:, _TRANSFER] = counts[::2] + counts[1::2]


def _add_staged(
    sums: U64, group: NDArray[np.intp], transfers: Transfers, called: NDArray[np.bool_] | None
) -> list[Values]:
    # What no call measured adds to the sums only: sum by measured count is a mean per call.
    size = len(sums)
    totals = np.zeros((len(_STAGED), size), np.uint64)
    counts = np.zeros((len(_STAGED), size), np.uint64)
    stages = []
    for direction, figures in ((Direction.READ, READ_FIGURES), (Direction.WRITE, WRITE_FIGURES)):
        first = _STAGED.index(figures[0])
        places = slice(first, first + len(figures))
        chosen = transfers.direction == direction
        parts = [(chosen, True)]
        if called is not None:
            parts = [(chosen & called, True), (chosen & ~called, False)]
        for rows, by_call in parts:
            at = np.flatnonzero(rows)
            if not len(at):
                continue
            found = measured(np.take(transfers.figures, at, axis=0), len(figures))
            of_row = group[at]
            add_sums(found, of_row, totals[places], counts[places] if by_call else None)
            if by_call and direction == Direction.READ:
                longer, excess = long_waits(found, _duration_ns(transfers)[at])
                totals[first + WAITED] += exact_sums(of_row[longer], excess, size)
            if by_call:
                values = spread(found, writes=direction == Direction.WRITE, group=of_row)
                stages += [values] if values is not None else []
    sums[:, len(PLAIN) : len(PLAIN) + len(_STAGED)] = totals.T
    sums[:, len(PLAIN) + len(_STAGED) :] = counts.T
    return stages


def _add_duration(
    sums: U64, name: str, group: NDArray[np.intp], duration_ns: U64, size: int
) -> None:
    durations, measured = measured_sums(group, duration_ns, size)
    sums[:, _AT[name]] = durations
    sums[:, _AT[f"{name}_measured_count"]] = measured


def _duration_ns(table: Opens | Closes | Transfers) -> U64:
    # A column that lacks all values may be empty.
    values = table.duration_ns
    return values if len(values) else np.broadcast_to(UNMEASURED_U64, table.rows)
