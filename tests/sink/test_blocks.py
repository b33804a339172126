"""Parts become blocks, and no event is stored twice."""

from __future__ import annotations

import random
from dataclasses import replace

from schemas.metrics import BlockIdentity
from sink.blocks import PATIENCE, Assembler, StoredBlocks
from tests.sink.blocks import block

IDENTITY = BlockIdentity("events", 0, 60, 100, 200)


def part(index: int, parts: int, attempt: str = "a", base: int = 0):
    return block(base, part=index, parts=parts, attempt=attempt, rows=1)


def test_a_single_part_is_whole():
    assembler = Assembler()
    whole = assembler.add(5, part(0, 1))
    assert whole is not None
    assert whole.first_offset == 5
    assert assembler.floor(6) == 6


def test_parts_in_any_order_and_repeated_make_one_block():
    order = [0, 1, 2, 3, 1]
    random.Random(4).shuffle(order)
    assembler = Assembler()
    whole = [assembler.add(10 + i, part(index, 4)) for i, index in enumerate(order)]
    found = [one for one in whole if one is not None]
    assert len(found) == 1
    assert [one.identity.part for one in found[0].ordered()] == [0, 1, 2, 3]


def test_attempts_never_mix_and_hold_the_offset():
    assembler = Assembler()
    assert assembler.add(1, part(0, 2, "a")) is None
    assert assembler.add(2, part(0, 2, "b")) is None
    assert assembler.floor(3) == 1
    whole = assembler.add(3, part(1, 2, "b"))
    assert whole is not None
    assert whole.identity.attempt == "b"
    given_up = assembler.give_up(whole.identity)
    assert [one.identity.attempt for one in given_up] == ["a"]
    assert assembler.floor(4) == 4


def test_an_attempt_without_news_is_given_up():
    assembler = Assembler()
    assembler.add(0, part(0, 2, "dead"))
    for offset in range(1, PATIENCE):
        assembler.add(offset, part(0, 1, base=offset))
        assert assembler.give_up() == []
    assembler.add(PATIENCE, part(0, 1, base=PATIENCE))
    assert [one.first_offset for one in assembler.give_up()] == [0]


def test_only_new_ranges_may_be_stored():
    stored = StoredBlocks()
    stored.add("events", 60, 100, 200, 7)
    assert stored.judge(IDENTITY, 7) == "replayed"
    assert stored.judge(IDENTITY, 8) == "duplicate"
    assert stored.judge(replace(IDENTITY, end_offset=150), 8) == "overlapping"
    assert stored.judge(replace(IDENTITY, base_offset=199, end_offset=300), 8) == "overlapping"
    assert stored.judge(replace(IDENTITY, base_offset=200, end_offset=300), 8) == "new"
    assert stored.judge(replace(IDENTITY, base_offset=0, end_offset=100), 8) == "new"
    assert stored.judge(replace(IDENTITY, minute_s=120), 8) == "new"
    assert stored.judge(replace(IDENTITY, topic="events@2"), 8) == "new"
