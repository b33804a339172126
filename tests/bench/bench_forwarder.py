"""Access log batch to the messages of a SkyWalking OAP: what a log costs the forwarder.

A log is an open, a close, a read or write, or an HTTP call. Kinds of traffic: long connections of
which only reads and writes are told, with every L2-L4 figure and without; and HTTP calls on
keep-alive connections, two reads or writes each. Then everything: decoding, converting, and sending
to a receiver on this machine that counts and answers.
"""

from __future__ import annotations

from schemas.events import decode_batch, encode_batch
from sink.oap.choices import Choices
from sink.oap.convert import Limits, convert
from tests.bench.measure import Row, measure
from tests.oap.batches import random_batch

CHOICES = Choices(same_service="send", incomplete=True)
SECOND = {"opens": 0, "closes": 0, "requests": 0, "connections": 2_000}


def run() -> list[Row]:
    rows = []
    for name, shape in (
        ("reads and writes with every figure", SECOND | {"transfers": 50_000}),
        ("reads and writes of the core tier", SECOND | {"transfers": 50_000, "staged": False}),
        ("HTTP calls on kept connections", SECOND | {"transfers": 40_000, "requests": 20_000}),
        (
            "short connections: open, call, close",
            {"opens": 10_000, "closes": 10_000, "requests": 10_000}
            | {"transfers": 20_000, "connections": 10_000},
        ),
        ("small batch of a quiet node", SECOND | {"transfers": 200, "connections": 50}),
    ):
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
    batches = [
        encode_batch(random_batch(**SECOND | {"transfers": 8_000, "requests": 4_000}, seed=seed))
        for seed in range(5)
    ]

    def decoded():
        return convert([decode_batch(data) for data in batches], CHOICES, Limits(), 5.0)

    logs = sum(stream.logs for stream in decoded().streams)
    rows.append(
        measure("decode, merge and convert five batches", logs, decoded, unit="log", note="mixed")
    )
    return rows
