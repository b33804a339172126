"""`EventBatch`: what one node saw in about one second; see ``schemas/pb/events.proto``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf.message import DecodeError as ProtobufDecodeError

from schemas.columns import (
    U8,
    U32,
    U64,
    Table,
    column,
    decode_table,
    encode_table,
)
from schemas.errors import DecodeError
from schemas.ledger import Entry
from schemas.pb import events_columns_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CALL_NONE",
    "FIGURE_MAX",
    "FIGURE_WIDTH",
    "GRPC_UNKNOWN",
    "LAYOUT_VERSION",
    "READ_FIGURES",
    "WRITE_FIGURES",
    "BatchHeader",
    "Closes",
    "ConnectionFlag",
    "Connections",
    "Direction",
    "Drops",
    "EventBatch",
    "NetInterface",
    "OpenKind",
    "Opens",
    "Parties",
    "RequestFlag",
    "RequestOutcome",
    "Requests",
    "Role",
    "Transfers",
    "decode_batch",
    "encode_batch",
]

LAYOUT_VERSION = 1

CALL_NONE = 14
"""In ``Transfers.call``: no call, but what came to a connection after its last one. Such a row adds
its figures; it counts no call, has no bytes and no duration."""

READ_FIGURES = (
    "read_packet_count",
    "read_packet_size",
    "read_l4_duration",
    "read_l3_duration",
    "read_l3_recv_duration",
    "read_l3_local_duration",
    "read_packet_to_queue_duration",
    "read_packet_from_queue_duration",
    "read_netfilter_count",
    "read_netfilter_duration",
    "read_device_to_ip_duration",
    "read_ip_to_queue_duration",
    "read_call_duration",
    "read_unattributed_duration",
)
"""Which figure of the catalogue each place of ``Transfers.figures`` holds for a read."""

WRITE_FIGURES = (
    "write_packet_count",
    "write_packet_size",
    "write_retransmit_packet_count",
    "write_lost_packet_count",
    "write_l4_duration",
    "write_l3_duration",
    "write_l3_local_duration",
    "write_l3_output_duration",
    "write_netfilter_count",
    "write_netfilter_duration",
    "resolve_mac_count",
    "resolve_mac_duration",
    "write_l2_duration",
    "write_l2_enter_queue_count",
    "write_l2_ready_send_duration",
    "write_l2_netdevice_send_duration",
    "write_unattributed_duration",
)
"""The same for a write."""

FIGURE_WIDTH = 17
"""Places in a row of ``Transfers.figures``; those beyond `READ_FIGURES` say nothing of a read."""


_PORTS = 1 << 16

FIGURE_MAX = 0xFFFF_FFFE
"""What a row can say of a figure; of sums, the rest comes with the connection's next row."""


GRPC_UNKNOWN = 0xFFFF_FFFE
"""In ``Requests.grpc_status``: a gRPC call whose status is not known."""


class Role(IntEnum):
    """Which end of a connection the local socket is."""

    UNKNOWN = 0
    CLIENT = 1
    SERVER = 2


class OpenKind(IntEnum):
    """How a connection came to be."""

    CONNECT = 1
    ACCEPT = 2


class Direction(IntEnum):
    """Which way a transfer went, seen from the local application."""

    READ = 1
    WRITE = 2


class ConnectionFlag(IntFlag):
    """Bits of ``Connections.flags``."""

    PREEXISTING = 1
    TLS = 2
    READABLE = 4
    INSIDE = 8
    """Both ends are in one network namespace: between pods that means inside of one."""


class RequestOutcome(IntEnum):
    """How a call ended."""

    ANSWERED = 0
    """The whole response was seen, or passed where it could not be seen."""
    ABORTED = 1
    """A final response began and did not end: a reset, or the end of the connection."""
    UNANSWERED = 2
    """No final response came before the end of the connection or a reset."""


class RequestFlag(IntFlag):
    """Bits of ``Requests.flags``."""

    TLS = 1


@dataclass(slots=True)
class Connections(Table):
    """One row per connection that the batch's events point at. Addresses are (n, 16) uint8.

    ``server_name``, ``tls_version``, ``opened_ns``, ``remote_container`` and ``unreadable`` may be
    0 or the greatest value of their type: not known.
    """

    id: U64 = column("<u8")
    family: U8 = column("u1")
    local_address: U8 = column("u1", 16)
    local_port: U32 = column("<u4")
    remote_address: U8 = column("u1", 16)
    remote_port: U32 = column("<u4")
    translated_address: U8 = column("u1", 16)
    translated_port: U32 = column("<u4")
    role: U8 = column("u1")
    netns: U32 = column("<u4")
    cgroup_id: U64 = column("<u8")
    pid: U32 = column("<u4")
    container: U32 = column("<u4", names=True)
    process: U32 = column("<u4", names=True)
    flags: U8 = column("u1")
    server_name: U32 = column("<u4", measured=True, names=True)
    tls_version: U32 = column("<u4", measured=True)
    opened_ns: U64 = column("<u8", measured=True)
    remote_container: U32 = column("<u4", measured=True, names=True)
    unreadable: U8 = column("u1", measured=True)


@dataclass(slots=True)
class Opens(Table):
    """Connections decided or accepted. ``duration_ns`` may be `UNMEASURED_U64`."""

    connection: U32 = column("<u4")
    kind: U8 = column("u1")
    end_ns: U64 = column("<u8")
    duration_ns: U64 = column("<u8", measured=True)
    error: U32 = column("<u4")


@dataclass(slots=True)
class Closes(Table):
    """Connections closed by this end. ``duration_ns`` may be `UNMEASURED_U64`."""

    connection: U32 = column("<u4")
    end_ns: U64 = column("<u8")
    duration_ns: U64 = column("<u8", measured=True)


@dataclass(slots=True)
class Transfers(Table):
    """Calls that moved payload bytes. ``duration_ns`` may be `UNMEASURED_U64`.

    ``figures``, shape (n, `FIGURE_WIDTH`), holds what the row adds to each of `READ_FIGURES` or
    `WRITE_FIGURES`, or `UNMEASURED_U32`.
    """

    connection: U32 = column("<u4")
    direction: U8 = column("u1")
    call: U8 = column("u1")
    end_ns: U64 = column("<u8")
    duration_ns: U64 = column("<u8", measured=True)
    size: U32 = column("<u4")
    figures: U32 = column("<u4", FIGURE_WIDTH, measured=True)


@dataclass(slots=True)
class Requests(Table):
    """HTTP calls; strings are indices into the batch's names.

    Sizes and times may be `UNMEASURED_U32` or `UNMEASURED_U64`; ``grpc_status`` is the former for a
    call that is no gRPC. ``endpoint`` is there in ``podwire.access-log.v1`` only.
    """

    connection: U32 = column("<u4")
    version: U8 = column("u1")
    outcome: U8 = column("u1")
    flags: U8 = column("u1")
    method: U32 = column("<u4", names=True)
    path: U32 = column("<u4", names=True)
    host: U32 = column("<u4", names=True)
    status: U32 = column("<u4")
    grpc_status: U32 = column("<u4", measured=True)
    start_ns: U64 = column("<u8")
    first_byte_ns: U64 = column("<u8", measured=True)
    end_ns: U64 = column("<u8")
    request_header_size: U32 = column("<u4", measured=True)
    request_body_size: U64 = column("<u8", measured=True)
    response_header_size: U32 = column("<u4", measured=True)
    response_body_size: U64 = column("<u8", measured=True)
    trace_provider: U8 = column("u1")
    trace_id: U32 = column("<u4", names=True)
    segment_id: U32 = column("<u4", names=True)
    span_id: U32 = column("<u4", names=True)
    endpoint: U32 = column("<u4", measured=True, names=True)


@dataclass(slots=True)
class Parties(Table):
    """Who is behind each row of ``connections``; strings are indices into the batch's names.

    ``local_container`` may be `UNMEASURED_U32`: workers of before it do not write it.
    """

    local_service: U32 = column("<u4", names=True)
    local_instance: U32 = column("<u4", names=True)
    remote_service: U32 = column("<u4", names=True)
    remote_instance: U32 = column("<u4", names=True)
    internal: U8 = column("u1")
    local_container: U32 = column("<u4", measured=True, names=True)


@dataclass(slots=True)
class Drops(Table):
    """Packets that the host dropped on their way out, by the kernel's reason.

    They add to ``write_lost_packet_count`` of `Transfers.figures`, which has those without one.
    ``reason`` indexes the batch's ``names``.
    """

    connection: U32 = column("<u4")
    end_ns: U64 = column("<u8")
    reason: U32 = column("<u4", names=True)
    packets: U32 = column("<u4")


@dataclass(frozen=True, slots=True)
class NetInterface:
    """A network interface of a node, as the kernel numbers it."""

    index: int
    name: str
    mtu: int


@dataclass(slots=True)
class BatchHeader:
    """Who sent the batch, what it covers, and what was lost on the way."""

    cluster: str = ""
    node: str = ""
    boot_id: str = ""
    run_id: str = ""
    sequence: int = 0
    first_event_ns: int = 0
    last_event_ns: int = 0
    watermark_ns: int = 0
    anchor_monotonic_ns: int = 0
    anchor_unix_ns: int = 0
    final: bool = False
    part: int = 0
    ledger: list[Entry] = field(default_factory=list)
    interfaces: list[NetInterface] = field(default_factory=list)


@dataclass(slots=True)
class EventBatch:
    """One message of ``podwire.events.v1``.

    ``names`` is the dictionary that ``connections.container``, ``.process``, ``.server_name`` and
    ``.remote_container``, the strings of ``requests`` and ``drops.reason`` index; index 0 is the
    empty string. ``parties`` has a row for each of ``connections``, or none.
    """

    header: BatchHeader = field(default_factory=BatchHeader)
    connections: Connections = field(default_factory=Connections)
    names: Sequence[str] = ("",)
    opens: Opens = field(default_factory=Opens)
    closes: Closes = field(default_factory=Closes)
    transfers: Transfers = field(default_factory=Transfers)
    requests: Requests = field(default_factory=Requests)
    drops: Drops = field(default_factory=Drops)
    parties: Parties = field(default_factory=Parties)

    @property
    def events(self) -> int:
        """Number of events of all kinds."""
        tables = (self.opens, self.closes, self.transfers, self.requests, self.drops)
        return sum(table.rows for table in tables)


_FIELDS = wire.EventBatch.DESCRIPTOR.fields_by_name
_HEADER_FIELDS = (
    "cluster",
    "node",
    "boot_id",
    "run_id",
    "sequence",
    "first_event_ns",
    "last_event_ns",
    "watermark_ns",
    "anchor_monotonic_ns",
    "anchor_unix_ns",
    "final",
    "part",
)
_ENTRY_FIELDS = ("stage", "kind", "reason", "in_count", "out_count", "dropped_count")


def encode_batch(batch: EventBatch) -> bytes:
    """Return the message of ``podwire.events.v1``.

    Raises:
        ValueError: If the columns of a table differ in length.
    """
    message = wire.EventBatch()
    header = message.header
    header.layout_version = LAYOUT_VERSION
    for name in _HEADER_FIELDS:
        setattr(header, name, getattr(batch.header, name))
    for entry in batch.header.ledger:
        header.ledger.add(**{name: getattr(entry, name) for name in _ENTRY_FIELDS})
    for each in batch.header.interfaces:
        header.interfaces.add(index=each.index, name=each.name, mtu=each.mtu)
    message.connections.names.extend(batch.names)
    # What occurs twice on the wire is one message to its reader: the names, then the columns.
    parts: list[bytes | memoryview] = [message.SerializeToString()]
    for name in ("connections", "opens", "closes", "transfers", "requests", "drops", "parties"):
        parts += encode_table(getattr(batch, name), _FIELDS[name])
    return b"".join(parts)


def decode_batch(data: bytes) -> EventBatch:
    """Read a message of ``podwire.events.v1`` and check that every index points at something.

    Raises:
        DecodeError: On any bytes that are not a batch of this layout.
    """
    try:
        message = wire.EventBatch.FromString(data)
    except (ProtobufDecodeError, TypeError) as error:
        raise DecodeError(f"no EventBatch: {error}") from error
    header = message.header
    if header.layout_version != LAYOUT_VERSION:
        raise DecodeError(f"layout version {header.layout_version}, expected {LAYOUT_VERSION}")
    if not header.node:
        raise DecodeError("batch without a node name")
    connections = decode_table(Connections, message.connections)
    names = list(message.connections.names) or [""]
    if connections.rows and not np.isin(connections.family, (4, 6)).all():
        raise DecodeError("address family is neither 4 nor 6")
    if connections.rows and int(connections.role.max()) > Role.SERVER:
        raise DecodeError(f"unknown role {int(connections.role.max())}")
    for ports in (connections.local_port, connections.remote_port, connections.translated_port):
        _check_index("port", ports, _PORTS)
    opens = decode_table(Opens, message.opens)
    closes = decode_table(Closes, message.closes)
    transfers = decode_table(Transfers, message.transfers)
    requests = decode_table(Requests, message.requests)
    drops = decode_table(Drops, message.drops)
    parties = decode_table(Parties, message.parties)
    for named in (connections, requests, drops, parties):
        for index in named.used_names():
            _check_index("names", index, len(names))
    for table in (opens, closes, transfers, requests, drops):
        _check_index("connection", table.connection, connections.rows)
    if opens.rows and not ((opens.kind == 1) | (opens.kind == 2)).all():
        raise DecodeError("open kind is neither 1 nor 2")
    if transfers.rows and not ((transfers.direction == 1) | (transfers.direction == 2)).all():
        raise DecodeError("direction is neither 1 nor 2")
    if requests.rows and int(requests.outcome.max()) > RequestOutcome.UNANSWERED:
        raise DecodeError(f"unknown outcome {int(requests.outcome.max())}")
    if parties.rows not in (0, connections.rows):
        raise DecodeError(f"{parties.rows} parties of {connections.rows} connections")
    return EventBatch(
        header=BatchHeader(
            **{name: getattr(header, name) for name in _HEADER_FIELDS},
            ledger=[
                Entry(**{name: getattr(entry, name) for name in _ENTRY_FIELDS})
                for entry in header.ledger
            ],
            interfaces=[NetInterface(it.index, it.name, it.mtu) for it in header.interfaces],
        ),
        connections=connections,
        names=names,
        opens=opens,
        closes=closes,
        transfers=transfers,
        requests=requests,
        drops=drops,
        parties=parties,
    )


def _check_index(what: str, index: U32, size: int) -> None:
    if len(index) and int(index.max()) >= size:
        raise DecodeError(f"{what} index {int(index.max())} of {size}")
