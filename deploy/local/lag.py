"""How far the readers are behind: committed offsets against the true ends of topics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.errors import TransportError

if TYPE_CHECKING:
    from schemas.config import KafkaConfig

__all__ = ["Reader", "behind", "end_offsets"]


@dataclass(frozen=True, slots=True)
class Reader:
    """A consumer group and the topic that it must have read to the end."""

    name: str
    group: str
    topic: str


def end_offsets(kafka: KafkaConfig, topic: str, timeout_s: float = 5.0) -> dict[int, int]:
    """Return the next offset of every partition, by partition.

    Raises:
        TransportError: If the broker does not answer.
    """
    from confluent_kafka import Consumer, KafkaException

    from collector.kube.offsets import end_offset

    consumer = Consumer(_consumer_settings(kafka))
    try:
        partitions = consumer.list_topics(topic, timeout=timeout_s).topics[topic].partitions
        ends: dict[int, int] = {}
        for partition in partitions:
            end = end_offset(consumer, topic, partition, timeout_s)
            if end is None:
                raise TransportError(f"{topic}: the end of partition {partition} is not told")
            ends[partition] = end
        return ends
    except (KafkaException, KeyError) as error:
        # A broker that just came back may not know its topics yet.
        raise TransportError(f"{topic}: {error}") from error
    finally:
        consumer.close()


def behind(kafka: KafkaConfig, reader: Reader, timeout_s: float = 5.0) -> int:
    """Return how many messages of its topic the group has not yet done with.

    Raises:
        TransportError: If the broker does not answer.
    """
    from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException
    from confluent_kafka.admin import AdminClient

    ends = end_offsets(kafka, reader.topic, timeout_s)
    admin = AdminClient({**kafka.client_settings(), "log_level": 0})
    futures = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(reader.group)])
    try:
        places = futures[reader.group].result(timeout_s).topic_partitions
    except (KafkaException, TimeoutError) as error:
        raise TransportError(f"group {reader.group}: {error}") from error
    committed = {
        place.partition: place.offset
        for place in places
        if place.topic == reader.topic and place.offset >= 0
    }
    return sum(max(end - committed.get(partition, 0), 0) for partition, end in ends.items())


def _consumer_settings(kafka: KafkaConfig) -> dict[str, Any]:
    return {
        **kafka.client_settings(),
        "group.id": "podwire-local-lag",  # never joined: partitions are assigned by hand
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
        "fetch.wait.max.ms": 20,
        "log_level": 0,
    }
