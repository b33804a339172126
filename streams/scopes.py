"""The rows of every scope and the ledger, from the sums of one minute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.catalogue import (
    BREAKDOWN_SCOPES,
    BREAKDOWNS,
    DISTRIBUTION_SCOPES,
    DISTRIBUTIONS,
    FIGURES,
    LEDGER,
    ROLES,
    SCOPE_BY_NAME,
)
from schemas.metrics import Histogram, MetricsTable, NameCounts
from streams.aggregate import COLUMNS, EVENT_COLUMNS
from streams.histograms import WIDTH

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.columns import U32, U64
    from streams.aggregate import MinuteSums

__all__ = ["minute_tables"]

_SCOPES: Final = ("service", "instance", "service_relation", "instance_relation")
"""Scopes that transfer and connection events make rows in; endpoints come with HTTP."""

_Spread = tuple["NDArray[np.intp]", "NDArray[np.intp]", "U64"]

_AT: Final = {name: place for place, name in enumerate(COLUMNS)}


class _Names:
    # Dictionary of a block: text to index, the empty text first.
    def __init__(self) -> None:
        self._index: dict[str, int] = {"": 0}

    def of(self, text: str) -> int:
        return self._index.setdefault(text, len(self._index))

    def column(self, texts: list[str]) -> U32:
        index = self._index
        return np.fromiter(
            (index.setdefault(text, len(index)) for text in texts), np.uint32, len(texts)
        )

    def list(self) -> list[str]:
        return list(self._index)


def minute_tables(sums: MinuteSums) -> tuple[list[str], list[MetricsTable]]:
    """Return the dictionary and the tables of a minute. Rows have a fixed order: that of names."""
    names = _Names()
    tables: list[MetricsTable] = []
    relations = sums.relations
    if relations:
        columns = {
            "cluster": names.column([relation.cluster for relation in relations]),
            "role": names.column([ROLES[relation.role - 1] for relation in relations]),
            "service": names.column([relation.local.service for relation in relations]),
            "instance": names.column([relation.local.instance for relation in relations]),
        }
        is_client = np.array([relation.role == 1 for relation in relations], bool)
        for name in ("service", "instance"):
            remote = names.column([getattr(relation.remote, name) for relation in relations])
            columns[f"client_{name}"] = np.where(is_client, columns[name], remote)
            columns[f"server_{name}"] = np.where(is_client, remote, columns[name])
        node = names.column([relation.node for relation in relations])
        known = np.array([bool(relation.remote.instance) for relation in relations], bool)
        lost = {names.of(node): count for node, count in sums.lost.items()}
        spread = sums.spread()
        for scope in _SCOPES:
            chosen = np.flatnonzero(known) if scope == "instance_relation" else slice(None)
            keys = {key: columns[key][chosen] for key in SCOPE_BY_NAME[scope].keys}
            of_scope = spread if scope in DISTRIBUTION_SCOPES else None
            table = _table(scope, keys, node[chosen], sums.sums[chosen], lost, of_scope)
            if scope in BREAKDOWN_SCOPES:
                _break_down(table, sums, keys, names)
            if table.rows:
                tables.append(table)
    if sums.ledger:
        tables.append(_ledger_table(sums, names))
    return names.list(), tables


def _table(
    scope: str,
    keys: dict[str, U32],
    node: U32,
    sums: U64,
    lost: dict[int, int],
    spread: _Spread | None,
) -> MetricsTable:
    order, starts, group = _grouped(list(keys.values()))
    if not len(order):
        return MetricsTable(scope, 0)
    totals = np.add.reduceat(sums[order], starts, axis=0)
    table = MetricsTable(scope, len(starts), {k: v[order][starts] for k, v in keys.items()})
    for figure in FIGURES:
        place = _AT.get(figure.name)
        if place is None or place >= totals.shape[1]:
            continue
        if figure.optional:
            measured = totals[:, _AT[figure.measured_name]]
            # What only rows that are no call measured has a sum and a count of 0.
            if not measured.any() and not totals[:, place].any():
                continue
            table.measured[figure.name] = measured
        table.figures[figure.name] = totals[:, place]
    table.figures["events_seen"] = totals[:, EVENT_COLUMNS].sum(axis=1)
    table.figures["events_lost"] = _lost(group, node, lost, len(starts))
    if spread is not None and len(spread[0]):
        table.histograms = _histograms(*spread, group)
    return table


def _break_down(table: MetricsTable, sums: MinuteSums, keys: dict[str, U32], names: _Names) -> None:
    # What has no reason is told under the empty name, so that the counts add up to the figure.
    for breakdown in BREAKDOWNS:
        total = table.figures.get(breakdown.figure)
        if total is None or not total.any():
            continue
        _, _, group = _grouped(list(keys.values()))
        found: dict[tuple[int, int], int] = {
            (int(row), 0): int(total[row]) for row in np.flatnonzero(total)
        }
        for (place, reason), packets in sums.losses.items():
            row, key = int(group[place]), names.of(reason)
            found[row, 0] -= packets
            found[row, key] = found.get((row, key), 0) + packets
        entries = sorted((row, key, count) for (row, key), count in found.items() if count)
        row_, key_, count_ = zip(*entries, strict=True)
        table.breakdowns[breakdown.name] = NameCounts(
            np.array(row_, np.uint32), np.array(key_, np.uint32), np.array(count_, np.uint64)
        )


def _histograms(
    relation: NDArray[np.intp],
    cell: NDArray[np.intp],
    count: NDArray[np.uint64],
    group: NDArray[np.intp],
) -> dict[str, Histogram]:
    # Row by row and bucket by bucket for each distribution.
    rows = int(group.max()) + 1
    distribution, bucket = np.divmod(cell, WIDTH)
    keys = (distribution * rows + group[relation]) * WIDTH + bucket
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    counts = np.add.reduceat(count[order], starts)
    place, bucket = np.divmod(keys[order][starts], WIDTH)
    distribution, row = np.divmod(place, rows)
    ends = np.searchsorted(distribution, np.arange(len(DISTRIBUTIONS) + 1)).tolist()
    return {
        found.name: Histogram(
            row[start:end].astype(np.uint32),
            bucket[start:end].astype(np.uint32),
            counts[start:end],
        )
        for found, start, end in zip(DISTRIBUTIONS, ends, ends[1:], strict=False)
        if end > start
    }


def _grouped(columns: list[U32]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    # Row order by keys, where each group starts in it, and the group of each row (unordered).
    code = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        wide = column.astype(np.uint64)
        mixed = code * (wide.max(initial=np.uint64(0)) + np.uint64(1)) + wide
        _, code_ = np.unique(mixed, return_inverse=True)
        code = code_.astype(np.uint64)
    group = code.astype(np.intp)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return order, starts, group


def _lost(group: NDArray[np.intp], node: U32, lost: dict[int, int], size: int) -> U64:
    # Each node behind a row counts once, however many relations of it the row has.
    totals = np.zeros(size, np.uint64)
    if not lost:
        return totals
    nodes = int(node.max()) + 1
    pairs = np.unique(group * nodes + node)
    of_node = np.zeros(nodes, np.uint64)
    for place, count in lost.items():
        if place < nodes:
            of_node[place] = count
    np.add.at(totals, pairs // nodes, of_node[pairs % nodes])
    return totals


def _ledger_table(sums: MinuteSums, names: _Names) -> MetricsTable:
    rows = sorted(sums.ledger)
    counts = np.array([sums.ledger[row] for row in rows], np.uint64).reshape(-1, 3)
    keys = {
        key: names.column([row[place] for row in rows]) for place, key in enumerate(LEDGER.keys)
    }
    figures = {figure.name: counts[:, place] for place, figure in enumerate(LEDGER.figures)}
    return MetricsTable(LEDGER.name, len(rows), keys, figures)
