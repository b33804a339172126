"""Where functions begin in an ELF file. Pure: bytes in, offsets out.

Files come from containers, so nothing in them is trusted: what a header says and the file does not
have gives a reason, never an exception. Files are read, not mapped: one that is cut short meanwhile
would end the process that has it mapped.
Source: https://refspecs.linuxfoundation.org/elf/gabi4+/ (headers, sections, symbol table).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

    Read = Callable[[int, int], bytes]

__all__ = ["Functions", "Malformed", "find_functions"]

Malformed = Literal["not_elf", "other_architecture", "truncated", "too_large", "malformed"]
"""Why a file's functions cannot be found: no ELF file; of 32 bits or another byte order; shorter
than it says; tables that no honest file has; a header that contradicts itself."""

Functions = dict[str, int]
"""Offset in the file of a function's first instruction, by its name."""

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_MAGIC: Final = b"\x7fELF\x02\x01"  # 64 bits, least significant byte first
_SEGMENT: Final = np.dtype(
    [(name, "<u4") for name in ("type", "flags")]
    + [(name, "<u8") for name in ("offset", "address", "physical", "file_size", "size", "align")]
)
_SECTION: Final = np.dtype(
    [
        *((name, "<u4") for name in ("name", "type")),
        *((name, "<u8") for name in ("flags", "address", "offset", "size")),
        *((name, "<u4") for name in ("link", "info")),
        *((name, "<u8") for name in ("align", "entry_size")),
    ]
)
_SYMBOL: Final = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)
_PT_LOAD: Final = 1
_PF_X: Final = 1
_SYMBOL_TABLES: Final = (2, 11)  # SHT_SYMTAB, SHT_DYNSYM
_STT_FUNC: Final = 2
_SHN_UNDEF: Final = 0
_MAX_TABLE_BYTES: Final = 1 << 28


class _Wrong(Exception):
    def __init__(self, reason: Malformed) -> None:
        self.reason: Malformed = reason


def find_functions(read: Read, names: Collection[str]) -> tuple[Functions, Malformed | None]:
    """Find functions that a file defines, in its symbol tables.

    Args:
        read: Gives the bytes of the file at a place, or as many of them as there are.
        names: Of the functions, without versions.

    Returns:
        Those that are there; and why none can be found, if that is so.
    """
    try:
        return _find(read, names), None
    except _Wrong as error:
        return {}, error.reason


def _find(read: Read, names: Collection[str]) -> Functions:
    raw = read(0, _HEADER.size)
    if not raw.startswith(_MAGIC[:4]):
        raise _Wrong("not_elf")
    if not raw.startswith(_MAGIC):
        raise _Wrong("other_architecture")
    if len(raw) < _HEADER.size:
        raise _Wrong("truncated")
    header = _HEADER.unpack(raw)
    segment_size, segment_count, section_size, section_count = header[9:13]
    segments = _table(read, _SEGMENT, header[5], segment_count, segment_size)
    sections = _table(read, _SECTION, header[6], section_count, section_size)
    found: Functions = {}
    for section in sections[np.isin(sections["type"], _SYMBOL_TABLES)]:
        link = int(section["link"])
        if link >= len(sections):
            raise _Wrong("malformed")
        strings = _bytes(read, int(sections[link]["offset"]), int(sections[link]["size"]))
        places = {name: _places(strings, name.encode()) for name in names if name not in found}
        if not any(places.values()):
            continue
        count = int(section["size"]) // _SYMBOL.itemsize
        symbols = _table(read, _SYMBOL, int(section["offset"]), count, _SYMBOL.itemsize)
        functions = symbols[
            (symbols["info"] & 0xF == _STT_FUNC) & (symbols["section"] != _SHN_UNDEF)
        ]
        for name, place in places.items():
            values = functions["value"][np.isin(functions["name"], place)]
            offset = _offset(segments, int(values[0])) if len(values) else None
            if offset is not None:
                found[name] = offset
    return found


def _places(strings: bytes, name: bytes) -> list[int]:
    # All, as the end of a longer name may be used for a shorter one.
    places, wanted = [], name + b"\0"
    at = strings.find(wanted)
    while at >= 0:
        places.append(at)
        at = strings.find(wanted, at + 1)
    return places


def _offset(segments: NDArray[np.void], address: int) -> int | None:
    code = segments[(segments["type"] == _PT_LOAD) & (segments["flags"] & _PF_X != 0)]
    for start, size, offset in code[["address", "file_size", "offset"]].tolist():
        if start <= address < start + size:
            return int(address - start + offset)
    return None


def _table(
    read: Read, layout: np.dtype[np.void], place: int, count: int, size: int
) -> NDArray[np.void]:
    if count and size != layout.itemsize:
        raise _Wrong("malformed")
    return np.frombuffer(_bytes(read, place, count * layout.itemsize), layout)


def _bytes(read: Read, place: int, size: int) -> bytes:
    if size > _MAX_TABLE_BYTES or place >> 62:
        raise _Wrong("too_large")
    data = read(place, size)
    if len(data) < size:
        raise _Wrong("truncated")
    return data
