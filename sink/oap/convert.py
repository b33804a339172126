"""From the batches of one node and period to the messages of its streams.

Pure. A stream is what an OAP can read on its own: the node in the first message, each connection
before its logs. The bytes are those of ``EBPFAccessLogMessage``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.columns import UNMEASURED_U32
from schemas.events import ConnectionFlag, Drops, RequestFlag
from schemas.pb import skywalking_accesslog_pb2 as wire
from schemas.pb.skywalking_common_pb2 import Instant
from sink.oap.calls import protocol_logs
from sink.oap.choices import Choices, is_address, select, server_side
from sink.oap.folding import folded
from sink.oap.kernel import KernelLogs, Times, kernel_logs
from sink.oap.period import merged
from sink.oap.wire import nested, varint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from schemas.columns import U8
    from schemas.events import BatchHeader, EventBatch, NetInterface

__all__ = ["UNKNOWN", "Converted", "Limits", "Stream", "convert"]

UNKNOWN: Final = "Unknown"
"""Service and pod of an end that nobody knows, in an OAP."""

_SECOND_NS: Final = 1_000_000_000
_I32_MAX: Final = (1 << 31) - 1
_NODE, _CONNECTION = 1, 2  # of EBPFAccessLogMessage
_LOCAL, _REMOTE = 1, 2  # of AccessLogConnection
_KUBERNETES, _IP = 1, 2  # of ConnectionAddress
_PORT, _IP_PORT = 5, 2  # of KubernetesProcessAddress and IPAddress


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes. One log may exceed them."""

    message_bytes: int = 1 << 20
    stream_bytes: int = 16 << 20
    stream_logs: int = 100_000


@dataclass(slots=True)
class Stream:
    """One call of ``collect``: what is sent whole, and whole again after a failure.

    Attributes:
        node: Whose logs these are.
        messages: Serialised, in order.
        logs: How many kernel and protocol logs they hold.
        size: Bytes of the messages.
    """

    node: str
    messages: list[bytes] = field(default_factory=list)
    logs: int = 0
    size: int = 0


@dataclass(slots=True)
class Converted:
    """What became of some batches: events are logs, or are left out for a reason."""

    streams: list[Stream]
    events: int
    dropped: dict[str, int]


def convert(
    batches: Sequence[EventBatch],
    choices: Choices,
    limits: Limits,
    seconds: float,
    interfaces: Sequence[NetInterface] = (),
) -> Converted:
    """Return the streams of a period.

    Args:
        batches: Of one node and boot, each with `parties` if it has events; at least one.
        choices: What is told.
        limits: How large messages and streams may be.
        seconds: Length of the period, for the limit of logs per second.
        interfaces: Of the node, as far as they were told.
    """
    events = sum(batch.events for batch in batches)
    batch = merged([batch for batch in batches if batch.events] or batches[:1])
    selection = select(batch, choices, seconds)
    batch, dropped = selection.batch, selection.dropped
    calls_only = folded(batch.transfers, batch.drops)
    if calls_only.left_out:
        dropped["no_call"] = calls_only.left_out
    if calls_only.added:
        dropped["added_to_call"] = calls_only.added
    batch = replace(batch, transfers=calls_only.transfers, drops=Drops())
    if not batch.events:
        return Converted([], events, dropped)
    base_ns = _base_ns(batch)
    times = Times(base_ns, choices.end_minute)
    writer = _Writer(
        _node_field(batch.header, base_ns, choices, interfaces), batch.header.node, limits
    )
    logs = kernel_logs(batch, calls_only.losses, times)
    calls = protocol_logs(batch, times, by_endpoint=choices.paths == "endpoint")
    _write(writer, batch, choices, logs, calls, limits.message_bytes)
    return Converted(writer.streams, events, dropped)


def _base_ns(batch: EventBatch) -> int:
    # An OAP adds whole seconds only, so the boot time is given as a whole second. Nothing may
    # have begun before it.
    header = batch.header
    earliest = header.anchor_unix_ns - header.anchor_monotonic_ns
    for table in (batch.opens, batch.closes, batch.transfers):
        if table.rows:
            length = table.duration_ns if len(table.duration_ns) else np.zeros(1, np.uint64)
            length = np.where(length == np.iinfo(np.uint64).max, np.uint64(0), length)
            begun = table.end_ns - np.minimum(length, table.end_ns)
            earliest = min(earliest, int(begun.min())) if earliest > 0 else int(begun.min())
    requests = batch.requests
    if requests.rows:
        begun = np.where(requests.start_ns > 0, requests.start_ns, requests.end_ns)
        earliest = min(earliest, int(begun.min())) if earliest > 0 else int(begun.min())
    return max(earliest, 0) // _SECOND_NS * _SECOND_NS


def _node_field(
    header: BatchHeader, base_ns: int, choices: Choices, interfaces: Sequence[NetInterface]
) -> bytes:
    node = wire.EBPFAccessLogNodeInfo(
        name=header.node,
        netInterfaces=[
            wire.EBPFAccessLogNodeNetInterface(
                index=min(each.index, _I32_MAX), mtu=min(each.mtu, _I32_MAX), name=each.name
            )
            for each in interfaces
        ],
        bootTime=Instant(seconds=base_ns // _SECOND_NS),
        clusterName=header.cluster,
        policy=wire.EBPFAccessLogPolicy(excludeNamespaces=choices.exclude_namespaces),
    ).SerializeToString()
    return nested(_NODE, node)


class _Writer:
    # Fills streams message by message.
    def __init__(self, node_field: bytes, node: str, limits: Limits) -> None:
        self.streams: list[Stream] = []
        self._node_field = node_field
        self._node = node
        self._limits = limits
        self._told = b""

    def add(self, connection: bytes, body: bytes, logs: int) -> None:
        """Add logs of a connection."""
        limits = self._limits
        stream = self.streams[-1] if self.streams else None
        if (
            stream is None
            or stream.size + len(connection) + len(body) > limits.stream_bytes
            or stream.logs + logs > limits.stream_logs
        ):
            stream = Stream(self._node)
            self.streams.append(stream)
            message = b"".join((self._node_field, connection, body))
        elif connection is not self._told:
            message = connection + body
        else:
            message = body
        self._told = connection
        stream.messages.append(message)
        stream.logs += logs
        stream.size += len(message)


def _write(
    writer: _Writer,
    batch: EventBatch,
    choices: Choices,
    logs: KernelLogs,
    calls: list[bytes],
    limit: int,
) -> None:
    used = np.zeros(batch.connections.rows, np.bool_)
    used[logs.key // logs.step] = True
    used[batch.requests.connection] = True
    rows = np.flatnonzero(used)
    first_call = np.searchsorted(batch.requests.connection[logs.calls], rows).tolist()
    last_call = np.searchsorted(batch.requests.connection[logs.calls], rows, "right").tolist()
    plain = np.searchsorted(logs.key, rows * logs.step).tolist()
    # Where the logs of the connection itself end, and those of each call after it.
    plain_end = np.searchsorted(logs.key, rows * logs.step + 1).tolist()
    call_key = batch.requests.connection[logs.calls].astype(np.int64) * logs.step
    call_key += np.arange(1, len(logs.calls) + 1)
    from_ = np.searchsorted(logs.key, call_key).tolist()
    until = np.searchsorted(logs.key, call_key + 1).tolist()
    order = logs.calls.tolist()
    fields = _connection_fields(batch, choices, rows.tolist())
    data, ends = logs.data, logs.ends.tolist()
    for connection, low, high, first, last in zip(
        fields, plain, plain_end, first_call, last_call, strict=True
    ):
        for start, end in _cut(logs, low, high, limit):
            writer.add(connection, data[ends[start] : ends[end]], end - start)
        for call in range(first, last):
            start, end = from_[call], until[call]
            if ends[end] - ends[start] > limit:
                *others, (start, end) = _cut(logs, start, end, limit)
                for one, other in others:
                    writer.add(connection, data[ends[one] : ends[other]], other - one)
            body = data[ends[start] : ends[end]] + calls[order[call]]
            writer.add(connection, body, end - start + 1)


def _cut(logs: KernelLogs, low: int, high: int, limit: int) -> Iterator[tuple[int, int]]:
    # Runs of logs that fit into one message.
    while low < high:
        end = int(np.searchsorted(logs.ends, logs.ends[low] + limit, "right")) - 1
        end = min(max(end, low + 1), high)
        yield low, end
        low = end


def _connection_fields(batch: EventBatch, choices: Choices, rows: list[int]) -> list[bytes]:
    connections, parties, names = batch.connections, batch.parties, batch.names
    requests = batch.requests
    protocol = np.zeros(connections.rows, np.uint8)
    protocol[requests.connection] = np.where(requests.version < 20, 1, 2)
    tls = (connections.flags & ConnectionFlag.TLS) != 0
    tls[requests.connection[(requests.flags & RequestFlag.TLS) != 0]] = True
    translated = np.asarray(connections.translated_address.any(axis=1))
    remote_port = np.where(translated, connections.translated_port, connections.remote_port)
    tail = _tails(server_side(connections), tls, protocol)
    ends = _Ends(names, choices)
    named = parties.local_container
    containers = np.where(named == UNMEASURED_U32, np.uint32(0), named)
    columns = zip(
        parties.local_service[rows].tolist(),
        parties.local_instance[rows].tolist(),
        containers[rows].tolist(),
        parties.remote_service[rows].tolist(),
        parties.remote_instance[rows].tolist(),
        connections.process[rows].tolist(),
        connections.local_port[rows].tolist(),
        remote_port[rows].tolist(),
        tail[rows].tolist(),
        strict=True,
    )
    fields = []
    for service, pod, container, other, other_pod, process, port, other_port, last in columns:
        local = ends.address(service, pod, container, process, port)
        if service == other and choices.same_service == "unknown":
            remote = ends.unknown(other_port)
        else:
            remote = ends.address(other, other_pod, 0, 0, other_port)
        body = b"".join((nested(_LOCAL, local), nested(_REMOTE, remote), _TAILS[last]))
        fields.append(nested(_CONNECTION, body))
    return fields


def _tails(server: NDArray[np.bool_], tls: NDArray[np.bool_], protocol: U8) -> NDArray[np.intp]:
    return server.astype(np.intp) * 6 + tls.astype(np.intp) * 3 + protocol


# Role, TLS mode and protocol of a connection, by the number that `_tails` gives them.
_TAILS: Final = tuple(
    wire.AccessLogConnection(
        role=number // 6,  # type: ignore[arg-type]
        tlsMode=number // 3 % 2,  # type: ignore[arg-type]
        protocol=number % 3,  # type: ignore[arg-type]
    ).SerializeToString()
    for number in range(12)
)


class _Ends:
    # Addresses; all but the port of each is made once.
    def __init__(self, names: Sequence[str], choices: Choices) -> None:
        self._names = names
        self._by_name = choices.unresolved == "name"
        self._known: dict[tuple[int, int, int, int], tuple[int, bytes, int]] = {}

    def address(self, service: int, pod: int, container: int, process: int, port: int) -> bytes:
        """Return a ``ConnectionAddress``."""
        key = (service, pod, container, process)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._made(*key)
        return _with_port(*known, port)

    def unknown(self, port: int) -> bytes:
        """Return the address of an end that counts for nobody."""
        body = wire.KubernetesProcessAddress(serviceName=UNKNOWN, podName=UNKNOWN)
        return _with_port(_KUBERNETES, body.SerializeToString(), _PORT, port)

    def _made(self, service: int, pod: int, container: int, process: int) -> tuple[int, bytes, int]:
        names = self._names
        name = names[service]
        if not self._by_name and is_address(name):
            return _IP, wire.IPAddress(host=name).SerializeToString(), _IP_PORT
        found = wire.KubernetesProcessAddress(
            serviceName=name or UNKNOWN,
            podName=names[pod],
            containerName=names[container],
            processName=names[process],
        )
        return _KUBERNETES, found.SerializeToString(), _PORT


def _with_port(kind: int, body: bytes, field: int, port: int) -> bytes:
    return nested(kind, b"".join((body, bytes((field << 3,)), varint(port))) if port else body)
