from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from collector.abi import (
    COUNTS,
    TRANSFER_RECORD,
    Call,
    ConnectionEvent,
    Kind,
    MeasuredFlag,
    ReadFigure,
    WriteFigure,
)
from collector.accounts import as_undelivered, kernel_entries
from collector.batches import BatchBuilder, Limits, Run, finished
from collector.connections import GRACE_SWEEPS, ConnectionTable
from collector.masks import COUNTERS
from collector.names import NameTable
from schemas.clock import ClockAnchor
from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.events import (
    CALL_NONE,
    FIGURE_WIDTH,
    READ_FIGURES,
    WRITE_FIGURES,
    Direction,
    EventBatch,
    OpenKind,
    decode_batch,
    encode_batch,
)
from schemas.ledger import KINDS, REASONS, Entry, Ledger
from schemas.topics import MAX_MESSAGE_BYTES
from tests.collector.records import connection, connections, drop, drops, transfer, transfers

E = ConnectionEvent
ANCHOR = ClockAnchor(monotonic_ns=0, unix_ns=1_700_000_000_000_000_000)
NOW = ANCHOR.unix_ns


READ, WRITE = Direction.READ, Direction.WRITE
BOTH = MeasuredFlag.MEASURED_COUNTERS | MeasuredFlag.MEASURED_STAGES
EVERY_FIGURE = frozenset((*READ_FIGURES, *WRITE_FIGURES))


def _builder(measured: frozenset[str] = COUNTERS, **limits: int) -> BatchBuilder:
    table, names = ConnectionTable(), NameTable()
    run = Run("node", "boot", "run", "c")
    return BatchBuilder(run, table, names, Limits(**limits), measured=measured)


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
    options.setdefault("drops", drops())
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


@settings(max_examples=150)
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
    counts[Kind.TRANSFER] = (10, 1, 2, 3, 4, 5)
    ledger = Ledger()
    ledger.add(kernel_entries(counts))
    assert ledger.open_counts() == {}
    assert ledger.drain() == [
        Entry("kernel", "transfer", "", 25, 10, 0),
        Entry("kernel", "transfer", "excluded", 0, 0, 5),
        Entry("kernel", "transfer", "map_full", 0, 0, 2),
        Entry("kernel", "transfer", "ring_full", 0, 0, 1),
        Entry("kernel", "transfer", "unannounced", 0, 0, 3),
        Entry("kernel", "transfer", "unpaired", 0, 0, 4),
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


def test_the_kernel_numbers_the_figures_as_the_events_do() -> None:
    assert tuple(figure.name.lower() for figure in ReadFigure) == READ_FIGURES
    assert tuple(figure.name.lower() for figure in WriteFigure) == WRITE_FIGURES
    assert [*ReadFigure, *WriteFigure] == [*range(len(READ_FIGURES)), *range(len(WRITE_FIGURES))]
    assert TRANSFER_RECORD["figures"].shape == (FIGURE_WIDTH,)
    assert Call.NONE == CALL_NONE
    assert COUNTERS < EVERY_FIGURE


def _figures(batch: EventBatch) -> list[dict[str, int]]:
    """What each row measured, by name; places that belong to no figure must be unmeasured."""
    rows = []
    for direction, figures in zip(
        batch.transfers.direction.tolist(), batch.transfers.figures.tolist(), strict=True
    ):
        names = READ_FIGURES if direction == READ else WRITE_FIGURES
        assert set(figures[len(names) :]) <= {int(UNMEASURED_U32)}
        named = dict(zip(names, figures, strict=False))
        rows.append({name: v for name, v in named.items() if v != int(UNMEASURED_U32)})
    return rows


PLACES = np.arange(100, 100 + FIGURE_WIDTH)
"""A different value in each place."""


def _expected(names: tuple[str, ...], *, without: frozenset[str] = frozenset()) -> dict[str, int]:
    return {n: int(v) for n, v in zip(names, PLACES, strict=False) if n not in without}


def test_a_record_has_the_figures_of_its_flags() -> None:
    rows = [
        transfer(1, direction=direction, measured=flags, figures=PLACES)
        for direction in (READ, WRITE)
        for flags in (0, 1, 2, 3)
    ]
    (batch,) = _build(_builder(EVERY_FIGURE), [connection(1, E.ANNOUNCED)], rows)
    expected = []
    for names in (READ_FIGURES, WRITE_FIGURES):
        stages = frozenset(names) - COUNTERS
        expected += [
            {},
            _expected(names, without=stages),
            _expected(names, without=COUNTERS),
            _expected(names),
        ]
    assert _figures(batch) == expected


def test_figures_without_a_hook_of_ipv6_are_not_measured_there() -> None:
    gone = frozenset({"read_l3_duration", "write_l3_duration"})
    builder = _builder(EVERY_FIGURE)
    builder.measured_ipv6 = EVERY_FIGURE - gone
    builder.__post_init__()
    known = [connection(1, E.ANNOUNCED, family=6), connection(2, E.ANNOUNCED, family=4)]
    rows = [
        transfer(number, direction=d, measured=BOTH, figures=PLACES)
        for number in (1, 2)
        for d in (READ, WRITE)
    ]
    (batch,) = _build(builder, known, rows)
    assert _figures(batch) == [
        _expected(READ_FIGURES, without=gone),
        _expected(WRITE_FIGURES, without=gone),
        _expected(READ_FIGURES),
        _expected(WRITE_FIGURES),
    ]


def test_figures_without_a_hook_on_this_node_are_not_measured() -> None:
    gone = frozenset({"read_netfilter_count", "write_l4_duration", "write_packet_count"})
    rows = [transfer(1, direction=d, measured=BOTH, figures=PLACES) for d in (READ, WRITE)]
    (batch,) = _build(_builder(EVERY_FIGURE - gone), [connection(1, E.ANNOUNCED)], rows)
    assert _figures(batch) == [
        _expected(READ_FIGURES, without=gone),
        _expected(WRITE_FIGURES, without=gone),
    ]


def test_a_node_measures_the_counters_unless_told_otherwise() -> None:
    table = ConnectionTable()
    builder = BatchBuilder(Run("node", "boot", "run"), table, NameTable())
    rows = [transfer(1, direction=d, measured=BOTH, figures=PLACES) for d in (READ, WRITE)]
    (batch,) = _build(builder, [connection(1, E.ANNOUNCED)], rows)
    assert set().union(*_figures(batch)) == COUNTERS


@pytest.mark.parametrize(
    ("measured", "flags"),
    [(EVERY_FIGURE, 0), (frozenset(), BOTH), (frozenset({"write_l4_duration"}), 1)],
)
def test_the_column_is_left_out_when_no_row_measured_anything(
    measured: frozenset[str], flags: int
) -> None:
    builder = _builder(measured)
    rows = [transfer(1, measured=flags, figures=PLACES), transfer(1, size=9, measured=flags)]
    records = connections(connection(1, E.ANNOUNCED))
    builder.table.apply(records)
    (batch,) = builder.build(records, transfers(*rows), ANCHOR, NOW, Ledger())
    assert batch.transfers.figures.shape == (0, FIGURE_WIDTH)
    assert batch.transfers.figures.dtype == np.dtype("<u4")
    decoded = decode_batch(encode_batch(batch))
    assert _figures(decoded) == [{}, {}]
    assert decoded.transfers.size.tolist() == [10, 9]


def test_a_zero_is_measured() -> None:
    row = transfer(1, direction=WRITE, measured=BOTH)
    (batch,) = _build(_builder(EVERY_FIGURE), [connection(1, E.ANNOUNCED)], [row])
    assert _figures(batch) == [dict.fromkeys(WRITE_FIGURES, 0)]


def test_figures_stay_with_their_rows_when_batches_part_and_rows_wait() -> None:
    builder = _builder(EVERY_FIGURE, events=3)
    rows = [
        transfer(1 + i % 2, size=i, measured=BOTH if i % 3 else 0, figures=PLACES + i)
        for i in range(1, 12)
    ]
    batches = _build(builder, [connection(1, E.ANNOUNCED)], rows)
    batches += _build(builder, [connection(2, E.ANNOUNCED)], [])
    seen = 0
    for batch in batches:
        for size, figures in zip(batch.transfers.size.tolist(), _figures(batch), strict=True):
            seen += 1
            expected = {name: value + size for name, value in _expected(READ_FIGURES).items()}
            assert figures == (expected if size % 3 else {})
    assert seen == 11


def test_messages_with_figures_stay_below_the_limit_too() -> None:
    builder = _builder(events=1_000_000)
    count = 150_000
    records = connections(connection(1, E.ANNOUNCED))
    builder.table.apply(records)
    moved = np.repeat(transfers(transfer(1, measured=1)), count)
    batches = builder.build(records, moved, ANCHOR, NOW, Ledger())
    assert len(batches) > 1
    assert max(len(encode_batch(batch)) for batch in batches) <= MAX_MESSAGE_BYTES
    assert sum(len(batch.transfers.figures) for batch in batches) == count
    moved["measured"] = 0
    (batch,) = builder.build(records[:0], moved, ANCHOR, NOW, Ledger())
    assert len(encode_batch(batch)) <= MAX_MESSAGE_BYTES


def _leftover(connection_id: int, **values: Any) -> dict[str, Any]:
    given = {"call": CALL_NONE, "size": 0, "duration_ns": int(UNMEASURED_U64), "measured": BOTH}
    return transfer(connection_id, **{**given, **values})


def test_what_comes_after_the_close_finds_its_connection() -> None:
    builder = _builder(EVERY_FIGURE)
    records = connections(connection(1, E.ANNOUNCED), connection(1, E.CLOSED))
    builder.table.apply(records)
    builder.build(records, transfers(), ANCHOR, NOW, Ledger())
    builder.table.retire(records["connection_id"][finished(records)])
    for _ in range(GRACE_SWEEPS):
        builder.table.sweep()
    (batch,) = _build(builder, [], [_leftover(1, direction=WRITE, figures=PLACES)])
    assert batch.connections.id.tolist() == [1]
    assert batch.transfers.call.tolist() == [CALL_NONE]
    assert batch.transfers.size.tolist() == [0]
    assert batch.transfers.duration_ns.tolist() == [int(UNMEASURED_U64)]
    assert _figures(batch) == [_expected(WRITE_FIGURES)]
    assert _sums([batch]) == {("transfer", ""): (1, 1, 0)}
    builder.table.sweep()
    late = _build(builder, [], [_leftover(1)]) + _build(builder, [], [])
    assert _sums(late)["transfer", "unknown_connection"] == (0, 0, 1)


def test_no_call_has_neither_bytes_nor_a_duration() -> None:
    rows = [_leftover(1), _leftover(1, size=1), _leftover(1, duration_ns=0), transfer(1, call=15)]
    (batch,) = _build(_builder(), [connection(1, E.ANNOUNCED)], rows)
    assert batch.transfers.call.tolist() == [CALL_NONE, 15]
    assert _sums([batch]) == {
        ("connection", ""): (1, 1, 0),
        ("transfer", ""): (4, 2, 0),
        ("transfer", "malformed"): (0, 0, 2),
    }


_BYTES = st.integers(0, 6).flatmap(
    lambda count: hnp.arrays(np.uint8, count * TRANSFER_RECORD.itemsize)
)


@settings(max_examples=150)
@given(_BYTES, st.frozensets(st.sampled_from(sorted(EVERY_FIGURE))))
def test_any_bytes_of_the_ring_become_rows_or_counted_drops(
    data: Any, measured: frozenset[str]
) -> None:
    moved = data.view(TRANSFER_RECORD)
    count = len(moved)
    moved["connection_id"][::2] = 1
    moved["direction"] %= 4
    builder = _builder(measured)
    records = connections(connection(1, E.ANNOUNCED))
    builder.table.apply(records)
    batches = builder.build(records, moved, ANCHOR, NOW, Ledger(), final=True)
    batches = [decode_batch(encode_batch(batch)) for batch in batches]
    entered, left, _ = _sums(batches).get(("transfer", ""), (0, 0, 0))
    assert entered == count
    assert left == sum(batch.transfers.rows for batch in batches)
    for batch in batches:
        for figures in _figures(batch):
            assert set(figures) <= measured


def test_drops_carry_the_kernels_names_of_their_reasons() -> None:
    builder = _builder()
    builder.reasons = {2: "NOT_SPECIFIED", 40: "NETFILTER_DROP"}
    rows = [drop(1, reason=40, packets=3), drop(2, reason=2), drop(1, reason=0x30001, packets=5)]
    known = [connection(1, E.ANNOUNCED), connection(2, E.ANNOUNCED)]
    (batch,) = _build(builder, known, [], drops=drops(*rows))
    told = batch.drops
    assert [batch.names[place] for place in told.reason.tolist()] == [
        "NETFILTER_DROP",
        "NOT_SPECIFIED",
        str(0x30001),
    ]
    assert told.packets.tolist() == [3, 1, 5]
    assert batch.connections.id[told.connection].tolist() == [1, 2, 1]
    assert batch.header.first_event_ns == batch.header.last_event_ns == NOW + 1_000
    assert _sums([batch])["drop", ""] == (3, 3, 0)


def test_drops_wait_once_for_their_connection() -> None:
    builder = _builder()
    rows = [drop(1, end_ns=500), drop(9, end_ns=400)]
    (batch,) = _build(builder, [], [], drops=drops(*rows), watermark_ns=NOW + 900)
    assert batch.drops.rows == 0
    assert batch.header.watermark_ns == NOW + 399
    (batch,) = _build(builder, [connection(1, E.ANNOUNCED)], [])
    assert batch.drops.rows == 1
    sums = _sums([batch])
    assert sums["drop", ""] == (2, 1, 0)
    assert sums["drop", "unknown_connection"] == (0, 0, 1)
    (batch,) = _build(builder, [], [], drops=drops(drop(1, packets=0), drop(1, reason=0)))
    assert _sums([batch])["drop", "malformed"] == (0, 0, 2)
    (batch,) = _build(builder, [], [], drops=drops(drop(9)), final=True)
    assert _sums([batch])["drop", "unknown_connection"] == (0, 0, 1)


def test_drops_of_a_batch_that_is_cut_keep_their_reasons() -> None:
    builder = _builder(events=2)
    builder.reasons = {number: f"REASON_{number}" for number in range(1, 8)}
    rows = [drop(number, reason=number) for number in range(1, 8)]
    known = [connection(number, E.ANNOUNCED) for number in range(1, 8)]
    batches = _build(builder, known, [], drops=drops(*rows))
    assert len(batches) > 3
    told = {
        (int(batch.connections.id[connection]), batch.names[reason])
        for batch in batches
        for connection, reason in zip(batch.drops.connection, batch.drops.reason, strict=True)
    }
    assert told == {(number, f"REASON_{number}") for number in range(1, 8)}
