"""A running set of kernel programs whose records a test can ask for by port."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from collector.abi import (
    CONNECTION_RECORD,
    COUNTS,
    DROP_RECORD,
    PROCESS_RECORD,
    TRANSFER_RECORD,
    Call,
    ConnectionEvent,
    Direction,
    Kind,
    PayloadFlag,
    ReadFigure,
    Role,
    WriteFigure,
)
from collector.attach import attach
from collector.drops import drop_reasons
from collector.figures import measured
from collector.libbpf import load_library
from collector.payload_ring import Pieces, create_payload_ring
from collector.ringbuf import create_ring
from collector.stages import attach_stages
from collector.watching import KernelScope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from collector.bpf_object import BpfObject

    Figure = ReadFigure | WriteFigure

UNMEASURED = (1 << 64) - 1
UNMEASURED_FIGURE = (1 << 32) - 1
OBJECTS = Path("bpf/objects") / os.uname().machine
OBJECT = OBJECTS / "podwire.bpf.o"
BY_DESCRIPTOR = OBJECTS / "podwire-fd.bpf.o"
STAGES = OBJECTS / "podwire-stages.bpf.o"
SWITCHES = ("podwire_stages", "podwire_payloads", "podwire_tls")
"""Constants without which most of the programs is dead code, which costs the verifier nothing."""
RECORDS = {
    "connections": CONNECTION_RECORD,
    "transfers": TRANSFER_RECORD,
    "processes": PROCESS_RECORD,
    "drops": DROP_RECORD,
}

TIERS: dict[str, tuple[str, ...]] = {
    "tracepoint": (),
    "fentry": ("fentry",),
    "kprobe": ("kprobe",),
}
"""By name, which twins of the functions' programs may be used beside the tracepoints."""

R, W = ReadFigure, WriteFigure
BY_TRACEPOINTS = frozenset(
    each.name
    for each in (
        R.READ_PACKET_COUNT,
        R.READ_PACKET_SIZE,
        R.READ_PACKET_TO_QUEUE_DURATION,
        R.READ_PACKET_FROM_QUEUE_DURATION,
        R.READ_CALL_DURATION,
        R.READ_UNATTRIBUTED_DURATION,
        W.WRITE_PACKET_COUNT,
        W.WRITE_PACKET_SIZE,
        W.WRITE_RETRANSMIT_PACKET_COUNT,
        W.WRITE_LOST_PACKET_COUNT,
        W.WRITE_L2_DURATION,
        W.WRITE_L2_ENTER_QUEUE_COUNT,
        W.WRITE_L2_READY_SEND_DURATION,
        W.WRITE_L2_NETDEVICE_SEND_DURATION,
    )
)
"""What is measured where no function can be hooked; everywhere else, everything is."""


class Figures:
    """What the records of one end and direction tell of the layers below."""

    def __init__(
        self,
        records: NDArray[Any],
        direction: Direction,
        measured: frozenset[str],
        lost: Mapping[str, int] | None = None,
    ) -> None:
        self.records = records
        self.direction = direction
        self.measured = measured
        self.lost = dict(lost or {})
        """Lost packets by reason; not in the records."""

    def __contains__(self, figure: Figure) -> bool:
        """Whether the hooks of the figure are attached."""
        return figure.name in self.measured

    def __getitem__(self, figure: Figure) -> int:
        """The sum of a measured figure."""
        told = int(self.column(figure).sum())
        return told + sum(self.lost.values()) if figure is W.WRITE_LOST_PACKET_COUNT else told

    def column(self, figure: Figure) -> NDArray[np.int64]:
        """A measured figure by record, 0 where the record does not measure it."""
        kind = ReadFigure if self.direction == Direction.READ else WriteFigure
        if figure not in self or not isinstance(figure, kind):
            raise KeyError(figure)
        told = self.records["figures"][:, figure].astype(np.int64)
        told[told == UNMEASURED_FIGURE] = 0
        return np.asarray(told, np.int64)


PARTS: tuple[tuple[Figure, tuple[Figure, ...]], ...] = (
    (W.WRITE_L4_DURATION, (W.WRITE_L3_DURATION,)),
    (
        W.WRITE_L3_DURATION,
        (W.WRITE_L3_LOCAL_DURATION, W.WRITE_L3_OUTPUT_DURATION, W.WRITE_L2_DURATION),
    ),
    (
        W.WRITE_L3_DURATION,
        (W.WRITE_NETFILTER_DURATION, W.RESOLVE_MAC_DURATION, W.WRITE_L2_DURATION),
    ),
    (R.READ_L3_DURATION, (R.READ_NETFILTER_DURATION,)),
)
"""A duration, and others that lie within it beside each other."""
WHOLES: tuple[tuple[Figure, tuple[Figure, ...]], ...] = (
    (
        W.WRITE_L2_DURATION,
        (W.WRITE_L2_READY_SEND_DURATION, W.WRITE_L2_NETDEVICE_SEND_DURATION),
    ),
    (R.READ_L3_DURATION, (R.READ_L3_RECV_DURATION, R.READ_L3_LOCAL_DURATION)),
    (
        R.READ_PACKET_TO_QUEUE_DURATION,
        (R.READ_DEVICE_TO_IP_DURATION, R.READ_L3_DURATION, R.READ_IP_TO_QUEUE_DURATION),
    ),
)
"""A duration, and others that make it up entirely."""


def check_sums(found: Figures) -> None:
    """No part is greater than its whole, over all records."""
    for whole, parts in PARTS:
        if whole in found and isinstance(whole, _kind(found)):
            told = sum(found[part] for part in parts if part in found)
            assert found[whole] >= told, (whole, parts)
    for whole, parts in WHOLES:
        if all(each in found for each in (whole, *parts)) and isinstance(whole, _kind(found)):
            assert found[whole] == sum(found[part] for part in parts), (whole, parts)
    _check_calls(found)


def check_each(found: Figures) -> None:
    """No part is greater than its whole in any record; true while no packet waits anywhere."""
    for whole, parts in PARTS:
        if whole in found and isinstance(whole, _kind(found)):
            told = sum(found.column(part) for part in parts if part in found)
            assert (found.column(whole) >= told).all(), (whole, parts)
    for whole, parts in WHOLES:
        if all(each in found for each in (whole, *parts)) and isinstance(whole, _kind(found)):
            assert (found.column(whole) == sum(map(found.column, parts))).all(), (whole, parts)


def _check_calls(found: Figures) -> None:
    calls = found.records[found.records["duration_ns"] < UNMEASURED_FIGURE - 1]
    durations = calls["duration_ns"].astype(np.int64)
    of_calls = Figures(calls, found.direction, found.measured)
    if found.direction == Direction.READ:
        if R.READ_CALL_DURATION in found:
            told = of_calls.column(R.READ_CALL_DURATION)
            told = told + of_calls.column(R.READ_UNATTRIBUTED_DURATION)
            known = calls["figures"][:, R.READ_CALL_DURATION] != UNMEASURED_FIGURE
            assert (told == durations)[known].all()
    elif W.WRITE_UNATTRIBUTED_DURATION in found:
        assert (of_calls.column(W.WRITE_UNATTRIBUTED_DURATION) <= durations).all()


def _kind(found: Figures) -> type[ReadFigure] | type[WriteFigure]:
    return ReadFigure if found.direction == Direction.READ else WriteFigure


def needs(watch: Watch, *figures: Figure) -> None:
    """Skip the test on a tier that does not measure these."""
    missing = [figure.name for figure in figures if figure.name not in watch.measured]
    if missing:
        pytest.skip(f"{', '.join(missing)} not measured by {watch.tier}s")


class Watch:
    """Programs attached; `drain` after the traffic, then ask."""

    def __init__(
        self,
        rings: Mapping[str, int] | None = None,
        constants: Mapping[str, int] | None = None,
        iterate: bool = False,
        path: Path = OBJECT,
        tier: str = "",
        stages: Path = STAGES,
    ) -> None:
        self.path = path
        self.tier = tier
        sizes = {"connections": 4 << 20, "transfers": 16 << 20, "processes": 1 << 20}
        sizes |= {"payloads": 16 << 20, "drops": 1 << 16} | dict(rings or {})
        given = {"podwire_id_base": 1 << 40} | dict(constants or {})
        if tier:
            given["podwire_stages"] = 1
        self.object, self.hooks = attach(path, given, sizes, core=())
        self.scope = KernelScope(self.object)
        self.stages: BpfObject | None = None
        if tier:
            self.stages, hooks = attach_stages(self.object, stages, TIERS[tier])
            self.hooks += hooks
        names = measured(self.hooks)
        self.measured = frozenset(each.upper() for each in names)
        self.rings = {
            name: create_ring(
                name, self.object.map_fd(name), sizes[name], RECORDS[name], load_library()
            )
            for name in RECORDS
        }
        self.payloads = create_payload_ring(
            "payloads", self.object.map_fd("payloads"), sizes["payloads"], load_library()
        )
        self.pieces: list[Pieces] = []
        self.seen: dict[str, list[NDArray[Any]]] = {name: [] for name in RECORDS}
        if iterate:
            self.object.run_iterator("find_listeners")
            self.object.run_iterator("find_sockets")

    def drain(self) -> None:
        """Take what is in the rings."""
        for name, ring in self.rings.items():
            self.seen[name].append(ring.drain())
        self.pieces.append(self.payloads.drain())

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
        found = self._of_end(port, role, direction)
        return found[found["call"] != Call.NONE if call is None else found["call"] == call]

    def _of_end(self, port: int, role: Role, direction: Direction) -> NDArray[Any]:
        told = self.connections(port)
        ids = told["connection_id"][told["role"] == role]
        found = self.records("transfers")
        return found[np.isin(found["connection_id"], ids) & (found["direction"] == direction)]

    def figures(self, port: int, role: Role, direction: Direction) -> Figures:
        """What the transfer records of one end of a port tell of the layers below."""
        lost = self.lost(port, role) if direction == Direction.WRITE else {}
        return Figures(self._of_end(port, role, direction), direction, self.measured, lost)

    def lost(self, port: int, role: Role) -> dict[str, int]:
        """Packets that one end of a port has lost for a reason, by its name."""
        names = drop_reasons()
        told = self.connections(port)
        found = self.records("drops")
        found = found[np.isin(found["connection_id"], told["connection_id"][told["role"] == role])]
        lost: dict[str, int] = {}
        for number, packets in zip(
            found["reason"].tolist(), found["packets"].tolist(), strict=True
        ):
            assert packets > 0
            name = names.get(number, str(number))
            lost[name] = lost.get(name, 0) + packets
        return lost

    def moved(self, port: int, role: Role, direction: Direction) -> int:
        """Bytes moved by one end of a port."""
        return int(self.transfers(port, role, direction)["size"].sum(dtype=np.uint64))

    def pieces_of(
        self, port: int, role: Role, direction: Direction
    ) -> list[tuple[int, int, bytes]]:
        """Position, size and captured bytes of the payload of one end of a port, in order."""
        told = self.connections(port)
        ids = told["connection_id"][told["role"] == role]
        return [
            (int(record["position"]), int(record["size"]), data)
            for pieces in self.pieces
            for record, data in zip(pieces.records, pieces.captured(), strict=True)
            if record["connection_id"] in ids and record["direction"] == direction
            if not record["flags"] & PayloadFlag.HELLO
        ]

    def counts(self, kind: Kind) -> dict[str, int]:
        """The counters of a kind, summed over CPUs."""
        each = np.frombuffer(self.object.read_percpu("counts", kind), COUNTS)
        return {name: int(each[name].sum()) for name in COUNTS.names or ()}

    def keys(self, name: str, size: int = 8) -> set[bytes]:
        """Keys of a hash map, of so many bytes each."""
        return set(map_keys(self.object.map_fd(name), size))

    def close(self) -> None:
        """Detach and unmap."""
        for ring in self.rings.values():
            ring.close()
        self.payloads.close()
        if self.stages is not None:
            self.stages.close()
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
    objects = [each for each in (watch.object, watch.stages) if each is not None]
    for program, pointer in (each for one in objects for each in one._programs.values()):
        fd = functions.bpf_program__fd(pointer)
        if fd < 0:
            continue
        info = _program_info(fd)
        if not info:
            continue
        # run_time_ns at 192, run_cnt, recursion_misses, verified_insns
        run_time, runs, misses, verified = struct.unpack_from("<QQQI", info, 192)
        figures[program.name] = {
            "verified": verified,
            "missed": misses,
            "runs": runs,
            "ns": run_time,
            "jited": struct.unpack_from("<I", info, 16)[0],
        }
    return figures


def native_code(fd: int) -> bytes:
    """What the kernel has made of a loaded program."""
    (size,) = struct.unpack_from("<I", _program_info(fd), 16)  # jited_prog_len
    code = ctypes.create_string_buffer(size)
    assert _program_info(fd, code)
    return code.raw


def _program_info(fd: int, code: ctypes.Array[ctypes.c_char] | None = None) -> bytes:
    # struct bpf_prog_info; empty if the kernel refuses.
    info = ctypes.create_string_buffer(232)
    if code is not None:
        struct.pack_into("<I4xQ", info, 16, len(code), ctypes.addressof(code))  # jited_prog_insns
    attributes = struct.pack("<IIQ", fd, len(info), ctypes.addressof(info))
    return b"" if bpf(15, attributes + bytes(96)) else info.raw  # BPF_OBJ_GET_INFO_BY_FD
