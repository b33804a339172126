"""Closed minutes as messages of the metrics topic, in parts that fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.metrics import BlockIdentity, Histogram, MetricsBlock, MetricsTable, NameCounts
from schemas.topics import MAX_MESSAGE_BYTES
from streams.scopes import minute_tables

if TYPE_CHECKING:
    from streams.windows import ClosedMinute

__all__ = ["minute_blocks"]

_SAFE_BYTES = MAX_MESSAGE_BYTES - 256 * 1024


@dataclass(slots=True)
class _Part:
    names: list[str]
    tables: list[MetricsTable]


def minute_blocks(
    closed: ClosedMinute,
    topic: str,
    partition: int,
    attempt: str,
    rows_per_block: int = 20_000,
    max_bytes: int = _SAFE_BYTES,
) -> list[MetricsBlock]:
    """Return the messages of a minute, in order; always at least one.

    Args:
        closed: The minute.
        topic: Identity of the events topic.
        partition: Of the events, and of the metrics.
        attempt: Fresh for every try to send, so that parts of two tries never mix.
        rows_per_block: Rows of one message at most.
        max_bytes: Size of one message at most.
    """
    names, tables = minute_tables(closed.sums)
    parts: list[_Part] = []
    for chunk in _chunks(tables, rows_per_block):
        parts.extend(_fitting(names, chunk, max_bytes))
    identity = BlockIdentity(
        topic=topic,
        partition=partition,
        minute_s=closed.minute_s,
        base_offset=closed.base_offset,
        end_offset=closed.end_offset,
        parts=len(parts),
        attempt=attempt,
    )
    return [
        MetricsBlock(replace(identity, part=place), part.names, part.tables)
        for place, part in enumerate(parts)
    ]


def _chunks(tables: list[MetricsTable], limit: int) -> list[list[MetricsTable]]:
    # Fill messages with rows in order; a table may go on in the next one.
    chunks: list[list[MetricsTable]] = [[]]
    room = limit
    for table in tables:
        start = 0
        while start < table.rows:
            if not room:
                chunks.append([])
                room = limit
            stop = min(start + room, table.rows)
            chunks[-1].append(_slice(table, start, stop))
            room -= stop - start
            start = stop
    return chunks


def _fitting(names: list[str], tables: list[MetricsTable], max_bytes: int) -> list[_Part]:
    part = _with_own_names(names, tables)
    rows = sum(table.rows for table in tables)
    if rows <= 1 or _size(part) <= max_bytes:
        return [part]
    return [
        smaller
        for chunk in _chunks(tables, (rows + 1) // 2)
        for smaller in _fitting(names, chunk, max_bytes)
    ]


def _with_own_names(names: list[str], tables: list[MetricsTable]) -> _Part:
    # Only the names that these rows use.
    indices = [column for table in tables for column in table.keys.values()]
    indices += [counts.key for table in tables for counts in table.breakdowns.values()]
    used = np.unique(np.concatenate([np.zeros(1, np.uint32), *indices]))
    places = np.zeros(len(names), np.uint32)
    places[used] = np.arange(len(used), dtype=np.uint32)
    return _Part(
        [names[place] for place in used.tolist()],
        [
            replace(
                table,
                keys={name: places[column] for name, column in table.keys.items()},
                breakdowns={
                    name: replace(counts, key=places[counts.key])
                    for name, counts in table.breakdowns.items()
                },
            )
            for table in tables
        ],
    )


def _slice(table: MetricsTable, start: int, stop: int) -> MetricsTable:
    def cut(columns: dict[str, Any]) -> dict[str, Any]:
        return {name: values[start:stop] for name, values in columns.items()}

    return MetricsTable(
        table.table,
        stop - start,
        cut(table.keys),
        cut(table.figures),
        cut(table.measured),
        _slice_histograms(table.histograms, start, stop),
        _slice_breakdowns(table.breakdowns, start, stop),
    )


def _slice_histograms(
    histograms: dict[str, Histogram], start: int, stop: int
) -> dict[str, Histogram]:
    found = {}
    for name, whole in histograms.items():
        first, end = np.searchsorted(whole.row, (start, stop)).tolist()
        if end > first:
            row = whole.row[first:end] - np.uint32(start)
            found[name] = Histogram(row, whole.bucket[first:end], whole.count[first:end])
    return found


def _slice_breakdowns(
    breakdowns: dict[str, NameCounts], start: int, stop: int
) -> dict[str, NameCounts]:
    found = {}
    for name, whole in breakdowns.items():
        first, end = np.searchsorted(whole.row, (start, stop)).tolist()
        if end > first:
            row = whole.row[first:end] - np.uint32(start)
            found[name] = NameCounts(row, whole.key[first:end], whole.count[first:end])
    return found


def _size(part: _Part) -> int:
    # An upper bound of the encoded size.
    size = 1024 + sum(len(name.encode()) + 6 for name in part.names)
    for table in part.tables:
        for columns in (table.keys, table.figures, table.measured):
            size += sum(values.nbytes + 64 for values in columns.values())
        for found in table.histograms.values():
            size += found.row.nbytes + found.bucket.nbytes + found.count.nbytes + 96
        for counts in table.breakdowns.values():
            size += counts.row.nbytes + counts.key.nbytes + counts.count.nbytes + 96
    return size
