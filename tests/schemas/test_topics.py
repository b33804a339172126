from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from schemas.topics import (
    DEAD_LETTER,
    ENTITIES,
    EVENTS,
    KUBERNETES,
    MAX_MESSAGE_BYTES,
    METRICS,
    TOPICS,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.kafka import KafkaBroker


def test_names_are_versioned_and_unique() -> None:
    names = [topic.name for topic in TOPICS]
    assert len(set(names)) == len(names) == 9
    for name in names:
        assert re.fullmatch(r"podwire\.[a-z0-9.-]+\.v[0-9]+", name)


def test_state_is_compacted_and_streams_expire() -> None:
    compacted = {topic.name for topic in TOPICS if topic.config()["cleanup.policy"] == "compact"}
    assert compacted == {topic.name for topic in (*KUBERNETES, ENTITIES)}
    for topic in TOPICS:
        assert ("retention.ms" in topic.config()) == (topic.name not in compacted)


def test_metrics_partitions_follow_the_events() -> None:
    """A block of events partition p goes to partition p, so there must be one."""
    assert METRICS.partitions == EVENTS.partitions == "events"


def test_metrics_outlive_the_events_they_come_from() -> None:
    assert METRICS.retention_ms is not None
    assert EVENTS.retention_ms is not None
    assert METRICS.retention_ms > EVENTS.retention_ms


@pytest.mark.slow
@pytest.mark.kafka
def test_kafka_accepts_every_topic_as_declared(
    new_kafka_broker: Callable[..., KafkaBroker],
) -> None:
    broker = new_kafka_broker()
    broker.create_topics(partitions=3)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    partitions = {
        name: len(t.partitions) for name, t in admin.list_topics(timeout=10).topics.items()
    }
    for topic in TOPICS:
        assert partitions[topic.name] == (3 if topic.partitions == "events" else 1)
        resource = ConfigResource(ResourceType.TOPIC, topic.name)
        found = admin.describe_configs([resource])[resource].result(timeout=10)
        for name, value in topic.config().items():
            assert found[name].value == value
    largest = b"x" * MAX_MESSAGE_BYTES
    broker_limit = {"message.max.bytes": len(largest) + 1024}
    broker.produce(DEAD_LETTER.name, [largest], settings=broker_limit)
    assert broker.consume_all(DEAD_LETTER.name)[0].value() == largest
