"""Every table and view of the database, declared once.

Two databases: the store (``podwire_store``) holds what is written, the public one (``podwire``)
holds only views, under the names that analysts use. Statements (`sink.statements`), insert batches
(`sink.batches`) and the documentation are built from these lists, which are themselves built from
the figures and scopes of `schemas.catalogue`: a figure added there appears in every place.

A metrics table keeps the rows of every block apart; its views sum them, so that one key and minute
is one row whatever number of partitions and late blocks it came from.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.catalogue import (
    BREAKDOWN_SCOPES,
    BREAKDOWNS,
    COVERAGE,
    FIGURES,
    LEDGER,
    PROVENANCE,
    SCOPES,
    TLS,
    CountTable,
    Figure,
    Scope,
    distributions_of,
)
from sink.access_table import ACCESS_BATCHES, ACCESS_LOG
from sink.declarations import (
    COUNTER,
    KEY_COMMENTS,
    TIME,
    Column,
    StoredTable,
    View,
    name_columns,
)

__all__ = [
    "ACCESS_BATCHES",
    "ACCESS_LOG",
    "BASE_TABLES",
    "BLOCKS",
    "BREAKDOWN",
    "COUNTER",
    "COVERAGE_TABLE",
    "DEAD_LETTERS",
    "ENTITY_TABLES",
    "HISTOGRAM",
    "KEY_COMMENTS",
    "LEDGER_TABLE",
    "METRICS_TABLES",
    "ROLLED",
    "ROLLUPS",
    "SCHEMA_VERSION",
    "STORED",
    "TLS_TABLE",
    "VERSIONS",
    "Column",
    "Rollup",
    "StoredTable",
    "View",
    "metrics_columns",
]

SCHEMA_VERSION = 3
"""Raised when a stored table changes in a way that older software must not write to."""

HISTOGRAM = "Map(UInt16, UInt64)"
"""How often each bucket of `schemas.histograms` occurred; maps are summed key by key."""

BREAKDOWN = "Map(String, UInt64)"
"""A figure by names."""


@dataclass(frozen=True, slots=True)
class Rollup:
    """A coarser copy of a metrics table, written once when its hour or day is over.

    A materialised view would do it insert by insert, at twice the cost of the insert itself
    (measured), and would need a deduplication of its own. Here a run writes rows of a new
    ``version`` and then a row of `ROLLED`; views read the newest version that holds every block,
    and compute from the finer rows where there is none.
    """

    scope: Scope
    period: str
    noun: str
    target: StoredTable
    start: str
    """Expression that maps a time to the start of its period."""


def _unit(figure: Figure) -> str:
    return {"ns": " (sum, nanoseconds)", "bytes": " (sum, bytes)", "count": ""}[figure.unit]


def _figure_columns(figures: tuple[Figure, ...]) -> tuple[Column, ...]:
    columns = []
    for figure in figures:
        columns.append(Column(figure.name, "UInt64", figure.description + _unit(figure), COUNTER))
        if figure.optional:
            comment = f"Events that measured {figure.name}; 0: not measured"
            columns.append(Column(figure.measured_name, "UInt64", comment, COUNTER))
    return tuple(columns)


def _histogram_columns(scope: Scope) -> tuple[Column, ...]:
    return tuple(
        Column(
            distribution.column,
            HISTOGRAM,
            f"{distribution.description}: {distribution.direction}s per bucket of nanoseconds; "
            "empty when nothing measured it",
            "CODEC(ZSTD(1))",
        )
        for distribution in distributions_of(scope.name)
    )


def _breakdown_columns(scope: Scope) -> tuple[Column, ...]:
    if scope.name not in BREAKDOWN_SCOPES:
        return ()
    return tuple(
        Column(
            breakdown.name,
            BREAKDOWN,
            f"{breakdown.description}; empty name: without one. Adds up to {breakdown.figure}",
            "CODEC(ZSTD(1))",
        )
        for breakdown in BREAKDOWNS
    )


def metrics_columns(scope: Scope, time_comment: str) -> tuple[Column, ...]:
    """Columns of a scope's rows: time, keys, figures with counts, provenance, then the maps."""
    return (
        Column("time", "DateTime('UTC')", time_comment, TIME),
        *name_columns(scope.keys),
        *_figure_columns((*FIGURES, *PROVENANCE)),
        *_histogram_columns(scope),
        *_breakdown_columns(scope),
    )


BLOCK_COLUMN = Column("block", "UInt64", "Which metrics block the row came with", "CODEC(ZSTD(1))")


def _metrics_table(scope: Scope) -> StoredTable:
    names = ", ".join((*scope.name_keys, "cluster", "role"))
    return StoredTable(
        name=scope.metrics_table,
        comment=f"{scope.description}: rows per minute and block",
        columns=(*metrics_columns(scope, "Start of the minute, UTC"), BLOCK_COLUMN),
        engine="MergeTree",
        order_by=f"(toStartOfHour(time), {names}, time)",
        partition_by="toDate(time)",
        shard_by="block",
        time="time",
        retention="retention_days",
    )


METRICS_TABLES: dict[str, StoredTable] = {scope.name: _metrics_table(scope) for scope in SCOPES}

VERSION_COLUMN = Column("version", "UInt64", "Which run of the roll-up wrote the row", TIME)

_PERIODS = (
    # period, noun, start of it, part of the sort key before the names, partition
    ("hourly", "hour", "toStartOfHour({})", "toStartOfDay(time)", "toMonday(time)"),
    ("daily", "day", "toStartOfDay({})", "toStartOfMonth(time)", "toStartOfMonth(time)"),
)


def _rollups(scope: Scope) -> tuple[Rollup, ...]:
    names = ", ".join((*scope.name_keys, "cluster", "role"))
    rollups = []
    for period, noun, start, bucket, partition in _PERIODS:
        target = StoredTable(
            name=f"{scope.metrics_table}_{period}",
            comment=f"{scope.description}: sums per {noun}",
            columns=(*metrics_columns(scope, f"Start of the {noun}, UTC"), VERSION_COLUMN),
            engine="MergeTree",
            order_by=f"({bucket}, {names}, time)",
            partition_by=partition,
            shard_by=f"cityHash64({names})",
            time="time",
            retention=f"retention_{period}_days",
        )
        rollups.append(Rollup(scope, period, noun, target, start))
    return tuple(rollups)


ROLLUPS: tuple[Rollup, ...] = tuple(rollup for scope in SCOPES for rollup in _rollups(scope))

ROLLED = StoredTable(
    name="rolled",
    comment="Roll-ups that are complete; written after all their rows",
    columns=(
        Column("period", "LowCardinality(String)", "hourly or daily"),
        Column("time", "DateTime('UTC')", "Start of the hour or day, UTC"),
        Column("version", "UInt64", "Version of the rows; grows with every run"),
        Column("blocks", "UInt64", "Blocks of the hour or day that were stored before the run"),
    ),
    engine="MergeTree",
    order_by="(period, time, version)",
    shard_by="cityHash64(period, time)",
    time="time",
    retention="retention_daily_days",
)


def _count_table(declared: CountTable, comment: str, order_by: str) -> StoredTable:
    return StoredTable(
        name=declared.name,
        comment=f"{comment}, per minute, node and block",
        columns=(
            Column("time", "DateTime('UTC')", "Start of the minute, UTC", TIME),
            *name_columns(declared.keys),
            *(Column(f.name, "UInt64", f.description, COUNTER) for f in declared.figures),
            BLOCK_COLUMN,
        ),
        engine="MergeTree",
        order_by=f"(toStartOfHour(time), {order_by}, time)",
        partition_by="toDate(time)",
        shard_by="block",
        time="time",
        retention="retention_days",
    )


LEDGER_TABLE = _count_table(
    LEDGER,
    "What each stage did with each kind of event",
    "stage, kind, reason, cluster, node",
)
COVERAGE_TABLE = _count_table(
    COVERAGE,
    "How well the ends of connections are known",
    "resolution, reason, cluster, node, role",
)

TLS_TABLE = _count_table(
    TLS,
    "What is inside TLS, and how much of it can be read",
    "service, process, server_name, cluster, node, role",
)

BASE_TABLES: dict[str, StoredTable] = {
    **METRICS_TABLES,
    COVERAGE.name: COVERAGE_TABLE,
    LEDGER.name: LEDGER_TABLE,
    TLS.name: TLS_TABLE,
}
"""Tables that blocks are inserted into, by their name inside a block."""


def _entity_table(scope: Scope) -> StoredTable:
    return StoredTable(
        name=scope.entity_table,
        comment=f"{scope.description}: first and last sight, and what is known of it",
        columns=(
            *name_columns(("cluster", *scope.name_keys)),
            Column(
                "first_seen",
                "SimpleAggregateFunction(min, DateTime64(3, 'UTC'))",
                "When it was first seen",
            ),
            Column(
                "last_seen",
                "SimpleAggregateFunction(max, DateTime64(3, 'UTC'))",
                "When it was last seen",
            ),
            Column(
                "known",
                "SimpleAggregateFunction(max, Tuple(seen_ms Int64, attributes String))",
                "Attributes as JSON, with the time they were seen: the newest win",
                "CODEC(ZSTD(1))",
            ),
        ),
        engine="AggregatingMergeTree",
        order_by=f"(cluster, {', '.join(scope.name_keys)})",
        shard_by=f"cityHash64({', '.join(scope.name_keys)})",
    )


ENTITY_TABLES: dict[str, StoredTable] = {scope.name: _entity_table(scope) for scope in SCOPES}

BLOCKS = StoredTable(
    name="blocks",
    comment="Metrics blocks that are stored in full; written after all their rows",
    columns=(
        Column("epoch", "String", "Identity of the metrics topic: offsets mean nothing beyond it"),
        Column("topic", "LowCardinality(String)", "Events topic that the block was made from"),
        Column("partition", "UInt32", "Partition of the events and of the metrics topic"),
        Column("minute", "DateTime('UTC')", "Start of the minute, UTC"),
        Column("base_offset", "Int64", "First events offset that contributed"),
        Column("end_offset", "Int64", "Events offset after the last that contributed"),
        Column("attempt", "String", "Attempt of the stream worker that wrote the block"),
        Column("offset", "Int64", "Metrics offset of the block's first part"),
        Column("rows", "UInt64", "Rows of the block in all tables"),
        Column("inserted_at", "DateTime64(3, 'UTC')", "When the insert was complete"),
    ),
    engine="ReplacingMergeTree(inserted_at)",
    order_by="(epoch, topic, partition, minute, base_offset)",
    partition_by="toDate(minute)",
    shard_by="partition",
    time="minute",
    retention="retention_days",
)

DEAD_LETTERS = StoredTable(
    name="dead_letters",
    comment="Messages that a stage could not decode",
    columns=(
        Column("time", "DateTime64(3, 'UTC')", "When the message was given up"),
        Column("stage", "LowCardinality(String)", "Stage that gave it up"),
        Column("topic", "LowCardinality(String)", "Topic of the message"),
        Column("partition", "UInt32", "Partition of the message"),
        Column("offset", "Int64", "Offset of the message"),
        Column("reason", "String", "What was wrong with it"),
        Column("size", "UInt64", "Bytes of the message"),
    ),
    engine="ReplacingMergeTree(time)",
    order_by="(topic, partition, offset, stage, time)",
    partition_by="toDate(time)",
    shard_by="cityHash64(topic, partition, offset)",
    time="time",
    retention="retention_days",
)

VERSIONS = StoredTable(
    name="schema_versions",
    comment="Which declaration of the schema was applied, and when",
    columns=(
        Column("version", "UInt32", "Version of the schema"),
        Column("fingerprint", "String", "Hash of every statement of the schema"),
        Column("applied_at", "DateTime64(3, 'UTC')", "When it was applied"),
    ),
    engine="MergeTree",
    order_by="applied_at",
)

STORED: tuple[StoredTable, ...] = (
    *METRICS_TABLES.values(),
    *(rollup.target for rollup in ROLLUPS),
    LEDGER_TABLE,
    COVERAGE_TABLE,
    TLS_TABLE,
    *ENTITY_TABLES.values(),
    BLOCKS,
    ROLLED,
    ACCESS_LOG,
    ACCESS_BATCHES,
    DEAD_LETTERS,
    VERSIONS,
)
"""Every table of the store."""
