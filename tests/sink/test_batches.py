"""Blocks become inserts whose bytes ClickHouse reads as the same rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.entities import DeadLetter, Entity
from schemas.errors import DecodeError
from schemas.metrics import decode_block, encode_block
from sink.batches import (
    block_hash,
    block_inserts,
    check_block,
    dead_letter_insert,
    entity_inserts,
)
from sink.native import NativeBlock, variable_length
from tests.sink.blocks import block


def test_one_insert_per_table_with_rows():
    inserts = block_inserts([block(3)], "epoch")
    assert [insert.table.name for insert in inserts] == [
        "instance_metrics",
        "service_relation_metrics",
        "ledger",
    ]
    assert [insert.rows for insert in inserts] == [1, 10, 2]
    assert len({insert.token for insert in inserts}) == 3


def test_tokens_do_not_depend_on_the_attempt_or_its_cut():
    one = block_inserts([block(3, attempt="a")], "epoch")
    other = block_inserts(
        [block(3, attempt="b", part=i, parts=2, rows=5) for i in range(2)], "epoch"
    )
    assert [insert.token for insert in one] == [insert.token for insert in other]
    assert [insert.mark for insert in one] == [insert.mark for insert in other]
    assert block_hash("epoch", block(3).identity) != block_hash("later", block(3).identity)


def test_the_same_block_makes_the_same_bytes():
    assert block_inserts([block(3)], "e") == block_inserts([block(3)], "e")


def test_unmeasured_figures_are_not_sent():
    (insert,) = [i for i in block_inserts([block(3)], "e") if i.table.name == "instance_metrics"]
    assert "read_count" in insert.columns
    assert "read_duration" not in insert.columns
    assert "read_duration_measured_count" not in insert.columns


def test_an_optional_figure_without_counts_is_refused():
    bad = block(1)
    for table in bad.tables:
        table.measured.clear()
    with pytest.raises(DecodeError, match="connect_duration: no measured counts"):
        check_block(decode_block(encode_block(bad)))


@pytest.mark.parametrize("change", [{"minute_s": -60}, {"minute_s": 60 << 32}, {"end": 0}])
def test_impossible_identities_are_refused(change):
    with pytest.raises(DecodeError):
        check_block(block(5, **change))


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_bytes_are_refused_or_whole(data):
    good = encode_block(block(3, rows=4))
    kind = data.draw(st.sampled_from(["flip", "cut", "random", "insert"]))
    if kind == "random":
        damaged = data.draw(st.binary(max_size=400))
    else:
        at = data.draw(st.integers(0, len(good) - 1))
        noise = data.draw(st.binary(min_size=1, max_size=8))
        damaged = {
            "flip": good[:at] + noise + good[at + len(noise) :],
            "cut": good[:at],
            "insert": good[:at] + noise + good[at:],
        }[kind]
    try:
        found = decode_block(damaged)
        check_block(found)
    except DecodeError:
        return
    if found.identity.parts == 1:
        for insert in block_inserts([found], "epoch"):
            assert insert.rows > 0


def test_columns_must_have_all_rows():
    native = NativeBlock(2)
    with pytest.raises(ValueError, match="not 2 rows"):
        native.add_numbers("a", "UInt64", np.zeros(3, "<u8"))
    with pytest.raises(ValueError, match="codes"):
        native.add_names("a", ["x"], np.zeros(1, "<u4"))
    with pytest.raises(ValueError, match="values"):
        native.add_strings("a", ["x"])


def test_variable_length_numbers():
    assert variable_length(0) == b"\x00"
    assert variable_length(127) == b"\x7f"
    assert variable_length(300) == b"\xac\x02"


def test_entries_of_maps_must_be_in_the_order_of_the_rows():
    native = NativeBlock(2)
    kind = "Map(UInt16, UInt64)"
    keys, values = np.array([1, 2], "<u2"), np.array([3, 4], "<u8")
    with pytest.raises(ValueError, match="order of 2 rows"):
        native.add_maps("a", kind, np.array([1, 0], "<u4"), keys, values)
    with pytest.raises(ValueError, match="order of 2 rows"):
        native.add_maps("a", kind, np.array([0, 2], "<u4"), keys, values)
    with pytest.raises(ValueError, match="2, 1 and 2 entries"):
        native.add_maps("a", kind, np.array([0, 1], "<u4"), keys[:1], values)


@pytest.mark.clickhouse
def test_the_engine_reads_maps_back(store):
    rows = [{}, {1: 10, 256: 1 << 63}, {}, {}, {0: 7}, {}]
    entries = [(i, key, value) for i, row in enumerate(rows) for key, value in row.items()]
    row, keys, values = (np.array(column) for column in zip(*entries, strict=True))
    native = NativeBlock(len(rows))
    native.add_numbers("row", "UInt8", np.arange(len(rows), dtype="u1"))
    native.add_maps("m", "Map(UInt16, UInt64)", row, keys.astype("<u2"), values.astype("<u8"))
    native.add_maps("none", "Map(UInt16, UInt64)", row[:0], keys[:0].astype("<u2"), values[:0])
    store.command(
        "CREATE TABLE t (row UInt8, m Map(UInt16, UInt64), none Map(UInt16, UInt64)) "
        "ENGINE = Memory"
    )
    store._client.raw_insert("t", native.column_names, native.to_bytes(), fmt="Native")
    found = store.rows("SELECT m, none FROM t ORDER BY row")
    assert found == [(row, {}) for row in rows]


@pytest.mark.clickhouse
@pytest.mark.parametrize("names", [1, 255, 256, 257, 70_000])
def test_the_engine_reads_names_back(store, names):
    dictionary = [f"näme-{i}" for i in range(names)] + ["unused"]
    codes = np.arange(names, dtype="<u4")[::-1]
    native = NativeBlock(names)
    native.add_names("name", dictionary, codes)
    store.command("CREATE TABLE t (name LowCardinality(String)) ENGINE = Memory")
    store._client.raw_insert("t", ["name"], native.to_bytes(), fmt="Native")
    rows = store.rows("SELECT name FROM t")
    assert [row[0] for row in rows] == [dictionary[code] for code in codes]


@pytest.mark.clickhouse
def test_entities_merge_in_any_order(store):
    seen = [
        Entity("service", "c", {"service": "a.x"}, {"namespace": "x", "workload": w}, first, last)
        for w, first, last in (("old", 1000, 2000), ("new", 1500, 9000), ("middle", 500, 5000))
    ]
    for entities in ([seen[1]], [seen[0], seen[2]], seen):
        for insert in entity_inserts(entities):
            store.insert(insert)
    rows = store.rows(
        "SELECT name, short_name, service_id, `group`, layer, namespace, workload, "
        "toUnixTimestamp64Milli(first_seen), toUnixTimestamp64Milli(last_seen) "
        "FROM podwire.service_traffic"
    )
    assert rows == [("a.x", "a.x", "YS54.1", "", "KUBERNETES", "x", "new", 500, 9000)]


@pytest.mark.clickhouse
def test_of_two_sights_at_once_the_one_that_knows_more_wins(store):
    less = {"layer": "KUBERNETES", "namespace": 'x"}'}
    more = {**less, "workload": "web"}
    for attributes in (less, more, less):
        for insert in entity_inserts([Entity("service", "", {"service": "a"}, attributes, 1, 2)]):
            store.insert(insert)
    rows = store.rows("SELECT namespace, workload FROM podwire.service_traffic")
    assert rows == [('x"}', "web")]


@pytest.mark.clickhouse
def test_every_kind_of_entity_has_its_view(store):
    from schemas.catalogue import SCOPES

    for scope in SCOPES:
        names = {key: f"{key}'s \\ name" for key in scope.name_keys}
        for insert in entity_inserts([Entity(scope.name, "c", names, {}, 1, 2)]):
            store.insert(insert)
        assert len(store.rows(f"SELECT * FROM podwire.{scope.entity_table}")) == 1
    (row,) = store.rows("SELECT last_ping, properties FROM podwire.instance_traffic")
    assert row == (2, "{}")


@pytest.mark.clickhouse
def test_dead_letters_are_listed_once(store):
    letter = DeadLetter("streams", "t", 1, 5, "broken", payload=b"abc", time_ms=1_893_456_000_000)
    store.insert(dead_letter_insert([letter, letter]))
    store.insert(dead_letter_insert([letter]))
    rows = store.rows(
        "SELECT stage, topic, partition, offset, reason, size FROM podwire.dead_letters"
    )
    assert rows == [("streams", "t", 1, 5, "broken", 3)]
