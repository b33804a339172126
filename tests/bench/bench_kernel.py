"""What the kernel programs add to the traced application.

The calls are timed in their own process by its CPU time, with and without the programs in turn:
the core alone, and with the stages hooked in every way that this kernel allows; where it has no
fentry, what the programs at functions do is also run at tracepoints. Each run is compared with
those right before and after it; what is told is the median of these differences.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from collector.abi import TRANSFER_RECORD
from collector.bpf_object import BpfObject
from collector.libbpf import load_library
from collector.ringbuf import create_ring
from tests.bench.measure import Row
from tests.bpf.conftest import refusal
from tests.bpf.harness import BY_DESCRIPTOR, OBJECT, TIERS, Watch, program_figures
from tests.requirements import missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CALLS, EXCHANGES, CONNECTIONS, ROUNDS, SLOTS = 100_000, 20_000, 20_000, 9, 1024
SOURCES = Path(__file__).resolve().parent.parent / "bpf"
STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")
MESSAGE = "GET /some/path HTTP/1.1"
WHAT = ("TCP write or read over loopback", "write to a file", "any other call")


def run() -> list[Row]:
    """Whole calls, the ring alone, and each program."""
    reason = missing("bpf")
    if reason:
        return [Row(f"skipped: {reason}", 1, 1e-9)]
    kinds: dict[str, _Switch] = {}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            kinds |= _open_kinds(Path(scratch))
            for name in ("calls", "load"):
                source = SOURCES / f"{name}.c"
                subprocess.run(["cc", "-O2", "-o", f"{scratch}/{name}", source], check=True)
            return [
                *_whole_calls(Path(scratch), kinds),
                *_submit_alone(Path(scratch)),
                *_programs(Path(scratch), kinds),
            ]
    finally:
        for switch in kinds.values():
            switch.watch.close()


class _Switch:
    """Loaded programs that are attached only for a while; `first` is what the bytes begin with."""

    def __init__(self, watch: Watch, first: str = "") -> None:
        self.watch = watch
        self.first = first
        objects = [each for each in (watch.object, watch.stages) if each is not None]
        self._attached = [(each, tuple(each._links)) for each in objects]
        self._detach()

    def during(self, body: Callable[[], object]) -> None:
        for each, programs in self._attached:
            for program in programs:
                each.attach(program)
        try:
            _drained(self.watch.drain, body)
        finally:
            self._detach()
        for records in (*self.watch.seen.values(), self.watch.pieces):
            records.clear()

    def _detach(self) -> None:
        for each, _ in self._attached:
            each.detach()


def _open_kinds(scratch: Path) -> Iterator[tuple[str, _Switch]]:
    """What there is to compare here: the core alone, and with the stages hooked in every way."""
    best = OBJECT if refusal(OBJECT) is None else BY_DESCRIPTOR
    yield "core only", _Switch(Watch(path=best))
    capturing = {"podwire_payloads": 1}
    yield "core, no HTTP found", _Switch(Watch(path=best, constants=capturing))
    yield "core, HTTP captured", _Switch(Watch(path=best, constants=capturing), MESSAGE)
    for tier, twins in TIERS.items():
        watch = Watch(path=best, tier=tier)
        if not twins or any(hook.twin and hook.attached for hook in watch.hooks):
            yield f"{tier} stages", _Switch(watch)
            continue
        watch.close()
        if tier == "fentry":
            bodies = _build(scratch, "bodies")
            yield "all stages, at tracepoints", _Switch(Watch(path=best, tier=tier, stages=bodies))


def _whole_calls(scratch: Path, kinds: Mapping[str, _Switch]) -> list[Row]:
    # Without, with, without, with: what else runs on the machine changes slower than that.
    order = [*kinds] * ROUNDS
    traced: list[list[float]] = []
    plain = [_time_calls(scratch)]
    for kind in order:
        first = kinds[kind].first
        kinds[kind].during(lambda first=first: traced.append(_time_calls(scratch, first)))  # type: ignore[misc]
        plain.append(_time_calls(scratch))
    within, around = np.array(traced), np.array(plain)
    before = (around[:-1] + around[1:]) / 2
    rows = []
    for at, what in enumerate(WHAT):
        without = float(np.median(around[:, at]))
        rows.append(Row(f"{what}, not traced", 1, without / 1e9, "call"))
        for kind in kinds:
            mine = [each == kind for each in order]
            times, bases = within[mine, at], before[mine, at]
            least = times.min() - around[:, at].min()
            note = (
                f"x {np.median(times / bases):.2f}: {np.median(times - bases):.0f} ns added; "
                f"{least:.0f} between the least of each"
            )
            rows.append(Row(f"{what}, {kind}", 1, float(np.median(times)) / 1e9, "call", note))
    return rows


def _time_calls(scratch: Path, first: str = "") -> list[float]:
    command = [scratch / "calls", str(EXCHANGES), str(EXCHANGES), *([first] if first else [])]
    done = subprocess.run(command, check=True, capture_output=True)
    return [float(text) for text in done.stdout.split()]


def _drained(drain: Callable[[], object], body: Callable[[], object]) -> None:
    # As the collector does: every 10 ms.
    stop = threading.Event()
    thread = threading.Thread(target=body)
    thread.start()
    while thread.is_alive():
        stop.wait(0.01)
        drain()
    thread.join()


def _submit_alone(scratch: Path) -> list[Row]:
    built = _build(scratch, "submit")
    return [_submit(built, name, stages) for stages, name in enumerate(("the core's", "all"))]


def _build(scratch: Path, name: str) -> Path:
    target = {"x86_64": "x86", "aarch64": "arm64"}[os.uname().machine]
    built = scratch / f"{name}.o"
    flags = ["-target", "bpf", f"-D__TARGET_ARCH_{target}", "-O2", "-g", "-mcpu=v3", "-I."]
    command = ["clang", *flags, "-c", SOURCES / f"{name}.bpf.c", "-o", built]
    subprocess.run(command, check=True, cwd=SOURCES.parent.parent)
    return built


def _submit(built: Path, figures: str, stages: int) -> Row:
    timed = BpfObject(built)
    timed.set_rodata({"podwire_stages": stages})
    timed.load()
    size = timed.max_entries("transfers")
    ring = create_ring(
        "transfers", timed.map_fd("transfers"), size, TRANSFER_RECORD, load_library()
    )
    timed.attach("time_submit")
    _drained(ring.drain, lambda: [os.getppid() for _ in range(CALLS)])
    timed.detach()
    ring.close()
    counted = np.array(
        [
            np.frombuffer(timed.read_percpu("times", slot), np.uint64).sum()
            for slot in range(2 * SLOTS)
        ]
    )
    timed.close()
    both, clock = (_median(counted[at : at + SLOTS]) for at in (0, SLOTS))
    note = f"median of {CALLS}; a clock read of {clock} ns is taken off"
    name = f"reserve, fill, submit a transfer with {figures} figures"
    return Row(name, 1, max(both - clock, 1) / 1e9, note=note)


def _median(histogram: np.ndarray) -> int:
    return int(np.searchsorted(np.cumsum(histogram), histogram.sum() / 2))


def _programs(scratch: Path, kinds: Mapping[str, _Switch]) -> list[Row]:
    """What the kernel counts of every program; its two readings of the clock are part of it."""
    before = STATISTICS.read_text()
    try:
        STATISTICS.write_text("1")
        rows = []
        for kind, switch in kinds.items():
            exchanges = ("calls", str(EXCHANGES), "0", *([switch.first] if switch.first else []))
            rows += _told(switch, kind, scratch, exchanges, EXCHANGES * 4, "call")
        connections = ("load", str(CONNECTIONS), "64")
        for kind, switch in list(kinds.items())[:1]:
            rows += _told(switch, kind, scratch, connections, CONNECTIONS, "connection")
        return rows
    finally:
        STATISTICS.write_text(before)


def _told(
    switch: _Switch, kind: str, scratch: Path, command: tuple[str, ...], events: int, event: str
) -> list[Row]:
    earlier = program_figures(switch.watch)
    program, *arguments = command
    switch.during(
        lambda: subprocess.run(
            [scratch / program, *arguments], check=True, stdout=subprocess.DEVNULL
        )
    )
    rows, total = [], 0
    for name, each in program_figures(switch.watch).items():
        runs, ns = (each[of] - earlier[name][of] for of in ("runs", "ns"))
        if runs * 100 < events:
            continue
        total += ns
        note = f"{runs / events:.2f} runs, {ns / events:.0f} ns a {event}"
        rows.append(Row(f"{kind}: {name}", runs, max(ns, 1) / 1e9, "run", note))
    rows.sort(key=lambda row: -row.cpu_s)
    return [*rows, Row(f"{kind}: all programs", events, max(total, 1) / 1e9, event)]
