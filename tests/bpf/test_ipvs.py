"""The pods behind services of IPVS: each backend says who it is, and conntrack has to agree."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from collector.config import CollectorConfig
from collector.connections import ROW, ConnectionTable
from collector.conntrack import NOBODY, sides
from collector.doctor import conntrack_check
from collector.mates import Mates
from collector.netlink import Conntrack
from schemas.clock import ClockAnchor, ManualClock
from tests.bpf.ipvs import API, BACKENDS, NODE_PORT, PORT, SERVICE, Node, Talk, node
from tests.bpf.traffic import tcp_state, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collector.conntrack import Peer
    from tests.bpf.harness import Watch

pytestmark = [pytest.mark.bpf, pytest.mark.ipvs]

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def _node() -> Iterator[Node]:
    with node() as made:
        yield made


@pytest.fixture
def cluster(_node: Node) -> Iterator[Node]:
    """The node, without connections of other tests."""
    yield _node
    _node.hang_up()


def _config(cluster: Node) -> CollectorConfig:
    return CollectorConfig(host_netns=cluster.path)


def _conntrack(cluster: Node) -> contextlib.closing[Conntrack]:
    return contextlib.closing(Conntrack(_config(cluster), ManualClock()))


def _peer(address: tuple[Any, ...]) -> Peer:
    text, port = address[:2]
    if ":" in text:
        return socket.inet_pton(socket.AF_INET6, text), port
    return bytes(10) + b"\xff\xff" + socket.inet_aton(text), port


def _row(end: socket.socket, space: int) -> np.ndarray[Any, Any]:
    row = np.zeros(1, ROW)
    for side, address in (("local", end.getsockname()), ("remote", end.getpeername())):
        packed, row[f"{side}_port"] = _peer(address)
        row[f"{side}_address"] = np.frombuffer(packed, np.uint8)
    row["netns"] = os.fstat(space).st_ino
    return row


def _peers(conntrack: Conntrack, talk: Talk) -> list[Peer]:
    """What the two ends of a connection are told."""
    client = _row(talk.client, talk.caller.descriptor)
    server = _row(talk.accepted, talk.server.descriptor)
    return conntrack.peers(np.concatenate([client, server]))


def _truth(talk: Talk) -> list[Peer]:
    """The backend is who said so; a source that it sees as another is the client's own."""
    source = talk.client.getsockname()
    is_masked = talk.accepted.getpeername()[:2] != source[:2]
    return [_peer(talk.backend), _peer(source) if is_masked else NOBODY]


def _call_everything(cluster: Node, family: int) -> tuple[list[Talk], list[int]]:
    """All ways to a backend, each as often as there are; and how many of each are masqueraded."""
    first, stranger, host = cluster.pods[0], cluster.pods[-1], cluster.host
    ways = (
        (stranger, SERVICE[family], PORT),
        (first, SERVICE[family], PORT),  # itself among others
        (host, SERVICE[family], PORT),
        (stranger, host.address(family), NODE_PORT),
        (stranger, API[family], PORT),
        (host, API[family], PORT),
    )
    talks, masked = [], []
    for caller, address, port in ways:
        found = [cluster.call(caller, address, port) for _ in range(BACKENDS)]
        if address != API[family]:
            assert len({talk.backend for talk in found}) == BACKENDS
        masked.append(sum(_truth(talk)[1] != NOBODY for talk in found))
        talks += found
    return talks, masked


@FAMILIES
def test_connections_before_and_after_the_start_lead_to_who_answered(
    cluster: Node, family: int
) -> None:
    before, masked = _call_everything(cluster, family)
    assert masked == [0, 1, BACKENDS, BACKENDS, 0, BACKENDS]
    with _conntrack(cluster) as conntrack:
        after, again = _call_everything(cluster, family)
        assert again == masked
        conntrack.poll()
        talks = [*before, *after]
        assert [_peers(conntrack, talk) for talk in talks] == list(map(_truth, talks))


@FAMILIES
def test_both_ends_that_the_programs_tell_are_paired(
    watch: Watch, cluster: Node, family: int
) -> None:
    table = ConnectionTable()
    with _conntrack(cluster) as conntrack:
        talks, _ = _call_everything(cluster, family)
        watch.drain()
        conntrack.poll()
        records = watch.records("connections")
        spaces = [os.fstat(each.descriptor).st_ino for each in (cluster.host, *cluster.pods)]
        records = records[np.isin(records["netns"], spaces)]
        table.apply(records)
        slots = table.find(np.unique(records["connection_id"]))
        rows = table.rows
        for slot, peer in zip(slots.tolist(), conntrack.peers(rows[slots]), strict=True):
            rows["peer"][slot] = table.peers.number(peer)
    assert len(slots) == 2 * len(talks)
    rows["container"][slots] = np.arange(1, len(slots) + 1)
    Mates(table).pair(records, ClockAnchor(0, 0), np.empty(0, np.uint64))
    place = {
        (space, side): slot
        for space, side, slot in zip(
            rows["netns"][slots].tolist(), sides(rows[slots]), slots.tolist(), strict=True
        )
    }

    def slot_of(end: socket.socket, space: int) -> int:
        row = _row(end, space)
        return place[row["netns"].item(), sides(row)[0]]

    for talk in talks:
        client = slot_of(talk.client, talk.caller.descriptor)
        server = slot_of(talk.accepted, talk.server.descriptor)
        assert rows["mate"][client] == rows["container"][server]
        assert rows["mate"][server] == rows["container"][client]


def _is_closed(end: socket.socket) -> bool:
    return tcp_state(end) == 7


def test_a_port_that_is_used_again_leads_to_the_next_backend(cluster: Node) -> None:
    caller = cluster.pods[-1]
    with _conntrack(cluster) as conntrack:
        found, backends = [], set()
        for _ in range(2 * BACKENDS):
            talk = cluster.call(caller, SERVICE[4], PORT, own_port=20_000)
            conntrack.poll()
            found.append((_peers(conntrack, talk), _truth(talk)))
            backends.add(talk.backend)
            talk.accepted.close()  # who closes first waits for stray packets
            assert talk.client.recv(1) == b""
            # Else its port may still be in use: what it sends last may be left to ksoftirqd.
            talk.client.shutdown(socket.SHUT_WR)
            until(functools.partial(_is_closed, talk.client))
            talk.client.close()
        assert len(backends) == BACKENDS
        assert [told for told, _ in found] == [truth for _, truth in found]


@FAMILIES
def test_without_the_setting_conntrack_is_not_told_and_the_doctor_says_so(
    cluster: Node, family: int
) -> None:
    config = _config(cluster)
    assert not conntrack_check(config).is_partial
    cluster.host.set("ipv4/vs/conntrack", 0)
    try:
        with _conntrack(cluster) as conntrack:
            talks = [cluster.call(cluster.pods[-1], SERVICE[family], PORT) for _ in range(2)]
            conntrack.poll()
            assert [_peers(conntrack, talk) for talk in talks] == [[NOBODY] * 2] * 2
        check = conntrack_check(config)
        assert check.good
        assert check.is_partial
        assert "net.ipv4.vs.conntrack=1" in check.advice
    finally:
        cluster.host.set("ipv4/vs/conntrack", 1)
