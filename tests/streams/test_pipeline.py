"""Messages in, minutes out, without a broker."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

from schemas.clock import ManualClock
from schemas.config import KafkaConfig
from schemas.entities import decode_dead_letter, decode_entity
from schemas.errors import ConfigError, FatalError, TransportError
from schemas.events import decode_batch, encode_batch
from schemas.kubernetes import Container
from schemas.metrics import decode_block
from schemas.telemetry import counter, gauge
from streams.app import Worker
from streams.config import StreamsConfig
from streams.directory import Directory
from tests.streams.build import MINUTE_NS, MINUTE_S, SECOND_NS, BatchBuilder, pod
from tests.streams.fakes import Topics, counted_blocks, make_pipeline, totals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from streams.pipeline import Pipeline


def run(
    scenario: Callable[[Pipeline, Topics, ManualClock], Awaitable[None]],
    directory: Directory | None = None,
    **settings: Any,
) -> Topics:
    async def main() -> Topics:
        clock = ManualClock(MINUTE_NS)
        topics = Topics()
        await scenario(make_pipeline(topics, clock, directory, **settings), topics, clock)
        return topics

    return asyncio.run(main())


def message(sequence: int, watermark_s: float, *, size: int = 5, **values: Any) -> bytes:
    builder = BatchBuilder(
        sequence=sequence, watermark_ns=MINUTE_NS + int(watermark_s * SECOND_NS), **values
    )
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80", container="c-web-1")
    if size:
        builder.transfer(c, size)
    return encode_batch(builder.batch())


async def feed(pipeline: Pipeline, *messages: bytes, start: int = 0, partition: int = 0) -> None:
    for offset, value in enumerate(messages, start):
        await pipeline.receive(partition, offset, b"node-a", value, MINUTE_S + 1.0)


def test_a_minute_is_stored_with_its_entities_and_then_committed() -> None:
    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        assert pipeline.floor(0) is None
        await feed(pipeline, message(0, 1), message(1, 2))
        assert pipeline.floor(0) == 0
        assert not topics.metrics
        await feed(pipeline, message(2, 62, size=0), start=2)
        assert pipeline.floor(0) == 3

    directory = Directory()
    directory.apply(pod("web-1", "10.0.0.1", node="node-a"))
    topics = run(scenario, directory)
    (block,) = [decode_block(value) for value in topics.metrics]
    assert (block.identity.base_offset, block.identity.end_offset) == (0, 3)
    place = (MINUTE_S, "", "client", "web.shop", "read_bytes")
    assert totals([[block]], "service")[place] == 10
    assert {"service": "web.shop", "instance": "web-1"} in topics.entity_names("instance")
    found = [decode_entity(value) for value in topics.entities.values()]
    web = next(e for e in found if e.kind == "instance" and e.names["instance"] == "web-1")
    assert web.attributes == {
        "layer": "KUBERNETES",
        "namespace": "shop",
        "workload": "web",
        "node": "node-a",
    }
    assert (web.first_seen_ms, web.last_seen_ms) == (MINUTE_S * 1000, MINUTE_S * 1000 + 60_000)


def test_the_clock_alone_closes_minutes() -> None:
    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        await feed(pipeline, message(0, 1))
        await pipeline.tick()
        assert not topics.metrics
        clock.advance(95)
        await pipeline.tick()
        assert len(topics.metrics) == 1

    run(scenario)


def test_a_repeated_batch_is_dropped_and_said_so() -> None:
    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        await feed(pipeline, message(0, 1), message(0, 1), message(3, 1, final=True))

    blocks = counted_blocks(run(scenario).metrics)
    place = (MINUTE_S, "", "client", "node-a", "read_bytes")
    assert totals(blocks, "service")[place] == 10
    ledger = totals(blocks, "ledger")
    row = (MINUTE_S, "", "node-a", "streams")
    assert ledger[*row, "transfer", "", "in_count"] == 3
    assert ledger[*row, "transfer", "duplicate", "dropped_count"] == 1
    assert ledger[*row, "block", "sequence_gap", "dropped_count"] == 2


def test_stage_values_without_a_bucket_are_told_to_prometheus() -> None:
    exceeding = counter("podwire_streams_part_exceeds_whole_total").labels("write_tcp")

    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        builder = BatchBuilder(watermark_ns=MINUTE_NS)
        c = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
        for whole in (5, 6, 7):
            builder.transfer(c, 1, write=True, write_l4_duration=whole, write_l3_duration=7)
        await feed(pipeline, encode_batch(builder.batch()))

    before = exceeding._value.get()
    run(scenario)
    assert exceeding._value.get() - before == 2


def calls(sequence: int, watermark_s: float = 1, **values: Any) -> bytes:
    builder = BatchBuilder(
        sequence=sequence, watermark_ns=MINUTE_NS + int(watermark_s * SECOND_NS), **values
    )
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80", container="c-web-1")
    for path in ("/a/1", "/b", "/c"):
        builder.request(c, path)
    builder.request(c, "/b", at=5)
    return encode_batch(builder.batch())


def test_calls_have_endpoints_and_beyond_the_limit_one_name() -> None:
    other = counter("podwire_streams_endpoints_other_total")
    before = other._value.get()

    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        await feed(pipeline, calls(0), calls(0), calls(1, final=True))

    topics = run(scenario, max_endpoints=2, endpoint_name="method_path")
    found = totals(counted_blocks(topics.metrics), "endpoint")
    row = (MINUTE_S, "", "client", "203.0.113.1")
    assert {
        name: found[*row, name, "http_call_count"] for name in ("GET:/a/{id}", "GET:/b", "{other}")
    } == {"GET:/a/{id}": 2, "GET:/b": 2, "{other}": 2}
    assert other._value.get() - before == 2
    assert {"service": "203.0.113.1", "endpoint": "{other}"} in topics.entity_names("endpoint")
    assert len(topics.entity_names("endpoint_relation")) == 3
    ledger = totals(counted_blocks(topics.metrics), "ledger")
    place = (MINUTE_S, "", "node-a", "streams", "request")
    assert ledger[*place, "", "in_count"] == 12
    assert ledger[*place, "", "out_count"] == 6
    assert ledger[*place, "malformed", "dropped_count"] == 2
    assert ledger[*place, "duplicate", "dropped_count"] == 4
    assert not topics.access_log


def test_the_access_log_has_every_batch_once_and_no_impossible_time() -> None:
    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        await feed(pipeline, calls(0), calls(0), message(1, 1), message(2, 1, size=0))

    topics = run(scenario, access_log=True)
    assert [key for key, _ in topics.access_log] == [b"node-a"] * 2
    first, second = (decode_batch(value) for _, value in topics.access_log)
    assert (first.header.sequence, second.header.sequence) == (0, 1)
    assert first.requests.rows == 3
    assert [first.names[place] for place in first.requests.endpoint] == ["/a/{id}", "/b", "/c"]
    assert first.names[first.parties.remote_service[0]] == "203.0.113.1"
    assert (second.transfers.rows, second.requests.rows) == (1, 0)


def test_a_batch_read_again_is_logged_again_under_the_same_identity() -> None:
    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        topics.events = [calls(0), calls(1)]
        await feed(pipeline, *topics.events)
        await feed(pipeline, *topics.events)

    topics = run(scenario, access_log=True)
    headers = [decode_batch(value).header for _, value in topics.access_log]
    assert [(header.run_id, header.sequence, header.part) for header in headers] == [
        ("run-1", 0, 0),
        ("run-1", 1, 0),
    ] * 2
    assert topics.access_log[0] == topics.access_log[2]


def test_no_offset_is_committed_before_the_access_log_is_written() -> None:
    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        taken = asyncio.Event()

        async def later(messages: Sequence[bytes]) -> None:
            await taken.wait()

        topics.access_log_taken = later  # type: ignore[method-assign]
        await feed(pipeline, calls(0), message(1, 70, size=0))
        assert len(topics.metrics) == 1
        assert pipeline.floor(0) == 0
        taken.set()
        await asyncio.sleep(0)
        await pipeline.tick()
        assert pipeline.floor(0) == 2

    run(scenario, access_log=True)


def test_an_access_log_that_is_not_taken_ends_the_worker() -> None:
    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        async def refused(messages: Sequence[bytes]) -> None:
            raise TransportError("refused")

        topics.access_log_taken = refused  # type: ignore[method-assign]
        await feed(pipeline, calls(0))
        await asyncio.sleep(0)
        with pytest.raises(TransportError, match="refused"):
            await pipeline.tick()
        assert pipeline.floor(0) == 0

    run(scenario, access_log=True)


def test_undecodable_messages_are_kept_until_they_are_too_many() -> None:
    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        await feed(pipeline, b"one", b"two", message(0, 1), b"three", b"four")
        with pytest.raises(FatalError, match="3 undecodable messages in a row"):
            await feed(pipeline, b"five", start=5)

    topics = run(scenario, undecodable_limit=2)
    letters = [decode_dead_letter(value) for value in topics.letters]
    assert [letter.payload for letter in letters] == [b"one", b"two", b"three", b"four", b"five"]
    assert [letter.offset for letter in letters] == [0, 1, 3, 4, 5]
    assert letters[0].key == b"node-a"


def test_a_message_skipped_by_the_client_stops_the_worker() -> None:
    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        await feed(pipeline, message(0, 1))
        with pytest.raises(FatalError, match="message 1 was skipped"):
            await feed(pipeline, message(2, 1), start=2)

    run(scenario)


def test_reading_again_from_the_floor_rebuilds_what_was_not_stored() -> None:
    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        messages = [message(0, 1), message(1, 2), message(2, 3, final=True)]
        topics.events = messages
        await feed(pipeline, *messages[:2])
        await feed(pipeline, *messages)

    blocks = counted_blocks(run(scenario).metrics)
    place = (MINUTE_S, "", "client", "node-a", "read_bytes")
    assert totals(blocks, "service")[place] == 15


def test_a_revoked_partition_is_forgotten() -> None:
    ages = gauge("podwire_streams_committed_age_seconds")

    def aged() -> set[str]:
        return {sample.labels["partition"] for sample in ages.collect()[0].samples}

    for partition in range(8):  # of other tests
        with contextlib.suppress(KeyError):
            ages.remove(partition)

    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        await feed(pipeline, message(0, 1))
        await feed(pipeline, message(0, 1), partition=1)
        await pipeline.tick()
        assert aged() == {"0", "1"}
        await pipeline.revoke([0])
        assert (pipeline.floor(0), pipeline.floor(1)) == (None, 0)
        clock.advance(300)
        await pipeline.tick()
        assert aged() == {"1"}  # an age that stays would look like a lag for ever
        assert [decode_block(value).identity.partition for value in topics.metrics] == [1]
        await pipeline.revoke([1])

    run(scenario)


def test_a_batch_waits_for_the_pod_of_a_new_container() -> None:
    directory = Directory()
    directory.apply(pod("other-1", "10.0.0.9"))

    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        async def later() -> None:
            await asyncio.sleep(0)
            directory.apply(pod("web-1", containers=[Container("main", "c-web-1")]))

        arriving = asyncio.create_task(later())
        await feed(pipeline, message(0, 1, final=True))
        await arriving

    topics = run(scenario, directory, metadata_wait_s=30.0)
    assert {"service": "web.shop", "instance": "web-1"} in topics.entity_names("instance")


def test_who_has_an_address_now_may_be_told_a_moment_later() -> None:
    directory = Directory()
    directory.apply(pod("web-1", "10.0.0.1"))
    directory.apply(pod("old-1", "10.0.0.2"))
    builder = BatchBuilder(final=True)
    builder.transfer(builder.connection("10.0.0.1:40000", "10.0.0.2:80"), 5)

    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        async def later() -> None:
            await asyncio.sleep(0)
            moment = (MINUTE_S - 2) * 1000
            directory.apply(pod("old-1", "10.0.0.2", deleted_ms=moment))
            directory.apply(pod("new-1", "10.0.0.2", created_ms=moment, running_ms=moment))

        telling = asyncio.create_task(later())
        await feed(pipeline, encode_batch(builder.batch()))
        await telling

    topics = run(scenario, directory, metadata_delay_s=0.2)
    assert {"service": "new.shop", "instance": "new-1"} in topics.entity_names("instance")
    assert {"service": "old.shop", "instance": "old-1"} not in topics.entity_names("instance")


def test_nobody_is_waited_for_who_is_ahead_of_the_clock() -> None:
    directory = Directory()
    directory.apply(pod("web-1", containers=[Container("main", "c-web-1")]))
    builder = BatchBuilder(final=True)
    ahead = MINUTE_NS + 61 * SECOND_NS
    builder.transfer(builder.connection("10.0.0.1:40000", "10.0.0.2:80"), 5, at=ahead)

    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        async with asyncio.timeout(10):
            await feed(pipeline, encode_batch(builder.batch()))

    run(scenario, directory, metadata_delay_s=60.0)


def test_nothing_is_waited_for_twice() -> None:
    directory = Directory()
    directory.apply(pod("other-1", "10.0.0.9"))

    async def scenario(pipeline: Pipeline, topics: Topics, clock: ManualClock) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await feed(pipeline, *(message(place, 1) for place in range(50)))
        assert loop.time() - began < 1.0

    run(scenario, directory, metadata_wait_s=0.01)


def test_the_defaults_are_valid_and_ranges_are_checked() -> None:
    assert StreamsConfig.load({}, {}) == StreamsConfig()
    found = StreamsConfig.load({}, {"PODWIRE_STREAMS_CIDR_NAMES": "10.0.0.0/8=home"})
    assert found.cidr_names == {"10.0.0.0/8": "home"}
    with pytest.raises(ConfigError, match=r"streams\.grace_s"):
        StreamsConfig.load({"streams": {"grace_s": -1}}, {})


def test_a_telemetry_port_in_use_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = StreamsConfig(telemetry_port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match=r"streams\.telemetry_port"):
            asyncio.run(Worker(KafkaConfig(), settings).run())
