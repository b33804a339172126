"""Tables as columns: dataclasses of equally long numpy arrays, and their binary form.

A table class lists its columns once; `encode_table` and `decode_table` move them to and from the
``bytes`` fields of the protobuf twin with the same names. Values are little-endian on the wire, as
protobuf's fixed-width types are. Encoding goes past the twin's setters: these would copy megabytes
four times, and the columns are most of what a collector writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "U8",
    "U32",
    "U64",
    "UNMEASURED_U32",
    "UNMEASURED_U64",
    "Table",
    "column",
    "decode_table",
    "encode_table",
]

U8: TypeAlias = NDArray[np.uint8]
U32: TypeAlias = NDArray[np.uint32]
U64: TypeAlias = NDArray[np.uint64]

UNMEASURED_U64 = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
"""Stands in a column for a value that this row did not measure."""
UNMEASURED_U32 = np.uint32(0xFFFF_FFFF)
"""The same in a column of 32 bits."""

T = TypeVar("T", bound="Table")


def column(dtype: str, width: int = 1, *, measured: bool = False, names: bool = False) -> Any:
    """Declare a column.

    Args:
        dtype: Little-endian numpy type.
        width: Values per row; with more than one the shape is (n, width).
        measured: Whether a row may lack the value: then it holds the greatest value of its type,
            and a column that lacks all of them may be left empty.
        names: Whether values are indices into a dictionary of names.
    """
    empty = np.empty((0, width) if width > 1 else 0, dtype)
    empty.flags.writeable = False
    metadata = {"dtype": np.dtype(dtype), "width": width, "measured": measured, "names": names}
    return field(default_factory=lambda: empty, metadata=metadata)


@dataclass(slots=True)
class Table:
    """Base of the columnar tables.

    All columns have the same number of rows; a measured one that lacks every value may have none.
    """

    _specs: ClassVar[tuple[tuple[str, np.dtype[Any], int], ...] | None] = None
    _measured: ClassVar[frozenset[str] | None] = None
    _named: ClassVar[tuple[str, ...] | None] = None

    @classmethod
    def specs(cls) -> tuple[tuple[str, np.dtype[Any], int], ...]:
        """(name, dtype, width) of every column, in order."""
        found = cls.__dict__.get("_specs")
        if found is None:
            found = tuple(
                (item.name, item.metadata["dtype"], item.metadata["width"])
                for item in fields(cls)
                if "dtype" in item.metadata
            )
            cls._specs = found
        return found

    @classmethod
    def measured_columns(cls) -> frozenset[str]:
        """Names of the columns that may be left empty."""
        found = cls.__dict__.get("_measured")
        if found is None:
            found = frozenset(item.name for item in fields(cls) if item.metadata.get("measured"))
            cls._measured = found
        return found

    @classmethod
    def name_columns(cls) -> tuple[str, ...]:
        """Names of the columns whose values are indices into a dictionary of names."""
        found = cls.__dict__.get("_named")
        if found is None:
            found = tuple(item.name for item in fields(cls) if item.metadata.get("names"))
            cls._named = found
        return found

    @property
    def rows(self) -> int:
        """Number of rows, from the first column."""
        return len(getattr(self, self.specs()[0][0]))

    def take(self, index: Any) -> Self:
        """Return the rows that a numpy index (array of positions, mask or slice) selects."""
        columns = {name: getattr(self, name) for name, _, _ in self.specs()}
        measured = self.measured_columns()
        picked = {
            name: values[index] if len(values) or name not in measured else values
            for name, values in columns.items()
        }
        return type(self)(**picked)

    def used_names(self) -> list[U32]:
        """Return the indices into the dictionary of names that are there, by column."""
        may_lack = self.measured_columns()
        return [
            values[values != UNMEASURED_U32] if name in may_lack else values
            for name, values in self._names().items()
        ]

    def with_names(self, places: U32) -> Self:
        """Return the same rows for another dictionary of names.

        Args:
            places: Of each name of the old dictionary, its index in the new one.
        """
        lacking = np.uint32(len(places))
        places = np.append(places, UNMEASURED_U32)
        columns = self._names().items()
        return replace(
            self, **{name: places[np.minimum(values, lacking)] for name, values in columns}
        )

    def _names(self) -> dict[str, U32]:
        columns = {name: getattr(self, name) for name in self.name_columns()}
        return {name: values for name, values in columns.items() if not _is_unmeasured(values)}

    @classmethod
    def concatenate(cls, tables: Sequence[Self]) -> Self:
        """Return one table with the rows of all."""
        joined = {}
        for name, dtype, width in cls.specs():
            parts = [getattr(table, name) for table in tables]
            if name in cls.measured_columns() and any(map(len, parts)):
                parts = [
                    values if len(values) else _unmeasured(table.rows, dtype, width)
                    for values, table in zip(parts, tables, strict=True)
                ]
            joined[name] = (
                np.concatenate(parts) if parts else np.empty((0, width) if width > 1 else 0, dtype)
            )
        return cls(**joined)


def encode_table(table: Table, field: Any) -> list[bytes | memoryview]:
    """Return the wire form of a message field that holds the table, in pieces to be joined.

    Each column is the ``bytes`` field of its name. A measured column that is left empty, or was not
    in the message that it comes from, stays out, and so does a table without rows.

    Args:
        table: The rows.
        field: Descriptor of the field, whose type is the table's twin message.

    Raises:
        ValueError: If the columns differ in length.
    """
    rows = table.rows
    places = field.message_type.fields_by_name
    pieces: list[bytes | memoryview] = []
    size = 0
    for name, dtype, _ in table.specs():
        values = getattr(table, name)
        if name in table.measured_columns() and _is_unmeasured(values):
            continue
        if len(values) != rows:
            raise ValueError(f"column {name} has {len(values)} rows, not {rows}")
        if rows:
            data = np.ascontiguousarray(values, dtype)
            head = _head(places[name].number, data.nbytes)
            pieces += (head, data.data)
            size += len(head) + data.nbytes
    return [_head(field.number, size), *pieces] if pieces else []


def decode_table(kind: type[T], message: Any) -> T:
    """Read a table from its twin message. Arrays are read-only views of the message's bytes.

    A measured column that is not in the message takes no memory either: it repeats one value.

    Raises:
        DecodeError: If a column is not a whole number of rows or differs from the others.
    """
    columns: dict[str, NDArray[Any]] = {}
    rows: int | None = None
    for name, dtype, width in kind.specs():
        data = getattr(message, name)
        step = dtype.itemsize * width
        count, rest = divmod(len(data), step)
        if rest:
            raise DecodeError(f"{kind.__name__}.{name}: {len(data)} bytes is no multiple of {step}")
        if rows is None:
            rows = count
        elif not count and rows and name in kind.measured_columns():
            columns[name] = _unmeasured(rows, dtype, width)
            continue
        elif count != rows:
            raise DecodeError(f"{kind.__name__}.{name}: {count} rows, expected {rows}")
        values = np.frombuffer(data, dtype)
        columns[name] = values.reshape(count, width) if width > 1 else values
    return kind(**columns)


def _head(number: int, size: int) -> bytes:
    # https://protobuf.dev/programming-guides/encoding/: tag of wire type 2, then the length.
    return _varint(number << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    low = bytearray()
    while value > 0x7F:
        low.append(value & 0x7F | 0x80)
        value >>= 7
    low.append(value)
    return bytes(low)


def _unmeasured(rows: int, dtype: np.dtype[Any], width: int) -> NDArray[Any]:
    nothing = np.array(np.iinfo(dtype).max, dtype)
    return np.broadcast_to(nothing, (rows, width) if width > 1 else (rows,))


def _is_unmeasured(values: NDArray[Any]) -> bool:
    # Without looking at every value: empty, or made by `_unmeasured`.
    if not len(values):
        return True
    return not any(values.strides) and bool(values.flat[0] == np.iinfo(values.dtype).max)
