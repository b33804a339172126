"""Keeps a `Directory` equal to the Kubernetes topics.

Every worker needs every object, so this consumer is in no group: a thread reads all partitions of
the metadata topics from the beginning and hands decoded records to the event loop, which alone
touches the directory.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from typing import TYPE_CHECKING, Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from schemas.entities import DeadLetter
from schemas.errors import DecodeError, TransportError
from schemas.kubernetes import decode_object
from schemas.telemetry import RateLimited, counter, gauge
from schemas.topics import KUBERNETES

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemas.config import KafkaConfig
    from schemas.kubernetes import KubernetesObject
    from streams.directory import Directory

__all__ = ["MetadataCache"]

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_LOOK_AGAIN_S = 5.0
_FIRST_LOOK_TIMEOUT_S = 10.0
_LOOK_TIMEOUT_S = 2.0
"""Less than `MetadataCache.stop` waits for."""
_BATCH = 500


class MetadataCache:
    """Reads the metadata topics in a thread.

    Args:
        kafka: How to reach the broker.
        directory: Kept up to date, on the event loop of `start`.
        on_undecodable: Called on the event loop with what could not be decoded.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        directory: Directory,
        on_undecodable: Callable[[DeadLetter], None],
    ) -> None:
        self._kafka = kafka
        self._directory = directory
        self._on_undecodable = on_undecodable
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metadata", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._caught_up = asyncio.Event()
        self._failure: Exception | None = None
        self._errors = RateLimited(logger)
        self._read: dict[tuple[str, int], int] = {}
        self._ends: dict[tuple[str, int], int] = {}
        self._keys: dict[tuple[str, bytes], str] = {}

    async def start(self, timeout_s: float) -> bool:
        """Begin to read; return whether everything there was is in the directory in time.

        Raises:
            TransportError: If no broker answers.
        """
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        try:
            await asyncio.wait_for(self._caught_up.wait(), timeout_s)
        except TimeoutError:
            logger.warning("kubernetes metadata is not complete after %g s, going on", timeout_s)
        if self._failure is not None:
            raise self._failure
        logger.info("kubernetes metadata: %s", self._directory.counts())
        return self._caught_up.is_set()

    async def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 3.0)

    # In the thread

    def _run(self) -> None:
        consumer = Consumer(
            {
                **self._kafka.client_settings(),
                "group.id": f"podwire-streams-metadata-{uuid.uuid4().hex}",  # never joined
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
                "allow.auto.create.topics": False,
                "log_level": 0,
            }
        )
        try:
            self._assign(consumer, _FIRST_LOOK_TIMEOUT_S)
            look_again = _LOOK_AGAIN_S
            while not self._stop.is_set():
                messages = consumer.consume(_BATCH, _POLL_S)
                records = [message for message in messages if self._is_record(message)]
                if records:
                    self._take(consumer, records)
                self._check_caught_up(consumer)
                look_again -= _POLL_S
                if look_again <= 0:
                    look_again = _LOOK_AGAIN_S
                    self._assign_again(consumer)
        except KafkaException as error:
            failure = TransportError(
                f"kubernetes metadata from {self._kafka.bootstrap_servers}: {error}"
            )
            self._call(self._fail, failure)
        finally:
            consumer.close()

    def _assign(self, consumer: Consumer, timeout_s: float) -> None:
        # Topics may appear later, and may begin anew when a broker lost its data.
        listed = consumer.list_topics(timeout=timeout_s).topics
        places = [
            (topic.name, partition)
            for topic in KUBERNETES
            if topic.name in listed and listed[topic.name].error is None
            for partition in listed[topic.name].partitions
        ]
        if set(places) == set(self._ends) and places:
            return
        for place in set(places) - set(self._ends):
            _, end = consumer.get_watermark_offsets(TopicPartition(*place), timeout=timeout_s)
            self._ends[place] = end
        consumer.assign(
            [
                TopicPartition(*place, self._read.get(place, OFFSET_BEGINNING))
                for place in self._ends
            ]
        )

    def _assign_again(self, consumer: Consumer) -> None:
        try:
            self._assign(consumer, _LOOK_TIMEOUT_S)
        except KafkaException as error:  # a broker that is away; what is known stays good
            counter("podwire_errors_total").labels("streams", "metadata").inc()
            self._errors.warning("kubernetes metadata: %s", error.args[0].str())

    def _take(self, consumer: Consumer, records: list[Any]) -> None:
        for record in records:
            place = (record.topic(), record.partition())
            if record.offset() < self._read.get(place, 0):
                # A broker lost its data. What was there before may be gone, so forget it all.
                logger.warning("%s begins anew: reading all metadata again", place[0])
                self._read.clear()
                self._call(self._clear)
                consumer.assign([TopicPartition(*each, OFFSET_BEGINNING) for each in self._ends])
                return
            self._read[place] = record.offset() + 1
        self._call(self._apply, records)

    def _is_record(self, message: Any) -> bool:
        error = message.error()
        if error is None:
            return True
        if error.code() != KafkaError._PARTITION_EOF:
            counter("podwire_errors_total").labels("streams", "metadata").inc()
            self._errors.warning("kubernetes metadata: %s", error.str())
        return False

    def _check_caught_up(self, consumer: Consumer) -> None:
        if self._caught_up.is_set():
            return
        positions = consumer.position([TopicPartition(*place) for place in self._ends])
        for position in positions:
            place = (position.topic, position.partition)
            low_end = self._ends[place]
            if low_end and position.offset < low_end:
                low, _ = consumer.get_watermark_offsets(
                    TopicPartition(*place), timeout=_FIRST_LOOK_TIMEOUT_S
                )
                if low < low_end:
                    return
        self._call(self._caught_up.set)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    # On the event loop

    def _fail(self, failure: Exception) -> None:
        self._failure = failure
        self._caught_up.set()

    @property
    def failure(self) -> Exception | None:
        """Why the thread ended, if it did."""
        return self._failure

    def _clear(self) -> None:
        self._directory.clear()
        self._keys.clear()

    def _apply(self, messages: list[Any]) -> None:
        for message in messages:
            self._apply_one(
                message.topic(),
                message.partition(),
                message.offset(),
                message.key() or b"",
                message.value(),
                max(message.timestamp()[1], 0),
            )
        for kind, count in self._directory.counts().items():
            gauge("podwire_streams_metadata_objects").labels(kind).set(count)

    def _apply_one(
        self,
        topic: str,
        partition: int,
        offset: int,
        key: bytes,
        value: bytes | None,
        time_ms: int,
    ) -> None:
        if not value:
            known = self._keys.pop((topic, key), None)
            if known is not None:
                self._directory.remove(known)
            return
        try:
            record: KubernetesObject = decode_object(topic, value)
        except DecodeError as error:
            self._errors.warning("%s offset %d: %s", topic, offset, error)
            self._on_undecodable(
                # The message's own time: every worker sends this letter, and one row is enough.
                DeadLetter("streams", topic, partition, offset, error.reason, key, value, time_ms)
            )
            return
        self._keys[topic, key] = record.uid
        self._directory.apply(record)
