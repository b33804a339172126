"""What is no call itself, added to the call that it came after. Pure.

SkyWalking has logs of calls only, but packets go out and come in between calls, and those that this
host lost are told on their own. They go with the last call of their connection and direction before
them; where the period has none, with the first one after them; and where it has no such call at all
they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.events import CALL_NONE, Direction, Transfers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.columns import U32, U64
    from schemas.events import Drops

__all__ = ["Folded", "Losses", "folded"]


@dataclass(slots=True)
class Losses:
    """Packets that the host lost of what a write had sent, once for each reason; shape (n,) each.

    Attributes:
        transfer: Row of the write, ascending.
        reason: Index into the batch's names.
        packets: How many.
    """

    transfer: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    reason: U32 = field(default_factory=lambda: np.empty(0, np.uint32))
    packets: U64 = field(default_factory=lambda: np.empty(0, np.uint64))


@dataclass(slots=True)
class Folded:
    """The calls with what came after them.

    Attributes:
        transfers: Calls only.
        losses: Of these calls.
        added: How many rows were added to a call.
        left_out: How many no call could take.
    """

    transfers: Transfers
    losses: Losses
    added: int
    left_out: int


def folded(transfers: Transfers, drops: Drops) -> Folded:
    """Add what is no call to the calls."""
    is_call = transfers.call != CALL_NONE
    if is_call.all() and not drops.rows:
        return Folded(transfers, Losses(), 0, 0)
    rows = transfers.rows
    connection = np.concatenate((transfers.connection, drops.connection)).astype(np.int64)
    is_write = np.ones(len(connection), np.bool_)
    is_write[:rows] = transfers.direction == Direction.WRITE
    end_ns = np.concatenate((transfers.end_ns, drops.end_ns))
    takes = np.zeros(len(connection), np.bool_)
    takes[:rows] = is_call
    taker = _takers(connection * 2 + is_write, end_ns, takes)
    source = np.flatnonzero(~is_call & (taker[:rows] >= 0))
    if len(source):
        # Wider than usual, as what is added to a call may exceed what one row can say.
        wide = _added(transfers.figures, source, taker[source])
        transfers = replace(transfers, figures=wide)  # type: ignore[arg-type]
    place = np.cumsum(is_call) - 1
    losses = _losses(place, taker[rows:], drops)
    left_out = int((taker < 0).sum())
    return Folded(transfers.take(is_call), losses, int((~takes).sum()) - left_out, left_out)


def _takers(side: NDArray[np.int64], end_ns: U64, takes: NDArray[np.bool_]) -> NDArray[np.intp]:
    # For each row the one that takes it, itself if it is one of those that do; else -1. What ended
    # together with a call comes after it.
    order = np.lexsort((~takes, end_ns, side))
    place = np.arange(len(order))
    takes, side = takes[order], side[order]
    before = np.maximum.accumulate(np.where(takes, place, -1))
    after = np.minimum.accumulate(np.where(takes, place, len(order))[::-1])[::-1]
    known_before = (before >= 0) & (side[before] == side)
    after = np.minimum(after, len(order) - 1)
    known_after = takes[after] & (side[after] == side)
    taker = np.empty(len(order), np.intp)
    taker[order] = np.where(known_before, order[before], np.where(known_after, order[after], -1))
    return taker


def _added(
    figures: NDArray[np.unsignedinteger], source: NDArray[np.intp], target: NDArray[np.intp]
) -> U64:
    wide = figures.astype(np.uint64)
    wide[figures == UNMEASURED_U32] = UNMEASURED_U64
    values = wide[source]
    measured = values != UNMEASURED_U64
    for column in range(wide.shape[1]):
        rows = target[measured[:, column]]
        first = wide[rows, column] == UNMEASURED_U64
        wide[rows[first], column] = 0
        np.add.at(wide[:, column], rows, values[measured[:, column], column])
    return wide


def _losses(place: NDArray[np.intp], taker: NDArray[np.intp], drops: Drops) -> Losses:
    taken = taker >= 0
    if not taken.any():
        return Losses()
    reason = drops.reason[taken]
    reasons = int(reason.max()) + 1
    pairs, index = np.unique(place[taker[taken]] * reasons + reason, return_inverse=True)
    packets = np.zeros(len(pairs), np.uint64)
    np.add.at(packets, index, drops.packets[taken])
    return Losses(pairs // reasons, (pairs % reasons).astype(np.uint32), packets)
