"""The work of a stream worker between the topics: messages in, stored minutes out.

Knows neither Faust nor Kafka: `streams.ports` stands for them. One lock makes everything
happen in turn - a message, a tick of the clock, a revocation - so that no partition changes hands
in the middle of an emission.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TYPE_CHECKING

from schemas.entities import DeadLetter, encode_dead_letter, encode_entity
from schemas.errors import DecodeError, FatalError
from schemas.events import decode_batch
from schemas.metrics import encode_block
from schemas.telemetry import Health, RateLimited, counter, gauge
from schemas.topics import EVENTS
from streams.access_log import access_log_messages
from streams.aggregate import (
    contributions,
    duplicate,
    event_counts,
    header_minute,
    incident,
    plausible,
    split,
)
from streams.blocks import minute_blocks
from streams.endpoints import EndpointNames, EndpointSettings
from streams.naming import NamingSettings
from streams.outbox import Outbox
from streams.resolver import Resolver
from streams.sightings import Sightings
from streams.watching import Watching
from streams.windows import MinuteAggregator, WindowSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from schemas.clock import Clock
    from schemas.events import BatchHeader, EventBatch
    from schemas.monitoring import ScopeFile
    from streams.config import StreamsConfig
    from streams.directory import Directory
    from streams.minutes import Contribution
    from streams.ports import History, Output
    from streams.resolver import Resolution

__all__ = ["Pipeline"]

logger = logging.getLogger(__name__)

_WAIT_STEP_S = 0.05
_WAITED_LIMIT = 100_000


class Pipeline:
    """State and work of one worker.

    Args:
        settings: Of the worker.
        directory: Kubernetes objects; somebody else keeps it up to date.
        output: Where results go.
        history: Asked once for each partition taken over.
        clock: Processing time.
        health: Told of every progress.
        scope: What is watched; None is everything.
    """

    def __init__(
        self,
        settings: StreamsConfig,
        directory: Directory,
        output: Output,
        history: History,
        clock: Clock,
        health: Health | None = None,
        scope: ScopeFile | None = None,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._output = output
        self._history = history
        self._clock = clock
        self._health = health or Health()
        self._watching = Watching(scope)
        self._topic = EVENTS.name
        if settings.broker_epoch:
            self._topic += f"@{settings.broker_epoch}"
        self._windows = WindowSettings(
            settings.grace_s, settings.node_timeout_s, settings.close_after_s
        )
        self._resolver = Resolver(
            directory,
            NamingSettings(
                settings.host_processes == "process", settings.external_names, settings.cidr_names
            ),
        )
        self._endpoints = EndpointNames(
            EndpointSettings(settings.endpoint_name == "method_path", settings.max_endpoints)
        )
        self._outbox = Outbox()
        self._sightings = Sightings(int(settings.entity_refresh_s * 1000))
        self._partitions: dict[int, MinuteAggregator] = {}
        self._lock = asyncio.Lock()
        self._undecodable_run = 0
        self._waited: set[str | bytes] = set()
        self._errors = RateLimited(logger)

    def floor(self, partition: int) -> int | None:
        """The offset that may be committed, or None before the first message."""
        minutes = self._partitions.get(partition)
        if minutes is None:
            return None
        unsent = self._outbox.floor(partition)
        return minutes.floor if unsent is None else min(minutes.floor, unsent)

    async def receive(
        self,
        partition: int,
        offset: int,
        key: bytes,
        value: bytes,
        timestamp_s: float,
        committed: int | None = None,
    ) -> None:
        """Take in one message of the events topic.

        Args:
            partition: Of the message.
            offset: Of the message.
            key: Of the message.
            value: Of the message.
            timestamp_s: Of the message, Unix seconds.
            committed: Where the group's reading of this partition had to begin, if known.

        Raises:
            FatalError: If the client skipped messages, or too many in a row make no sense.
        """
        async with self._lock:
            minutes = await self._aggregator(partition, offset, committed)
            now_s = self._now_s()
            try:
                batch = decode_batch(value)
            except DecodeError as error:
                minute_s = int(timestamp_s // 60) * 60
                part = incident(minute_s, "", "", "undecodable", 1)
                await self._bury(partition, offset, key, value, timestamp_s, error)
                minutes.add(offset, [part], now_s)
            else:
                self._undecodable_run = 0
                parts = await self._parts(minutes, partition, offset, batch, now_s)
                minutes.add(offset, parts, now_s)
            counter("podwire_streams_batches_total").inc()
            self._health.progress()
            await self._emit_due(partition, minutes)

    async def tick(self) -> None:
        """Close what the clock alone makes due; call it a few times a second."""
        async with self._lock:
            self._outbox.check()
            for partition, minutes in list(self._partitions.items()):
                await self._emit_due(partition, minutes)
                if partition not in self._partitions:
                    continue
                age_s = self._now_s() - (minutes.oldest_minute_s or self._now_s())
                gauge("podwire_streams_committed_age_seconds").labels(partition).set(age_s)
            opened = sum(minutes.open_minutes for minutes in self._partitions.values())
            gauge("podwire_streams_open_minutes").set(opened)
            self._health.progress()

    async def revoke(self, partitions: Iterable[int]) -> None:
        """Forget partitions, after an emission under way: the next owner rebuilds their minutes."""
        async with self._lock:
            for partition in partitions:
                self._forget(partition)

    def _forget(self, partition: int) -> None:
        self._outbox.forget(partition)
        if self._partitions.pop(partition, None) is not None:
            # Its age is the new owner's to tell; a value that stays would look like a lag for ever.
            gauge("podwire_streams_committed_age_seconds").remove(partition)

    def _now_s(self) -> float:
        return self._clock.unix_ns() / 1e9

    async def _aggregator(
        self, partition: int, offset: int, committed: int | None
    ) -> MinuteAggregator:
        minutes = self._partitions.get(partition)
        if minutes is not None and offset < minutes.next_offset:
            # Read again from the floor: what was not stored is rebuilt.
            logger.info("partition %d goes back to offset %d", partition, offset)
            del self._partitions[partition]
            minutes = None
        if minutes is None:
            await self._check_gap(partition, committed, offset)
            emitted = await self._history.emitted(partition, self._topic, offset)
            minutes = MinuteAggregator(self._windows, offset, emitted)
            self._partitions[partition] = minutes
            logger.info(
                "partition %d from offset %d, %d minutes stored beyond it",
                partition,
                offset,
                len(emitted),
            )
        elif offset > minutes.next_offset:
            await self._check_gap(partition, minutes.next_offset, offset)
        return minutes

    async def _check_gap(self, partition: int, expected: int | None, offset: int) -> None:
        # Offsets may be missing from a topic (retention); a client that skips some must not go on.
        if expected is None or offset <= expected:
            return
        first = await self._history.first_offset(partition, expected)
        if first < offset:
            raise FatalError(
                f"events partition {partition}: message {first} was skipped, got {offset}"
            )
        logger.warning(
            "events partition %d has no offsets %d to %d any more", partition, expected, offset - 1
        )

    async def _parts(
        self,
        minutes: MinuteAggregator,
        partition: int,
        offset: int,
        batch: EventBatch,
        now_s: float,
    ) -> list[Contribution]:
        header = batch.header
        reception = minutes.receive(header, now_s)
        if reception.duplicate:
            _count_events(batch, None)
            return [duplicate(batch)]
        await self._let_be_told(header, now_s)
        resolution = await self._resolve(batch)
        resolution.excluded = self._watching.excluded(batch, resolution)
        excluded = None
        if resolution.excluded is not None:
            batch, excluded = split(batch, resolution.excluded)
        batch = self._named(batch, resolution)
        parts = contributions(batch, resolution, excluded)
        if self._settings.access_log:
            await self._log(partition, offset, batch, resolution)
        _count_events(batch, parts)
        for reason, count in (
            ("sequence_gap", reception.missing),
            ("unclean_restart", int(reception.unclean)),
        ):
            if count:
                self._errors.warning("node %s: %s (%d)", header.node, reason, count)
                _join(parts, header, reason, count)
        return parts

    def _named(self, batch: EventBatch, resolution: Resolution) -> EventBatch:
        before = self._endpoints.others
        batch = self._endpoints.name(batch, resolution)
        if self._endpoints.others > before:
            counter("podwire_streams_endpoints_other_total").inc(self._endpoints.others - before)
        return batch

    async def _log(
        self, partition: int, offset: int, batch: EventBatch, resolution: Resolution
    ) -> None:
        messages = access_log_messages(plausible(batch), resolution, self._directory.container_name)
        if messages:
            sent = await self._output.begin_access_log(batch.header.node.encode(), messages)
            counter("podwire_streams_access_log_messages_total").inc(len(messages))
            await self._outbox.add(partition, offset, sent)

    async def _let_be_told(self, header: BatchHeader, now_s: float) -> None:
        # An address that changed hands means its former pod until Kubernetes tells of the next one.
        delay_s = self._settings.metadata_delay_s
        age_s = now_s - header.last_event_ns / 1e9
        # A node whose clock is further ahead than that is not waited for: all others would be, too.
        if self._directory.has_pods and abs(age_s) < delay_s:
            await asyncio.sleep(delay_s - age_s)

    async def _resolve(self, batch: EventBatch) -> Resolution:
        resolution = self._resolver.resolve(batch)
        missing = resolution.missing - self._waited
        if not missing:
            return resolution
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._settings.metadata_wait_s
        generation = self._directory.generation
        while missing and loop.time() < deadline_s:
            await asyncio.sleep(_WAIT_STEP_S)
            if self._directory.generation != generation:
                generation = self._directory.generation
                resolution = self._resolver.resolve(batch)
                missing &= resolution.missing
        outcome = "missed" if missing else "resolved"
        counter("podwire_streams_metadata_waits_total").labels(outcome).inc()
        if len(self._waited) > _WAITED_LIMIT:
            self._waited.clear()
        self._waited |= missing  # each is waited for once
        return resolution

    async def _emit_due(self, partition: int, minutes: MinuteAggregator) -> None:
        due = minutes.due(self._now_s())
        if due and not await self._output.owns(partition, self.floor(partition) or 0):
            # A worker that was stopped for longer than its session must not write beside the one
            # that took over.
            logger.warning("partition %d belongs to another worker now", partition)
            self._forget(partition)
            return
        for minute_s in due:
            closed = minutes.close(minute_s)
            # Entities first: were they sent after the block, a crash between the two would lose
            # them, because a stored minute is never emitted again.
            entities = self._sightings.of_minute(minute_s, closed.sums)
            if entities:
                await self._output.send_entities([(e.key, encode_entity(e)) for e in entities])
            blocks = minute_blocks(
                closed, self._topic, partition, uuid.uuid4().hex, self._settings.rows_per_block
            )
            await self._output.send_blocks(partition, [encode_block(block) for block in blocks])
            minutes.stored(minute_s)
            outcome = "late" if closed.late else "emitted"
            counter("podwire_streams_blocks_total").labels(outcome).inc()
            for block in blocks:
                for table in block.tables:
                    counter("podwire_streams_rows_total").labels(table.table).inc(table.rows)

    async def _bury(
        self,
        partition: int,
        offset: int,
        key: bytes,
        value: bytes,
        timestamp_s: float,
        error: DecodeError,
    ) -> None:
        self._undecodable_run += 1
        self._errors.warning(
            "events partition %d offset %d is no batch: %s", partition, offset, error
        )
        letter = DeadLetter(
            stage="streams",
            topic=EVENTS.name,
            partition=partition,
            offset=offset,
            reason=error.reason,
            key=key,
            payload=value,
            time_ms=int(timestamp_s * 1000),
        )
        await self._output.send_dead_letter(EVENTS.name.encode(), encode_dead_letter(letter))
        counter("podwire_dead_letters_total").labels("streams", EVENTS.name).inc()
        if self._undecodable_run > self._settings.undecodable_limit:
            raise FatalError(
                f"{self._undecodable_run} undecodable messages in a row on {EVENTS.name},"
                f" the last because: {error}"
            )


def _join(parts: list[Contribution], header: BatchHeader, reason: str, count: int) -> None:
    # Into the contribution of the header's minute, so that a minute has one per message.
    extra = incident(header_minute(header), header.cluster, header.node, reason, count)  # type: ignore[arg-type]
    for part in parts:
        if part.minute_s == extra.minute_s:
            for key, counts in extra.ledger.items():
                part.count(key, *counts)
            return
    parts.append(extra)


def _count_events(batch: EventBatch, parts: Sequence[Contribution] | None) -> None:
    # The same numbers as the ledger's, for Prometheus.
    total = counter("podwire_ledger_total")
    if parts is None:
        for kind, rows in event_counts(batch).items():
            total.labels("streams", kind, "in").inc(rows)
            total.labels("streams", kind, "duplicate").inc(rows)
        return
    for part in parts:
        for (_, _, stage, kind, reason), (entered, left, dropped) in part.ledger.items():
            if stage == "streams":
                total.labels(stage, kind, "in").inc(entered)
                total.labels(stage, kind, "out").inc(left)
                if dropped:
                    total.labels(stage, kind, reason).inc(dropped)
        for stage, count in part.exceeding().items():
            counter("podwire_streams_part_exceeds_whole_total").labels(stage).inc(count)
