"""An eBPF object file: open, configure, load, attach, read, close.

The steps are those of any libbpf program and must be called in that order. Nothing here knows what
the programs do.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from collector.libbpf import Libbpf, load_library
from schemas.errors import ConfigError, LayoutMismatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["BpfObject", "MapShape", "Program"]

_BTF_KIND_DATASEC: Final = 15
_PROGRAM_INFO_BYTES: Final = 232
_RECURSION_MISSES: Final = 208
"""Where ``struct bpf_prog_info`` has ``recursion_misses`` (linux/bpf.h)."""
_LINK_INFO_BYTES: Final = 128
_PERF_EVENT_LINK: Final = 7  # enum bpf_link_type
_KPROBES: Final = (3, 4)  # enum bpf_perf_event_type: kprobe, kretprobe
_PROBE_MISSES: Final = 48
"""Where ``struct bpf_link_info`` has ``perf_event.kprobe.missed`` (linux/bpf.h)."""
_EVERY_PROCESS: Final = -1


@dataclass(frozen=True, slots=True)
class MapShape:
    """What two maps must have in common to be one: the kernel's type, bytes of key and value."""

    type: int  # enum bpf_map_type
    key_size: int
    value_size: int


@dataclass(frozen=True, slots=True)
class Program:
    """One program of an object: function name and section (``tp_btf/inet_sock_set_state``)."""

    name: str
    section: str

    @property
    def is_iterator(self) -> bool:
        """Whether it walks kernel objects when read, rather than waiting for an event."""
        return self.section.startswith("iter/")


class BpfObject:
    """One object file: its programs, maps and links.

    Call order: the constructor opens; then `set_rodata`, `set_max_entries`, `set_autoload`; then
    `load`; then `attach` and `run_iterator`; `close` at the end.

    Raises:
        BpfError: From every step that the kernel or libbpf refuses.
    """

    def __init__(self, path: Path, library: Libbpf | None = None) -> None:
        self.path = path
        self.library = library or load_library()
        self.library.clear_log()
        self._links: dict[str, int] = {}
        self._handle: int | None = self.library.checked(
            f"open {path}", "bpf_object__open_file", os.fsencode(path), None
        )
        self._programs = self._find_programs()

    def _find_programs(self) -> dict[str, tuple[Program, int]]:
        found: dict[str, tuple[Program, int]] = {}
        pointer = self.library.call("bpf_object__next_program", self._handle, None)
        while pointer:
            name = self.library.call("bpf_program__name", pointer).decode()
            section = self.library.call("bpf_program__section_name", pointer).decode()
            found[name] = (Program(name, section), pointer)
            pointer = self.library.call("bpf_object__next_program", self._handle, pointer)
        return found

    @property
    def programs(self) -> tuple[Program, ...]:
        """The programs in the order of the file."""
        return tuple(program for program, _ in self._programs.values())

    def set_rodata(self, values: Mapping[str, int]) -> None:
        """Set ``const volatile`` variables, between open and load.

        Offsets come from the opened object's BTF: in the file itself clang leaves them 0, libbpf
        fills them in when it opens the object.

        Raises:
            ConfigError: If the object has no such variable or the value does not fit.
        """
        variables = self._rodata_variables()
        size = ctypes.c_size_t()
        start = self.library.checked(
            "find .rodata",
            "bpf_map__initial_value",
            self._map(".rodata"),
            ctypes.byref(size),
        )
        for name, value in values.items():
            if name not in variables:
                raise ConfigError(name, f"{self.path.name} has no such constant")
            offset, width = variables[name]
            try:
                content = value.to_bytes(width, "little", signed=value < 0)
            except OverflowError:
                raise ConfigError(name, f"{value} does not fit in {width} bytes") from None
            if offset + width > size.value:
                raise ConfigError(name, "lies outside .rodata")
            ctypes.memmove(start + offset, content, width)

    @property
    def constants(self) -> frozenset[str]:
        """Names of the ``const volatile`` variables that `set_rodata` can set."""
        if not self.library.call("bpf_object__find_map_by_name", self._handle, b".rodata"):
            return frozenset()
        return frozenset(self._rodata_variables())

    def _rodata_variables(self) -> dict[str, tuple[int, int]]:
        # struct btf_type is three u32 (name, info, size or type); a DATASEC is followed by
        # vlen times struct btf_var_secinfo, three u32 (type, offset, size): linux/btf.h
        library = self.library
        btf = library.call("bpf_object__btf", self._handle)
        if not btf:
            raise library.error(f"{self.path.name} carries no BTF", errno.ENOENT)
        section = library.checked(
            "find .rodata in the object's BTF",
            "btf__find_by_name_kind",
            btf,
            b".rodata",
            _BTF_KIND_DATASEC,
        )
        pointer = library.call("btf__type_by_id", btf, section)
        _, kind_and_count, _ = struct.unpack("<III", ctypes.string_at(pointer, 12))
        count = kind_and_count & 0xFFFF
        variables: dict[str, tuple[int, int]] = {}
        entries = ctypes.string_at(pointer + 12, 12 * count)
        for type_id, offset, size in struct.iter_unpack("<III", entries):
            variable = library.call("btf__type_by_id", btf, type_id)
            (name_offset,) = struct.unpack("<I", ctypes.string_at(variable, 4))
            name = library.call("btf__name_by_offset", btf, name_offset).decode()
            variables[name] = (offset, size)
        return variables

    def maps(self) -> dict[str, MapShape]:
        """Return the maps that the object defines itself, without those of global variables."""
        library = self.library
        return {
            library.call("bpf_map__name", pointer).decode(): MapShape(
                library.call("bpf_map__type", pointer),
                library.call("bpf_map__key_size", pointer),
                library.call("bpf_map__value_size", pointer),
            )
            for pointer in self._all_maps()
            if not library.call("bpf_map__is_internal", pointer)
        }

    def _all_maps(self) -> Iterator[int]:
        pointer = self.library.call("bpf_object__next_map", self._handle, None)
        while pointer:
            yield pointer
            pointer = self.library.call("bpf_object__next_map", self._handle, pointer)

    def share_maps(self, owner: BpfObject) -> list[str]:
        """Use a loaded object's maps in place of those of the same name; before `load`.

        Returns:
            The names of the shared maps.

        Raises:
            LayoutMismatch: If a map of the same name holds something else there.
        """
        theirs = owner.maps()
        shared = []
        for name, shape in self.maps().items():
            if name not in theirs:
                continue
            if shape != theirs[name]:  # libbpf would take it without a word
                where = f"map {name} of {self.path.name} and {owner.path.name}"
                raise LayoutMismatch(where, shape, theirs[name])
            self.library.checked(
                f"share map {name}", "bpf_map__reuse_fd", self._map(name), owner.map_fd(name)
            )
            shared.append(name)
        return shared

    def set_max_entries(self, map_name: str, entries: int) -> None:
        """Set the size of a map, for a ring its bytes; between open and load."""
        self.library.checked(
            f"set size of map {map_name} to {entries}",
            "bpf_map__set_max_entries",
            self._map(map_name),
            entries,
        )

    def max_entries(self, map_name: str) -> int:
        """Return the size of a map, for a ring its bytes."""
        return int(self.library.call("bpf_map__max_entries", self._map(map_name)))

    def set_autoload(self, program: str, wanted: bool) -> None:
        """Choose whether `load` takes this program; between open and load."""
        self.library.checked(
            f"choose {program}", "bpf_program__set_autoload", self._programs[program][1], wanted
        )

    def load(self) -> None:
        """Create the maps and load the chosen programs; the verifier decides here."""
        self.library.clear_log()
        self.library.checked(f"load {self.path.name}", "bpf_object__load", self._handle)

    def set_attach_type(self, program: str, number: int) -> None:
        """Say how a program will be attached (enum bpf_attach_type); between open and load."""
        self.library.checked(
            f"choose {program}",
            "bpf_program__set_expected_attach_type",
            self._programs[program][1],
            number,
        )

    def program_fd(self, program: str) -> int:
        """Return the file descriptor of a loaded program, valid until `close`."""
        pointer = self._programs[program][1]
        return int(self.library.checked(f"use {program}", "bpf_program__fd", pointer))

    def attach(self, program: str) -> None:
        """Attach a loaded program; an iterator's link waits for `run_iterator`."""
        self.library.clear_log()
        self._links[program] = self.library.checked(
            f"attach {program}", "bpf_program__attach", self._programs[program][1]
        )

    def attach_function(self, program: str, path: str, offset: int, *, at_return: bool) -> int:
        """Attach a loaded program to a function of a file, for every process that uses it.

        Args:
            program: Of a ``uprobe`` or ``uretprobe`` section.
            path: Of the file; the probe belongs to the inode, the path need not stay.
            offset: Of the function's first instruction in the file.
            at_return: Whether it runs when the function returns, else when it is entered.

        Returns:
            A link for `release`.
        """
        self.library.clear_log()
        return int(
            self.library.checked(
                f"attach {program}",
                "bpf_program__attach_uprobe",
                self._programs[program][1],
                at_return,
                _EVERY_PROCESS,
                os.fsencode(path),
                offset,
            )
        )

    def release(self, link: int) -> None:
        """Detach what `attach_function` attached; once."""
        self.library.call("bpf_link__destroy", link)

    def run_iterator(self, program: str) -> bytes:
        """Run an attached ``iter/`` program over all objects now; return what it printed."""
        fd = self.library.checked(
            f"run {program}",
            "bpf_iter_create",
            self.library.call("bpf_link__fd", self._links[program]),
        )
        try:
            output = bytearray()
            while chunk := os.read(fd, 65536):
                output += chunk
            return bytes(output)
        except OSError as error:
            raise self.library.error(f"run {program}", error.errno or errno.EIO) from error
        finally:
            os.close(fd)

    def detach(self, *programs: str) -> None:
        """Detach these programs if they are attached, or every one; maps stay readable."""
        for program in programs or tuple(self._links):
            link = self._links.pop(program, None)
            if link is not None:
                self.library.call("bpf_link__destroy", link)

    def recursion_misses(self) -> dict[str, int]:
        """Return how often the kernel did not run a program as it was running there already.

        By program, loaded ones only, since their load. Kernels before 5.12 do not count; then the
        program is left out.

        Source: ``struct bpf_prog_info``; Linux commit 9ed9e9ba2337 (in v5.12).
        """
        misses = {}
        for name, (_, pointer) in self._programs.items():
            fd = self.library.call("bpf_program__fd", pointer)
            if fd < 0:
                continue
            info = ctypes.create_string_buffer(_PROGRAM_INFO_BYTES)
            length = ctypes.c_uint32(_PROGRAM_INFO_BYTES)
            self.library.checked(
                f"ask about {name}", "bpf_obj_get_info_by_fd", fd, info, ctypes.byref(length)
            )
            if length.value >= _RECURSION_MISSES + 8:  # how much of it this kernel knows
                (misses[name],) = struct.unpack_from("<Q", info, _RECURSION_MISSES)
        return misses

    def probe_misses(self) -> dict[str, int]:
        """Return how often the kernel did not come to run a program of a kprobe or kretprobe.

        That is while it is busy with another kprobe on that CPU, or if more calls of a function
        are under way than it can see return. By program, attached ones only, since they were
        attached. Kernels before 6.7 do not tell; then the program is left out.

        Source: ``struct bpf_link_info``; Linux's "bpf: Add missed value to kprobe perf link info"
        (in v6.7).
        """
        misses = {}
        for name, link in self._links.items():
            info = ctypes.create_string_buffer(_LINK_INFO_BYTES)
            length = ctypes.c_uint32(_LINK_INFO_BYTES)
            fd = self.library.call("bpf_link__fd", link)
            refused = self.library.call("bpf_obj_get_info_by_fd", fd, info, ctypes.byref(length))
            # Before 5.15 a kprobe has no link of the kernel's, but a file that tells nothing.
            if refused or length.value < _PROBE_MISSES + 8:
                continue
            (kind,), (event,) = (struct.unpack_from("<I", info, offset) for offset in (0, 16))
            if kind == _PERF_EVENT_LINK and event in _KPROBES:
                (misses[name],) = struct.unpack_from("<Q", info, _PROBE_MISSES)
        return misses

    def map_fd(self, map_name: str) -> int:
        """Return the file descriptor of a map, valid from `load` to `close`."""
        return int(self.library.checked(f"use map {map_name}", "bpf_map__fd", self._map(map_name)))

    def read_percpu(self, map_name: str, key: int) -> bytes:
        """Return the values of one key of a per-CPU array, one after the other.

        The kernel rounds each up to 8 bytes (``Documentation/bpf/map_array.rst``).
        """
        pointer = self._map(map_name)
        size = (int(self.library.call("bpf_map__value_size", pointer)) + 7) // 8 * 8
        cpus = self.library.checked("count CPUs", "libbpf_num_possible_cpus")
        values = ctypes.create_string_buffer(size * cpus)
        index = ctypes.c_uint32(key)
        # The system call wrapper returns -errno as well (libbpf 1.0 and newer).
        self.library.checked(
            f"read map {map_name}",
            "bpf_map_lookup_elem",
            self.map_fd(map_name),
            ctypes.byref(index),
            values,
        )
        return values.raw

    def update_map(self, map_name: str, key: bytes, value: bytes) -> None:
        """Set one value of a map, whether or not the key is there.

        Raises:
            BpfError: If the kernel has no room for it.
        """
        self.library.checked(
            f"write map {map_name}", "bpf_map_update_elem", self.map_fd(map_name), key, value, 0
        )

    def delete_from_map(self, map_name: str, key: bytes) -> bool:
        """Delete a key of a map; whether it was there."""
        deleted = self.library.call("bpf_map_delete_elem", self.map_fd(map_name), key)
        return int(deleted) == 0

    def close(self) -> None:
        """Detach, unload and free everything; safe to repeat."""
        self.detach()
        if self._handle is not None:
            self.library.call("bpf_object__close", self._handle)
            self._handle = None

    def _map(self, name: str) -> int:
        return int(
            self.library.checked(
                f"find map {name}", "bpf_object__find_map_by_name", self._handle, name.encode()
            )
        )
