"""Brings a database to the declared schema: creates, adds columns, replaces views.

Safe to repeat: when the recorded fingerprint is the declared one, nothing is done. A database
that newer software has changed is left alone.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from schemas.errors import FatalError
from sink.statements import (
    alter_columns,
    fingerprint,
    modify_settings,
    modify_ttl,
    schema_statements,
)
from sink.tables import SCHEMA_VERSION, STORED, VERSIONS

if TYPE_CHECKING:
    from sink.store import Store

__all__ = ["apply_schema"]

log = logging.getLogger(__name__)


def apply_schema(store: Store) -> bool:
    """Create or upgrade every table and view.

    Returns:
        Whether anything had to be done.

    Raises:
        FatalError: If the database belongs to newer software, or the server refuses a statement.
        RetryableError: If the server could not do it now.
    """
    layout = store.layout
    declared = fingerprint(layout)
    found = _recorded(store)
    if found is not None:
        version, applied = found
        if version > SCHEMA_VERSION:
            raise FatalError(
                f"database {layout.store} has schema version {version}, this software knows "
                f"{SCHEMA_VERSION}: use a newer podwire"
            )
        if (version, applied) == (SCHEMA_VERSION, declared):
            return False
    # Columns first: the views that come after name them.
    upgraded = 0 if found is None else _upgrade_tables(store)
    statements = schema_statements(layout)
    for statement in statements:
        store.command(statement)
    now_ms = time.time_ns() // 1_000_000
    store.command(
        f"INSERT INTO {layout.written(VERSIONS)} (version, fingerprint, applied_at) "  # noqa: S608
        f"VALUES ({SCHEMA_VERSION}, '{declared}', fromUnixTimestamp64Milli({now_ms}))"
    )
    log.info(
        "schema %s: %d statements, %d columns added", layout.database, len(statements), upgraded
    )
    return True


def _recorded(store: Store) -> tuple[int, str] | None:
    exists = store.rows(
        "SELECT count() FROM system.tables "
        "WHERE database = {database:String} AND name = {name:String}",
        {"database": store.layout.store, "name": VERSIONS.name},
    )
    if not exists[0][0]:
        return None
    rows = store.rows(
        f"SELECT version, fingerprint FROM {store.layout.written(VERSIONS)} "  # noqa: S608
        "ORDER BY version DESC, applied_at DESC LIMIT 1"
    )
    return (int(rows[0][0]), str(rows[0][1])) if rows else None


def _upgrade_tables(store: Store) -> int:
    """Add the columns that the tables lack; set the declared comments, settings and retention."""
    found = store.rows(
        "SELECT table, name, comment FROM system.columns WHERE database = {database:String}",
        {"database": store.layout.store},
    )
    columns: dict[str, dict[str, str]] = {}
    for table, name, comment in found:
        columns.setdefault(table, {})[name] = comment
    engines = {
        str(name): str(engine)
        for name, engine in store.rows(
            "SELECT name, engine_full FROM system.tables WHERE database = {database:String}",
            {"database": store.layout.store},
        )
    }
    added = 0
    for declared in STORED:
        local = store.layout.local(declared).partition(".")[2]
        present = columns.get(local)
        if present is None:
            continue
        count, statements = alter_columns(declared, present, store.layout)
        statements += modify_settings(declared, store.layout, engines[local])
        for statement in statements:
            store.command(statement)
        added += count
        for statement in modify_ttl(declared, store.layout, expires=" TTL " in engines[local]):
            # Rows that are already there follow at their next merge; rewriting them all now
            # would hold up the start.
            store.command(statement, settings={"materialize_ttl_after_modify": 0})
    return added
