"""Whatever dies whenever: the sink counts every contribution exactly once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.clock import ManualClock
from schemas.events import READ_FIGURES, EventBatch, decode_batch, encode_batch
from tests.streams.build import MINUTE_NS, SECOND_NS, BatchBuilder
from tests.streams.fakes import Crash, Topics, counted_blocks, make_pipeline, spreads, totals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.metrics import MetricsBlock

NODES = ("node-a", "node-b", "node-c")
CALL = {
    "http_call_count": 1,
    "http_duration": 7,
    "http_success_count": 1,
    "http_status_2xx_count": 1,
    **dict.fromkeys(("http_aborted_count", "http_unanswered_count", "grpc_call_count"), 0),
    **{f"http_status_{digit}xx_count": 0 for digit in (1, 3, 4, 5)},
}
"""The figures of an answered call of 7 ns."""
CALL_BUCKET = 45
STAGE_BUCKETS = {0: 0, 5: 10, 2**31: 125}


def make_log(seed: int, length: int) -> list[EventBatch]:
    """Batches of three nodes with skewed clocks, late and early events, heartbeats and gaps."""
    chance = random.Random(seed)
    sequences = dict.fromkeys(NODES, 0)
    skew = {name: chance.choice((0, 0, 20, -20, 300)) * SECOND_NS for name in NODES}
    batches = []
    for step in range(length):
        name = chance.choice(NODES)
        now = MINUTE_NS + step * 7 * SECOND_NS + skew[name]
        builder = BatchBuilder(node=name, sequence=sequences[name], watermark_ns=now)
        sequences[name] += 1
        for _ in range(chance.randrange(4)):
            peer = f"10.1.0.{chance.randrange(1, 4)}:80"
            row = builder.connection(f"10.0.0.1:{chance.randrange(40_000, 50_000)}", peer)
            at = now - chance.choice((0, 0, 0, 1, 5, 30, 70, 200)) * SECOND_NS
            if chance.random() < 0.5:
                builder.open(row, at=at, duration=chance.choice((5, 2**60)), error=0)
            for _ in range(chance.randrange(3)):
                builder.transfer(
                    row,
                    chance.randrange(1, 2**32),
                    at=at,
                    duration=7,
                    read_call_duration=chance.choice((0, 5, 2**31)),
                )
            if chance.random() < 0.3:
                builder.close(row, at=at)
            for _ in range(chance.randrange(3)):
                builder.request(row, at=at, duration=7)
        batches.append(builder.batch())
    return batches


def counted_by_hand(batches: list[EventBatch]) -> Counter[tuple[Any, ...]]:
    """The relation rows and their histograms by plain loops over the events."""
    sums: Counter[tuple[Any, ...]] = Counter()
    for batch in batches:
        peers = [
            ".".join(map(str, address[12:]))
            for address in batch.connections.remote_address.tolist()
        ]

        def add(
            row: int,
            end_ns: int,
            name: str | tuple[str, int],
            value: int,
            node: str,
            peers: list[str],
        ) -> None:
            minute_s = end_ns // (60 * SECOND_NS) * 60
            names = (name,) if isinstance(name, str) else name
            sums[minute_s, "", "client", node, peers[row], *names] += value

        opens = batch.opens
        for row, end_ns, duration in zip(
            opens.connection.tolist(),
            opens.end_ns.tolist(),
            opens.duration_ns.tolist(),
            strict=True,
        ):
            for name, value in (
                ("connect_count", 1),
                ("connect_success_count", 1),
                ("connect_duration", duration),
                ("connect_duration_measured_count", 1),
                ("events_seen", 1),
            ):
                add(row, end_ns, name, value, batch.header.node, peers)
        for row, end_ns in zip(
            batch.closes.connection.tolist(), batch.closes.end_ns.tolist(), strict=True
        ):
            add(row, end_ns, "close_count", 1, batch.header.node, peers)
            add(row, end_ns, "events_seen", 1, batch.header.node, peers)
        moves = batch.transfers
        stages = moves.figures[:, READ_FIGURES.index("read_call_duration")]
        for row, end_ns, size, stage in zip(
            moves.connection.tolist(),
            moves.end_ns.tolist(),
            moves.size.tolist(),
            stages.tolist(),
            strict=True,
        ):
            for name, value in (
                ("read_count", 1),
                ("read_bytes", size),
                ("read_duration", 7),
                ("read_duration_measured_count", 1),
                ("read_call_duration", stage),
                ("read_call_duration_measured_count", 1),
                (("read_call", STAGE_BUCKETS[stage]), 1),
                ("events_seen", 1),
            ):
                add(row, end_ns, name, value, batch.header.node, peers)
        for row, end_ns in zip(
            batch.requests.connection.tolist(), batch.requests.end_ns.tolist(), strict=True
        ):
            for name, value in CALL.items():
                add(row, end_ns, name, value, batch.header.node, peers)
                add(row, end_ns, f"{name}_measured_count", 1, batch.header.node, peers)
            add(row, end_ns, ("http_duration", CALL_BUCKET), 1, batch.header.node, peers)
            add(row, end_ns, "events_seen", 1, batch.header.node, peers)
    return Counter({place: value for place, value in sums.items() if value})


def counted_in_blocks(blocks: list[list[MetricsBlock]]) -> Counter[tuple[Any, ...]]:
    """The same from what was stored."""
    return totals(blocks, "service_relation") + spreads(blocks, "service_relation")


async def run_worker(topics: Topics, clock: ManualClock, chance: random.Random, until: int) -> None:
    """One life of a worker: from the committed offset, with ticks and commits in between."""
    pipeline = make_pipeline(topics, clock, rows_per_block=3, close_after_s=30.0, access_log=True)

    async def taken(messages: Sequence[bytes]) -> None:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        topics.logged.extend(messages)

    topics.access_log_taken = taken  # type: ignore[method-assign]

    def commit() -> None:
        if chance.random() < 0.3:
            topics.committed = pipeline.floor(0) or topics.committed

    topics.while_sending = commit
    for offset in range(topics.committed, until):
        await pipeline.receive(0, offset, b"", topics.events[offset], clock.unix_ns() / 1e9)
        if chance.random() < 0.3:
            clock.advance(chance.choice((0.1, 3, 40)))
            await pipeline.tick()
        commit()
    if until == len(topics.events):
        for _ in range(3):
            clock.advance(600)
            for _ in range(4):
                await asyncio.sleep(0)
            await pipeline.tick()
        assert pipeline.floor(0) in (None, until)  # None: all was committed before


async def live_and_die(seed: int, batches: list[EventBatch], deaths: int) -> Topics:
    chance = random.Random(seed)
    clock = ManualClock(MINUTE_NS)
    topics = Topics([encode_batch(batch) for batch in batches])
    for _ in range(deaths):
        topics.fuse = chance.choice((None, None, 0, 1, 2, 5, 9))
        until = chance.randrange(topics.committed, len(batches) + 1)
        try:
            await run_worker(topics, clock, chance, until)
        except Crash:
            continue
    topics.fuse = None
    await run_worker(topics, clock, chance, len(batches))
    return topics


def assert_logged(topics: Topics, batches: list[EventBatch]) -> None:
    """Every batch with events was taken by the broker, each time as the same message."""
    once: dict[tuple[str, int], bytes] = {}
    for message in topics.logged:
        header = decode_batch(message).header
        assert once.setdefault((header.node, header.sequence), message) == message
    assert set(once) == {(b.header.node, b.header.sequence) for b in batches if b.events}


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 60), deaths=st.integers(0, 6))
def test_totals_survive_any_deaths(seed: int, length: int, deaths: int) -> None:
    batches = make_log(seed, length)
    topics = asyncio.run(live_and_die(seed, batches, deaths))
    blocks = counted_blocks(topics.metrics)
    assert counted_in_blocks(blocks) == counted_by_hand(batches)
    covered: dict[int, int] = {}
    for parts in blocks:  # blocks of a minute never overlap, and come in order
        identity = parts[0].identity
        assert covered.get(identity.minute_s, 0) <= identity.base_offset < identity.end_offset
        covered[identity.minute_s] = identity.end_offset
    assert_logged(topics, batches)
    ledger = Counter[str]()
    for (*_, stage, kind, _, figure), value in totals(blocks, "ledger").items():
        if stage == "streams" and kind in ("open", "close", "transfer", "request"):
            ledger[figure] += value
    assert ledger["in_count"] == ledger["out_count"] == sum(batch.events for batch in batches)


@pytest.mark.parametrize("crash_after", range(12))
def test_a_crash_between_any_two_parts(crash_after: int) -> None:
    batches = make_log(7, 40)

    async def scenario() -> Topics:
        clock = ManualClock(MINUTE_NS)
        topics = Topics([encode_batch(batch) for batch in batches])
        topics.fuse = crash_after
        chance = random.Random(1)
        try:
            await run_worker(topics, clock, chance, len(batches))
        except Crash:
            await run_worker(topics, clock, chance, len(batches))
        return topics

    topics = asyncio.run(scenario())
    blocks = counted_blocks(topics.metrics)
    assert counted_in_blocks(blocks) == counted_by_hand(batches)
