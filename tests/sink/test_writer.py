"""A block is stored once and whole, whatever was there before."""

from __future__ import annotations

import pytest

from schemas.errors import FatalError, RetryableError, SinkBackpressure
from sink.batches import block_inserts
from sink.blocks import Attempt
from sink.writer import BlockWriter, Retry
from tests.sink.blocks import MINUTE_S, block, total
from tests.sink.conftest import no_wait

pytestmark = pytest.mark.clickhouse


def attempt(*parts, offset=0):
    from dataclasses import replace

    identity = replace(parts[0].identity, part=0)
    return Attempt(identity, offset, {one.identity.part: one for one in parts})


def stored_sum(store, figure="connect_count"):
    return store.rows(f"SELECT sum({figure}) FROM podwire.service_relation_metrics")[0][0]


def restarted(store, clock):
    writer = BlockWriter(store, Retry(no_wait, 0.01, 0.01), clock, "epoch")
    writer.assign([0])
    return writer


def test_the_sums_are_those_of_the_block(store, writer):
    one = block(3, rows=5000)
    assert writer.write(attempt(one)) == "inserted"
    for figure in ("connect_count", "connect_duration", "read_bytes", "events_seen"):
        assert stored_sum(store, figure) == total(one, figure)


def test_several_parts_are_one_insert(store, writer):
    parts = [block(3, part=i, parts=3, rows=100 + i) for i in range(3)]
    assert writer.write(attempt(*parts)) == "inserted"
    assert stored_sum(store) == sum(total(part) for part in parts)
    assert store.rows("SELECT rows FROM podwire.pipeline_blocks") == [(303 + 3 + 4,)]


def test_late_blocks_of_a_minute_are_summed_to_one_row(store, writer):
    writer.write(attempt(block(3, seed=1)))
    writer.write(attempt(block(9, seed=1), offset=1))
    count, keys = store.rows(
        "SELECT count(), uniqExact(tuple(time, cluster, role, client_service, server_service)) "
        "FROM podwire.service_relation_metrics"
    )[0]
    assert count == keys
    assert stored_sum(store) == 2 * total(block(3, seed=1))


def test_unmeasured_is_null(store, writer):
    writer.write(attempt(block(3)))
    row = store.rows(
        "SELECT read_count, read_duration, read_duration_measured_count "
        "FROM podwire.instance_metrics"
    )
    assert row == [(7, None, 0)]
    row = store.rows("SELECT read_duration_avg, retransmit_ratio FROM podwire.instance_overview")
    assert row == [(None, None)]


def test_copies_and_overlaps_are_refused_and_counted(store, writer, clock):
    assert writer.write(attempt(block(3, end=8))) == "inserted"
    wanted = stored_sum(store)
    assert writer.write(attempt(block(3, end=8))) == "replayed"
    assert writer.write(attempt(block(3, end=8, attempt="b"), offset=4)) == "duplicate"
    assert writer.write(attempt(block(5, end=9), offset=5)) == "overlapping"
    again = restarted(store, clock)
    assert again.write(attempt(block(3, end=8))) == "replayed"
    assert again.write(attempt(block(3, end=8, attempt="b"), offset=4)) == "duplicate"
    assert again.write(attempt(block(5, end=9), offset=5)) == "overlapping"
    assert stored_sum(store) == wanted
    rows = store.rows(
        "SELECT reason, sum(in_count), sum(out_count), sum(dropped_count) "
        "FROM podwire.pipeline_ledger WHERE stage = 'sink' GROUP BY reason ORDER BY reason"
    )
    assert rows == [("", 1, 1, 0), ("duplicate", 2, 0, 2)]
    assert store.rows("SELECT DISTINCT balance FROM podwire.pipeline_ledger_balance") == [(0,)]


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_block_that_is_there_in_part_is_completed(store, clock, done):
    one = block(3)
    for insert in block_inserts([one], "epoch")[:done]:
        store.insert(insert)
    assert restarted(store, clock).write(attempt(one)) == "inserted"
    assert stored_sum(store) == total(one)
    assert store.rows("SELECT sum(read_count) FROM podwire.instance_metrics") == [(7,)]
    assert store.rows(
        "SELECT sum(out_count) FROM podwire.pipeline_ledger WHERE stage = 'streams'"
    ) == [(10,)]


def test_rows_without_their_token_are_not_stored_again(store, clock):
    # As after a kill between writing the rows and the token.
    from dataclasses import replace

    one = block(3)
    for insert in block_inserts([one], "epoch"):
        store.insert(replace(insert, token=f"lost/{insert.token}"))
    restarted(store, clock).write(attempt(one))
    assert stored_sum(store) == total(one)


def test_a_token_without_its_rows_does_not_hide_them(store, clock):
    # As after a kill between writing the token and the rows.
    one = block(3)
    for insert in block_inserts([one], "epoch"):
        store.insert(insert)
        store.command(
            f"ALTER TABLE podwire_store.{insert.table.name} DELETE WHERE 1",
            settings={"mutations_sync": 2},
        )
    assert stored_sum(store) == 0
    restarted(store, clock).write(attempt(one))
    assert stored_sum(store) == total(one)


def test_tokens_alone_stop_a_second_writer(store, writer, clock):
    # Two members that both believe to own the partition, the second sure of itself.
    other = restarted(store, clock)
    other.write(attempt(block(1), offset=0))
    writer.write(attempt(block(2), offset=1))
    both = block(3)
    assert writer.write(attempt(both, offset=2)) == "inserted"
    assert other.write(attempt(both, offset=2)) == "inserted"
    assert stored_sum(store) == sum(total(block(base)) for base in (1, 2, 3))


def test_retry_waits_longer_each_time_and_as_long_as_asked():
    waits = []
    outcomes = [RetryableError("a"), RetryableError("b"), SinkBackpressure("c", 5.0), None]

    def action():
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    Retry(waits.append, 0.1, 1.0)(action)
    assert 0.07 <= waits[0] <= 0.13
    assert 0.14 <= waits[1] <= 0.26
    assert waits[2] >= 3.5


def test_what_will_never_succeed_goes_up():
    def action():
        raise FatalError("no such table")

    with pytest.raises(FatalError):
        Retry(no_wait, 0.1, 1.0)(action)


def test_minutes_of_any_age_are_remembered(store, clock):
    # A recording from last year is replayed today.
    clock.now_unix_ns = (MINUTE_S + 400 * 86400) * 1_000_000_000
    assert restarted(store, clock).write(attempt(block(3))) == "inserted"
    assert restarted(store, clock).write(attempt(block(3, attempt="b"), offset=9)) == "duplicate"
