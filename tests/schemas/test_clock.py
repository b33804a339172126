from __future__ import annotations

import time

import numpy as np

from schemas.clock import ClockAnchor, ManualClock, SystemClock


class ScriptedClock:
    """Returns prepared readings, as if the process had been preempted between some of them."""

    def __init__(self, monotonic: list[int], unix: list[int]) -> None:
        self._monotonic = iter(monotonic)
        self._unix = iter(unix)

    def monotonic_ns(self) -> int:
        return next(self._monotonic)

    def unix_ns(self) -> int:
        return next(self._unix)


def test_the_tightest_of_three_brackets_wins() -> None:
    clock = ScriptedClock([0, 5_000, 6_000, 6_010, 7_000, 9_000], [100, 200, 300])
    assert ClockAnchor.sample(clock) == ClockAnchor(monotonic_ns=6_005, unix_ns=200)


def test_conversion_is_exact_at_today_s_magnitude() -> None:
    """Floats would be off by hundreds of nanoseconds here."""
    anchor = ClockAnchor(monotonic_ns=123_456_789, unix_ns=1_795_000_000_123_456_789)
    stamps = np.array([0, 123_456_789, 123_456_790, 10**15], np.uint64)
    converted = anchor.to_unix_ns(stamps)
    assert converted.dtype == np.uint64
    expected = [int(s) - 123_456_789 + 1_795_000_000_123_456_789 for s in stamps]
    assert converted.tolist() == expected


def test_system_clock_reads_the_clock_of_the_kernel_stamps() -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert before <= SystemClock().monotonic_ns() <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert abs(SystemClock().unix_ns() - time.time_ns()) < 1_000_000_000


def test_manual_clock_moves_both_clocks_and_only_when_told() -> None:
    clock = ManualClock()
    start = ClockAnchor.sample(clock)
    clock.advance(1.5)
    end = ClockAnchor.sample(clock)
    assert end.unix_ns - start.unix_ns == end.monotonic_ns - start.monotonic_ns == 1_500_000_000
    assert end.offset_ns == start.offset_ns
