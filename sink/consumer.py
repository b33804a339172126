"""The Kafka side: messages in, offsets out, and the membership kept alive in between."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from schemas.entities import DeadLetter, encode_dead_letter
from schemas.errors import PodwireError, TransportError
from schemas.telemetry import RateLimited, counter
from schemas.topics import DEAD_LETTER, ENTITIES, METRICS

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Sequence

    from schemas.config import KafkaConfig

__all__ = ["DeadLetters", "Lost", "Record", "Source", "Stopped", "topic_epoch"]

TOPICS: Final = (METRICS.name, ENTITIES.name, DEAD_LETTER.name)
_START_TIMEOUT_S: Final = 30.0
_SESSION_MS: Final = 30_000
_POLL_MS: Final = 300_000
_IDLE_S: Final = 0.2
_ANSWER_S: Final = 10.0

log = logging.getLogger(__name__)
_limited = RateLimited(log)


class Stopped(PodwireError):
    """The process is asked to end while something is being repeated."""


class Lost(PodwireError):
    """A partition of what is being written went to another member."""


@dataclass(frozen=True, slots=True)
class Record:
    """One message."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes | None
    time_ms: int


class Source:
    """A member of the sink's consumer group.

    Args:
        kafka: How to reach the brokers.
        group: Consumer group.
        stop: Set when the process shall end.
        alone: Take every partition without asking the group, which still keeps the offsets. For
            the embedded engine, which one process can have: no waiting for members that died.
        topics: What to read.
        component: Who reads, for the broker and for the counters.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        group: str,
        stop: threading.Event,
        *,
        alone: bool,
        topics: Sequence[str] = TOPICS,
        component: str = "sink",
    ) -> None:
        self._component = component
        self._alone = alone
        self._topics = topics
        self._kafka = kafka
        self._stop = stop
        self._owned: set[tuple[str, int]] = set()
        self._assigned: list[TopicPartition] = []
        self._revoked: list[TopicPartition] = []
        self._held: list[Record] = []
        self._waiting = False
        self.writing: Collection[tuple[str, int]] = ()
        """Topics and partitions whose messages are being stored now."""
        self._consumer = Consumer(
            {
                **kafka.client_settings(),
                "group.id": group,
                "client.id": f"podwire-{component}",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "allow.auto.create.topics": False,
                "partition.assignment.strategy": "range",
                "session.timeout.ms": _SESSION_MS,
                "max.poll.interval.ms": _POLL_MS,
                "fetch.wait.max.ms": 100,
                "fetch.message.max.bytes": 16 * 1024 * 1024,
                "queued.max.messages.kbytes": 64 * 1024,
                "log_level": 2,
            },
            error_cb=self._on_error,
        )

    def start(self) -> None:
        """Join the group.

        Raises:
            TransportError: If no broker answers in time.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._stop.is_set():
            try:
                self._consumer.list_topics(timeout=2.0)
                break
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise TransportError(
                        f"kafka at {self._kafka.bootstrap_servers}: {error.args[0].str()}"
                    ) from error
        if self._alone:
            self._assign_all()
        else:
            self._consumer.subscribe(
                list(self._topics),
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_revoke,
            )

    def _assign_all(self) -> None:
        while not self._stop.is_set():
            try:
                found = self._consumer.list_topics(timeout=_ANSWER_S).topics
                missing = [name for name in self._topics if name not in found]
                if not missing:
                    partitions = [
                        TopicPartition(name, partition)
                        for name in self._topics
                        for partition in found[name].partitions
                    ]
                    # Asked for by hand: a coordinator that is just starting answers with an
                    # error, after which an assignment to "the stored offset" would stay silent.
                    committed = self._consumer.committed(partitions, timeout=_ANSWER_S)
                    for one in committed:
                        if one.error is not None:
                            raise KafkaException(one.error)
                        if one.offset < 0:
                            one.offset = OFFSET_BEGINNING
                    self._on_assign(self._consumer, committed)
                    return
                _limited.warning("kafka: no topic %s", ", ".join(missing))
            except KafkaException as error:
                counter("podwire_errors_total").labels(self._component, error.args[0].name()).inc()
                _limited.warning("kafka: %s", error.args[0].str())
            self._stop.wait(_IDLE_S)

    def changes(self) -> tuple[list[TopicPartition], list[TopicPartition]]:
        """Return the partitions that came and went since the last call."""
        came, self._assigned = self._assigned, []
        went, self._revoked = self._revoked, []
        return came, went

    def owns(self, topic: str, partition: int) -> bool:
        """Whether this member has the partition now."""
        return (topic, partition) in self._owned

    def read(self, limit: int, timeout_s: float) -> list[Record]:
        """Return the messages that came within the time.

        Raises:
            TransportError: If the broker refuses this consumer for good.
        """
        held, self._held = self._held, []
        return held or self._consume(limit, timeout_s)

    def wait(self, seconds: float) -> None:
        """Wait without reading on, as a member that is alive.

        Raises:
            Stopped: If the process is asked to end meanwhile.
            Lost: If a partition of `writing` goes to another member.
        """
        self._waiting = True
        self._consumer.pause(self._consumer.assignment())
        try:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self._stop.is_set():
                    raise Stopped("asked to stop")
                # Everything is paused; what comes nevertheless is kept for the next read.
                self._held += self._consume(1, _IDLE_S)
                for topic, partition in self.writing:
                    if not self.owns(topic, partition):
                        raise Lost(f"{topic} {partition}")
        finally:
            self._waiting = False
            self._consumer.resume(self._consumer.assignment())

    def commit(self, offsets: Sequence[TopicPartition]) -> None:
        """Say that everything before these offsets is stored; failing means reading it again."""
        mine = [p for p in offsets if self.owns(p.topic, p.partition)]
        if not mine:
            return
        try:
            self._consumer.commit(offsets=mine, asynchronous=False)
        except KafkaException as error:
            counter("podwire_errors_total").labels(self._component, error.args[0].name()).inc()
            _limited.warning("kafka: commit: %s", error.args[0].str())

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def _consume(self, limit: int, timeout_s: float) -> list[Record]:
        records = []
        for message in self._consumer.consume(limit, timeout_s):
            error = message.error()
            if error is None:
                records.append(_record(message))
            elif error.fatal():
                raise TransportError(f"kafka: {error.str()}")
            else:
                counter("podwire_errors_total").labels(self._component, error.name()).inc()
                _limited.warning("kafka: %s", error.str())
        return records

    def _on_error(self, error: KafkaError) -> None:
        counter("podwire_errors_total").labels(self._component, error.name()).inc()
        _limited.warning("kafka: %s", error.str())

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.assign(partitions)
        if self._waiting:
            consumer.pause(partitions)
        self._owned.update((p.topic, p.partition) for p in partitions)
        self._assigned.extend(partitions)

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._owned.difference_update((p.topic, p.partition) for p in partitions)
        self._revoked.extend(partitions)


class DeadLetters:
    """Sends what cannot be decoded to its own topic."""

    def __init__(self, kafka: KafkaConfig, component: str = "sink") -> None:
        self._component = component
        self._producer = Producer(
            {
                **kafka.client_settings(),
                "client.id": f"podwire-{component}",
                "enable.idempotence": True,
                "compression.type": "zstd",
                "partitioner": "murmur2_random",
                "message.max.bytes": 16 * 1024 * 1024,
                "message.timeout.ms": 20_000,
                "log_level": 2,
            }
        )

    def send(self, record: Record, reason: str, now_ms: int) -> None:
        """Send one message and wait until the broker has it.

        Raises:
            TransportError: If it does not take it; the same call may succeed later.
        """
        letter = DeadLetter(
            stage=self._component,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=reason,
            key=record.key,
            payload=record.value or b"",
            time_ms=now_ms,
        )
        failures: list[str] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failures.append(error.str())

        self._producer.produce(
            DEAD_LETTER.name,
            value=encode_dead_letter(letter),
            key=record.topic.encode(),
            on_delivery=delivered,
        )
        if self._producer.flush(25.0) or failures:
            self._producer.purge()
            raise TransportError(f"dead letter: {failures[0] if failures else 'not delivered'}")
        counter("podwire_dead_letters_total").labels(self._component, record.topic).inc()


def topic_epoch(kafka: KafkaConfig, wait: Callable[[float], bool]) -> str:
    """Return the broker's id of the metrics topic: offsets mean nothing beyond its life.

    Args:
        kafka: How to reach the brokers.
        wait: Waits that many seconds; true when the process shall end.

    Raises:
        Stopped: If the process is asked to end before the topic exists.
    """
    admin = AdminClient({**kafka.client_settings(), "log_level": 2}, logger=None)
    while True:
        try:
            answer = admin.describe_topics(TopicCollection([METRICS.name]), request_timeout=10.0)
            identity = answer[METRICS.name].result().topic_id
            return str(identity or "")
        except KafkaException as error:
            code = error.args[0].code()
            if code in (KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE):
                return ""  # brokers before 2.8 have no topic ids
            _limited.warning("kafka: topic %s: %s", METRICS.name, error.args[0].str())
        if wait(1.0):
            raise Stopped("asked to stop")


def _record(message: Message) -> Record:
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=message.key() or b"",
        value=message.value(),
        time_ms=max(message.timestamp()[1], 0),
    )
