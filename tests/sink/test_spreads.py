"""Percentiles from the database are those of the raw values, however they travelled there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from schemas.catalogue import DISTRIBUTIONS, SCOPES
from schemas.histograms import bucket_bounds, bucket_of, buckets
from schemas.metrics import Histogram, decode_block, encode_block
from sink.batches import block_inserts
from sink.rollup import Roller
from tests.sink.blocks import MINUTE_S, histogram, service_block, service_table
from tests.sink.test_writer import attempt

pytestmark = pytest.mark.clickhouse

HOUR = 3600
SERVICES = 3
MINUTES = (0, 1, 59, 61, 23 * 60)
STAGES = ("read_in_queue", "write_ip", "write_tcp")
PARTS = {"p50_ns": 50, "p90_ns": 90, "p99_ns": 99, "p999_ns": 99.9}


def values_of(rng, stage, count):
    # Unlike shapes: one peak over decades, mostly 0, and two far apart.
    if stage == "read_in_queue":
        return rng.lognormal(10, 2, count).astype("<u8")
    if stage == "write_ip":
        return rng.lognormal(7, 1, count).astype("<u8") * (rng.random(count) < 0.4)
    return rng.integers(900, 1100, count) + 10**9 * (rng.random(count) < 0.02)


def filled_block(base, minute_s, rng, raw, *, part=0, parts=1):
    """A block of events, some service without any; adds them to ``raw``.

    Of two parts each lacks a stage that the other has.
    """
    names = [""]
    table = service_table(SERVICES, names)
    for stage in STAGES if parts == 1 else STAGES[part : part + 2]:
        row = np.sort(rng.integers(0, SERVICES - (stage == "write_tcp"), 400))
        values = values_of(rng, stage, len(row))
        table.histograms[stage] = histogram(row, values)
        for i in range(SERVICES):
            raw.setdefault((minute_s, f"service-{i}", stage), []).append(values[row == i])
    block = service_block(base, table, names, minute_s=minute_s, part=part, parts=parts)
    return decode_block(encode_block(block))


def check(store, suffix, raw, length):
    """Compare a view with numpy on the raw values of each period."""
    wanted = {}
    for (minute_s, service, stage), arrays in raw.items():
        key = (minute_s // length * length, service, stage)
        wanted[key] = np.concatenate((wanted.get(key, np.zeros(0, "<u8")), *arrays))
    names = ", ".join(("count", *PARTS))
    rows = store.rows(
        f"SELECT toUnixTimestamp(time), service, stage, {names} FROM podwire.service_waits{suffix}"
    )
    periods = {start for start, _, _ in wanted}
    assert len(rows) == len(periods) * SERVICES * len(DISTRIBUTIONS)
    for start, service, stage, count, *found in rows:
        values = wanted.get((start, service, stage), np.zeros(0))
        assert count == len(values)
        if not count:
            assert found == [None] * len(PARTS)
            continue
        for part, one in zip(PARTS.values(), found, strict=True):
            true = np.percentile(values, part, method="inverted_cdf")
            low, high = bucket_bounds(int(bucket_of(np.array([true]))[0]))
            assert low <= one <= high, (start, service, stage, part)
            assert abs(one - true) <= high - low if true else one == 0
    assert sum(row[3] > 0 for row in rows) == sum(len(values) > 0 for values in wanted.values())


def test_percentiles_are_those_of_the_raw_values(store, writer, clock):
    rng = np.random.default_rng(5)
    raw = {}
    blocks = [
        filled_block(base, MINUTE_S + minute * 60, rng, raw) for base, minute in enumerate(MINUTES)
    ]
    late = [filled_block(90, MINUTE_S, rng, raw, part=part, parts=2) for part in range(2)]
    for offset, one in enumerate(blocks):
        assert writer.write(attempt(one, offset=offset)) == "inserted"
    assert writer.write(attempt(*late, offset=90)) == "inserted"
    # Each of them again: another copy, and the same inserts after a lost answer.
    for offset, one in enumerate(blocks, 100):
        assert writer.write(attempt(one, offset=offset)) == "duplicate"
        for insert in block_inserts([one], "epoch"):
            store.insert(insert)
    periods = (("", 60), ("_hourly", HOUR), ("_daily", 24 * HOUR))
    for suffix, length in periods:
        check(store, suffix, raw, length)

    clock.now_unix_ns = (MINUTE_S + 30 * HOUR) * 1_000_000_000
    roller = Roller(store, clock, delay_s=300, retention_days=14)
    assert [roller.run_pass(), roller.run_pass()] == [0, 4]  # hours 0, 1, 23 and the day
    assert store.rows(
        "SELECT sum(mapValues(read_in_queue_histogram)[1]) > 0 "
        "FROM podwire_store.service_metrics_daily"
    ) == [(1,)]
    store.command("OPTIMIZE TABLE podwire_store.service_metrics FINAL")
    for suffix, length in periods:
        check(store, suffix, raw, length)
    # What is rolled up needs the minutes no more.
    for table in ("service_metrics", "service_metrics_hourly"):
        store.command(f"TRUNCATE TABLE podwire_store.{table}")
    check(store, "_daily", raw, 24 * HOUR)


def test_buckets_are_those_of_the_contract(store, writer):
    names = [""]
    table = service_table(1, names)
    for stage, bits in (("read_ip", 2), ("http_duration", 4)):
        every = np.arange(buckets(bits), dtype="<u4")
        counts = every.astype("<u8") + 1
        table.histograms[stage] = Histogram(np.zeros_like(every), every, counts)
    writer.write(attempt(service_block(0, table, names)))
    rows = store.rows(
        "SELECT direction, stage, low_ns, high_ns, count FROM podwire.service_wait_buckets "
        "ORDER BY count"
    )
    assert len(rows) == buckets(2)
    for bucket, (direction, stage, low, high, count) in enumerate(rows):
        assert (direction, stage, count) == ("read", "read_ip", bucket + 1)
        assert (math.ceil(low), math.ceil(high)) == bucket_bounds(bucket)
    rows = store.rows("SELECT low_ns, high_ns, count FROM podwire.service_latency_buckets")
    assert len(rows) == buckets(4)
    for low, high, count in rows:
        assert (math.ceil(low), math.ceil(high)) == bucket_bounds(count - 1, 4)


def test_percentiles_of_any_rows_come_from_their_buckets(store, writer):
    rng = np.random.default_rng(6)
    raw = {}
    for base, minute in enumerate((0, 1, 2)):
        one = filled_block(base, MINUTE_S + minute * 60, rng, raw)
        writer.write(attempt(one, offset=base))
    ((found,),) = store.rows(
        "SELECT quantileExactWeighted(0.9)(low_ns, count) FROM podwire.service_wait_buckets "
        f"WHERE stage = 'read_in_queue' AND time > toDateTime({MINUTE_S}, 'UTC')"
    )
    chosen = [
        values
        for (minute_s, _, stage), arrays in raw.items()
        for values in arrays
        if stage == "read_in_queue" and minute_s > MINUTE_S
    ]
    true = np.percentile(np.concatenate(chosen), 90, method="inverted_cdf")
    assert found == bucket_bounds(int(bucket_of(np.array([true]))[0]))[0]


def test_means_are_per_event_that_measured(store, writer):
    # The second service measured some figures of a stage; the third has a sum without a call that
    # measured it, as packets after a connection's last call leave it, which divides by no zero.
    names = [""]
    table = service_table(3, names)
    rows = {
        "write_l3_duration": ([900, 900, 0], [3, 3, 0]),
        "write_netfilter_duration": ([100, 100, 0], [2, 2, 0]),
        "resolve_mac_duration": ([30, 0, 0], [3, 0, 0]),
        "write_l2_duration": ([90, 90, 0], [3, 3, 0]),
        "read_duration": ([0, 500, 0], [0, 5, 0]),
        "read_call_duration": ([0, 400, 700], [0, 5, 0]),
        "read_unattributed_duration": ([0, 100, 9], [0, 6, 0]),
        "write_duration": ([500, 500, 0], [5, 5, 0]),
        "write_unattributed_duration": ([100, 100, 0], [5, 4, 0]),
    }
    for name, (figures, measured) in rows.items():
        table.figures[name] = np.array(figures, "<u8")
        table.measured[name] = np.array(measured, "<u8")
    writer.write(attempt(service_block(0, table, names)))
    for suffix in ("", "_hourly", "_daily"):
        assert store.rows(
            f"SELECT mean_ns, count, p50_ns FROM podwire.service_waits{suffix} "
            "WHERE stage = 'write_ip' ORDER BY service"
        ) == [(300 - 50 - 10 - 30, 0, None), (None, 0, None), (None, 0, None)]
    assert store.rows(
        "SELECT read_call_duration_avg, read_attributed_ratio, write_attributed_ratio "
        "FROM podwire.service_overview ORDER BY service"
    ) == [(None, None, 0.8), (80, 0.8, None), (None, None, None)]
    assert store.rows(
        "SELECT mean_ns FROM podwire.service_waits WHERE stage = 'read_call' ORDER BY service"
    ) == [(None,), (80,), (None,)]


def test_every_stage_is_a_distribution(store, writer):
    names = [""]
    table = service_table(1, names)
    writer.write(attempt(service_block(0, table, names)))
    rows = store.rows("SELECT direction, stage FROM podwire.service_waits")
    assert rows == [(one.direction, one.name) for one in DISTRIBUTIONS]
    assert store.rows("SELECT count() FROM podwire.service_wait_buckets") == [(0,)]


SHARES = {"p50_ns": 0.5, "p90_ns": 0.9, "p95_ns": 0.95, "p99_ns": 0.99, "p999_ns": 0.999}


def nearest_rank(values, share):
    """The least value that this share of the values does not exceed, in whole numbers."""
    rank = -(-len(values) * round(share * 1000) // 1000)
    return int(np.sort(values)[max(rank, 1) - 1])


def adversarial(rng):
    """Latencies that a wrong choice inside a bucket, or between two, would show on."""
    edges = np.array([bucket_bounds(bucket, 4) for bucket in range(1, buckets(4))], dtype=object)
    whole = [(low, high) for low, high in edges if low < high < 1 << 57]
    yield "lowest of a bucket", [low for low, _ in whole]
    yield "highest of a bucket", [high - 1 for _, high in whole]
    for low, high in rng.permutation(np.array(whole, dtype=object))[:8]:
        yield f"all at {low}", [low] * 999
        yield f"all at the end of {high}", [high - 1] * 999
        yield "the tail beyond the next power", [low] * 990 + [16 * high] * 10
        yield "one short of the percentile", [low] * 989 + [2**61] * 11
    yield "zeros and the longest", [0] * 950 + [2**61] * 50
    yield "zeros alone", [0] * 7
    yield "small whole numbers", list(range(64))
    yield "one call", [123_456_789]
    yield "a thousand and one", [1] * 1000 + [2**40]
    yield "log-normal", rng.lognormal(16, 3, 5000).astype("<u8").tolist()
    yield "pareto", (1e6 * (1 + rng.pareto(0.6, 5000))).astype("<u8").tolist()
    yield "two far apart", [10**6 + i for i in range(500)] + [10**10 + i for i in range(500)]


def calls_block(base, minute_s, calls):
    """A block with a service of each list of latencies."""
    names = [""]
    table = service_table(len(calls), names)
    row = np.repeat(np.arange(len(calls)), [len(one) for one in calls])
    flat = np.array([value for one in calls for value in one], "<u8")
    table.histograms["http_duration"] = histogram(row, flat, 4)
    sums = np.array([sum(one) & (1 << 64) - 1 for one in calls], "<u8")
    counts = np.array([len(one) for one in calls], "<u8")
    table.figures |= {"http_duration": sums, "http_call_count": counts}
    table.measured |= {"http_duration": counts, "http_call_count": counts}
    return service_block(base, table, names, minute_s=minute_s)


def test_latency_is_within_5_percent_whatever_its_distribution(store, writer, clock):
    rng = np.random.default_rng(7)
    cases = [values for _, values in adversarial(rng)]
    # Each is spread over three minutes of two hours, in no order, and one of them comes late.
    parts = [np.array_split(rng.permutation(np.array(v, dtype="<u8")), 4) for v in cases]
    minutes = (MINUTE_S, MINUTE_S + 60, MINUTE_S + HOUR, MINUTE_S)
    for number, minute_s in enumerate(minutes):
        calls = [one[number].tolist() for one in parts]
        assert writer.write(attempt(calls_block(number, minute_s, calls), offset=number))

    def check_latency(suffix, length):
        wanted = {}
        for number, minute_s in enumerate(minutes):
            for index, one in enumerate(parts):
                key = (minute_s // length * length, f"service-{index}")
                wanted.setdefault(key, []).extend(one[number].tolist())
        wanted = {key: values for key, values in wanted.items() if values}
        rows = store.rows(
            f"SELECT toUnixTimestamp(time), service, count, {', '.join(SHARES)} "
            f"FROM podwire.service_latency{suffix}"
        )
        assert {row[:2] for row in rows} == set(wanted)
        for start, service, count, *found in rows:
            values = wanted[start, service]
            assert count == len(values)
            for share, one in zip(SHARES.values(), found, strict=True):
                true = nearest_rank(values, share)
                assert abs(one - true) <= 0.05 * true, (service, share, one, true)

    periods = (("", 60), ("_hourly", HOUR), ("_daily", 24 * HOUR))
    for suffix, length in periods:
        check_latency(suffix, length)
    clock.now_unix_ns = (MINUTE_S + 30 * HOUR) * 1_000_000_000
    roller = Roller(store, clock, delay_s=300, retention_days=14)
    assert [roller.run_pass(), roller.run_pass()] == [0, 3]
    for suffix, length in periods:
        check_latency(suffix, length)
    # Over any rows, as the documentation has it: from the buckets, by their middle.
    chosen = np.concatenate([one[2] for one in parts])
    asked = ", ".join(map(str, SHARES.values()))
    ((found,),) = store.rows(
        f"SELECT quantilesExactWeighted({asked})(value_ns, count) "
        f"FROM podwire.service_latency_buckets WHERE time >= toDateTime({MINUTE_S + 60}, 'UTC')"
    )
    for share, one in zip(SHARES.values(), found, strict=True):
        true = nearest_rank(chosen, share)
        assert abs(one - true) <= 0.05 * true, (share, one, true)


def test_every_scope_has_its_latency(store, writer):
    for scope in SCOPES:
        for suffix in ("", "_hourly", "_daily"):
            assert store.rows(f"SELECT count() FROM podwire.{scope.name}_latency{suffix}") == [(0,)]
        assert store.rows(f"SELECT count() FROM podwire.{scope.name}_latency_buckets") == [(0,)]
    writer.write(attempt(calls_block(0, MINUTE_S, [[10**9, 3 * 10**9], [5]])))
    assert store.rows(
        "SELECT service, count, mean_ns FROM podwire.service_latency ORDER BY service"
    ) == [("service-0", 2, 2e9), ("service-1", 1, 5.0)]
    assert store.rows("SELECT count() FROM podwire.service_waits WHERE count > 0") == [(0,)]


def test_overviews_tell_of_calls(store, writer):
    # Ten calls in three services: seven answered, one of them with 500; then none; then no HTTP.
    names = [""]
    table = service_table(3, names)
    latencies = np.array([1, 10**6, 499 * 10**6, 600 * 10**6, 10**9, 19 * 10**8, 3 * 10**9], "<u8")
    table.histograms["http_duration"] = histogram(np.zeros(7, int), latencies, 4)
    figures = {
        "http_call_count": ([10, 4, 0], [10, 4, 0]),
        "http_duration": ([int(latencies.sum()), 0, 0], [7, 0, 0]),
        "http_success_count": ([6, 0, 0], [10, 4, 0]),
        "http_aborted_count": ([1, 0, 0], [10, 4, 0]),
        "http_unanswered_count": ([2, 4, 0], [10, 4, 0]),
        "http_status_5xx_count": ([1, 0, 0], [10, 4, 0]),
        "http_request_body_size": ([900, 0, 0], [9, 0, 0]),
        "grpc_call_count": ([4, 0, 0], [4, 0, 0]),
        "grpc_error_count": ([1, 0, 0], [4, 0, 0]),
    }
    for name, (values, measured) in figures.items():
        table.figures[name] = np.array(values, "<u8")
        table.measured[name] = np.array(measured, "<u8")
    writer.write(attempt(service_block(0, table, names)))
    rows = store.rows(
        "SELECT http_calls_per_second, http_success_ratio, round(http_error_ratio, 6), "
        "http_4xx_ratio, http_5xx_ratio, http_aborted_ratio, http_unanswered_ratio, http_apdex, "
        "http_duration_avg, http_request_body_size_avg, http_response_body_size_avg, "
        "grpc_error_ratio FROM podwire.service_overview ORDER BY service"
    )
    assert rows[0] == (
        10 / 60, 0.6, 0.4, None, 0.1, 0.1, 0.2, (3 + 3 / 2) / 10, latencies.sum() / 7, 100, None,
        0.25,
    )  # fmt: skip
    assert rows[1] == (4 / 60, 0, 1, None, 0, 0, 1, 0, None, None, None, None)
    assert rows[2] == (None,) * 12
