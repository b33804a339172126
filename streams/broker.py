"""What the worker needs of Kafka beside its consumer group: topics, and reading without a group."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from schemas.errors import ConfigError, FatalError, TransportError
from schemas.topics import ACCESS_LOG, DEAD_LETTER, ENTITIES, EVENTS, MAX_MESSAGE_BYTES, METRICS
from streams.recovery import read_emitted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from schemas.config import KafkaConfig

__all__ = ["BrokerHistory", "PartitionLog", "client_settings", "ensure_topics", "ssl_context"]

logger = logging.getLogger(__name__)

_READ_TIMEOUT_S = 60.0
_REQUEST_TIMEOUT_MS = 20_000
_LOOK_AGAIN_S = 0.2


def ssl_context(kafka: KafkaConfig) -> ssl.SSLContext | None:
    """Return the TLS context of the settings, or None where they ask for none.

    Raises:
        ConfigError: If a certificate or key cannot be read.
    """
    if not kafka.security_protocol.endswith("SSL"):
        return None
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_ca_file or None)
        if kafka.ssl_certificate_file:
            context.load_cert_chain(kafka.ssl_certificate_file, kafka.ssl_key_file or None)
    except OSError as error:
        raise ConfigError("kafka.ssl_ca_file", f"TLS files cannot be used: {error}") from error
    return context


def client_settings(kafka: KafkaConfig) -> dict[str, Any]:
    """Return connection settings under aiokafka's names."""
    settings: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "security_protocol": kafka.security_protocol,
        "request_timeout_ms": _REQUEST_TIMEOUT_MS,
    }
    if kafka.security_protocol.startswith("SASL"):
        settings["sasl_mechanism"] = kafka.sasl_mechanism
        settings["sasl_plain_username"] = kafka.sasl_username
        settings["sasl_plain_password"] = kafka.sasl_password
    context = ssl_context(kafka)
    if context is not None:
        settings["ssl_context"] = context
    return settings


async def ensure_topics(kafka: KafkaConfig) -> int:
    """Create the topics that the worker uses where they do not exist.

    Returns:
        Partitions of the events topic.

    Raises:
        TransportError: If no broker answers.
        FatalError: If the metrics topic has another number of partitions than the events topic.
        ConfigError: If the broker refuses to make a topic so.
    """
    try:
        admin = AIOKafkaAdminClient(**client_settings(kafka))
        await admin.start()
    except KafkaError as error:
        raise TransportError(f"no broker at {kafka.bootstrap_servers}: {error}") from error
    try:
        topics = (EVENTS, METRICS, ENTITIES, ACCESS_LOG, DEAD_LETTER)
        present = set(await admin.list_topics())
        for topic in topics:
            if topic.name in present:
                continue
            partitions = kafka.partitions if topic.partitions == "events" else topic.partitions
            new = NewTopic(
                topic.name, partitions, kafka.replication_factor, topic_configs=topic.config()
            )
            _check_created(await admin.create_topics([new]))
            logger.info("created topic %s with %d partitions", topic.name, partitions)
        counts = await _partitions(admin)
    except (KafkaError, TimeoutError) as error:
        raise TransportError(f"topics cannot be prepared: {error!r}") from error
    finally:
        await admin.close()
    if counts[EVENTS.name] != counts[METRICS.name]:
        raise FatalError(
            f"{METRICS.name} has {counts[METRICS.name]} partitions, {EVENTS.name} has"
            f" {counts[EVENTS.name]}: blocks of events partition p go to metrics partition p"
        )
    return counts[EVENTS.name]


def _check_created(answer: Any) -> None:
    # The client hands the broker's refusals over as part of the answer.
    for topic, code, *reason in answer.topic_errors:
        if code not in (0, TopicAlreadyExistsError.errno):  # another part may be quicker
            text = " ".join([for_code(code).__name__, *(str(part) for part in reason[:1] if part)])
            raise ConfigError("kafka.replication_factor", f"topic {topic} was refused: {text}")


async def _partitions(admin: Any) -> dict[str, int]:
    # A topic just made shows its partitions a moment later.
    async with asyncio.timeout(_READ_TIMEOUT_S):
        while True:
            described = await admin.describe_topics([EVENTS.name, METRICS.name])
            counts = {topic["topic"]: len(topic["partitions"]) for topic in described}
            if all(counts.values()):
                return counts
            await asyncio.sleep(_LOOK_AGAIN_S)


class PartitionLog:
    """One partition, read by offset; see `streams.recovery.Log`."""

    def __init__(self, consumer: Any, topic: str, partition: int) -> None:
        self._consumer = consumer
        self._place = TopicPartition(topic, partition)

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls, kafka: KafkaConfig, topic: str, partition: int
    ) -> AsyncIterator[PartitionLog]:
        """A log for an ``async with`` block.

        Raises:
            TransportError: If the broker does not answer.
        """
        consumer = AIOKafkaConsumer(
            **client_settings(kafka),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_partition_fetch_bytes=MAX_MESSAGE_BYTES + 128 * 1024,
        )
        try:
            await consumer.start()
            consumer.assign([TopicPartition(topic, partition)])
            yield cls(consumer, topic, partition)
        except (KafkaError, TimeoutError) as error:
            raise TransportError(f"{topic} partition {partition}: {error!r}") from error
        finally:
            await consumer.stop()

    async def bounds(self) -> tuple[int, int]:
        """The first offset there is, and the one after the last."""
        first = await self._consumer.beginning_offsets([self._place])
        end = await self._consumer.end_offsets([self._place])
        return first[self._place], end[self._place]

    async def read(self, start: int, stop: int) -> list[bytes]:
        """The values of the messages at [start, stop)."""
        values: list[bytes] = []
        self._consumer.seek(self._place, start)
        async with asyncio.timeout(_READ_TIMEOUT_S):
            while await self._consumer.position(self._place) < stop:
                records = await self._consumer.getmany(self._place, timeout_ms=500)
                values.extend(
                    record.value
                    for record in records.get(self._place, ())
                    if record.offset < stop and record.value is not None
                )
        return values

    async def first_offset(self, offset: int) -> int:
        """The first offset at or after this one that exists; the end if there is none."""
        first, end = await self.bounds()
        if offset <= first or offset >= end:
            return max(first, min(offset, end))
        self._consumer.seek(self._place, offset)
        async with asyncio.timeout(_READ_TIMEOUT_S):
            record = await self._consumer.getone(self._place)
        found: int = record.offset
        return found


class BrokerHistory:
    """Answers from the topics themselves; see `streams.ports.History`."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self._kafka = kafka

    async def emitted(self, partition: int, topic: str, start_offset: int) -> dict[int, int]:
        """For minutes stored in part, the events offset up to which they are."""
        async with PartitionLog.opened(self._kafka, EVENTS.name, partition) as events:
            _, end = await events.bounds()
        async with PartitionLog.opened(self._kafka, METRICS.name, partition) as metrics:
            return await read_emitted(metrics, topic, start_offset, end)

    async def first_offset(self, partition: int, offset: int) -> int:
        """The first offset at or after this one that exists in the events partition."""
        async with PartitionLog.opened(self._kafka, EVENTS.name, partition) as events:
            return await events.first_offset(offset)
