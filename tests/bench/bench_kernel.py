"""What the kernel programs add to the traced application.

The calls are timed in their own process by its CPU time, with and without the programs in turn;
the smallest of several runs counts, because whatever else runs on the machine only ever adds.
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
from collector.libbpf import BpfObject, load_library
from collector.ringbuf import create_ring
from tests.bench.measure import Row
from tests.bpf.harness import Watch, program_figures
from tests.requirements import missing

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS, ROUNDS, SLOTS = 100_000, 5, 1024
SOURCES = Path(__file__).resolve().parent.parent / "bpf"
STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")
WHAT = ("TCP write or read over loopback", "write to a file", "any other call")


def run() -> list[Row]:
    """Whole calls, the ring alone, and each program."""
    reason = missing("bpf")
    if reason:
        return [Row(f"skipped: {reason}", 1, 1e-9)]
    with tempfile.TemporaryDirectory() as scratch:
        return [*_whole_calls(Path(scratch)), _submit_alone(Path(scratch)), *_programs()]


def _whole_calls(scratch: Path) -> list[Row]:
    subprocess.run(["cc", "-O2", "-o", scratch / "calls", SOURCES / "calls.c"], check=True)
    plain, traced = [], []
    for _ in range(ROUNDS):
        plain.append(_time_calls(scratch))
        watch = Watch()
        _drained(watch.drain, lambda: traced.append(_time_calls(scratch)))
        watch.close()
    rows = []
    for what, without, within in zip(WHAT, np.min(plain, 0), np.min(traced, 0), strict=True):
        note = f"{without:.0f} ns without, {within - without:.0f} ns added"
        rows.append(Row(f"{what}, traced", CALLS, within * CALLS / 1e9, "call", note))
    return rows


def _time_calls(scratch: Path) -> list[float]:
    done = subprocess.run([scratch / "calls", str(CALLS)], check=True, capture_output=True)
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


def _submit_alone(scratch: Path) -> Row:
    target = {"x86_64": "x86", "aarch64": "arm64"}[os.uname().machine]
    flags = ["-target", "bpf", f"-D__TARGET_ARCH_{target}", "-O2", "-g", "-mcpu=v3", "-I."]
    built = scratch / "submit.o"
    subprocess.run(
        ["clang", *flags, "-c", SOURCES / "submit.bpf.c", "-o", built],
        check=True,
        cwd=SOURCES.parent.parent,
    )
    timed = BpfObject(built)
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
        [np.frombuffer(timed.read_percpu("times", slot), np.uint64).sum() for slot in range(2048)]
    )
    timed.close()
    both, clock = (_median(counted[at : at + SLOTS]) for at in (0, SLOTS))
    note = f"median of {CALLS}; a clock read of {clock} ns is taken off"
    return Row("reserve, fill, submit a transfer", 1, max(both - clock, 1) / 1e9, note=note)


def _median(histogram: np.ndarray) -> int:
    return int(np.searchsorted(np.cumsum(histogram), histogram.sum() / 2))


def _programs() -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["cc", "-O2", "-o", f"{scratch}/load", SOURCES / "load.c"], check=True)
        before, watch = STATISTICS.read_text(), Watch()
        try:
            STATISTICS.write_text("1")
            load = [f"{scratch}/load", "20000", "64"]
            _drained(
                watch.drain, lambda: subprocess.run(load, check=True, stdout=subprocess.DEVNULL)
            )
            figures = program_figures(watch)
        finally:
            STATISTICS.write_text(before)
            watch.close()
    note = "run_time_ns / run_cnt over 20,000 short connections"
    return [
        Row(f"program {name}", each["runs"], each["ns"] / 1e9, "run", note)
        for name, each in figures.items()
        if each["runs"] > 100
    ]
