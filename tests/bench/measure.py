"""How the benchmarks measure: CPU time of this process, median of several runs, after a warm-up.

The machines are shared, so wall time says little and single runs say less. What is printed is
CPU time per event and its inverse, events per second per core.
"""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = 5
PACKAGES = ("numpy", "protobuf", "confluent-kafka", "faust-streaming", "clickhouse-connect", "chdb")


@dataclass(slots=True)
class Row:
    """One line of the report: what was done, how often, and the CPU time it took."""

    name: str
    events: int
    cpu_s: float
    unit: str = "record"
    note: str = ""
    spread: tuple[float, float] = field(default=(0.0, 0.0))

    @property
    def ns_per_event(self) -> float:
        return self.cpu_s / self.events * 1e9

    @property
    def per_second(self) -> float:
        return self.events / self.cpu_s


def measure(
    name: str,
    events: int,
    body: Callable[[], object],
    *,
    unit: str = "record",
    note: str = "",
    prepare: Callable[[], object] | None = None,
) -> Row:
    """Run the body several times and return the median of its CPU time (all threads)."""
    times = []
    for run in range(RUNS + 1):
        if prepare is not None:
            prepare()
        before = time.process_time()
        body()
        if run:
            times.append(time.process_time() - before)
    return Row(name, events, statistics.median(times), unit, note, (min(times), max(times)))


def machine() -> list[str]:
    """Describe the machine and the versions, for the head of the report."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = sum(
        line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines()
    )
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [
        f"{model}, {cores} cores, Linux {platform.release()}, Python {platform.python_version()}",
        versions,
    ]
