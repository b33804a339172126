"""``python -m tests.bench [NAME ...]``: throughput and cost of every hot path, per core.

Nothing here is asserted: the numbers are for people. Each benchmark is a module of this package
with ``run() -> list[Row]``; its name is the module's without ``bench_``.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil

from rich.console import Console
from rich.table import Table

import tests.bench
from tests.bench.measure import RUNS, Row, machine


def names() -> list[str]:
    modules = pkgutil.iter_modules(tests.bench.__path__)
    return sorted(item.name.removeprefix("bench_") for item in modules if item.name[:6] == "bench_")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"which: {', '.join(names())} [all]")
    chosen = parser.parse_args().name or names()
    console = Console(width=118)
    for line in machine():
        console.print(line, style="dim")
    console.print(f"CPU time, median of {RUNS} runs after a warm-up\n", style="dim")
    for name in chosen:
        module = importlib.import_module(f"tests.bench.bench_{name}")
        table = Table(title=name, title_justify="left", expand=True)
        table.add_column("what", ratio=3)
        table.add_column("ns each", justify="right")
        table.add_column("per second per core", justify="right")
        table.add_column("note", ratio=2)
        row: Row
        for row in module.run():
            rate = f"{row.per_second:,.0f} {row.unit}s"
            table.add_row(row.name, f"{row.ns_per_event:,.1f}", rate, row.note)
        console.print(table)


if __name__ == "__main__":
    main()
