"""A collector whose batches go to a file: ``python -m tests.http.collector_process FILE RING``.

``ready`` goes to standard output once it watches; SIGTERM ends it in order.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from collector.batches import Run
from collector.config import CollectorConfig
from collector.containers import ContainerResolver, find_cgroup2_mount
from collector.pipeline import Pipeline
from collector.recording import Recorder
from collector.source import KernelSource
from schemas.clock import SystemClock
from schemas.telemetry import Health

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.ledger import Entry

_RING_BYTES = 64 << 20


class Nowhere:
    """A sender that takes all: the recording has it."""

    def offer(self, key: str, message: bytes, ledger: Sequence[Entry]) -> bool:
        return True

    def poll(self) -> None:
        return

    def take_failed(self) -> list[Entry]:
        return []

    def flush(self, timeout_s: float) -> int:
        return 0

    def abandon(self) -> None:
        return


def main() -> None:
    """Watch until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    config = CollectorConfig(
        publish_interval_s=0.25,
        stages="off",
        transfer_ring_bytes=_RING_BYTES,
        payload_ring_bytes=int(sys.argv[2]),
    )
    source = KernelSource(config)
    recorder = Recorder(Path(sys.argv[1]))
    clock = SystemClock()
    proc = Path("/proc")
    mount = find_cgroup2_mount(Path("/proc/self/mounts").read_text())
    resolver = ContainerResolver(proc, mount, clock)
    run = Run("node-1", "boot", "run-1")
    pipeline = Pipeline(config, run, source, Nowhere(), resolver, clock, Health(), recorder)
    print("ready", flush=True)
    try:
        pipeline.run(stop)
    finally:
        recorder.close()
        source.close()


if __name__ == "__main__":
    main()
