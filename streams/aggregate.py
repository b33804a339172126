"""From the events of a batch to what they add to minutes.

Pure. A batch becomes one `Contribution` per minute that it touches; what was dropped on the way,
and why, is in its ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from streams.losses import Losses, losses_of
from streams.minutes import Contribution
from streams.requests import Calls, call_sums
from streams.tls import Protected, protected_of
from streams.transfers import EVENT_COLUMNS, relation_sums

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from schemas.columns import U32, U64
    from schemas.events import BatchHeader, Closes, Drops, EventBatch, Opens, Requests, Transfers
    from schemas.ledger import Entry, Reason
    from streams.histograms import Values
    from streams.identity import Relation
    from streams.resolver import Resolution

__all__ = [
    "contributions",
    "duplicate",
    "event_counts",
    "header_minute",
    "incident",
    "plausible",
    "split",
]

_MINUTE_NS: Final = 60_000_000_000
_SANE_NS: Final = 6 * 3600 * 1_000_000_000
_ALL_EVENTS: Final = tuple(place for places in EVENT_COLUMNS.values() for place in places)


@dataclass(frozen=True, slots=True)
class _Events:
    # Some of a batch's events, in order of their kinds.
    opens: Opens
    closes: Closes
    transfers: Transfers
    requests: Requests
    drops: Drops

    @classmethod
    def of(cls, batch: EventBatch) -> _Events:
        return cls(batch.opens, batch.closes, batch.transfers, batch.requests, batch.drops)

    @property
    def times(self) -> tuple[U64, ...]:
        return (
            self.opens.end_ns,
            self.closes.end_ns,
            self.transfers.end_ns,
            self.requests.end_ns,
            self.drops.end_ns,
        )

    def take(self, chosen: list[NDArray[np.bool_]]) -> _Events:
        return _Events(
            self.opens.take(chosen[0]),
            self.closes.take(chosen[1]),
            self.transfers.take(chosen[2]),
            self.requests.take(chosen[3]),
            self.drops.take(chosen[4]),
        )

    @property
    def connections(self) -> tuple[U32, ...]:
        return (
            self.opens.connection,
            self.closes.connection,
            self.transfers.connection,
            self.requests.connection,
            self.drops.connection,
        )

    def put_into(self, batch: EventBatch) -> EventBatch:
        return replace(
            batch,
            opens=self.opens,
            closes=self.closes,
            transfers=self.transfers,
            requests=self.requests,
            drops=self.drops,
        )

    def counts(self) -> dict[str, int]:
        return dict(zip(EVENT_COLUMNS, map(len, self.times), strict=True))


def event_counts(batch: EventBatch) -> dict[str, int]:
    """Return how many events of each kind a batch holds."""
    return _Events.of(batch).counts()


def header_minute(header: BatchHeader) -> int:
    """Return the minute (Unix seconds) that a batch's own ledger belongs to."""
    time_ns = header.last_event_ns or header.watermark_ns or header.anchor_unix_ns
    return max(time_ns, 0) // _MINUTE_NS * 60


def plausible(batch: EventBatch) -> EventBatch:
    """Return the batch less the events whose time cannot be."""
    possible, impossible = _plausible(batch)
    return batch if impossible is None else possible.put_into(batch)


def split(batch: EventBatch, left_out: NDArray[np.bool_]) -> tuple[EventBatch, EventBatch]:
    """Return the batch twice: without the events of some connections, and with no others.

    Args:
        batch: Its connections are in both.
        left_out: Shape (connections,), whether a connection's events are in the second one.
    """
    events = _Events.of(batch)
    chosen = [left_out[connection] for connection in events.connections]
    return events.take([~rows for rows in chosen]).put_into(batch), events.take(chosen).put_into(
        batch
    )


def contributions(
    batch: EventBatch, resolution: Resolution, excluded: EventBatch | None = None
) -> list[Contribution]:
    """Return what the batch adds to each minute it touches, its ledger included.

    Args:
        batch: Its requests with the names of their endpoints: see `streams.endpoints`.
        resolution: Who its connections are.
        excluded: The batch's events that are outside the monitoring scope: see `split`. They touch
            their minutes all the same, which must not depend on the scope: a minute's first batch
            is part of its identity.
    """
    found: dict[int, Contribution] = {}
    events, impossible = _plausible(batch)
    if impossible is not None:
        _drop_malformed(found, batch.header, impossible)
    if excluded is not None:
        _drop_excluded(found, excluded)
    relations = resolution.relations
    for minute_s, of_minute in _by_minute(events):
        part = found.setdefault(minute_s, Contribution(minute_s))
        sums, stages = relation_sums(
            resolution.index,
            len(relations),
            of_minute.opens,
            of_minute.closes,
            of_minute.transfers,
            of_minute.requests,
            of_minute.drops,
        )
        calls = None
        if of_minute.requests.rows:
            relation = resolution.index[of_minute.requests.connection]
            calls = call_sums(of_minute.requests, relation, len(relations), batch.names)
        losses = losses_of(of_minute.drops, resolution.index, batch.names)
        protected = protected_of(
            batch.connections,
            of_minute.closes,
            of_minute.transfers,
            resolution.index,
            batch.names,
        )
        _keep(part, batch.header, relations, sums, stages, calls, losses, protected)
    _add_header(found, batch.header)
    return [found[minute_s] for minute_s in sorted(found)]


def _plausible(batch: EventBatch) -> tuple[_Events, _Events | None]:
    # The events whose time can be, and if there are any, those whose time cannot.
    events = _Events.of(batch)
    spans = [(int(times.min()), int(times.max())) for times in events.times if len(times)]
    header = batch.header
    around = header.anchor_unix_ns or header.watermark_ns or header.last_event_ns
    if not spans or (
        min(span[0] for span in spans) >= around - _SANE_NS
        and max(span[1] for span in spans) <= around + _SANE_NS
    ):
        return events, None
    low, high = np.uint64(max(around - _SANE_NS, 0)), np.uint64(max(around + _SANE_NS, 0))
    sane = [(times >= low) & (times <= high) for times in events.times]
    return events.take(sane), events.take([~rows for rows in sane])


def _by_minute(events: _Events) -> Iterator[tuple[int, _Events]]:
    # Most batches lie in one minute.
    spans = [(int(times.min()), int(times.max())) for times in events.times if len(times)]
    if not spans:
        return
    first = min(span[0] for span in spans) // _MINUTE_NS
    if first == max(span[1] for span in spans) // _MINUTE_NS:
        yield first * 60, events
        return
    minutes = [times // np.uint64(_MINUTE_NS) for times in events.times]
    for minute in np.unique(np.concatenate(minutes)).tolist():
        yield minute * 60, events.take([of_row == minute for of_row in minutes])


def _keep(
    part: Contribution,
    header: BatchHeader,
    relations: list[Relation],
    sums: U64,
    stages: list[Values],
    calls: Calls | None,
    losses: Losses,
    protected: Protected,
) -> None:
    # Rows of relations that had events, less those inside one pod; and the ledger of all.
    events = sums[:, _ALL_EVENTS].sum(axis=1)
    internal = np.array([relation.internal for relation in relations], bool)
    kept = np.flatnonzero((events > 0) & ~internal)
    if len(kept) == len(relations):
        part.relations, part.sums, part.stages, part.calls = relations, sums, stages, calls
        part.losses, part.protected = losses, protected
    else:
        part.relations = [relations[place] for place in kept.tolist()]
        part.sums = sums[kept]
        places = np.full(len(relations), -1, np.intp)
        places[kept] = np.arange(len(kept))
        part.stages = [values.within(places) for values in stages]
        part.calls = None if calls is None else calls.within(places)
        part.losses = {
            (int(places[place]), reason): packets
            for (place, reason), packets in losses.items()
            if places[place] >= 0
        }
        part.protected = {
            (int(places[key[0]]), *key[1:]): counts
            for key, counts in protected.items()
            if places[key[0]] >= 0
        }
    for kind, columns in EVENT_COLUMNS.items():
        each = sums[:, columns].sum(axis=1)
        total, inside = int(each.sum()), int(each[internal].sum())
        key = (header.cluster, header.node, "streams", kind)
        if total:
            part.count((*key, ""), total, total - inside, 0)
        if inside:
            part.count((*key, "pod_internal"), 0, 0, inside)
    unknown = np.array([not relation.remote.instance for relation in part.relations], bool)
    unnamed = int(events[kept][unknown].sum())
    if unnamed:
        key_ = (header.cluster, header.node, "streams", "connection", "instance_relation_dropped")
        part.count(key_, unnamed, 0, unnamed)


def _drop_malformed(found: dict[int, Contribution], header: BatchHeader, events: _Events) -> None:
    own = header_minute(header)
    _drop(found.setdefault(own, Contribution(own)), header, events.counts(), "malformed")


def _drop_excluded(found: dict[int, Contribution], excluded: EventBatch) -> None:
    events, impossible = _plausible(excluded)
    if impossible is not None:
        _drop_malformed(found, excluded.header, impossible)
    for minute_s, of_minute in _by_minute(events):
        part = found.setdefault(minute_s, Contribution(minute_s))
        _drop(part, excluded.header, of_minute.counts(), "excluded")


def _drop(
    part: Contribution, header: BatchHeader, counts: Mapping[str, int], reason: Reason
) -> None:
    for kind, rows in counts.items():
        if rows:
            key = (header.cluster, header.node, "streams", kind)
            part.count((*key, ""), rows, 0, 0)
            part.count((*key, reason), 0, 0, rows)


def _add_header(found: dict[int, Contribution], header: BatchHeader) -> None:
    # What the kernel and the collector say about this batch, and what they lost.
    if not header.ledger:
        return
    minute_s = header_minute(header)
    part = found.setdefault(minute_s, Contribution(minute_s))
    lost = 0
    for entry in header.ledger:
        key = (header.cluster, header.node, entry.stage, entry.kind, entry.reason)
        part.count(key, entry.in_count, entry.out_count, entry.dropped_count)
        lost += _events_lost(entry)
    if lost:
        part.lost[header.node] = part.lost.get(header.node, 0) + lost


def _events_lost(entry: Entry) -> int:
    # What nobody asked for is not lost, and neither is what a session inside TLS says that belongs
    # to no known connection: its connection is counted all the same.
    if entry.reason in ("excluded", "unpaired"):
        return 0
    if entry.kind == "payload_byte":  # of how many messages is not known
        return min(entry.dropped_count, 1)
    # Of payload only what the kernel could not hand over: parsers drop what is no HTTP.
    is_loss = entry.kind in EVENT_COLUMNS or (entry.kind == "payload" and entry.stage == "kernel")
    return entry.dropped_count if is_loss else 0


def duplicate(batch: EventBatch) -> Contribution:
    """Return the ledger of a batch that was here before: all of it came in, all was dropped."""
    header = batch.header
    part = Contribution(header_minute(header))
    _drop(part, header, event_counts(batch), "duplicate")
    return part


def incident(minute_s: int, cluster: str, node: str, reason: Reason, count: int) -> Contribution:
    """Return a ledger row about whole batches or runs rather than events."""
    part = Contribution(minute_s)
    part.count((cluster, node, "streams", "block", reason), count, 0, count)
    return part
