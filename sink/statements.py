"""DDL as text: pure functions from the declarations to statements.

On one server the tables are plain MergeTree. With a cluster name every table becomes a replicated
``<name>_local`` and a ``Distributed`` table under the plain name, and all statements run
``ON CLUSTER``; whole blocks go to one shard, so that deduplication works there as on one server.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sink.tables import SCHEMA_VERSION, STORED, Column, StoredTable, View
from sink.views import VIEWS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Layout",
    "alter_columns",
    "fingerprint",
    "modify_settings",
    "modify_ttl",
    "schema_statements",
]

DEDUPLICATION_WINDOW = 10_000
"""Tokens remembered per table; one per partition and minute: a week for one partition."""

COMPACT_BYTES = 128 << 20
"""A new part below this size is one file. A file per column takes two to four times the CPU for an
insert of 20,000 to 100,000 rows (measured); merges soon make larger parts, which have them."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tables live and how long they keep what.

    Attributes:
        database: Public database; the store is ``<database>_store``.
        cluster: ClickHouse cluster name; empty for one server or the embedded engine.
        retention: Days by the names of the retention settings; 0 keeps for ever.
        fsync: Whether an insert returns only when its part is on the disk itself.
    """

    database: str = "podwire"
    cluster: str = ""
    retention: tuple[tuple[str, int], ...] = (
        ("retention_days", 14),
        ("retention_hourly_days", 90),
        ("retention_daily_days", 400),
        ("access_log_retention_days", 3),
    )
    fsync: bool = False

    @property
    def store(self) -> str:
        """Database of the stored tables."""
        return f"{self.database}_store"

    @property
    def on_cluster(self) -> str:
        """Clause of every DDL statement."""
        return f" ON CLUSTER {_quoted(self.cluster)}" if self.cluster else ""

    def local(self, table: StoredTable) -> str:
        """Full name of the table that holds the rows."""
        return f"{self.store}.{table.name}{'_local' if self.cluster else ''}"

    def written(self, table: StoredTable) -> str:
        """Full name of the table to insert into and to read from."""
        return f"{self.store}.{table.name}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _column(column: Column) -> str:
    codec = f" {column.codec}" if column.codec else ""
    return f"    `{column.name}` {column.type} COMMENT {_quoted(column.comment)}{codec}"


def _indexes(table: StoredTable) -> list[str]:
    return [f"    INDEX `{name}` {rest}" for name, rest in table.indexes]


def _engine(table: StoredTable, layout: Layout) -> str:
    if not layout.cluster:
        return table.engine if "(" in table.engine else f"{table.engine}()"
    name, _, arguments = table.engine.partition("(")
    path = f"'/clickhouse/tables/{{shard}}/{layout.store}/{table.name}', '{{replica}}'"
    rest = f", {arguments}" if arguments else ")"
    return f"Replicated{name}({path}{rest}"


def _ttl(table: StoredTable, layout: Layout) -> str:
    if not table.retention:
        return ""
    days = dict(layout.retention)[table.retention]
    if not days:
        return ""
    return f"toDateTime({table.time}) + toIntervalDay({days})"


def _settings(layout: Layout) -> list[str]:
    settings = ["ttl_only_drop_parts = 1", f"min_bytes_for_wide_part = {COMPACT_BYTES}"]
    if layout.cluster:
        settings.append(f"replicated_deduplication_window = {DEDUPLICATION_WINDOW}")
        settings.append("replicated_deduplication_window_seconds = 604800")
    else:
        settings.append(f"non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}")
    if layout.fsync:
        settings += ["fsync_after_insert = 1", "fsync_part_directory = 1"]
    return settings


def _create_table(table: StoredTable, layout: Layout) -> str:
    ttl = _ttl(table, layout)
    lines = [
        f"CREATE TABLE IF NOT EXISTS {layout.local(table)}{layout.on_cluster}",
        "(",
        ",\n".join((*map(_column, table.columns), *_indexes(table))),
        ")",
        f"ENGINE = {_engine(table, layout)}",
        *([f"PARTITION BY {table.partition_by}"] if table.partition_by else []),
        f"ORDER BY {table.order_by}",
        *([f"TTL {ttl}"] if ttl else []),
        f"SETTINGS {', '.join(_settings(layout))}",
        f"COMMENT {_quoted(table.comment)}",
    ]
    return "\n".join(lines)


def _create_distributed(table: StoredTable, layout: Layout) -> str:
    return "\n".join(
        (
            f"CREATE TABLE IF NOT EXISTS {layout.written(table)}{layout.on_cluster}",
            "(",
            ",\n".join(_column(Column(c.name, c.type, c.comment)) for c in table.columns),
            ")",
            f"ENGINE = Distributed({_quoted(layout.cluster)}, {layout.store}, {table.name}_local, "
            f"{table.shard_by})",
            f"COMMENT {_quoted(table.comment)}",
        )
    )


def _create_view(view: View, layout: Layout) -> str:
    select = view.select.format(store=layout.store, public=layout.database)
    columns = ",\n".join(_column(column) for column in view.columns)
    return (
        f"CREATE OR REPLACE VIEW {layout.database}.{view.name}{layout.on_cluster}\n"
        f"(\n{columns}\n)\nAS {select}\nCOMMENT {_quoted(view.comment)}"
    )


def schema_statements(layout: Layout) -> list[str]:
    """Return every statement of the schema, in an order in which they can run."""
    statements = [
        f"CREATE DATABASE IF NOT EXISTS {layout.store}{layout.on_cluster} "
        f"COMMENT 'Stored rows of podwire; query {layout.database} instead'",
        f"CREATE DATABASE IF NOT EXISTS {layout.database}{layout.on_cluster} "
        "COMMENT 'Who talks to whom, per minute'",
    ]
    statements += [_create_table(table, layout) for table in STORED]
    if layout.cluster:
        statements += [_create_distributed(table, layout) for table in STORED]
    statements += [_create_view(view, layout) for view in VIEWS]
    return statements


def alter_columns(
    table: StoredTable, present: Mapping[str, str], layout: Layout
) -> tuple[int, list[str]]:
    """Return how many columns a table of an older declaration lacks, and what brings it up to date.

    Args:
        table: The declaration.
        present: Comment of each column that the table has.
        layout: Where it is.
    """
    added = 0
    changes: list[tuple[str, str]] = []
    after = " FIRST"
    for column in table.columns:
        if column.name not in present:
            plain = Column(column.name, column.type, column.comment)
            local, distributed = (
                f"ADD COLUMN IF NOT EXISTS {_column(one).strip()}{after}" for one in (column, plain)
            )
            changes.append((local, distributed))
            added += 1
        elif present[column.name] != column.comment:
            comment = f"COMMENT COLUMN `{column.name}` {_quoted(column.comment)}"
            changes.append((comment, comment))
        after = f" AFTER `{column.name}`"
    if not changes:
        return 0, []
    # One statement for all: on a cluster each takes a round through every host.
    names = (layout.local(table), layout.written(table))[: 2 if layout.cluster else 1]
    return added, [
        f"ALTER TABLE {name}{layout.on_cluster} {', '.join(texts)}"
        for name, texts in zip(names, zip(*changes, strict=True), strict=False)
    ]


def modify_ttl(table: StoredTable, layout: Layout, *, expires: bool) -> list[str]:
    """Return the statement that sets the retention of a table that already exists.

    ``expires`` says whether it has one now.
    """
    ttl = _ttl(table, layout)
    if not ttl and not expires:
        return []
    change = f"MODIFY TTL {ttl}" if ttl else "REMOVE TTL"
    return [f"ALTER TABLE {layout.local(table)}{layout.on_cluster} {change}"]


def modify_settings(table: StoredTable, layout: Layout, engine: str) -> list[str]:
    """Return the statement that sets what a table that already exists lacks.

    ``engine`` is its engine with all its clauses.
    """
    lacking = [setting for setting in _settings(layout) if setting not in engine]
    if not lacking:
        return []
    return [
        f"ALTER TABLE {layout.local(table)}{layout.on_cluster} MODIFY SETTING {', '.join(lacking)}"
    ]


def fingerprint(layout: Layout) -> str:
    """Return a hash that changes with any statement of the schema."""
    text = "\n".join((str(SCHEMA_VERSION), *schema_statements(layout)))
    return hashlib.sha256(text.encode()).hexdigest()
