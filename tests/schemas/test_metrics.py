"""Blocks, judged by the public protobuf classes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from schemas.catalogue import COUNT_TABLES, DISTRIBUTION_BY_NAME, CountTable
from schemas.errors import DecodeError
from schemas.histograms import buckets
from schemas.metrics import (
    LAYOUT_VERSION,
    BlockIdentity,
    Histogram,
    MetricsBlock,
    MetricsTable,
    NameCounts,
    decode_block,
    encode_block,
)
from schemas.pb import metrics_pb2 as public
from tests.schemas.strategies import blocks, damaged

IDENTITY = [item.name for item in dataclasses.fields(BlockIdentity)]


def small_block() -> MetricsBlock:
    """One row of one scope."""
    index = np.array([1], "<u4")
    return MetricsBlock(
        BlockIdentity("podwire.events.v1", 0, 1_700_000_040, 5, 9),
        ["", "name"],
        [
            MetricsTable(
                "service",
                1,
                keys=dict.fromkeys(("cluster", "role", "service"), index),
                figures={"read_duration": np.array([7], "<u8")},
                measured={"read_duration": np.array([2], "<u8")},
                histograms={
                    "read_ip": Histogram(
                        np.zeros(2, "<u4"), np.array([40, 41], "<u4"), np.array([3, 1], "<u8")
                    )
                },
                breakdowns={
                    "write_lost_packet_reasons": NameCounts(
                        np.zeros(2, "<u4"), np.array([0, 1], "<u4"), np.array([3, 1], "<u8")
                    )
                },
            )
        ],
    )


def to_public(block: MetricsBlock) -> public.MetricsBlock:
    """Build the message the way any protobuf client would, value by value."""
    message = public.MetricsBlock(layout_version=LAYOUT_VERSION, names=block.names)
    for name in IDENTITY:
        setattr(message.identity, name, getattr(block.identity, name))
    for table in block.tables:
        out = message.tables.add(table=table.table, rows=table.rows)
        for name, index in table.keys.items():
            out.keys.add(name=name, values=index.tolist())
        for name, values in table.figures.items():
            measured = table.measured.get(name, np.empty(0, "<u8"))
            out.figures.add(name=name, values=values.tolist(), measured=measured.tolist())
        for name, each in table.histograms.items():
            out.histograms.add(
                name=name,
                row=each.row.tolist(),
                bucket=each.bucket.tolist(),
                count=each.count.tolist(),
            )
        for name, counts in table.breakdowns.items():
            out.breakdowns.add(
                name=name,
                row=counts.row.tolist(),
                key=counts.key.tolist(),
                count=counts.count.tolist(),
            )
    return message


def assert_equal(left: MetricsBlock, right: MetricsBlock) -> None:
    assert left.identity == right.identity
    assert left.names == right.names
    assert [(t.table, t.rows) for t in left.tables] == [(t.table, t.rows) for t in right.tables]
    for ours, theirs in zip(left.tables, right.tables, strict=True):
        for part in ("keys", "figures", "measured"):
            mine, other = getattr(ours, part), getattr(theirs, part)
            assert list(mine) == list(other)
            for name in mine:
                np.testing.assert_array_equal(mine[name], other[name], err_msg=name)
        assert list(ours.histograms) == list(theirs.histograms)
        for name, histogram in ours.histograms.items():
            for part, dtype in (("row", "<u4"), ("bucket", "<u4"), ("count", "<u8")):
                mine, other = getattr(histogram, part), getattr(theirs.histograms[name], part)
                assert other.dtype == dtype
                np.testing.assert_array_equal(mine, other, err_msg=f"{name}.{part}")
        assert list(ours.breakdowns) == list(theirs.breakdowns)
        for name, counts in ours.breakdowns.items():
            for part, dtype in (("row", "<u4"), ("key", "<u4"), ("count", "<u8")):
                mine, other = getattr(counts, part), getattr(theirs.breakdowns[name], part)
                assert other.dtype == dtype
                np.testing.assert_array_equal(mine, other, err_msg=f"{name}.{part}")


@settings(max_examples=60)
@given(blocks())
def test_public_classes_read_what_the_codec_writes(block: MetricsBlock) -> None:
    assert public.MetricsBlock.FromString(encode_block(block)) == to_public(block)


@settings(max_examples=60)
@given(blocks())
def test_codec_reads_what_the_public_classes_write(block: MetricsBlock) -> None:
    assert_equal(decode_block(to_public(block).SerializeToString()), block)


@settings(max_examples=60)
@given(blocks())
def test_both_write_the_same_bytes(block: MetricsBlock) -> None:
    written = public.MetricsBlock.FromString(encode_block(block))
    assert written.SerializeToString(deterministic=True) == to_public(block).SerializeToString(
        deterministic=True
    )


def test_identity_fields_are_those_of_the_public_message() -> None:
    assert [field.name for field in public.BlockIdentity.DESCRIPTOR.fields] == IDENTITY


@settings(max_examples=300)
@given(damaged(blocks().map(encode_block)))
def test_damaged_bytes_raise_decode_error_or_still_make_sense(data: bytes) -> None:
    try:
        block = decode_block(data)
    except DecodeError:
        return
    for table in block.tables:
        for index in table.keys.values():
            assert len(index) == table.rows
            assert not len(index) or int(index.max()) < len(block.names)
        for name, histogram in table.histograms.items():
            size = buckets(DISTRIBUTION_BY_NAME[name].bits)
            entries = list(zip(histogram.row.tolist(), histogram.bucket.tolist(), strict=True))
            assert entries == sorted(set(entries))
            assert len(histogram.count) == len(entries)
            assert all(row < table.rows and bucket < size for row, bucket in entries)
        for counts in table.breakdowns.values():
            entries = list(zip(counts.row.tolist(), counts.key.tolist(), strict=True))
            assert entries == sorted(set(entries))
            assert len(counts.count) == len(entries)
            assert all(row < table.rows and key < len(block.names) for row, key in entries)


@pytest.mark.parametrize(
    "change",
    [
        {"topic": ""},
        {"minute_s": 1_700_000_041},
        {"minute_s": -60},
        {"minute_s": 2**40 * 60},
        {"base_offset": -1},
        {"base_offset": 10},
        {"part": 1},
        {"parts": 0},
    ],
    ids=str,
)
def test_impossible_identity_is_refused(change: dict[str, object]) -> None:
    message = to_public(small_block())
    for name, value in change.items():
        setattr(message.identity, name, value)
    with pytest.raises(DecodeError, match="bad block identity"):
        decode_block(message.SerializeToString())


@pytest.mark.parametrize("declared", COUNT_TABLES.values(), ids=lambda each: each.name)
def test_a_key_that_came_later_is_empty_in_blocks_of_before(declared: CountTable) -> None:
    index = np.array([1], "<u4")
    keys = {key: index for key in declared.keys if key not in declared.later_keys}
    block = dataclasses.replace(small_block(), tables=[MetricsTable(declared.name, 1, keys)])
    (table,) = decode_block(to_public(block).SerializeToString()).tables
    assert set(table.keys) == set(declared.keys)
    assert all(int(table.keys[key][0]) == (key in keys) for key in declared.keys)
    del keys["node"]
    with pytest.raises(DecodeError, match=f"{declared.name}: keys"):
        decode_block(to_public(block).SerializeToString())


def test_layout_version_is_checked() -> None:
    message = to_public(small_block())
    message.layout_version = 7
    with pytest.raises(DecodeError, match="layout version 7, expected 1"):
        decode_block(message.SerializeToString())


def test_unknown_table_key_and_figure_are_refused() -> None:
    message = to_public(small_block())
    message.tables[0].figures[0].name = "read_happiness"
    with pytest.raises(DecodeError, match="unknown figure 'read_happiness'"):
        decode_block(message.SerializeToString())
    message = to_public(small_block())
    message.tables[0].keys[0].name = "planet"
    with pytest.raises(DecodeError, match=r"keys .*planet"):
        decode_block(message.SerializeToString())
    message = to_public(small_block())
    message.tables[0].table = "planets"
    with pytest.raises(DecodeError, match="unknown table 'planets'"):
        decode_block(message.SerializeToString())


def test_columns_must_be_as_long_as_the_table_says() -> None:
    for column in ("keys", "figures"):
        message = to_public(small_block())
        getattr(message.tables[0], column)[0].values.append(1)
        with pytest.raises(DecodeError, match="for 1 rows"):
            decode_block(message.SerializeToString())
    message = to_public(small_block())
    message.tables[0].keys[0].values[0] = 2
    with pytest.raises(DecodeError, match="name 2 of 2"):
        decode_block(message.SerializeToString())


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("row", [0, 1], "service.read_ip: row 1 of 1"),
        ("row", [0], "4 bytes for 2 rows"),
        ("bucket", [40, 257], "bucket 257 of 257"),
        ("bucket", [40, 2**32 - 1], "bucket"),
        ("bucket", [41, 40], "not in order"),
        ("bucket", [40, 40], "not in order"),
        ("bucket", [], "0 bytes for 2 rows"),
        ("count", [1], "8 bytes for 1 rows"),
    ],
)
def test_malformed_histograms_are_refused(column: str, values: list[int], reason: str) -> None:
    message = to_public(small_block())
    changed = getattr(message.tables[0].histograms[0], column)
    del changed[:]
    changed.extend(values)
    with pytest.raises(DecodeError, match=reason):
        decode_block(message.SerializeToString())


def test_rows_of_a_histogram_ascend() -> None:
    message = to_public(small_block())
    table = message.tables[0]
    table.rows = 2
    for column in (*(key.values for key in table.keys), table.figures[0].values):
        column.append(1)
    table.figures[0].measured.append(1)
    table.histograms[0].row[:] = [0, 1]
    table.histograms[0].bucket[:] = [41, 40]
    decode_block(message.SerializeToString())
    table.histograms[0].row[:] = [1, 0]
    with pytest.raises(DecodeError, match="not in order"):
        decode_block(message.SerializeToString())


def test_histograms_that_a_table_cannot_have_are_refused() -> None:
    message = to_public(small_block())
    message.tables[0].histograms.add(name="read_happiness")
    with pytest.raises(DecodeError, match="unknown distribution 'read_happiness'"):
        decode_block(message.SerializeToString())
    message = to_public(small_block())
    message.tables[0].histograms.add(name="read_ip")
    with pytest.raises(DecodeError, match="read_ip: a second histogram"):
        decode_block(message.SerializeToString())
    message = to_public(small_block())
    message.tables[0].table = "instance"
    message.tables[0].keys.add(name="instance", values=[1])
    with pytest.raises(DecodeError, match=r"instance.read_ip: this table has no such distribution"):
        decode_block(message.SerializeToString())


def test_token_is_the_identity_without_the_attempt() -> None:
    block = small_block()
    again = dataclasses.replace(block.identity, attempt="second", end_offset=11)
    assert block.identity.token == again.token
    for change in ({"part": 1}, {"partition": 1}, {"minute_s": 60}, {"base_offset": 1}):
        assert dataclasses.replace(block.identity, **change).token != block.identity.token


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("row", [0, 1], "row 1 of 1"),
        ("key", [0, 2], "name 2 of 2"),
        ("key", [1, 0], "not in order"),
        ("key", [1, 1], "not in order"),
        ("count", [1], "8 bytes for 1 rows"),
    ],
)
def test_malformed_breakdowns_are_refused(column: str, values: list[int], reason: str) -> None:
    message = to_public(small_block())
    changed = getattr(message.tables[0].breakdowns[0], column)
    del changed[:]
    changed.extend(values)
    with pytest.raises(DecodeError, match=reason):
        decode_block(message.SerializeToString())


def test_breakdowns_that_a_table_cannot_have_are_refused() -> None:
    message = to_public(small_block())
    message.tables[0].breakdowns.add(name="read_happiness")
    with pytest.raises(DecodeError, match="unknown breakdown 'read_happiness'"):
        decode_block(message.SerializeToString())
    message = to_public(small_block())
    message.tables[0].breakdowns.add(name="write_lost_packet_reasons")
    with pytest.raises(DecodeError, match="write_lost_packet_reasons: told twice"):
        decode_block(message.SerializeToString())
    message = to_public(small_block())
    del message.tables[0].histograms[:]
    message.tables[0].table = "instance"
    message.tables[0].keys.add(name="instance", values=[1])
    with pytest.raises(DecodeError, match="this table has no breakdowns"):
        decode_block(message.SerializeToString())
