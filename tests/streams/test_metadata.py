"""The directory follows the Kubernetes topics."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from schemas.config import KafkaConfig
from schemas.errors import TransportError
from schemas.kubernetes import encode_object
from schemas.topics import NODES, PODS, SERVICES
from streams.directory import Directory
from streams.metadata import MetadataCache
from tests.streams.build import node, pod, service

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemas.entities import DeadLetter
    from tests.support.kafka import KafkaBroker


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110 - what is waited for is in a broker
            await asyncio.sleep(0.02)


def test_everything_there_is_known_at_start_and_changes_follow(
    new_kafka_broker: Callable[..., KafkaBroker],
) -> None:
    broker = new_kafka_broker()
    broker.create_topic(PODS.name)
    broker.create_topic(SERVICES.name)
    for place in range(3):
        record = pod(f"web-{place}", f"10.0.0.{place + 1}")
        broker.produce(PODS.name, [encode_object(record)], key=record.uid)
    broker.produce(SERVICES.name, [encode_object(service("web", "10.96.0.1"))], key="s")
    directory = Directory()
    letters: list[DeadLetter] = []

    async def scenario() -> None:
        kafka = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
        cache = MetadataCache(kafka, directory, letters.append)
        assert await cache.start(20.0)
        assert directory.counts() == {"pod": 3, "service": 1, "endpointslice": 0, "node": 0}
        broker.produce(PODS.name, [None], key="uid-web-1")
        broker.produce(PODS.name, [b"\xff\xff"], key="uid-bad")
        # A topic that appears later.
        broker.create_topic(NODES.name)
        broker.produce(NODES.name, [encode_object(node("node-a", "192.168.0.1"))], key="n")
        await eventually(lambda: directory.counts()["node"] == 1)
        await eventually(lambda: directory.counts()["pod"] == 2)
        assert directory.counts()["service"] == 1
        await cache.stop()

    asyncio.run(scenario())
    assert [letter.key for letter in letters] == [b"uid-bad"]
    # A row of 1970 would be gone from the store at once.
    assert abs(letters[0].time_ms / 1000 - time.time()) < 120


@pytest.mark.slow
def test_a_broker_that_is_away_does_not_end_the_following(
    new_kafka_broker: Callable[..., KafkaBroker],
) -> None:
    broker = new_kafka_broker()
    broker.create_topic(PODS.name)
    directory = Directory()

    async def scenario() -> None:
        kafka = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
        cache = MetadataCache(kafka, directory, lambda letter: None)
        assert await cache.start(20.0)
        broker.kill()
        await asyncio.sleep(17)  # the topics are listed every 5 s, with a time-out of 10 s
        await asyncio.to_thread(broker.start)
        broker.produce(PODS.name, [encode_object(pod("web-1"))], key="uid-web-1")
        await eventually(lambda: directory.counts()["pod"] == 1)
        assert cache.failure is None
        await cache.stop()

    asyncio.run(scenario())


def test_an_unreadable_change_does_not_make_the_last_state_immortal() -> None:
    directory = Directory()
    letters: list[DeadLetter] = []
    cache = MetadataCache(KafkaConfig(), directory, letters.append)
    known = encode_object(pod("web-1"))
    for offset, value in enumerate((known, b"\xff\xff", None)):
        cache._apply_one(PODS.name, 0, offset, b"uid-web-1", value, 0)
    assert len(letters) == 1
    assert directory.counts()["pod"] == 0


def test_topics_that_begin_anew_are_read_anew(
    new_kafka_broker: Callable[..., KafkaBroker],
) -> None:
    broker = new_kafka_broker()
    broker.create_topic(PODS.name)
    for place in range(3):
        broker.produce(PODS.name, [encode_object(pod(f"old-{place}"))], key=f"uid-old-{place}")
    directory = Directory()

    async def scenario() -> None:
        kafka = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
        cache = MetadataCache(kafka, directory, lambda letter: None)
        assert await cache.start(20.0)
        assert directory.counts()["pod"] == 3
        broker.delete_topics(PODS.name)
        broker.create_topic(PODS.name)
        broker.produce(PODS.name, [encode_object(pod("new-1"))], key="uid-new-1")
        await eventually(lambda: directory.counts()["pod"] == 1)
        assert directory.pod_of_container("c-new-1") is not None
        await cache.stop()

    asyncio.run(scenario())


@pytest.mark.slow
def test_no_broker_is_a_clear_error() -> None:
    async def scenario() -> None:
        kafka = KafkaConfig(bootstrap_servers="127.0.0.1:1")
        cache = MetadataCache(kafka, Directory(), lambda letter: None)
        try:
            with pytest.raises(TransportError, match=r"127\.0\.0\.1:1"):
                await cache.start(20.0)
        finally:
            await cache.stop()

    asyncio.run(scenario())
