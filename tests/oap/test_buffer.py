"""What waits, in which order it leaves, and when offsets may be committed."""

from __future__ import annotations

import pytest

from sink.oap.buffer import Buffer
from sink.oap.convert import Stream

P0, P1 = ("t", 0), ("t", 1)


@pytest.fixture
def buffer():
    buffer = Buffer(100, lambda parcel: buffer_dropped.append(parcel.stream.node))
    buffer_dropped.clear()
    return buffer


buffer_dropped: list[str] = []


def put(buffer, name, size=10, *rounds):
    buffer.put(Stream(name, [b""], 1, size), rounds)


def one_round(buffer, partition, offset, *names, size=10):
    round_ = buffer.begin(partition, offset)
    for name in names:
        put(buffer, name, size, round_)
    buffer.end(round_)


def test_offsets_are_finished_in_order(buffer):
    one_round(buffer, P0, 5, "a", "b")
    one_round(buffer, P0, 9, "c")
    a, b, c = (buffer.take(0) for _ in range(3))
    assert buffer.take(0) is None
    assert buffer.leave(c)
    assert buffer.leave(a)
    assert buffer.finished() == {}
    assert buffer.leave(b)
    assert buffer.finished() == {P0: 9}
    assert buffer.finished() == {}
    assert (buffer.size, buffer.logs) == (0, 0)


def test_a_round_without_logs_is_finished_at_once(buffer):
    one_round(buffer, P0, 5)
    assert buffer.finished() == {P0: 5}


def test_a_round_is_not_finished_while_streams_are_still_added(buffer):
    round_ = buffer.begin(P0, 5)
    put(buffer, "a", 10, round_)
    buffer.leave(buffer.take(0))
    assert buffer.finished() == {}
    buffer.end(round_)
    assert buffer.finished() == {P0: 5}


def test_partitions_do_not_wait_for_each_other(buffer):
    one_round(buffer, P0, 5, "a")
    one_round(buffer, P1, 7, "b")
    _, b = buffer.take(0), buffer.take(0)
    buffer.leave(b)
    assert buffer.finished() == {P1: 7}


def test_the_oldest_is_dropped_unless_it_is_being_sent(buffer):
    for number in range(3):
        one_round(buffer, P0, number, f"{number}", size=40)
    assert not buffer.room()
    first = buffer.take(0)
    assert buffer.begin_call(first)
    assert buffer.drop_oldest()
    assert buffer_dropped == ["1"]
    buffer.end_call(first)
    assert buffer.drop_oldest()
    assert buffer_dropped == ["1", "0"]
    assert not buffer.begin_call(first)
    assert not buffer.leave(first)
    assert buffer.finished() == {P0: 1}
    assert buffer.size == 40


def test_nothing_to_drop(buffer):
    assert not buffer.drop_oldest()
    one_round(buffer, P0, 1, "a")
    assert buffer.begin_call(buffer.take(0))
    assert not buffer.drop_oldest()


def test_what_belongs_to_a_lost_partition_is_forgotten(buffer):
    one_round(buffer, P0, 1, "a", "b")
    one_round(buffer, P1, 1, "c")
    sending = buffer.take(0)
    buffer.begin_call(sending)
    assert buffer.give_away([P0]) == 1
    assert buffer.leave(sending)
    assert buffer.finished() == {}
    assert buffer.take(0).stream.node == "c"


def test_a_stream_of_two_partitions_goes_when_both_are_lost(buffer):
    rounds = [buffer.begin(P0, 1), buffer.begin(P1, 1)]
    put(buffer, "a", 10, *rounds)
    for round_ in rounds:
        buffer.end(round_)
    assert buffer.give_away([P0]) == 0
    assert buffer.give_away([P0, P1]) == 1


def test_closing_lets_nobody_wait(buffer):
    buffer.close()
    assert buffer.take(60) is None
