"""The BTF reader against bpftool and the compiler, and against arbitrary bytes."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.btf import (
    VMLINUX,
    Btf,
    Kind,
    find_enum,
    parse_btf,
    parse_object,
    unknown_names,
    unknown_tracepoints,
)
from collector.build import OBJECTS
from schemas.errors import DecodeError
from tests.requirements import unmet

if TYPE_CHECKING:
    from pathlib import Path

OBJECT = OBJECTS / "x86_64" / "podwire.bpf.o"


def read_everything(btf: Btf) -> None:
    for kind, read in ((Kind.STRUCT, btf.struct), (Kind.ENUM, btf.enum)):
        for name in list(btf.names(kind)):
            try:
                read(name)
            except DecodeError:
                continue


def test_object_against_bpftool() -> None:
    if not shutil.which("bpftool"):
        unmet("bpf", "bpftool is not installed")
    command = ["bpftool", "-j", "btf", "dump", "file", str(OBJECT)]
    types = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["types"]
    btf = parse_object(OBJECT.read_bytes())
    compared = 0
    for each in types:
        if each["kind"] == "STRUCT" and each["name"].startswith("podwire_"):
            if each["name"] == "podwire_abi":
                continue
            found = btf.struct(each["name"])
            assert found.size == each["size"]
            assert [(field.name, field.offset * 8) for field in found.fields] == [
                (member["name"], member["bits_offset"]) for member in each["members"]
            ]
            compared += 1
        if each["kind"] == "ENUM" and each["name"].startswith("podwire_"):
            expected = {value["name"]: value["val"] for value in each["values"]}
            assert btf.enum(each["name"]) == expected
            compared += 1
    assert compared >= 11


def test_names_are_looked_up_in_the_btf_of_kernel_and_modules(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"\0tcp_v4_rcv\0old_ip_rcv\0")
    (tmp_path / "ipv6").write_bytes(b"\0inet6_csk_xmit\0")
    names = ("tcp_v4_rcv", "inet6_csk_xmit", "ip_rcv")
    assert unknown_names(names, tmp_path) == set(names) - {"tcp_v4_rcv", "inet6_csk_xmit"}
    assert unknown_names(names, tmp_path / "none") == set()  # the kernel decides


def test_names_that_the_kernel_does_not_have() -> None:
    if not VMLINUX.exists():
        unmet("bpf", "this kernel has no BTF")
    assert unknown_names({"tcp_v4_connect", "tcp_v4_conn", "inet_sock"}) == {"tcp_v4_conn"}
    assert unknown_tracepoints({"inet_sock_set_state", "inet_sock"}) == {"inet_sock"}


def test_kernel() -> None:
    if not VMLINUX.exists():
        unmet("bpf", "this kernel has no BTF")
    btf = parse_btf(VMLINUX.read_bytes())
    assert btf.has_tracepoint("inet_sock_set_state")
    assert not btf.has_tracepoint("no_such_tracepoint")
    assert btf.has(Kind.FUNC, "tcp_v4_connect")
    assert btf.struct("timespec64").size == 16
    assert btf.struct("list_head").fields[1].offset == 8
    assert len(list(btf.names(Kind.STRUCT))) > 1000


def test_what_cannot_be_told() -> None:
    btf = parse_object(OBJECT.read_bytes())
    with pytest.raises(DecodeError, match="no struct nothing"):
        btf.struct("nothing")
    with pytest.raises(DecodeError, match="no enum nothing"):
        btf.enum("nothing")
    with pytest.raises(DecodeError, match="is of BTF kind"):
        btf.struct("podwire_abi")


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(100), OBJECT.read_bytes()[:2000], bytes(5000)],
    ids=["empty", "magic", "zeros", "cut", "null"],
)
def test_no_object(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        parse_object(raw)
    with pytest.raises(DecodeError):
        parse_btf(raw)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_arbitrary_bytes(body: bytes) -> None:
    header = b"\x9f\xeb\x01\x00\x18\x00\x00\x00\x00\x00\x00\x00"
    length = len(body).to_bytes(4, "little")
    half = (len(body) // 2).to_bytes(4, "little")
    whole = bytes(4) + length  # strings overlap the types
    for raw in (body, header + length + whole + body, header + half + half + half + body):
        for parse in (parse_btf, parse_object):
            try:
                read_everything(parse(raw))
            except DecodeError:
                continue


def test_array_of_itself_ends() -> None:
    # struct s { t x[1]; } where t is the array type itself: types 1 (array), 2 (struct).
    array = struct.pack("<IIIIII", 0, Kind.ARRAY << 24, 0, 1, 1, 1)
    owner = struct.pack("<IIIIII", 1, Kind.STRUCT << 24 | 1, 8, 3, 1, 0)
    types, strings = array + owner, b"\0s\0x\0"
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    with pytest.raises(DecodeError):
        parse_btf(header + types + strings).struct("s")


def test_damaged_object() -> None:
    """Every reader survives an object with bytes changed at random."""
    original, chance = OBJECT.read_bytes(), random.Random(7)
    start = original.index(b"\x9f\xeb\x01\x00")
    for _ in range(150):
        damaged = bytearray(original)
        for _ in range(chance.randrange(1, 12)):
            where = chance.randrange(64) if chance.random() < 0.2 else None
            position = where if where is not None else start + chance.randrange(12_000)
            damaged[position] = chance.randrange(256)
        try:
            read_everything(parse_object(bytes(damaged)))
        except DecodeError:
            continue


def test_one_enum_is_found_without_the_rest() -> None:
    """The section of an object is the same BTF as a kernel's, behind an ELF header."""
    raw = OBJECT.read_bytes()
    blob = raw[raw.index(struct.pack("<HBBI", 0xEB9F, 1, 0, 24)) :]
    whole = parse_object(raw)
    for name in ("podwire_kind", "podwire_call", "podwire_role"):
        assert find_enum(blob, name) == whole.enum(name) != {}
    assert find_enum(blob, "podwire_transfer_record") == {}
    assert find_enum(blob, "no_such_enum") == {}
    with pytest.raises(DecodeError):
        find_enum(blob[:4000], "podwire_kind")
