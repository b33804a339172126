from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError

from collector.config import CollectorConfig
from collector.publisher import Publisher
from schemas.config import KafkaConfig
from schemas.errors import ConfigError
from schemas.ledger import Entry
from schemas.topics import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.kafka import KafkaBroker

LEDGER = [Entry("collector", "transfer", "", 5, 5, 0)]
NOBODY = "127.0.0.1:9"


def _publisher(servers: str = NOBODY, **settings: Any) -> Publisher:
    settings = {"delivery_timeout_s": 60.0} | settings
    return Publisher(CollectorConfig(**settings), KafkaConfig(bootstrap_servers=servers), "test")


def test_without_kafka_messages_wait_and_nothing_blocks() -> None:
    publisher = _publisher()
    began = time.monotonic()
    for _ in range(20):
        assert publisher.offer("node", b"x" * 1000, LEDGER)
        publisher.poll()
    assert time.monotonic() - began < 1
    assert publisher.queued == 20
    assert publisher.queued_bytes == 20_000
    assert publisher.flush(0.05) == 20
    publisher.abandon()
    assert publisher.take_failed() == LEDGER * 20
    assert publisher.take_failed() == []
    assert publisher.undelivered == 20
    assert publisher.queued_bytes == 0


def test_the_queue_is_bounded_by_bytes_and_refuses_at_once() -> None:
    publisher = _publisher(queue_bytes=1 << 20)
    taken = [publisher.offer("node", b"x" * 300_000, LEDGER) for _ in range(6)]
    assert taken[0]
    assert not taken[-1]
    refused = taken.count(False)
    assert publisher.undelivered == refused
    publisher.abandon()
    assert len(publisher.take_failed()) == 6 - refused


def test_a_batch_that_kafka_does_not_take_in_time_comes_back() -> None:
    publisher = _publisher(delivery_timeout_s=1.0)
    publisher.offer("node", b"x", LEDGER)
    assert publisher.flush(5) == 0
    assert publisher.take_failed() == LEDGER


def test_a_setting_that_librdkafka_refuses_is_a_configuration_error() -> None:
    kafka = KafkaConfig(security_protocol="SSL", ssl_ca_file="/does/not/exist")
    with pytest.raises(ConfigError, match="kafka: "):
        Publisher(CollectorConfig(), kafka, "test")


def test_after_a_fatal_error_a_new_producer_takes_over() -> None:
    publisher = _publisher()
    publisher.offer("node", b"x", LEDGER)
    publisher._on_error(KafkaError(KafkaError._FATAL, "lost its place"))
    assert publisher.offer("node", b"y", [])
    assert publisher.take_failed() == LEDGER
    assert publisher.queued == 1
    publisher.abandon()


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_messages_arrive_in_order_on_the_partition_of_their_node(
    new_kafka_broker: Callable[..., KafkaBroker], compression: str
) -> None:
    broker = new_kafka_broker()
    broker.create_topics(partitions=8)
    publisher = _publisher(broker.bootstrap_servers, compression=compression)
    for number in range(50):
        assert publisher.offer(f"node-{number % 5}", b"%d" % number, LEDGER)
    assert publisher.flush(30) == 0
    assert publisher.delivered == 50
    messages = broker.consume_all(EVENTS.name)
    assert len(messages) == 50
    partitions: dict[bytes, set[int]] = {}
    for message in messages:
        partitions.setdefault(message.key(), set()).add(message.partition())
    assert all(len(found) == 1 for found in partitions.values())
    # murmur2, as Java and aiokafka do it
    assert {key: found.pop() for key, found in partitions.items()} == {
        key: _murmur2_partition(key, 8) for key in partitions
    }
    for key in partitions:
        values = [int(message.value()) for message in messages if message.key() == key]
        assert values == sorted(values)


@pytest.mark.slow
def test_a_broker_that_comes_late_or_restarts_gets_everything_once(
    new_kafka_broker: Callable[..., KafkaBroker],
) -> None:
    broker = new_kafka_broker()
    publisher = _publisher(broker.bootstrap_servers)
    publisher.offer("node", b"0", LEDGER)  # the topic is not there yet
    assert publisher.flush(1) == 1
    broker.create_topics()
    assert publisher.flush(30) == 0
    broker.kill()
    for number in range(1, 10):
        publisher.offer("node", b"%d" % number, LEDGER)
        publisher.poll()
    assert publisher.flush(1) == 9
    broker.start()
    assert publisher.flush(60) == 0
    assert publisher.undelivered == 0
    values = [message.value() for message in broker.consume_all(EVENTS.name)]
    assert values == [b"%d" % number for number in range(10)]


def _murmur2_partition(key: bytes, partitions: int) -> int:
    from aiokafka.partitioner import murmur2

    return int(murmur2(key) & 0x7FFFFFFF) % partitions
