"""What is where in an ELF file, its functions above all. Pure: bytes in, offsets out.

Files come from containers, so nothing in them is trusted: what a header says and the file does not
have gives a reason, never an exception. Files are read, not mapped: one that is cut short meanwhile
would end the process that has it mapped.
Source: https://refspecs.linuxfoundation.org/elf/gabi4+/ (headers, sections, symbol table).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

    Read = Callable[[int, int], bytes]

__all__ = ["Elf", "Functions", "Malformed", "Section", "Wrong"]

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


class Wrong(Exception):
    """Something in a file is not as it must be.

    Attributes:
        reason: What.
    """

    def __init__(self, reason: Malformed) -> None:
        self.reason: Malformed = reason


class Section(NamedTuple):
    """A section of a file.

    Attributes:
        address: In memory, before it is moved anywhere.
        offset: In the file.
        size: Bytes.
    """

    address: int
    offset: int
    size: int


class Elf:
    """The tables of a file.

    Args:
        read: Gives the bytes of the file at a place, or as many of them as there are.

    Raises:
        Wrong: From every method as well.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        raw = read(0, _HEADER.size)
        if not raw.startswith(_MAGIC[:4]):
            raise Wrong("not_elf")
        if not raw.startswith(_MAGIC):
            raise Wrong("other_architecture")
        if len(raw) < _HEADER.size:
            raise Wrong("truncated")
        header = _HEADER.unpack(raw)
        self.machine: int = header[2]
        """``e_machine``."""
        segment_size, segment_count, section_size, section_count, self._names = header[9:14]
        self._segments = self._table(_SEGMENT, header[5], segment_count, segment_size)
        self._sections = self._table(_SECTION, header[6], section_count, section_size)

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Return so many bytes of the file, which must be there."""
        if size > _MAX_TABLE_BYTES or offset >> 62:
            raise Wrong("too_large")
        data = self._read(offset, size)
        if len(data) < size:
            raise Wrong("truncated")
        return data

    def section(self, *names: bytes) -> Section | None:
        """Return the first section that has one of these names."""
        if self._names >= len(self._sections):
            return None
        strings = self._strings(self._names)
        for section in self._sections:
            start = int(section["name"])
            if strings[start : strings.find(b"\0", start)] in names:
                return Section(*(int(section[each]) for each in ("address", "offset", "size")))
        return None

    def offset_of(self, address: int) -> int | None:
        """Return where in the file the code of an address is; None if it is no code."""
        code = self._segments[
            (self._segments["type"] == _PT_LOAD) & (self._segments["flags"] & _PF_X != 0)
        ]
        for start, size, offset in code[["address", "file_size", "offset"]].tolist():
            if start <= address < start + size:
                return int(address - start + offset)
        return None

    def functions(self, names: Collection[str]) -> Functions:
        """Find functions that the file defines, in its symbol tables."""
        offsets = {name: self.offset_of(each) for name, each in self.addresses(names).items()}
        return {name: offset for name, offset in offsets.items() if offset is not None}

    def addresses(self, names: Collection[str]) -> dict[str, int]:
        """As `functions`, their addresses in memory, before it is moved anywhere."""
        found: dict[str, int] = {}
        for section in self._sections[np.isin(self._sections["type"], _SYMBOL_TABLES)]:
            strings = self._strings(int(section["link"]))
            places = {name: _places(strings, name.encode()) for name in names if name not in found}
            if not any(places.values()):
                continue
            count = int(section["size"]) // _SYMBOL.itemsize
            symbols = self._table(_SYMBOL, int(section["offset"]), count, _SYMBOL.itemsize)
            functions = symbols[
                (symbols["info"] & 0xF == _STT_FUNC) & (symbols["section"] != _SHN_UNDEF)
            ]
            for name, place in places.items():
                values = functions["value"][np.isin(functions["name"], place)]
                if len(values):
                    found[name] = int(values[0])
        return found

    def _strings(self, number: int) -> bytes:
        if number >= len(self._sections):
            raise Wrong("malformed")
        section = self._sections[number]
        return self.bytes_at(int(section["offset"]), int(section["size"]))

    def _table(
        self, layout: np.dtype[np.void], place: int, count: int, size: int
    ) -> NDArray[np.void]:
        if count and size != layout.itemsize:
            raise Wrong("malformed")
        return np.frombuffer(self.bytes_at(place, count * layout.itemsize), layout)


def _places(strings: bytes, name: bytes) -> list[int]:
    # All, as the end of a longer name may be used for a shorter one.
    places, wanted = [], name + b"\0"
    at = strings.find(wanted)
    while at >= 0:
        places.append(at)
        at = strings.find(wanted, at + 1)
    return places
