"""Columns as protobuf, held against the generated code."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.pb import skywalking_accesslog_pb2 as pb
from sink.oap.wire import (
    Packed,
    interleave,
    message,
    nested,
    number,
    offset_timestamp,
    text,
    varint,
    written,
)

U64 = st.integers(0, 2**64 - 1)
EDGES = [0, 1, 127, 128, 16_383, 16_384, 2**32 - 1, 2**32, 2**63, 2**64 - 1]


def rows(cells):
    packed = cells.pack()
    ends = packed.ends().tolist()
    data = packed.data.tobytes()
    return [data[start:end] for start, end in pairwise(ends)]


@given(st.lists(st.tuples(U64, U64, st.booleans()), min_size=1, max_size=20))
def test_submessages(found):
    first = np.array([row[0] for row in found], np.uint64)
    second = np.array([row[1] for row in found], np.uint64)
    present = np.array([row[2] for row in found])
    cells = message(5, [number(1, first), number(5, second, present)], present)
    for data, (one, other, there) in zip(rows(cells), found, strict=True):
        wanted = pb.AccessLogKernelReadOperation()
        if there:
            wanted.l3Metrics.SetInParent()
            wanted.l3Metrics.totalDuration = one
            wanted.l3Metrics.totalNetFilterDuration = other
        assert data == wanted.SerializeToString(deterministic=True)


@pytest.mark.parametrize("value", EDGES)
def test_numbers(value):
    wanted = pb.EBPFOffsetTimestamp(offset=value)
    assert rows(number(1, np.array([value, 0], np.uint64))) == [wanted.SerializeToString(), b""]
    assert varint(value) == (wanted.SerializeToString()[1:] or b"\0")


@pytest.mark.parametrize("value", EDGES)
def test_timestamps_are_there_even_at_zero(value):
    (data,) = rows(offset_timestamp(1, np.array([value], np.uint64)))
    found = pb.AccessLogKernelCloseOperation.FromString(data)
    assert found.startTime.HasField("offset")
    assert found.startTime.offset.offset == value


def test_nothing_of_everything():
    cells = message(3, [number(1, np.zeros(3)), number(2, np.ones(3))], np.zeros(3, bool))
    assert rows(cells) == [b"", b"", b""]
    assert rows(message(3, [number(1, np.zeros(2))])) == [b"\x1a\0"] * 2


@pytest.mark.parametrize("value", ["", "a", "stäck", "x" * 200, "\ud800"])
def test_texts(value):
    wanted = pb.IPAddress(host=value.encode(errors="replace").decode())
    assert text(1, value) == wanted.SerializeToString()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000])
def test_bytes_with_their_length(size):
    body = pb.KubernetesProcessAddress(processName="x" * size)
    data = body.SerializeToString()
    wanted = pb.ConnectionAddress(kubernetes=body)
    assert nested(1, data) == wanted.SerializeToString()
    assert pb.KubernetesProcessAddress.FromString(data).processName == "x" * size


@given(st.lists(st.binary(max_size=40), max_size=9))
def test_fields_that_are_there_already(found):
    fields = {row: data for row, data in enumerate(found) if data}
    assert rows(written(len(found), fields)) == found


@given(st.data())
def test_interleaving_keeps_every_message(data):
    lots = data.draw(st.lists(st.lists(st.binary(max_size=9), max_size=5), min_size=1, max_size=4))
    flat = [one for lot in lots for one in lot]
    order = data.draw(st.permutations(range(len(flat))))
    parts = [
        Packed(np.frombuffer(b"".join(lot), np.uint8), np.array([len(x) for x in lot], np.intp))
        for lot in lots
    ]
    found = interleave(parts, np.array(order, np.intp))
    assert found.data.tobytes() == b"".join(flat[place] for place in order)
    assert found.size.tolist() == [len(flat[place]) for place in order]
