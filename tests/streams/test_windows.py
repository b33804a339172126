"""When minutes close, and what may be committed."""

from __future__ import annotations

from schemas.events import BatchHeader
from streams.minutes import Contribution
from streams.windows import MinuteAggregator, Reception, WindowSettings
from tests.streams.build import MINUTE_S, SECOND_NS


class Bench:
    """Feeds one aggregator with headers; offsets count up."""

    def __init__(self, start: int = 0, emitted: dict[int, int] | None = None) -> None:
        self.minutes = MinuteAggregator(WindowSettings(), start, emitted)
        self.offset = start
        self._sequences: dict[tuple[str, str], int] = {}

    def batch(
        self,
        watermark_s: float,
        *,
        node: str = "node-a",
        run: str = "run-1",
        touches: tuple[int, ...] = (),
        final: bool = False,
        now_s: float | None = None,
        sequence: int | None = None,
    ) -> Reception:
        key = (node, run)
        if sequence is None:
            sequence = self._sequences.get(key, 0)
        self._sequences[key] = sequence + 1
        header = BatchHeader(
            node=node,
            run_id=run,
            sequence=sequence,
            watermark_ns=int((MINUTE_S + watermark_s) * SECOND_NS),
            final=final,
        )
        now = MINUTE_S + (watermark_s if now_s is None else now_s)
        reception = self.minutes.receive(header, now)
        parts = [Contribution(MINUTE_S + 60 * minute) for minute in touches]
        self.minutes.add(self.offset, parts, now)
        self.offset += 1
        return reception

    def due(self, now_s: float) -> list[int]:
        return [(minute_s - MINUTE_S) // 60 for minute_s in self.minutes.due(MINUTE_S + now_s)]

    def store(self, minute: int) -> tuple[int, int, bool]:
        closed = self.minutes.close(MINUTE_S + 60 * minute)
        self.minutes.stored(closed.minute_s)
        return closed.base_offset, closed.end_offset, closed.late


def test_a_minute_waits_for_every_live_node() -> None:
    bench = Bench()
    bench.batch(30, touches=(0,))
    bench.batch(55, node="node-b")
    bench.batch(62.5, touches=(1,))
    assert bench.due(62.5) == []
    bench.batch(61.9, node="node-b", now_s=62.6)
    assert bench.due(62.6) == []  # the grace
    bench.batch(62, node="node-b", now_s=62.7)
    assert bench.due(62.7) == [0]


def test_a_silent_node_is_waited_for_until_it_counts_as_gone() -> None:
    bench = Bench()
    bench.batch(59, node="node-b")
    bench.batch(63, touches=(0,))
    assert bench.due(68.9) == []
    bench.batch(69, touches=(0,))
    assert bench.due(69) == [0]


def test_nobody_waits_for_skewed_clocks() -> None:
    bench = Bench()
    bench.batch(63, touches=(0,))
    bench.batch(63 - 3600, node="behind", now_s=63)
    bench.batch(63 + 3600, node="ahead", touches=(61,), now_s=63)
    assert bench.due(63) == [0]
    bench.store(0)
    # Its far minute is stored soon enough too, so that it does not pin the floor.
    bench.batch(63 + 89, now_s=63 + 89)
    assert bench.due(63 + 91) == [61]


def test_the_wall_clock_closes_what_a_live_node_holds_open() -> None:
    bench = Bench()
    bench.batch(10, touches=(0,))
    bench.batch(58, node="slow", now_s=84)
    bench.batch(85, now_s=85)
    assert bench.due(89.9) == []
    assert bench.due(90) == [0]


def test_old_minutes_have_patience_too_when_catching_up() -> None:
    bench = Bench()
    bench.batch(20, touches=(0,), now_s=7200)
    bench.batch(40, touches=(0,), now_s=7200)
    assert bench.due(7200) == []  # an hour late is no reason to store it in pieces
    bench.batch(62, touches=(1,), now_s=7201)
    assert bench.due(7201) == [0]
    assert bench.due(7231) == [0, 1]


def test_the_end_of_all_runs_flushes_at_once() -> None:
    bench = Bench()
    bench.batch(10, touches=(0,))
    bench.batch(10, node="node-b", touches=(0,))
    bench.batch(11, final=True)
    assert bench.due(11) == []
    bench.batch(11, node="node-b", final=True)
    assert bench.due(11) == [0]
    bench.store(0)
    bench.batch(12, run="run-2", touches=(0,))
    assert bench.due(12) == []


def test_the_floor_is_the_first_offset_of_what_is_not_stored() -> None:
    bench = Bench(start=100)
    bench.batch(10)
    assert bench.minutes.floor == 101
    bench.batch(20, touches=(0,))
    bench.batch(61, touches=(0, 1))
    bench.batch(63, touches=(1,))
    assert bench.minutes.floor == 101
    closed = bench.minutes.close(MINUTE_S)
    assert (closed.base_offset, closed.end_offset, closed.late) == (101, 104, False)
    assert bench.minutes.floor == 101  # until it is stored
    bench.minutes.stored(MINUTE_S)
    assert bench.minutes.floor == 102
    bench.batch(123)
    assert bench.due(123) == [1]
    assert bench.store(1) == (102, 105, False)
    assert bench.minutes.floor == 105


def test_late_data_is_a_block_of_its_own() -> None:
    bench = Bench()
    bench.batch(63, touches=(0,))
    assert bench.store(0) == (0, 1, False)
    bench.batch(64)
    bench.batch(65, touches=(0,))
    assert bench.due(65) == [0]
    assert bench.store(0) == (2, 3, True)


def test_what_was_stored_before_is_skipped_and_nothing_closes_until_then() -> None:
    bench = Bench(start=10, emitted={MINUTE_S: 12, MINUTE_S + 60: 14})
    bench.batch(63, touches=(0,))  # 10: stored
    bench.batch(63, touches=(0, 1))  # 11: both stored
    bench.batch(63, touches=(0, 1))  # 12: the first is new
    assert bench.due(1000) == []
    assert bench.minutes.floor == 12
    bench.batch(63, touches=(1,))  # 13: stored
    assert bench.due(63) == [0]
    bench.batch(64, touches=(1,))  # 14
    assert bench.store(0) == (12, 15, True)
    bench.batch(123)
    assert bench.store(1) == (14, 16, True)


def test_places_in_a_run() -> None:
    bench = Bench(start=5)
    assert bench.batch(0, sequence=7) == Reception()  # read from the middle: nothing is missing
    assert bench.batch(1, sequence=8) == Reception()
    assert bench.batch(2, sequence=8).duplicate
    assert bench.batch(3, sequence=11) == Reception(missing=2)
    assert bench.batch(4, sequence=9) == Reception()  # late, not twice
    assert bench.batch(5, sequence=9).duplicate
    assert bench.batch(6, sequence=12) == Reception()
    assert bench.batch(7, run="run-2") == Reception(unclean=True)
    assert bench.batch(8, run="run-1", sequence=13) == Reception()
    assert bench.batch(9, run="run-2", final=True) == Reception()
    assert bench.batch(10, run="run-3") == Reception()


def test_watermarks_of_a_run_that_is_over_say_nothing() -> None:
    bench = Bench()
    bench.batch(10, touches=(0,))
    bench.batch(20, run="run-2")
    bench.batch(500, run="run-1", now_s=21)
    assert bench.due(21) == []
