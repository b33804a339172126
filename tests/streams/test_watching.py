"""The monitoring scope where both ends are known: what is out is counted and in no row."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from schemas.clock import ManualClock
from schemas.events import Role, decode_batch, encode_batch
from schemas.metrics import decode_block
from schemas.monitoring import ScopeFile
from streams.config import StreamsConfig
from streams.directory import Directory
from streams.naming import NamingSettings
from streams.pipeline import Pipeline
from streams.resolver import Resolver
from streams.watching import Watching
from tests.streams.build import MINUTE_NS, MINUTE_S, SECOND_NS, BatchBuilder, pod, service
from tests.streams.fakes import Topics, counted_blocks, totals

if TYPE_CHECKING:
    from pathlib import Path

CONNECTIONS = {
    # local, remote, role, bytes read
    "web to api": ("10.0.0.1:40000", "10.0.0.2:8080", Role.CLIENT, 1),
    "web to bank": ("10.0.0.1:40001", "10.0.1.1:8080", Role.CLIENT, 10),
    "web to a service of the bank": ("10.0.0.1:40002", "10.96.0.9:80", Role.CLIENT, 100),
    "web from outside": ("10.0.0.1:80", "203.0.113.1:40000", Role.SERVER, 1_000),
    "bank from web": ("10.0.1.1:8080", "10.0.0.1:40001", Role.SERVER, 10_000),
    "bank to outside": ("10.0.1.1:40003", "203.0.113.1:443", Role.CLIENT, 100_000),
}


def directory() -> Directory:
    known = Directory()
    known.apply(pod("web-1", "10.0.0.1", labels={"app": "web", "tier": "front"}))
    known.apply(pod("api-1", "10.0.0.2", labels={"app": "api"}, node="node-b"))
    known.apply(pod("pay-1", "10.0.1.1", namespace="bank", labels={"app": "pay"}))
    known.apply(service("ledger", "10.96.0.9", namespace="bank", selector={"app": "ledger"}))
    return known


def message(sequence: int, at: int = MINUTE_NS, watermark_ns: int = MINUTE_NS) -> bytes:
    builder = BatchBuilder(sequence=sequence, watermark_ns=watermark_ns)
    for local, remote, role, size in CONNECTIONS.values():
        row = builder.connection(local, remote, role)
        builder.transfer(row, size, at=at)
        builder.request(row, f"/{size}", at=at)
    return encode_batch(builder.batch())


def pipeline(topics: Topics, path: Path, **settings: Any) -> tuple[Pipeline, ScopeFile]:
    file = ScopeFile(path, "streams")
    config = StreamsConfig(metadata_wait_s=0.0, **settings)
    clock = ManualClock(MINUTE_NS)
    return Pipeline(config, directory(), topics, topics, clock, None, file), file


async def feed(work: Pipeline, *messages: bytes, start: int = 0) -> None:
    for offset, value in enumerate(messages, start):
        await work.receive(0, offset, b"node-a", value, MINUTE_S + 1.0)


@pytest.mark.parametrize(
    ("rules", "watched"),
    [
        ("exclude: [{namespaces: [bank]}]", 1_001),
        ("exclude: [{labels: {app: pay}}]", 1_101),
        ("exclude: [{labels: {app: ledger}}]", 111_011),
        ("exclude: [{nodes: [node-b]}]", 111_110),
        ("exclude: [{ports: [80]}]", 110_011),
        ("include: [{labels: {tier: front}}]", 11_111),
        ("include: [{namespaces: [bank], ports: [8080]}]", 10_010),
        ("{include: [{namespaces: [shop]}], exclude: [{namespaces: [bank]}]}", 1_001),
        ("include: [{namespaces: [nobody]}]", 0),
    ],
)
def test_names_of_either_end_decide(tmp_path: Path, rules: str, watched: int) -> None:
    path = tmp_path / "scope.yaml"
    path.write_text(f"scope: {rules if rules[0] == '{' else '{' + rules + '}'}")

    async def main() -> Topics:
        topics = Topics()
        work, _ = pipeline(topics, path, access_log=True)
        await feed(work, message(0), message(1, MINUTE_NS + SECOND_NS, MINUTE_NS + 63 * SECOND_NS))
        return topics

    topics = asyncio.run(main())
    blocks = counted_blocks(topics.metrics)
    read = totals(blocks, "service_relation")
    assert sum(v for k, v in read.items() if k[-1] == "read_bytes") == 2 * watched
    count = 2 * str(watched).count("1")
    ledger = totals(blocks, "ledger")
    for kind in ("transfer", "request"):
        row = (MINUTE_S, "", "node-a", "streams", kind)
        assert ledger[*row, "", "in_count"] == 12
        assert ledger[*row, "", "out_count"] == count
        assert ledger[*row, "excluded", "dropped_count"] == 12 - count
    logged = [decode_batch(value) for _, value in topics.access_log]
    assert sum(int(batch.transfers.size.sum()) for batch in logged) == 2 * watched
    said = {name for batch in logged for name in batch.names if name[1:].isdigit()}
    assert said == {
        f"/{10**place}" for place, digit in enumerate(str(watched)[::-1]) if digit == "1"
    }


@pytest.mark.parametrize(
    ("rule", "is_out"),
    [("labels: {app: api}", True), ("labels: {number: '8'}", False), ("nodes: [node-a]", True)],
)
def test_what_is_true_of_all_who_may_have_an_address_is_known(
    tmp_path: Path, rule: str, is_out: bool
) -> None:
    path = tmp_path / "scope.yaml"
    path.write_text(f"scope: {{exclude: [{{{rule}}}]}}")
    known = Directory()
    for number in (8, 9):
        labels = {"app": "api", "number": str(number)}
        values = {"created_ms": MINUTE_NS // 1_000_000 - 1_000, "workload_name": "api"}
        known.apply(pod(f"api-{number}", "10.0.0.9", labels=labels, node="node-a", **values))
    builder = BatchBuilder(node="node-b")
    builder.transfer(builder.connection("203.0.113.1:40000", "10.0.0.9:80"), 1)
    batch = builder.batch()
    resolution = Resolver(known, NamingSettings()).resolve(batch)
    assert resolution.relations[0].remote.unresolved == "contested_address"
    excluded = Watching(ScopeFile(path, "streams")).excluded(batch, resolution)
    assert (excluded is not None) is is_out


def test_a_changed_file_holds_for_the_next_batch(tmp_path: Path) -> None:
    path = tmp_path / "scope.yaml"
    path.write_text("scope: {}")

    async def main() -> Topics:
        topics = Topics()
        work, file = pipeline(topics, path)
        await feed(work, message(0))
        path.write_text("scope: {exclude: [{namespaces: [bank]}]}")
        assert [file.poll(), file.poll()] == [False, True]
        await feed(work, message(1), start=1)
        path.write_text("scope: {exclude: [{namespaces: [shop]}]}")
        assert [file.poll(), file.poll()] == [False, True]
        await feed(work, message(2), start=2)
        path.write_text("scope: {exclude: [{namespaces: ]}")
        assert [file.poll(), file.poll()] == [False, False]
        await feed(work, message(3, watermark_ns=MINUTE_NS + 63 * SECOND_NS), start=3)
        return topics

    blocks = counted_blocks(asyncio.run(main()).metrics)
    read = totals(blocks, "service_relation")
    whole = sum(size for *_, size in CONNECTIONS.values())
    assert sum(v for k, v in read.items() if k[-1] == "read_bytes") == whole + 1_001 + 2 * 100_000
    row = (MINUTE_S, "", "node-a", "streams", "transfer", "excluded", "dropped_count")
    assert totals(blocks, "ledger")[row] == 4 + 5 + 5


def test_a_minute_of_which_nothing_is_watched_begins_where_it_would(tmp_path: Path) -> None:
    """Its first batch is part of its identity: a replay under another scope must give the same."""
    path = tmp_path / "scope.yaml"
    begins = []
    for rules in ("{}", "{exclude: [{ports: 1-65535}]}"):
        path.write_text(f"scope: {rules}")

        async def main() -> Topics:
            topics = Topics()
            work, _ = pipeline(topics, path)
            builder = BatchBuilder(sequence=0)
            row = builder.connection("10.0.0.1:40000", "10.0.0.2:8080")
            builder.transfer(row, 1).transfer(row, 1, at=MINUTE_NS + 60 * SECOND_NS)
            await feed(work, encode_batch(builder.batch()))
            await feed(work, message(1, watermark_ns=MINUTE_NS + 63 * SECOND_NS), start=1)
            return topics

        (block,) = [decode_block(value) for value in asyncio.run(main()).metrics]
        begins.append((block.identity.minute_s, block.identity.base_offset))
    assert begins == [(MINUTE_S, 0)] * 2
