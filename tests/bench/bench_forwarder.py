"""Access log batch to a SkyWalking OAP: what a log costs the forwarder.

A log is an open, a close, a read or write, or an HTTP call. Kinds of traffic: long connections of
which only reads and writes are told, with every L2-L4 figure and without; HTTP calls on kept
connections, two reads or writes each; short connections. Then everything: decoding, converting, and
sending to a receiver in another process on this machine, which reads all and answers.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.events import decode_batch, encode_batch
from sink.oap.choices import Choices
from sink.oap.client import Rotation
from sink.oap.config import ForwarderConfig
from sink.oap.convert import Limits, convert
from tests.bench.measure import Row, measure
from tests.oap.batches import random_batch

if TYPE_CHECKING:
    from collections.abc import Iterator

CHOICES = Choices(same_service="send", incomplete=True)
LONG = {"opens": 0, "closes": 0, "requests": 0, "connections": 2_000}
SHAPES = (
    ("reads and writes with every figure", LONG | {"transfers": 50_000}),
    ("reads and writes of the core tier", LONG | {"transfers": 50_000, "staged": False}),
    ("HTTP calls on kept connections", LONG | {"transfers": 40_000, "requests": 20_000}),
    (
        "short connections: open, call, close",
        {"opens": 10_000, "closes": 10_000, "requests": 10_000}
        | {"transfers": 20_000, "connections": 10_000},
    ),
    ("small batch of a quiet node", LONG | {"transfers": 200, "connections": 50}),
)


def run() -> list[Row]:
    rows = []
    for name, shape in SHAPES:
        batch = random_batch(**shape)
        converted = convert([batch], CHOICES, Limits(), 1.0)
        logs = sum(stream.logs for stream in converted.streams)
        size = sum(stream.size for stream in converted.streams)
        rows.append(
            measure(
                f"convert: {name}",
                logs,
                lambda batch=batch: convert([batch], CHOICES, Limits(), 1.0),
                unit="log",
                note=f"{logs:,} logs, {size / logs:.0f} bytes each",
            )
        )
    return [*rows, *_whole()]


def _whole() -> list[Row]:
    messages = [
        encode_batch(random_batch(**LONG | {"transfers": 8_000, "requests": 4_000}, seed=seed))
        for seed in range(5)
    ]

    def decoded():
        return convert([decode_batch(data) for data in messages], CHOICES, Limits(), 5.0)

    logs = sum(stream.logs for stream in decoded().streams)
    rows = [measure("decode, merge and convert five batches", logs, decoded, unit="log")]
    rows[0].note = "reads, writes and HTTP calls"
    with _receiver() as address:
        rotation = Rotation(ForwarderConfig(addresses=(address,)), time.monotonic, random.Random())
        walls: list[float] = []

        def sent():
            before = time.perf_counter()
            for stream in decoded().streams:
                rotation.send(stream.messages)
            walls.append(time.perf_counter() - before)

        row = measure("the same, sent and answered", logs, sent, unit="log")
        row.note = f"wall {logs / sorted(walls)[len(walls) // 2]:,.0f} logs/s, one stream at a time"
        rotation.close()
    return [*rows, row]


@contextmanager
def _receiver() -> Iterator[str]:
    # In a process of its own, so that its work is not counted.
    with subprocess.Popen(
        [sys.executable, "-m", "tests.oap.server"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"
        process.terminate()
