"""What is where in an ELF file, its functions above all. Pure: bytes in, offsets out.

Files come from containers, so nothing in them is trusted: what a header says and the file does not
have gives a reason, never an exception; and what one costs is bounded, in bytes read, in memory and
in the time for which nothing else can run. Files are read, not mapped: one that is cut short
meanwhile would end the process that has it mapped.
Source: https://refspecs.linuxfoundation.org/elf/gabi4+/ (headers, sections, symbol table).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from numpy.typing import NDArray

    Read = Callable[[int, int], bytes]

__all__ = ["Elf", "Functions", "Malformed", "Section", "Wrong"]

Malformed = Literal[
    "not_elf", "other_architecture", "truncated", "too_large", "too_many_returns", "malformed"
]
"""Why a file's functions cannot be found: no ELF file; of 32 bits or another byte order; shorter
than it says; tables that no honest file has; a function of Go that returns at more places than any
honest one; a header that contradicts itself."""

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
_SYMBOL_TABLES: Final = (11, 2)  # SHT_DYNSYM, SHT_SYMTAB: at most one of each
_STT_FUNC: Final = 2
_SHN_UNDEF: Final = 0
_MAX_BYTES: Final = 1 << 28
"""Of one file. The largest program that was seen, of 700 MB, needs half of it."""
_MAX_NAMES_BYTES: Final = 1 << 20
_MAX_NAME_BYTES: Final = 1 << 10
_MAX_SEGMENTS: Final = 1_024
_MAX_PLACES: Final = 1_024
_PIECE_BYTES: Final = 1 << 20
_SYMBOLS_AT_ONCE: Final = 1 << 16


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
        self._left = _MAX_BYTES
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
        if segment_count > _MAX_SEGMENTS:
            raise Wrong("too_large")
        segments = self._table(_SEGMENT, header[5], segment_count, segment_size)
        code = segments[(segments["type"] == _PT_LOAD) & (segments["flags"] & _PF_X != 0)]
        self._code: list[tuple[int, int, int]] = code[["address", "file_size", "offset"]].tolist()
        self._sections = self._table(_SECTION, header[6], section_count, section_size)

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Return so many bytes of the file, which must be there."""
        if size > self._left or offset >> 62:
            raise Wrong("too_large")
        self._left -= size
        data = self._read(offset, size)
        if len(data) < size:
            raise Wrong("truncated")
        return data

    def places(
        self, offset: int, size: int, strings: Collection[bytes], most: int | None = None
    ) -> dict[bytes, list[int]]:
        """Find strings in a part of the file: where they begin, from the beginning of the part.

        Args:
            offset: Of the part.
            size: Likewise.
            strings: What is looked for.
            most: So many places are enough; None: all are wanted.
        """
        found: dict[bytes, list[int]] = {each: [] for each in strings}
        overlap = max(map(len, strings), default=1) - 1
        for first, text in self._pieces(offset, size, _PIECE_BYTES, overlap):
            for string, places in found.items():
                end = _PIECE_BYTES + len(string) - 1  # what begins farther is in the next piece
                at = text.find(string, 0, end)
                while at >= 0:
                    if len(places) == most:
                        break
                    if len(places) == _MAX_PLACES:
                        raise Wrong("too_large")
                    places.append(first + at)
                    at = text.find(string, at + 1, end)
        return found

    def section(self, *names: bytes) -> Section | None:
        """Return the first section that has one of these names."""
        if self._names >= len(self._sections):
            return None
        offset, size = self._strings(self._names)
        if size > _MAX_NAMES_BYTES:
            raise Wrong("too_large")
        strings = self.bytes_at(offset, size)
        wanted = [name + b"\0" for name in names]
        for number, start in enumerate(self._sections["name"].tolist()):
            if any(strings[start : start + len(each)] == each for each in wanted):
                section = self._sections[number]
                return Section(*(int(section[each]) for each in ("address", "offset", "size")))
        return None

    def offset_of(self, address: int) -> int | None:
        """Return where in the file the code of an address is; None if it is no code."""
        for start, size, offset in self._code:
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
        for kind in _SYMBOL_TABLES:
            for section in self._sections[self._sections["type"] == kind][:1]:
                found = self._defined(section, names) | found
        return found

    def symbols_with(self, strings: Collection[bytes]) -> set[str]:
        """Find the names in its full symbol table that have one of some strings in them."""
        found: set[str] = set()
        for section in self._sections[self._sections["type"] == _SYMBOL_TABLES[1]][:1]:
            offset, size = self._strings(int(section["link"]))
            for places in self.places(offset, size, strings).values():
                for at in places:
                    first = max(0, at - _MAX_NAME_BYTES)
                    text = self.bytes_at(offset + first, min(2 * _MAX_NAME_BYTES, size - first))
                    start = text.rfind(b"\0", 0, at - first) + 1
                    name = text[start : text.find(b"\0", at - first)]
                    found.add(name.decode("ascii", "replace"))
        return found

    def _defined(self, section: np.void, names: Collection[str]) -> dict[str, int]:
        wanted = [name.encode() + b"\0" for name in names]
        # All places, as the end of a longer name may be used for a shorter one.
        places = self.places(*self._strings(int(section["link"])), wanted)
        found: dict[str, int] = {}
        if not any(places.values()):
            return found
        at_once = _SYMBOLS_AT_ONCE * _SYMBOL.itemsize
        size = int(section["size"]) // _SYMBOL.itemsize * _SYMBOL.itemsize
        for _, text in self._pieces(int(section["offset"]), size, at_once):
            symbols = np.frombuffer(text, _SYMBOL)
            functions = symbols[
                (symbols["info"] & 0xF == _STT_FUNC) & (symbols["section"] != _SHN_UNDEF)
            ]
            for name, place in zip(names, places.values(), strict=True):
                values = functions["value"][np.isin(functions["name"], place)]
                if len(values):
                    found.setdefault(name, int(values[0]))
        return found

    def _strings(self, number: int) -> tuple[int, int]:
        # Where a table of strings is, and its size
        if number >= len(self._sections):
            raise Wrong("malformed")
        section = self._sections[number]
        return int(section["offset"]), int(section["size"])

    def _pieces(
        self, offset: int, size: int, each: int, overlap: int = 0
    ) -> Iterator[tuple[int, bytes]]:
        if size > self._left:
            raise Wrong("too_large")
        for first in range(0, size, each):
            yield first, self.bytes_at(offset + first, min(each + overlap, size - first))

    def _table(
        self, layout: np.dtype[np.void], place: int, count: int, size: int
    ) -> NDArray[np.void]:
        if count and size != layout.itemsize:
            raise Wrong("malformed")
        return np.frombuffer(self.bytes_at(place, count * layout.itemsize), layout)
