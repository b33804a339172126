"""Hours and days are exact at every moment: before, during and after a run."""

from __future__ import annotations

import numpy as np
import pytest

from sink.rollup import Roller
from sink.tables import ROLLED
from tests.sink.blocks import MINUTE_S, block, service_block, service_table, total
from tests.sink.test_writer import attempt

pytestmark = pytest.mark.clickhouse

HOUR = 3600


@pytest.fixture
def roller(store, clock):
    clock.now_unix_ns = (MINUTE_S + 30 * HOUR) * 1_000_000_000
    return Roller(store, clock, delay_s=300, retention_days=14)


def sums(store, suffix):
    rows = store.rows(
        f"SELECT toUnixTimestamp(time), sum(connect_count), sum(read_bytes) "
        f"FROM podwire.service_relation_metrics{suffix} GROUP BY time ORDER BY time"
    )
    return {row[0]: row[1:] for row in rows}


def wanted(blocks, length):
    result = {}
    for one in blocks:
        start = one.identity.minute_s // length * length
        before = result.get(start, (0, 0))
        result[start] = (before[0] + total(one), before[1] + total(one, "read_bytes"))
    return result


def test_hours_and_days_equal_their_minutes_all_the_time(store, writer, roller):
    blocks = [
        block(i, minute_s=MINUTE_S + minute * 60, rows=50)
        for i, minute in enumerate([0, 1, 59, 60, 61, 24 * 60 - 1, 24 * 60, 29 * 60])
    ]
    for offset, one in enumerate(blocks):
        writer.write(attempt(one, offset=offset))
    assert sums(store, "_hourly") == wanted(blocks, HOUR)
    assert sums(store, "_daily") == wanted(blocks, 24 * HOUR)
    assert roller.run_pass() == 0  # what arrives now may go on arriving
    # Hours 0, 1, 23 and 24, and the first day; hour 29 ended less than five minutes ago.
    assert roller.run_pass() == 5
    assert store.rows("SELECT count() FROM podwire_store.service_relation_metrics_hourly")[0][0] > 0
    assert sums(store, "_hourly") == wanted(blocks, HOUR)
    assert sums(store, "_daily") == wanted(blocks, 24 * HOUR)

    late = block(90, minute_s=MINUTE_S + 60, rows=50)
    writer.write(attempt(late, offset=90))
    blocks.append(late)
    assert sums(store, "_hourly") == wanted(blocks, HOUR)
    assert sums(store, "_daily") == wanted(blocks, 24 * HOUR)
    assert roller.run_pass() == 0
    assert roller.run_pass() == 2
    assert sums(store, "_hourly") == wanted(blocks, HOUR)
    assert sums(store, "_daily") == wanted(blocks, 24 * HOUR)
    assert roller.run_pass() == 0
    assert roller.run_pass() == 0

    # The minutes go, the hours and days stay.
    for table in ("service_relation_metrics", "blocks"):
        store.command(f"TRUNCATE TABLE podwire_store.{table}")
    rolled = [one for one in blocks if one.identity.minute_s < MINUTE_S + 29 * HOUR]
    assert sums(store, "_hourly") == wanted(rolled, HOUR)
    first_day = [one for one in blocks if one.identity.minute_s < MINUTE_S + 24 * HOUR]
    assert sums(store, "_daily")[MINUTE_S] == wanted(first_day, 24 * HOUR)[MINUTE_S]


def test_a_run_that_died_is_not_read(store, writer, roller):
    one = block(0, rows=50)
    writer.write(attempt(one))
    roller.run_pass()
    roller.run_pass()
    store.command(f"TRUNCATE TABLE podwire_store.{ROLLED.name}")
    assert sums(store, "_hourly") == wanted([one], HOUR)
    roller.run_pass()
    roller._clock.advance(1)
    roller.run_pass()
    assert sums(store, "_hourly") == wanted([one], HOUR)
    assert sums(store, "_daily") == wanted([one], 24 * HOUR)


def test_unmeasured_stays_null(store, writer, roller):
    writer.write(attempt(block(0)))
    for _ in range(2):
        roller.run_pass()
    for suffix in ("_hourly", "_daily"):
        assert store.rows(
            "SELECT read_count, read_duration, read_duration_measured_count "
            f"FROM podwire.instance_metrics{suffix}"
        ) == [(7, None, 0)]


def test_figures_without_a_call_are_in_every_period(store, writer, roller):
    """A connection's last packets may come in a minute in which nobody read or wrote."""
    for base, (packets, calls) in enumerate(((5, 2), (3, 0))):
        names = [""]
        table = service_table(1, names)
        for name in ("write_packet_count", "write_l4_duration", "write_l3_duration"):
            table.figures[name] = np.array([packets], "<u8")
            table.measured[name] = np.array([calls], "<u8")
        one = service_block(base, table, names, minute_s=MINUTE_S + 60 * base)
        writer.write(attempt(one, offset=base))
    minutes = store.rows(
        "SELECT write_packet_count, write_packet_count_measured_count, write_lost_packet_count "
        "FROM podwire.service_metrics ORDER BY time"
    )
    assert minutes == [(5, 2, None), (3, 0, None)]
    for _ in range(3):  # before, between and after the runs
        for suffix in ("_hourly", "_daily"):
            assert store.rows(
                "SELECT write_packet_count, write_packet_count_measured_count "
                f"FROM podwire.service_metrics{suffix}"
            ) == [(8, 2)]
        roller.run_pass()
    means = "SELECT mean_ns FROM podwire.service_waits WHERE stage = 'write_tcp' ORDER BY time"
    assert store.rows(means) == [(0,), (None,)]
    averages = "SELECT write_l4_duration_avg FROM podwire.service_overview ORDER BY time"
    assert store.rows(averages) == [(2.5,), (None,)]


def test_hours_whose_minutes_begin_to_go_are_left_alone(store, writer, clock):
    writer.write(attempt(block(0)))
    clock.now_unix_ns = (MINUTE_S + 14 * 24 * HOUR) * 1_000_000_000
    roller = Roller(store, clock, delay_s=0, retention_days=14)
    assert [roller.run_pass() for _ in range(3)] == [0, 0, 0]
