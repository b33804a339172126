"""Ring to Kafka: what a transfer record costs the collector, part by part.

The ring is ordinary memory with the kernel's layout, so every part but the kernel itself is real;
Kafka is librdkafka's own in-process broker, whose CPU time counts here as well.
"""

from __future__ import annotations

import numpy as np

from collector.abi import CONNECTION_RECORD, TRANSFER_RECORD, ConnectionEvent, MeasuredFlag
from collector.batches import BatchBuilder, Run
from collector.config import CollectorConfig
from collector.connections import ConnectionTable
from collector.names import NameTable
from collector.publisher import Publisher
from collector.ringbuf import RingMemory, framed
from schemas.clock import ClockAnchor
from schemas.config import KafkaConfig
from schemas.events import (
    FIGURE_WIDTH,
    READ_FIGURES,
    WRITE_FIGURES,
    EventBatch,
    encode_batch,
)
from schemas.ledger import Ledger
from tests.bench.measure import Row, measure

RECORDS = 65_536
CONNECTIONS = 5_000
ANCHOR = ClockAnchor(monotonic_ns=10**12, unix_ns=1_700_000_000 * 10**9)


def run() -> list[Row]:
    random = np.random.default_rng(1)
    table = ConnectionTable()
    table.apply(_connections(CONNECTIONS))
    ring = _Ring(_transfers(random, RECORDS))
    drained = ring.drain()
    builder = _builder(table, frozenset((*READ_FIGURES, *WRITE_FIGURES)))
    without = _builder(table, frozenset())
    nothing = np.empty(0, framed(CONNECTION_RECORD))

    def build() -> list[EventBatch]:
        return builder.build(nothing, drained, ANCHOR, 0, Ledger())

    def build_without() -> list[EventBatch]:
        return without.build(nothing, drained, ANCHOR, 0, Ledger())

    (batch,) = build()
    (plain,) = build_without()
    message = encode_batch(batch)
    rows = [
        measure("drain: ring memory to array", RECORDS, ring.drain, prepare=ring.refill),
        measure(
            "find: connection of each record", RECORDS, lambda: table.find(drained["connection_id"])
        ),
        measure("build: batch, find included", RECORDS, build),
        measure("build: without figures of layers 2 to 4", RECORDS, build_without),
        measure("encode: protobuf", RECORDS, lambda: encode_batch(batch)),
        measure("encode: without figures", RECORDS, lambda: encode_batch(plain)),
    ]
    for compression in ("none", "lz4", "zstd"):
        with _Kafka(compression) as kafka:
            produce = measure(
                f"produce: {compression}, delivered",
                RECORDS,
                lambda kafka=kafka: kafka.send(message),
                note=f"{len(message) / RECORDS:.1f} bytes a record",
            )
            rows.append(produce)

            def everything(kafka: _Kafka = kafka) -> None:
                taken = ring.drain()
                for made in builder.build(nothing, taken, ANCHOR, 0, Ledger()):
                    kafka.send(encode_batch(made))

            rows.append(
                measure(f"ring to Kafka, {compression}", RECORDS, everything, prepare=ring.refill)
            )
    return rows


def _builder(table: ConnectionTable, measured: frozenset[str]) -> BatchBuilder:
    return BatchBuilder(Run("node", "boot", "run"), table, NameTable(), measured=measured)


class _Ring:
    def __init__(self, records: np.ndarray) -> None:
        self.consumer = np.zeros(1, np.uint64)
        self.producer = np.zeros(1, np.uint64)
        self.size = records.nbytes
        self.memory = RingMemory(
            self.consumer, self.producer, records.view(np.uint8), TRANSFER_RECORD, lambda: None
        )
        self.refill()

    def refill(self) -> None:
        self.producer[0] = self.consumer[0] + np.uint64(self.size)

    def drain(self) -> np.ndarray:
        return self.memory.drain()


class _Kafka:
    def __init__(self, compression: str) -> None:
        config = CollectorConfig(compression=compression)
        self.publisher = Publisher(config, _Mock(), "bench")

    def __enter__(self) -> _Kafka:
        self.send(b"first")
        return self

    def __exit__(self, *_: object) -> None:
        self.publisher.flush(10)

    def send(self, message: bytes) -> None:
        assert self.publisher.offer("node", message, ())
        assert self.publisher.flush(30) == 0
        assert self.publisher.undelivered == 0


class _Mock(KafkaConfig):
    def client_settings(self) -> dict[str, str]:
        return {"test.mock.num.brokers": "1"}


def _connections(count: int) -> np.ndarray:
    records = np.zeros(count, framed(CONNECTION_RECORD))
    records["connection_id"] = np.arange(1, count + 1) + 10**12
    records["event"] = ConnectionEvent.ANNOUNCED
    records["family"] = 4
    records["local_port"] = 80
    records["remote_port"] = 40_000
    records["pid"] = 1
    return records


def _transfers(random: np.random.Generator, count: int) -> np.ndarray:
    records = np.zeros(count, framed(TRANSFER_RECORD))
    records["_length"] = TRANSFER_RECORD.itemsize
    records["connection_id"] = random.integers(1, CONNECTIONS + 1, count) + 10**12
    records["end_ns"] = 10**12 + np.arange(count) * 1000
    records["duration_ns"] = random.integers(800, 60_000, count)
    records["sequence"] = np.arange(count)
    records["size"] = random.choice([64, 128, 517, 1400, 16_384], count)
    records["direction"] = random.integers(1, 3, count)
    records["call"] = random.choice([1, 3, 6, 8], count)
    records["measured"] = MeasuredFlag.MEASURED_COUNTERS | MeasuredFlag.MEASURED_STAGES
    records["figures"] = random.integers(0, 60_000, (count, FIGURE_WIDTH))
    return records
