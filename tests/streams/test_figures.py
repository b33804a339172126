"""Figures of layers 2 to 4 and the spread of their stages, against plain loops over the rows."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.catalogue import DISTRIBUTION_SCOPES, DISTRIBUTIONS
from schemas.columns import UNMEASURED_U32
from schemas.events import (
    CALL_NONE,
    FIGURE_WIDTH,
    READ_FIGURES,
    WRITE_FIGURES,
    Direction,
    EventBatch,
    Transfers,
    decode_batch,
    encode_batch,
)
from schemas.metrics import decode_block, encode_block
from streams.aggregate import contributions
from streams.blocks import minute_blocks
from streams.directory import Directory
from streams.minutes import MinuteSums
from streams.naming import NamingSettings
from streams.resolver import Resolver
from streams.windows import ClosedMinute
from tests.streams.build import MINUTE_NS, MINUTE_S, SECOND_NS, BatchBuilder, pod, service
from tests.streams.fakes import spreads, totals

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from schemas.metrics import MetricsBlock

GREATEST = int(UNMEASURED_U32) - 1
PEERS = {
    "10.0.0.1": "web.shop",
    "10.0.0.2": "api.shop",
    "10.0.0.3": "api.shop",
    "10.96.0.2": "data.shop",
    "203.0.113.1": "203.0.113.1",
    "203.0.113.2": "203.0.113.2",
}
"""The pod itself, two pods of a service, a service whose pod nobody knows, and two addresses of the
world; each with the service that it counts as."""
SERVICES = tuple(PEERS.values())


def directory() -> Directory:
    found = Directory()
    found.apply(pod("web-1", "10.0.0.1"))
    found.apply(pod("api-1", "10.0.0.2"))
    found.apply(pod("api-2", "10.0.0.3"))
    found.apply(service("data", "10.96.0.2"))
    return found


def random_batch(chance: random.Random, sequence: int = 0) -> EventBatch:
    """Some rows of every kind; what is measured differs by batch, row and value."""
    builder = BatchBuilder(sequence=sequence)
    rows = [
        builder.connection(f"10.0.0.1:{40_000 + place}", f"{peer}:80", container="c-web-1")
        for place, peer in enumerate(PEERS)
    ]
    count = chance.choice((1, 5, 31, 32, 33, 150))
    for _ in range(count):
        at = MINUTE_NS + chance.choice((0, 0, 0, 60)) * SECOND_NS
        builder.transfer(
            chance.choice(rows),
            chance.choice((1, 2**32 - 1)),
            write=chance.random() < 0.5,
            at=at,
            duration=chance.choice((5, 2**50 + 1)),
            call=CALL_NONE if chance.random() < 0.2 else chance.randrange(1, CALL_NONE),
        )
    if chance.random() < 0.3:
        builder.open(rows[1]).close(rows[3])
    batch = builder.batch()
    kind = chance.choice(("values", "values", "scattered", "flags", "columns", "absent"))
    numbers = np.random.default_rng(chance.randrange(2**32))
    figures = np.exp2(numbers.uniform(0, 32, (count, FIGURE_WIDTH))).astype("<u4")
    figures[numbers.random(figures.shape) < 0.2] = 0
    figures[numbers.random(figures.shape) < 0.1] = GREATEST
    if kind == "absent":
        return batch
    if kind == "scattered":
        figures[numbers.random(figures.shape) < 0.1] = UNMEASURED_U32
    if kind == "flags":
        figures[numbers.random(count) < 0.3, :3] = UNMEASURED_U32
        figures[numbers.random(count) < 0.3, 3:] = UNMEASURED_U32
    if kind == "columns":
        figures[:, numbers.random(FIGURE_WIDTH) < 0.6] = UNMEASURED_U32
    figures[batch.transfers.direction == Direction.READ, len(READ_FIGURES) :] = UNMEASURED_U32
    batch.transfers.figures = figures
    return batch


@dataclass
class ByHand:
    """What a minute of the service relations must hold."""

    sums: Counter[tuple[str, str]] = field(default_factory=Counter)
    spread: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    exceeding: Counter[str] = field(default_factory=Counter)


def bucket(value: int) -> int:
    """By the definition, in whole numbers only."""
    if not value:
        return 0
    top = value.bit_length() - 1
    return 1 + 4 * top + ((value << 2 >> top) & 3)


def counted_by_hand(batches: Iterable[EventBatch]) -> dict[int, ByHand]:
    """By plain loops, for every peer but the pod itself."""
    minutes: dict[int, ByHand] = {}
    for batch in batches:
        moves = batch.transfers
        for row in range(moves.rows):
            peer = int(moves.connection[row])
            if peer == 0:
                continue
            name = SERVICES[peer]
            minute = minutes.setdefault(int(moves.end_ns[row]) // 10**9 // 60 * 60, ByHand())
            write = moves.direction[row] == Direction.WRITE
            called = moves.call[row] != CALL_NONE
            side = "write" if write else "read"
            minute.sums[name, "events_seen"] += 1
            if called:
                minute.sums[name, f"{side}_count"] += 1
                minute.sums[name, f"{side}_bytes"] += int(moves.size[row])
                minute.sums[name, f"{side}_duration"] += int(moves.duration_ns[row])
                minute.sums[name, f"{side}_duration_measured_count"] += 1
            if not len(moves.figures):
                continue
            names = WRITE_FIGURES if write else READ_FIGURES
            values = {
                figure: int(value)
                for figure, value in zip(names, moves.figures[row].tolist(), strict=False)
                if value != UNMEASURED_U32
            }
            for figure, value in values.items():
                if figure == "read_unattributed_duration" and value == GREATEST and called:
                    # As much as fits: the rest of the call's duration is known.
                    whole = int(moves.duration_ns[row])
                    value = max(value, whole - values.get("read_call_duration", whole))
                minute.sums[name, figure] += value
                minute.sums[name, f"{figure}_measured_count"] += called
            if not called:
                continue
            for found in DISTRIBUTIONS:
                if found.direction != side or not {*found.plus, *found.minus} <= set(values):
                    continue
                value = sum(values[n] for n in found.plus) - sum(values[n] for n in found.minus)
                if value < 0:
                    minute.exceeding[found.name] += 1
                else:
                    minute.spread[name, found.name, bucket(value)] += 1
        for rows, peer_name, figures in (
            (batch.opens.rows, "api.shop", ("connect_count", "connect_success_count")),
            (batch.closes.rows, "data.shop", ("close_count",)),
        ):
            if rows:
                minute = minutes.setdefault(MINUTE_S, ByHand())
                for figure in (*figures, "events_seen"):
                    minute.sums[peer_name, figure] += rows
    return minutes


def minutes_of(
    batches: Iterable[EventBatch],
) -> tuple[dict[int, MinuteSums], dict[int, Counter[str]]]:
    """The sums of each minute, and how many values had no bucket."""
    resolver = Resolver(directory(), NamingSettings())
    sums: dict[int, MinuteSums] = {}
    exceeding: dict[int, Counter[str]] = {}
    for batch in batches:
        taken = decode_batch(encode_batch(batch))
        for part in contributions(taken, resolver.resolve(taken)):
            sums.setdefault(part.minute_s, MinuteSums()).add(part)
            exceeding.setdefault(part.minute_s, Counter()).update(part.exceeding())
    return sums, exceeding


def blocks_of(minute_s: int, sums: MinuteSums, rows_per_block: int) -> list[MetricsBlock]:
    closed = ClosedMinute(minute_s, 7, 9, sums, late=False)
    blocks = minute_blocks(closed, "events", 0, "a", rows_per_block)
    return [decode_block(encode_block(block)) for block in blocks]


def spread_of(blocks: Sequence[MetricsBlock], table: str) -> Counter[tuple[str, str, int]]:
    """(last key's text, distribution, bucket) to count."""
    found: Counter[tuple[str, str, int]] = Counter()
    for place, count in spreads([blocks], table).items():
        found[place[-3:]] += count
    return found


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), batches=st.integers(1, 4), rows_per_block=st.integers(1, 9))
def test_all_is_what_plain_loops_say(seed: int, batches: int, rows_per_block: int) -> None:
    chance = random.Random(seed)
    made = [random_batch(chance, sequence) for sequence in range(batches)]
    expected = counted_by_hand(made)
    minutes, exceeding = minutes_of(made)
    for minute_s, sums in minutes.items():
        hand = expected.pop(minute_s, ByHand())
        blocks = blocks_of(minute_s, sums, rows_per_block)
        found = {
            (keys[4], keys[5]): value
            for keys, value in totals([blocks], "service_relation").items()
        }
        assert found == {place: value for place, value in hand.sums.items() if value}
        assert spread_of(blocks, "service_relation") == hand.spread
        of_service: Counter[tuple[str, str, int]] = Counter()
        for (_, name, place), count in hand.spread.items():
            of_service["web.shop", name, place] += count
        assert spread_of(blocks, "service") == of_service
        assert not spread_of(blocks, "instance") + spread_of(blocks, "instance_relation")
        assert exceeding[minute_s] == hand.exceeding
        events = Counter[str]()
        for (_, _, stage, kind, _), (entered, left, dropped) in sums.ledger.items():
            if (stage, kind) == ("streams", "transfer"):
                events.update(entered=entered, accounted=left + dropped)
        rows = sum(
            int((batch.transfers.end_ns // np.uint64(60 * SECOND_NS) * 60 == minute_s).sum())
            for batch in made
        )
        assert events["entered"] == events["accounted"] == rows
    assert not expected


def one_row(**figures: int) -> BatchBuilder:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80", container="c-web-1")
    return builder.transfer(c, 5, write=True, duration=9, **figures)


def test_sums_beyond_what_a_double_holds_are_exact() -> None:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80", container="c-web-1")
    rows, times = 4_000, 1_000
    for _ in range(rows):
        builder.transfer(c, 1, write=True, write_l4_duration=GREATEST - 1, write_packet_size=3)
    batch = builder.batch()
    resolution = Resolver(directory(), NamingSettings()).resolve(batch)
    (part,) = contributions(batch, resolution)
    sums = MinuteSums()
    for _ in range(times):
        sums.add(part)
    sums.add(contributions(*resolved(one_row(write_l4_duration=1)))[0])
    found = totals([blocks_of(MINUTE_S, sums, 100)], "service")
    place = (MINUTE_S, "", "client", "web.shop")
    expected = rows * times * (GREATEST - 1) + 1
    assert expected > 2**53
    assert found[*place, "write_l4_duration"] == expected
    assert found[*place, "write_l4_duration_measured_count"] == rows * times + 1
    assert found[*place, "write_packet_size"] == 3 * rows * times


def resolved(builder: BatchBuilder) -> tuple:  # type: ignore[type-arg]
    batch = builder.batch()
    return batch, Resolver(directory(), NamingSettings()).resolve(batch)


def service_row(*builders: BatchBuilder) -> tuple[dict[str, int], dict[str, int]]:
    """Figures and measured counts of the only service."""
    minutes, _ = minutes_of([builder.batch() for builder in builders])
    (block,) = blocks_of(MINUTE_S, minutes[MINUTE_S], 100)
    table = next(table for table in block.tables if table.table == "service")
    assert table.rows == 1
    return (
        {name: int(values[0]) for name, values in table.figures.items()},
        {name: int(values[0]) for name, values in table.measured.items()},
    )


def test_what_came_after_the_last_call_adds_to_the_sums_only() -> None:
    builder = one_row(write_packet_count=2, write_packet_size=100)
    builder.transfer(0, 77, write=True, duration=8, call=CALL_NONE, write_packet_count=3)
    figures, measured = service_row(builder)
    assert (figures["write_packet_count"], measured["write_packet_count"]) == (5, 1)
    assert (figures["write_packet_size"], measured["write_packet_size"]) == (100, 1)
    assert (figures["write_count"], figures["write_bytes"]) == (1, 5)
    assert (figures["write_duration"], measured["write_duration"]) == (9, 1)
    assert figures["events_seen"] == 2


def test_a_row_of_nothing_but_what_came_after_the_last_call() -> None:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80", container="c-web-1")
    builder.transfer(c, 0, call=CALL_NONE, read_packet_count=3, read_l4_duration=0)
    figures, measured = service_row(builder)
    assert (figures["read_packet_count"], measured["read_packet_count"]) == (3, 0)
    assert (figures["read_count"], figures["events_seen"]) == (0, 1)
    assert "read_l3_duration" not in figures
    assert "read_duration" not in figures
    minutes, _ = minutes_of([builder.batch()])
    assert not spread_of(blocks_of(MINUTE_S, minutes[MINUTE_S], 100), "service")
    assert minutes[MINUTE_S].ledger["", "node-a", "streams", "transfer", ""] == [1, 1, 0]


def test_a_measured_nought_is_no_gap() -> None:
    figures, measured = service_row(one_row(write_retransmit_packet_count=0))
    name = "write_retransmit_packet_count"
    assert (figures[name], measured[name]) == (0, 1)
    assert set(measured) == {name, "write_duration"}


def test_nodes_that_measure_different_figures_meet_in_one_minute() -> None:
    figures, measured = service_row(
        one_row(), one_row(write_packet_count=4), one_row(), one_row(write_l2_duration=6)
    )
    assert figures["write_count"] == 4
    assert (figures["write_packet_count"], measured["write_packet_count"]) == (4, 1)
    assert (figures["write_l2_duration"], measured["write_l2_duration"]) == (6, 1)


def test_a_part_greater_than_its_whole_is_in_no_bucket_and_counted() -> None:
    builder = one_row(write_l4_duration=10, write_l3_duration=11)
    builder.transfer(0, 1, write=True, write_l4_duration=11, write_l3_duration=11)
    minutes, exceeding = minutes_of([builder.batch()])
    assert exceeding == {MINUTE_S: {"write_tcp": 1}}
    found = spread_of(blocks_of(MINUTE_S, minutes[MINUTE_S], 100), "service")
    assert found == {("web.shop", "write_tcp", 0): 1}


def test_parts_of_a_minute_hold_every_count_once() -> None:
    builder = BatchBuilder()
    for peer in range(300):
        c = builder.connection("10.0.0.1:40000", f"203.0.{peer // 250}.{peer % 250}:80")
        for place in range(peer % 30 + 1):
            builder.transfer(c, 1, write=True, resolve_mac_duration=2**place)
    minutes, _ = minutes_of([builder.batch()])
    closed = ClosedMinute(MINUTE_S, 7, 9, minutes[MINUTE_S], late=False)
    whole = minute_blocks(closed, "events", 0, "a")
    assert len(whole) == 1
    small = minute_blocks(closed, "events", 0, "a", max_bytes=20_000)
    assert len(small) > 5
    assert max(len(encode_block(block)) for block in small) <= 20_000
    decoded = [decode_block(encode_block(block)) for block in small]
    for table in DISTRIBUTION_SCOPES:
        expected = spread_of(whole, table)
        assert sum(expected.values()) == sum(peer % 30 + 1 for peer in range(300))
        assert spread_of(decoded, table) == expected


def test_the_same_events_make_the_same_blocks() -> None:
    chance = random.Random(11)
    batches = [random_batch(chance, sequence) for sequence in range(6)]

    def messages() -> list[bytes]:
        minutes, _ = minutes_of(batches)
        return [
            encode_block(block)
            for minute_s, sums in sorted(minutes.items())
            for block in blocks_of(minute_s, sums, 4)
        ]

    assert messages() == messages()


@pytest.mark.parametrize("values", [np.zeros((0, FIGURE_WIDTH), "<u4"), None])
def test_a_batch_without_figures_measures_none(values: np.ndarray | None) -> None:
    batch = one_row().batch()
    assert Transfers().figures.shape == (0, FIGURE_WIDTH)
    if values is not None:
        batch.transfers.figures = values
    else:
        batch = decode_batch(encode_batch(batch))
    minutes, _ = minutes_of([batch])
    (part,) = contributions(batch, Resolver(directory(), NamingSettings()).resolve(batch))
    assert not part.stages
    (block,) = blocks_of(MINUTE_S, minutes[MINUTE_S], 100)
    assert not any(table.histograms for table in block.tables)
    table = next(table for table in block.tables if table.table == "service")
    assert set(table.measured) == {"write_duration"}
