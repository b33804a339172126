"""Wires the sink: Kafka to tables, and the offsets behind.

One thread reads and writes. An offset is committed after everything before it is in the tables:
a block after its last insert returned, an open block not at all.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from confluent_kafka import TopicPartition

from schemas.entities import decode_dead_letter, decode_entity
from schemas.errors import DecodeError, FatalError
from schemas.metrics import decode_block
from schemas.telemetry import counter
from schemas.topics import DEAD_LETTER, ENTITIES, METRICS
from sink.batches import check_block, dead_letter_insert, entity_inserts
from sink.blocks import Assembler
from sink.consumer import Lost, Stopped

if TYPE_CHECKING:
    import threading

    from schemas.clock import Clock
    from schemas.entities import DeadLetter, Entity
    from schemas.telemetry import Health
    from sink.consumer import DeadLetters, Record, Source
    from sink.store import Store
    from sink.writer import BlockWriter, Retry

__all__ = ["Pipeline"]

_READ: Final = 64
_READ_S: Final = 0.2

log = logging.getLogger(__name__)


class Pipeline:
    """Moves messages to tables until it is asked to stop."""

    def __init__(
        self,
        source: Source,
        dead_letters: DeadLetters,
        store: Store,
        writer: BlockWriter,
        retry: Retry,
        clock: Clock,
        health: Health,
        stop: threading.Event,
        bad_in_a_row: int,
    ) -> None:
        self._source = source
        self._dead_letters = dead_letters
        self._store = store
        self._writer = writer
        self._retry = retry
        self._clock = clock
        self._health = health
        self._stop = stop
        self._bad_in_a_row = bad_in_a_row
        self._bad = 0
        self._assemblers: dict[int, Assembler] = {}
        self._entities: list[Entity] = []
        self._letters: list[DeadLetter] = []

    def run(self) -> None:
        """Read and write until the stop event.

        Raises:
            FatalError: If too many messages in a row cannot be decoded, or the database refuses
                something that repeating will not change.
        """
        try:
            while not self._stop.is_set():
                self.step(_READ_S)
        except Stopped:
            # In the middle of a repetition: what it was about is read again after the restart.
            log.info("stopped while something was being repeated; it is not committed")

    def step(self, timeout_s: float) -> int:
        """Take what has arrived, store it, commit it; return the number of messages."""
        records = self._source.read(_READ, timeout_s)
        self._follow_assignment()
        done: dict[tuple[str, int], int] = {}
        for record in records:
            if self._stop.is_set() and done:
                break
            if not self._source.owns(record.topic, record.partition):
                continue
            self._source.writing = ((record.topic, record.partition),)
            try:
                self._take(record)
            except Lost:
                # The new owner reads the block again; this copy ends here.
                log.warning("%s %d was taken away in mid-block", record.topic, record.partition)
                continue
            finally:
                self._source.writing = ()
            done[record.topic, record.partition] = record.offset + 1
        self._flush()
        self._source.commit([self._commit_point(*key, at) for key, at in done.items()])
        self._health.progress()
        return len(records)

    def _follow_assignment(self) -> None:
        came, went = self._source.changes()
        gone = [p.partition for p in went if p.topic == METRICS.name]
        self._writer.revoke(gone)
        for partition in gone:
            self._assemblers.pop(partition, None)
        new = [
            p.partition
            for p in came
            if p.topic == METRICS.name and self._source.owns(p.topic, p.partition)
        ]
        if came or went:
            log.info("metrics partitions: %d came, %d went", len(new), len(gone))
        for partition in new:
            self._assemblers[partition] = Assembler()
        self._writer.assign(new)

    def _take(self, record: Record) -> None:
        try:
            if record.topic == METRICS.name:
                self._take_block(record)
            elif record.topic == ENTITIES.name:
                if record.value is not None:
                    self._entities.append(decode_entity(record.value))
            elif record.topic == DEAD_LETTER.name and record.value is not None:
                self._letters.append(decode_dead_letter(record.value))
        except DecodeError as error:
            self._give_up(record, error)
        else:
            self._bad = 0

    def _take_block(self, record: Record) -> None:
        if record.value is None:
            raise DecodeError("empty message")
        block = decode_block(record.value)
        check_block(block)
        if block.identity.partition != record.partition:
            raise DecodeError(
                f"block of partition {block.identity.partition} in partition {record.partition}"
            )
        assembler = self._assemblers[record.partition]
        if self._writer.is_leftover(block.identity, assembler, record.offset):
            counter("podwire_sink_blocks_total").labels("leftover").inc()
            return
        whole = assembler.add(record.offset, block)
        stored = None
        if whole is not None and self._writer.write(whole) != "overlapping":
            stored = whole.identity
        for attempt in assembler.give_up(stored):
            counter("podwire_sink_blocks_total").labels("abandoned").inc()
            self._writer.drop(
                record.partition, attempt.first_offset, "abandoned", attempt.identity.minute_s
            )

    def _give_up(self, record: Record, error: DecodeError) -> None:
        log.warning("%s %d@%d: %s", record.topic, record.partition, record.offset, error.reason)
        if record.topic == DEAD_LETTER.name:
            # A dead letter about a dead letter would come back for ever.
            counter("podwire_errors_total").labels("sink", "bad_dead_letter").inc()
            return
        self._bad += 1
        if self._bad >= self._bad_in_a_row:
            raise FatalError(
                f"{self._bad} messages in a row cannot be decoded, the last at {record.topic} "
                f"{record.partition}@{record.offset}: {error.reason}; is this software too old?"
            ) from error
        now_ms = self._clock.unix_ns() // 1_000_000
        self._retry(lambda: self._dead_letters.send(record, error.reason, now_ms))
        if record.topic == METRICS.name:
            minute_s = record.time_ms // 60_000 * 60
            self._writer.drop(record.partition, record.offset, "undecodable", minute_s)

    def _flush(self) -> None:
        inserts = entity_inserts(self._entities)
        if self._letters:
            inserts.append(dead_letter_insert(self._letters))
        for insert in inserts:
            self._retry(lambda insert=insert: self._store.insert(insert))  # type: ignore[misc]
        self._entities.clear()
        self._letters.clear()

    def _commit_point(self, topic: str, partition: int, next_offset: int) -> TopicPartition:
        assembler = self._assemblers.get(partition) if topic == METRICS.name else None
        at = assembler.floor(next_offset) if assembler else next_offset
        return TopicPartition(topic, partition, at)
