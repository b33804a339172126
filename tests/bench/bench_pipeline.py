"""The whole road: a recording replayed at full speed through every part of `podwire local`.

Real processes: collector (replaying), embedded broker, stream worker, sink with its engine. What is
printed is the CPU time of each process for all events, start-up taken off.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from collector.recording import Recorder
from deploy.local.machine import Machine
from deploy.local.settings import LocalOptions
from schemas.events import encode_batch
from tests.bench.bench_streams import example_batch
from tests.bench.measure import Row
from tests.support.kafka import free_port

BATCHES = 120
CONNECTIONS = 1_000
TRANSFERS = 60_000
PARTS = ("collector", "broker", "streams", "sink")


def run() -> list[Row]:
    events = BATCHES * TRANSFERS
    with tempfile.TemporaryDirectory() as directory:
        recording = Path(directory) / "recording"
        size = _record(recording)
        machine = Machine(
            LocalOptions(
                data=Path(directory) / "data",
                replay=recording,
                replay_pace="fast",
                http_port=free_port(),
                base={"streams": {"host_processes": "process"}},
            )
        )
        watch = _Watch(machine)
        machine.start()
        watch.start()
        begin = time.monotonic()
        while not machine.is_done:
            machine.check()
            time.sleep(0.05)
        problems = machine.stop()
        wall_s = time.monotonic() - begin
        cpu = watch.stop()
    assert not problems, problems
    rows = [Row(f"{part}", events, cpu[part], "event") for part in PARTS]
    total = Row("all processes", events, sum(cpu.values()), "event")
    total.note = f"one run: {events:,} events of {size / events:.0f} bytes, wall {wall_s:.1f} s"
    return [*rows, total]


def _record(path: Path) -> int:
    recorder = Recorder(path)
    batch = example_batch(CONNECTIONS, TRANSFERS, 0)
    batch.header.run_id = "bench"
    start_ns = int(batch.transfers.end_ns[0])
    for sequence in range(BATCHES):
        header = batch.header
        header.sequence = sequence
        header.first_event_ns = start_ns
        header.last_event_ns = header.watermark_ns = start_ns + sequence * 100_000_000
        header.final = sequence == BATCHES - 1
        batch.transfers.end_ns = np.full(TRANSFERS, header.last_event_ns, "<u8")
        recorder.write(encode_batch(batch))
    recorder.close()
    return path.stat().st_size


class _Watch:
    # CPU seconds of each part, from /proc, as they were last seen; start-up is taken off.
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> dict[str, float]:
        self._stop.set()
        self._thread.join()
        return {part: max(self._last[part] - self._first[part], 0.0) for part in self._last}

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            moved = self._machine.figures.batches > 0
            for part in PARTS:
                pid = self._machine.supervisor.parts[part].pid
                seconds = _cpu_seconds(pid) if pid is not None else None
                if seconds is None:
                    continue
                self._last[part] = max(seconds, self._last.get(part, 0.0))
                if not moved:
                    self._first[part] = seconds
                self._first.setdefault(part, 0.0)


def _cpu_seconds(pid: int) -> float | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
