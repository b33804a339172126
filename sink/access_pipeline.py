"""Moves calls from Kafka to the access log, beside the metrics and never before them.

A thread with a consumer and a connection of its own: what makes it wait makes nothing else wait.
An error that repeating does not change is told, and the reader starts again later where it was;
the metrics go on meanwhile.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from confluent_kafka import TopicPartition

from schemas.errors import DecodeError, FatalError, PodwireError
from schemas.telemetry import counter
from schemas.topics import ACCESS_LOG
from sink.access_log import Sampling, read_calls
from sink.access_writer import CallWriter
from sink.consumer import DeadLetters, Lost, Source, Stopped
from sink.store import Store
from sink.writer import Retry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.clock import Clock
    from schemas.config import KafkaConfig
    from sink.access_log import Calls
    from sink.config import SinkConfig
    from sink.consumer import Record

__all__ = ["AccessLog", "CallPipeline"]

_READ: Final = 512
_READ_S: Final = 1.0
"""One insert a second holds many batches."""
_BYTES: Final = 32 << 20
"""Messages that are written together."""

log = logging.getLogger(__name__)


class CallPipeline:
    """Reads, writes and commits, in that order."""

    def __init__(
        self,
        source: Source,
        dead_letters: DeadLetters,
        writer: CallWriter,
        retry: Retry,
        clock: Clock,
        sampling: Sampling,
        bad_in_a_row: int,
    ) -> None:
        self._source = source
        self._dead_letters = dead_letters
        self._writer = writer
        self._retry = retry
        self._clock = clock
        self._sampling = sampling
        self._bad_in_a_row = bad_in_a_row
        self._bad = 0

    def step(self, timeout_s: float) -> int:
        """Take what has arrived, store it, commit it; return the number of messages."""
        records = self._source.read(_READ, timeout_s)
        came, _ = self._source.changes()
        self._writer.doubt(one.partition for one in came)
        for group in _groups(records):
            self._store(group)
        return len(records)

    def _store(self, records: Sequence[Record]) -> None:
        while mine := [one for one in records if self._source.owns(one.topic, one.partition)]:
            self._source.writing = {(one.topic, one.partition) for one in mine}
            try:
                decoded = [(one.partition, self._decoded(one)) for one in mine]
                self._writer.write([(at, calls) for at, calls in decoded if calls is not None])
            except Lost as error:
                # The others are written again, without what somebody else writes now.
                log.warning("%s was taken away in mid-insert", error)
                self._writer.doubt({one.partition for one in mine})
                continue
            finally:
                self._source.writing = ()
            ends = {(one.topic, one.partition): one.offset + 1 for one in mine}
            self._source.commit([TopicPartition(*key, at) for key, at in ends.items()])
            return

    def _decoded(self, record: Record) -> Calls | None:
        try:
            if record.value is None:
                raise DecodeError("empty message")
            calls = read_calls(record.value, self._sampling)
        except DecodeError as error:
            self._give_up(record, error)
            return None
        self._bad = 0
        return calls

    def _give_up(self, record: Record, error: DecodeError) -> None:
        log.warning("%s %d@%d: %s", record.topic, record.partition, record.offset, error.reason)
        self._bad += 1
        if self._bad >= self._bad_in_a_row:
            raise FatalError(
                f"{self._bad} messages in a row cannot be decoded, the last at {record.topic} "
                f"{record.partition}@{record.offset}: {error.reason}; is this software too old?"
            ) from error
        now_ms = self._clock.unix_ns() // 1_000_000
        self._retry(lambda: self._dead_letters.send(record, error.reason, now_ms))


def _groups(records: Sequence[Record]) -> list[list[Record]]:
    groups: list[list[Record]] = []
    size = 0
    for record in records:
        size += len(record.value or b"")
        if not groups or size > _BYTES:
            groups.append([])
            size = len(record.value or b"")
        groups[-1].append(record)
    return groups


class AccessLog:
    """The thread. `start` it once; `stop` waits for what it is writing."""

    def __init__(self, config: SinkConfig, kafka: KafkaConfig, clock: Clock) -> None:
        self._config = config
        self._kafka = kafka
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log")

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End after the insert that is under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._read()
            except Stopped:
                log.info("stopped while something was being repeated; it is not committed")
            except PodwireError as error:
                counter("podwire_errors_total").labels("sink", "access_log").inc()
                log.error("access log: %s; starting again", error)
                self._stop.wait(self._config.retry_max_s)
            except Exception:
                counter("podwire_errors_total").labels("sink", "access_log").inc()
                log.exception("access log: a mistake in this software; starting again")
                self._stop.wait(self._config.retry_max_s)

    def _read(self) -> None:
        config = self._config
        store = Store.connect(config)
        source = Source(
            self._kafka,
            config.access_log_group,
            self._stop,
            alone=config.embedded,
            topics=(ACCESS_LOG.name,),
        )
        try:
            source.start()
            retry = Retry(source.wait, config.retry_min_s, config.retry_max_s)
            pipeline = CallPipeline(
                source=source,
                dead_letters=DeadLetters(self._kafka),
                writer=CallWriter(store, retry, _READ),
                retry=retry,
                clock=self._clock,
                sampling=Sampling(
                    config.access_log_sample, round(config.access_log_slow_ms * 1_000_000)
                ),
                bad_in_a_row=config.bad_messages_in_a_row,
            )
            while not self._stop.is_set():
                pipeline.step(_READ_S)
        finally:
            source.close()
            store.close()
