"""The rows of every scope, of the coverage and the ledger, from the sums of one minute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from schemas.catalogue import (
    BREAKDOWN_SCOPES,
    BREAKDOWNS,
    CALL_DISTRIBUTIONS,
    COVERAGE,
    DISTRIBUTION_SCOPES,
    DISTRIBUTIONS,
    FIGURES,
    LEDGER,
    ROLES,
    SCOPES,
    TLS,
)
from schemas.metrics import Histogram, MetricsTable, NameCounts
from streams.coverage import coverage_of
from streams.histograms import WIDTH
from streams.requests import CALL_COLUMNS, CALL_WIDTH
from streams.tls import tls_rows
from streams.transfers import COLUMNS, EVENT_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from schemas.catalogue import CountTable, Distribution, Scope
    from schemas.columns import U32, U64
    from streams.minutes import MinuteSums

__all__ = ["minute_tables"]

K = TypeVar("K", bound=tuple[str, ...])
_Spread = tuple["NDArray[np.intp]", "NDArray[np.intp]", "U64"]

_AT: Final = {name: place for place, name in enumerate(COLUMNS)}
_CALL_AT: Final = {name: place for place, name in enumerate(CALL_COLUMNS)}
_EVENTS: Final = tuple(place for places in EVENT_COLUMNS.values() for place in places)


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
    if sums.relations:
        minute = _Minute(sums, names)
        tables = [table for scope in SCOPES if (table := minute.table(scope)).rows]
        tables.append(_count_table(COVERAGE, coverage_of(sums), names))
        if sums.protected:
            rows = tls_rows(sums.protected, sums.relations)
            tables.append(_count_table(TLS, rows, names))
    if sums.ledger:
        tables.append(_count_table(LEDGER, sums.ledger, names))
    return names.list(), tables


class _Minute:
    # The sums of a minute, with what all scopes need of them.
    def __init__(self, sums: MinuteSums, names: _Names) -> None:
        relations = sums.relations
        self._names = names
        self._sums = sums.sums
        self._losses = sums.losses
        self._spread = sums.spread()
        self._calls = sums.calls.sums
        self._call_spread = sums.calls.spread()
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
        self._columns = columns
        self._node = names.column([relation.node for relation in relations])
        self._known = np.array([bool(relation.remote.instance) for relation in relations], bool)
        self._lost = {names.of(node): count for node, count in sums.lost.items()}
        rows = sums.calls.rows
        self._relation = np.array([relation for relation, _ in rows], np.intp)
        self._endpoint = names.column([endpoint for _, endpoint in rows])

    def table(self, scope: Scope) -> MetricsTable:
        if "endpoint" in scope.keys:
            return self._of_endpoints(scope)
        if scope.name == "instance_relation":
            chosen = np.flatnonzero(self._known)
        else:
            chosen = np.arange(len(self._known))
        keys = {key: self._columns[key][chosen] for key in scope.keys}
        table, order, starts, group = _begun(scope.name, keys)
        if not table.rows:
            return table
        totals = np.add.reduceat(self._sums[chosen][order], starts, axis=0)
        _add_figures(table, totals, _AT)
        groups = np.full(len(self._known), -1, np.intp)
        groups[chosen] = group
        if len(self._relation):
            self._add_calls(table, groups[self._relation])
        self._add_provenance(table, totals[:, _EVENTS].sum(axis=1), group, self._node[chosen])
        if scope.name in DISTRIBUTION_SCOPES:
            _add_histograms(table, DISTRIBUTIONS, WIDTH, self._spread, groups)
        if len(self._relation):
            row = groups[self._relation]
            _add_histograms(table, CALL_DISTRIBUTIONS, CALL_WIDTH, self._call_spread, row)
        if scope.name in BREAKDOWN_SCOPES:
            self._break_down(table, groups)
        return table

    def _of_endpoints(self, scope: Scope) -> MetricsTable:
        # An endpoint belongs to the service that is called, whichever end saw the call.
        columns = self._columns | {"service": self._columns["server_service"]}
        keys = {
            key: self._endpoint if key == "endpoint" else columns[key][self._relation]
            for key in scope.keys
        }
        table, _, _, group = _begun(scope.name, keys)
        if not table.rows:
            return table
        self._add_calls(table, group)
        seen = table.figures["http_call_count"]
        self._add_provenance(table, seen, group, self._node[self._relation])
        _add_histograms(table, CALL_DISTRIBUTIONS, CALL_WIDTH, self._call_spread, group)
        return table

    def _add_calls(self, table: MetricsTable, group: NDArray[np.intp]) -> None:
        # The figures of calls; those of no row have a group below 0.
        order = np.argsort(group, kind="stable")[np.count_nonzero(group < 0) :]
        if not len(order):
            return
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        totals = np.zeros((table.rows, len(CALL_COLUMNS)), np.uint64)
        totals[group[order][starts]] = np.add.reduceat(self._calls[order], starts, axis=0)
        _add_figures(table, totals, _CALL_AT)

    def _break_down(self, table: MetricsTable, groups: NDArray[np.intp]) -> None:
        # What has no reason is told under the empty name, so that the counts add up to the figure.
        for breakdown in BREAKDOWNS:
            total = table.figures.get(breakdown.figure)
            if total is None or not total.any():
                continue
            found: dict[tuple[int, int], int] = {
                (int(row), 0): int(total[row]) for row in np.flatnonzero(total)
            }
            for (place, reason), packets in self._losses.items():
                row, key = int(groups[place]), self._names.of(reason)
                found[row, 0] -= packets
                found[row, key] = found.get((row, key), 0) + packets
            entries = sorted((row, key, count) for (row, key), count in found.items() if count)
            row_, key_, count_ = zip(*entries, strict=True)
            table.breakdowns[breakdown.name] = NameCounts(
                np.array(row_, np.uint32), np.array(key_, np.uint32), np.array(count_, np.uint64)
            )

    def _add_provenance(
        self, table: MetricsTable, seen: U64, group: NDArray[np.intp], node: U32
    ) -> None:
        table.figures["events_seen"] = seen
        table.figures["events_lost"] = _lost(group, node, self._lost, table.rows)


def _begun(
    name: str, keys: dict[str, U32]
) -> tuple[MetricsTable, NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    # A table with its keys only, and how the rows behind it are grouped.
    order, starts, group = _grouped(list(keys.values()))
    firsts = {key: values[order][starts] for key, values in keys.items()}
    return MetricsTable(name, len(starts), firsts), order, starts, group


def _add_figures(table: MetricsTable, totals: U64, places: Mapping[str, int]) -> None:
    for figure in FIGURES:
        place = places.get(figure.name)
        if place is None or place >= totals.shape[1]:
            continue
        if figure.optional:
            measured = totals[:, places[figure.measured_name]]
            # What only rows that are no call measured has a sum and a count of 0.
            if not measured.any() and not totals[:, place].any():
                continue
            table.measured[figure.name] = measured
        table.figures[figure.name] = totals[:, place]


def _add_histograms(
    table: MetricsTable,
    distributions: Sequence[Distribution],
    width: int,
    spread: _Spread,
    group: NDArray[np.intp],
) -> None:
    # Row by row and bucket by bucket for each distribution.
    owner, cell, count = spread
    row = group[owner]
    if len(row) and row.min() < 0:
        kept = row >= 0
        row, cell, count = row[kept], cell[kept], count[kept]
    if not len(row):
        return
    distribution, bucket = np.divmod(cell, width)
    keys = (distribution * table.rows + row) * width + bucket
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    counts = np.add.reduceat(count[order], starts)
    place, bucket = np.divmod(keys[order][starts], width)
    distribution, row = np.divmod(place, table.rows)
    ends = np.searchsorted(distribution, np.arange(len(distributions) + 1)).tolist()
    for found, start, end in zip(distributions, ends, ends[1:], strict=False):
        if end > start:
            table.histograms[found.name] = Histogram(
                row[start:end].astype(np.uint32),
                bucket[start:end].astype(np.uint32),
                counts[start:end],
            )


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


def _count_table(
    declared: CountTable,
    counts: Mapping[K, Sequence[int]],
    names: _Names,
) -> MetricsTable:
    rows = sorted(counts)
    values = np.array([counts[row] for row in rows], np.uint64).reshape(len(rows), -1)
    keys = {
        key: names.column([row[place] for row in rows]) for place, key in enumerate(declared.keys)
    }
    figures = {figure.name: values[:, place] for place, figure in enumerate(declared.figures)}
    return MetricsTable(declared.name, len(rows), keys, figures)
