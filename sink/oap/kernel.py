"""Opens, closes and transfers as kernel logs, and which call each of them belongs to.

Pure. Everything is columns until the last moment: see `sink.oap.wire`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.columns import UNMEASURED_U64
from schemas.events import READ_FIGURES, WRITE_FIGURES, Direction, OpenKind
from sink.oap.wire import (
    Packed,
    interleave,
    message,
    nested,
    number,
    offset_timestamp,
    text,
    varint,
    written,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from schemas.columns import U64
    from schemas.events import EventBatch, Requests, Transfers
    from sink.oap.folding import Losses
    from sink.oap.wire import Cells

__all__ = ["KernelLogs", "Times", "kernel_logs"]

_MINUTE_NS: Final = np.uint64(60_000_000_000)
_LOGS: Final = 3  # EBPFAccessLogMessage.kernelLogs
_CONNECT, _ACCEPT, _CLOSE, _READ, _WRITE = 1, 2, 3, 4, 5  # AccessLogKernelLog.operation
_LAYER_OF_LOSSES, _LOSSES = 4, 4  # l4Metrics of a write, and its lossPackageMetrics
_LOSS_LOCATION, _LOSS_COUNT = 1, 2  # of AccessLogLossPackageMetrics
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
    "write_lost_packet_count": (_LAYER_OF_LOSSES, _LOSSES),
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


def kernel_logs(batch: EventBatch, losses: Losses, times: Times) -> KernelLogs:
    """Return the logs of a batch whose transfers are all calls: see `sink.oap.folding`."""
    opens, closes, transfers, requests = batch.opens, batch.closes, batch.transfers, batch.requests
    is_connect = np.flatnonzero(opens.kind == OpenKind.CONNECT)
    is_accept = np.flatnonzero(opens.kind != OpenKind.CONNECT)
    reads = np.flatnonzero(transfers.direction == Direction.READ)
    writes = np.flatnonzero(transfers.direction != Direction.READ)
    opened = times.stamps(opens.end_ns, _duration(opens.duration_ns, opens.rows))
    closed = times.stamps(closes.end_ns, _duration(closes.duration_ns, closes.rows))
    moved = times.stamps(transfers.end_ns, _duration(transfers.duration_ns, transfers.rows))
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
        for at in range(0, len(rows), _CHUNK):
            some = rows[at : at + _CHUNK]
            lost = _lost(batch.names, losses, some) if kind == _WRITE else None
            parts.append(_transfer_logs(transfers, some, moved, kind, lost))
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


def _duration(values: U64, rows: int) -> U64:
    # With 0 where none was measured.
    if not len(values):
        return np.zeros(rows, np.uint64)
    return np.where(values == UNMEASURED_U64, np.uint64(0), values)


def _log(kind: int, fields: list[Cells]) -> Packed:
    return message(_LOGS, [message(kind, fields)]).pack()


def _transfer_logs(
    transfers: Transfers,
    rows: NDArray[np.intp],
    moved: tuple[U64, U64],
    kind: int,
    lost: Cells | None,
) -> Packed:
    calls = _READ_CALLS if kind == _READ else _WRITE_CALLS
    call = np.minimum(transfers.call[rows], len(calls) - 1)
    fields = [
        offset_timestamp(1, moved[0][rows]),
        offset_timestamp(2, moved[1][rows]),
        number(3, calls[call]),
    ]
    layers = _Layers()
    if len(transfers.figures) and any(transfers.figures.strides):
        _measure(layers, np.ascontiguousarray(transfers.figures[rows].T), kind)
    if lost is not None:
        layers.add(_LAYER_OF_LOSSES, lost, lost.size > 0)
    return _log(kind, fields + layers.messages())


class _Layers:
    # Submessages of an operation; one of which nothing was measured is not there at all.
    def __init__(self) -> None:
        self._cells: dict[int, list[Cells]] = {}
        self._present: dict[int, NDArray[np.bool_]] = {}

    def add(self, layer: int, cells: Cells, present: NDArray[np.bool_]) -> None:
        self._cells.setdefault(layer, []).append(cells)
        known = self._present.get(layer)
        self._present[layer] = present if known is None else known | present

    def messages(self) -> list[Cells]:
        return [message(layer, cells, self._present[layer]) for layer, cells in self._cells.items()]


def _measure(layers: _Layers, figures: NDArray[np.unsignedinteger], kind: int) -> None:
    names = READ_FIGURES if kind == _READ else WRITE_FIGURES
    places = _READ_FIELDS if kind == _READ else _WRITE_FIELDS
    unmeasured = np.iinfo(figures.dtype).max
    for name, (layer, field) in places.items():
        values = figures[names.index(name)]
        measured = values != unmeasured
        if name in _NARROW:
            values = np.minimum(values, _NARROW[name])
        if name == "write_lost_packet_count":
            # Those without a reason: how many, but not where.
            lost = measured & (values > 0)
            cells = message(field, [number(_LOSS_COUNT, values, lost)], lost)
        else:
            cells = number(field, values, measured)
        layers.add(layer, cells, measured)


def _lost(names: Sequence[str], losses: Losses, rows: NDArray[np.intp]) -> Cells | None:
    # The field of the losses of some writes, whose rows ascend.
    low, high = np.searchsorted(losses.transfer, (rows[0], rows[-1] + 1)).tolist()
    if low == high:
        return None
    pieces: dict[int, bytes] = {}
    # Loss by loss: a host drops few packets.
    for row, reason, packets in zip(
        np.searchsorted(rows, losses.transfer[low:high]).tolist(),
        losses.reason[low:high].tolist(),
        np.minimum(losses.packets[low:high], _I32).tolist(),
        strict=True,
    ):
        count = bytes((_LOSS_COUNT << 3,)) + varint(packets)
        loss = nested(_LOSSES, text(_LOSS_LOCATION, names[reason]) + count)
        pieces[row] = pieces.get(row, b"") + loss
    return written(len(rows), pieces)


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
