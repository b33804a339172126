"""Publishes a recording instead of the kernel's events, as a new run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import numpy as np

from collector.recording import read_recording
from schemas.columns import UNMEASURED_U64
from schemas.errors import DecodeError, TransportError
from schemas.events import EventBatch, decode_batch, encode_batch

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from pathlib import Path

    from collector.publisher import Publisher
    from schemas.clock import Clock

__all__ = ["PACES", "TIMES", "Renumbering", "Span", "replay", "shifted", "survey"]

TIMES: Final = ("shift", "keep")
"""shift: as if it happened now; keep: as recorded."""
PACES: Final = ("recorded", "fast")
"""recorded: as quickly as it was; fast: as quickly as Kafka takes it."""

_LOG: Final = logging.getLogger("podwire.collector.replay")
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Span:
    """What a recording holds."""

    batches: int
    events: int
    first_ns: int
    """Unix time at which the first batch was closed."""
    last_ns: int


def survey(path: Path) -> Span:
    """Read a whole recording once, so that a damaged one fails before anything is sent.

    Raises:
        DecodeError: If it is damaged, empty or holds something else.
    """
    times: list[int] = []
    events = 0
    for batch in _batches(path):
        times.append(batch.header.anchor_unix_ns)
        events += batch.events
    if not times:
        raise DecodeError(f"{path}: the recording is empty")
    return Span(len(times), events, min(times), max(times))


def shifted(batch: EventBatch, delta_ns: int) -> EventBatch:
    """Move every time of a batch, in place; returns it."""
    header = batch.header
    delta = np.int64(delta_ns).astype(np.uint64)  # wraps, as adding a negative number should
    for table in (batch.opens, batch.closes, batch.transfers, batch.requests, batch.drops):
        table.end_ns = table.end_ns + delta
    calls = batch.requests
    calls.start_ns = calls.start_ns + delta
    known = calls.first_byte_ns != UNMEASURED_U64
    calls.first_byte_ns = np.where(known, calls.first_byte_ns + delta, UNMEASURED_U64)
    if batch.events:
        header.first_event_ns += delta_ns
        header.last_event_ns += delta_ns
    header.watermark_ns = max(0, header.watermark_ns + delta_ns)
    header.anchor_unix_ns += delta_ns
    return batch


@dataclass(slots=True)
class Renumbering:
    """Gives each recorded run a new identity and batch numbers without gaps."""

    _runs: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)

    def apply(self, batch: EventBatch) -> EventBatch:
        """Change the header in place; returns the batch."""
        header = batch.header
        key = (header.node, header.run_id)
        run_id, sequence = self._runs.get(key) or (uuid4().hex, 0)
        header.run_id, header.sequence = run_id, sequence
        self._runs[key] = (run_id, sequence + 1)
        return batch


def replay(
    path: Path,
    publisher: Publisher,
    clock: Clock,
    stop: threading.Event,
    *,
    times: str,
    pace: str,
    queue_bytes: int,
    timeout_s: float,
) -> Span:
    """Publish a recording.

    Shifted times end now with pace ``fast``, and begin now with pace ``recorded``, so that they
    end at the moment at which the last batch is sent. The last batch is final in any case.

    Args:
        path: The recording.
        publisher: Where batches go.
        clock: Gives now.
        stop: Ends the replay early when set.
        times: One of `TIMES`.
        pace: One of `PACES`.
        queue_bytes: How much may wait for Kafka.
        timeout_s: How long Kafka may take nothing.

    Raises:
        DecodeError: If the recording is damaged.
        TransportError: If Kafka did not take all of it.
    """
    span = survey(path)
    started = clock.unix_ns()
    delta = started - (span.first_ns if pace == "recorded" else span.last_ns)
    renumbering = Renumbering()
    for number, batch in enumerate(_batches(path), 1):
        due = started + batch.header.anchor_unix_ns - span.first_ns
        while pace == "recorded" and clock.unix_ns() < due and not stop.is_set():
            publisher.poll()
            stop.wait(min(_POLL_S, max(0, due - clock.unix_ns()) / 1e9))
        if stop.is_set():
            break
        if times == "shift":
            shifted(batch, delta)
        renumbering.apply(batch)
        batch.header.final = batch.header.final or number == span.batches
        message = encode_batch(batch)
        _await_room(publisher, len(message), queue_bytes, timeout_s)
        publisher.offer(batch.header.node, message, batch.header.ledger)
    left = publisher.flush(timeout_s)
    if left or publisher.undelivered:
        publisher.abandon()
        raise TransportError(f"kafka did not take {publisher.undelivered} batches of {path}")
    _LOG.info("replayed %d events in %d batches", span.events, span.batches)
    return span


def _await_room(publisher: Publisher, size: int, queue_bytes: int, timeout_s: float) -> None:
    # Half of the queue, because librdkafka counts its own overhead too.
    while publisher.queued_bytes and publisher.queued_bytes + size > queue_bytes // 2:
        before = publisher.queued_bytes
        publisher.flush(timeout_s)
        if publisher.queued_bytes == before:
            raise TransportError("kafka takes nothing")


def _batches(path: Path) -> Iterator[EventBatch]:
    for message in read_recording(path):
        try:
            yield decode_batch(message)
        except DecodeError as error:
            raise DecodeError(f"{path}: {error.reason}") from error
