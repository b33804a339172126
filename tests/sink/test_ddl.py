"""The schema appears, stays, and follows its declaration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.errors import FatalError
from sink import statements
from sink.ddl import apply_schema
from sink.statements import Layout, schema_statements
from sink.tables import COUNTER, METRICS_TABLES, SCHEMA_VERSION, STORED
from sink.views import VIEWS

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
    assert not apply_schema(store)


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
        texts += statements.add_column(table, table.columns[-1], layout)
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
