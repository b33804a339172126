"""Functions of Go programs, with the instructions that return from them. Pure, as `elf`.

A Go program has a table of its functions that it cannot run without, so stripped ones have it too:
the names, where each begins, and how far the stack pointer is from the entry's at each instruction.
A function returns where its frame is gone, which is where that distance becomes 0.
Sources: Go 1.2 Runtime Symbol Information (https://go.dev/s/go12symtab); ``pcHeader`` and ``_func``
of src/runtime, for 1.2, 1.16, 1.18 and 1.20.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from collector.abi import GoConvention
from collector.tls.elf import Wrong

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from collector.tls.elf import Elf, Section

__all__ = ["GoFunction", "find_go_functions"]

_TABLES: Final = (b".gopclntab", b".data.rel.ro.gopclntab")
_X86: Final = 62
_ARM64: Final = 183
_RETURNS: Final = {_X86: b"\xc3", _ARM64: b"\xc0\x03\x5f\xd6"}
_PROLOGUE_BY_STACK: Final = b"\x64\x48\x8b\x0c\x25\xf8\xff\xff\xff"
"""``MOVQ -8(FS), CX``: the goroutine, of which the entry asks where its stack ends."""
_PROLOGUE_BY_REGISTERS: Final = b"\x3b\x66\x10"
"""``CMPQ SP or R12, 16(R14)``: likewise, without the byte before, which differs."""
_PROLOGUE_BYTES: Final = 16
_HEADER: Final = struct.Struct("<IHBB")
_MAX_FUNCTION_BYTES: Final = 1 << 20
_MAX_STEPS_BYTES: Final = 1 << 16
_MAX_PART_BYTES: Final = 1 << 26
_MAX_OTHERS_BYTES: Final = 1 << 18
_ALIGNMENT: Final = 16
_AT_ONCE: Final = 8_192
_MAX_RETURNS: Final = 64
"""Of one function, each of which takes a probe: those of Go 1.15 to 1.27 have at most 9."""
_MAX_BASES: Final = 8


@dataclass(frozen=True, slots=True)
class GoFunction:
    """A function of a Go program.

    Attributes:
        entry: Offset in the file of its first instruction.
        returns: Offsets of those that return.
        convention: How it is called.
    """

    entry: int
    returns: tuple[int, ...]
    convention: GoConvention


@dataclass(frozen=True, slots=True)
class _Version:
    # A form of the table: numbers of its header; the words of `functab`, and how many bytes of a
    # function's entry its address takes.
    words: int
    entry: int
    has_text_start: bool = False


_VERSIONS: Final = {
    0xFFFFFFFB: _Version(1, 8),  # 1.2
    0xFFFFFFFA: _Version(7, 8),  # 1.16
    0xFFFFFFF0: _Version(8, 4, True),  # 1.18
    0xFFFFFFF1: _Version(8, 4, True),  # 1.20
}


def find_go_functions(elf: Elf, names: Collection[str]) -> dict[str, GoFunction]:
    """Find functions of a Go program, by their names in Go; empty if it is none.

    Raises:
        Wrong: ``malformed`` also if its table cannot be understood, as of a Go that is newer.
    """
    section = elf.section(*_TABLES)
    if section is None or elf.machine not in _RETURNS:
        return {}
    return _Table(elf, section).find(names)


class _Table:
    def __init__(self, elf: Elf, section: Section) -> None:
        self._elf = elf
        self._section = section
        magic, _, self._quantum, word = _HEADER.unpack(self._bytes(0, _HEADER.size))
        version = _VERSIONS.get(magic)
        if version is None or word != 8:
            raise Wrong("malformed")
        self._version = version
        header = struct.unpack(f"<{version.words}Q", self._bytes(8, 8 * version.words))
        self._count: int = header[0]
        self._text_start: int = header[2] if version.has_text_start else 0
        if version.words == 1:
            self._names, self._steps, self._functions = (0, section.size), 0, 16
        else:
            names, files, _, self._steps, self._functions = header[-5:]
            self._names = names, files
        self._is_relative = version.entry == 4

    def find(self, names: Collection[str]) -> dict[str, GoFunction]:
        wanted = self._places_of(names)
        if not wanted:
            return {}
        # By name: its first instruction, from the beginning of the code or not, and its steps
        found: dict[str, tuple[int, int]] = {}
        for entries, starts in self._in_parts():
            for name, place in wanted.items():
                for at in np.flatnonzero(starts["name"] == place)[:1]:
                    found[name] = int(entries[at]), int(starts["steps"][at])
        places = {name: (entry, self._frameless(steps)) for name, (entry, steps) in found.items()}
        for base in self._bases(places):
            functions = {
                name: self._function(base + entry, distances)
                for name, (entry, distances) in places.items()
            }
            known = {name: each for name, each in functions.items() if each is not None}
            if len(known) == len(places):
                return known
        raise Wrong("malformed")

    def _places_of(self, names: Collection[str]) -> dict[str, int]:
        first, end = self._names
        if not 0 <= first <= end <= self._section.size:
            raise Wrong("malformed")
        strings = [b"\0" + name.encode() + b"\0" for name in names]
        places = self._elf.places(self._section.offset + first, end - first, strings)
        return {
            name: each[0] + 1 for name, each in zip(names, places.values(), strict=True) if each
        }

    def _in_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        # Where functions are, and what is said of each, so many at a time
        word = self._version.entry
        row = np.dtype([("entry", f"<u{word}"), ("said", f"<u{word}")])
        said = np.dtype(
            {
                "names": ["name", "steps"],
                "formats": ["<i4", "<u4"],
                "offsets": [word, word + 12],
                "itemsize": word + 16,
            }
        )
        if self._count > self._section.size // row.itemsize:
            raise Wrong("malformed")
        before = 0
        for first in range(0, self._count, _AT_ONCE):
            count = min(_AT_ONCE, self._count - first)
            place = self._functions + first * row.itemsize
            rows = np.frombuffer(self._bytes(place, count * row.itemsize), row)
            base = self._functions if self._version.words > 1 else 0
            low, high = int(rows["said"].min()), int(rows["said"].max()) + said.itemsize
            if low < before:
                raise Wrong("malformed")  # they stand in order, so nothing is read twice
            before = high
            text = np.frombuffer(self._bytes(base + low, high - low), np.uint8)
            at = (rows["said"].astype(np.int64) - low)[:, None] + np.arange(said.itemsize)
            yield rows["entry"], np.ascontiguousarray(text[at]).view(said)[:, 0]

    def _bases(self, found: dict[str, tuple[int, list[int]]]) -> Iterator[int]:
        # Where the code may begin: since 1.26 the table does not say, nor where a linker was to
        # fill it in. Where C code comes first, what is found of a function shows where it is.
        if not self._is_relative:
            yield 0
            return
        if self._text_start:
            yield self._text_start
        text = self._elf.section(b".text")
        if text is None or not found:
            return
        yield text.address
        entry, distances = next(iter(found.values()))
        yield from (text.address + each for each in self._behind_others(text, entry, distances))

    def _behind_others(self, text: Section, entry: int, distances: list[int]) -> list[int]:
        instruction = np.frombuffer(_RETURNS[self._elf.machine], np.uint8)
        end = max(distances, default=0) + len(instruction)
        size = min(_MAX_OTHERS_BYTES + end, text.size - entry)
        if size < end or not distances:
            return []
        code = np.frombuffer(self._elf.bytes_at(text.offset + entry, size), np.uint8)
        windows = np.lib.stride_tricks.sliding_window_view(code, len(instruction))
        returns = (windows == instruction).all(axis=1)
        counts = np.zeros(-(-(size - end + 1) // _ALIGNMENT), np.int64)
        for each in distances:
            counts += returns[each : each + size - end + 1 : _ALIGNMENT]
        found = np.flatnonzero(counts > len(distances) // 2)[:_MAX_BASES]
        bases: list[int] = (found * _ALIGNMENT).tolist()
        return bases

    def _function(self, address: int, distances: list[int]) -> GoFunction | None:
        entry = self._elf.offset_of(address)
        if entry is None:
            return None
        instruction = _RETURNS[self._elf.machine]
        returns = []
        for distance in distances:
            offset = self._elf.offset_of(address + distance)
            if offset is not None and self._elf.bytes_at(offset, len(instruction)) == instruction:
                returns.append(offset)
        if not returns:
            return None
        return GoFunction(entry, tuple(returns), self._convention(entry))

    def _frameless(self, steps: int) -> list[int]:
        # Distances from the entry at which the frame is gone: pairs of a difference of the stack
        # pointer, zigzag, and a number of instructions for which it holds.
        place = self._steps + steps
        text = self._bytes(place, min(self._section.size - place, _MAX_STEPS_BYTES))
        numbers = _numbers(text)
        value, at = -1, 0
        found: list[int] = []
        for difference in numbers:
            if difference == 0 and at:
                break
            value += (difference >> 1) ^ -(difference & 1)
            if value == 0 and at:
                if len(found) == _MAX_RETURNS:
                    raise Wrong("too_many_returns")
                found.append(at)
            at += next(numbers, 0) * self._quantum
            if at > _MAX_FUNCTION_BYTES:
                break
        return found

    def _convention(self, entry: int) -> GoConvention:
        if self._is_relative:
            return GoConvention.GO_REGISTERS
        if self._elf.machine == _ARM64:
            return GoConvention.GO_STACK
        start = self._elf.bytes_at(entry, _PROLOGUE_BYTES)
        if start.startswith(_PROLOGUE_BY_STACK):
            return GoConvention.GO_STACK
        if _PROLOGUE_BY_REGISTERS in start:
            return GoConvention.GO_REGISTERS
        raise Wrong("malformed")

    def _bytes(self, place: int, size: int) -> bytes:
        if place < 0 or size < 0 or place + size > self._section.size:
            raise Wrong("malformed")
        if size > _MAX_PART_BYTES:
            raise Wrong("too_large")
        return self._elf.bytes_at(self._section.offset + place, size)


def _numbers(text: bytes) -> Iterator[int]:
    # Base 128, the least significant digits first; at most 32 bits
    value = shift = 0
    for byte in text:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0
        elif shift > 28:
            return
