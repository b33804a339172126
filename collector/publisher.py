"""Sends batches to Kafka without ever waiting for it.

librdkafka keeps what the broker has not taken yet, bounded by bytes. A batch that does not fit or
is given up is never lost in silence: its ledger comes back through `take_failed` and a later header
tells of it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from schemas.errors import ConfigError
from schemas.telemetry import RateLimited, counter
from schemas.topics import EVENTS, MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.config import CollectorConfig
    from schemas.config import KafkaConfig
    from schemas.ledger import Entry

__all__ = ["Publisher"]

_LOG: Final = logging.getLogger("podwire.collector.publisher")
_MESSAGES: Final = 100_000
_SETTLE_S: Final = 1.0


class Publisher:
    """A producer of the events topic.

    Raises:
        ConfigError: If librdkafka refuses a setting.
    """

    def __init__(self, config: CollectorConfig, kafka: KafkaConfig, client: str) -> None:
        self._limited = RateLimited(_LOG)
        self._servers = kafka.bootstrap_servers
        self._settings: dict[str, Any] = {
            **kafka.client_settings(),
            "client.id": f"podwire-collector-{client}",
            "acks": "all",
            "enable.idempotence": config.idempotent_producer,
            # Without the broker's help only one request at a time keeps the order.
            "max.in.flight.requests.per.connection": 5 if config.idempotent_producer else 1,
            "partitioner": "murmur2_random",
            "compression.type": config.compression,
            "linger.ms": config.linger_s * 1000,
            "batch.size": 1 << 20,
            "message.max.bytes": MAX_MESSAGE_BYTES + 64 * 1024,
            "message.timeout.ms": int(config.delivery_timeout_s * 1000),
            # A topic that is created after the collector started is waited for like a broker.
            "topic.metadata.propagation.max.ms": int(config.delivery_timeout_s * 1000),
            "queue.buffering.max.kbytes": max(1, config.queue_bytes // 1024),
            "queue.buffering.max.messages": _MESSAGES,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 2000,
            "log_level": 0,  # what matters arrives in error_cb; the rest repeats it
            "error_cb": self._on_error,
        }
        self._failed: list[Entry] = []
        self._is_broken = False
        self.queued = 0
        """Messages that the broker has not acknowledged; librdkafka's count adds its events."""
        self.queued_bytes = 0
        self.delivered = 0
        self.undelivered = 0
        self._producer = self._create()

    def _create(self) -> Producer:
        try:
            return Producer(self._settings)
        except (KafkaException, ValueError) as error:
            raise ConfigError("kafka", str(error)) from error

    def offer(self, key: str, message: bytes, ledger: Sequence[Entry]) -> bool:
        """Hand a message to librdkafka; False if its queue has no room.

        Args:
            key: Decides the partition.
            message: The encoded batch.
            ledger: The header's entries, kept until the broker has the message.
        """
        if self._is_broken:
            self._replace()

        def on_delivery(error: KafkaError | None, _: object) -> None:
            # Exceptions from here would surface in an unrelated poll, so failures are noted.
            self.queued -= 1
            self.queued_bytes -= len(message)
            if error is None:
                self.delivered += 1
                counter("podwire_collector_batches_total").labels("delivered").inc()
                return
            self._failed.extend(ledger)
            self.undelivered += 1
            counter("podwire_collector_batches_total").labels("failed").inc()
            self._limited.warning("kafka did not take a batch: %s", error.str())

        try:
            self._producer.produce(EVENTS.name, message, key, on_delivery=on_delivery)
        except BufferError:
            self.poll()
            try:
                self._producer.produce(EVENTS.name, message, key, on_delivery=on_delivery)
            except BufferError:
                self._refused("the queue for kafka is full, a batch is dropped")
                return False
        except KafkaException as error:
            self._refused("kafka client refused a batch: %s", error.args[0].str())
            return False
        self.queued += 1
        self.queued_bytes += len(message)
        counter("podwire_collector_batches_total").labels("sent").inc()
        counter("podwire_collector_batch_bytes_total").inc(len(message))
        return True

    def _refused(self, text: str, *arguments: object) -> None:
        self.undelivered += 1
        counter("podwire_collector_batches_total").labels("failed").inc()
        self._limited.warning(text, *arguments)

    def poll(self) -> None:
        """Run delivery reports that are due; never waits."""
        self._producer.poll(0)

    def take_failed(self) -> list[Entry]:
        """Return the ledgers of batches given up since the last call."""
        failed, self._failed = self._failed, []
        return failed

    def flush(self, timeout_s: float) -> int:
        """Wait for the broker to take everything; returns how many messages are left."""
        self._producer.flush(timeout_s)
        return self.queued

    def abandon(self) -> None:
        """Give up what is queued: every message is reported as failed."""
        self._producer.purge()
        self._producer.flush(_SETTLE_S)

    def _replace(self) -> None:
        # After a fatal error of the idempotent producer it takes nothing any more.
        self.abandon()
        self._producer = self._create()
        self._is_broken = False

    def _on_error(self, error: KafkaError) -> None:
        counter("podwire_errors_total").labels("collector", error.name()).inc()
        if error.code() == KafkaError._FATAL or error.fatal():
            self._is_broken = True
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            text = "kafka at %s does not answer; batches wait"
            self._limited.warning(text, self._servers)
        else:
            _LOG.debug("kafka client: %s", error.str())
