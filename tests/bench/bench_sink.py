"""Metrics block to table: what a row costs the sink, into the embedded engine.

Kinds of rows: what the tracepoint tier measures (the figures that are there today), every kernel
figure with its count of measuring events, the same with the histogram of every stage, and a small
block, which is what a small cluster sends each minute and where fixed costs rule. Then calls of
the access log, from message to table; each has a trace id and a path of its own, as many do not.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from typing import TYPE_CHECKING

import numpy as np

from schemas.catalogue import (
    CALL_DISTRIBUTIONS,
    DISTRIBUTIONS,
    FIGURES,
    PROVENANCE,
    SCOPE_BY_NAME,
)
from schemas.clock import ManualClock
from schemas.histograms import bucket_of, buckets
from schemas.metrics import (
    BlockIdentity,
    Histogram,
    MetricsBlock,
    MetricsTable,
    decode_block,
    encode_block,
)
from sink.access_log import Sampling, read_calls
from sink.access_writer import CallWriter
from sink.blocks import Attempt
from sink.config import SinkConfig
from sink.ddl import apply_schema
from sink.store import Store
from sink.writer import BlockWriter, Retry
from tests.bench.measure import Row, measure
from tests.sink.calls import calls_batch, plain_calls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from schemas.catalogue import Distribution, Figure

MINUTE_S = int(time.time()) // 3600 * 3600 - 86_400
SERVICES = 200
TRANSFERS = 20
"""Reads and writes behind each row, as its histograms have them."""
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
            calls = [f for f in FIGURES if f.group in ("http", "grpc")]
            for name, figures, count, spread in (
                ("tracepoint tier", today, 100_000, ()),
                ("every kernel figure", kernel, 100_000, ()),
                ("every kernel figure", kernel, 20_000, ()),
                ("the same with histograms", kernel, 20_000, DISTRIBUTIONS),
                ("HTTP figures", calls, 20_000, ()),
                ("the same with the latency histogram", calls, 20_000, CALL_DISTRIBUTIONS),
                ("tracepoint tier, small block", today, 1_000, ()),
                (
                    "every kernel figure with histograms, small block",
                    kernel,
                    1_000,
                    DISTRIBUTIONS,
                ),
            ):
                table = _table(figures, count)
                _add_histograms(table, spread)
                rows.append(_insert(store, f"{name}: {count:,} rows", table))
            everything = Sampling(1.0, 1_000_000_000)
            for name, batches, count, sampling in (
                ("access log, 1 batch", 1, 10_000, everything),
                ("access log, 20 batches together", 20, 1_000, everything),
                ("access log, 1 batch", 1, 1_000, everything),
                ("access log, a tenth sampled", 1, 10_000, Sampling(0.1, 1_000_000_000)),
            ):
                rows.append(_calls(store, name, batches, count, sampling))
        finally:
            store.close()
    return rows


def _insert(store: Store, name: str, table: MetricsTable) -> Row:
    writer = BlockWriter(store, Retry(_never, 0.1, 0.1), ManualClock(time.time_ns()), name)
    writer.assign([0])
    base = next(_BASES) * 1_000
    message = b""
    walls: list[float] = []

    def prepare() -> None:
        nonlocal message, base
        message = encode_block(_block(table, base))
        base += 1

    def insert() -> None:
        before = time.perf_counter()
        block = decode_block(message)
        outcome = writer.write(Attempt(block.identity, base, {0: block}))
        assert outcome == "inserted", outcome
        walls.append(time.perf_counter() - before)

    row = measure(name, table.rows, insert, unit="row", prepare=prepare)
    wall = sorted(walls[1:])[len(walls) // 2]
    row.note = f"{len(table.figures) + len(table.measured)} figure columns; "
    if table.histograms:
        entries = sum(len(one.row) for one in table.histograms.values()) / table.rows
        row.note += f"{entries:.0f} buckets a row; "
    row.note += f"wall {table.rows / wall:,.0f} rows/s"
    return row


def _calls(store: Store, name: str, batches: int, count: int, sampling: Sampling) -> Row:
    # From messages to rows, and how large these are afterwards.
    store.command("TRUNCATE TABLE podwire_store.access_log")
    writer = CallWriter(store, Retry(_never, 0.1, 0.1), 1)
    run = f"run {next(_BASES)}"
    numbers = itertools.count()
    messages: list[bytes] = []
    walls: list[float] = []

    def prepare() -> None:
        messages[:] = [
            calls_batch(plain_calls(count, first=number * count), run=run, sequence=number)
            for number in itertools.islice(numbers, batches)
        ]

    def insert() -> None:
        before = time.perf_counter()
        writer.write([(0, read_calls(message, sampling)) for message in messages])
        walls.append(time.perf_counter() - before)

    calls = batches * count
    title = f"{name}: {calls:,} calls"
    row = measure(title, calls, insert, unit="call", prepare=prepare)
    wall = sorted(walls[1:])[len(walls) // 2]
    store.command("OPTIMIZE TABLE podwire_store.access_log FINAL")
    ((size, stored),) = store.rows(
        "SELECT sum(data_compressed_bytes), sum(rows) FROM system.parts "
        "WHERE database = 'podwire_store' AND table = 'access_log' AND active"
    )
    row.note = f"{size / stored:.0f} bytes a row merged; wall {calls / wall:,.0f} calls/s"
    return row


def _block(table: MetricsTable, base: int) -> MetricsBlock:
    names = ["", "", "client", "server", *(f"service-{index}.shop" for index in range(SERVICES))]
    identity = BlockIdentity("podwire.events.v1", 0, MINUTE_S, base, base + 1, attempt="a")
    return MetricsBlock(identity, names, [table])


def _add_histograms(table: MetricsTable, distributions: Iterable[Distribution]) -> None:
    random = np.random.default_rng(2)
    row = np.repeat(np.arange(table.rows, dtype=np.int64), TRANSFERS)
    for distribution in distributions:
        values = random.lognormal(8, 1, len(row)).astype("<u8")
        size = buckets(distribution.bits)
        place, count = np.unique(
            row * size + bucket_of(values, distribution.bits), return_counts=True
        )
        table.histograms[distribution.name] = Histogram(
            (place // size).astype("<u4"), (place % size).astype("<u4"), count.astype("<u8")
        )


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
