"""Metrics block to table: what a row costs the sink, into the embedded engine.

Three kinds of rows: what the tracepoint tier measures (the figures that are there today), every
kernel figure with its count of measuring events, and a small block, which is what a small cluster
sends each minute and where fixed costs rule.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from typing import TYPE_CHECKING

import numpy as np

from schemas.catalogue import FIGURES, PROVENANCE, SCOPE_BY_NAME
from schemas.clock import ManualClock
from schemas.metrics import (
    BlockIdentity,
    MetricsBlock,
    MetricsTable,
    decode_block,
    encode_block,
)
from sink.blocks import Attempt
from sink.config import SinkConfig
from sink.ddl import apply_schema
from sink.store import Store
from sink.writer import BlockWriter, Retry
from tests.bench.measure import Row, measure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from schemas.catalogue import Figure

MINUTE_S = int(time.time()) // 3600 * 3600 - 86_400
SERVICES = 200
TRACEPOINT = {"connection", "read", "write"}
_BASES = itertools.count()


def run() -> list[Row]:
    today = [
        figure
        for figure in FIGURES
        if figure.group in TRACEPOINT and (not figure.optional or figure.name.count("_") == 1)
    ]
    kernel = [figure for figure in FIGURES if figure.group in TRACEPOINT]
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        store = Store.connect(SinkConfig(url=f"chdb://{directory}/engine"))
        apply_schema(store)
        try:
            for name, figures, count in (
                ("tracepoint tier", today, 100_000),
                ("every kernel figure", kernel, 100_000),
                ("tracepoint tier, small block", today, 1_000),
            ):
                rows += _insert(store, name, figures, count)
        finally:
            store.close()
    return rows


def _insert(store: Store, name: str, figures: Iterable[Figure], count: int) -> list[Row]:
    writer = BlockWriter(store, Retry(_never, 0.1, 0.1), ManualClock(time.time_ns()), name)
    writer.assign([0])
    base = next(_BASES) * 1_000
    message = b""
    walls: list[float] = []

    def prepare() -> None:
        nonlocal message, base
        message = encode_block(_block(figures, count, base))
        base += 1

    def insert() -> None:
        before = time.perf_counter()
        block = decode_block(message)
        outcome = writer.write(Attempt(block.identity, base, {0: block}))
        assert outcome == "inserted", outcome
        walls.append(time.perf_counter() - before)

    row = measure(f"{name}: {count:,} rows", count, insert, unit="row", prepare=prepare)
    columns = len(_table(figures, 1).figures) + len(_table(figures, 1).measured)
    wall = sorted(walls[1:])[len(walls) // 2]
    row.note = f"{columns} figure columns; wall {count / wall:,.0f} rows/s"
    return [row]


def _block(figures: Iterable[Figure], rows: int, base: int) -> MetricsBlock:
    names = ["", "", "client", "server", *(f"service-{index}.shop" for index in range(SERVICES))]
    identity = BlockIdentity("podwire.events.v1", 0, MINUTE_S, base, base + 1, attempt="a")
    return MetricsBlock(identity, names, [_table(figures, rows)])


def _table(figures: Iterable[Figure], rows: int) -> MetricsTable:
    random = np.random.default_rng(1)
    keys = {
        "cluster": np.zeros(rows, "<u4"),
        "role": random.integers(2, 4, rows).astype("<u4"),
        "client_service": random.integers(4, 4 + SERVICES, rows).astype("<u4"),
        "server_service": random.integers(4, 4 + SERVICES, rows).astype("<u4"),
    }
    assert set(keys) == set(SCOPE_BY_NAME["service_relation"].keys)
    table = MetricsTable("service_relation", rows, keys)
    for figure in (*figures, *PROVENANCE):
        limit = 100_000 if figure.unit == "ns" else 1_000
        table.figures[figure.name] = random.integers(0, limit, rows).astype("<u8")
        if figure.optional:
            table.measured[figure.name] = random.integers(1, 50, rows).astype("<u8")
    return table


def _never(seconds: float) -> None:
    raise AssertionError(f"an insert had to be repeated after {seconds:.1f} s")
