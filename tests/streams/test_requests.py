"""HTTP calls in all six scopes, against plain loops over the rows."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.catalogue import FIGURES, ROLES, SCOPES
from schemas.columns import UNMEASURED_U32
from schemas.events import (
    GRPC_UNKNOWN,
    EventBatch,
    RequestOutcome,
    Role,
    decode_batch,
    encode_batch,
)
from schemas.histograms import bucket_bounds
from schemas.ledger import Entry
from schemas.metrics import decode_block, encode_block
from streams.aggregate import contributions, duplicate
from streams.blocks import minute_blocks
from streams.endpoints import UNKNOWN, EndpointNames, EndpointSettings
from streams.minutes import MinuteSums
from streams.naming import NamingSettings
from streams.resolver import Resolver
from streams.scopes import minute_tables
from streams.sightings import Sightings
from streams.windows import ClosedMinute
from tests.streams.build import (
    MINUTE_NS,
    MINUTE_S,
    SECOND_NS,
    UNMEASURED,
    UNMEASURED_FIGURE,
    BatchBuilder,
)
from tests.streams.fakes import spreads, totals
from tests.streams.test_figures import PEERS, directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from schemas.metrics import MetricsBlock

ANSWERED, ABORTED, UNANSWERED = RequestOutcome
ROUTES = {
    "/": "/",
    "/users/1": "/users/{id}",
    "/users/2": "/users/{id}",
    "/shop.Cart/Add": "/shop.Cart/Add",
    "": UNKNOWN,
}
PODS = {"10.0.0.1": "web-1", "10.0.0.2": "api-1", "10.0.0.3": "api-2"}
CALL_FIGURES = {figure.name for figure in FIGURES if figure.group in ("http", "grpc")}
CALL_FIGURES |= {f"{name}_measured_count" for name in CALL_FIGURES}
SIZES = (
    "http_request_header_size",
    "http_request_body_size",
    "http_response_header_size",
    "http_response_body_size",
)

Call = dict[str, Any]


def random_calls(chance: random.Random, count: int) -> list[Call]:
    return [
        {
            "peer": chance.choice(list(PEERS)),
            "role": chance.choice((Role.CLIENT, Role.SERVER)),
            "path": chance.choice(list(ROUTES)),
            "outcome": chance.choice((ANSWERED, ANSWERED, ABORTED, UNANSWERED)),
            "status": chance.choice((0, 101, 200, 204, 302, 404, 499, 500, 599, 700)),
            "grpc": chance.choice((UNMEASURED_FIGURE, UNMEASURED_FIGURE, GRPC_UNKNOWN, 0, 13)),
            "at": MINUTE_NS + chance.choice((0, 1, 59, 60, 119)) * SECOND_NS,
            "duration": chance.choice((0, 1, 1_000_000, 3 * 3600 * SECOND_NS, -5)),
            "sizes": (
                chance.choice((0, 9, 2**32 - 2, UNMEASURED_FIGURE)),
                chance.choice((0, 7, 2**60 + 1, UNMEASURED)),
                chance.choice((0, 9, 2**32 - 2, UNMEASURED_FIGURE)),
                chance.choice((0, 7, 2**60 + 1, UNMEASURED)),
            ),
        }
        for _ in range(count)
    ]


def batch_of(calls: Iterable[Call], sequence: int = 0) -> EventBatch:
    builder = BatchBuilder(sequence=sequence, watermark_ns=MINUTE_NS + 60 * SECOND_NS)
    rows: dict[tuple[str, Role], int] = {}
    for call in calls:
        place = call["peer"], call["role"]
        if place not in rows:
            local, remote = f"10.0.0.1:{40_000 + len(rows)}", f"{call['peer']}:80"
            rows[place] = builder.connection(local, remote, call["role"], container="c-web-1")
        values = {name: call[name] for name in call if name not in ("peer", "role", "path")}
        builder.request(rows[place], call["path"], **values)
    return builder.batch()


def figures_of(call: Call) -> Counter[str]:
    """By the definitions of the catalogue, for one call."""
    outcome, status, grpc = call["outcome"], call["status"], call["grpc"]
    found = {"http_call_count": 1, "http_aborted_count": int(outcome == ABORTED)}
    found["http_unanswered_count"] = int(outcome == UNANSWERED)
    if outcome != ANSWERED or status:
        failed_grpc = grpc not in (UNMEASURED_FIGURE, GRPC_UNKNOWN, 0)
        answered = outcome == ANSWERED and status < 500
        found["http_success_count"] = int(answered and not failed_grpc)
    if outcome == UNANSWERED or status:
        for digit in range(1, 6):
            found[f"http_status_{digit}xx_count"] = int(status // 100 == digit)
    if outcome == ANSWERED and call["duration"] >= 0:
        found["http_duration"] = call["duration"]
    nothing = (UNMEASURED_FIGURE, UNMEASURED) * 2
    sizes = zip(SIZES, call["sizes"], nothing, strict=True)
    found |= {name: size for name, size, none in sizes if size != none}
    found["grpc_call_count"] = int(grpc != UNMEASURED_FIGURE)
    if grpc not in (UNMEASURED_FIGURE, GRPC_UNKNOWN):
        found["grpc_error_count"] = int(grpc != 0)
    return Counter(found) + Counter({f"{name}_measured_count": 1 for name in found})


def keys_of(call: Call) -> dict[str, tuple[str, ...]]:
    """By table, where a call belongs: the names of its row."""
    peer, role = call["peer"], ROLES[call["role"] - 1]
    is_grpc = call["grpc"] != UNMEASURED_FIGURE
    endpoint = call["path"] if is_grpc and call["path"] else ROUTES[call["path"]]
    ours, theirs = ("web.shop", "web-1"), (PEERS[peer], PODS.get(peer, ""))
    if not theirs[1] and PEERS[peer] == peer:
        theirs = (peer, peer)
    client, server = (ours, theirs) if role == "client" else (theirs, ours)
    found = {
        "service": (ours[0],),
        "instance": ours,
        "endpoint": (server[0], endpoint),
        "service_relation": (client[0], server[0]),
        "instance_relation": (*client, *server),
        "endpoint_relation": (client[0], server[0], endpoint),
    }
    if not theirs[1]:
        del found["instance_relation"]
    return {table: ("", role, *names) for table, names in found.items()}


def expected_of(calls: Iterable[Call]) -> Counter[tuple[Any, ...]]:
    """(table, minute, key texts..., figure) to value."""
    found: Counter[tuple[Any, ...]] = Counter()
    for call in calls:
        if call["peer"] == "10.0.0.1":  # the pod itself
            continue
        minute_s = call["at"] // SECOND_NS // 60 * 60
        for table, keys in keys_of(call).items():
            for name, value in figures_of(call).items():
                found[table, minute_s, *keys, name] += value
            found[table, minute_s, *keys, "events_seen"] += 1
    return Counter({place: value for place, value in found.items() if value})


def minutes_of(batches: Iterable[EventBatch], **limits: Any) -> dict[int, MinuteSums]:
    resolver = Resolver(directory(), NamingSettings())
    names = EndpointNames(EndpointSettings(**limits))
    minutes: dict[int, MinuteSums] = {}
    for batch in batches:
        taken = decode_batch(encode_batch(batch))
        resolution = resolver.resolve(taken)
        for part in contributions(names.name(taken, resolution), resolution):
            minutes.setdefault(part.minute_s, MinuteSums()).add(part)
    return minutes


def blocks_of(
    minutes: dict[int, MinuteSums], rows_per_block: int = 100
) -> list[list[MetricsBlock]]:
    return [
        [
            decode_block(encode_block(block))
            for block in minute_blocks(
                ClosedMinute(minute_s, 7, 9, sums, late=False), "events", 0, "a", rows_per_block
            )
        ]
        for minute_s, sums in sorted(minutes.items())
    ]


def told(blocks: Sequence[Sequence[MetricsBlock]]) -> Counter[tuple[Any, ...]]:
    """The same from the blocks."""
    found: Counter[tuple[Any, ...]] = Counter()
    for scope in SCOPES:
        for place, value in totals(blocks, scope.name).items():
            if place[-1] in CALL_FIGURES | {"events_seen"}:
                found[scope.name, *place] += value
    return found


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), rows_per_block=st.integers(1, 9))
def test_all_is_what_plain_loops_say(seed: int, rows_per_block: int) -> None:
    chance = random.Random(seed)
    calls = random_calls(chance, chance.choice((1, 7, 60)))
    expected = expected_of(calls)
    pieces = chance.randrange(1, 5)
    for cut in (1, pieces):  # however the calls are cut into batches, and in any order
        order = calls[:]
        chance.shuffle(order)
        batches = [batch_of(order[piece::cut], piece) for piece in range(cut)]
        minutes = minutes_of(batches)
        blocks = blocks_of(minutes, rows_per_block)
        assert told(blocks) == expected
        for sums in minutes.values():
            assert_closes(sums)
        latencies(blocks, calls)


def latencies(blocks: Sequence[Sequence[MetricsBlock]], calls: Iterable[Call]) -> None:
    expected: Counter[tuple[Any, ...]] = Counter()
    for call in calls:
        measured = call["outcome"] == ANSWERED and call["duration"] >= 0
        if measured and call["peer"] != "10.0.0.1":
            for table, keys in keys_of(call).items():
                minute_s = call["at"] // SECOND_NS // 60 * 60
                expected[table, minute_s, *keys, call["duration"]] += 1
    found: Counter[tuple[Any, ...]] = Counter()
    for scope in SCOPES:
        for (*place, name, bucket), count in spreads(blocks, scope.name).items():
            assert name == "http_duration"
            low, high = bucket_bounds(bucket, 4)
            (value,) = {key[-1] for key in expected if low <= key[-1] < high}
            found[scope.name, *place, value] += count
    assert found == expected


def assert_closes(sums: MinuteSums) -> None:
    left: Counter[str] = Counter()
    for (_, _, stage, kind, _), (entered, out, dropped) in sums.ledger.items():
        if stage == "streams":
            left[kind] += entered - out - dropped
    assert not any(left.values()), left


def one_minute(builder: BatchBuilder) -> MinuteSums:
    return minutes_of([builder.batch()])[MINUTE_S]


def test_a_call_inside_a_pod_and_one_of_another_year_make_no_row() -> None:
    builder = BatchBuilder()
    inside = builder.connection("10.0.0.1:40000", "10.0.0.1:80", container="c-web-1")
    outside = builder.connection("10.0.0.1:40000", "203.0.113.1:80", container="c-web-1")
    builder.request(inside).request(outside).request(outside, at=5).request(outside, at=2**63)
    batch = builder.batch()
    batch.header.last_event_ns = MINUTE_NS
    sums = minutes_of([batch])[MINUTE_S]
    row = ("", "node-a", "streams", "request")
    assert sums.ledger[*row, ""] == [4, 1, 0]
    assert sums.ledger[*row, "pod_internal"] == [0, 0, 1]
    assert sums.ledger[*row, "malformed"] == [0, 0, 2]
    assert_closes(sums)
    assert totals(blocks_of({MINUTE_S: sums}), "endpoint")[
        MINUTE_S, "", "client", "203.0.113.1", "/", "http_call_count"
    ] == 1  # fmt: skip


def test_a_duplicate_enters_and_is_dropped() -> None:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    part = duplicate(builder.request(c).request(c).batch())
    row = ("", "node-a", "streams", "request")
    assert part.ledger[*row, ""] == [2, 0, 0]
    assert part.ledger[*row, "duplicate"] == [0, 0, 2]


def test_what_was_lost_on_the_way_to_the_parsers_is_lost_to_the_row() -> None:
    builder = BatchBuilder(
        ledger=[
            Entry("collector", "request", "undelivered", 3, 0, 3),
            Entry("kernel", "payload", "ring_full", 0, 0, 5),
            Entry("kernel", "payload", "unpaired", 0, 0, 100),
            Entry("collector", "payload_byte", "uncaptured", 0, 0, 7000),
            Entry("collector", "payload", "excluded", 0, 0, 100),
            Entry("collector", "payload", "malformed", 0, 0, 100),
        ]
    )
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    sums = one_minute(builder.request(c))
    assert sums.lost == {"node-a": 9}
    for table in minute_tables(sums)[1]:
        if table.table not in ("ledger", "coverage"):
            assert table.figures["events_lost"].tolist() == [9]


def test_endpoint_rows_have_the_figures_of_calls_only() -> None:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    sums = one_minute(builder.request(c).transfer(c, 5).open(c))
    tables = {table.table: table for table in minute_tables(sums)[1]}
    for name in ("endpoint", "endpoint_relation"):
        figures = set(tables[name].figures)
        assert figures < CALL_FIGURES | {"events_seen", "events_lost"}
        assert "grpc_error_count" not in figures  # nobody told one
        assert "http_request_body_size" not in figures
        assert tables[name].figures["events_seen"].tolist() == [1]
    assert tables["service"].figures["events_seen"].tolist() == [3]
    assert tables["service"].figures["read_bytes"].tolist() == [5]


def test_a_minute_without_calls_has_no_figures_of_calls() -> None:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    for table in minute_tables(one_minute(builder.transfer(c, 5)))[1]:
        assert not set(table.figures) & CALL_FIGURES
        assert table.table not in ("endpoint", "endpoint_relation")


def test_a_relation_without_calls_measured_none_beside_one_that_has() -> None:
    builder = BatchBuilder()
    first = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    second = builder.connection("10.0.0.1:40000", "203.0.113.2:80")
    sums = one_minute(builder.request(first).transfer(second, 5))
    table = next(t for t in minute_tables(sums)[1] if t.table == "service_relation")
    assert sorted(table.measured["http_call_count"].tolist()) == [0, 1]


@pytest.mark.parametrize("role", [Role.CLIENT, Role.SERVER])
def test_an_endpoint_is_the_servers_whoever_saw_the_call(role: Role) -> None:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "10.0.0.2:80", role, container="c-web-1")
    sums = one_minute(builder.request(c, "/cart/7"))
    server = "api.shop" if role == Role.CLIENT else "web.shop"
    client = "web.shop" if role == Role.CLIENT else "api.shop"
    entities = Sightings().of_minute(MINUTE_S, sums)
    found = {entity.kind: entity for entity in entities}
    assert found["endpoint"].names == {"service": server, "endpoint": "/cart/{id}"}
    assert found["endpoint"].attributes == {"layer": "KUBERNETES", "namespace": "shop"}
    assert found["endpoint_relation"].names == {
        "client_service": client,
        "server_service": server,
        "endpoint": "/cart/{id}",
    }
    place = (MINUTE_S, "", ROLES[role - 1], server, "/cart/{id}", "http_call_count")
    assert totals(blocks_of({MINUTE_S: sums}), "endpoint")[place] == 1


def test_sums_beyond_what_a_double_holds_are_exact() -> None:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    size = 2**61 + 1
    for _ in range(7):
        builder.request(c, sizes=(UNMEASURED_FIGURE, size, UNMEASURED_FIGURE, 3))
    found = totals(blocks_of({MINUTE_S: one_minute(builder)}), "service")
    assert found[MINUTE_S, "", "client", "web.shop", "http_request_body_size"] == 7 * size


def test_calls_nobody_named_have_an_unknown_endpoint() -> None:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    batch = builder.request(c, "/a").request(c, "/b").batch()
    assert (batch.requests.endpoint == UNMEASURED_U32).all()
    (part,) = contributions(batch, Resolver(directory(), NamingSettings()).resolve(batch))
    assert part.calls is not None
    assert [part.calls.names[place] for place in part.calls.endpoint] == [UNKNOWN]
    assert np.array_equal(part.calls.sums[:, 0], [2])


def test_the_same_events_make_the_same_blocks() -> None:
    chance = random.Random(11)
    batches = [batch_of(random_calls(chance, 50), sequence) for sequence in range(4)]

    def messages() -> list[bytes]:
        minutes = minutes_of(batches)
        return [encode_block(block) for parts in blocks_of(minutes, 4) for block in parts]

    assert messages() == messages()
