"""The schema appears, stays, and follows its declaration."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from schemas.errors import FatalError
from sink import statements
from sink.ddl import apply_schema
from sink.statements import Layout, schema_statements
from sink.tables import ACCESS_LOG, COUNTER, METRICS_TABLES, SCHEMA_VERSION, STORED
from sink.views import VIEWS
from sink.writer import BlockWriter, Retry
from tests.sink.blocks import MINUTE_S, block, histogram, total
from tests.sink.conftest import no_wait
from tests.sink.test_writer import attempt

if TYPE_CHECKING:
    from schemas.metrics import MetricsTable

EARLIER = {1: "schema_1.sql.gz", 2: "schema_2.sql.gz"}
"""Every statement of the earlier schema versions, as that software applied them."""

pytestmark = pytest.mark.clickhouse


def described(store):
    return store.rows(
        "SELECT database, name, engine_full, create_table_query FROM system.tables "
        "WHERE startsWith(database, 'podwire') ORDER BY database, name"
    )


def test_applying_twice_changes_nothing(store):
    before = described(store)
    assert not apply_schema(store)
    assert described(store) == before
    store.command("TRUNCATE TABLE podwire_store.schema_versions")
    assert apply_schema(store)
    assert described(store) == before


def test_every_table_column_and_view_has_its_comment(store):
    names = {row[1] for row in described(store)}
    assert names == {table.name for table in STORED} | {view.name for view in VIEWS}
    assert not store.rows(
        "SELECT database, name FROM system.tables "
        "WHERE startsWith(database, 'podwire') AND comment = ''"
    )
    assert not store.rows(
        "SELECT database, table, name FROM system.columns "
        "WHERE startsWith(database, 'podwire') AND comment = ''"
    )


def test_the_engine_keeps_what_was_declared(store):
    for table in METRICS_TABLES.values():
        ((engine, key, partition),) = store.rows(
            "SELECT engine_full, sorting_key, partition_key FROM system.tables "
            "WHERE database = 'podwire_store' AND name = {name:String}",
            {"name": table.name},
        )
        assert "ttl_only_drop_parts = 1" in engine
        assert "non_replicated_deduplication_window = 10000" in engine
        assert key.startswith("toStartOfHour(time), ")
        assert key.endswith(", time")
        assert partition == "toDate(time)"
    codecs = store.rows(
        "SELECT DISTINCT compression_codec FROM system.columns WHERE database = 'podwire_store' "
        "AND table = 'service_metrics' AND type = 'UInt64' AND name != 'block'"
    )
    assert codecs == [(COUNTER,)]


def test_every_view_answers_with_its_declared_columns(store):
    for view in VIEWS:
        rows = store.rows(
            "SELECT name, type FROM system.columns WHERE database = 'podwire' "
            "AND table = {view:String} ORDER BY position",
            {"view": view.name},
        )
        assert rows == [(column.name, column.type) for column in view.columns]
        store.rows(f"SELECT * FROM podwire.{view.name}")


def test_a_database_of_fewer_columns_is_upgraded(store):
    for table in ("service_metrics", "service_metrics_hourly"):
        store.command(f"ALTER TABLE podwire_store.{table} DROP COLUMN http_duration")
    store.command("DROP VIEW podwire.service_overview")
    store.command("ALTER TABLE podwire_store.access_log DROP COLUMN container_name")
    store.command("INSERT INTO podwire_store.access_log (time, container) VALUES (now64(9), 'c1')")
    store.command("ALTER TABLE podwire_store.tls DROP COLUMN unreadable_reason")
    store.command("INSERT INTO podwire_store.tls (time, readability) VALUES (now(), 'unreadable')")
    store.command("TRUNCATE TABLE podwire_store.schema_versions")
    store.command(
        "INSERT INTO podwire_store.schema_versions VALUES ({version:UInt32}, 'older', now64(3))",
        {"version": SCHEMA_VERSION},
    )
    assert apply_schema(store)
    order = store.rows(
        "SELECT name FROM system.columns WHERE database = 'podwire_store' "
        "AND table = 'service_metrics' ORDER BY position"
    )
    assert tuple(row[0] for row in order) == METRICS_TABLES["service"].column_names
    store.rows("SELECT http_duration FROM podwire.service_metrics_hourly")
    store.rows("SELECT http_duration_avg FROM podwire.service_overview")
    order = store.rows(
        "SELECT name FROM system.columns WHERE database = 'podwire_store' "
        "AND table = 'access_log' ORDER BY position"
    )
    assert tuple(row[0] for row in order) == ACCESS_LOG.column_names
    calls = store.rows("SELECT container, container_name FROM podwire.access_log")
    assert calls == [("c1", "")]
    found = store.rows("SELECT readability, unreadable_reason FROM podwire.tls")
    assert found == [("unreadable", "")]
    assert not apply_schema(store)


def earlier_version(store, version):
    statements = gzip.decompress(Path(__file__).with_name(EARLIER[version]).read_bytes()).decode()
    for statement in statements.split(";\n"):
        if statement.strip():
            store.command(statement)
    store.command(
        "INSERT INTO podwire_store.schema_versions VALUES ({version:UInt32}, 'earlier', now64(3))",
        {"version": version},
    )


def test_every_earlier_version_is_there():
    assert list(EARLIER) == list(range(1, SCHEMA_VERSION))


@pytest.mark.parametrize("version", EARLIER)
def test_a_database_of_an_earlier_version_is_upgraded(empty_store, clock, version):
    store = empty_store
    earlier_version(store, version)
    (found,) = store.rows(
        "SELECT countIf(name LIKE '%unattributed%' OR name LIKE 'read_%histogram') > 0, "
        "countIf(name LIKE 'http_duration_histogram' OR name LIKE '%unanswered%') "
        "FROM system.columns WHERE database = 'podwire_store'"
    )
    assert found == (version > 1, 0)
    writer = BlockWriter(store, Retry(no_wait, 0.1, 0.1), clock, "epoch")
    writer.assign([0])
    old = block(0, rows=50)
    writer.write(attempt(old))
    keys = "cluster, role, client_service, server_service"
    figures = "connect_count, connect_duration, connect_duration_measured_count"
    store.command(
        f"INSERT INTO podwire_store.service_relation_metrics_hourly (time, version, {keys}, "
        f"{figures}) SELECT toStartOfHour(time), 7, {keys}, {figures} "
        "FROM podwire_store.service_relation_metrics"
    )
    store.command(
        "INSERT INTO podwire_store.rolled VALUES "
        "('hourly', toDateTime({start:UInt32}, 'UTC'), 7, 1)",
        {"start": MINUTE_S},
    )

    assert apply_schema(store)
    assert not apply_schema(store)
    for table in STORED:
        found = store.rows(
            "SELECT name, type, comment, compression_codec FROM system.columns "
            "WHERE database = 'podwire_store' AND table = {table:String} ORDER BY position",
            {"table": table.name},
        )
        assert found == [(c.name, c.type, c.comment, c.codec) for c in table.columns]
    assert store.rows(
        "SELECT count(), countIf(engine_full LIKE '%min_bytes_for_wide_part = 134217728%') "
        "FROM system.tables WHERE database = 'podwire_store'"
    ) == [(len(STORED), len(STORED))]
    sums = (
        "SELECT sum(connect_count), sum(connect_duration), sum(read_call_duration), "
        "sumMap(read_call_histogram) FROM podwire.service_relation_metrics{}"
    )
    before = (total(old), total(old, "connect_duration"), None, {})
    for suffix in ("", "_hourly", "_daily"):
        assert store.rows(sums.format(suffix)) == [before]
    for view in ("service_relation_waits", "service_relation_latency"):
        assert store.rows(f"SELECT sum(count), max(p99_ns) FROM podwire.{view}") == [(0, None)]

    new = block(1, rows=50)
    (table,) = (one for one in new.tables if one.table == "service_relation")
    add_read_call(table)
    (table,) = (one for one in new.tables if one.table == "instance")
    bucket = add_call(table)
    writer.write(attempt(new, offset=1))
    for suffix in ("", "_hourly", "_daily"):
        assert store.rows(sums.format(suffix)) == [
            (
                total(old) + total(new),
                total(old, "connect_duration") + total(new, "connect_duration"),
                total(new, "read_call_duration"),
                {5: 50},
            )
        ]
        assert store.rows(
            "SELECT sum(http_unanswered_count), sumMap(http_duration_histogram) "
            f"FROM podwire.instance_metrics{suffix}"
        ) == [(1, {bucket: 1})]


def add_read_call(table: MetricsTable) -> None:
    one_each = np.ones(table.rows, "<u8")
    table.figures["read_call_duration"] = 2 * one_each
    table.measured["read_call_duration"] = one_each
    table.histograms["read_call"] = histogram(np.arange(table.rows), 2 * one_each)


def add_call(table: MetricsTable) -> int:
    for name in ("http_call_count", "http_unanswered_count", "http_duration"):
        table.figures[name] = np.ones(1, "<u8")
        table.measured[name] = np.ones(1, "<u8")
    table.histograms["http_duration"] = one = histogram(np.zeros(1), np.array([10**6]), 4)
    return int(one.bucket[0])


def test_retention_follows_the_configuration(store):
    def ttl():
        return store.rows(
            "SELECT extract(engine_full, 'TTL (.*?) SETTINGS') FROM system.tables "
            "WHERE database = 'podwire_store' AND name = 'service_metrics'"
        )[0][0]

    first = store.layout
    assert "toIntervalDay(14)" in ttl()
    for days, wanted in ((3, "toIntervalDay(3)"), (0, ""), (9, "toIntervalDay(9)")):
        retention = (("retention_days", days), *first.retention[1:])
        store.layout = replace(first, retention=retention)
        assert apply_schema(store)
        assert ttl() == "" if not wanted else wanted in ttl()


def test_newer_software_is_left_alone(store):
    store.command(
        "INSERT INTO podwire_store.schema_versions VALUES ({version:UInt32}, 'newer', now64(3))",
        {"version": SCHEMA_VERSION + 1},
    )
    with pytest.raises(FatalError, match="use a newer podwire"):
        apply_schema(store)


@pytest.mark.parametrize("layout", [Layout(cluster="main"), Layout(fsync=True)])
def test_the_engine_can_parse_the_statements_of_a_cluster(empty_store, layout):
    texts = schema_statements(layout)
    for table in STORED[:2]:
        kept = {column.name: "another comment" for column in table.columns[:-2]}
        added, altered = statements.alter_columns(table, kept, layout)
        assert added == 2
        assert len(altered) == (2 if layout.cluster else 1)
        texts += altered
        texts += statements.modify_settings(table, layout, "MergeTree SETTINGS x = 1")
        texts += statements.modify_ttl(table, layout, expires=False)
    for text in texts:
        quoted = text.replace("\\", "\\\\").replace("'", "\\'")
        ((formatted,),) = empty_store.rows(f"SELECT formatQuerySingleLine('{quoted}')")
        assert formatted


def test_fsync_is_a_setting_of_every_table(empty_store):
    empty_store.layout = replace(empty_store.layout, fsync=True)
    apply_schema(empty_store)
    without = empty_store.rows(
        "SELECT name FROM system.tables WHERE database = 'podwire_store' "
        "AND engine_full NOT LIKE '%fsync_after_insert = 1%'"
    )
    assert without == []
