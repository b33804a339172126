"""BTF, the kernel's type format: struct layouts, enums and names, from objects and from the kernel.

Reads the ``.BTF`` section of an ELF object or ``/sys/kernel/btf/vmlinux``. Both are input from
outside: whatever the bytes are, nothing but `DecodeError` leaves this module.

Source: Linux Documentation/bpf/btf.rst, include/uapi/linux/btf.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from schemas.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = [
    "VMLINUX",
    "Btf",
    "Field",
    "Kind",
    "Struct",
    "find_enum",
    "parse_btf",
    "parse_object",
    "unknown_names",
    "unknown_tracepoints",
]

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")
"""The types of the running kernel; beside it are those of its modules."""
_TRACEPOINT: Final = "btf_trace_"
"""Before the name of a tracepoint, in that of its type: include/trace/bpf_probe.h."""


class Kind:
    """``BTF_KIND_*`` numbers."""

    INT: Final = 1
    PTR: Final = 2
    ARRAY: Final = 3
    STRUCT: Final = 4
    UNION: Final = 5
    ENUM: Final = 6
    TYPEDEF: Final = 8
    VOLATILE: Final = 9
    CONST: Final = 10
    RESTRICT: Final = 11
    FUNC: Final = 12
    TYPE_TAG: Final = 18
    ENUM64: Final = 19


_MODIFIERS: Final = frozenset(
    {Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG}
)
# Bytes after struct btf_type: a fixed part and a part per member, by kind.
_TAIL: Final = {
    1: (4, 0),
    2: (0, 0),
    3: (12, 0),
    4: (0, 12),
    5: (0, 12),
    6: (0, 8),
    7: (0, 0),
    8: (0, 0),
    9: (0, 0),
    10: (0, 0),
    11: (0, 0),
    12: (0, 0),
    13: (0, 8),
    14: (4, 0),
    15: (0, 12),
    16: (0, 0),
    17: (4, 0),
    18: (0, 0),
    19: (0, 12),
}
_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_DEEPEST: Final = 32
_ELF_HEADER: Final = struct.Struct("<16xHHIQQQIHHHHHH")
_ELF_SECTION: Final = struct.Struct("<IIQQQQIIQQ")


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a struct: byte offset, element size, number of elements (1 if no array)."""

    name: str
    offset: int
    size: int
    count: int
    is_signed: bool
    is_array: bool


@dataclass(frozen=True, slots=True)
class Struct:
    """Layout of a struct: its size in bytes and its members in order."""

    name: str
    size: int
    fields: tuple[Field, ...]


@dataclass(slots=True)  # not frozen: that costs three times as much, and vmlinux has 130,000
class _Type:
    name: int  # offset into the strings
    kind: int
    members: int
    is_flagged: bool
    size_or_type: int
    tail: int  # offset of what follows


class Btf:
    """The types of one BTF blob; made by `parse_btf` and `parse_object`."""

    def __init__(self, types: bytes, strings: bytes) -> None:
        self._bytes = types
        self._strings = strings
        self._types = [_Type(0, 0, 0, False, 0, 0), *_scan(types)]
        self._by_name: dict[tuple[int, bytes], int] = {}
        for index, each in enumerate(self._types):
            if each.name:
                self._by_name.setdefault((each.kind, self._raw_name(each.name)), index)

    def has(self, kind: int, name: str) -> bool:
        """Whether there is a type of this kind and name, e.g. ``Kind.FUNC, "tcp_sendmsg"``."""
        return (kind, name.encode()) in self._by_name

    def has_tracepoint(self, name: str) -> bool:
        """Whether ``tp_btf`` programs can attach to the tracepoint `name`."""
        return self.has(Kind.TYPEDEF, f"{_TRACEPOINT}{name}")

    def names(self, kind: int) -> Iterator[str]:
        """Names of all types of a kind."""
        for found, name in self._by_name:
            if found == kind:
                yield name.decode(errors="replace")

    def struct(self, name: str) -> Struct:
        """Layout of ``struct name``.

        Raises:
            DecodeError: If it is not there, has bit fields, or has members other than integers,
                enums, pointers and arrays of these.
        """
        index, found = self._find(Kind.STRUCT, name)
        fields = tuple(
            self._field(found, position, f"struct {name} (type {index})")
            for position in range(found.members)
        )
        return Struct(name, found.size_or_type, fields)

    def member_enum_names(self, name: str) -> list[str]:
        """Names of the enums that ``struct name`` has as members, in order.

        Raises:
            DecodeError: If it is not there or points outside the types.
        """
        _, found = self._find(Kind.STRUCT, name)
        enums = []
        for position in range(found.members):
            _, target, _ = struct.unpack_from("<III", self._bytes, found.tail + 12 * position)
            each = self._resolve(target)
            if each.kind == Kind.ENUM:
                enums.append(self._name(each.name))
        return enums

    def enum(self, name: str) -> dict[str, int]:
        """Names and values of ``enum name`` in order.

        Raises:
            DecodeError: If it is not there.
        """
        _, found = self._find(Kind.ENUM, name)
        return _members(self._bytes, self._strings, found)

    def _find(self, kind: int, name: str) -> tuple[int, _Type]:
        index = self._by_name.get((kind, name.encode()))
        if index is None:
            raise DecodeError(f"BTF has no {'struct' if kind == Kind.STRUCT else 'enum'} {name}")
        return index, self._types[index]

    def _field(self, owner: _Type, position: int, where: str) -> Field:
        label, target, bits = struct.unpack_from("<III", self._bytes, owner.tail + 12 * position)
        name = self._name(label)
        if owner.is_flagged and bits >> 24:
            raise DecodeError(f"{where}: {name} is a bit field")
        bits &= 0xFFFFFF if owner.is_flagged else 0xFFFFFFFF
        if bits % 8:
            raise DecodeError(f"{where}: {name} does not start at a byte")
        each, count, is_array = self._resolve(target), 1, False
        for _ in range(_DEEPEST):
            if each.kind != Kind.ARRAY:
                break
            element, _, length = struct.unpack_from("<III", self._bytes, each.tail)
            each, count, is_array = self._resolve(element), count * length, True
        if each.kind == Kind.PTR:
            size, is_signed = 8, False
        elif each.kind == Kind.INT:
            (encoding,) = struct.unpack_from("<I", self._bytes, each.tail)
            size, is_signed = each.size_or_type, bool(encoding >> 24 & 1)
        elif each.kind in (Kind.ENUM, Kind.ENUM64):
            size, is_signed = each.size_or_type, each.is_flagged
        else:
            raise DecodeError(f"{where}: {name} is of BTF kind {each.kind}")
        offset = bits // 8
        if size not in (1, 2, 4, 8) or offset + size * count > owner.size_or_type:
            raise DecodeError(f"{where}: {name} does not fit")
        return Field(name, offset, size, count, is_signed, is_array)

    def _resolve(self, index: int) -> _Type:
        for _ in range(_DEEPEST):
            if not 0 < index < len(self._types):
                raise DecodeError(f"BTF type {index} of {len(self._types)}")
            found = self._types[index]
            if found.kind not in _MODIFIERS:
                return found
            index = found.size_or_type
        raise DecodeError("BTF types refer to each other in a circle")

    def _raw_name(self, offset: int) -> bytes:
        return _raw_name(self._strings, offset)

    def _name(self, offset: int) -> str:
        return self._raw_name(offset).decode(errors="replace")


def parse_btf(raw: bytes) -> Btf:
    """Read a little-endian BTF blob such as ``/sys/kernel/btf/vmlinux``.

    Raises:
        DecodeError: If it is not one.
    """
    return Btf(*_parts(raw))


def find_enum(raw: bytes, name: str) -> dict[str, int]:
    """Return names and values of one enum of a BTF blob, empty if it has none of this name.

    Keeps nothing of the other types, which of a whole kernel take tens of megabytes.

    Raises:
        DecodeError: If it is no BTF, or damaged before the enum.
    """
    types, strings = _parts(raw)
    at = strings.find(b"\0%b\0" % name.encode()) + 1
    for found in _scan(types) if at else ():
        if found.name == at and found.kind == Kind.ENUM and found.members:
            return _members(types, strings, found)
    return {}


def _parts(raw: bytes) -> tuple[bytes, bytes]:
    # Types and strings.
    if len(raw) < _HEADER.size:
        raise DecodeError("BTF is shorter than its header")
    magic, version, _, length, type_at, type_size, text_at, text_size = _HEADER.unpack_from(raw)
    if magic != _MAGIC or version != 1:
        raise DecodeError(f"not little-endian BTF version 1 (magic {magic:#x}, version {version})")
    types, strings = length + type_at, length + text_at
    if types + type_size > len(raw) or strings + text_size > len(raw):
        raise DecodeError("BTF is cut off")
    return raw[types : types + type_size], raw[strings : strings + text_size]


def parse_object(raw: bytes) -> Btf:
    """Read the ``.BTF`` section of a little-endian ELF64 object.

    Raises:
        DecodeError: If it is no such object or has no valid ``.BTF``.
    """
    if len(raw) < _ELF_HEADER.size or raw[:6] != b"\x7fELF\x02\x01":
        raise DecodeError("not a little-endian ELF64 file")
    _, _, _, _, _, table, _, _, _, _, size, count, names = _ELF_HEADER.unpack_from(raw)
    if size != _ELF_SECTION.size or table + size * count > len(raw) or names >= count:
        raise DecodeError("ELF section table is cut off")
    sections = [_ELF_SECTION.unpack_from(raw, table + size * each) for each in range(count)]
    text_at = sections[names][4]
    for section in sections:
        label, start, length = text_at + section[0], section[4], section[5]
        if raw[label : label + 5] == b".BTF\0":
            if start + length > len(raw):
                raise DecodeError(".BTF is cut off")
            return parse_btf(raw[start : start + length])
    raise DecodeError("no .BTF section")


def _members(types: bytes, strings: bytes, enum: _Type) -> dict[str, int]:
    layout = "<Ii" if enum.is_flagged else "<II"
    values = {}
    for position in range(enum.members):
        label, value = struct.unpack_from(layout, types, enum.tail + 8 * position)
        values[_raw_name(strings, label).decode(errors="replace")] = value
    return values


def _raw_name(strings: bytes, offset: int) -> bytes:
    end = strings.find(b"\0", offset)
    if offset >= len(strings) or end < 0:
        raise DecodeError(f"BTF name at {offset} of {len(strings)}")
    return strings[offset:end]


def _scan(types: bytes) -> Iterator[_Type]:
    position, end = 0, len(types)
    unpack, header = _TYPE.unpack_from, _TYPE.size
    while position < end:
        if position + header > end:
            raise DecodeError("BTF type is cut off")
        name, info, size_or_type = unpack(types, position)
        position += header
        kind, members = info >> 24 & 0x1F, info & 0xFFFF
        tail = _TAIL.get(kind)
        if tail is None:
            raise DecodeError(f"BTF kind {kind}")
        yield _Type(name, kind, members, bool(info >> 31), size_or_type, position)
        position += tail[0] + tail[1] * members
        if position > end:
            raise DecodeError("BTF type is cut off")


def unknown_tracepoints(names: Collection[str]) -> set[str]:
    """Return which tracepoints the kernel does not have; see `Btf.has_tracepoint`."""
    unknown = unknown_names({f"{_TRACEPOINT}{name}" for name in names})
    return {name for name in names if f"{_TRACEPOINT}{name}" in unknown}


def unknown_names(names: Collection[str], folder: Path = VMLINUX.parent) -> set[str]:
    """Return which of the names nothing has in the BTF of the kernel and its modules.

    By its bytes, which costs a thousandth of reading the types: a name that is not among the
    strings names no function. One that is there may still name something else: a trial tells.
    Empty where they cannot be read: then the kernel decides.
    """
    missing = set(names)
    try:
        # vmlinux first: mostly nothing is left for the modules then.
        for path in sorted(folder.iterdir(), key=lambda each: (each.name != "vmlinux", each.name)):
            if missing:
                content = path.read_bytes()
                missing -= {name for name in missing if b"\0%b\0" % name.encode() in content}
    except OSError:
        return set()
    return missing
