"""Messages to the metadata topics; nothing is dropped without being named.

A message that Kafka did not take is remembered by its key, so that the pipeline sends the then
current state of that object again. An idempotent producer that met a broker which forgot it (one
that keeps its log in memory) is beyond repair; it is replaced, and everything has to be sent anew.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from schemas.telemetry import RateLimited, counter
from schemas.topics import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import Message

    from schemas.config import KafkaConfig

__all__ = ["Publisher"]

_log = logging.getLogger(__name__)
_ERRORS: Final = counter("podwire_errors_total")
_QUEUE_MESSAGES: Final = 20_000
_POLL_S: Final = 0.1


class Publisher:
    """One producer for all metadata topics."""

    def __init__(self, config: KafkaConfig, message_timeout_s: float = 60.0) -> None:
        self._settings: dict[str, Any] = {
            **config.client_settings(),
            "client.id": "podwire-kube",
            # The partition that Faust and every Java client would choose.
            "partitioner": "murmur2_random",
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 20,
            "batch.size": 1_000_000,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "message.timeout.ms": int(message_timeout_s * 1000),
            # Bounds the memory; `publish` waits for room.
            "queue.buffering.max.messages": _QUEUE_MESSAGES,
            "allow.auto.create.topics": False,
            "log_level": 0,
        }
        self._warnings = RateLimited(_log, 30.0)
        self._failed: dict[tuple[str, str], None] = {}
        self._is_broken = False
        self.delivered: dict[tuple[str, int], int] = {}
        """Last offset that the broker confirmed, by (topic, partition)."""
        self._producer = self._create()

    def publish(
        self, topic: str, key: str, value: bytes | None, is_stopping: Callable[[], bool]
    ) -> None:
        """Queue one message, waiting for room as long as the broker takes.

        When it is time to stop and there still is no room, the message counts as failed.
        """
        while not self._is_broken:
            try:
                self._producer.produce(topic, value, key, on_delivery=self._on_delivery)
            except BufferError:
                if is_stopping():
                    break
                self._producer.poll(_POLL_S)
            except KafkaException as error:
                self._note(error.args[0])
                break
            else:
                self._producer.poll(0)
                return
        self._failed[topic, key] = None

    def poll(self) -> None:
        """Take in confirmations."""
        self._producer.poll(0)

    def flush(self, timeout_s: float) -> int:
        """Wait until everything is confirmed; returns how many messages are not."""
        return self._producer.flush(timeout_s)

    @property
    def has_failed(self) -> bool:
        """Whether there are messages that Kafka did not take."""
        return bool(self._failed)

    def take_failed(self) -> list[tuple[str, str]]:
        """The (topic, key) of messages that Kafka did not take, once each."""
        failed = list(self._failed)
        self._failed.clear()
        return failed

    def renew_if_broken(self) -> bool:
        """Replace a producer that met a fatal error; True if so, and all has to be sent again."""
        if not self._is_broken:
            return False
        self.renew()
        return True

    def renew(self) -> None:
        """Start over with a new producer and no memory of what was delivered."""
        self._producer.purge()
        self._producer.flush(1.0)
        self._producer = self._create()
        self._is_broken = False
        self.delivered.clear()

    def _create(self) -> Producer:
        return Producer({**self._settings, "error_cb": self._note})

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        # An exception in here would surface in an unrelated poll(): only take notes.
        topic, key = message.topic() or "", (message.key() or b"").decode()
        if error is None:
            partition, offset = message.partition(), message.offset()
            if partition is not None and offset is not None:
                before = self.delivered.get((topic, partition), -1)
                self.delivered[topic, partition] = max(before, offset)
            return
        self._failed[topic, key] = None
        self._note(error)

    def _note(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
            return
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._is_broken = True
        _ERRORS.labels("kube", f"kafka_{error.name().lower()}").inc()
        self._warnings.warning("kafka: %s", error.str())

    def close(self, timeout_s: float) -> int:
        """Flush within the time; returns how many messages were given up."""
        if self._producer.flush(timeout_s):
            self._producer.purge()
            self._producer.flush(1.0)
        return len(self._failed)
