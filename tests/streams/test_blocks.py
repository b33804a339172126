"""Minutes as messages, and what is learned from them after a take-over."""

from __future__ import annotations

import asyncio

import pytest

from schemas.errors import FatalError
from schemas.metrics import BlockIdentity, MetricsBlock, decode_block, encode_block
from streams.aggregate import contributions
from streams.blocks import minute_blocks
from streams.directory import Directory
from streams.minutes import MinuteSums
from streams.naming import NamingSettings
from streams.recovery import complete_blocks, read_emitted
from streams.resolver import Resolver
from streams.windows import ClosedMinute
from tests.streams.build import MINUTE_S, BatchBuilder
from tests.streams.fakes import Topics, totals


def closed_minute(peers: int) -> ClosedMinute:
    builder = BatchBuilder()
    for peer in range(peers):
        c = builder.connection("10.0.0.1:40000", f"203.0.{peer // 250}.{peer % 250}:80")
        builder.open(c).transfer(c, peer + 1)
    batch = builder.batch()
    sums = MinuteSums()
    resolver = Resolver(Directory(), NamingSettings())
    for part in contributions(batch, resolver.resolve(batch)):
        sums.add(part)
    return ClosedMinute(MINUTE_S, 7, 9, sums, late=False)


def test_parts_hold_all_rows_once_and_only_their_own_names() -> None:
    whole = minute_blocks(closed_minute(100), "events", 3, "a")
    assert [block.identity for block in whole] == [
        BlockIdentity("events", 3, MINUTE_S, 7, 9, 0, 1, "a")
    ]
    parts = minute_blocks(closed_minute(100), "events", 3, "a", rows_per_block=30)
    # 1 service, 1 instance, 100 and 100 relations, 1 of the coverage, 2 of the ledger
    assert len(parts) == 7
    assert [block.identity.part for block in parts] == list(range(7))
    assert {block.identity.parts for block in parts} == {7}
    assert max(sum(table.rows for table in block.tables) for block in parts) == 30
    assert all(len(block.names) < 70 for block in parts)
    decoded = [decode_block(encode_block(block)) for block in parts]
    for table in ("service", "instance", "service_relation", "instance_relation", "ledger"):
        assert totals([decoded], table) == totals([whole], table) != {}


def test_reasons_stay_with_their_rows() -> None:
    builder = BatchBuilder()
    for peer in range(40):
        c = builder.connection("10.0.0.1:40000", f"203.0.113.{peer}:80")
        builder.transfer(c, 1).drop(c, peer + 1, f"REASON_{peer % 3}")
    batch = builder.batch()
    sums = MinuteSums()
    resolver = Resolver(Directory(), NamingSettings())
    for part in contributions(batch, resolver.resolve(batch)):
        sums.add(part)
    parts = minute_blocks(
        ClosedMinute(MINUTE_S, 7, 9, sums, late=False), "events", 3, "a", rows_per_block=7
    )
    assert len(parts) > 10
    told = {}
    for block in (decode_block(encode_block(part)) for part in parts):
        for table in block.tables:
            for counts in table.breakdowns.values():
                if table.table != "service_relation":
                    continue
                servers = table.keys["server_service"][counts.row]
                for server, key, count in zip(servers, counts.key, counts.count, strict=True):
                    told[block.names[server], block.names[key]] = int(count)
    assert told == {(f"203.0.113.{peer}", f"REASON_{peer % 3}"): peer + 1 for peer in range(40)}


def test_parts_fit_the_largest_message() -> None:
    parts = minute_blocks(closed_minute(500), "events", 0, "a", max_bytes=20_000)
    assert len(parts) > 5
    assert max(len(encode_block(block)) for block in parts) <= 20_000
    whole = minute_blocks(closed_minute(500), "events", 0, "a")
    assert totals([parts], "service_relation") == totals([whole], "service_relation")


def test_an_unmeasured_figure_is_absent() -> None:
    (block,) = minute_blocks(closed_minute(1), "events", 0, "a")
    figures = next(table for table in block.tables if table.table == "service").figures
    assert "connect_duration" not in figures
    assert figures["connect_count"].tolist() == [1]
    assert figures["accept_count"].tolist() == [0]
    assert "http_call_count" not in figures


def identity(minute: int, base: int, end: int, **values: object) -> BlockIdentity:
    return BlockIdentity("events", 0, minute * 60, base, end, **values)  # type: ignore[arg-type]


def test_blocks_count_when_all_parts_of_one_attempt_are_there() -> None:
    found = complete_blocks(
        [
            identity(1, 0, 5, part=0, parts=2, attempt="a"),
            identity(1, 0, 6, part=1, parts=2, attempt="b"),
            identity(2, 0, 5, part=1, parts=2, attempt="c"),
            identity(2, 0, 5, part=0, parts=2, attempt="c"),
            identity(2, 0, 5, part=0, parts=2, attempt="c"),
        ]
    )
    assert [(block.minute_s, block.end_offset) for block in found] == [(120, 5)]


def read(blocks: list[BlockIdentity], start: int, end: int = 10_000) -> tuple[dict[int, int], int]:
    topics = Topics()
    topics.metrics = [encode_block(MetricsBlock(block, [""], [])) for block in blocks]
    reads = 0
    original = topics.read

    async def counted(lower: int, upper: int) -> list[bytes]:
        nonlocal reads
        reads += upper - lower
        return await original(lower, upper)

    topics.read = counted  # type: ignore[method-assign]
    return asyncio.run(read_emitted(topics, "events", start, end)), reads


def test_the_tail_is_read_as_far_as_it_matters() -> None:
    blocks = [identity(place, place * 10, place * 10 + 12) for place in range(1000)]
    emitted, reads = read(blocks, 9_981, end=20_000)
    assert emitted == {997 * 60: 9_982, 998 * 60: 9_992, 999 * 60: 10_002}
    assert reads < 50


def test_blocks_of_another_life_of_the_broker_do_not_count() -> None:
    other = BlockIdentity("events@1", 0, 60, 0, 900)
    assert read([other, identity(2, 0, 5)], 0)[0] == {120: 5}


def test_a_topic_made_anew_is_noticed() -> None:
    with pytest.raises(FatalError, match="broker_epoch"):
        read([identity(1, 0, 500)], 0, end=20)


def test_what_is_no_block_is_passed_over() -> None:
    topics = Topics()
    topics.metrics = [b"nonsense", encode_block(MetricsBlock(identity(1, 0, 5), [""], []))]
    assert asyncio.run(read_emitted(topics, "events", 0, 10)) == {60: 5}
