"""What the access log topic says: the events with names, each once, whatever the size."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.columns import UNMEASURED_U32
from schemas.events import EventBatch, Parties, Role, decode_batch, encode_batch
from schemas.kubernetes import Container
from schemas.ledger import Entry
from streams.access_log import access_log_messages
from streams.endpoints import EndpointNames, EndpointSettings
from streams.naming import NamingSettings
from streams.outbox import Outbox
from streams.resolver import Resolver
from tests.streams.build import MINUTE_NS, BatchBuilder, pod
from tests.streams.test_figures import PEERS, directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.directory import Directory


def logged(batch: EventBatch, known: Directory | None = None, **limits: int) -> list[EventBatch]:
    taken = decode_batch(encode_batch(batch))
    known = known or directory()
    resolution = Resolver(known, NamingSettings()).resolve(taken)
    taken = EndpointNames(EndpointSettings()).name(taken, resolution)
    messages = access_log_messages(taken, resolution, known.container_name, **limits)
    return [decode_batch(each) for each in messages]


def random_batch(chance: random.Random) -> EventBatch:
    builder = BatchBuilder(sequence=7, ledger=[Entry("kernel", "open", "ring_full", 0, 0, 4)])
    rows = [
        builder.connection(
            f"10.0.0.1:{40_000 + place}",
            f"{peer}:80",
            chance.choice((Role.CLIENT, Role.SERVER)),
            container="c-web-1",
            process=chance.choice(("", "nginx")),
            server_name=chance.choice(("", "api.example")),
            remote_container=chance.choice(("", "c-api-1", "c-elsewhere")),
        )
        for place, peer in enumerate(PEERS)
    ]
    for _ in range(chance.randrange(12)):
        builder.open(chance.choice(rows), duration=chance.randrange(9))
        builder.close(chance.choice(rows), duration=chance.randrange(9))
    for _ in range(chance.randrange(12)):
        builder.transfer(
            chance.choice(rows), chance.randrange(99), write_packet_count=3, write=True
        )
    for _ in range(chance.randrange(30)):
        path = f"/{chance.choice('abc')}/{chance.randrange(99)}"
        builder.request(chance.choice(rows), path, trace_id=f"{chance.getrandbits(128):032x}")
    return builder.batch()


def content(batches: Sequence[EventBatch], *, named: bool) -> Counter[tuple[Any, ...]]:
    """Every event as a row that points at nothing: texts and connections instead of indices."""
    found: Counter[tuple[Any, ...]] = Counter()
    for batch in batches:
        for kind in ("opens", "closes", "transfers", "requests"):
            table = getattr(batch, kind)
            for row in range(table.rows):
                values = {name: getattr(table, name)[row].tolist() for name, _, _ in table.specs()}
                connection = connection_of(batch, values.pop("connection"), named=named)
                endpoint = values.pop("endpoint", UNMEASURED_U32)
                for name in set(table.name_columns()) - {"endpoint"}:
                    values[name] = batch.names[values[name]]
                if named and kind == "requests":
                    values["endpoint"] = batch.names[endpoint]
                found[kind, connection, str(sorted(values.items()))] += 1
    return found


def connection_of(batch: EventBatch, row: int, *, named: bool) -> str:
    table = batch.connections
    values = {name: getattr(table, name)[row].tolist() for name, _, _ in table.specs()}
    for name in table.name_columns():
        values[name] = batch.names[values[name]]
    if named:
        for name, _, _ in Parties.specs():
            value = getattr(batch.parties, name)[row].tolist()
            values[name] = value if name == "internal" else batch.names[value]
    return str(sorted(values.items()))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), max_bytes=st.sampled_from((400, 1_500, 4_000, 10**6)))
def test_every_event_is_told_once_whatever_the_size(seed: int, max_bytes: int) -> None:
    batch = random_batch(random.Random(seed))
    whole = logged(batch)
    assert len(whole) == bool(batch.events)
    assert content(whole, named=False) == content([batch], named=False)
    parts = logged(batch, max_bytes=max_bytes)
    assert content(parts, named=True) == content(whole, named=True)
    assert [part.header.part for part in parts] == list(range(len(parts)))
    for part in parts:
        assert (part.header.run_id, part.header.sequence) == ("run-1", 7)
        assert part.header.ledger == []
        assert part.events == 1 or len(encode_batch(part)) <= max_bytes
        assert part.names[0] == ""


def test_who_is_behind_each_connection() -> None:
    builder = BatchBuilder()
    api = builder.connection("10.0.0.1:40000", "10.0.0.2:80", container="c-web-1")
    data = builder.connection("10.0.0.1:40001", "10.96.0.2:80", container="c-web-1")
    builder.connection("10.0.0.1:40002", "10.0.0.1:80", container="c-web-1")
    served = builder.connection("10.0.0.1:80", "203.0.113.1:40000", Role.SERVER)
    builder.request(api, "/cart/7").request(data, "/rows").request(served, "/")
    (batch,) = logged(builder.batch())
    names, parties = batch.names, batch.parties
    rows = [
        tuple(names[getattr(parties, name)[row]] for name, _, _ in Parties.specs()[:4])
        for row in range(4)
    ]
    assert rows == [
        ("web.shop", "web-1", "api.shop", "api-1"),
        ("web.shop", "web-1", "data.shop", ""),
        ("web.shop", "web-1", "web.shop", "web-1"),
        ("web.shop", "web-1", "203.0.113.1", "203.0.113.1"),
    ]
    assert parties.internal.tolist() == [0, 0, 1, 0]
    endpoints = [names[place] for place in batch.requests.endpoint]
    assert endpoints == ["/cart/{id}", "/rows", "/"]


def test_the_local_container_is_named_by_its_pod() -> None:
    known = directory()
    containers = [
        Container("main", "c-new"),
        Container("main", "c-before-its-restart"),
        Container("setup", "c-init", "init"),
        Container("shell", "c-debug", "ephemeral"),
        Container("proxy", ""),  # not started yet
    ]
    known.apply(pod("job-1", "10.0.0.71", containers=containers))
    agent = Container("agent", "c-agent", ports=[9100])
    known.apply(pod("agent-1", "192.168.0.1", host_network=True, containers=[agent]))
    ended = pod("gone-1", "10.0.0.72", containers=[Container("last", "c-gone")], deleted_ms=1)
    known.apply(ended)
    builder = BatchBuilder()
    wanted = {
        "c-new": "main",
        "c-before-its-restart": "main",
        "c-init": "setup",
        "c-debug": "shell",
        "c-agent": "agent",
        "c-gone": "last",
        "c-not-told-yet": "",
        "": "",
    }
    for container in wanted:
        local = "192.168.0.1:9100" if container == "c-agent" else "10.0.0.71:80"
        row = builder.connection(local, "10.0.0.1:40000", Role.SERVER, container=container)
        builder.transfer(row, 1)
    (batch,) = logged(builder.batch(), known)
    names = [batch.names[place] for place in batch.parties.local_container]
    assert names == list(wanted.values())
    instances = [batch.names[place] for place in batch.parties.local_instance]
    # Whose pod is known by its address alone has a pod, but no container; a container that is none
    # of the pod's has neither.
    assert instances[-2:] == ["node-a", "job-1"]
    assert instances[4:6] == ["agent-1", "gone-1"]


def test_a_batch_without_events_is_not_told() -> None:
    builder = BatchBuilder(watermark_ns=MINUTE_NS)
    builder.connection("10.0.0.1:40000", "10.0.0.2:80")
    assert logged(builder.batch()) == []


def test_no_offset_passes_one_that_the_broker_has_not_taken() -> None:
    async def scenario() -> None:
        outbox = Outbox(limit=2)
        loop = asyncio.get_running_loop()
        sends = [loop.create_future() for _ in range(4)]
        assert outbox.floor(0) is None
        await outbox.add(0, 10, sends[0])
        await outbox.add(0, 11, sends[1])
        await outbox.add(1, 5, sends[2])
        assert (outbox.floor(0), outbox.floor(1)) == (10, 5)
        sends[1].set_result(None)
        assert outbox.floor(0) == 10
        sends[0].set_result(None)
        assert outbox.floor(0) is None
        outbox.forget(1)
        assert outbox.floor(1) is None
        sends[2].set_exception(OSError("late"))  # nobody waits for it any more
        outbox.check()
        await outbox.add(0, 12, sends[3])
        sends[3].set_exception(OSError("gone"))
        with pytest.raises(OSError, match="gone"):
            outbox.check()
        assert outbox.floor(0) == 12

    asyncio.run(scenario())


def test_too_many_sends_under_way_are_waited_for() -> None:
    async def scenario() -> None:
        outbox = Outbox(limit=2)
        loop = asyncio.get_running_loop()
        sends = [loop.create_future() for _ in range(3)]
        for offset in (0, 1):
            await outbox.add(0, offset, sends[offset])
        adding = asyncio.create_task(outbox.add(0, 2, sends[2]))
        await asyncio.sleep(0)
        assert not adding.done()
        sends[0].set_result(None)
        await adding
        assert outbox.floor(0) == 1

    asyncio.run(scenario())
