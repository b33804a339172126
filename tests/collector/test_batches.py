from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.abi import COUNTS, ConnectionEvent, Kind
from collector.batches import (
    BatchBuilder,
    Limits,
    Run,
    as_undelivered,
    finished,
    kernel_entries,
)
from collector.connections import ConnectionTable
from collector.names import NameTable
from schemas.clock import ClockAnchor
from schemas.columns import UNMEASURED_U64
from schemas.events import EventBatch, OpenKind, decode_batch, encode_batch
from schemas.ledger import KINDS, REASONS, Entry, Ledger
from schemas.topics import MAX_MESSAGE_BYTES
from tests.collector.records import connection, connections, transfer, transfers

E = ConnectionEvent
ANCHOR = ClockAnchor(monotonic_ns=0, unix_ns=1_700_000_000_000_000_000)
NOW = ANCHOR.unix_ns


def _builder(**limits: int) -> BatchBuilder:
    table, names = ConnectionTable(), NameTable()
    return BatchBuilder(Run("node", "boot", "run", "c"), table, names, Limits(**limits))


def _build(
    builder: BatchBuilder,
    connection_rows: list[dict[str, Any]],
    transfer_rows: list[dict[str, Any]],
    **options: Any,
) -> list[EventBatch]:
    records = connections(*connection_rows)
    builder.table.apply(records)
    options.setdefault("ledger", Ledger())
    options.setdefault("watermark_ns", NOW)
    batches = builder.build(records, transfers(*transfer_rows), ANCHOR, **options)
    # What every consumer will do; checks every index of every table.
    return [decode_batch(encode_batch(batch)) for batch in batches]


def _sums(batches: list[EventBatch]) -> dict[tuple[str, str], tuple[int, int, int]]:
    ledger = Ledger()
    for batch in batches:
        ledger.add(batch.header.ledger)
    assert ledger.open_counts() == {}
    return {
        (entry.kind, entry.reason): (entry.in_count, entry.out_count, entry.dropped_count)
        for entry in ledger.drain()
        if entry.stage == "collector"
    }


def test_a_batch_holds_its_events_and_only_the_connections_they_point_at() -> None:
    builder = _builder()
    _build(builder, [connection(1, E.ANNOUNCED), connection(2, E.ANNOUNCED)], [])
    (batch,) = _build(
        builder,
        [
            connection(3, E.CONNECTED, end_ns=5, duration_ns=4, error=111, role=1),
            connection(2, E.ACCEPTED, end_ns=6, duration_ns=int(UNMEASURED_U64)),
            connection(2, E.CLOSED, end_ns=9, duration_ns=2),
        ],
        [transfer(2, end_ns=7, duration_ns=3, size=99, direction=2, call=8)],
    )
    assert batch.connections.id.tolist() == [2, 3] or batch.connections.id.tolist() == [3, 2]
    ids = batch.connections.id
    assert ids[batch.opens.connection].tolist() == [3, 2]
    assert batch.opens.kind.tolist() == [OpenKind.CONNECT, OpenKind.ACCEPT]
    assert batch.opens.end_ns.tolist() == [NOW + 5, NOW + 6]
    assert batch.opens.duration_ns.tolist() == [4, int(UNMEASURED_U64)]
    assert batch.opens.error.tolist() == [111, 0]
    assert ids[batch.closes.connection].tolist() == [2]
    assert batch.closes.duration_ns.tolist() == [2]
    assert ids[batch.transfers.connection].tolist() == [2]
    assert batch.transfers.size.tolist() == [99]
    assert batch.transfers.direction.tolist() == [2]
    assert batch.transfers.call.tolist() == [8]
    assert (batch.header.first_event_ns, batch.header.last_event_ns) == (NOW + 5, NOW + 9)
    assert (batch.header.node, batch.header.cluster) == ("node", "c")


def test_names_are_local_to_the_batch() -> None:
    builder = _builder()
    _build(builder, [connection(1, E.ANNOUNCED), connection(2, E.ANNOUNCED)], [])
    slots = builder.table.find(np.array([1, 2], np.uint64))
    builder.table.rows["container"][slots] = [builder.names.number("x" * 64), 0]
    builder.table.rows["process"][slots] = [0, builder.names.number("nginx")]
    (batch,) = _build(builder, [], [transfer(2)])
    assert batch.names == ["", "nginx"]
    assert batch.names[batch.connections.process[0]] == "nginx"
    assert batch.names[batch.connections.container[0]] == ""


def test_no_event_makes_one_empty_batch() -> None:
    (batch,) = _build(_builder(), [], [])
    assert batch.events == 0
    assert batch.connections.rows == 0
    assert (batch.header.first_event_ns, batch.header.last_event_ns) == (0, 0)


def test_a_transfer_waits_once_for_its_announcement() -> None:
    builder = _builder()
    (first,) = _build(builder, [], [transfer(9, end_ns=50)], watermark_ns=NOW + 100)
    assert first.transfers.rows == 0
    assert first.header.watermark_ns == NOW + 49
    assert _sums([first]) == {}
    (second,) = _build(builder, [connection(9, E.ANNOUNCED)], [], watermark_ns=NOW + 200)
    assert second.transfers.rows == 1
    assert second.header.watermark_ns == NOW + 200


def test_a_transfer_of_nobody_is_dropped_and_counted() -> None:
    builder = _builder()
    batches = _build(builder, [], [transfer(9)]) + _build(builder, [], [transfer(8)])
    batches += _build(builder, [], [], final=True)
    assert _sums(batches) == {
        ("transfer", ""): (2, 0, 0),
        ("transfer", "unknown_connection"): (0, 0, 2),
    }


def test_malformed_records_are_dropped_and_counted() -> None:
    batches = _build(
        _builder(),
        [connection(1, E.ANNOUNCED), connection(1, 77)],  # type: ignore[arg-type]
        [transfer(1), transfer(1, direction=3), transfer(1, direction=0)],
    )
    assert _sums(batches) == {
        ("connection", ""): (2, 1, 0),
        ("connection", "malformed"): (0, 0, 1),
        ("transfer", ""): (3, 1, 0),
        ("transfer", "malformed"): (0, 0, 2),
    }


def test_too_many_events_make_several_batches() -> None:
    builder = _builder(events=10)
    rows = [connection(i, E.ANNOUNCED) for i in range(1, 4)]
    ledger = Ledger()
    ledger.dropped("kernel", "transfer", "ring_full", 3)
    ledger.passed("kernel", "transfer", entered=3, left=0)
    moved = [transfer(1 + i % 3, size=i + 1) for i in range(35)]
    batches = _build(builder, rows, moved, ledger=ledger, watermark_ns=NOW + 5)
    assert len(batches) > 3
    assert max(batch.events for batch in batches) <= 10
    assert [batch.header.watermark_ns for batch in batches[:-1]] == [0] * (len(batches) - 1)
    assert batches[-1].header.watermark_ns == NOW + 5
    sizes = np.concatenate([batch.transfers.size for batch in batches])
    assert sorted(sizes) == list(range(1, 36))
    assert _sums(batches)["transfer", ""] == (35, 35, 0)


def test_a_message_stays_below_the_limit_of_its_bytes() -> None:
    builder = _builder()
    count = 100_000
    records = np.repeat(connections(connection(1, E.CLOSED)), count)
    records["connection_id"] = np.arange(1, count + 1)
    builder.table.apply(records)
    nothing = transfers()
    batches = builder.build(records, nothing, ANCHOR, NOW, Ledger())
    assert len(batches) > 1
    assert max(len(encode_batch(batch)) for batch in batches) <= MAX_MESSAGE_BYTES
    assert sum(batch.closes.rows for batch in batches) == count


def test_the_watermark_never_moves_back() -> None:
    builder = _builder()
    (first,) = _build(builder, [], [], watermark_ns=NOW + 9)
    (second,) = _build(builder, [], [], watermark_ns=NOW + 2)
    assert (first.header.watermark_ns, second.header.watermark_ns) == (NOW + 9, NOW + 9)


_EVENTS = st.sampled_from([E.ANNOUNCED, E.CONNECTED, E.ACCEPTED, E.CLOSED])
_PUBLISH = st.tuples(
    st.lists(st.tuples(st.integers(1, 8), _EVENTS), max_size=12),
    st.lists(st.tuples(st.integers(1, 10), st.integers(0, 3)), max_size=20),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_PUBLISH, max_size=5), st.integers(1, 12))
def test_every_record_leaves_once(steps: list[Any], limit: int) -> None:
    builder = _builder(events=limit)
    batches: list[EventBatch] = []
    announced = opened = closed = moved = 0
    for number, (connection_rows, transfer_rows) in enumerate([*steps, ([], [])]):
        final = number == len(steps)
        batches += _build(
            builder,
            [connection(i, event) for i, event in connection_rows],
            [transfer(i, direction=direction) for i, direction in transfer_rows],
            final=final,
        )
        builder.table.sweep()
        events = [event for _, event in connection_rows]
        announced += events.count(E.ANNOUNCED)
        opened += events.count(E.CONNECTED) + events.count(E.ACCEPTED)
        closed += events.count(E.CLOSED)
        moved += len(transfer_rows)
    entered = dict.fromkeys(("connection", "open", "close", "transfer"), 0)
    for (kind, _), (in_count, _, _) in _sums(batches).items():
        entered[kind] += in_count
    assert entered == {
        "connection": announced,
        "open": opened,
        "close": closed,
        "transfer": moved,
    }
    rows = sum(batch.transfers.rows for batch in batches)
    assert rows == sum(
        out for (kind, _), (_, out, _) in _sums(batches).items() if kind == "transfer"
    )


def test_connections_end_by_a_close_or_a_failed_connect() -> None:
    records = connections(
        connection(1, E.CLOSED),
        connection(2, E.CONNECTED, error=111),
        connection(3, E.CONNECTED),
        connection(4, E.ACCEPTED),
        connection(5, E.ANNOUNCED, state=7),
    )
    assert finished(records).tolist() == [True, True, False, False, False]


def test_kernel_counters_become_ledger_rows_that_close() -> None:
    counts = np.zeros((len(Kind), len(COUNTS.names or ())), np.uint64)
    counts[Kind.TRANSFER] = (10, 1, 2, 3)
    ledger = Ledger()
    ledger.add(kernel_entries(counts))
    assert ledger.open_counts() == {}
    assert ledger.drain() == [
        Entry("kernel", "transfer", "", 16, 10, 0),
        Entry("kernel", "transfer", "map_full", 0, 0, 2),
        Entry("kernel", "transfer", "ring_full", 0, 0, 1),
        Entry("kernel", "transfer", "unannounced", 0, 0, 3),
    ]


def test_the_kernel_speaks_of_the_kinds_and_reasons_of_the_ledger() -> None:
    assert {kind.name.lower() for kind in Kind} <= set(KINDS)
    assert set((COUNTS.names or ())[1:]) <= set(REASONS)


@pytest.mark.parametrize("stage", ["kernel", "collector"])
def test_what_kafka_did_not_take_is_told_later(stage: Any) -> None:
    ledger = Ledger()
    ledger.passed(stage, "transfer", entered=9, left=7)
    ledger.dropped(stage, "transfer", "malformed", 2)
    ledger.passed("collector", "connection", entered=4, left=4)
    entries = as_undelivered(ledger.drain())
    again = Ledger()
    again.add(entries)
    assert again.open_counts() == {}
    lost = [entry for entry in entries if entry.reason == "undelivered"]
    if stage == "kernel":
        assert lost == []
    else:
        assert lost == [Entry("collector", "transfer", "undelivered", 0, 0, 7)]
    assert Entry("collector", "connection", "", 4, 4, 0) in entries
