"""Moves the access log topic to OAPs: reads, converts period by period, commits what has left.

One thread reads and converts; others send (`sink.oap.sender`). The reader never waits for an OAP
longer than Kafka allows: with a full buffer it pauses its partitions, and where no OAP answers it
drops the oldest.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from confluent_kafka import TopicPartition

from schemas.errors import DecodeError, FatalError
from schemas.events import decode_batch
from schemas.telemetry import counter, gauge
from schemas.topics import ACCESS_LOG
from sink.consumer import Stopped
from sink.oap.convert import convert

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from schemas.clock import Clock
    from schemas.events import EventBatch, NetInterface
    from schemas.telemetry import Health
    from sink.consumer import DeadLetters, Record, Source
    from sink.oap.buffer import Buffer, Partition
    from sink.oap.config import ForwarderConfig
    from sink.oap.sender import Senders
    from sink.writer import Retry

__all__ = ["Forwarder"]

_READ: Final = 32
_READ_S: Final = 0.2
_RUNS: Final = 10_000
_HEALTHY_S: Final = 60.0
_QUIET_S: Final = 60.0

log = logging.getLogger(__name__)

NodeKey = tuple[str, str, str]
"""cluster, node, boot."""


class Forwarder:
    """The reading side. `run` it in the main thread."""

    def __init__(
        self,
        config: ForwarderConfig,
        source: Source,
        dead_letters: DeadLetters,
        retry: Retry,
        buffer: Buffer,
        senders: Senders,
        clock: Clock,
        health: Health,
        stop: threading.Event,
    ) -> None:
        self._config = config
        self._choices, self._limits = config.choices(), config.limits()
        self._source = source
        self._dead_letters = dead_letters
        self._retry = retry
        self._buffer = buffer
        self._senders = senders
        self._clock = clock
        self._health = health
        self._stop = stop
        self._bad = 0
        self._newest: dict[tuple[int, str], tuple[int, int]] = {}
        self._interfaces: dict[NodeKey, Sequence[NetInterface]] = {}
        self._collected: dict[NodeKey, list[tuple[Partition, EventBatch]]] = {}
        self._collected_logs = 0
        self._collected_bytes = 0
        self._offsets: dict[Partition, int] = {}
        self._begun = self._last_read = time.monotonic()
        self._partitions: set[Partition] = set()

    def run(self) -> None:
        """Move messages until the stop event, then what was read, as far as it goes.

        Raises:
            FatalError: If too many messages in a row cannot be decoded.
        """
        try:
            while not self._stop.is_set():
                self.step(_READ_S)
        except Stopped:
            log.info("stopped while waiting")
        self._flush()
        if not self._buffer.wait_empty(self._config.stop_grace_s):
            log.warning("%d logs left; they are read again", self._buffer.logs)
        self._commit()

    def step(self, timeout_s: float) -> int:
        """Take what has arrived, convert it when a period is over, commit what has left."""
        records: list[Record] = []
        if self._has_room():
            records = self._source.read(_READ, timeout_s)
        else:
            self._source.wait(timeout_s)
        self._follow_assignment()
        for record in records:
            if self._source.owns(record.topic, record.partition):
                self._take(record)
            if self._collected_bytes >= self._config.period_mb << 20:
                self._flush()
        if time.monotonic() - self._begun >= self._config.period_s:
            self._flush()
        self._commit()
        self._look_for_silence(records)
        failing_s = self._senders.failing_s()
        gauge("podwire_forwarder_waiting_logs").set(self._buffer.logs + self._collected_logs)
        gauge("podwire_forwarder_waiting_bytes").set(self._buffer.size)
        gauge("podwire_forwarder_failing_seconds").set(failing_s)
        if failing_s < _HEALTHY_S:
            self._health.progress()
        return len(records)

    def _look_for_silence(self, records: Sequence[Record]) -> None:
        # A forwarder for which nobody writes looks just like one that has everything sent.
        now = time.monotonic()
        if records or not self._partitions or not self._buffer.room():
            self._last_read = now
        elif now - self._last_read >= _QUIET_S:
            self._last_read = now
            log.warning(
                "nothing on %s for %g s: do stream workers run, with streams.access_log?",
                ACCESS_LOG.name,
                _QUIET_S,
            )

    def _has_room(self) -> bool:
        while not self._buffer.room():
            # A slow OAP makes us slow, and Kafka keeps the rest; a dead one costs the oldest.
            if self._senders.failing_s() <= self._config.patience_s:
                return False
            if not self._buffer.drop_oldest():
                return False
        return True

    def _follow_assignment(self) -> None:
        came, went = self._source.changes()
        gone = {(one.topic, one.partition) for one in went}
        new = {(one.topic, one.partition) for one in came}
        self._partitions = {at for at in self._partitions | new if self._source.owns(*at)}
        fresh = gone | new
        for key in [key for key in self._newest if any(key[0] == at for _, at in fresh)]:
            del self._newest[key]
        if not gone:
            return
        # Nothing of it is committed: whoever has the partition now reads it again.
        count = self._buffer.give_away(gone)
        for node, batches in list(self._collected.items()):
            kept = [(at, batch) for at, batch in batches if at not in gone]
            count += sum(batch.events for at, batch in batches if at in gone)
            self._collected_logs -= sum(batch.events for at, batch in batches if at in gone)
            self._collected[node] = kept
        for partition in gone:
            self._offsets.pop(partition, None)
        if count:
            counter("podwire_forwarder_logs_total").labels("given_away").inc(count)

    def _take(self, record: Record) -> None:
        partition = (record.topic, record.partition)
        try:
            batch = _decoded(record)
        except DecodeError as error:
            self._give_up(record, error)
        else:
            self._bad = 0
            self._collect(partition, batch, len(record.value or b""))
        self._offsets[partition] = record.offset + 1

    def _collect(self, partition: Partition, batch: EventBatch, size: int) -> None:
        header = batch.header
        logs = counter("podwire_forwarder_logs_total")
        logs.labels("in").inc(batch.events)
        # Batches of a run come in order; what a restarted stream worker sends again is not new.
        key, place = (partition[1], header.run_id), (header.sequence, header.part)
        if place <= self._newest.get(key, (-1, -1)):
            logs.labels("duplicate").inc(batch.events)
            return
        self._newest.pop(key, None)
        self._newest[key] = place
        if len(self._newest) > _RUNS:
            del self._newest[next(iter(self._newest))]
        node = (header.cluster, header.node, header.boot_id)
        if header.interfaces:
            self._interfaces.pop(node, None)
            self._interfaces[node] = header.interfaces
            if len(self._interfaces) > _RUNS:
                del self._interfaces[next(iter(self._interfaces))]
        self._collected.setdefault(node, []).append((partition, batch))
        self._collected_logs += batch.events
        self._collected_bytes += size

    def _flush(self) -> None:
        self._begun = time.monotonic()
        collected, self._collected = self._collected, {}
        self._collected_bytes = self._collected_logs = 0
        offsets, self._offsets = self._offsets, {}
        rounds = {at: self._buffer.begin(at, offset) for at, offset in offsets.items()}
        logs = counter("podwire_forwarder_logs_total")
        for node, batches in collected.items():
            if not batches:
                continue
            events = [batch for _, batch in batches]
            converted = convert(
                events,
                self._choices,
                self._limits,
                _span_s(events),
                self._interfaces.get(node, ()),
            )
            for reason, count in converted.dropped.items():
                logs.labels(reason).inc(count)
            mine = [rounds[at] for at in dict.fromkeys(at for at, _ in batches)]
            for stream in converted.streams:
                self._buffer.put(stream, mine)
        for round_ in rounds.values():
            self._buffer.end(round_)

    def _commit(self) -> None:
        finished = self._buffer.finished()
        if finished:
            self._source.commit([TopicPartition(*at, offset) for at, offset in finished.items()])

    def _give_up(self, record: Record, error: DecodeError) -> None:
        log.warning("%s %d@%d: %s", record.topic, record.partition, record.offset, error.reason)
        self._bad += 1
        if self._bad >= self._config.bad_messages_in_a_row:
            raise FatalError(
                f"{self._bad} messages in a row cannot be decoded, the last at {record.topic} "
                f"{record.partition}@{record.offset}: {error.reason}; is this software too old?"
            ) from error
        now_ms = self._clock.unix_ns() // 1_000_000
        self._retry(lambda: self._dead_letters.send(record, error.reason, now_ms))


def _span_s(batches: Sequence[EventBatch]) -> float:
    # By the clock of the events: after an outage many seconds of them come in one.
    headers = [batch.header for batch in batches if batch.header.last_event_ns]
    first = min((header.first_event_ns for header in headers), default=0)
    last = max((header.last_event_ns for header in headers), default=0)
    return max((last - first) / 1e9, 1.0)


def _decoded(record: Record) -> EventBatch:
    if record.value is None:
        raise DecodeError("empty message")
    batch = decode_batch(record.value)
    if not batch.header.run_id:
        raise DecodeError("a batch of no run")
    if batch.events and not batch.parties.rows:
        raise DecodeError("events without the names of their ends")
    for table in (batch.opens, batch.closes, batch.transfers, batch.requests, batch.drops):
        if table.rows and int(table.end_ns.max()) >= 1 << 63:
            raise DecodeError(f"an event that ended at {int(table.end_ns.max())} ns")
    return batch
