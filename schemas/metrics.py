"""`MetricsBlock`: one minute of one events partition; see ``schemas/pb/metrics.proto``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError as ProtobufDecodeError

from schemas.catalogue import FIGURE_BY_NAME, LEDGER, SCOPE_BY_NAME
from schemas.errors import DecodeError
from schemas.pb import metrics_columns_pb2 as wire

__all__ = [
    "LAYOUT_VERSION",
    "BlockIdentity",
    "MetricsBlock",
    "MetricsTable",
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
class MetricsTable:
    """Rows of one scope, or of the ledger.

    Attributes:
        table: Name of a scope, or ``ledger``.
        keys: Key column name to indices into the block's names, shape (rows,).
        figures: Figure name to values, shape (rows,). A figure that is absent was not measured.
        measured: For optional figures, how many events measured it, shape (rows,).
    """

    table: str
    rows: int
    keys: dict[str, U32] = field(default_factory=dict)
    figures: dict[str, U64] = field(default_factory=dict)
    measured: dict[str, U64] = field(default_factory=dict)


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
    return message.SerializeToString()


def decode_block(data: bytes) -> MetricsBlock:
    """Read a message of ``podwire.metrics.v1``.

    Raises:
        DecodeError: On any bytes that are not a block of this layout, on unknown tables, keys or
            figures, and on columns of the wrong length.
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
    if message.table == LEDGER.name:
        expected_keys: tuple[str, ...] = LEDGER.keys
        known = {figure.name for figure in LEDGER.figures}
    elif message.table in SCOPE_BY_NAME:
        expected_keys = SCOPE_BY_NAME[message.table].keys
        known = set(FIGURE_BY_NAME)
    else:
        raise DecodeError(f"unknown table {message.table!r}")
    table = MetricsTable(message.table, message.rows)
    for key in message.keys:
        index = _column(f"{message.table}.{key.name}", key.values, "<u4", table.rows)
        if len(index) and int(index.max()) >= names:
            raise DecodeError(f"{message.table}.{key.name}: name {int(index.max())} of {names}")
        table.keys[key.name] = index
    if tuple(sorted(table.keys)) != tuple(sorted(expected_keys)):
        raise DecodeError(f"{message.table}: keys {sorted(table.keys)}, expected {expected_keys}")
    for figure in message.figures:
        if figure.name not in known:
            raise DecodeError(f"{message.table}: unknown figure {figure.name!r}")
        where = f"{message.table}.{figure.name}"
        table.figures[figure.name] = _column(where, figure.values, "<u8", table.rows)
        if figure.measured:
            table.measured[figure.name] = _column(where, figure.measured, "<u8", table.rows)
    return table


def _column(where: str, data: bytes, dtype: str, rows: int) -> NDArray[Any]:
    if len(data) != rows * np.dtype(dtype).itemsize:
        raise DecodeError(f"{where}: {len(data)} bytes for {rows} rows")
    return np.frombuffer(data, dtype)
