"""The pods of this node by their containers, for a monitoring scope that names pods.

Only then anything is read: `podwire.k8s.pods.v1`, from its beginning, in a thread and in no
consumer group. The node itself asks no Kubernetes API. What is not known here, or not yet, is
watched: the stream workers know it, and decide.
"""

from __future__ import annotations

import logging
import threading
import uuid
from typing import TYPE_CHECKING, Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from schemas.errors import DecodeError
from schemas.kubernetes import Pod, decode_object
from schemas.monitoring import End
from schemas.telemetry import RateLimited, counter
from schemas.topics import PODS

if TYPE_CHECKING:
    from confluent_kafka import Message

    from schemas.config import KafkaConfig

__all__ = ["LocalPods"]

_LOG: Final = logging.getLogger("podwire.collector")
_POLL_S: Final = 0.5
_BATCH: Final = 500
_TIMEOUT_S: Final = 10.0


class LocalPods:
    """Who the containers of a node are.

    Attributes:
        generation: Another number whenever an answer may be another one.
    """

    def __init__(self, kafka: KafkaConfig, node: str) -> None:
        self._kafka = kafka
        self._node = node
        self._ends: dict[str, End] = {}
        self._containers: dict[bytes, list[str]] = {}
        self.generation = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._errors = RateLimited(_LOG)

    def start(self) -> None:
        """Begin to read, unless it has begun; only once a reading that was stopped has ended."""
        if self._thread is not None:
            if not self._stop.is_set() or self._thread.is_alive():
                return
            # What was deleted meanwhile may be gone from the topic as well.
            self._ends.clear()
            self._containers.clear()
            self.generation += 1
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="pods", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = _TIMEOUT_S) -> None:
        """End the thread, and wait for it so long at most."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def end_of(self, container: str) -> End | None:
        """Return the pod of a container; None if it is not known."""
        return self._ends.get(container)

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Take in one message of the topic.

        Raises:
            DecodeError: If it is no pod.
        """
        # Read by another thread meanwhile: each answer is replaced as a whole, and none is missing
        # in between.
        pod = decode_object(PODS.name, value) if value else None
        before = self._containers.pop(key, [])
        now: list[str] = []
        has_changed = False
        if isinstance(pod, Pod) and pod.node == self._node:
            end = End(pod.namespace, dict(pod.labels), pod.node)
            now = [each.id for each in pod.containers if each.id]
            has_changed = any(self._ends.get(each) != end for each in now)
            self._ends.update(dict.fromkeys(now, end))
            self._containers[key] = now
        for container in set(before).difference(now):
            self._ends.pop(container, None)
            has_changed = True
        if has_changed:
            self.generation += 1

    def _run(self) -> None:
        while not self._stop.is_set():
            consumer = Consumer(
                {
                    **self._kafka.client_settings(),
                    "group.id": f"podwire-collector-pods-{uuid.uuid4().hex}",  # never joined
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "earliest",
                    "allow.auto.create.topics": False,
                    "log_level": 0,
                }
            )
            try:
                self._read(consumer)
            except KafkaException as error:
                self._say(error.args[0])
                self._stop.wait(_TIMEOUT_S)
            finally:
                consumer.close()

    def _read(self, consumer: Consumer) -> None:
        listed = consumer.list_topics(PODS.name, timeout=_TIMEOUT_S).topics[PODS.name]
        if listed.error is not None:
            raise KafkaException(listed.error)
        consumer.assign(
            [TopicPartition(PODS.name, number, OFFSET_BEGINNING) for number in listed.partitions]
        )
        while not self._stop.is_set():
            for message in consumer.consume(_BATCH, _POLL_S):
                self._take(message)

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            self._say(error)
            return
        try:
            self.apply(message.key() or b"", message.value())
        except DecodeError as problem:
            counter("podwire_errors_total").labels("collector", "pods").inc()
            self._errors.warning("%s offset %d: %s", PODS.name, message.offset(), problem)

    def _say(self, error: KafkaError) -> None:
        counter("podwire_errors_total").labels("collector", "pods").inc()
        self._errors.warning("the pods of this node are not known: %s", error.str())
