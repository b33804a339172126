"""ClickHouse's Native format, written straight from arrays.

One block of columns: counts as variable-length integers, then per column its name, its type and
its values. Names go out as LowCardinality: the dictionary once, then the codes that the rows
already are, so no row ever becomes a Python object.

Source: ClickHouse src/Formats/NativeWriter.cpp and
src/DataTypes/Serializations/SerializationLowCardinality.cpp (the layout without a client revision,
which HTTP and files use).
"""

from __future__ import annotations

import struct
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

__all__ = ["NativeBlock", "Texts", "variable_length", "variable_length_strings"]

_SHARED_DICTIONARIES_WITH_ADDITIONAL_KEYS = 1
_HAS_ADDITIONAL_KEYS = 1 << 9


_LENGTHS = [bytes([value]) for value in range(0x80)]
"""Most strings are short."""


def variable_length(value: int) -> bytes:
    """Return an unsigned integer as LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def variable_length_strings(texts: Iterable[str]) -> bytes:
    """Return strings as the format wants them: length and bytes, one after the other."""
    parts: list[bytes] = []
    for text in texts:
        data = text.encode()
        parts += (variable_length(len(data)), data)
    return b"".join(parts)


class Texts:
    """Strings that many rows share, ready to be repeated for them.

    Args:
        texts: The strings; each is encoded once, whatever number of rows has it.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        data = [text.encode() for text in texts]
        heads = [_LENGTHS[n] if (n := len(one)) < 0x80 else variable_length(n) for one in data]
        self._bytes = np.frombuffer(
            b"".join(chain.from_iterable(zip(heads, data, strict=True))), "u1"
        )
        self._length = np.fromiter(map(len, data), np.int64, len(data))
        self._length += np.fromiter(map(len, heads), np.int64, len(heads))
        self._start = np.cumsum(self._length) - self._length

    def gather(self, codes: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the strings with these indices as the format wants them, one after the other."""
        length = self._length[codes]
        ends = np.cumsum(length)
        # Where each byte of the result comes from.
        source = np.repeat(self._start[codes] - (ends - length), length)
        source += np.arange(len(source))
        found: NDArray[np.uint8] = self._bytes[source]
        return found


class NativeBlock:
    """Collects the columns of one block."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._names: list[str] = []
        self._parts: list[Any] = []

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns added so far."""
        return tuple(self._names)

    def add_numbers(self, name: str, kind: str, *values: NDArray[Any]) -> None:
        """Add a fixed-width column from one or more arrays that together have all the rows.

        Raises:
            ValueError: If they have not.
        """
        if sum(len(part) for part in values) != self.rows:
            raise ValueError(f"{name}: not {self.rows} rows")
        self._header(name, kind)
        self._parts += (np.ascontiguousarray(part).data for part in values if len(part))

    def add_nullable(
        self, name: str, kind: str, values: NDArray[Any], is_null: NDArray[np.bool_]
    ) -> None:
        """Add a ``Nullable`` column of a fixed-width type.

        Raises:
            ValueError: If there is not one value per row.
        """
        if not len(values) == len(is_null) == self.rows:
            raise ValueError(f"{name}: not {self.rows} rows")
        self._header(name, f"Nullable({kind})")
        self._parts += (np.ascontiguousarray(is_null).data, np.ascontiguousarray(values).data)

    def add_bytes(self, name: str, values: NDArray[np.uint8]) -> None:
        """Add a ``FixedString`` column from an array of shape (rows, length).

        Raises:
            ValueError: If there is not one value per row.
        """
        if len(values) != self.rows:
            raise ValueError(f"{name}: {len(values)} values for {self.rows} rows")
        self._header(name, f"FixedString({values.shape[1]})")
        self._parts.append(np.ascontiguousarray(values).data)

    def add_texts(self, name: str, texts: Texts, codes: NDArray[Any]) -> None:
        """Add a column of strings by their indices, without an object per row.

        Raises:
            ValueError: If the number of codes is not the number of rows.
        """
        if len(codes) != self.rows:
            raise ValueError(f"{name}: {len(codes)} codes for {self.rows} rows")
        self._header(name, "String")
        self._parts.append(texts.gather(codes).data)

    def add_strings(self, name: str, values: Sequence[str], kind: str = "String") -> None:
        """Add a column of strings, one object per row: for small tables.

        Raises:
            ValueError: If there is not one per row.
        """
        if len(values) != self.rows:
            raise ValueError(f"{name}: {len(values)} values for {self.rows} rows")
        self._header(name, kind)
        self._parts.append(variable_length_strings(values))

    def add_tuples(self, name: str, kind: str, numbers: NDArray[Any], texts: Sequence[str]) -> None:
        """Add a column of (number, string) pairs."""
        self._header(name, kind)
        self._parts += (np.ascontiguousarray(numbers).data, variable_length_strings(texts))

    def add_names(self, name: str, dictionary: Sequence[str], codes: NDArray[Any]) -> None:
        """Add a LowCardinality(String) column.

        Args:
            name: Column name.
            dictionary: Distinct strings; those that no row uses are not sent.
            codes: Shape (rows,), indices into the dictionary.

        Raises:
            ValueError: If the number of codes is not the number of rows.
        """
        if len(codes) != self.rows:
            raise ValueError(f"{name}: {len(codes)} codes for {self.rows} rows")
        self._header(name, "LowCardinality(String)")
        self._parts.append(struct.pack("<Q", _SHARED_DICTIONARIES_WITH_ADDITIONAL_KEYS))
        if not self.rows:
            return
        used = np.zeros(len(dictionary), bool)
        used[codes] = True
        kept = np.flatnonzero(used)
        width, dtype = _index_type(len(kept))
        position = np.zeros(len(dictionary), dtype)
        position[kept] = np.arange(len(kept), dtype=dtype)
        self._parts += (
            struct.pack("<QQ", width | _HAS_ADDITIONAL_KEYS, len(kept)),
            variable_length_strings(dictionary[index] for index in kept.tolist()),
            struct.pack("<Q", self.rows),
            position[codes].data,
        )

    def add_maps(
        self, name: str, kind: str, row: NDArray[Any], keys: NDArray[Any], values: NDArray[Any]
    ) -> None:
        """Add a column of maps, from one entry per row and key.

        Args:
            name: Column name.
            kind: ``Map(..)`` of the types that the arrays have.
            row: Shape (entries,), ascending: which row the entry belongs to.
            keys: Shape (entries,).
            values: Shape (entries,).

        Raises:
            ValueError: If the rows are not in order or not all in the block.
        """
        ends = np.cumsum(np.bincount(row, minlength=self.rows), dtype="<u8")
        if len(ends) != self.rows or (row[1:] < row[:-1]).any():
            raise ValueError(f"{name}: entries are not in the order of {self.rows} rows")
        if not len(row) == len(keys) == len(values):
            raise ValueError(f"{name}: {len(row)}, {len(keys)} and {len(values)} entries")
        self._header(name, kind)
        # As the Array(Tuple(key, value)) that a map is: where each row ends, all keys, all values.
        self._parts += (np.ascontiguousarray(part).data for part in (ends, keys, values))

    def to_bytes(self) -> bytes:
        """Return the block as it goes to the server."""
        head = variable_length(len(self._names)) + variable_length(self.rows)
        return b"".join((head, *self._parts))

    def _header(self, name: str, kind: str) -> None:
        self._names.append(name)
        self._parts.append(variable_length_strings((name, kind)))


def _index_type(size: int) -> tuple[int, str]:
    for width, dtype in ((0, "u1"), (1, "<u2"), (2, "<u4")):
        if size <= 1 << (8 << width):
            return width, dtype
    raise ValueError(f"{size} distinct names in one block")
