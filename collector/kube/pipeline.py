"""Wires a source to the metadata topics.

Order at start: the topics are read before the source lists anything, so a list is never older
than what it is compared with; what the topics hold and the first list does not name is published
as deleted. One thread does everything but the source's own reading.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from collector.kube.convert import KINDS, Converted
from collector.kube.feed import Failed, Feed, Found, Gone, Listed
from collector.kube.resync import Resync
from collector.kube.store import TOPIC_OF, Change, Store
from collector.kube.workload import Owners
from schemas.clock import Clock, SystemClock
from schemas.errors import TransportError
from schemas.kubernetes import Pod
from schemas.telemetry import Health, RateLimited, counter, gauge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from collector.kube.config import KubeConfig
    from collector.kube.feed import Source
    from collector.kube.publisher import Publisher
    from collector.kube.topics import MetadataTopics

__all__ = ["Pipeline"]

_log = logging.getLogger(__name__)
_ERRORS: Final = counter("podwire_errors_total")
_PUBLISHED: Final = counter("podwire_kube_published_total")
_OBJECTS: Final = gauge("podwire_kube_objects")
_KIND_OF: Final = {topic: kind for kind, topic in TOPIC_OF.items()}
_TICK_S: Final = 0.2
_PATIENCE_S: Final = 3.0
_HOUSEKEEPING_S: Final = 1.0
_RESET_CHECK_S: Final = 3.0
_RETRY_S: Final = 2.0
_FLUSH_S: Final = 10.0


class Pipeline:
    """Keeps the topics equal to the source until `stop`."""

    def __init__(
        self,
        config: KubeConfig,
        source: Source,
        topics: MetadataTopics,
        publisher: Publisher,
        health: Health,
        clock: Clock | None = None,
    ) -> None:
        self._config = config
        self._source = source
        self._topics = topics
        self._publisher = publisher
        self._health = health
        self._clock = clock or SystemClock()
        self._store = Store(int(config.keep_deleted_s * 1000))
        self._owners = Owners()
        self._resync = Resync(self._store.keys, config.resync_interval_s)
        self._feed = Feed()
        self._stopping = threading.Event()
        self._waiting_for = set(source.scopes)
        self._warnings = RateLimited(_log, 30.0)
        self._next_housekeeping_s = 0.0
        self._next_reset_check_s = 0.0
        self._next_retry_s = 0.0
        self._is_complete = False
        self._is_stale = False
        self.is_published = False

    def stop(self) -> None:
        """Make `run` end soon; safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Publish until stopped.

        Raises:
            TransportError: If the broker cannot be reached at start.
        """
        try:
            self._connect()
            self._load()
            if not self._stopping.is_set():
                self._source.start(self._feed)
            while not self._stopping.is_set():
                message = self._feed.get(_TICK_S)
                if message is not None:
                    self._take(message)
                self._publisher.poll()
                self._tick()
        finally:
            self._feed.close()
            self._source.stop()
            self._topics.close()
            left = self._publisher.close(_FLUSH_S)
            if left:
                _log.warning("%d metadata records could not be delivered before the end", left)

    def _connect(self) -> None:
        # In short tries: a signal is handled only between calls of the library.
        deadline_s = self._now_s() + self._config.kafka_timeout_s
        while not self._stopping.is_set():
            try:
                self._topics.ensure(_PATIENCE_S)
            except TransportError:
                if self._now_s() >= deadline_s:
                    raise
                self._stopping.wait(_TICK_S)
            else:
                return

    def _load(self) -> None:
        values: dict[tuple[str, str], bytes] = {}
        for topic, key, value in self._topics.read(self._config.kafka_timeout_s):
            if value is None:
                values.pop((topic, key), None)
            else:
                values[topic, key] = value
            if self._stopping.is_set():
                return
        for (topic, key), value in values.items():
            if not self._store.load(_KIND_OF[topic], key, value):
                _ERRORS.labels("kube", "undecodable_record").inc()
                self._warnings.warning("undecodable record in %s is replaced", topic)
        _log.info("the metadata topics hold %d records", len(values))

    def _take(self, message: Found | Gone | Listed | Failed) -> None:
        if isinstance(message, Failed):
            raise message.error
        if isinstance(message, Found):
            for item in message.objects:
                self._found(message, item)
        elif isinstance(message, Gone):
            self._gone(message)
        else:
            self._listed(message)

    def _found(self, message: Found, item: Converted) -> None:
        self._count_problems(message.kind, item)
        if item.workload is not None:
            scope = (message.kind, message.namespace)
            waited = self._owners.learn(scope, item.uid, item.workload, message.generation)
            for pod_uid in waited:
                self._send(self._store.relabel(pod_uid, *item.workload))
        elif item.record is not None:
            self._set_workload(item)
            self._send(
                self._store.upsert(message.kind, item.record, message.generation, self._now_ms())
            )

    def _gone(self, message: Gone) -> None:
        item = message.object
        self._count_problems(message.kind, item)
        if item.workload is not None:
            self._owners.forget(item.uid)
        elif item.record is not None:
            self._set_workload(item)
            if item.owner is not None:
                self._owners.stop_waiting(item.owner, item.uid)
            self._send(self._store.remove(message.kind, item.uid, self._now_ms(), item.record))

    def _listed(self, message: Listed) -> None:
        kind, namespace = message.kind, message.namespace
        if kind not in KINDS:
            self._owners.listed((kind, namespace), message.generation)
            return
        applies = (lambda other: other == namespace) if namespace else None
        self._delete_missing(kind, self._store.missing(kind, message.generation, applies))
        if kind == "pods":
            self._owners.keep_waiting(lambda uid: self._store.is_alive("pods", uid))
        self._waiting_for.discard((kind, namespace))
        if not self._waiting_for and not self._is_complete:
            self._complete()

    def _delete_missing(self, kind: str, missing: list[str]) -> None:
        if not missing:
            return
        if self._is_complete:
            # Another replica may have seen when they went; its time is better than ours.
            try:
                missing = self._adopt_ends(kind, missing)
            except TransportError as error:
                _ERRORS.labels("kube", "topic_read").inc()
                self._warnings.warning("%s", error)
        for uid in missing:
            self._send(self._store.remove(kind, uid, self._now_ms()))

    def _adopt_ends(self, kind: str, missing: list[str]) -> list[str]:
        wanted = {(TOPIC_OF[kind], uid): b"" for uid in missing}
        for topic, key, value in self._topics.read(_PATIENCE_S):
            if value and (topic, key) in wanted:
                wanted[topic, key] = value
        for (_, uid), value in wanted.items():
            if value and not self._store.load(kind, uid, value):
                _ERRORS.labels("kube", "undecodable_record").inc()
        return [uid for uid in missing if self._store.is_alive(kind, uid)]

    def _complete(self) -> None:
        # Records of namespaces that nobody asked for any longer would stay for ever.
        wanted = set(self._config.namespaces)
        for kind in KINDS if wanted else ():
            if kind != "nodes":
                outside = self._store.missing(kind, 1, lambda other: other not in wanted)
                self._delete_missing(kind, outside)
        self._is_complete = True

    def _announce(self) -> None:
        if not self._is_complete or self._publisher.flush(_TICK_S) or self._publisher.has_failed:
            return
        self.is_published = True
        counts = self._store.counts()
        _log.info("published the full state: %s", ", ".join(f"{counts[k]} {k}" for k in KINDS))

    def _set_workload(self, item: Converted) -> None:
        if isinstance(item.record, Pod) and item.owner is not None:
            workload = self._owners.of(item.owner, item.uid)
            if workload is not None:
                item.record.workload_kind, item.record.workload_name = workload

    def _count_problems(self, kind: str, item: Converted) -> None:
        if item.problems:
            what = "malformed_object" if item.is_skipped else "malformed_field"
            _ERRORS.labels("kube", what).inc()
            self._warnings.warning("malformed object among the %s: %s", kind, item.problems[0])

    def _send(self, change: Change | None) -> None:
        if change is None:
            return
        topic = TOPIC_OF[change.kind]
        self._publisher.publish(topic, change.uid, change.value, self._stopping.is_set)
        _PUBLISHED.labels(change.kind, change.change).inc()

    def _send_current(self, keys: Iterable[tuple[str, str]]) -> None:
        for kind, uid in keys:
            self._send(self._store.current(kind, uid) or Change(kind, uid, None, "expired"))

    def _tick(self) -> None:
        now_s = self._now_s()
        if not self.is_published:
            self._announce()
        if now_s >= self._next_housekeeping_s:
            self._next_housekeeping_s = now_s + _HOUSEKEEPING_S
            for change in self._store.expire(self._now_ms()):
                self._send(change)
            for kind, count in self._store.counts().items():
                _OBJECTS.labels(kind).set(count)
            if self.is_published and self._source.in_sync():
                self._health.progress()
                self._send_current(self._resync.due(now_s))
        if now_s >= self._next_retry_s:
            self._next_retry_s = now_s + _RETRY_S
            if self._publisher.has_failed and self._ensure():
                failed = self._publisher.take_failed()
                self._send_current((_KIND_OF[topic], key) for topic, key in failed)
        if now_s >= self._next_reset_check_s:
            self._next_reset_check_s = now_s + _RESET_CHECK_S
            self._repair()

    def _repair(self) -> None:
        if self._publisher.renew_if_broken():
            _log.warning("kafka forgot this producer; every record is published again")
            self._is_stale = True
        elif self._topics.is_reset(self._publisher.delivered):
            _log.warning("the metadata topics lost records; every record is published again")
            self._publisher.renew()
            self._is_stale = True
        if self._is_stale and self._ensure():
            self._is_stale = False
            self._send_current(list(self._store.keys()))

    def _ensure(self) -> bool:
        # The topics themselves may be gone.
        try:
            self._topics.ensure(_PATIENCE_S)
        except TransportError as error:
            _ERRORS.labels("kube", "kafka_unreachable").inc()
            self._warnings.warning("%s", error)
            return False
        return True

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9

    def _now_ms(self) -> int:
        return self._clock.unix_ns() // 1_000_000
