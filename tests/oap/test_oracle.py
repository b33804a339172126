"""What an OAP computes from the forwarded streams is what podwire's minutes in ClickHouse say.

The same batches of kernel events go through the real stream worker. Its minutes go into the real
engine, its access log through the forwarder's conversion into the analysis of an OAP. Then every
metric of both generations is compared for every entity and minute.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import pytest

from schemas.clock import ManualClock
from schemas.events import READ_FIGURES, WRITE_FIGURES, Role, decode_batch, encode_batch
from schemas.histograms import bucket_bounds
from schemas.metrics import decode_block
from sink.blocks import Attempt
from sink.config import SinkConfig
from sink.ddl import apply_schema
from sink.oap.choices import Choices
from sink.oap.convert import Limits, convert
from sink.oap.metrics import FORMER, LATER, metrics_of
from sink.store import Store
from sink.writer import BlockWriter, Retry
from streams.directory import Directory
from tests.oap.analysis import Analysis, evaluate
from tests.oap.test_metrics import oal
from tests.requirements import require
from tests.streams.build import (
    MINUTE_NS,
    SECOND_NS,
    BatchBuilder,
    endpoint_slice,
    pod,
    service,
)
from tests.streams.fakes import Topics, make_pipeline

pytestmark = pytest.mark.clickhouse

BATCHES = 24
STEP_NS = 7 * SECOND_NS
PATHS = ("/", "/orders/17", "/orders/18", "/stock/a")
REASONS = ("NETFILTER_DROP", "QDISC_DROP", "77")
STATUSES = (101, 200, 200, 200, 204, 302, 404, 429, 500, 503)
CHOICES = Choices(unresolved="name", paths="endpoint")
ENTITY = {
    "service": ("service",),
    "instance": ("service", "instance"),
    "endpoint": ("service", "endpoint"),
    "service_relation": ("client_service", "server_service"),
    "instance_relation": (
        "client_service",
        "client_instance",
        "server_service",
        "server_instance",
    ),
}


def kubernetes():
    """Pods, services and their slices."""
    pods = [pod(f"{name}-1", f"10.0.0.{n}") for n, name in enumerate(("web", "api", "db"), 1)]
    pods.append(pod("api-2", "10.0.0.9", workload_name="api"))
    yield from pods
    for name, members in (("web", pods[:1]), ("api", [pods[1], pods[3]]), ("db", pods[2:3])):
        yield service(name, f"10.96.0.{len(name)}")
        yield endpoint_slice(name, *members)


def cluster():
    directory = Directory()
    for each in kubernetes():
        directory.apply(each)
    return directory


LINKS = (
    # local, remote, role, container
    ("10.0.0.1:{high}", "10.0.0.2:80", Role.CLIENT, "c-web-1"),
    ("10.0.0.1:{high}", "10.0.0.9:80", Role.CLIENT, "c-web-1"),
    ("10.0.0.1:{high}", "203.0.113.7:443", Role.CLIENT, "c-web-1"),
    ("10.0.0.2:80", "10.0.0.1:{high}", Role.SERVER, "c-api-1"),
    ("10.0.0.9:80", "10.0.0.1:{high}", Role.SERVER, "c-api-2"),
    ("10.0.0.2:{high}", "10.0.0.3:5432", Role.CLIENT, "c-api-1"),
    ("10.0.0.9:{high}", "10.0.0.3:5432", Role.CLIENT, "c-api-2"),
    ("10.0.0.3:5432", "10.0.0.2:{high}", Role.UNKNOWN, "c-db-1"),
    ("10.0.0.2:80", "198.51.100.4:{high}", Role.SERVER, "c-api-1"),
)


def traffic(seed):
    """Batches that cross minutes, of everything that happens to connections."""
    chance = random.Random(seed)
    for sequence in range(BATCHES):
        now = MINUTE_NS + sequence * STEP_NS
        builder = BatchBuilder(sequence=sequence, watermark_ns=now + STEP_NS)

        def at(now=now):
            return now + chance.randrange(STEP_NS)

        def maybe(value, unmeasured=(1 << 64) - 1):
            return unmeasured if chance.random() < 0.1 else value

        for link in LINKS:
            local, remote, role, container = link
            high = chance.randrange(30_000, 60_000)
            row = builder.connection(
                local.format(high=high), remote.format(high=high), role, container=container
            )
            client = role == Role.CLIENT
            builder.open(
                row,
                accept=not client,
                at=at(),
                duration=maybe(chance.randrange(10**9)),
                error=111 if client and chance.random() < 0.2 else 0,
            )
            if chance.random() < 0.7:
                builder.close(row, at=at(), duration=maybe(chance.randrange(10**6)))
            last = {}
            for _ in range(chance.randrange(12)):
                write = chance.random() < 0.5
                figures = WRITE_FIGURES if write else READ_FIGURES
                last[write] = moment = at()
                builder.transfer(
                    row,
                    chance.randrange(1, 9000),
                    write=write,
                    at=moment,
                    # Some began in the minute before.
                    duration=maybe(chance.randrange(90 * SECOND_NS)),
                    call=7 if write else 2,
                    # The durations of what did not happen are not there either.
                    **{
                        name: chance.randrange(1, 100_000)
                        for name in figures
                        if name.endswith("_count") or chance.random() < 0.9
                    },
                )
            for write, moment in last.items():
                figures = WRITE_FIGURES if write else READ_FIGURES
                some = chance.sample(figures, 4)
                builder.transfer(
                    row,
                    0,
                    write=write,
                    at=moment,
                    call=14,
                    **{n: chance.randrange(9) for n in some},
                )
                if write and chance.random() < 0.5:
                    for reason in chance.sample(REASONS, 2):
                        builder.drop(row, chance.randrange(1, 9), reason, at=moment)
            for _ in range(chance.randrange(5)):
                builder.request(
                    row,
                    chance.choice(PATHS),
                    method=chance.choice(("GET", "POST", "DELETE")),
                    status=chance.choice(STATUSES),
                    at=at(),
                    duration=round(10 ** chance.uniform(4, 10.3)),
                    sizes=tuple(chance.randrange(1, 5000) for _ in range(4)),
                )
        yield encode_batch(builder.batch())
    end = BatchBuilder(sequence=BATCHES, watermark_ns=now + 600 * SECOND_NS, final=True)
    yield encode_batch(end.batch())


@dataclass
class Both:
    """What the stream worker made of some traffic."""

    blocks: list
    access_log: list


def worked(seed, generation):
    async def main():
        topics = Topics()
        clock = ManualClock(MINUTE_NS)
        names = "method_path" if generation == LATER else "path"
        pipeline = make_pipeline(topics, clock, cluster(), access_log=True, endpoint_name=names)
        for offset, message in enumerate(traffic(seed)):
            await pipeline.receive(0, offset, b"node-a", message, 0.0)
        assert not topics.letters
        return Both(
            [decode_block(data) for data in topics.metrics],
            [decode_batch(data) for _, data in topics.access_log],
        )

    return asyncio.run(main())


def no_wait(seconds):
    raise AssertionError(seconds)


@pytest.fixture(scope="module", params=[FORMER, LATER])
def compared(request, tmp_path_factory):
    """Generation, metrics of the OAP, and an engine with podwire's minutes."""
    require("clickhouse")
    generation = request.param
    both = worked(1, generation)
    analysis = Analysis(former=generation == FORMER)
    for first in range(0, len(both.access_log), 5):
        converted = convert(both.access_log[first : first + 5], CHOICES, Limits(), 1.0)
        assert "no_call" not in converted.dropped
        for stream in converted.streams:
            analysis.stream(stream.messages)
    assert analysis.drop_count == 0
    # The traffic is old; nothing of it shall expire.
    kept = dict.fromkeys(("retention_days", "retention_hourly_days", "retention_daily_days"), 0)
    directory = tmp_path_factory.mktemp("engine")
    store = Store.connect(SinkConfig(url=f"chdb://{directory}/engine", **kept))
    apply_schema(store)
    writer = BlockWriter(store, Retry(no_wait, 1, 1), ManualClock(MINUTE_NS), "epoch")
    writer.assign([0])
    for block in both.blocks:
        attempt = Attempt(block.identity, block.identity.base_offset, {0: block})
        assert writer.write(attempt) == "inserted"
    yield generation, evaluate(oal(generation), analysis.sources), store, analysis
    store.close()


def asked(store, scope, role, expressions):
    """Answers of podwire's table by (minute, entity)."""
    names = ENTITY[scope]
    where = f"WHERE role = '{role}'" if role else ""
    columns = ", ".join(f"({sql})" for sql in expressions)
    sql = (
        f"SELECT toUnixTimestamp(time), {', '.join(names)}, {columns} "
        f"FROM podwire.{scope}_metrics {where} GROUP BY time, {', '.join(names)}"
    )
    size = 1 + len(names)
    return {(row[0], tuple(row[1:size])): row[size:] for row in store.rows(sql)}


def test_sums_means_and_ratios_are_equal(compared):
    generation, wanted, store, _ = compared
    seen = 0
    by = {}
    for metric in metrics_of(generation).values():
        if metric.how in ("sum", "mean", "ratio"):
            by.setdefault((metric.scope, metric.role), []).append(metric)
    for (scope, role), metrics in by.items():
        # A mean of nothing is no row in an OAP.
        expressions = [
            metric.sql if metric.how == "sum" else f"if(sum({metric.per}) > 0, {metric.sql}, NULL)"
            for metric in metrics
        ]
        found = asked(store, scope, role, expressions)
        for place, metric in enumerate(metrics):
            values = wanted[metric.name]
            assert values, metric.name
            for key, row in found.items():
                said, mine = values.get(key), row[place]
                if said is None:
                    assert not mine, (metric.name, key, mine)
                    continue
                seen += 1
                if metric.milliseconds:
                    # The OAP cut each call to milliseconds before it added them up.
                    slack = 1 if metric.how == "mean" else values_count(wanted, metric, key) + 1
                    assert said <= mine <= said + slack, (metric.name, key, said, mine)
                else:
                    assert said == mine, (metric.name, key, said, mine)
            assert set(values) <= set(found), metric.name
    assert seen > 3000


def values_count(wanted, metric, key):
    """How many calls are behind a value."""
    counts = {
        "service_relation": f"kubernetes_service_relation_{metric.role}_http_call_cpm",
        "instance_relation": f"kubernetes_service_instance_relation_{metric.role}_http_call_cpm",
    }
    return wanted[counts[metric.scope]][key]


def test_apdex_and_percentiles_are_within_a_bucket(compared):
    generation, wanted, store, _ = compared
    metrics = [m for m in metrics_of(generation).values() if m.how in ("apdex", "percentile")]
    if generation == FORMER:
        assert metrics == []
        return
    assert len(metrics) == 12
    seen = 0
    for metric in metrics:
        expressions = [
            "sum(http_call_count)",
            "sumMap(http_duration_histogram)",
            "sum(http_success_count)",
        ]
        found = asked(store, metric.scope, metric.role, expressions)
        for key, said in wanted[metric.name].items():
            calls, histogram, success = found[key]
            buckets = sorted((bucket_bounds(b, 4), n) for b, n in dict(histogram).items())
            assert sum(n for _, n in buckets) == calls
            if metric.how == "percentile":
                for rank, value in zip((50, 75, 90, 95, 99), said, strict=True):
                    assert within(value, buckets, round(calls * rank / 100)), (metric.name, key)
            else:
                # podwire's apdex has no word for failed calls that were fast: bounds by success.
                low, high = apdex_bounds(buckets, calls, calls - success)
                assert low - 1 <= said <= high + 1, (metric.name, key, said, low, high)
            seen += 1
    assert seen > 100


def within(value_ms, buckets, roof):
    count = 0
    for (low, high), number in buckets:
        count += number
        if count >= roof:
            return value_ms * 1_000_000 < high and low < (value_ms + 11) * 1_000_000
    return False


def apdex_bounds(buckets, calls, failed):
    """Least and greatest apdex by the histogram, whichever calls the failed ones are."""

    def score(edge):
        satisfied = sum(n for bounds, n in buckets if edge(bounds) <= 501_000_000)
        tolerated = sum(n for bounds, n in buckets if edge(bounds) <= 2_001_000_000) - satisfied
        return satisfied + tolerated / 2

    low = max(score(lambda bounds: bounds[1]) - failed, 0)
    return low * 10000 / calls, score(lambda bounds: bounds[0]) * 10000 / calls


def test_lost_packets_are_told_by_reason_as_podwire_has_them(compared):
    _, _, store, analysis = compared
    rows = store.rows(
        "SELECT toUnixTimestamp(time), role, service, reason, sum(packets) "
        "FROM podwire.service_drops GROUP BY ALL"
    )
    assert {tuple(row[:4]): row[4] for row in rows} == analysis.losses
    assert {reason for *_, reason in analysis.losses} == {"", *REASONS}


def test_local_ends_are_told_with_their_container(compared):
    _, _, _, analysis = compared
    pods = ("web-1", "api-1", "api-2", "db-1")
    assert analysis.containers == {(name, "main") for name in pods}


def test_what_was_compared_is_rich(compared):
    _, wanted, _, _ = compared
    minutes = {minute for values in wanted.values() for minute, _ in values}
    assert len(minutes) == 3
    relations = {entity for values in wanted.values() for _, entity in values if len(entity) == 4}
    assert len(relations) >= 6
    assert {("web.shop", "web-1", "api.shop", "api-2")} <= relations
    assert any("203.0.113.7" in entity for entity in relations)
    # Every metric has a value somewhere that is not 0.
    empty = [name for name, values in wanted.items() if not any(map(bool, values.values()))]
    assert empty == []


def test_same_service_traffic_counts_for_the_service_only_where_that_is_chosen():
    builder = BatchBuilder()
    row = builder.connection("10.0.0.2:40000", "10.0.0.9:80", container="c-api-1")
    builder.transfer(row, 5, duration=10)
    batches = access_log_of(builder)
    for choice, expected in (("drop", (0, 0)), ("send", (0, 1)), ("unknown", (1, 0))):
        converted = convert(batches, Choices(same_service=choice), Limits(), 1.0)
        analysis = Analysis()
        for stream in converted.streams:
            analysis.stream(stream.messages)
        assert (analysis.in_count, analysis.drop_count) == expected
        if choice == "unknown":
            found = evaluate("read_cpm | S | * | type==read | cpm()", analysis.sources)
            ((_, entity),) = found["kubernetes_service_read_cpm"]
            assert entity == ("api.shop",)


def test_an_oap_may_look_up_what_podwire_could_not_name():
    builder = BatchBuilder()
    row = builder.connection("10.0.0.1:40000", "203.0.113.7:443", container="c-web-1")
    builder.transfer(row, 5, duration=10)
    (stream,) = convert(access_log_of(builder), Choices(), Limits(), 1.0).streams
    for lookup, name in (({}, "Unknown"), ({"203.0.113.7": ("bank.out", "b-1")}, "bank.out")):
        analysis = Analysis(lookup=lookup)
        analysis.stream(stream.messages)
        (relation,) = [source for source in analysis.sources if source.scope == "R"]
        assert relation.entity == ("web.shop", name)


def access_log_of(builder):
    async def main():
        topics = Topics()
        pipeline = make_pipeline(topics, ManualClock(MINUTE_NS), cluster(), access_log=True)
        await pipeline.receive(0, 0, b"node-a", encode_batch(builder.batch()), 0.0)
        return [decode_batch(data) for _, data in topics.access_log]

    return asyncio.run(main())
