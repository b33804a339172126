"""Enriched batches of every kind of event, by the thousand."""

from __future__ import annotations

import numpy as np

from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.events import (
    FIGURE_WIDTH,
    READ_FIGURES,
    BatchHeader,
    Closes,
    Connections,
    Drops,
    EventBatch,
    Opens,
    Parties,
    Requests,
    Transfers,
    decode_batch,
    encode_batch,
)

MINUTE_NS = 1_700_000_040 * 1_000_000_000
BOOT_NS = MINUTE_NS - 86_400_000_000_000 + 123_456_789
NAMES = (
    "",
    *("web.shop", "api.shop", "stock.shop", "db.data", "192.0.2.7"),
    *("web-1", "web-2", "api-1", "stock-1", "db-1"),
    *("GET", "POST", "PURGE"),
    *("/", "/orders/17", "/stäck", "/orders/{id}"),
    *("api.shop:8080", "nginx", "4bf92f3577b34da6a3ce929d0e0e4736", "seg-1", "span-2"),
    *("app", "proxy", "NETFILTER_DROP", "QDISC_DROP", "77"),
)
AT = {name: place for place, name in enumerate(NAMES)}
ENDS = (
    ("web.shop", "web-1"),
    ("web.shop", "web-2"),
    ("api.shop", "api-1"),
    ("stock.shop", "stock-1"),
    ("db.data", "db-1"),
    ("db.data", ""),
    ("192.0.2.7", "192.0.2.7"),
)


def random_batch(
    *,
    seed: int = 1,
    connections: int = 40,
    opens: int = 30,
    closes: int = 20,
    transfers: int = 400,
    requests: int = 60,
    node: str = "node-a",
    first_id: int = 0,
    sequence: int = 0,
    staged: bool = True,
    drops: int = 0,
) -> EventBatch:
    """One decoded message of ``podwire.access-log.v1``, about a second long."""
    chance, later = np.random.default_rng(seed), np.random.default_rng(~np.uint64(seed))

    def pick(count, *values):
        return chance.choice(np.array([AT.get(v, v) for v in values]), count)

    def times(count):
        return (MINUTE_NS + chance.integers(-(10**9), 10**9, count)).astype("<u8")

    def some(values, share, missing):
        return np.where(chance.random(len(values)) < share, missing, values.astype("<u8"))

    ends = np.array([[AT[service], AT[pod]] for service, pod in ENDS], "<u4")
    local, remote = (
        ends[chance.integers(0, 5, connections)],
        ends[chance.integers(0, 7, connections)],
    )
    address = chance.integers(1, 250, (connections, 16)).astype("u1")
    translated = address.copy()
    translated[chance.random(connections) < 0.8] = 0
    rows = Connections(
        id=np.arange(connections, dtype="<u8") + first_id,
        family=np.full(connections, 6, "u1"),
        local_address=address,
        local_port=chance.integers(1, 65536, connections).astype("<u4"),
        remote_address=address[::-1],
        remote_port=chance.integers(1, 65536, connections).astype("<u4"),
        translated_address=translated,
        translated_port=np.where(translated.any(axis=1), 8080, 0).astype("<u4"),
        role=chance.integers(0, 3, connections).astype("u1"),
        netns=np.zeros(connections, "<u4"),
        cgroup_id=np.zeros(connections, "<u8"),
        pid=np.ones(connections, "<u4"),
        container=np.zeros(connections, "<u4"),
        process=pick(connections, "", "nginx").astype("<u4"),
        flags=chance.integers(0, 4, connections).astype("u1"),
    )
    parties = Parties(
        local_service=local[:, 0],
        local_instance=local[:, 1],
        remote_service=remote[:, 0],
        remote_instance=remote[:, 1],
        internal=(chance.random(connections) < 0.1).astype("u1"),
        local_container=later.choice(
            np.array([UNMEASURED_U32, 0, AT["app"], AT["proxy"]], "<u4"), connections
        ),
    )
    direction = chance.integers(1, 3, transfers).astype("u1")
    call = np.where(direction == 1, pick(transfers, *range(6)), pick(transfers, *range(6, 14)))
    call = np.where(chance.random(transfers) < 0.05, 14, call).astype("u1")
    figures = chance.integers(0, 5000, (transfers, FIGURE_WIDTH)).astype("<u4")
    figures[chance.random((transfers, FIGURE_WIDTH)) < 0.2] = UNMEASURED_U32
    figures[direction == 1, len(READ_FIGURES) :] = UNMEASURED_U32
    duration = some(chance.integers(0, 2 * 10**9, transfers), 0.1, UNMEASURED_U64)
    no_call = call == 14
    size = np.where(no_call, 0, chance.integers(1, 9000, transfers))
    moved = Transfers(
        connection=chance.integers(0, connections, transfers).astype("<u4"),
        direction=direction,
        call=call,
        end_ns=times(transfers),
        duration_ns=np.where(no_call, UNMEASURED_U64, duration).astype("<u8"),
        size=size.astype("<u4"),
        figures=figures if staged else np.empty((0, FIGURE_WIDTH), "<u4"),
    )
    end_ns = times(requests)
    took = chance.integers(0, 10**9, requests)
    provider = pick(requests, 0, 1, 2, 3)
    calls = Requests(
        connection=chance.integers(0, connections, requests).astype("<u4"),
        version=pick(requests, 10, 11, 20).astype("u1"),
        outcome=pick(requests, 0, 0, 0, 1, 2).astype("u1"),
        flags=pick(requests, 0, 1).astype("u1"),
        method=pick(requests, "GET", "POST", "PURGE").astype("<u4"),
        path=pick(requests, "", "/", "/orders/17", "/stäck").astype("<u4"),
        host=pick(requests, "", "api.shop:8080").astype("<u4"),
        status=pick(requests, 0, 101, 200, 204, 304, 404, 500, 503).astype("<u4"),
        grpc_status=np.where(
            chance.random(requests) < 0.8, UNMEASURED_U32, chance.integers(0, 14, requests)
        ).astype("<u4"),
        start_ns=(end_ns - took.astype("<u8")).astype("<u8"),
        first_byte_ns=np.full(requests, UNMEASURED_U64, "<u8"),
        end_ns=end_ns,
        request_header_size=some(chance.integers(0, 900, requests), 0.1, UNMEASURED_U32).astype(
            "<u4"
        ),
        request_body_size=some(chance.integers(0, 9**9, requests), 0.1, UNMEASURED_U64).astype(
            "<u8"
        ),
        response_header_size=some(chance.integers(0, 900, requests), 0.1, UNMEASURED_U32).astype(
            "<u4"
        ),
        response_body_size=some(chance.integers(0, 9**9, requests), 0.1, UNMEASURED_U64).astype(
            "<u8"
        ),
        trace_provider=provider.astype("u1"),
        trace_id=np.where(provider > 0, AT["4bf92f3577b34da6a3ce929d0e0e4736"], 0).astype("<u4"),
        segment_id=np.where(provider == 3, AT["seg-1"], 0).astype("<u4"),
        span_id=np.where(provider > 1, AT["span-2"], 0).astype("<u4"),
        endpoint=pick(requests, UNMEASURED_U32, AT["/orders/{id}"], AT["/"]).astype("<u4"),
    )
    batch = EventBatch(
        header=BatchHeader(
            node=node,
            boot_id="boot-1",
            run_id="run-1",
            sequence=sequence,
            anchor_unix_ns=MINUTE_NS,
            anchor_monotonic_ns=MINUTE_NS - BOOT_NS,
        ),
        connections=rows,
        names=NAMES,
        opens=Opens(
            connection=chance.integers(0, connections, opens).astype("<u4"),
            kind=chance.integers(1, 3, opens).astype("u1"),
            end_ns=times(opens),
            duration_ns=some(chance.integers(0, 10**9, opens), 0.2, UNMEASURED_U64).astype("<u8"),
            error=pick(opens, 0, 0, 111).astype("<u4"),
        ),
        closes=Closes(
            connection=chance.integers(0, connections, closes).astype("<u4"),
            end_ns=times(closes),
            duration_ns=some(chance.integers(0, 10**6, closes), 0.2, UNMEASURED_U64).astype("<u8"),
        ),
        transfers=moved,
        requests=calls,
        drops=Drops(
            connection=chance.integers(0, connections, drops).astype("<u4"),
            end_ns=times(drops),
            reason=later.choice(
                np.array([AT[each] for each in ("NETFILTER_DROP", "QDISC_DROP", "77")], "<u4"),
                drops,
            ),
            packets=chance.integers(1, 9, drops).astype("<u4"),
        ),
        parties=parties,
    )
    return decode_batch(encode_batch(batch))
