"""Exact sums, whatever the order and the size."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.hashing import distinct
from schemas.ledger import Entry
from streams.aggregate import contributions, duplicate, header_minute
from streams.directory import Directory
from streams.minutes import MinuteSums
from streams.naming import NamingSettings
from streams.resolver import Resolver
from streams.scopes import minute_tables
from streams.transfers import COLUMNS
from tests.streams.build import MINUTE_NS, MINUTE_S, SECOND_NS, UNMEASURED, BatchBuilder, pod

if TYPE_CHECKING:
    from schemas.events import EventBatch


def summed(batches: list[EventBatch], directory: Directory | None = None) -> dict[int, MinuteSums]:
    resolver = Resolver(directory or Directory(), NamingSettings())
    minutes: dict[int, MinuteSums] = {}
    for batch in batches:
        for part in contributions(batch, resolver.resolve(batch)):
            minutes.setdefault(part.minute_s, MinuteSums()).add(part)
    return minutes


def row(sums: MinuteSums, place: int = 0) -> dict[str, int]:
    return dict(zip(COLUMNS, sums.sums[place].tolist(), strict=False))


def test_every_figure_at_hand() -> None:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80", process="curl")
    builder.open(c, duration=11).open(c, error=111).open(c, accept=True, duration=3)
    builder.close(c, duration=5).close(c)
    builder.transfer(c, 100, duration=7).transfer(c, 50, write=True).transfer(c, 1, duration=0)
    found = row(summed([builder.batch()])[MINUTE_S])
    assert found == {
        "transfer_events": 3,
        "request_events": 0,
        "drop_events": 0,
        "connect_count": 2,
        "connect_duration": 11,
        "connect_duration_measured_count": 1,
        "connect_success_count": 1,
        "accept_count": 1,
        "accept_duration": 3,
        "accept_duration_measured_count": 1,
        "close_count": 2,
        "close_duration": 5,
        "close_duration_measured_count": 1,
        "read_count": 2,
        "read_bytes": 101,
        "read_duration": 7,
        "read_duration_measured_count": 2,
        "write_count": 1,
        "write_bytes": 50,
        "write_duration": 0,
        "write_duration_measured_count": 0,
    }


def test_large_numbers_are_exact() -> None:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    for _ in range(3):
        builder.transfer(c, 2**32 - 1, duration=2**61 + 1)
    builder.transfer(c, 1, duration=UNMEASURED)
    found = row(summed([builder.batch()])[MINUTE_S])
    assert found["read_bytes"] == 3 * (2**32 - 1) + 1
    assert found["read_duration"] == 3 * (2**61 + 1)
    assert found["read_duration_measured_count"] == 3


def test_events_go_to_the_minute_of_their_end() -> None:
    builder = BatchBuilder(ledger=[Entry("kernel", "transfer", "ring_full", 0, 0, 4)])
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    end = MINUTE_NS + 60 * SECOND_NS
    builder.open(c, at=end - 1).transfer(c, 5, at=end - 1).transfer(c, 6, at=end).close(c, at=end)
    minutes = summed([builder.batch()])
    assert sorted(minutes) == [MINUTE_S, MINUTE_S + 60]
    assert row(minutes[MINUTE_S])["read_bytes"] == 5
    assert row(minutes[MINUTE_S + 60])["read_bytes"] == 6
    # What was lost belongs to the minute in which the batch ends.
    assert minutes[MINUTE_S].lost == {}
    assert minutes[MINUTE_S + 60].lost == {"node-a": 4}


def test_impossible_times_are_dropped_and_counted() -> None:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    builder.transfer(c, 5).transfer(c, 6, at=3).transfer(c, 7, at=UNMEASURED).close(c, at=2**63)
    batch = builder.batch()
    batch.header.last_event_ns = MINUTE_NS
    minutes = summed([batch])
    assert list(minutes) == [MINUTE_S]
    assert row(minutes[MINUTE_S])["read_bytes"] == 5
    ledger = minutes[MINUTE_S].ledger
    assert ledger["", "node-a", "streams", "transfer", "malformed"] == [0, 0, 2]
    assert ledger["", "node-a", "streams", "close", "malformed"] == [0, 0, 1]
    assert_closes(minutes[MINUTE_S])


def assert_closes(sums: MinuteSums) -> None:
    left: dict[tuple[str, str], int] = {}
    for (_, _, stage, kind, _), (entered, out, dropped) in sums.ledger.items():
        if stage == "streams":
            left[stage, kind] = left.get((stage, kind), 0) + entered - out - dropped
    assert not any(left.values()), left


def test_the_ledger_closes_with_every_way_to_be_dropped() -> None:
    directory = Directory()
    directory.apply(pod("web-1", "10.0.0.1"))
    builder = BatchBuilder()
    inside = builder.connection("10.0.0.1:40000", "10.0.0.1:80", container="c-web-1")
    outside = builder.connection("10.0.0.1:40000", "203.0.113.1:80", container="c-web-1")
    for c in (inside, outside):
        builder.open(c).transfer(c, 5).transfer(c, 6, write=True).close(c)
    sums = summed([builder.batch()], directory)[MINUTE_S]
    assert len(sums.relations) == 1
    assert row(sums)["read_bytes"] == 5
    assert sums.ledger["", "node-a", "streams", "transfer", ""] == [4, 2, 0]
    assert sums.ledger["", "node-a", "streams", "transfer", "pod_internal"] == [0, 0, 2]
    assert_closes(sums)


def test_a_duplicate_enters_and_is_dropped() -> None:
    builder = BatchBuilder(ledger=[Entry("kernel", "open", "", 9, 9, 0)])
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    batch = builder.open(c).transfer(c, 5).batch()
    part = duplicate(batch)
    sums = MinuteSums()
    sums.add(part)
    assert part.minute_s == header_minute(batch.header) == MINUTE_S
    assert not sums.relations
    assert ("", "node-a", "kernel", "open", "") not in sums.ledger  # counted the first time
    assert_closes(sums)


def test_lost_events_count_once_for_a_row_and_node() -> None:
    batches = []
    for node, lost in (("node-a", 3), ("node-b", 5), ("node-c", 7)):
        builder = BatchBuilder(
            node=node, ledger=[Entry("collector", "open", "undelivered", 2, 0, lost)]
        )
        for port in (40_000, 40_001):
            for remote in ("203.0.113.1", "203.0.113.2"):
                c = builder.connection(f"10.0.0.1:{port}", f"{remote}:80", process="curl")
                if node != "node-c":
                    builder.open(c)
        batches.append(builder.batch())
    batches[2].header.watermark_ns = MINUTE_NS
    sums = summed(batches)[MINUTE_S]
    names, tables = minute_tables(sums)
    found = {table.table: table for table in tables}
    services = [names[i] for i in found["service"].keys["service"]]
    lost = dict(zip(services, found["service"].figures["events_lost"].tolist(), strict=True))
    assert lost == {"node-a": 3, "node-b": 5}
    assert found["service"].figures["events_seen"].tolist() == [4, 4]
    assert found["service_relation"].rows == 4


def test_unknown_pod_behind_a_service_makes_no_instance_relation() -> None:
    from tests.streams.build import service

    directory = Directory()
    directory.apply(pod("web-1", "10.0.0.1"))
    directory.apply(service("api", "10.96.0.2"))
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "10.96.0.2:80", container="c-web-1")
    sums = summed([builder.open(c).transfer(c, 5).batch()], directory)[MINUTE_S]
    _, tables = minute_tables(sums)
    assert [table.table for table in tables] == [
        "service",
        "instance",
        "service_relation",
        "coverage",
        "ledger",
    ]
    key = ("", "node-a", "streams", "connection", "instance_relation_dropped")
    assert sums.ledger[key] == [2, 0, 2]
    assert_closes(sums)


@given(st.integers(0, 2**32))
def test_sums_do_not_depend_on_how_batches_are_cut(seed: int) -> None:
    chance = random.Random(seed)
    events = [
        (
            chance.randrange(4),
            chance.randrange(3),
            MINUTE_NS + chance.randrange(180) * SECOND_NS,
            chance.choice((1, 2**32 - 1)),
            chance.choice((0, 9, 2**57, UNMEASURED)),
        )
        for _ in range(chance.randrange(1, 40))
    ]

    def cut(pieces: int) -> list[EventBatch]:
        batches = []
        order = events[:]
        chance.shuffle(order)
        for piece in range(pieces):
            builder = BatchBuilder(sequence=piece)
            rows = {
                peer: builder.connection("10.0.0.1:40000", f"203.0.113.{peer}:80")
                for peer in chance.sample(range(4), 4)
            }
            for peer, kind, at, size, duration in order[piece::pieces]:
                c = rows[peer]
                if kind == 0:
                    builder.open(c, at=at, duration=duration)
                elif kind == 1:
                    builder.close(c, at=at, duration=duration)
                else:
                    builder.transfer(c, size, at=at, duration=duration)
            batches.append(builder.batch())
        return batches

    def content(batches: list[EventBatch]) -> dict[tuple[int, str], list[int]]:
        return {
            (minute_s, relation.remote.service): sums.sums[place].tolist()
            for minute_s, sums in summed(batches).items()
            for place, relation in enumerate(sums.relations)
        }

    assert content(cut(1)) == content(cut(chance.randrange(2, 6)))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1)), min_size=1))
def test_distinct_is_what_sets_say(rows: list[tuple[int, int]]) -> None:
    columns = np.array(rows, np.uint64).reshape(-1, 2)
    first, index = distinct(columns[:, 0], columns[:, 1])
    assert len(first) == len(set(rows))
    assert [rows[place] for place in first[index]] == rows


def reasons_of(sums: MinuteSums, table: str) -> dict[str, int]:
    """The breakdown of lost packets of all rows of a table."""
    names, tables = minute_tables(sums)
    (found,) = (each for each in tables if each.table == table)
    assert "write_lost_packet_count" in found.figures
    counts = found.breakdowns["write_lost_packet_reasons"]
    of_row = np.zeros(found.rows, np.uint64)
    np.add.at(of_row, counts.row, counts.count)
    assert of_row.tolist() == found.figures["write_lost_packet_count"].tolist()
    told: dict[str, int] = {}
    for key, count in zip(counts.key.tolist(), counts.count.tolist(), strict=True):
        told[names[key]] = told.get(names[key], 0) + count
    return told


def test_lost_packets_with_and_without_a_reason() -> None:
    builder = BatchBuilder()
    first = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    other = builder.connection("10.0.0.1:40001", "203.0.113.2:80")
    builder.transfer(first, 5, write=True, write_lost_packet_count=2)
    builder.drop(first, 3, "NETFILTER_DROP").drop(first, 4, "QDISC_DROP")
    builder.drop(other, 2**32 - 1, "QDISC_DROP").drop(other, 1, "QDISC_DROP")
    later = BatchBuilder(sequence=1)
    only = later.connection("10.0.0.1:40000", "203.0.113.1:80")
    later.drop(only, 6, "QDISC_DROP")
    sums = summed([builder.batch(), later.batch()])[MINUTE_S]
    for table in ("service", "service_relation"):
        assert reasons_of(sums, table) == {
            "": 2,
            "NETFILTER_DROP": 3,
            "QDISC_DROP": 10 + 2**32,
        }
    _, tables = minute_tables(sums)
    (instances,) = (each for each in tables if each.table == "instance")
    assert instances.breakdowns == {}
    assert int(instances.figures["write_lost_packet_count"].sum()) == 15 + 2**32
    assert int(instances.figures["events_seen"].sum()) == 6
    assert sums.ledger["", "node-a", "streams", "drop", ""] == [5, 5, 0]
    assert_closes(sums)


def test_packets_lost_inside_a_pod_make_no_reasons() -> None:
    directory = Directory()
    directory.apply(pod("web-1", "10.0.0.1"))
    builder = BatchBuilder()
    inside = builder.connection("10.0.0.1:40000", "10.0.0.1:80", container="c-web-1")
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80", container="c-web-1")
    builder.drop(inside, 3, "NO_SOCKET").drop(c, 1, "QDISC_DROP")
    sums = summed([builder.batch()], directory)[MINUTE_S]
    assert reasons_of(sums, "service") == {"QDISC_DROP": 1}
    assert sums.ledger["", "node-a", "streams", "drop", "pod_internal"] == [0, 0, 1]
    assert_closes(sums)


def test_drops_of_another_age_are_malformed() -> None:
    builder = BatchBuilder()
    c = builder.connection("10.0.0.1:40000", "203.0.113.1:80")
    batch = builder.transfer(c, 1).drop(c, 1, "QDISC_DROP", at=9).batch()
    batch.header.anchor_unix_ns = MINUTE_NS
    sums = summed([batch])[MINUTE_S]
    assert sums.losses == {}
    assert sums.ledger["", "node-a", "streams", "drop", "malformed"] == [0, 0, 1]
