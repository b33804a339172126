"""From an enriched batch of events to the rows of the access log. Pure.

Which calls are stored is decided by what a replay has too (the connection and the times of the
call), so that a batch that comes a second time makes the same rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.errors import DecodeError
from schemas.events import GRPC_UNKNOWN, RequestFlag, RequestOutcome, Role, decode_batch
from sink.access_table import ACCESS_BATCHES, HTTP_VERSIONS, OUTCOMES, PROVIDERS
from sink.batches import Insert
from sink.native import NativeBlock, Texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from schemas.events import EventBatch, Requests

__all__ = ["DAY_S", "Calls", "Sampling", "batches_insert", "read_calls"]

DAY_S: Final = 86_400
_DAY_NS: Final = np.uint64(DAY_S * 1_000_000_000)
_MINUTE_NS: Final = 60_000_000_000
_END_OF_TIME_NS: Final = 1 << 63
"""Of 64-bit nanoseconds in ClickHouse, which have a sign."""

_ERROR: Final = 500
_NOTHING: Final = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which calls are stored: all that failed or took long, and a share of the rest."""

    share: float = 1.0
    slow_ns: int = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of one batch, or of a part of one.

    Attributes:
        run: Collector run that sent the batch.
        sequence: Its number within the run.
        part: Its part: those with long names come in several messages.
        minute_s: Minute of its first call.
        days: Rows of each day (Unix day): their number, and a block of Native format. A day is a
            partition of the table, and what is in one partition is stored whole or not at all.
        sampled: How many calls are left out by sampling.
        internal: How many are left out because both ends are in one pod.
    """

    run: str
    sequence: int
    part: int
    cluster: str
    node: str
    minute_s: int
    count: int
    days: dict[int, tuple[int, bytes]]
    columns: tuple[str, ...] = ()
    sampled: int = 0
    internal: int = 0

    @property
    def stored(self) -> int:
        """How many become rows."""
        return sum(rows for rows, _ in self.days.values())

    @property
    def mark(self) -> int:
        """64 bits that name the batch in its rows."""
        return _mark(self.run, self.sequence, self.part)

    @property
    def place(self) -> tuple[int, int]:
        """Batches of a run, and their parts, are sent in this order."""
        return self.sequence, self.part


def read_calls(data: bytes, sampling: Sampling) -> Calls:
    """Read a message of ``podwire.access-log.v1``.

    Raises:
        DecodeError: If it is no batch of events, or one without the names of its ends.
    """
    batch = decode_batch(data)
    header, requests = batch.header, batch.requests
    if not header.run_id:
        raise DecodeError("a batch of no run")
    if not requests.rows:
        return Calls(
            header.run_id, header.sequence, header.part, header.cluster, header.node, 0, 0, {}
        )
    if not batch.parties.rows:
        raise DecodeError("calls without the names of their ends")
    if int(requests.end_ns.max()) >= _END_OF_TIME_NS:
        raise DecodeError(f"a call that ended at {int(requests.end_ns.max())} ns")
    external = batch.parties.internal[requests.connection] == 0
    duration = _since_start(requests, requests.end_ns)
    always = _failed(requests) | (duration >= sampling.slow_ns)
    kept = external & (always | _is_in_sample(batch, sampling.share))
    weight = np.where(always | (sampling.share <= 0), 1.0, 1 / (sampling.share or 1.0))
    day = requests.end_ns // _DAY_NS
    mark = _mark(header.run_id, header.sequence, header.part)
    texts = Texts(batch.names)
    days: dict[int, tuple[int, bytes]] = {}
    columns: tuple[str, ...] = ()
    for one in np.unique(day[kept]).tolist():
        rows = np.flatnonzero(kept & (day == one))
        block = _block(batch, requests.take(rows), duration[rows], weight[rows], mark, texts)
        days[one], columns = (len(rows), block.to_bytes()), block.column_names
    return Calls(
        run=header.run_id,
        sequence=header.sequence,
        part=header.part,
        cluster=header.cluster,
        node=header.node,
        minute_s=int(requests.end_ns.min()) // _MINUTE_NS * 60,
        count=requests.rows,
        days=days,
        columns=columns,
        sampled=int((external & ~kept).sum()),
        internal=int((~external).sum()),
    )


def _since_start(requests: Requests, stamps: NDArray[Any]) -> NDArray[np.uint64]:
    # Stamps of two CPUs or of two sides may be a little in the wrong order: that is no time.
    later = np.maximum(stamps, requests.start_ns)
    return np.asarray(later - requests.start_ns)


def _failed(requests: Requests) -> NDArray[np.bool_]:
    # As the figures have it: a gRPC call whose status is not known is no failure.
    grpc_error = (requests.grpc_status != 0) & (requests.grpc_status < GRPC_UNKNOWN)
    answered = requests.outcome == RequestOutcome.ANSWERED
    return np.asarray(~answered | (requests.status >= _ERROR) | grpc_error)


def _is_in_sample(batch: EventBatch, share: float) -> NDArray[np.bool_]:
    requests = batch.requests
    if share >= 1:
        return np.ones(requests.rows, bool)
    value = _mixed(batch.connections.id[requests.connection])
    value = _mixed(_mixed(value ^ requests.start_ns) ^ requests.end_ns)
    # The upper 53 bits as a number from 0 to below 1.
    return np.asarray((value >> np.uint64(11)) * 2.0**-53 < share)


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # The finaliser of SplitMix64: every bit of the result depends on every bit of the value.
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _mark(run: str, sequence: int, part: int) -> int:
    return _hash_of(f"{run}/{sequence}/{part}")


def _hash_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _block(
    batch: EventBatch,
    calls: Requests,
    duration: NDArray[np.uint64],
    weight: NDArray[np.float64],
    mark: int,
    texts: Texts,
) -> NativeBlock:
    header, names = batch.header, batch.names
    block = NativeBlock(calls.rows)
    connections = batch.connections.take(calls.connection)
    parties = batch.parties.take(calls.connection)
    # Where nobody saw the handshake, the lower port is the service's, as in the metrics.
    guessed = connections.local_port >= connections.remote_port
    is_client = np.where(connections.role == 0, guessed, connections.role == Role.CLIENT)
    translated = np.asarray(connections.translated_address.any(axis=1))
    remote = np.where(
        translated[:, None], connections.translated_address, connections.remote_address
    )
    remote_port = np.where(translated, connections.translated_port, connections.remote_port)

    def constant(name: str, text: str) -> None:
        block.add_names(name, (text,), np.zeros(block.rows, "u1"))

    def sized(name: str, values: NDArray[Any], missing: Any) -> None:
        block.add_nullable(name, "UInt64", values.astype("<u8"), values == missing)

    block.add_numbers("time", "DateTime64(9, 'UTC')", calls.end_ns)
    block.add_numbers("duration_ns", "UInt64", duration)
    no_byte = calls.first_byte_ns == UNMEASURED_U64
    first_byte = _since_start(calls, np.where(no_byte, calls.start_ns, calls.first_byte_ns))
    block.add_nullable("time_to_first_byte_ns", "UInt64", first_byte, no_byte)
    constant("cluster", header.cluster)
    constant("node", header.node)
    block.add_names("role", ("client", "server"), np.where(is_client, 0, 1).astype("u1"))
    for what in ("service", "instance"):
        own, other = getattr(parties, f"local_{what}"), getattr(parties, f"remote_{what}")
        block.add_names(f"client_{what}", names, np.where(is_client, own, other))
        block.add_names(f"server_{what}", names, np.where(is_client, other, own))
    own = connections.local_address
    block.add_bytes("client_address", np.where(is_client[:, None], own, remote))
    block.add_bytes("server_address", np.where(is_client[:, None], remote, own))
    for name, ports in (
        ("client_port", np.where(is_client, connections.local_port, remote_port)),
        ("server_port", np.where(is_client, remote_port, connections.local_port)),
    ):
        block.add_numbers(name, "UInt16", ports.astype("<u2"))
    versions = np.zeros(256, "u1")
    versions[list(HTTP_VERSIONS)] = range(1, len(HTTP_VERSIONS) + 1)
    block.add_names("version", (_NOTHING, *HTTP_VERSIONS.values()), versions[calls.version])
    block.add_names("method", names, calls.method)
    block.add_texts("path", texts, calls.path)
    endpoint = np.where(calls.endpoint == UNMEASURED_U32, np.uint32(0), calls.endpoint)
    block.add_names("endpoint", names, endpoint)
    block.add_names("host", names, calls.host)
    block.add_nullable("status", "UInt16", calls.status.astype("<u2"), calls.status == 0)
    no_grpc = calls.grpc_status == UNMEASURED_U32
    grpc_status = np.where(calls.grpc_status == GRPC_UNKNOWN, -1, calls.grpc_status)
    block.add_nullable("grpc_status", "Int32", grpc_status.astype("<i4"), no_grpc)
    block.add_numbers("outcome", OUTCOMES, calls.outcome)
    sized("request_header_size", calls.request_header_size, UNMEASURED_U32)
    sized("request_body_size", calls.request_body_size, UNMEASURED_U64)
    sized("response_header_size", calls.response_header_size, UNMEASURED_U32)
    sized("response_body_size", calls.response_body_size, UNMEASURED_U64)
    block.add_numbers("tls", "Bool", calls.flags & np.uint8(RequestFlag.TLS))
    provider = np.where(calls.trace_provider < len(PROVIDERS), calls.trace_provider, 0)
    block.add_names("trace_provider", PROVIDERS, provider)
    for name in ("trace_id", "segment_id", "span_id"):
        block.add_texts(name, texts, getattr(calls, name))
    block.add_names("container", names, connections.container)
    named = parties.local_container
    block.add_names("container_name", names, np.where(named == UNMEASURED_U32, np.uint32(0), named))
    block.add_names("process", names, connections.process)
    block.add_numbers("sample_weight", "Float64", weight)
    block.add_numbers("batch", "UInt64", np.full(block.rows, mark, "<u8"))
    return block


def batches_insert(batches: Sequence[Calls]) -> Insert:
    """Return the insert that says that all rows of these batches are stored."""
    block = NativeBlock(len(batches))

    def numbers(name: str, kind: str, dtype: str, values: list[int]) -> None:
        block.add_numbers(name, kind, np.array(values, dtype))

    numbers("time", "DateTime('UTC')", "<u4", [one.minute_s for one in batches])
    for name in ("cluster", "node", "run"):
        block.add_strings(name, [getattr(one, name) for one in batches])
    numbers("sequence", "UInt64", "<u8", [one.sequence for one in batches])
    numbers("part", "UInt32", "<u4", [one.part for one in batches])
    numbers("in_count", "UInt64", "<u8", [one.count for one in batches])
    numbers("out_count", "UInt64", "<u8", [one.stored for one in batches])
    numbers("sampled_count", "UInt64", "<u8", [one.sampled for one in batches])
    numbers("internal_count", "UInt64", "<u8", [one.internal for one in batches])
    token = "/".join(str(one.mark) for one in batches)
    return Insert(
        ACCESS_BATCHES,
        block.column_names,
        block.rows,
        block.to_bytes(),
        f"{ACCESS_BATCHES.name}/{_hash_of(token)}",
        batches[-1].mark,
    )
