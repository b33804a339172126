"""Functions of ELF files, honest and hostile."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.tls.elf import Elf, Wrong
from tests.requirements import program, unmet

NAMES: Final = ("SSL_read", "SSL_write", "read")
CODE: Final = 0x1000
ADDRESS: Final = 0x40_1000


def made(
    names: tuple[bytes, ...] = (b"SSL_read", b"SSL_write"), section: int = 1, kind: int = 11
) -> bytes:
    """A small ELF file with one segment of code and a function each 16 bytes."""
    strings = b"\0" + b"".join(name + b"\0" for name in names)
    symbols = bytes(24)
    for number, name in enumerate(names):
        place = strings.index(name + b"\0")
        symbols += struct.pack("<IBBHQQ", place, 0x12, 0, section, ADDRESS + 16 * number, 16)
    segment = struct.pack("<IIQQQQQQ", 1, 5, CODE, ADDRESS, ADDRESS, 0x100, 0x100, 0x1000)
    tables = CODE + 0x100
    sections = [bytes(64)]
    sections.append(struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, tables, len(symbols), 2, 0, 8, 24))
    sections.append(
        struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, tables + len(symbols), len(strings), 0, 0, 1, 0)
    )
    headers = tables + len(symbols) + len(strings)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 64, headers, 0, 64, 56, 1, 64, len(sections), 0),
    )
    body = (header + segment).ljust(tables, b"\0")
    return body + symbols + strings + b"".join(sections)


def find(image: bytes) -> tuple[dict[str, int], str | None]:
    try:
        return Elf(lambda place, size: image[place : place + size]).functions(NAMES), None
    except Wrong as error:
        return {}, error.reason


def test_offsets_are_in_the_file() -> None:
    assert find(made()) == ({"SSL_read": CODE, "SSL_write": CODE + 16}, None)


def test_what_is_only_called_is_not_defined() -> None:
    assert find(made(section=0)) == ({}, None)


def test_a_name_may_be_the_end_of_another() -> None:
    image = made((b"SSL_read",)).replace(b"\0SSL_read\0", b"\0SSL_read\0")
    assert find(image)[0] == {"SSL_read": CODE}
    # The symbol's name begins inside the only string that there is.
    shared = image.replace(struct.pack("<IBB", 1, 0x12, 0), struct.pack("<IBB", 5, 0x12, 0))
    assert find(shared) == ({"read": CODE}, None)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "not_elf"),
        (b"#!/bin/sh\n" * 10, "not_elf"),
        (b"\x7fELF", "other_architecture"),
        (b"\x7fELF\x01\x01" + bytes(60), "other_architecture"),
        (b"\x7fELF\x02\x01" + bytes(20), "truncated"),
        (made()[:-1], "truncated"),
        (made()[:CODE], "truncated"),
    ],
)
def test_what_is_wrong_has_a_name(image: bytes, reason: str) -> None:
    assert find(image) == ({}, reason)


def test_tables_of_any_size_are_not_read() -> None:
    image = bytearray(made())
    place = len(image) - 2 * 64 + 32  # size of the symbol table
    struct.pack_into("<Q", image, place, 1 << 50)
    assert find(bytes(image)) == ({}, "too_large")


class Counted(bytes):
    """Bytes of a file that count those that are copied out of them."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        Counted.copied += len(found) if isinstance(found, bytes) else 1
        return found


class Reads:
    """A file, and what is read of it."""

    def __init__(self, image: bytes, zeros: int = 0) -> None:
        self._image = image
        self._size = len(image) + zeros  # as of a file with a hole at its end
        self.total = self.largest = 0
        Counted.copied = 0

    def __call__(self, place: int, size: int) -> bytes:
        size = max(0, min(size, self._size - place))
        self.total += size
        self.largest = max(self.largest, size)
        return Counted(self._image[place : place + size].ljust(size, b"\0"))


def with_sections(*sections: tuple[int, int, int, int, int], tail: bytes = b"") -> bytes:
    """A file of sections alone: name, type, offset behind them, size, link. Names are the first."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, len(sections), 0),
    )
    end = 64 + 64 * len(sections)
    return (
        header
        + b"".join(
            struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, end + offset, size, link, 0, 1, 0)
            for name, kind, offset, size, link in sections
        )
        + tail
    )


MEBI: Final = 1 << 20
MOST: Final = 65_535
"""Sections of a file."""


def test_names_of_sections_cost_no_more_than_they_are_long() -> None:
    """Nor one without an end that every section has."""
    sections = [(number, 3, 0, MEBI, 0) for number in range(MOST)]
    read = Reads(with_sections(*sections, tail=b"." * MEBI))
    assert Elf(read).section(b".text", b".gopclntab") is None
    assert Counted.copied < 4 * MEBI
    assert read.total < 6 * MEBI


def test_names_of_sections_that_are_too_long_are_not_read() -> None:
    read = Reads(with_sections((0, 3, 0, MEBI + 1, 0), tail=b"." * (MEBI + 1)))
    with pytest.raises(Wrong, match="too_large"):
        Elf(read).section(b".text")
    assert read.total < 1_000


@pytest.mark.parametrize("kind", [2, 11])
def test_a_file_has_one_table_of_symbols_of_a_kind(kind: int) -> None:
    """So nobody reads the same strings once for each of the others."""
    sections = [(0, 3, 0, MEBI, 0)] + [(0, kind, MEBI, 240, 0)] * 100
    read = Reads(with_sections(*sections, tail=b"SSL_read\0".ljust(MEBI, b".") + bytes(240)))
    assert Elf(read).functions(NAMES) == {}
    assert read.total < 2 * MEBI


def test_a_file_is_read_up_to_a_bound_and_a_piece_at_a_time() -> None:
    size = 160 * MEBI
    sections = ((0, 3, 0, size, 0), (0, 2, 0, 24, 0), (0, 11, 0, 24, 0))
    read = Reads(with_sections(*sections), zeros=size)
    with pytest.raises(Wrong, match="too_large"):
        Elf(read).functions(NAMES)
    assert size <= read.total <= 256 * MEBI
    assert read.largest < 2 * MEBI


def test_a_name_that_stands_everywhere_is_not_noted_everywhere() -> None:
    sections = ((0, 3, 0, MEBI, 0), (0, 2, MEBI, 24, 0))
    image = with_sections(*sections, tail=(b"SSL_read\0" * MEBI)[:MEBI] + bytes(24))
    assert find(image) == ({}, "too_large")


@pytest.mark.parametrize("place", range(MEBI - 10, MEBI + 2))
def test_a_name_is_found_wherever_pieces_end(place: int) -> None:
    tail = b"." * place + b"SSL_read\0read\0"
    read = Reads(with_sections((0, 3, 0, len(tail), 0), tail=tail))
    found = Elf(read).places(128, len(tail), [b"SSL_read\0", b"read\0"])
    assert list(found.values()) == [[place], [place + 4, place + 9]]


def test_more_segments_than_any_file_has_are_not_searched() -> None:
    image = bytearray(made())
    struct.pack_into("<H", image, 56, MOST)
    read = Reads(bytes(image), zeros=56 * MOST)
    with pytest.raises(Wrong, match="too_large"):
        Elf(read)
    assert read.total < 1_000


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_any_bytes_give_an_answer(seed: int, count: int) -> None:
    chosen = random.Random(seed)
    image = bytearray(made())
    places = [*range(200), *range(CODE + 0x100, len(image))]
    for _ in range(count):
        image[chosen.choice(places)] = chosen.randrange(256)
    find(bytes(image[: chosen.choice([len(image), chosen.randrange(len(image))])]))


def test_real_files_agree_with_nm() -> None:
    import ssl

    library = next(
        (
            line.split()[-1]
            for line in Path("/proc/self/maps").read_text().splitlines()
            if "libssl" in line
        ),
        None,
    )
    assert ssl.OPENSSL_VERSION
    if library is None:
        unmet("tools", f"{sys.executable} has no libssl of its own")
    image = Path(library).read_bytes()
    listed = subprocess.run(
        [program("nm"), "-D", "--defined-only", library], capture_output=True, text=True, check=True
    )
    functions, reason = find(image)
    assert reason is None
    addresses = {
        line.split()[2].split("@")[0]: int(line.split()[0], 16)
        for line in listed.stdout.splitlines()
        if line.split()[1] == "T"
    }
    code = np.frombuffer(image, np.uint8)
    for name, offset in functions.items():
        # Position-independent libraries have their code at the offset of its address here.
        assert offset == addresses[name]
        assert offset < len(code)
    assert set(functions) == {"SSL_read", "SSL_write"}
