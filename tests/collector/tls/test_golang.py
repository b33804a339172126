"""Functions of Go programs: real ones as Go itself sees them, old forms made here, hostile ones."""

from __future__ import annotations

import contextlib
import random
import re
import struct
import subprocess
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.abi import GoConvention
from collector.tls import libraries
from collector.tls.elf import Elf, Wrong
from collector.tls.golang import GoFunction, find_go_functions
from collector.tls.libraries import GO
from tests.collector.tls.test_elf import Reads
from tests.collector.tls.test_elf import made as with_symbols
from tests.requirements import program
from tests.tls.golang import GO as COMPILER
from tests.tls.golang import build

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAMES: Final = tuple(sorted((*GO.calls, *GO.marks)))
READ: Final = "crypto/tls.(*Conn).Read"
TEXT: Final = 0x1000
ADDRESS: Final = 0x40_1000
BY_STACK: Final = b"\x64\x48\x8b\x0c\x25\xf8\xff\xff\xff\x48\x3b\x61\x10"
BY_REGISTERS: Final = b"\x49\x3b\x66\x10"
PLACE, RETURNS, FRAME = 0x40, (0x30, 0x51), 0x58


def find(image: bytes) -> dict[str, GoFunction]:
    return find_go_functions(Elf(lambda place, size: image[place : place + size]), NAMES)


def number(value: int) -> bytes:
    """Base 128, the least significant digits first."""
    digits = b""
    while value >= 0x80:
        digits += bytes([value & 0x7F | 0x80])
        value >>= 7
    return digits + bytes([value])


def steps(returns: Sequence[int] = RETURNS) -> bytes:
    """A frame that is there but at the entry and for the one byte of each return."""
    changes = [(1, 0x10)]
    for each in returns:
        changes += [(FRAME, each), (-FRAME, each + 1)]
    found, at = b"", 0
    for value, until in (*changes, (FRAME, 0xA0)):
        found += number(value * 2 if value >= 0 else -value * 2 - 1) + number(until - at)
        at = until
    return found + b"\0"


def table(version: str, said: bytes) -> bytes:
    """The table of a program with that one function, as so old a Go wrote it."""
    name = b"\0" + READ.encode() + b"\0"
    if version == "1.2":
        functions = struct.pack("<QQQQI4x", 1, ADDRESS + PLACE, 48, ADDRESS + 0x1000, 0)
        start = struct.pack("<QiIII4x", ADDRESS + PLACE, 48 + 28 + 1, 0, 0, 48 + 28 + len(name))
        whole = struct.pack("<IHBB", 0xFFFFFFFB, 0, 1, 8) + functions
        return whole[:48] + start[:28] + name + said
    words = 7 if version == "1.16" else 8
    magic = {"1.16": 0xFFFFFFFA, "1.18": 0xFFFFFFF0, "1.20": 0xFFFFFFF1}[version]
    names = 8 + 8 * words
    places = names, names + len(name), names + len(name), names + len(name)
    end = (places[-1] + len(said) + 7) & ~7
    if version == "1.16":
        header = struct.pack("<7Q", 1, 0, *places, end)
        functions = struct.pack("<QQQ", ADDRESS + PLACE, 24, ADDRESS + 0x1000)
        functions += struct.pack("<QiIII", ADDRESS + PLACE, 1, 0, 0, 0)
    else:
        header = struct.pack("<8Q", 1, 0, ADDRESS, *places, end)
        functions = struct.pack("<IIII", PLACE, 16, 0x1000, 0)
        functions += struct.pack("<IiIII", PLACE, 1, 0, 0, 0)
    whole = struct.pack("<IHBB", magic, 0, 1, 8) + header + name + said
    return whole.ljust(end, b"\0") + functions


def made(version: str, entry: bytes, said: bytes = b"", returns: Sequence[int] = RETURNS) -> bytes:
    """A file with that table and the function's code."""
    code = bytearray(b"\x90" * 0x100)
    code[PLACE : PLACE + len(entry)] = entry
    for each in returns:
        code[PLACE + each] = 0xC3
    said, names = table(version, said or steps(returns)), b"\0.gopclntab\0.text\0.shstrtab\0"
    parts = [(1, ADDRESS, TEXT, len(code)), (12, 0, TEXT + len(code), len(said))]
    parts = [(12, ADDRESS, TEXT, len(code)), (1, 0, TEXT + len(code), len(said))]
    parts.append((18, 0, TEXT + len(code) + len(said), len(names)))
    sections = bytes(64) + b"".join(
        struct.pack("<IIQQQQIIQQ", place, 1, 0, address, offset, size, 0, 0, 1, 0)
        for place, address, offset, size in parts
    )
    headers = TEXT + len(code) + len(said) + len(names)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, headers, 0, 64, 56, 1, 64, 4, 3),
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, TEXT, ADDRESS, ADDRESS, len(code), len(code), 0x1000)
    return (header + segment).ljust(TEXT, b"\0") + code + said + names + sections


@pytest.mark.parametrize(
    ("version", "entry", "convention"),
    [
        ("1.2", BY_STACK, GoConvention.GO_STACK),
        ("1.16", BY_STACK, GoConvention.GO_STACK),
        ("1.16", BY_REGISTERS, GoConvention.GO_REGISTERS),
        ("1.18", BY_REGISTERS, GoConvention.GO_REGISTERS),
        ("1.20", BY_REGISTERS, GoConvention.GO_REGISTERS),
    ],
)
def test_every_form_of_the_table(version: str, entry: bytes, convention: GoConvention) -> None:
    returns = tuple(TEXT + PLACE + each for each in RETURNS)
    assert find(made(version, entry)) == {READ: GoFunction(TEXT + PLACE, returns, convention)}


def test_an_entry_that_is_not_known_is_not_guessed_at() -> None:
    with pytest.raises(Wrong, match="malformed"):
        find(made("1.16", b"\x90"))


def test_what_is_wrong_with_it_costs_no_library_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise Wrong("malformed")

    monkeypatch.setattr(libraries, "find_go_functions", fail)
    image = with_symbols()
    found = libraries.find_libraries(lambda place, size: image[place : place + size])
    assert [each.name for each in found] == ["OpenSSL"]


def test_more_functions_than_it_can_hold_are_not_looked_for() -> None:
    image = bytearray(made("1.20", BY_REGISTERS))
    section = Elf(lambda place, size: bytes(image[place : place + size])).section(b".gopclntab")
    assert section is not None
    struct.pack_into("<Q", image, section.offset + 8, 1 << 40)  # so many functions
    with pytest.raises(Wrong, match="malformed"):
        find(bytes(image))


def test_steps_of_the_stack_that_lead_nowhere_are_not_followed_far() -> None:
    """Nor again for each place where the code may begin."""
    image = made("1.20", BY_REGISTERS, b"\x02\x00" * (1 << 20))
    read = Reads(image)
    with pytest.raises(Wrong, match="malformed"):
        find_go_functions(Elf(read), NAMES)
    assert read.total < 1 << 18


@pytest.mark.parametrize("count", [64, 65])
def test_a_function_may_return_at_so_many_places(count: int) -> None:
    """Each takes a probe, and those of real ones are less than ten."""
    image = made("1.20", BY_REGISTERS, returns=range(0x11, 0x11 + 2 * count, 2))
    if count <= 64:
        assert len(find(image)[READ].returns) == count
        return
    with pytest.raises(Wrong, match="too_many_returns"):
        find(image)


def test_a_newer_form_has_a_reason() -> None:
    image = made("1.20", BY_REGISTERS)
    with pytest.raises(Wrong, match="malformed"):
        find(image.replace(b"\xf1\xff\xff\xff", b"\xee\xff\xff\xff"))


@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from(["1.2", "1.16", "1.20"]))
def test_any_bytes_give_an_answer(seed: int, count: int, version: str) -> None:
    chosen = random.Random(seed)
    image = bytearray(made(version, BY_REGISTERS))
    places = [*range(200), *range(TEXT + 0x100, len(image))]
    for _ in range(count):
        image[chosen.choice(places)] = chosen.choice([0, 1, 0x7F, 0xFF, chosen.randrange(256)])
    cut = chosen.choice([len(image), chosen.randrange(len(image))])
    with contextlib.suppress(Wrong):
        find(bytes(image[:cut]))


def disassembled(path: Path) -> dict[str, tuple[int, list[int]]]:
    """Addresses of the functions and of what returns from them, as Go itself says."""
    wanted = r"crypto/tls\.\(\*Conn\)\.(Read|Write|handshakeContext|Handshake|Close)$"
    said = subprocess.run(
        [COMPILER, "tool", "objdump", "-s", wanted, path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found: dict[str, tuple[int, list[int]]] = {}
    for text in said.split("TEXT ")[1:]:
        name = text.split("(SB)")[0]
        lines = re.findall(r"^\s+\S+:\d+\s+0x([0-9a-f]+)\s+[0-9a-f]+\s+(\S+)", text, re.M)
        returns = [int(address, 16) for address, what in lines if what == "RET"]
        found[name] = int(lines[0][0], 16), returns
    return found


@pytest.mark.parametrize("linker", ["internal", "external"])
def test_go_itself_says_the_same(linker: str, tmp_path: Path) -> None:
    """Also without symbols, and where the table does not say where the code begins."""
    path = build() if linker == "internal" else build(linker, f"-ldflags=-linkmode={linker}")
    image = path.read_bytes()
    elf = Elf(lambda place, size: image[place : place + size])
    expected = {
        name: (elf.offset_of(entry), tuple(elf.offset_of(each) for each in returns))
        for name, (entry, returns) in disassembled(path).items()
    }
    assert len(expected) >= 4
    for name, (_, returns) in expected.items():
        assert returns, name
    stripped = tmp_path / "stripped"
    subprocess.run([program("strip"), "-o", stripped, path], check=True)
    unsaid = bytearray(stripped.read_bytes())
    section = Elf(lambda place, size: bytes(unsaid[place : place + size])).section(
        b".gopclntab", b".data.rel.ro.gopclntab"
    )
    assert section is not None
    unsaid[section.offset + 24 : section.offset + 32] = bytes(8)
    for each in (image, stripped.read_bytes(), bytes(unsaid)):
        found = find(each)
        assert {name: (one.entry, one.returns) for name, one in found.items()} == expected
