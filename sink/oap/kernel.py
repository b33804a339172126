"""Opens, closes and transfers as kernel logs, and which call each of them belongs to.

Pure. Everything is columns until the last moment: see `sink.oap.wire`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.events import (
    CALL_NONE,
    FIGURE_WIDTH,
    READ_FIGURES,
    WRITE_FIGURES,
    Direction,
    OpenKind,
    Transfers,
)
from sink.oap.wire import Packed, interleave, message, number, offset_timestamp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.columns import U64
    from schemas.events import Drops, EventBatch, Requests
    from sink.oap.wire import Cells

__all__ = ["KernelLogs", "Times", "duration_of", "folded", "kernel_logs", "with_drops"]

_MINUTE_NS: Final = np.uint64(60_000_000_000)
_LOGS: Final = 3  # EBPFAccessLogMessage.kernelLogs
_CONNECT, _ACCEPT, _CLOSE, _READ, _WRITE = 1, 2, 3, 4, 5  # AccessLogKernelLog.operation
_CHUNK: Final = 4096
_U32: Final = np.uint64(0xFFFF_FFFF)
_I32: Final = np.uint64(0x7FFF_FFFF)

# From the numbers of bpf/include/events.h. What SkyWalking has no name for is a plain read or
# write: splice, io_uring, and what the kernel does on its own.
_READ_CALLS: Final = np.array([0, 0, 1, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0], np.uint8)
_WRITE_CALLS: Final = np.array([0, 0, 0, 0, 0, 0, 0, 1, 3, 4, 5, 6, 0, 0, 0], np.uint8)

# Submessage and field of each figure. The first number is that of the submessage in the operation.
_READ_FIELDS: Final = {
    "read_packet_count": (4, 2),
    "read_packet_size": (4, 3),
    "read_packet_to_queue_duration": (4, 4),
    "read_packet_from_queue_duration": (4, 5),
    "read_l3_duration": (5, 1),
    "read_l3_recv_duration": (5, 2),
    "read_l3_local_duration": (5, 3),
    "read_netfilter_count": (5, 4),
    "read_netfilter_duration": (5, 5),
    "read_l4_duration": (6, 1),
}
_WRITE_FIELDS: Final = {
    "write_l4_duration": (4, 1),
    "write_packet_count": (4, 2),
    "write_retransmit_packet_count": (4, 3),
    "write_lost_packet_count": (4, 4),
    "write_packet_size": (4, 5),
    "write_l3_duration": (5, 1),
    "write_l3_local_duration": (5, 2),
    "write_l3_output_duration": (5, 3),
    "resolve_mac_count": (5, 5),
    "resolve_mac_duration": (5, 6),
    "write_netfilter_count": (5, 7),
    "write_netfilter_duration": (5, 8),
    "write_l2_duration": (6, 1),
    "write_l2_enter_queue_count": (6, 3),
    "write_l2_ready_send_duration": (6, 4),
    "write_l2_netdevice_send_duration": (6, 5),
}
_NARROW: Final = {"read_packet_count": _U32, "write_lost_packet_count": _I32}


@dataclass(frozen=True, slots=True)
class Times:
    """How times are told.

    Attributes:
        base_ns: Unix time that offsets count from: the boot, at a whole second, as an OAP leaves
            out the rest of it.
        end_minute: Move what began in an earlier minute than it ended in, its length unchanged, to
            the start of the latter. An OAP counts in the minute of the start.
    """

    base_ns: int
    end_minute: bool

    def stamps(self, end_ns: U64, duration_ns: U64) -> tuple[U64, U64]:
        """Return offsets of start and end."""
        length = np.minimum(duration_ns, end_ns - np.uint64(self.base_ns))
        start = end_ns - length
        if self.end_minute:
            start = np.maximum(start, end_ns - end_ns % _MINUTE_NS)
        start = start - np.uint64(self.base_ns)
        return start, start + length


@dataclass(slots=True)
class KernelLogs:
    """Kernel logs as fields of a message, by connection; of one connection, those of no call first.

    Attributes:
        data: All of them, one after the other.
        ends: Where each starts, and at last where the last ends; shape (n + 1,).
        key: Shape (n,), ascending: connection times `step`, plus the place of its call from 1 on.
        step: Calls, and one.
        calls: Order of the requests that the places mean: by connection and end.
    """

    data: bytes
    ends: NDArray[np.intp]
    key: NDArray[np.int64]
    step: int
    calls: NDArray[np.intp]


def duration_of(values: U64, rows: int) -> U64:
    """Return durations with 0 where none was measured."""
    if not len(values):
        return np.zeros(rows, np.uint64)
    return np.where(values == UNMEASURED_U64, np.uint64(0), values)


def folded(transfers: Transfers) -> tuple[Transfers, int]:
    """Add what came after a connection's last call to that call's figures.

    SkyWalking has logs of calls only. What no call of the same connection and direction can take
    is left out.

    Returns:
        The calls, and how many of the other rows were left out.
    """
    none = transfers.call == CALL_NONE
    if not none.any():
        return transfers, 0
    side = transfers.connection.astype(np.int64) * 2 + (transfers.direction == Direction.WRITE)
    order = np.lexsort((transfers.end_ns, side))
    place = np.arange(len(order))
    is_call, side = ~none[order], side[order]
    before = np.maximum.accumulate(np.where(is_call, place, -1))
    after = np.minimum.accumulate(np.where(is_call, place, len(order))[::-1])[::-1]
    known_before = (before >= 0) & (side[before] == side)
    after = np.minimum(after, len(order) - 1)
    known_after = is_call[after] & (side[after] == side)
    taker = order[np.where(known_before, before, after)]
    taken = ~is_call & (known_before | known_after)
    wide = transfers.figures.astype(np.uint64)
    wide[transfers.figures == UNMEASURED_U32] = UNMEASURED_U64
    source, target = order[taken], taker[taken]
    added = np.where(wide[source] == UNMEASURED_U64, np.uint64(0), wide[source])
    measured = wide[source] != UNMEASURED_U64
    for column in range(wide.shape[1]):
        rows = target[measured[:, column]]
        first = wide[rows, column] == UNMEASURED_U64
        wide[rows[first], column] = 0
        np.add.at(wide[:, column], rows, added[measured[:, column], column])
    calls = ~none
    kept = replace(transfers, figures=wide).take(calls)  # type: ignore[arg-type]
    return kept, int((~is_call & ~taken).sum())


def with_drops(transfers: Transfers, drops: Drops) -> Transfers:
    """Add lost packets as what came after a write: see `folded`. Their reasons are not told."""
    if not drops.rows:
        return transfers
    figures = np.full((drops.rows, FIGURE_WIDTH), UNMEASURED_U32)
    figures[:, WRITE_FIGURES.index("write_lost_packet_count")] = drops.packets
    lost = Transfers(
        connection=drops.connection,
        direction=np.full(drops.rows, Direction.WRITE, np.uint8),
        call=np.full(drops.rows, CALL_NONE, np.uint8),
        end_ns=drops.end_ns,
        size=np.zeros(drops.rows, np.uint32),
        figures=figures,
    )
    return Transfers.concatenate([transfers, lost])


def kernel_logs(batch: EventBatch, times: Times) -> KernelLogs:
    """Return the logs of a batch whose transfers are all calls: see `folded`."""
    opens, closes, transfers, requests = batch.opens, batch.closes, batch.transfers, batch.requests
    is_connect = np.flatnonzero(opens.kind == OpenKind.CONNECT)
    is_accept = np.flatnonzero(opens.kind != OpenKind.CONNECT)
    reads = np.flatnonzero(transfers.direction == Direction.READ)
    writes = np.flatnonzero(transfers.direction != Direction.READ)
    opened = times.stamps(opens.end_ns, duration_of(opens.duration_ns, opens.rows))
    closed = times.stamps(closes.end_ns, duration_of(closes.duration_ns, closes.rows))
    moved = times.stamps(transfers.end_ns, duration_of(transfers.duration_ns, transfers.rows))
    succeeded = opens.error == 0
    parts: list[Packed] = []
    for kind, rows, (start, end), good in (
        (_CONNECT, is_connect, opened, succeeded),
        (_ACCEPT, is_accept, opened, None),
        (_CLOSE, np.arange(closes.rows), closed, np.ones(closes.rows, np.bool_)),
    ):
        fields = [offset_timestamp(1, start[rows]), offset_timestamp(2, end[rows])]
        if good is not None:
            fields.append(number(3, good[rows]))
        parts.append(_log(kind, fields))
    for kind, rows in ((_READ, reads), (_WRITE, writes)):
        parts.extend(
            _transfer_logs(transfers, rows[at : at + _CHUNK], moved, kind)
            for at in range(0, len(rows), _CHUNK)
        )
    connection = np.concatenate(
        (
            opens.connection[is_connect],
            opens.connection[is_accept],
            closes.connection,
            transfers.connection[reads],
            transfers.connection[writes],
        )
    ).astype(np.int64)
    end_ns = np.concatenate(
        (
            opens.end_ns[is_connect],
            opens.end_ns[is_accept],
            closes.end_ns,
            transfers.end_ns[reads],
            transfers.end_ns[writes],
        )
    )
    order, key, calls = _ordered(connection, end_ns, opens.rows + closes.rows, requests)
    packed = interleave(parts, order) if len(order) else Packed(np.empty(0, np.uint8), order)
    return KernelLogs(packed.data.tobytes(), packed.ends(), key, requests.rows + 1, calls)


def _log(kind: int, fields: list[Cells]) -> Packed:
    return message(_LOGS, [message(kind, fields)]).pack()


def _transfer_logs(
    transfers: Transfers, rows: NDArray[np.intp], moved: tuple[U64, U64], kind: int
) -> Packed:
    calls = _READ_CALLS if kind == _READ else _WRITE_CALLS
    call = np.minimum(transfers.call[rows], len(calls) - 1)
    fields = [
        offset_timestamp(1, moved[0][rows]),
        offset_timestamp(2, moved[1][rows]),
        number(3, calls[call]),
    ]
    if len(transfers.figures) and any(transfers.figures.strides):
        figures = np.ascontiguousarray(transfers.figures[rows].T)
        fields += _layers(figures, kind)
    return _log(kind, fields)


def _layers(figures: NDArray[np.unsignedinteger], kind: int) -> list[Cells]:
    # A layer of which nothing was measured is not there at all.
    names = READ_FIGURES if kind == _READ else WRITE_FIGURES
    places = _READ_FIELDS if kind == _READ else _WRITE_FIELDS
    unmeasured = np.iinfo(figures.dtype).max
    layers: dict[int, list[Cells]] = {}
    present: dict[int, NDArray[np.bool_]] = {}
    for name, (layer, field) in places.items():
        values = figures[names.index(name)]
        measured = values != unmeasured
        if layer in present:
            present[layer] = present[layer] | measured
        else:
            present[layer] = measured
        if name in _NARROW:
            values = np.minimum(values, _NARROW[name])
        if name == "write_lost_packet_count":
            # Where packets were lost is not told, only how many.
            lost = measured & (values > 0)
            cells = message(field, [number(2, values, lost)], lost)
        else:
            cells = number(field, values, measured)
        layers.setdefault(layer, []).append(cells)
    return [message(layer, cells, present[layer]) for layer, cells in layers.items()]


def _ordered(
    connection: NDArray[np.int64], end_ns: U64, others: int, requests: Requests
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.intp]]:
    # Order of the logs, their keys in it, and the order of the requests. A read or write belongs
    # to the first call of its connection that had begun and ended no earlier.
    logs = len(connection)
    owner = np.concatenate((connection, requests.connection.astype(np.int64)))
    order = np.lexsort((np.concatenate((end_ns, requests.end_ns)), owner))
    step = requests.rows + 1
    if not requests.rows:
        return order, connection[order] * step, np.empty(0, np.intp)
    is_call = order >= logs
    calls = order[is_call] - logs
    after: NDArray[np.int64] = (
        np.cumsum(is_call) - is_call
    )  # for each place, how many calls come before it
    here = order[~is_call]
    candidate = np.minimum(after[~is_call], len(calls) - 1)
    call = calls[candidate]
    related = (
        (here >= others)
        & (after[~is_call] < len(calls))
        & (requests.connection[call] == connection[here])
        & (requests.start_ns[call] <= end_ns[here])
    )
    key = connection[here] * step + np.where(related, candidate + 1, 0)
    again = np.argsort(key, kind="stable")
    return here[again], key[again], calls
