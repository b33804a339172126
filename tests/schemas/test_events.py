"""The public protobuf classes are the judge here: they are protoc's, not ours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from google.protobuf.internal import api_implementation
from hypothesis import given, settings

from schemas.catalogue import FIGURE_BY_NAME
from schemas.columns import UNMEASURED_U32, UNMEASURED_U64, Table
from schemas.errors import DecodeError
from schemas.events import (
    FIGURE_WIDTH,
    LAYOUT_VERSION,
    READ_FIGURES,
    WRITE_FIGURES,
    BatchHeader,
    Closes,
    Connections,
    Drops,
    EventBatch,
    NetInterface,
    Opens,
    Parties,
    Requests,
    Transfers,
    decode_batch,
    encode_batch,
)
from schemas.ledger import Entry
from schemas.pb import events_pb2 as public
from tests.schemas.strategies import PARTY_NAMES, REQUEST_NAMES, batches, damaged

TABLES: dict[str, type[Table]] = {
    "connections": Connections,
    "opens": Opens,
    "closes": Closes,
    "transfers": Transfers,
    "requests": Requests,
    "parties": Parties,
    "drops": Drops,
}
LISTS = ("ledger", "interfaces")
HEADER = [item.name for item in dataclasses.fields(BatchHeader) if item.name not in LISTS]


def small_batch() -> EventBatch:
    """One IPv4 connection with one event of each kind, and who its ends are."""
    one = {name: np.ones(1, dtype) for name, dtype, width in Connections.specs() if width == 1}
    address = np.array([[0] * 10 + [255, 255, 10, 0, 0, 1]], "u1")
    wide = dict.fromkeys(("local_address", "remote_address", "translated_address"), address)
    connections = Connections(**{**one, **wide})
    connections.family[:] = 4
    connections.container[:] = 0
    u4, u1, u8 = (np.array([value], dtype) for value, dtype in ((0, "<u4"), (1, "u1"), (9, "<u8")))
    return EventBatch(
        header=BatchHeader(node="node-1"),
        connections=connections,
        names=["", "server"],
        opens=Opens(u4, u1, u8, u8, u4),
        closes=Closes(u4, u8, u8),
        transfers=Transfers(u4, u1, u1, u8, u8, u4),
        requests=Requests(
            **{name: np.zeros(1, dtype) for name, dtype, _ in Requests.specs()}
            | {"path": u1.astype("<u4"), "start_ns": u8, "end_ns": u8}
        ),
        parties=Parties(u1.astype("<u4"), u4, u4, u4, u1),
        drops=Drops(u4, u8, np.array([1], "<u4"), np.array([2], "<u4")),
    )


def assert_reads_as(batch: EventBatch, read: EventBatch) -> None:
    assert batch.header == read.header
    assert list(batch.names) == list(read.names)
    for table, kind in TABLES.items():
        for name, dtype, width in kind.specs():
            ours, theirs = (getattr(getattr(side, table), name) for side in (batch, read))
            rows = getattr(batch, table).rows
            if not len(ours):  # a measured column that was left empty
                ours = np.full_like(ours, np.iinfo(dtype).max, shape=(rows, *ours.shape[1:]))
            assert theirs.dtype == dtype
            assert theirs.shape == ((rows, width) if width > 1 else (rows,))
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{table}.{name}")


def to_public(batch: EventBatch) -> public.EventBatch:
    """Build the message the way any protobuf client would, value by value."""
    message = public.EventBatch()
    message.header.layout_version = LAYOUT_VERSION
    for name in HEADER:
        setattr(message.header, name, getattr(batch.header, name))
    for entry in batch.header.ledger:
        message.header.ledger.add(**dataclasses.asdict(entry))
    for each in batch.header.interfaces:
        message.header.interfaces.add(**dataclasses.asdict(each))
    for table, kind in TABLES.items():
        out = getattr(message, table)
        for name, dtype, _ in kind.specs():
            values = getattr(getattr(batch, table), name)
            if not len(values):
                continue  # even an empty value would make the table present in the message
            if dtype.itemsize == 1:
                setattr(out, name, bytes(values.ravel().tolist()))
            else:
                getattr(out, name).extend(values.ravel().tolist())
    message.connections.names.extend(batch.names)
    return message


def test_protobuf_runs_on_upb() -> None:
    """The pure Python backend is a hundred times slower and would pass every other test."""
    assert api_implementation.Type() == "upb"


@settings(max_examples=60)
@given(batches())
def test_public_classes_read_what_the_codec_writes(batch: EventBatch) -> None:
    message = public.EventBatch.FromString(encode_batch(batch))
    for name in HEADER:
        assert getattr(message.header, name) == getattr(batch.header, name)
    ledger = [Entry(**{f.name: getattr(e, f.name) for f in dataclasses.fields(Entry)})
              for e in message.header.ledger]  # fmt: skip
    assert ledger == batch.header.ledger
    interfaces = [(each.index, each.name, each.mtu) for each in message.header.interfaces]
    assert interfaces == [dataclasses.astuple(each) for each in batch.header.interfaces]
    assert list(message.connections.names) == list(batch.names)
    for table, kind in TABLES.items():
        for name, dtype, _ in kind.specs():
            values = getattr(getattr(batch, table), name)
            assert list(getattr(getattr(message, table), name)) == values.ravel().tolist(), dtype


@settings(max_examples=60)
@given(batches())
def test_codec_reads_what_the_public_classes_write(batch: EventBatch) -> None:
    assert_reads_as(batch, decode_batch(to_public(batch).SerializeToString()))


@settings(max_examples=60)
@given(batches())
def test_both_write_the_same_fields(batch: EventBatch) -> None:
    """Equal as messages, unknown fields included: a twin with other numbers would leave some."""
    written = public.EventBatch.FromString(encode_batch(batch))
    assert written.SerializeToString(deterministic=True) == to_public(batch).SerializeToString(
        deterministic=True
    )


@settings(max_examples=40)
@given(batches())
def test_round_trip(batch: EventBatch) -> None:
    assert_reads_as(batch, decode_batch(encode_batch(batch)))


@pytest.mark.parametrize("table", TABLES)
def test_columns_are_those_of_the_public_message(table: str) -> None:
    """Names, order, and widths; ``names`` is the dictionary, not a column."""
    descriptor = public.EventBatch.DESCRIPTOR.fields_by_name[table].message_type
    declared = []
    for field in descriptor.fields:
        if field.type == field.TYPE_STRING:
            assert field.name == "names"
            continue
        width = 16 if field.name.endswith("_address") else 1
        width = FIGURE_WIDTH if field.name == "figures" else width
        dtype = {field.TYPE_FIXED64: "<u8", field.TYPE_FIXED32: "<u4", field.TYPE_BYTES: "u1"}
        declared.append((field.name, np.dtype(dtype[field.type]), width))
    assert tuple(declared) == TABLES[table].specs()


def test_header_fields_are_those_of_the_public_message() -> None:
    fields = [field.name for field in public.BatchHeader.DESCRIPTOR.fields]
    assert fields == ["layout_version", *HEADER, *LISTS]
    interface = [field.name for field in public.NetInterface.DESCRIPTOR.fields]
    assert interface == [item.name for item in dataclasses.fields(NetInterface)]
    entry = [field.name for field in public.LedgerEntry.DESCRIPTOR.fields]
    assert entry == [item.name for item in dataclasses.fields(Entry)]


@settings(max_examples=300)
@given(damaged(batches().map(encode_batch)))
def test_damaged_bytes_raise_decode_error_or_still_make_sense(data: bytes) -> None:
    try:
        batch = decode_batch(data)
    except DecodeError:
        return
    assert batch.header.node
    for table in (batch.opens, batch.closes, batch.transfers, batch.requests, batch.drops):
        assert not table.rows or int(table.connection.max()) < batch.connections.rows
    assert batch.parties.rows in (0, batch.connections.rows)
    indices = [getattr(batch.parties, name) for name in PARTY_NAMES]
    indices += [getattr(batch.requests, name) for name in REQUEST_NAMES]
    indices.append(batch.drops.reason)
    indices.append(batch.requests.endpoint[batch.requests.endpoint != UNMEASURED_U32])
    for index in indices:
        assert not len(index) or int(index.max()) < len(batch.names)


@settings(max_examples=40)
@given(batches())
def test_what_was_read_is_written_as_it_was(batch: EventBatch) -> None:
    """A replay sends the recorded bytes: what was left out stays out."""
    data = encode_batch(batch)
    assert encode_batch(decode_batch(data)) == data


@pytest.mark.parametrize("rows", [1, 31, 32, 4096, 40_000])
def test_columns_of_any_length_are_framed_as_protobuf_does(rows: int) -> None:
    """Lengths of one to four bytes; the public class reads, and it writes the same amount."""
    batch = small_batch()
    batch.transfers = batch.transfers.take(np.zeros(rows, np.intp))
    batch.transfers.figures = np.arange(rows * FIGURE_WIDTH, dtype="<u4").reshape(rows, -1)
    data = encode_batch(batch)
    message = public.EventBatch.FromString(data)
    assert len(message.transfers.size) == rows
    assert message.transfers.figures[-1] == rows * FIGURE_WIDTH - 1
    # The connections come in two pieces, each with a head.
    assert len(message.SerializeToString()) <= len(data) <= len(message.SerializeToString()) + 4


def test_a_measured_column_may_be_left_out() -> None:
    """What an older collector does not send was not measured, for each of its rows."""
    message = to_public(small_batch())
    message.transfers.ClearField("duration_ns")
    batch = decode_batch(message.SerializeToString())
    assert batch.transfers.duration_ns.tolist() == [UNMEASURED_U64]
    assert batch.transfers.duration_ns.dtype == np.dtype("<u8")
    assert batch.opens.duration_ns.tolist() == [9]
    assert batch.transfers.figures.tolist() == [[int(UNMEASURED_U32)] * FIGURE_WIDTH]
    assert batch.transfers.take(np.array([0, 0])).figures.shape == (2, FIGURE_WIDTH)


def test_what_a_call_did_not_tell_may_be_left_out() -> None:
    message = to_public(small_batch())
    left_out = sorted(Requests.measured_columns())
    for name in left_out:
        message.requests.ClearField(name)
    requests = decode_batch(message.SerializeToString()).requests
    for name in left_out:
        values = getattr(requests, name)
        assert values.tolist() == [np.iinfo(values.dtype).max]
    assert set(left_out) == {
        "grpc_status",
        "first_byte_ns",
        "request_header_size",
        "request_body_size",
        "response_header_size",
        "response_body_size",
        "endpoint",
    }


def test_parties_are_of_all_connections_or_none() -> None:
    batch = small_batch()
    batch.parties = batch.parties.take(np.zeros(2, np.intp))
    with pytest.raises(DecodeError, match="2 parties of 1 connections"):
        decode_batch(encode_batch(batch))
    batch.parties = Parties()
    assert decode_batch(encode_batch(batch)).parties.rows == 0


def test_a_row_without_its_first_figure_keeps_the_others() -> None:
    batch = small_batch()
    nothing = int(UNMEASURED_U32)
    batch.transfers.figures = np.array([[nothing, 5, *[nothing] * 15]], "<u4")
    assert decode_batch(encode_batch(batch)).transfers.figures.tolist() == [
        [nothing, 5, *[nothing] * 15]
    ]


def test_places_of_the_figures_are_named_by_the_catalogue() -> None:
    for names, group in ((READ_FIGURES, "read"), (WRITE_FIGURES, "write")):
        assert len(set(names)) == len(names) <= FIGURE_WIDTH
        by_call = {f"{group}_{name}" for name in ("count", "bytes", "duration")}
        declared = {f.name for f in FIGURE_BY_NAME.values() if f.group == group}
        assert set(names) == declared - by_call
        assert all(FIGURE_BY_NAME[name].optional for name in names)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("header.layout_version", 99, "layout version 99, expected 1"),
        ("header.node", "", "without a node name"),
        ("connections.family", b"\x05", "family"),
        ("connections.role", b"\x03", "role 3"),
        ("connections.process", [2], "names index 2 of 2"),
        ("connections.local_address", b"short", "multiple of 16"),
        ("connections.remote_container", [2], "names index 2 of 2"),
        ("connections.local_port", [65_536], "port index 65536 of 65536"),
        ("connections.remote_port", [70_000], "port index 70000 of 65536"),
        ("connections.translated_port", [2**32 - 1], "port index 4294967295 of 65536"),
        ("connections.pid", [1, 2], "2 rows, expected 1"),
        ("opens.kind", b"\x03", "open kind"),
        ("opens.end_ns", [], "0 rows, expected 1"),
        ("closes.connection", [1], "connection index 1 of 1"),
        ("transfers.direction", b"\x00", "direction"),
        ("transfers.figures", [1] * 16, "64 bytes is no multiple of 68"),
        ("transfers.figures", [1] * 34, "2 rows, expected 1"),
        ("requests.connection", [1], "connection index 1 of 1"),
        ("requests.outcome", b"\x03", "unknown outcome 3"),
        ("requests.path", [2], "names index 2 of 2"),
        ("requests.span_id", [2**32 - 1], "names index 4294967295 of 2"),
        ("requests.endpoint", [2], "names index 2 of 2"),
        ("requests.status", [], "0 rows, expected 1"),
        ("parties.remote_instance", [2], "names index 2 of 2"),
        ("parties.local_container", [2], "names index 2 of 2"),
    ],
)
def test_each_check_names_what_is_wrong(path: str, value: object, reason: str) -> None:
    message = to_public(small_batch())
    table, _, name = path.partition(".")
    owner = getattr(message, table)
    if isinstance(value, list):
        del getattr(owner, name)[:]
        getattr(owner, name).extend(value)
    else:
        setattr(owner, name, value)
    with pytest.raises(DecodeError, match=reason):
        decode_batch(message.SerializeToString())


def test_columns_of_unequal_length_are_refused_before_they_are_sent() -> None:
    batch = small_batch()
    batch.closes.end_ns = np.zeros(2, "<u8")
    with pytest.raises(ValueError, match="end_ns has 2 rows, not 1"):
        encode_batch(batch)


def test_decoded_columns_cannot_be_changed_by_accident() -> None:
    batch = decode_batch(encode_batch(small_batch()))
    with pytest.raises(ValueError, match="read-only"):
        batch.transfers.size[0] = 1


def test_events_counts_all_kinds() -> None:
    assert small_batch().events == 5
    assert EventBatch().events == 0
