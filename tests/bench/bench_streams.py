"""Kafka message to minute sums: what an event costs a stream worker, part by part.

Three shapes: few busy connections (reads and writes dominate), and short connections, each with one
open, two transfers and one close, where every row has to be named anew; and HTTP calls. The first
two each with the figures of layers 2 to 4 that a node may measure: none, what the socket counts,
what tracepoints give, all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from schemas.columns import UNMEASURED_U32
from schemas.events import (
    FIGURE_WIDTH,
    READ_FIGURES,
    WRITE_FIGURES,
    BatchHeader,
    Closes,
    Connections,
    Direction,
    EventBatch,
    Opens,
    Requests,
    Transfers,
    decode_batch,
    encode_batch,
)
from schemas.metrics import encode_block
from streams.access_log import access_log_messages
from streams.aggregate import contributions
from streams.blocks import minute_blocks
from streams.directory import Directory
from streams.endpoints import EndpointNames, EndpointSettings
from streams.naming import NamingSettings
from streams.resolver import Resolver
from streams.windows import MinuteAggregator, WindowSettings
from tests.bench.measure import Row, measure
from tests.streams.build import MINUTE_NS, endpoint_slice, pod, service

if TYPE_CHECKING:
    from collections.abc import Sequence

PODS = 200
SERVICES = 20

_COUNTERS = (
    "read_packet_count",
    "read_packet_size",
    "write_packet_count",
    "write_packet_size",
    "write_retransmit_packet_count",
)
_TRACEPOINTS = (
    *_COUNTERS,
    "read_packet_from_queue_duration",
    "read_call_duration",
    "read_unattributed_duration",
    "write_lost_packet_count",
    "write_l2_duration",
    "write_l2_enter_queue_count",
    "write_l2_ready_send_duration",
    "write_l2_netdevice_send_duration",
)
_MEASURED = {
    "no figures": (),
    "counters": _COUNTERS,
    "tracepoints": _TRACEPOINTS,
    "all figures": (*READ_FIGURES, *WRITE_FIGURES),
}


def run() -> list[Row]:
    return [
        *_shape("busy", connections=1_000, transfers=100_000, opens=0),
        *_shape("short", connections=20_000, transfers=40_000, opens=20_000),
        *_calls("calls", connections=1_000, requests=50_000, paths=200),
        *_calls("calls, every path new", connections=1_000, requests=50_000, paths=50_000),
    ]


def _calls(shape: str, connections: int, requests: int, paths: int) -> list[Row]:
    message = encode_batch(example_calls(connections, requests, paths))
    batch = decode_batch(message)
    directory = _directory()
    resolver = Resolver(directory, NamingSettings())
    resolution = resolver.resolve(batch)
    names = EndpointNames(EndpointSettings())
    named = names.name(batch, resolution)
    aggregator = MinuteAggregator(WindowSettings())
    whole = MinuteAggregator(WindowSettings())
    offset = 0

    def fresh() -> None:
        EndpointNames(EndpointSettings()).name(batch, resolution)

    def add() -> None:
        nonlocal offset
        aggregator.add(offset, contributions(named, resolution), 0.0)
        offset += 1

    def everything() -> None:
        nonlocal offset
        taken = decode_batch(message)
        found = resolver.resolve(taken)
        whole.add(offset, contributions(names.name(taken, found), found), 0.0)
        offset += 1

    (minute_s,) = {part.minute_s for part in contributions(named, resolution)}
    rows = [
        measure(f"{shape}: decode", requests, lambda: decode_batch(message), unit="call"),
        measure(f"{shape}: name endpoints, paths known", requests,
                lambda: names.name(batch, resolution), unit="call", note=f"{paths:,} paths"),
        measure(f"{shape}: name endpoints, no path known", requests, fresh, unit="call"),
        measure(f"{shape}: aggregate", requests, add, unit="call"),
        measure(f"{shape}: all four", requests, everything, unit="call",
                note=f"{len(message) / requests:.0f} bytes a call"),
        measure(f"{shape}: access log", requests,
                lambda: access_log_messages(named, resolution, directory.container_name),
                unit="call"),
    ]  # fmt: skip
    closed = aggregator.close(minute_s)

    def emit() -> None:
        for block in minute_blocks(closed, "podwire.events.v1", 0, "attempt", 20_000):
            encode_block(block)

    blocks = minute_blocks(closed, "podwire.events.v1", 0, "attempt", 20_000)
    count = sum(table.rows for block in blocks for table in block.tables)
    rows.append(measure(f"{shape}: minute to block", count, emit, unit="row"))
    return rows


def _shape(shape: str, connections: int, transfers: int, opens: int) -> list[Row]:
    directory = _directory()
    message = encode_batch(example_batch(connections, transfers, opens, _MEASURED["all figures"]))
    events = transfers + 2 * opens
    batch = decode_batch(message)
    resolver = Resolver(directory, NamingSettings())
    resolution = resolver.resolve(batch)
    aggregator = MinuteAggregator(WindowSettings())
    offset = 0

    def everything() -> None:
        nonlocal offset
        taken = decode_batch(message)
        aggregator.add(offset, contributions(taken, resolver.resolve(taken)), 0.0)
        offset += 1

    def cold() -> None:
        Resolver(directory, NamingSettings()).resolve(batch)

    (minute_s,) = {part.minute_s for part in contributions(batch, resolution)}
    rows = [
        *(
            _aggregate(
                shape, example_batch(connections, transfers, opens, measured), resolver, name
            )
            for name, measured in _MEASURED.items()
        ),
        measure(f"{shape}: decode", events, lambda: decode_batch(message), unit="event"),
        measure(f"{shape}: resolve, names known", events, lambda: resolver.resolve(batch),
                unit="event", note=f"{connections:,} connections"),
        measure(f"{shape}: resolve, no name known", connections, cold, unit="connection"),
        measure(f"{shape}: all three", events, everything, unit="event",
                note=f"{len(message) / events:.0f} bytes an event"),
    ]  # fmt: skip
    closed = aggregator.close(minute_s)

    def emit() -> None:
        for block in minute_blocks(closed, "podwire.events.v1", 0, "attempt", 20_000):
            encode_block(block)

    blocks = minute_blocks(closed, "podwire.events.v1", 0, "attempt", 20_000)
    count = sum(table.rows for block in blocks for table in block.tables)
    rows.append(measure(f"{shape}: minute to block", count, emit, unit="row"))
    return rows


def _aggregate(shape: str, batch: EventBatch, resolver: Resolver, measured: str) -> Row:
    resolution = resolver.resolve(batch)
    aggregator = MinuteAggregator(WindowSettings())
    offset = 0

    def add() -> None:
        nonlocal offset
        aggregator.add(offset, contributions(batch, resolution), 0.0)
        offset += 1

    return measure(f"{shape}: aggregate, {measured}", batch.events, add, unit="event")


def _directory() -> Directory:
    directory = Directory()
    for index in range(PODS):
        directory.apply(pod(f"app{index % SERVICES}-{index}", f"10.244.1.{index + 1}"))
    for index in range(SERVICES):
        pods = [
            pod(f"app{index}-{place}", f"10.244.1.{place + 1}")
            for place in range(index, PODS, SERVICES)
        ]
        name = f"app{index}"
        directory.apply(service(name, f"10.96.0.{index + 1}", uid=f"uid-service-{name}"))
        directory.apply(endpoint_slice(name, *pods, uid=f"uid-slice-{name}"))
    return directory


def example_batch(
    connections: int, transfers: int, opens: int, measured: Sequence[str] = ()
) -> EventBatch:
    """Events between random pods; every open has a close. `measured` names figures."""
    random = np.random.default_rng(1)
    local = random.integers(0, PODS, connections)
    remote = (local + random.integers(1, PODS, connections)) % PODS
    names = ["", *(f"c-app{index % SERVICES}-{index}" for index in range(PODS)), "python"]
    rows = Connections(
        id=np.arange(1, connections + 1, dtype="<u8"),
        family=np.full(connections, 4, "u1"),
        local_address=_addresses(local),
        local_port=random.integers(32_768, 61_000, connections).astype("<u4"),
        remote_address=_addresses(remote),
        remote_port=np.full(connections, 8080, "<u4"),
        translated_address=np.zeros((connections, 16), "u1"),
        translated_port=np.zeros(connections, "<u4"),
        role=random.integers(1, 3, connections).astype("u1"),
        netns=(local + 1).astype("<u4"),
        cgroup_id=(local + 1).astype("<u8"),
        pid=(local + 1000).astype("<u4"),
        container=(local + 1).astype("<u4"),
        process=np.full(connections, PODS + 1, "<u4"),
        flags=np.zeros(connections, "u1"),
    )
    owner = np.arange(transfers) % connections
    place = np.arange(opens)

    def times(count: int) -> np.ndarray:
        return (MINUTE_NS + np.sort(random.integers(0, 10**9, count))).astype("<u8")

    def durations(count: int) -> np.ndarray:
        return random.integers(1_000, 1_000_000, count).astype("<u8")

    batch = EventBatch(
        BatchHeader(node="node-a", run_id="run", watermark_ns=MINUTE_NS),
        rows,
        names,
        Opens(
            connection=place.astype("<u4"),
            kind=np.where(rows.role[:opens] == 1, 1, 2).astype("u1"),
            end_ns=times(opens),
            duration_ns=durations(opens),
            error=np.zeros(opens, "<u4"),
        ),
        Closes(place.astype("<u4"), times(opens), durations(opens)),
        Transfers(
            connection=owner.astype("<u4"),
            direction=random.integers(1, 3, transfers).astype("u1"),
            call=np.ones(transfers, "u1"),
            end_ns=times(transfers),
            duration_ns=durations(transfers),
            size=random.integers(1, 65_536, transfers).astype("<u4"),
        ),
    )
    if measured:
        batch.transfers.figures = _figures(batch.transfers.direction == Direction.WRITE, measured)
    return batch


def example_calls(connections: int, requests: int, paths: int) -> EventBatch:
    """HTTP calls between random pods, each with a trace id of its own."""
    random = np.random.default_rng(3)
    batch = example_batch(connections, 0, 0)
    first = len(batch.names)
    batch.names = [
        *batch.names,
        "GET",
        *(f"/api/v1/carts/{place}/items" if place % 2 else f"/api/v1/route{chr(97 + place % 26)}"
          f"/{chr(97 + place // 26 % 26)}" for place in range(paths)),
        *(f"{place:032x}" for place in range(requests)),
    ]  # fmt: skip
    end_ns = (MINUTE_NS + np.sort(random.integers(0, 10**9, requests))).astype("<u8")
    # Services have paths of their own.
    owner = batch.connections.remote_address[np.arange(requests) % connections, 15] % SERVICES
    path = random.integers(0, paths // SERVICES, requests) * SERVICES + owner
    if paths == requests:
        path = np.arange(requests)

    def small(low: int, high: int, dtype: str) -> np.ndarray:
        return random.integers(low, high, requests).astype(dtype)

    def nothing(dtype: str) -> np.ndarray:
        return np.zeros(requests, dtype)

    batch.requests = Requests(
        connection=(np.arange(requests) % connections).astype("<u4"),
        version=np.full(requests, 11, "u1"),
        outcome=nothing("u1"),
        flags=nothing("u1"),
        method=np.full(requests, first, "<u4"),
        path=(path + first + 1).astype("<u4"),
        host=nothing("<u4"),
        status=np.where(random.random(requests) < 0.02, 500, 200).astype("<u4"),
        start_ns=end_ns - np.exp(random.normal(14, 1, requests)).astype("<u8"),
        first_byte_ns=end_ns,
        end_ns=end_ns,
        request_header_size=small(100, 900, "<u4"),
        request_body_size=small(0, 10_000, "<u8"),
        response_header_size=small(100, 900, "<u4"),
        response_body_size=small(0, 1_000_000, "<u8"),
        trace_provider=np.ones(requests, "u1"),
        trace_id=(np.arange(requests) + first + 1 + paths).astype("<u4"),
        segment_id=nothing("<u4"),
        span_id=nothing("<u4"),
    )
    return batch


def _figures(writes: np.ndarray, measured: Sequence[str]) -> np.ndarray:
    # About a microsecond each, give or take a power of two; parts are no greater than their wholes.
    random = np.random.default_rng(2)
    figures = np.exp(random.normal(7, 1, (len(writes), FIGURE_WIDTH))).astype("<u4")
    read, write = READ_FIGURES.index, WRITE_FIGURES.index
    figures[~writes, read("read_l3_duration")] += figures[~writes, read("read_netfilter_duration")]
    l3, l4 = write("write_l3_duration"), write("write_l4_duration")
    for part in ("write_netfilter_duration", "resolve_mac_duration", "write_l2_duration"):
        figures[writes, l3] += figures[writes, write(part)]
    figures[writes, l4] += figures[writes, l3]
    for chosen, names in ((~writes, READ_FIGURES), (writes, WRITE_FIGURES)):
        for place in range(FIGURE_WIDTH):
            if names[place : place + 1] and names[place] in measured:
                continue
            figures[chosen, place] = UNMEASURED_U32
    return figures


def _addresses(pods: np.ndarray) -> np.ndarray:
    packed = np.zeros((len(pods), 16), "u1")
    packed[:, 10:12] = 0xFF
    packed[:, 12:15] = (10, 244, 1)
    packed[:, 15] = pods + 1
    return packed
