from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.abi import PROCESS_RECORD, TRANSFER_RECORD
from collector.ringbuf import RingMemory, SequenceTracker, _membarrier, framed, memory_fence
from schemas.errors import LayoutMismatch

BUSY, DISCARD = 1 << 31, 1 << 30
LENGTH = TRANSFER_RECORD.itemsize
STRIDE = 128
SLOTS = 8


class Ring:
    """What bpf_ringbuf_reserve and bpf_ringbuf_submit write, in ordinary memory."""

    def __init__(self, slots: int = SLOTS, position: int = 0) -> None:
        self.consumer = np.array([position], np.uint64)
        self.producer = np.array([position], np.uint64)
        self.data = np.zeros(slots * STRIDE, np.uint8)
        self.fences = 0
        self.memory = RingMemory(
            self.consumer, self.producer, self.data, TRANSFER_RECORD, self._fence
        )

    def _fence(self) -> None:
        self.fences += 1

    def put(self, number: int, flags: int = 0, length: int = LENGTH) -> int:
        """Reserve and, without BUSY, submit a record; returns its offset in the data."""
        position = int(self.producer[0])
        assert position - int(self.consumer[0]) < len(self.data), "the ring is full"
        offset = position % len(self.data)
        # struct bpf_ringbuf_hdr, then connection_id, end_ns, duration_ns, sequence
        body = struct.pack("<II4Q", length | flags, 0, number, 0, 0, number)
        self.data[offset : offset + len(body)] = np.frombuffer(body, np.uint8)
        self.producer[0] = position + STRIDE
        return offset

    def submit(self, offset: int) -> None:
        self.data[offset + 3] &= 0x7F

    def drain(self) -> list[int]:
        return [int(number) for number in self.memory.drain()["connection_id"]]


def test_framed_puts_the_header_before_the_record() -> None:
    layout = framed(TRANSFER_RECORD)
    assert layout.itemsize == STRIDE
    assert layout.fields is not None
    assert layout.fields["_length"][1] == 0
    assert layout.fields["connection_id"][1] == 8
    assert framed(PROCESS_RECORD).itemsize == 64


def test_records_come_in_order_and_give_their_space_back() -> None:
    ring = Ring()
    for number in (1, 2, 3):
        ring.put(number)
    assert ring.drain() == [1, 2, 3]
    assert ring.consumer[0] == ring.producer[0]
    assert ring.memory.used == 3 * STRIDE
    assert ring.drain() == []


def test_records_continue_at_the_start_of_the_memory() -> None:
    ring = Ring(position=(SLOTS - 2) * STRIDE)
    for number in range(1, SLOTS + 1):
        ring.put(number)
    assert ring.drain() == list(range(1, SLOTS + 1))


def test_a_busy_record_holds_back_what_follows_it() -> None:
    ring = Ring(position=(SLOTS - 1) * STRIDE)
    ring.put(1)
    busy = ring.put(2, BUSY)
    ring.put(3)
    assert ring.drain() == [1]
    assert ring.drain() == []
    ring.submit(busy)
    assert ring.drain() == [2, 3]


def test_discarded_records_are_skipped() -> None:
    ring = Ring()
    ring.put(1)
    ring.put(2, DISCARD)
    ring.put(3)
    assert ring.drain() == [1, 3]
    assert ring.consumer[0] == ring.producer[0]


def test_a_record_of_another_length_is_a_layout_mismatch() -> None:
    ring = Ring()
    ring.put(1, length=48)
    with pytest.raises(LayoutMismatch, match="expected 120, found 48"):
        ring.drain()


def test_the_ring_must_be_a_whole_number_of_records() -> None:
    one = np.zeros(1, np.uint64)
    with pytest.raises(LayoutMismatch):
        RingMemory(one, one, np.zeros(100, np.uint8), TRANSFER_RECORD, lambda: None)


def test_drained_records_are_a_copy() -> None:
    ring = Ring()
    ring.put(1)
    records = ring.memory.drain()
    ring.data[:] = 0
    assert records["connection_id"].tolist() == [1]


def test_three_fences_order_position_headers_data_and_release() -> None:
    ring = Ring()
    ring.put(1)
    ring.drain()
    assert ring.fences == 3


@given(st.lists(st.sampled_from(["put", "busy", "discard", "submit", "drain"]), max_size=60))
def test_no_record_is_lost_doubled_or_reordered(actions: list[str]) -> None:
    ring = Ring()
    submitted: list[int] = []
    taken: list[int] = []
    pending: list[int] = []
    number = 0
    for action in [*actions, "submit", "submit", "drain", "drain"]:
        if action == "drain":
            taken += ring.drain()
        elif action == "submit":
            for offset in pending:
                ring.submit(offset)
            pending.clear()
        elif ring.producer[0] - ring.consumer[0] < SLOTS * STRIDE:
            number += 1
            offset = ring.put(number, {"put": 0, "busy": BUSY, "discard": DISCARD}[action])
            if action == "busy":
                pending.append(offset)
            if action != "discard":
                submitted.append(number)
    assert taken == submitted


def test_membarrier_works_on_this_machine() -> None:
    import platform

    fence = _membarrier(platform.machine())
    assert fence is not None
    assert fence() == 0
    assert _membarrier("riscv64") is None
    assert memory_fence() is not None


def _track(tracker: SequenceTracker, *rows: tuple[int, int]) -> None:
    cpu: Any = np.array([row[0] for row in rows], np.uint16)
    tracker.add(cpu, np.array([row[1] for row in rows], np.uint64))


def test_sequence_tracker_counts_what_never_arrived() -> None:
    tracker = SequenceTracker()
    _track(tracker, (0, 0), (1, 0), (0, 1), (200, 0))
    assert tracker.missing == 0
    _track(tracker, (0, 4), (1, 1))
    assert tracker.missing == 2


def test_sequence_tracker_heals_after_records_swapped_places() -> None:
    tracker = SequenceTracker()
    _track(tracker, (0, 1), (0, 0))
    _track(tracker, (0, 2))
    assert tracker.missing == 0
