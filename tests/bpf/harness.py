"""A running set of kernel programs whose records a test can ask for by port."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collector.abi import (
    CONNECTION_RECORD,
    COUNTS,
    PROCESS_RECORD,
    TRANSFER_RECORD,
    Call,
    ConnectionEvent,
    Direction,
    Kind,
    Role,
)
from collector.attach import attach
from collector.libbpf import load_library
from collector.ringbuf import create_ring

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

UNMEASURED = (1 << 64) - 1
OBJECTS = Path("bpf/objects") / os.uname().machine
OBJECT = OBJECTS / "podwire.bpf.o"
BY_DESCRIPTOR = OBJECTS / "podwire-fd.bpf.o"
RECORDS = {
    "connections": CONNECTION_RECORD,
    "transfers": TRANSFER_RECORD,
    "processes": PROCESS_RECORD,
}


class Watch:
    """Programs attached; `drain` after the traffic, then ask."""

    def __init__(
        self,
        rings: Mapping[str, int] | None = None,
        constants: Mapping[str, int] | None = None,
        iterate: bool = False,
        path: Path = OBJECT,
    ) -> None:
        self.path = path
        sizes = {"connections": 4 << 20, "transfers": 16 << 20, "processes": 1 << 20}
        sizes |= dict(rings or {})
        given = {"podwire_id_base": 1 << 40} | dict(constants or {})
        self.object, self.hooks = attach(path, given, sizes, core=())
        self.rings = {
            name: create_ring(
                name, self.object.map_fd(name), sizes[name], RECORDS[name], load_library()
            )
            for name in RECORDS
        }
        self.seen: dict[str, list[NDArray[Any]]] = {name: [] for name in RECORDS}
        if iterate:
            self.object.run_iterator("find_listeners")
            self.object.run_iterator("find_sockets")

    def drain(self) -> None:
        """Take what is in the rings."""
        for name, ring in self.rings.items():
            self.seen[name].append(ring.drain())

    def records(self, name: str) -> NDArray[Any]:
        """All records drained from one ring."""
        return np.concatenate(self.seen[name])

    def connections(self, port: int, event: ConnectionEvent | None = None) -> NDArray[Any]:
        """Connection records with the port at either end."""
        found = self.records("connections")
        mask = (found["local_port"] == port) | (found["remote_port"] == port)
        if event is not None:
            mask &= found["event"] == event
        return found[mask]

    def count(self, port: int, event: ConnectionEvent, role: Role | None = None) -> int:
        """How many connection records of an event and role there are for a port."""
        found = self.connections(port, event)
        return len(found) if role is None else int((found["role"] == role).sum())

    def transfers(
        self, port: int, role: Role, direction: Direction, call: Call | None = None
    ) -> NDArray[Any]:
        """Transfer records of the connections of one end of a port; `Call.NONE` only if asked."""
        told = self.connections(port)
        ids = told["connection_id"][told["role"] == role]
        found = self.records("transfers")
        mask = np.isin(found["connection_id"], ids) & (found["direction"] == direction)
        mask &= found["call"] != Call.NONE if call is None else found["call"] == call
        return found[mask]

    def moved(self, port: int, role: Role, direction: Direction) -> int:
        """Bytes moved by one end of a port."""
        return int(self.transfers(port, role, direction)["size"].sum(dtype=np.uint64))

    def counts(self, kind: Kind) -> dict[str, int]:
        """The counters of a kind, summed over CPUs."""
        each = np.frombuffer(self.object.read_percpu("counts", kind), COUNTS)
        return {name: int(each[name].sum()) for name in COUNTS.names or ()}

    def keys(self, name: str) -> set[bytes]:
        """Keys of a hash map."""
        return set(map_keys(self.object.map_fd(name)))

    def close(self) -> None:
        """Detach and unmap."""
        for ring in self.rings.values():
            ring.close()
        self.object.close()


def bpf(command: int, attributes: bytes) -> int:
    """Call ``bpf(2)``."""
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return int(libc.syscall(number, command, buffer, len(attributes)))


def map_keys(fd: int, key_size: int = 8) -> list[bytes]:
    """Keys of a hash map (``BPF_MAP_GET_NEXT_KEY``)."""
    key, following = ctypes.create_string_buffer(key_size), ctypes.create_string_buffer(key_size)
    found: list[bytes] = []
    previous = 0
    while True:
        attributes = struct.pack("<I4xQQ", fd, previous, ctypes.addressof(following))
        if bpf(4, attributes + bytes(96)) != 0:
            return found
        found.append(following.raw)
        ctypes.memmove(key, following, key_size)
        previous = ctypes.addressof(key)


def map_values(fd: int, value_bytes: int = 512) -> list[bytes]:
    """Values of a hash map whose keys are 8 bytes, none longer than said."""
    found = []
    value = ctypes.create_string_buffer(value_bytes)
    for key in map_keys(fd):
        held = ctypes.create_string_buffer(key, len(key))
        pointers = (ctypes.addressof(held), ctypes.addressof(value))
        if bpf(1, struct.pack("<I4xQQ", fd, *pointers) + bytes(96)) == 0:  # gone meanwhile
            found.append(value.raw)
    return found


def program_figures(watch: Watch) -> dict[str, dict[str, int]]:
    """Per program: verified instructions, missed recursions, runs and nanoseconds."""
    figures = {}
    functions = ctypes.CDLL("libbpf.so.1")
    functions.bpf_program__fd.restype = ctypes.c_int
    functions.bpf_program__fd.argtypes = (ctypes.c_void_p,)
    for program, pointer in watch.object._programs.values():
        fd = functions.bpf_program__fd(pointer)
        if fd < 0:
            continue
        info = ctypes.create_string_buffer(232)
        attributes = struct.pack("<IIQ", fd, len(info), ctypes.addressof(info))
        if bpf(15, attributes + bytes(96)) != 0:  # BPF_OBJ_GET_INFO_BY_FD
            continue
        # struct bpf_prog_info: run_time_ns at 192, run_cnt, recursion_misses, verified_insns
        run_time, runs, misses, verified = struct.unpack_from("<QQQI", info, 192)
        figures[program.name] = {
            "verified": verified,
            "missed": misses,
            "runs": runs,
            "ns": run_time,
            "jited": struct.unpack_from("<I", info, 16)[0],
        }
    return figures
