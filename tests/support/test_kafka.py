from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from schemas.topics import EVENTS, METRICS, PODS, TOPICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.kafka import KafkaBroker


def test_shared_broker_keeps_order_within_a_partition(kafka_broker: KafkaBroker) -> None:
    name = kafka_broker.create_topic("test.support.order", partitions=3, retention_ms="60000")
    values = [b"%d" % number for number in range(100)]
    kafka_broker.produce(name, values, partition=2)
    messages = kafka_broker.consume_all(name)
    assert [message.value() for message in messages] == values
    assert {message.partition() for message in messages} == {2}
    assert kafka_broker.end_offsets(name) == {0: 0, 1: 0, 2: 100}


@pytest.mark.slow
def test_a_killed_broker_comes_back_with_its_data(
    new_kafka_broker: Callable[..., KafkaBroker],
) -> None:
    broker = new_kafka_broker()
    broker.create_topics(partitions=4)
    broker.produce(EVENTS.name, [b"kept"], partition=3)
    port = broker.port
    broker.kill()
    assert not broker.running
    broker.start()
    assert broker.port == port
    assert [message.value() for message in broker.consume_all(EVENTS.name)] == [b"kept"]
    ends = {topic.name: len(broker.end_offsets(topic.name)) for topic in TOPICS}
    assert ends[EVENTS.name] == ends[METRICS.name] == 4
    assert ends[PODS.name] == 1
