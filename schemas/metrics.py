"""`MetricsBlock`: one minute of one events partition; see ``schemas/pb/metrics.proto``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError as ProtobufDecodeError

from schemas.catalogue import (
    BREAKDOWN_BY_NAME,
    BREAKDOWN_SCOPES,
    COUNT_TABLES,
    DISTRIBUTION_BY_NAME,
    FIGURE_BY_NAME,
    SCOPE_BY_NAME,
    distributions_of,
)
from schemas.errors import DecodeError
from schemas.histograms import buckets
from schemas.pb import metrics_columns_pb2 as wire

__all__ = [
    "LAYOUT_VERSION",
    "BlockIdentity",
    "Histogram",
    "MetricsBlock",
    "MetricsTable",
    "NameCounts",
    "decode_block",
    "encode_block",
]

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.columns import U32, U64

LAYOUT_VERSION = 1
_END_OF_TIME_S = 2**32  # what a ClickHouse DateTime can hold


@dataclass(frozen=True, slots=True, order=True)
class BlockIdentity:
    """Which contributions a block holds: offsets [base_offset, end_offset) to one minute."""

    topic: str
    partition: int
    minute_s: int
    base_offset: int
    end_offset: int
    part: int = 0
    parts: int = 1
    attempt: str = ""

    @property
    def token(self) -> str:
        """The same for every copy of the block and different for every other block."""
        return f"{self.topic}:{self.partition}:{self.minute_s}:{self.base_offset}:{self.part}"


@dataclass(slots=True)
class Histogram:
    """How often the values of a distribution occurred, sparse; columns of shape (entries,).

    Ascending by row and then bucket, no pair twice.

    Attributes:
        row: Row of the table.
        bucket: See `schemas.histograms.bucket_of`.
        count: Values in this bucket.
    """

    row: U32
    bucket: U32
    count: U64


@dataclass(slots=True)
class NameCounts:
    """A figure by names, sparse; columns of shape (entries,).

    Ascending by row and then key, no pair twice.

    Attributes:
        row: Row of the table.
        key: Index into the block's names.
        count: What the row counts under this name.
    """

    row: U32
    key: U32
    count: U64


@dataclass(slots=True)
class MetricsTable:
    """Rows of one scope, or of a table of counts.

    Attributes:
        table: Name of a scope or of one of `COUNT_TABLES`.
        keys: Key column name to indices into the block's names, shape (rows,).
        figures: Figure name to values, shape (rows,). A figure that is absent was not measured.
        measured: For optional figures, how many events measured it, shape (rows,).
        histograms: Distribution name (not its column) to its histogram; only those of
            `distributions_of` the table. One that is absent was not measured.
        breakdowns: Breakdown name to its counts; only in the tables of `BREAKDOWN_SCOPES`, and
            absent where there is nothing to count.
    """

    table: str
    rows: int
    keys: dict[str, U32] = field(default_factory=dict)
    figures: dict[str, U64] = field(default_factory=dict)
    measured: dict[str, U64] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    breakdowns: dict[str, NameCounts] = field(default_factory=dict)


@dataclass(slots=True)
class MetricsBlock:
    """One message of ``podwire.metrics.v1``. ``names[0]`` is the empty string."""

    identity: BlockIdentity
    names: list[str]
    tables: list[MetricsTable]


_IDENTITY_FIELDS = (
    "topic",
    "partition",
    "minute_s",
    "base_offset",
    "end_offset",
    "part",
    "parts",
    "attempt",
)


def encode_block(block: MetricsBlock) -> bytes:
    """Return the message of ``podwire.metrics.v1``."""
    message = wire.MetricsBlock(layout_version=LAYOUT_VERSION, names=block.names)
    for name in _IDENTITY_FIELDS:
        setattr(message.identity, name, getattr(block.identity, name))
    for table in block.tables:
        out = message.tables.add(table=table.table, rows=table.rows)
        for name, index in table.keys.items():
            out.keys.add(name=name, values=np.ascontiguousarray(index, "<u4").tobytes())
        for name, values in table.figures.items():
            figure = out.figures.add(
                name=name, values=np.ascontiguousarray(values, "<u8").tobytes()
            )
            if name in table.measured:
                figure.measured = np.ascontiguousarray(table.measured[name], "<u8").tobytes()
        for name, histogram in table.histograms.items():
            out.histograms.add(
                name=name,
                row=np.ascontiguousarray(histogram.row, "<u4").tobytes(),
                bucket=np.ascontiguousarray(histogram.bucket, "<u4").tobytes(),
                count=np.ascontiguousarray(histogram.count, "<u8").tobytes(),
            )
        for name, counts in table.breakdowns.items():
            out.breakdowns.add(
                name=name,
                row=np.ascontiguousarray(counts.row, "<u4").tobytes(),
                key=np.ascontiguousarray(counts.key, "<u4").tobytes(),
                count=np.ascontiguousarray(counts.count, "<u8").tobytes(),
            )
    return message.SerializeToString()


def decode_block(data: bytes) -> MetricsBlock:
    """Read a message of ``podwire.metrics.v1``.

    Raises:
        DecodeError: On any bytes that are not a block of this layout, on unknown tables, keys,
            figures or distributions, on columns of the wrong length, and on histograms that are not
            in order or point at nothing.
    """
    try:
        message = wire.MetricsBlock.FromString(data)
    except (ProtobufDecodeError, TypeError) as error:
        raise DecodeError(f"no MetricsBlock: {error}") from error
    if message.layout_version != LAYOUT_VERSION:
        raise DecodeError(f"layout version {message.layout_version}, expected {LAYOUT_VERSION}")
    identity = BlockIdentity(**{n: getattr(message.identity, n) for n in _IDENTITY_FIELDS})
    if (
        not identity.topic
        or identity.minute_s % 60
        or not 0 <= identity.minute_s < _END_OF_TIME_S
        or not 0 <= identity.base_offset <= identity.end_offset
        or not identity.part < identity.parts
    ):
        raise DecodeError(f"bad block identity {identity}")
    names = list(message.names)
    return MetricsBlock(identity, names, [_decode_table(t, len(names)) for t in message.tables])


def _decode_table(message: wire.MetricsTable, names: int) -> MetricsTable:
    if message.table in COUNT_TABLES:
        declared = COUNT_TABLES[message.table]
        expected_keys, later_keys = declared.keys, declared.later_keys
        known = {figure.name for figure in declared.figures}
    elif message.table in SCOPE_BY_NAME:
        expected_keys, later_keys = SCOPE_BY_NAME[message.table].keys, frozenset()
        known = set(FIGURE_BY_NAME)
    else:
        raise DecodeError(f"unknown table {message.table!r}")
    table = MetricsTable(message.table, message.rows)
    for key in message.keys:
        index = _column(f"{message.table}.{key.name}", key.values, "<u4", table.rows)
        if len(index) and int(index.max()) >= names:
            raise DecodeError(f"{message.table}.{key.name}: name {int(index.max())} of {names}")
        table.keys[key.name] = index
    for name in later_keys - table.keys.keys():
        table.keys[name] = np.zeros(table.rows, np.uint32)
    if tuple(sorted(table.keys)) != tuple(sorted(expected_keys)):
        raise DecodeError(f"{message.table}: keys {sorted(table.keys)}, expected {expected_keys}")
    for figure in message.figures:
        if figure.name not in known:
            raise DecodeError(f"{message.table}: unknown figure {figure.name!r}")
        where = f"{message.table}.{figure.name}"
        table.figures[figure.name] = _column(where, figure.values, "<u8", table.rows)
        if figure.measured:
            table.measured[figure.name] = _column(where, figure.measured, "<u8", table.rows)
    own = distributions_of(message.table) if message.table in SCOPE_BY_NAME else ()
    for histogram in message.histograms:
        where = f"{message.table}.{histogram.name}"
        if histogram.name not in DISTRIBUTION_BY_NAME:
            raise DecodeError(f"{message.table}: unknown distribution {histogram.name!r}")
        if DISTRIBUTION_BY_NAME[histogram.name] not in own:
            raise DecodeError(f"{where}: this table has no such distribution")
        if histogram.name in table.histograms:
            raise DecodeError(f"{where}: a second histogram")
        table.histograms[histogram.name] = _decode_histogram(
            where, histogram, table.rows, buckets(DISTRIBUTION_BY_NAME[histogram.name].bits)
        )
    for counts in message.breakdowns:
        where = f"{message.table}.{counts.name}"
        if counts.name not in BREAKDOWN_BY_NAME:
            raise DecodeError(f"{message.table}: unknown breakdown {counts.name!r}")
        if message.table not in BREAKDOWN_SCOPES:
            raise DecodeError(f"{where}: this table has no breakdowns")
        if counts.name in table.breakdowns:
            raise DecodeError(f"{where}: told twice")
        table.breakdowns[counts.name] = _decode_counts(where, counts, table.rows, names)
    return table


def _decode_counts(where: str, message: wire.NameCounts, rows: int, names: int) -> NameCounts:
    entries = len(message.count) // 8
    row = _column(where, message.row, "<u4", entries)
    key = _column(where, message.key, "<u4", entries)
    count = _column(where, message.count, "<u8", entries)
    if entries:
        if int(row.max()) >= rows:
            raise DecodeError(f"{where}: row {int(row.max())} of {rows}")
        if int(key.max()) >= names:
            raise DecodeError(f"{where}: name {int(key.max())} of {names}")
        place = row.astype(np.int64) * names + key
        if not (place[1:] > place[:-1]).all():
            raise DecodeError(f"{where}: not in order of row and name")
    return NameCounts(row, key, count)


def _decode_histogram(where: str, message: wire.Histogram, rows: int, size: int) -> Histogram:
    entries = len(message.count) // 8
    row = _column(where, message.row, "<u4", entries)
    bucket = _column(where, message.bucket, "<u4", entries)
    count = _column(where, message.count, "<u8", entries)
    if entries:
        if int(row.max()) >= rows:
            raise DecodeError(f"{where}: row {int(row.max())} of {rows}")
        if int(bucket.max()) >= size:
            raise DecodeError(f"{where}: bucket {int(bucket.max())} of {size}")
        place = row.astype(np.int64) * size + bucket
        if not (place[1:] > place[:-1]).all():
            raise DecodeError(f"{where}: not in order of row and bucket")
    return Histogram(row, bucket, count)


def _column(where: str, data: bytes, dtype: str, rows: int) -> NDArray[Any]:
    if len(data) != rows * np.dtype(dtype).itemsize:
        raise DecodeError(f"{where}: {len(data)} bytes for {rows} rows")
    return np.frombuffer(data, dtype)
