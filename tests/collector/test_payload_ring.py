"""The reader of payload records over memory that is laid out as the kernel lays out a ring."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from collector.abi import PAYLOAD_RECORD
from collector.payload_ring import NO_PIECES, MappedPayloadRing, joined
from schemas.errors import LayoutMismatch

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = mmap.PAGESIZE
BUSY, DISCARD = 1 << 31, 1 << 30


def record(number: int, data: bytes, captured: int | None = None) -> bytes:
    made = np.zeros((), PAYLOAD_RECORD)
    made["connection_id"] = number
    made["captured"] = len(data) if captured is None else captured
    made["size"] = made["captured"]
    return made.tobytes() + data


class Kernel:
    """The other side: a file whose pages are those of a ring."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + SIZE)
        self._memory = mmap.mmap(self.fd, 2 * mmap.PAGESIZE + SIZE)
        self.produced = 0

    def put(self, raw: bytes, flags: int = 0, length: int | None = None) -> int:
        """Append a record; returns where its header is."""
        place = self.produced
        size = len(raw) if length is None else length
        framed = struct.pack("<II", size | flags, 0) + raw
        framed += bytes(-len(framed) % 8)
        for offset, byte in enumerate(framed):
            self._memory[2 * mmap.PAGESIZE + (place + offset) % SIZE] = byte
        self.produced += len(framed)
        self._memory[mmap.PAGESIZE : mmap.PAGESIZE + 8] = struct.pack("<Q", self.produced)
        return place

    def set_length(self, place: int, value: int) -> None:
        at = 2 * mmap.PAGESIZE + place % SIZE
        self._memory[at : at + 4] = struct.pack("<I", value)

    @property
    def consumed(self) -> int:
        return int(struct.unpack("<Q", self._memory[:8])[0])


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def ring(kernel: Kernel) -> Iterator[MappedPayloadRing]:
    ring = MappedPayloadRing("payloads", kernel.fd, SIZE, lambda: None)
    yield ring
    ring.close()
    ring.close()
    assert len(ring.drain()) == 0


def drained(ring: MappedPayloadRing) -> list[tuple[int, bytes]]:
    pieces = ring.drain()
    return list(zip(pieces.records["connection_id"].tolist(), pieces.captured(), strict=True))


def test_records_of_any_length(kernel: Kernel, ring: MappedPayloadRing) -> None:
    assert drained(ring) == []
    given = [(number, bytes([number % 256]) * number) for number in (0, 1, 7, 8, 9, 300)]
    for number, data in given:
        kernel.put(record(number, data))
    assert drained(ring) == given
    assert kernel.consumed == kernel.produced == ring.used
    assert drained(ring) == []


def test_records_go_on_at_the_beginning_of_the_ring(
    kernel: Kernel, ring: MappedPayloadRing
) -> None:
    for number in range(100):
        data = os.urandom(number * 7 % 500)
        kernel.put(record(number, data))
        kernel.put(record(1000 + number, b"x"))
        assert drained(ring) == [(number, data), (1000 + number, b"x")]
    assert kernel.produced > 5 * SIZE


def test_a_record_under_way_holds_back_what_follows(
    kernel: Kernel, ring: MappedPayloadRing
) -> None:
    kernel.put(record(1, b"a"))
    raw = record(2, b"b")
    place = kernel.put(raw, BUSY)
    kernel.put(record(3, b"c"))
    assert drained(ring) == [(1, b"a")]
    assert kernel.consumed == place
    kernel.set_length(place, len(raw))
    assert drained(ring) == [(2, b"b"), (3, b"c")]


def test_discarded_records_are_left_out(kernel: Kernel, ring: MappedPayloadRing) -> None:
    kernel.put(record(1, b"a"), DISCARD)
    kernel.put(record(2, b"b"))
    assert drained(ring) == [(2, b"b")]
    assert kernel.consumed == kernel.produced


def test_records_that_lie_about_their_length_are_refused(
    kernel: Kernel, ring: MappedPayloadRing
) -> None:
    kernel.put(record(1, b"a", captured=5000))
    with pytest.raises(LayoutMismatch, match="payload record"):
        ring.drain()
    kernel = Kernel()
    kernel.put(b"short")
    ring = MappedPayloadRing("payloads", kernel.fd, SIZE, lambda: None)
    with pytest.raises(LayoutMismatch, match="payload record length"):
        ring.drain()
    ring.close()


def test_pieces_from_whole_records() -> None:
    assert joined([]) is NO_PIECES
    pieces = joined([record(1, b"one"), record(2, b""), record(3, b"three")])
    assert list(pieces.captured()) == [b"one", b"", b"three"]
    assert pieces.records["connection_id"].tolist() == [1, 2, 3]
    with pytest.raises(LayoutMismatch):
        joined([record(1, b"one", captured=4)])
