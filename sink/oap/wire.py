"""Protobuf messages of one type by the thousand, encoded as columns.

Pure. A `Cells` holds the bytes of many messages side by side: a matrix with a row per message, and
which of its cells are used. Fields become cells, cells become a submessage, and at last `pack`
joins the used cells row by row. No Python object is made per message.

Source: https://protobuf.dev/programming-guides/encoding/. Field numbers are below 16, so that a
tag is one byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from schemas.columns import U8, U64

__all__ = [
    "Cells",
    "Packed",
    "interleave",
    "message",
    "nested",
    "number",
    "offset_timestamp",
    "text",
    "varint",
    "written",
]

_VARINT: Final = 0
_LENGTH: Final = 2
# Tag and length of what is shorter than 128 bytes: most is, and a call takes three of them.
_SHORT: Final = [bytes((field << 3 | _LENGTH, size)) for field in range(16) for size in range(128)]


@dataclass(slots=True)
class Cells:
    """Bytes of one or more fields, a row per message.

    Attributes:
        cells: Shape (n, width).
        used: Shape (n, width), which of the cells count.
        size: Shape (n,), how many of a row do.
    """

    cells: U8
    used: NDArray[np.bool_]
    size: NDArray[np.intp]

    def pack(self) -> Packed:
        """Return the bytes, row after row."""
        return Packed(self.cells[self.used], self.size)


@dataclass(slots=True)
class Packed:
    """Messages one after the other.

    Attributes:
        data: The bytes of all.
        size: Shape (n,), how many each has.
    """

    data: U8
    size: NDArray[np.intp]

    def ends(self) -> NDArray[np.intp]:
        """Where each starts, and at last where the last ends; shape (n + 1,)."""
        return np.concatenate((np.zeros(1, np.intp), np.cumsum(self.size)))


def number(field: int, values: NDArray[Any], present: NDArray[np.bool_] | None = None) -> Cells:
    """Return a varint field; 0 is left out, as it means the same.

    Args:
        field: Its number.
        values: Shape (n,), not negative.
        present: Shape (n,), where there is a value at all.
    """
    values = values.astype(np.uint64, copy=False)
    shown = values != 0
    if present is not None:
        shown &= present
    if not shown.any():
        return _nothing(len(values))
    values = np.where(shown, values, np.uint64(0))
    return _tagged(field, _VARINT, values, shown)


def message(field: int, parts: Sequence[Cells], present: NDArray[np.bool_] | None = None) -> Cells:
    """Return a submessage of these fields; where it is not present its fields are not either."""
    size = sum((part.size for part in parts[1:]), parts[0].size)
    shown = np.ones(len(size), np.bool_) if present is None else present
    if not shown.any():
        return _nothing(len(size))
    head = _tagged(field, _LENGTH, size.astype(np.uint64), shown)
    cells = np.hstack([head.cells, *(part.cells for part in parts)])
    used = np.hstack([head.used, *(part.used for part in parts)])
    if present is not None:
        used &= present[:, None]
        size = np.where(present, size, 0)
    return Cells(cells, used, size + head.size)


def offset_timestamp(field: int, offset_ns: U64) -> Cells:
    """Return an ``EBPFTimestamp`` with an offset; the offset is there even if it is 0."""
    shown = np.ones(len(offset_ns), np.bool_)
    stamp = _tagged(1, _VARINT, offset_ns.astype(np.uint64, copy=False), shown)
    return message(field, [message(1, [stamp])])


def written(rows: int, fields: dict[int, bytes]) -> Cells:
    """Return fields that are there already.

    Args:
        rows: How many messages there are.
        fields: By row, ascending.
    """
    places = list(fields)
    size = np.zeros(rows, np.intp)
    size[places] = [len(data) for data in fields.values()]
    cells = np.zeros((rows, int(size.max(initial=0))), np.uint8)
    used = np.arange(cells.shape[1]) < size[:, None]
    cells[used] = np.frombuffer(b"".join(fields.values()), np.uint8)
    return Cells(cells, used, size)


def nested(field: int, data: bytes) -> bytes:
    """Return a field of bytes with their length, such as a submessage."""
    size = len(data)
    if size < 0x80:
        return _SHORT[field << 7 | size] + data
    return b"".join((bytes((field << 3 | _LENGTH,)), varint(size), data))


def text(field: int, value: str) -> bytes:
    """Return a string field; nothing for an empty string."""
    data = value.encode(errors="replace")
    return nested(field, data) if data else b""


def varint(value: int) -> bytes:
    """Return the variable-length form of a number."""
    if value < 0x80:
        return bytes((value,))
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def interleave(parts: Sequence[Packed], order: NDArray[np.intp]) -> Packed:
    """Return messages in another order.

    Args:
        parts: Several lots.
        order: Places in the lots one after the other.
    """
    data = np.concatenate([part.data for part in parts])
    size = np.concatenate([part.size for part in parts])
    starts = np.cumsum(size) - size
    taken = size[order]
    moved = starts[order] - (np.cumsum(taken) - taken)
    # In 32 bits where that is enough: the index has an entry per byte.
    kind = np.int32 if len(data) < 1 << 31 else np.int64
    at = np.repeat(moved.astype(kind), taken)
    at += np.arange(len(at), dtype=kind)
    return Packed(data[at], taken)


def _nothing(rows: int) -> Cells:
    return Cells(
        np.empty((rows, 0), np.uint8), np.empty((rows, 0), np.bool_), np.zeros(rows, np.intp)
    )


def _tagged(field: int, kind: int, values: U64, shown: NDArray[np.bool_]) -> Cells:
    # Where it is not shown the value is 0 or does not matter.
    assert field < 16
    rows = len(values)
    width = max((int(values.max(initial=0)).bit_length() + 6) // 7, 1)
    cells = np.empty((rows, width + 1), np.uint8)
    used = np.empty((rows, width + 1), np.bool_)
    cells[:, 0] = field << 3 | kind
    used[:, 0] = shown
    size = shown.astype(np.intp) * 2
    used[:, 1] = shown
    rest = values
    for place in range(1, width):
        low = rest.astype(np.uint8)
        rest = rest >> np.uint64(7)
        more = rest != 0
        cells[:, place] = np.where(more, low | 0x80, low & 0x7F)
        more &= shown
        used[:, place + 1] = more
        size += more
    cells[:, width] = rest.astype(np.uint8) & 0x7F
    return Cells(cells, used, size)
