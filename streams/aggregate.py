"""Exact sums per minute and relation, and from them the rows of every scope.

Pure. A batch becomes one `Contribution` per minute that it touches; a minute adds contributions up
in `MinuteSums`, so that nothing of a batch is kept. All sums are integers: numpy's weighted
bincount adds in float64, which is exact below 2**53 only, so larger values go in two halves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from schemas.catalogue import DISTRIBUTIONS, FIGURES
from schemas.columns import UNMEASURED_U64
from schemas.events import CALL_NONE, READ_FIGURES, WRITE_FIGURES, Direction, OpenKind
from streams.figures import WAITED, add_sums, is_unmeasured, long_waits, measured
from streams.histograms import SpreadCounts, Values, spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from schemas.columns import U64
    from schemas.events import BatchHeader, Closes, Drops, EventBatch, Opens, Transfers
    from schemas.ledger import Reason
    from streams.identity import Relation
    from streams.resolver import Resolution

__all__ = [
    "COLUMNS",
    "EVENT_COLUMNS",
    "Contribution",
    "LedgerKey",
    "MinuteSums",
    "contributions",
    "duplicate",
    "header_minute",
    "incident",
]

_STAGED: Final = (*READ_FIGURES, *WRITE_FIGURES)
_PLAIN: Final = (
    *(
        column
        for figure in FIGURES
        if figure.group in ("connection", "read", "write") and figure.name not in _STAGED
        for column in ((figure.name, figure.measured_name) if figure.optional else (figure.name,))
    ),
    "transfer_events",
    "drop_events",
)
COLUMNS: Final = (*_PLAIN, *_STAGED, *(f"{name}_measured_count" for name in _STAGED))
"""Columns of the sums, in order: those of every batch, then those of `Transfers.figures`.

``transfer_events`` and ``drop_events`` are none of the catalogue's: the first counts the rows that
are no call as well, the second the rows of `EventBatch.drops`.
"""

_AT: Final = {name: place for place, name in enumerate(COLUMNS)}
_OPEN: Final = [_AT["connect_count"], _AT["accept_count"]]
_CLOSE: Final = [_AT["close_count"]]
_TRANSFER: Final = [_AT["transfer_events"]]
_DROP: Final = [_AT["drop_events"]]
_LOST: Final = _AT["write_lost_packet_count"]
EVENT_COLUMNS: Final = (*_OPEN, *_CLOSE, *_TRANSFER, *_DROP)
"""Places of the columns that together count every event once."""

_MINUTE_NS = 60_000_000_000
_SANE_NS = 6 * 3600 * 1_000_000_000
_EXACT = 1 << 53
_LOW = np.uint64(0xFFFF_FFFF)
_HALF = np.uint64(32)

LedgerKey = tuple[str, str, str, str, str]
"""cluster, node, stage, kind, reason."""


@dataclass(slots=True)
class Contribution:
    """What one batch adds to one minute.

    Attributes:
        relations: Whose the rows of `sums` are, each relation once.
        sums: Shape (relations, columns): the first of COLUMNS, or all.
        stages: The stage values of the calls, by place in `relations`.
        losses: Lost packets by place in `relations` and reason; they are in `sums` as well.
        ledger: in, out and dropped counts.
        lost: Events lost before they reached this batch, by its node.
    """

    minute_s: int
    relations: list[Relation] = field(default_factory=list)
    sums: U64 = field(default_factory=lambda: np.zeros((0, len(_PLAIN)), np.uint64))
    stages: list[Values] = field(default_factory=list)
    losses: dict[tuple[int, str], int] = field(default_factory=dict)
    ledger: dict[LedgerKey, list[int]] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)

    def count(self, key: LedgerKey, entered: int, left: int, dropped: int) -> None:
        """Add to a row of the ledger."""
        _count(self.ledger, key, entered, left, dropped)

    def exceeding(self) -> dict[str, int]:
        """Stage values that are in no bucket, by stage: a part was greater than its whole."""
        found: dict[str, int] = {}
        for values in self.stages:
            for place, count in enumerate(np.bincount(values.exceeding).tolist()):
                if count:
                    found[DISTRIBUTIONS[place].name] = count
        return found


class MinuteSums:
    """The running sums of one minute."""

    def __init__(self) -> None:
        self._places: dict[Relation, int] = {}
        self._sums = np.zeros((16, len(_PLAIN)), np.uint64)
        self._owners: dict[tuple[str, int, str, str], int] = {}
        self._owner: list[int] = []
        self._spread = SpreadCounts()
        self.losses: dict[tuple[int, str], int] = {}
        self.ledger: dict[LedgerKey, list[int]] = {}
        self.lost: dict[str, int] = {}

    @property
    def relations(self) -> list[Relation]:
        """Whose the rows of `sums` are."""
        return list(self._places)

    @property
    def sums(self) -> U64:
        """Shape (relations, columns): the first of COLUMNS, or all. No batch had the others."""
        return self._sums[: len(self._places)]

    def spread(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint64]]:
        """How often the values of each stage occurred: place in `relations`, cell and count.

        Relations between the same services are counted together, in the place of the first.
        """
        owner, cell, count = self._spread.counted()
        _, first = np.unique(np.array(self._owner, np.intp), return_index=True)
        return first[owner], cell, count

    def add(self, part: Contribution) -> None:
        """Add a contribution to this minute."""
        if part.relations:
            index = np.array([self._place(relation) for relation in part.relations], np.intp)
            width = part.sums.shape[1]
            self._make_room(len(self._places), width)
            # Each relation once, so no place is added to twice.
            self._sums[:, :width][index] += part.sums
            if part.stages:
                owners = np.array(self._owner, np.intp)[index]
                for values in part.stages:
                    self._spread.add(values, owners)
            for (place, reason), packets in part.losses.items():
                loss = (int(index[place]), reason)
                self.losses[loss] = self.losses.get(loss, 0) + packets
        for key, (entered, left, dropped) in part.ledger.items():
            _count(self.ledger, key, entered, left, dropped)
        for node, count in part.lost.items():
            self.lost[node] = self.lost.get(node, 0) + count

    def _place(self, relation: Relation) -> int:
        place = self._places.get(relation)
        if place is None:
            place = self._places[relation] = len(self._places)
            services = (
                relation.cluster,
                relation.role,
                relation.local.service,
                relation.remote.service,
            )
            self._owner.append(self._owners.setdefault(services, len(self._owners)))
        return place

    def _make_room(self, rows: int, width: int) -> None:
        had_rows, had_width = self._sums.shape
        if rows > had_rows or width > had_width:
            rows = max(rows, 2 * had_rows) if rows > had_rows else had_rows
            grown = np.zeros((rows, max(width, had_width)), np.uint64)
            grown[:had_rows, :had_width] = self._sums
            self._sums = grown


def header_minute(header: BatchHeader) -> int:
    """Return the minute (Unix seconds) that a batch's own ledger belongs to."""
    time_ns = header.last_event_ns or header.watermark_ns or header.anchor_unix_ns
    return max(time_ns, 0) // _MINUTE_NS * 60


def contributions(batch: EventBatch, resolution: Resolution) -> list[Contribution]:
    """Return what the batch adds to each minute it touches, its ledger included."""
    found: dict[int, Contribution] = {}
    for minute_s, opens, closes, transfers, drops in _by_minute(batch):
        if minute_s is None:
            own = header_minute(batch.header)
            part = found.setdefault(own, Contribution(own))
            _drop_malformed(part, batch.header, opens, closes, transfers, drops)
            continue
        part = found.setdefault(minute_s, Contribution(minute_s))
        sums, stages = _sums(resolution, opens, closes, transfers, drops)
        losses = _losses(resolution, drops, batch.names)
        _keep(part, batch.header, resolution.relations, sums, stages, losses)
    _add_header(found, batch.header)
    return [found[minute_s] for minute_s in sorted(found)]


def _by_minute(
    batch: EventBatch,
) -> Iterator[tuple[int | None, Opens, Closes, Transfers, Drops]]:
    # The events of each minute; None: those whose time cannot be. Most batches lie in one minute.
    tables = (batch.opens, batch.closes, batch.transfers, batch.drops)
    spans = [(int(t.end_ns.min()), int(t.end_ns.max())) for t in tables if t.rows]
    if not spans:
        return
    header = batch.header
    lower, upper = min(span[0] for span in spans), max(span[1] for span in spans)
    around = header.anchor_unix_ns or header.watermark_ns or header.last_event_ns
    if lower < around - _SANE_NS or upper > around + _SANE_NS:
        bounds = np.uint64(max(around - _SANE_NS, 0)), np.uint64(max(around + _SANE_NS, 0))
        sane = [(t.end_ns >= bounds[0]) & (t.end_ns <= bounds[1]) for t in tables]
        yield (
            None,
            batch.opens.take(~sane[0]),
            batch.closes.take(~sane[1]),
            batch.transfers.take(~sane[2]),
            batch.drops.take(~sane[3]),
        )
        tables = (
            batch.opens.take(sane[0]),
            batch.closes.take(sane[1]),
            batch.transfers.take(sane[2]),
            batch.drops.take(sane[3]),
        )
        times = [t.end_ns for t in tables if t.rows]
        if not times:
            return
        lower, upper = min(int(t.min()) for t in times), max(int(t.max()) for t in times)
    first, last = lower // _MINUTE_NS, upper // _MINUTE_NS
    if first == last:
        yield first * 60, *tables
        return
    minutes = [table.end_ns // np.uint64(_MINUTE_NS) for table in tables]
    for minute in np.unique(np.concatenate(minutes)).tolist():
        opens, closes, transfers, drops = (
            table.take(of_row == minute) for table, of_row in zip(tables, minutes, strict=True)
        )
        yield minute * 60, opens, closes, transfers, drops  # type: ignore[misc]


def _sums(
    resolution: Resolution, opens: Opens, closes: Closes, transfers: Transfers, drops: Drops
) -> tuple[U64, list[Values]]:
    size = len(resolution.relations)
    staged = not is_unmeasured(transfers.figures)
    sums = np.zeros((size, len(COLUMNS) if staged or drops.rows else len(_PLAIN)), np.uint64)
    stages: list[Values] = []
    index = resolution.index
    if opens.rows:
        group = index[opens.connection]
        connects = opens.kind == OpenKind.CONNECT
        for chosen, name in ((connects, "connect"), (~connects, "accept")):
            of_kind = group[chosen]
            sums[:, _AT[f"{name}_count"]] = np.bincount(of_kind, minlength=size)
            _add_duration(sums, f"{name}_duration", of_kind, _duration_ns(opens)[chosen], size)
        good = group[connects & (opens.error == 0)]
        sums[:, _AT["connect_success_count"]] = np.bincount(good, minlength=size)
    if closes.rows:
        group = index[closes.connection]
        sums[:, _AT["close_count"]] = np.bincount(group, minlength=size)
        _add_duration(sums, "close_duration", group, _duration_ns(closes), size)
    if transfers.rows:
        group = index[transfers.connection]
        no_call = transfers.call == CALL_NONE
        called = ~no_call if no_call.any() else None
        _add_transfers(sums, group, transfers, called)
        if staged:
            stages = _add_staged(sums, group, transfers, called)
    if drops.rows:
        group = index[drops.connection]
        sums[:, _DROP[0]] = np.bincount(group, minlength=size)
        sums[:, _LOST] += _exact_sums(group, drops.packets, size)
    return sums, stages


def _losses(
    resolution: Resolution, drops: Drops, names: Sequence[str]
) -> dict[tuple[int, str], int]:
    # Row by row: a host drops few packets, and of a connection only when its records are made.
    losses: dict[tuple[int, str], int] = {}
    group = resolution.index[drops.connection]
    for place, reason, packets in zip(
        group.tolist(), drops.reason.tolist(), drops.packets.tolist(), strict=True
    ):
        loss = (place, names[reason])
        losses[loss] = losses.get(loss, 0) + packets
    return losses


def _add_transfers(
    sums: U64, group: NDArray[np.intp], transfers: Transfers, called: NDArray[np.bool_] | None
) -> None:
    size = len(sums)
    direction, sizes, duration_ns = transfers.direction, transfers.size, _duration_ns(transfers)
    if called is not None:
        sums[:, _TRANSFER[0]] = np.bincount(group, minlength=size)
        group, direction, sizes = group[called], direction[called], sizes[called]
        duration_ns = duration_ns[called]
    # Reads and writes in one pass: even places are reads, odd places are writes.
    side = group * 2
    side += direction == Direction.WRITE
    counts = np.bincount(side, minlength=2 * size)
    bytes_ = _exact_sums(side, sizes, 2 * size)
    durations, measured_counts = _durations(side, duration_ns, 2 * size, counts)
    for offset, name in enumerate(("read", "write")):
        sums[:, _AT[f"{name}_count"]] = counts[offset::2]
        sums[:, _AT[f"{name}_bytes"]] = bytes_[offset::2]
        sums[:, _AT[f"{name}_duration"]] = durations[offset::2]
        sums[:, _AT[f"{name}_duration_measured_count"]] = measured_counts[offset::2]
    if called is None:
        sums[:, _TRANSFER[0]] = counts[::2] + counts[1::2]


def _add_staged(
    sums: U64, group: NDArray[np.intp], transfers: Transfers, called: NDArray[np.bool_] | None
) -> list[Values]:
    # What no call measured adds to the sums only: sum by measured count is a mean per call.
    size = len(sums)
    totals = np.zeros((len(_STAGED), size), np.uint64)
    counts = np.zeros((len(_STAGED), size), np.uint64)
    stages = []
    for direction, figures in ((Direction.READ, READ_FIGURES), (Direction.WRITE, WRITE_FIGURES)):
        first = _STAGED.index(figures[0])
        places = slice(first, first + len(figures))
        chosen = transfers.direction == direction
        parts = [(chosen, True)]
        if called is not None:
            parts = [(chosen & called, True), (chosen & ~called, False)]
        for rows, by_call in parts:
            at = np.flatnonzero(rows)
            if not len(at):
                continue
            found = measured(np.take(transfers.figures, at, axis=0), len(figures))
            of_row = group[at]
            add_sums(found, of_row, totals[places], counts[places] if by_call else None)
            if by_call and direction == Direction.READ:
                longer, excess = long_waits(found, _duration_ns(transfers)[at])
                totals[first + WAITED] += _exact_sums(of_row[longer], excess, size)
            if by_call:
                values = spread(found, writes=direction == Direction.WRITE, group=of_row)
                stages += [values] if values is not None else []
    sums[:, len(_PLAIN) : len(_PLAIN) + len(_STAGED)] = totals.T
    sums[:, len(_PLAIN) + len(_STAGED) :] = counts.T
    return stages


def _add_duration(
    sums: U64, name: str, group: NDArray[np.intp], duration_ns: U64, size: int
) -> None:
    durations, measured = _durations(group, duration_ns, size, None)
    sums[:, _AT[name]] = durations
    sums[:, _AT[f"{name}_measured_count"]] = measured


def _duration_ns(table: Opens | Closes | Transfers) -> U64:
    # A column that lacks all values may be empty.
    values = table.duration_ns
    return values if len(values) else np.broadcast_to(UNMEASURED_U64, table.rows)


def _durations(
    group: NDArray[np.intp], duration_ns: U64, size: int, counts: NDArray[np.intp] | None
) -> tuple[U64, NDArray[np.intp]]:
    # Sums and number of the measured durations of each group.
    if len(duration_ns) and duration_ns.max() == UNMEASURED_U64:
        measured = duration_ns != UNMEASURED_U64
        group, duration_ns, counts = group[measured], duration_ns[measured], None
    if counts is None:
        counts = np.bincount(group, minlength=size)
    return _exact_sums(group, duration_ns, size), counts


def _exact_sums(group: NDArray[np.intp], values: NDArray[Any], size: int) -> U64:
    if not len(values):
        return np.zeros(size, np.uint64)
    if int(values.max()) * len(values) < _EXACT:
        return np.bincount(group, values, size).astype(np.uint64)
    wide = values.astype(np.uint64)
    low = np.bincount(group, wide & _LOW, size).astype(np.uint64)
    high = np.bincount(group, wide >> _HALF, size).astype(np.uint64)
    return low + (high << _HALF)


def _keep(
    part: Contribution,
    header: BatchHeader,
    relations: list[Relation],
    sums: U64,
    stages: list[Values],
    losses: dict[tuple[int, str], int],
) -> None:
    # Rows of relations that had events, less those inside one pod; and the ledger of all.
    events = sums[:, EVENT_COLUMNS].sum(axis=1)
    internal = np.array([relation.internal for relation in relations], bool)
    kept = np.flatnonzero((events > 0) & ~internal)
    if len(kept) == len(relations):
        part.relations, part.sums, part.stages = relations, sums, stages
        part.losses = losses
    else:
        part.relations = [relations[place] for place in kept.tolist()]
        part.sums = sums[kept]
        places = np.full(len(relations), -1, np.intp)
        places[kept] = np.arange(len(kept))
        part.stages = [values.within(places) for values in stages]
        part.losses = {
            (int(places[place]), reason): packets
            for (place, reason), packets in losses.items()
            if places[place] >= 0
        }
    for kind, columns in (
        ("open", _OPEN),
        ("close", _CLOSE),
        ("transfer", _TRANSFER),
        ("drop", _DROP),
    ):
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


def _drop_malformed(
    part: Contribution,
    header: BatchHeader,
    opens: Opens,
    closes: Closes,
    transfers: Transfers,
    drops: Drops,
) -> None:
    tables = (("open", opens), ("close", closes), ("transfer", transfers), ("drop", drops))
    for kind, table in tables:
        if rows := table.rows:
            key = (header.cluster, header.node, "streams", kind)
            part.count((*key, ""), rows, 0, 0)
            part.count((*key, "malformed"), 0, 0, rows)


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
        if entry.kind in ("open", "close", "transfer", "drop") and entry.reason != "excluded":
            lost += entry.dropped_count
    if lost:
        part.lost[header.node] = part.lost.get(header.node, 0) + lost


def _count(
    ledger: dict[LedgerKey, list[int]], key: LedgerKey, entered: int, left: int, dropped: int
) -> None:
    counts = ledger.setdefault(key, [0, 0, 0])
    counts[0] += entered
    counts[1] += left
    counts[2] += dropped


def duplicate(batch: EventBatch) -> Contribution:
    """Return the ledger of a batch that was here before: all of it came in, all was dropped."""
    header = batch.header
    part = Contribution(header_minute(header))
    kinds = (
        ("open", batch.opens),
        ("close", batch.closes),
        ("transfer", batch.transfers),
        ("drop", batch.drops),
    )
    for kind, table in kinds:
        if table.rows:
            key = (header.cluster, header.node, "streams", kind)
            part.count((*key, ""), table.rows, 0, 0)
            part.count((*key, "duplicate"), 0, 0, table.rows)
    return part


def incident(minute_s: int, cluster: str, node: str, reason: Reason, count: int) -> Contribution:
    """Return a ledger row about whole batches or runs rather than events."""
    part = Contribution(minute_s)
    part.count((cluster, node, "streams", "block", reason), count, 0, count)
    return part
