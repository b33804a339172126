"""Functions of ELF files, honest and hostile."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.tls.elf import Elf, Wrong
from tests.requirements import program, unmet

NAMES: Final = ("SSL_read", "SSL_write", "read")
CODE: Final = 0x1000
ADDRESS: Final = 0x40_1000


def made(names: tuple[bytes, ...] = (b"SSL_read", b"SSL_write"), section: int = 1) -> bytes:
    """A small ELF file with one segment of code and a function each 16 bytes."""
    strings = b"\0" + b"".join(name + b"\0" for name in names)
    symbols = bytes(24)
    for number, name in enumerate(names):
        place = strings.index(name + b"\0")
        symbols += struct.pack("<IBBHQQ", place, 0x12, 0, section, ADDRESS + 16 * number, 16)
    segment = struct.pack("<IIQQQQQQ", 1, 5, CODE, ADDRESS, ADDRESS, 0x100, 0x100, 0x1000)
    tables = CODE + 0x100
    sections = [bytes(64)]
    sections.append(struct.pack("<IIQQQQIIQQ", 0, 11, 0, 0, tables, len(symbols), 2, 0, 8, 24))
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
