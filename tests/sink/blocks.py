"""Blocks and entities to test with, and what their sums must be."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

from schemas.catalogue import LEDGER, SCOPE_BY_NAME
from schemas.histograms import bucket_of, buckets
from schemas.metrics import BlockIdentity, Histogram, MetricsBlock, MetricsTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

MINUTE_S = 1_893_456_000
"""2030-01-01 00:00 UTC: no retention has begun for it."""

TOPIC = "podwire.events.v1"


def relation_table(rows: int, names: list[str], seed: int, *, services: int = 20) -> MetricsTable:
    """Rows of service relations between ``services`` services, with figures from a seed."""
    rng = np.random.default_rng(seed)
    first = len(names)
    names += ["test", "client", "server", *(f"service-{i}.ns" for i in range(services))]

    def pick(low: int, high: int) -> np.ndarray:
        return rng.integers(low, high, rows).astype("<u4")

    keys = {
        "cluster": np.full(rows, first, "<u4"),
        "role": pick(first + 1, first + 3),
        "client_service": pick(first + 3, first + 3 + services),
        "server_service": pick(first + 3, first + 3 + services),
    }
    figures = {
        name: rng.integers(0, 1000, rows).astype("<u8")
        for name in ("connect_count", "connect_duration", "read_bytes", "events_seen")
    }
    measured = {"connect_duration": rng.integers(1, 5, rows).astype("<u8")}
    return MetricsTable("service_relation", rows, keys, figures, measured)


def instance_table(names: list[str]) -> MetricsTable:
    """One row of one instance, that measured no duration."""
    first = len(names)
    names += ["test", "server", "api.shop", "api-1"]
    keys = {
        key: np.array([first + i], "<u4") for i, key in enumerate(SCOPE_BY_NAME["instance"].keys)
    }
    return MetricsTable("instance", 1, keys, {"read_count": np.array([7], "<u8")})


def histogram(row: NDArray, values: NDArray, bits: int = 2) -> Histogram:
    """The histogram of one value per event, in the row that it belongs to."""
    size = buckets(bits)
    place, count = np.unique(
        row.astype(np.int64) * size + bucket_of(values, bits), return_counts=True
    )
    return Histogram(
        (place // size).astype("<u4"), (place % size).astype("<u4"), count.astype("<u8")
    )


def service_block(
    base: int,
    table: MetricsTable,
    names: list[str],
    *,
    minute_s: int = MINUTE_S,
    part: int = 0,
    parts: int = 1,
) -> MetricsBlock:
    """One block (or part) with a given table of services and nothing else."""
    identity = BlockIdentity(TOPIC, 0, minute_s, base, base + 1, part, parts, "a")
    return MetricsBlock(identity, names, [table])


def service_table(services: int, names: list[str]) -> MetricsTable:
    """One row per service, in its role as server, without figures."""
    first = len(names)
    names += ["test", "server", *(f"service-{i}" for i in range(services))]
    keys = {
        "cluster": np.full(services, first, "<u4"),
        "role": np.full(services, first + 1, "<u4"),
        "service": np.arange(first + 2, first + 2 + services, dtype="<u4"),
    }
    return MetricsTable("service", services, keys)


def ledger_table(names: list[str], count: int) -> MetricsTable:
    """One row that says that streams counted so many transfers."""
    first = len(names)
    names += ["test", "node-1", "streams", "transfer", ""]
    keys = {key: np.array([first + i], "<u4") for i, key in enumerate(LEDGER.keys)}
    figures = {
        "in_count": np.array([count], "<u8"),
        "out_count": np.array([count], "<u8"),
        "dropped_count": np.array([0], "<u8"),
    }
    return MetricsTable("ledger", 1, keys, figures)


def block(
    base: int = 0,
    *,
    end: int | None = None,
    minute_s: int = MINUTE_S,
    partition: int = 0,
    part: int = 0,
    parts: int = 1,
    attempt: str = "a",
    rows: int = 10,
    seed: int | None = None,
) -> MetricsBlock:
    """One block (or part) with relations, an instance and a ledger row."""
    names = [""]
    end = base + 1 if end is None else end
    identity = BlockIdentity(TOPIC, partition, minute_s, base, end, part, parts, attempt)
    seed = base * 100 + part if seed is None else seed
    tables = [relation_table(rows, names, seed), instance_table(names), ledger_table(names, rows)]
    random.Random(seed).shuffle(tables)
    return MetricsBlock(identity, names, tables)


def total(block: MetricsBlock, figure: str = "connect_count") -> int:
    """Sum of a figure of the block's relations."""
    return sum(
        int(table.figures[figure].sum())
        for table in block.tables
        if table.table == "service_relation"
    )
