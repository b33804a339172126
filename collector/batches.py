"""From drained records to self-contained `EventBatch` messages. Pure: arrays in, batches out.

Invariant: every record given to `BatchBuilder.build` leaves exactly once, as a row of a batch or as
a dropped count with its reason, and the ledger of the batches says so. Transfers whose connection
is not known yet wait for one more build, because an announcement may be committed to its ring a
moment after a transfer on another CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from collector.abi import DROP_RECORD, Call, ConnectionEvent
from collector.accounts import drop
from collector.connections import ROW
from collector.masks import COUNTERS, FLAGS, unmeasured
from collector.parts import Events
from collector.requests import Strings, request_columns
from schemas.columns import UNMEASURED_U32, UNMEASURED_U64, Table
from schemas.events import (
    FIGURE_WIDTH,
    BatchHeader,
    Closes,
    ConnectionFlag,
    Connections,
    Direction,
    Drops,
    EventBatch,
    OpenKind,
    Opens,
    Requests,
    Transfers,
)
from schemas.ledger import Ledger
from schemas.topics import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from collector.connections import ConnectionTable
    from collector.conversations import Found
    from collector.names import NameTable
    from schemas.clock import ClockAnchor
    from schemas.columns import U32
    from schemas.events import NetInterface

__all__ = [
    "BatchBuilder",
    "Limits",
    "Run",
    "finished",
]

_LAST_NS: Final = 2**63 - 1

T = TypeVar("T", bound=Table)


@dataclass(frozen=True, slots=True)
class Run:
    """What stays the same in the headers of one collector process."""

    node: str
    boot_id: str
    run_id: str
    cluster: str = ""
    interfaces: tuple[NetInterface, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """How large one batch may become."""

    events: int = 65_536
    message_bytes: int = MAX_MESSAGE_BYTES - 256 * 1024


@dataclass(slots=True)
class BatchBuilder:
    """Builds the batches of one run; ``sequence`` stays 0, whoever sends them numbers them.

    ``measured`` are the figures that the hooks of this node can give, whatever a record says, and
    ``measured_ipv6`` those over IPv6, if these are others;
    ``reasons`` the kernel's names of its reasons to drop a packet.
    """

    run: Run
    table: ConnectionTable
    names: NameTable
    limits: Limits = field(default_factory=Limits)
    measured: frozenset[str] = COUNTERS
    measured_ipv6: frozenset[str] | None = None
    reasons: Mapping[int, str] = field(default_factory=dict)
    _waiting: NDArray[Any] | None = None
    _waiting_drops: NDArray[Any] | None = None
    _watermark_ns: int = 0
    _strings: Strings = field(default_factory=Strings)
    _unmeasured: U32 = field(init=False)
    _by_family: bool = field(init=False)

    def __post_init__(self) -> None:
        """Prepare what every record is masked with."""
        sixth = self.measured if self.measured_ipv6 is None else self.measured_ipv6
        self._by_family = sixth != self.measured
        self._unmeasured = np.concatenate([unmeasured(self.measured), unmeasured(sixth)])

    def build(
        self,
        connections: NDArray[Any],
        transfers: NDArray[Any],
        anchor: ClockAnchor,
        watermark_ns: int,
        ledger: Ledger,
        final: bool = False,
        calls: Sequence[Found] = (),
        drops: NDArray[Any] | None = None,
    ) -> list[EventBatch]:
        """Turn what was drained since the last build into batches, at least one.

        Args:
            connections: Records that `ConnectionTable.apply` has already taken, shape (n,).
            transfers: Shape (m,), fields of ``struct podwire_transfer_record``.
            anchor: Converts the kernel's times.
            watermark_ns: Unix time before which no further event can come; never moves back.
            ledger: Counts from elsewhere to report; emptied into the last batch.
            final: Whether the run ends: then nothing waits any longer.
            calls: HTTP calls that ended.
            drops: Shape (l,), fields of ``struct podwire_drop_record``; None is none.
        """
        if drops is None:
            drops = np.empty(0, DROP_RECORD)
        events, held_since = self._events(connections, transfers, drops, anchor, ledger, final)
        self._strings = Strings()
        events.request_slots, events.requests = self._requests(calls, anchor, ledger)
        if held_since:
            watermark_ns = min(watermark_ns, held_since - 1)
        watermark_ns = max(watermark_ns, self._watermark_ns)
        batches = self._assemble(events)
        for batch in batches:
            header = batch.header
            header.watermark_ns = self._watermark_ns
            header.anchor_monotonic_ns = anchor.monotonic_ns
            header.anchor_unix_ns = anchor.unix_ns
            own = Ledger()
            for kind, rows in (
                ("open", batch.opens.rows),
                ("close", batch.closes.rows),
                ("transfer", batch.transfers.rows),
                ("request", batch.requests.rows),
                ("drop", batch.drops.rows),
            ):
                own.passed("collector", kind, entered=rows, left=rows)  # type: ignore[arg-type]
            if batch is batches[-1]:
                own.add(ledger.drain())
            header.ledger = own.drain()
        batches[-1].header.watermark_ns = self._watermark_ns = watermark_ns
        return batches

    def _events(
        self,
        connections: NDArray[Any],
        transfers: NDArray[Any],
        drops: NDArray[Any],
        anchor: ClockAnchor,
        ledger: Ledger,
        final: bool,
    ) -> tuple[Events, int]:
        event = connections["event"]
        slots = self.table.find(connections["connection_id"])
        known = slots >= 0
        announced = event == ConnectionEvent.ANNOUNCED
        opened = (event == ConnectionEvent.CONNECTED) | (event == ConnectionEvent.ACCEPTED)
        closed = event == ConnectionEvent.CLOSED
        for kind, chosen in (("connection", announced), ("open", opened), ("close", closed)):
            drop(ledger, kind, "unknown_connection", int(np.count_nonzero(chosen & ~known)))
        applied = int(np.count_nonzero(announced & known))
        ledger.passed("collector", "connection", entered=applied, left=applied)
        malformed = int(np.count_nonzero(~(announced | opened | closed)))
        drop(ledger, "connection", "malformed", malformed)

        opened &= known
        closed &= known
        excluded = self.table.rows["excluded"][slots] != 0  # slot -1 is not looked at
        for kind, chosen in (("open", opened), ("close", closed)):
            drop(ledger, kind, "excluded", int(np.count_nonzero(chosen & excluded)))
            chosen &= ~excluded
        opening, closing = connections[opened], connections[closed]
        transfers, transfer_slots, held_since = self._known_transfers(
            transfers, anchor, ledger, final
        )
        drops, drop_slots, drops_held_since = self._known_drops(drops, anchor, ledger, final)
        if drops_held_since:
            held_since = min(held_since or drops_held_since, drops_held_since)
        return Events(
            open_slots=slots[opened],
            opens=Opens(
                connection=np.zeros(len(opening), np.uint32),
                kind=np.where(
                    opening["event"] == ConnectionEvent.CONNECTED, OpenKind.CONNECT, OpenKind.ACCEPT
                ).astype(np.uint8),
                end_ns=anchor.to_unix_ns(opening["end_ns"]),
                duration_ns=opening["duration_ns"],
                error=opening["error"],
            ),
            close_slots=slots[closed],
            closes=Closes(
                connection=np.zeros(len(closing), np.uint32),
                end_ns=anchor.to_unix_ns(closing["end_ns"]),
                duration_ns=closing["duration_ns"],
            ),
            transfer_slots=transfer_slots,
            transfers=Transfers(
                connection=np.zeros(len(transfers), np.uint32),
                direction=transfers["direction"],
                call=transfers["call"],
                end_ns=anchor.to_unix_ns(transfers["end_ns"]),
                duration_ns=transfers["duration_ns"],
                size=transfers["size"],
                figures=self._figures(transfers, transfer_slots),
            ),
            drop_slots=drop_slots,
            drops=Drops(
                connection=np.zeros(len(drops), np.uint32),
                end_ns=anchor.to_unix_ns(drops["end_ns"]),
                reason=self._reasons(drops["reason"]),
                packets=drops["packets"],
            ),
            request_slots=np.empty(0, np.int64),
            requests=Requests(),
        ), held_since

    def _requests(
        self, calls: Sequence[Found], anchor: ClockAnchor, ledger: Ledger
    ) -> tuple[NDArray[np.int64], Requests]:
        ids, requests = request_columns(calls, anchor, self._strings)
        slots = self.table.find(ids)
        known = slots >= 0
        if known.all():
            return slots, requests
        drop(ledger, "request", "unknown_connection", int(np.count_nonzero(~known)))
        return slots[known], requests.take(known)

    def _reasons(self, numbers: NDArray[np.uint32]) -> U32:
        names = [
            self.names.number(self.reasons.get(number, str(number))) for number in numbers.tolist()
        ]
        return np.array(names, np.uint32)

    def _figures(self, transfers: NDArray[Any], slots: NDArray[np.int64]) -> U32:
        # All ones over a value make it the one that means unmeasured.
        flags = transfers["measured"].astype(np.uint8) & np.uint8(FLAGS - 1)
        masks = flags + (transfers["direction"] == Direction.WRITE) * np.uint8(FLAGS)
        if self._by_family:
            masks += (self.table.rows["family"][slots] == 6) * np.uint8(2 * FLAGS)
        nothing = (self._unmeasured == UNMEASURED_U32).all(axis=1)
        if nothing[masks].all():
            return np.empty((0, FIGURE_WIDTH), np.uint32)
        figures: U32 = self._unmeasured.take(masks, axis=0)
        np.bitwise_or(figures, transfers["figures"], out=figures)
        return figures

    def _known_transfers(
        self, transfers: NDArray[Any], anchor: ClockAnchor, ledger: Ledger, final: bool
    ) -> tuple[NDArray[Any], NDArray[np.int64], int]:
        late = self._waiting
        self._waiting = None
        if late is not None:
            transfers = np.concatenate([late, transfers])
        direction = transfers["direction"]
        valid = (direction == Direction.READ) | (direction == Direction.WRITE)
        no_call = transfers["call"] == Call.NONE
        if no_call.any():
            timed = transfers["duration_ns"] != UNMEASURED_U64
            valid &= ~(no_call & ((transfers["size"] != 0) | timed))
        before = 0 if late is None else len(late)
        kept, slots, waiting = self._known("transfer", transfers, valid, before, ledger, final)
        self._waiting = waiting if len(waiting) else None
        return kept, slots, _first_ns(waiting, anchor)

    def _known_drops(
        self, drops: NDArray[Any], anchor: ClockAnchor, ledger: Ledger, final: bool
    ) -> tuple[NDArray[Any], NDArray[np.int64], int]:
        late = self._waiting_drops
        if late is not None:
            drops = np.concatenate([late, drops])
        before = 0 if late is None else len(late)
        valid = (drops["packets"] != 0) & (drops["reason"] != 0)
        kept, slots, waiting = self._known("drop", drops, valid, before, ledger, final)
        self._waiting_drops = waiting if len(waiting) else None
        return kept, slots, _first_ns(waiting, anchor)

    def _known(
        self,
        kind: str,
        records: NDArray[Any],
        valid: NDArray[np.bool_],
        before: int,
        ledger: Ledger,
        final: bool,
    ) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]]:
        # The valid records of known connections with their slots, and those that wait for theirs:
        # the first `before` of them have done so.
        slots = self.table.find(records["connection_id"])
        known = slots >= 0
        excluded = known & valid & (self.table.rows["excluded"][slots] != 0)
        if excluded.any():
            drop(ledger, kind, "excluded", int(np.count_nonzero(excluded)))
        elif known.all() and valid.all():
            return records, slots, records[:0]
        drop(ledger, kind, "malformed", int(np.count_nonzero(~valid)))
        unknown = ~known & valid
        if final:
            before = len(records)
        drop(ledger, kind, "unknown_connection", int(np.count_nonzero(unknown[:before])))
        kept = known & valid & ~excluded
        return records[kept], slots[kept], records[before:][unknown[before:]]

    def _assemble(self, events: Events) -> list[EventBatch]:
        if events.count > self.limits.events:
            return self._split(events)
        used, index = self._used(events)
        batch = EventBatch(
            header=BatchHeader(
                cluster=self.run.cluster,
                node=self.run.node,
                boot_id=self.run.boot_id,
                run_id=self.run.run_id,
            ),
            opens=events.opens,
            closes=events.closes,
            transfers=events.transfers,
            drops=events.drops,
        )
        rows = self.table.rows[used]
        names, (container, process, server_name, mate, reason) = self.names.local(
            *(rows[name] for name in ("container", "process", "server_name", "mate")),
            events.drops.reason,
        )
        texts, batch.requests = self._strings.local(events.requests, len(names))
        batch.names = [*names, *texts]
        if events.count > 1 and events.size(len(used), batch.names) > self.limits.message_bytes:
            return self._split(events)
        batch.connections = _connection_table(rows, container, process)
        if rows["tls_version"].any():
            batch.connections.tls_version = rows["tls_version"].astype(np.uint32)
        if server_name.any():
            batch.connections.server_name = server_name
        if rows["unreadable"].any():
            is_read = rows["flags"] & ConnectionFlag.READABLE != 0
            batch.connections.unreadable = np.where(is_read, np.uint8(0), rows["unreadable"])
        if mate.any():
            batch.connections.remote_container = mate
        if rows["opened_ns"].any():
            batch.connections.opened_ns = rows["opened_ns"]
        translated = self.table.peers.columns(rows["peer"])
        batch.connections.translated_address, batch.connections.translated_port = translated
        events.opens.connection = index[events.open_slots]
        events.closes.connection = index[events.close_slots]
        events.transfers.connection = index[events.transfer_slots]
        batch.requests.connection = index[events.request_slots]
        events.drops.connection = index[events.drop_slots]
        events.drops.reason = reason
        times = [table.end_ns for _, table in events.parts]
        times = [item for item in times if len(item)]
        if times:
            # A header's times are signed; no clock goes that far, but a damaged record might.
            batch.header.first_event_ns = min(_LAST_NS, *(int(item.min()) for item in times))
            batch.header.last_event_ns = min(_LAST_NS, max(int(item.max()) for item in times))
        return [batch]

    def _split(self, events: Events) -> list[EventBatch]:
        first, second = events.halves()
        return self._assemble(first) + self._assemble(second)

    def _used(self, events: Events) -> tuple[NDArray[np.int64], U32]:
        # Marks instead of np.unique: linear in events and slots, where sorting is not.
        marked = np.zeros(self.table.capacity, bool)
        for slots, _ in events.parts:
            marked[slots] = True
        used = np.flatnonzero(marked)
        self.table.use(used)
        index = np.empty(self.table.capacity, np.uint32)
        index[used] = np.arange(len(used), dtype=np.uint32)
        return used, index


def finished(records: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which connection records are the last of their connection, shape (n,)."""
    event = records["event"]
    failed = (event == ConnectionEvent.CONNECTED) & (records["error"] != 0)
    result: NDArray[np.bool_] = (event == ConnectionEvent.CLOSED) | failed
    return result


def _first_ns(waiting: NDArray[Any], anchor: ClockAnchor) -> int:
    # Unix time of the earliest; 0 if there is none.
    if not len(waiting):
        return 0
    return int(anchor.to_unix_ns(waiting["end_ns"].min(keepdims=True))[0])


def _connection_table(rows: NDArray[Any], container: U32, process: U32) -> Connections:
    assert rows.dtype == ROW
    return Connections(
        id=rows["connection_id"],
        family=rows["family"],
        local_address=rows["local_address"],
        local_port=rows["local_port"].astype(np.uint32),
        remote_address=rows["remote_address"],
        remote_port=rows["remote_port"].astype(np.uint32),
        role=rows["role"],
        netns=rows["netns"],
        cgroup_id=rows["cgroup_id"],
        pid=rows["pid"],
        container=container,
        process=process,
        flags=rows["flags"],
    )
