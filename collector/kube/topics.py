"""The metadata topics as they are on the broker: made if missing, read to their end, watched.

Also notices a broker that came back with an empty log (one that keeps it in memory, or a topic
that was deleted): its end then lies before what was delivered to it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from collector.kube.offsets import end_offset
from schemas.errors import TransportError
from schemas.telemetry import counter
from schemas.topics import KUBERNETES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from schemas.config import KafkaConfig

__all__ = ["HeldMessage", "MetadataTopics"]

_ERRORS: Final = counter("podwire_errors_total")
_POLL_S: Final = 0.1
_BATCH: Final = 1000
_END_TIMEOUT_S: Final = 2.0
_CONFIRMATIONS: Final = 2


class HeldMessage(NamedTuple):
    """A message in a topic; ``value`` None is a null."""

    topic: str
    key: str
    value: bytes | None


class MetadataTopics:
    """Reads the metadata topics. Not for use by several threads at once."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._settings: dict[str, Any] = {
            **config.client_settings(),
            # A broker's own idea of a topic has the wrong partitions and forgets by age.
            "allow.auto.create.topics": False,
            "log_level": 0,
        }
        self._consumer: Consumer | None = None
        self._suspicions: dict[tuple[str, int], int] = {}
        self._ends: dict[tuple[str, int], int] = {}

    def ensure(self, timeout_s: float) -> None:
        """Create the topics that are missing.

        Raises:
            TransportError: If no broker answers in time, or it refuses.
        """
        deadline = time.monotonic() + timeout_s
        admin = AdminClient(self._settings)
        try:
            held = admin.list_topics(timeout=timeout_s).topics
            missing = [topic for topic in KUBERNETES if topic.name not in held]
            if not missing:
                return
            futures = admin.create_topics(
                [
                    NewTopic(
                        topic.name,
                        num_partitions=1,
                        replication_factor=self._config.replication_factor,
                        config=topic.config(),
                    )
                    for topic in missing
                ],
                operation_timeout=timeout_s,
            )
            for future in futures.values():
                try:
                    future.result(timeout=max(1.0, deadline - time.monotonic()))
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
        except (KafkaException, TimeoutError) as error:
            raise self._error("no usable Kafka broker at", error) from error

    def read(self, timeout_s: float) -> Iterator[HeldMessage]:
        """Every message that the topics hold now, each partition in order.

        Raises:
            TransportError: If the broker falls silent for ``timeout_s``.
        """
        consumer = self._reader()
        try:
            partitions = self._partitions(consumer, timeout_s)
            consumer.assign([TopicPartition(t, p, OFFSET_BEGINNING) for t, p in partitions])
            yield from self._read_to_end(consumer, set(partitions), timeout_s)
        except KafkaException as error:
            raise self._error("the metadata topics cannot be read from", error) from error
        finally:
            consumer.close()

    def is_reset(self, delivered: Mapping[tuple[str, int], int]) -> bool:
        """Whether a topic ends before what was delivered to it or read from it, seen twice.

        Twice, because the end steps back for a moment when a partition changes its leader.

        Args:
            delivered: Last offset written by (topic, partition).
        """
        if self._consumer is None:
            self._consumer = self._reader()
        for place, offset in delivered.items():
            self._ends[place] = max(offset + 1, self._ends.get(place, 0))
        for (topic, partition), expected in self._ends.items():
            end = self._end(self._consumer, topic, partition)
            if end is None:
                _ERRORS.labels("kube", "end").inc()
                return False
            if end >= expected:
                self._suspicions.pop((topic, partition), None)
                continue
            seen = self._suspicions.get((topic, partition), 0) + 1
            self._suspicions[topic, partition] = seen
            if seen >= _CONFIRMATIONS:
                self._suspicions.clear()
                self._ends.clear()
                self.close()  # what it remembers is of the broker before
                return True
        return False

    def _end(self, consumer: Consumer, topic: str, partition: int) -> int | None:
        # The next offset of a partition, 0 if there is no such; None if nobody tells.
        try:
            # Asked first: of a broker that is away the client says by itself that its partitions
            # are unknown.
            held = consumer.list_topics(topic, timeout=_END_TIMEOUT_S).topics[topic]
            if held.error is None and partition in held.partitions:
                return end_offset(consumer, topic, partition, _END_TIMEOUT_S)
        except KafkaException:
            return None
        is_gone = held.error is None or held.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
        return 0 if is_gone else None

    def close(self) -> None:
        """Close the connection."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _reader(self) -> Consumer:
        return Consumer(
            {
                **self._settings,
                # Never joins a group: partitions are assigned by hand and nothing is committed.
                "group.id": "podwire-kube-reader",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                # The end of an empty topic is told with the first answer; do not wait for data.
                "fetch.wait.max.ms": 20,
            }
        )

    def _partitions(self, consumer: Consumer, timeout_s: float) -> list[tuple[str, int]]:
        held = consumer.list_topics(timeout=timeout_s).topics
        return [
            (topic.name, partition)
            for topic in KUBERNETES
            if topic.name in held
            for partition in held[topic.name].partitions
        ]

    def _read_to_end(
        self, consumer: Consumer, unfinished: set[tuple[str, int]], timeout_s: float
    ) -> Iterator[HeldMessage]:
        silent_since = time.monotonic()
        while unfinished:
            messages = consumer.consume(_BATCH, timeout=_POLL_S)
            if messages:
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since > timeout_s:
                raise TransportError(
                    f"the metadata topics at {self._config.bootstrap_servers} fell silent "
                    f"before their end ({timeout_s:g} s)"
                )
            for message in messages:
                error = message.error()
                if error is None:
                    key = (message.key() or b"").decode("utf-8", "replace")
                    yield HeldMessage(message.topic() or "", key, message.value())
                elif error.code() == KafkaError._PARTITION_EOF:
                    place = message.topic() or "", message.partition() or 0
                    unfinished.discard(place)
                    self._ends[place] = message.offset() or 0
                elif error.retriable() or error.code() in (
                    KafkaError._TRANSPORT,
                    KafkaError._ALL_BROKERS_DOWN,
                ):
                    _ERRORS.labels("kube", "topic_read").inc()
                else:
                    raise KafkaException(error)

    def _error(self, what: str, error: BaseException) -> TransportError:
        inner = error.args[0] if error.args else error
        reason = inner.str() if isinstance(inner, KafkaError) else str(inner)
        return TransportError(f"{what} {self._config.bootstrap_servers}: {reason}")
