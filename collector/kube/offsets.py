"""Where a partition ends: as a fetch says, because ListOffsets need not tell.

The embedded broker's ListOffsets names the first record of the last batch, not the last (measured
with Tansu 0.6: 20 records sent at once after offset 12 gave 13 instead of 32).
"""

from __future__ import annotations

import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition

__all__ = ["end_offset"]

_POLL_S = 0.2


def end_offset(consumer: Consumer, topic: str, partition: int, timeout_s: float) -> int | None:
    """Return the next offset of a partition, or None if the broker does not tell in time.

    Args:
        consumer: Of no group, told of the ends of partitions (``enable.partition.eof``), and
            reading nothing: it is left without an assignment.
        topic: An existing one.
        partition: Of it.
        timeout_s: For the broker's answers.

    Raises:
        KafkaException: If the broker does not answer, or has no such partition.
    """
    place = TopicPartition(topic, partition)
    _, end = consumer.get_watermark_offsets(place, timeout=timeout_s)
    # From the last record that ListOffsets knows of to the real end.
    place.offset = max(end - 1, 0)
    consumer.assign([place])
    try:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            message: Any = consumer.poll(_POLL_S)
            if message is None:
                continue
            if message.error() is None:
                end = max(end, message.offset() + 1)
            elif message.error().code() == KafkaError._PARTITION_EOF:
                return max(end, int(message.offset()))
    finally:
        consumer.unassign()
    return None
