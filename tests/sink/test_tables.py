"""The declarations agree with the catalogue and explain themselves."""

from __future__ import annotations

from schemas.catalogue import (
    CALL_DISTRIBUTIONS,
    DISTRIBUTION_SCOPES,
    DISTRIBUTIONS,
    FIGURES,
    PROVENANCE,
    SCOPES,
)
from sink.statements import Layout, fingerprint, schema_statements
from sink.tables import METRICS_TABLES, STORED
from sink.views import VIEWS


def test_every_figure_is_a_column_of_every_metrics_table_and_view():
    views = {view.name: view for view in VIEWS}
    for scope in SCOPES:
        for suffix in ("", "_hourly", "_daily"):
            names = [column.name for column in views[scope.metrics_table + suffix].columns]
            assert names[: 1 + len(scope.keys)] == ["time", *scope.keys]
            assert set(names) >= {figure.name for figure in (*FIGURES, *PROVENANCE)}
            for figure in FIGURES:
                assert (figure.measured_name in names) == figure.optional
        assert scope.entity_table in views
        stored = METRICS_TABLES[scope.name].column_names
        assert set(stored) >= {figure.name for figure in FIGURES}


def test_every_distribution_is_a_column_of_its_scopes_and_of_no_other():
    columns = {relation.name: {c.name for c in relation.columns} for relation in (*STORED, *VIEWS)}
    every = {distribution.column for distribution in (*DISTRIBUTIONS, *CALL_DISTRIBUTIONS)}
    assert len(every) == 13
    for scope in SCOPES:
        for suffix in ("", "_hourly", "_daily"):
            found = {c for c in columns[scope.metrics_table + suffix] if c.endswith("_histogram")}
            stages = scope.name in DISTRIBUTION_SCOPES
            assert found == (every if stages else {"http_duration_histogram"})


def test_everything_has_a_comment():
    for relation in (*STORED, *VIEWS):
        assert relation.comment, relation.name
        for column in relation.columns:
            assert column.comment, f"{relation.name}.{column.name}"


def test_names_are_unique():
    for relations in (STORED, VIEWS):
        names = [relation.name for relation in relations]
        assert len(names) == len(set(names))
        for relation in relations:
            columns = [column.name for column in relation.columns]
            assert len(columns) == len(set(columns)), relation.name


def test_a_cluster_replicates_and_distributes_every_table():
    statements = schema_statements(Layout(cluster="main"))
    assert all("ON CLUSTER 'main'" in statement for statement in statements)
    text = "\n".join(statements)
    for table in STORED:
        assert f"CREATE TABLE IF NOT EXISTS podwire_store.{table.name}_local ON CLUSTER" in text
        assert f"Distributed('main', podwire_store, {table.name}_local, " in text
        assert f"'/clickhouse/tables/{{shard}}/podwire_store/{table.name}', '{{replica}}'" in text
    assert "ENGINE = Merge" not in text
    assert "ReplicatedReplacingMergeTree('/clickhouse" in text
    assert "non_replicated" not in text


def test_retention_is_configurable_and_may_be_off():
    some = "\n".join(
        schema_statements(
            Layout(
                retention=(
                    ("retention_days", 3),
                    ("retention_hourly_days", 0),
                    ("retention_daily_days", 5),
                    ("access_log_retention_days", 1),
                )
            )
        )
    )
    assert "toIntervalDay(3)" in some
    assert "toIntervalDay(5)" in some
    assert some.count("toIntervalDay(1)") == 2
    assert "toIntervalDay(0)" not in some
    assert fingerprint(Layout()) != fingerprint(Layout(fsync=True))
