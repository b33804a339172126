"""Which two rows are the ends of one connection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from collector.abi import ConnectionEvent, Role
from collector.connections import ConnectionTable
from collector.mates import Mates
from schemas.clock import ClockAnchor
from schemas.events import ConnectionFlag
from tests.collector.records import connection, connections

E = ConnectionEvent
ANCHOR = ClockAnchor(monotonic_ns=0, unix_ns=1_000_000)
NOBODY = np.empty(0, np.uint64)
CLIENT, SERVER, LOOPBACK = "10.0.0.1", "10.0.0.2", "127.0.0.1"


def packed(text: str) -> Any:
    return np.frombuffer(bytes(10) + b"\xff\xff" + bytes(map(int, text.split("."))), np.uint8)


class Node:
    """A table, and containers that are told apart by number: 100 + id of the connection."""

    def __init__(self) -> None:
        self.table = ConnectionTable()
        self.mates = Mates(self.table)

    def record(
        self, number: int, event: ConnectionEvent, local: str, remote: str, at: int, **values: Any
    ) -> dict[str, Any]:
        (local_address, local_port), (address, port) = local.split(":"), remote.split(":")
        ends = {
            "local_address": packed(local_address),
            "local_port": int(local_port),
            "remote_address": packed(address),
            "remote_port": int(port),
        }
        role = Role.SERVER if event == E.ACCEPTED else Role.CLIENT
        return connection(number, event, end_ns=at, role=role, **ends, **values)

    def connect(self, number: int, local: str, remote: str, at: int, **values: Any) -> Any:
        return self.record(number, E.CONNECTED, local, remote, at, **values)

    def accept(self, number: int, local: str, remote: str, at: int, **values: Any) -> Any:
        return self.record(number, E.ACCEPTED, local, remote, at, **values)

    def publish(self, *records: dict[str, Any], undecided: Any = NOBODY) -> list[int]:
        made = connections(*records)
        self.table.apply(made)
        slots = self.table.find(made["connection_id"])
        self.table.rows["container"][slots] = 100 + made["connection_id"]
        return self.mates.pair(made, ANCHOR, np.array(undecided, np.uint64)).tolist()

    def mate(self, number: int) -> int:
        (slot,) = self.table.find(np.array([number], np.uint64))
        return int(self.table.rows["mate"][slot])


def test_both_ends_learn_the_others_container() -> None:
    node = Node()
    held = node.publish(
        node.accept(2, f"{SERVER}:80", f"{CLIENT}:4000", 20),
        node.connect(1, f"{CLIENT}:4000", f"{SERVER}:80", 10),
        node.connect(3, f"{CLIENT}:4001", "10.9.9.9:80", 10),
    )
    assert held == []  # nobody here has the address that the third one asked
    assert [node.mate(number) for number in (1, 2, 3)] == [102, 101, 0]
    slot = node.table.find(np.array([2], np.uint64))
    assert node.table.rows["opened_ns"][slot].tolist() == [1_000_020]


def test_a_fresh_client_waits_once_for_a_server_that_has_not_accepted() -> None:
    node = Node()
    assert node.publish(node.accept(9, f"{SERVER}:80", "10.9.9.9:4000", 1)) == []
    begin = node.connect(1, f"{CLIENT}:4000", f"{SERVER}:80", 10)
    assert node.publish(begin) == [1]
    assert node.publish(begin) == []  # what had to wait comes again
    assert node.mate(1) == 0
    assert node.publish(node.accept(2, f"{SERVER}:80", f"{CLIENT}:4000", 3_000)) == []
    assert (node.mate(1), node.mate(2)) == (102, 101)


def test_a_client_that_gave_up_is_nobodys_mate() -> None:
    node = Node()
    node.publish(node.accept(9, f"{SERVER}:80", "10.9.9.9:4000", 1))
    begin = node.connect(1, f"{CLIENT}:4000", f"{SERVER}:80", 10)
    node.publish(begin)
    node.publish(begin, node.record(1, E.CLOSED, f"{CLIENT}:4000", f"{SERVER}:80", 20))
    node.publish(
        node.connect(3, f"{CLIENT}:4000", f"{SERVER}:80", 30),
        node.accept(4, f"{SERVER}:80", f"{CLIENT}:4000", 40),
    )
    assert [node.mate(number) for number in (1, 3, 4)] == [0, 104, 103]


def test_failures_have_no_mate_and_undecided_ones_not_yet() -> None:
    node = Node()
    refused = node.connect(1, f"{CLIENT}:4000", f"{SERVER}:80", 10, error=111)
    pair = (
        node.connect(2, f"{CLIENT}:4000", f"{SERVER}:80", 20),
        node.accept(3, f"{SERVER}:80", f"{CLIENT}:4000", 30),
    )
    for undecided in (2, 3, 3):
        assert node.publish(refused, *pair, undecided=[undecided]) == [2, 3]
    assert node.publish(*pair) == []
    assert [node.mate(number) for number in (1, 2, 3)] == [0, 103, 102]


def test_a_tuple_that_is_used_again_keeps_its_turns() -> None:
    node = Node()
    ends = f"{CLIENT}:4000", f"{SERVER}:80"
    records = []
    for turn in range(3):
        records.append(node.connect(2 * turn + 1, *ends, 100 * turn + 10))
        records.append(node.accept(2 * turn + 2, *ends[::-1], 100 * turn + 20))
    node.publish(*records)
    assert [node.mate(number) for number in range(1, 7)] == [102, 101, 104, 103, 106, 105]


def test_of_ends_that_are_there_twice_nobody_is_told() -> None:
    """Two private networks of one node may use the same addresses."""
    node = Node()
    ends = f"{CLIENT}:4000", f"{SERVER}:80"
    clients = [node.connect(number, *ends, 10 + number) for number in (1, 2)]
    servers = [node.accept(number, *ends[::-1], 20 + number) for number in (3, 4)]
    node.publish(*clients, *servers)
    assert [node.mate(number) for number in range(1, 5)] == [0, 0, 0, 0]


@pytest.mark.parametrize(("namespaces", "mates"), [((7, 7), [102, 101]), ((7, 8), [0, 0])])
def test_loopback_is_another_one_in_every_namespace(
    namespaces: tuple[int, int], mates: list[int]
) -> None:
    node = Node()
    one, other = namespaces
    node.publish(
        node.connect(1, f"{LOOPBACK}:4000", f"{LOOPBACK}:80", 10, netns=one),
        node.accept(2, f"{LOOPBACK}:80", f"{LOOPBACK}:4000", 20, netns=other),
    )
    assert [node.mate(number) for number in (1, 2)] == mates
    flags = node.table.rows["flags"][node.table.find(np.array([1, 2], np.uint64))]
    assert (flags == ConnectionFlag.INSIDE).tolist() == [one == other] * 2


def test_a_redirect_changes_the_servers_port_alone_and_a_translation_is_seen_through() -> None:
    node = Node()
    records = (
        node.connect(1, f"{CLIENT}:4000", f"{SERVER}:8080", 10),
        node.accept(2, f"{SERVER}:15006", f"{CLIENT}:4000", 20),
        node.connect(3, f"{CLIENT}:4001", "10.96.0.1:80", 10),
        node.accept(4, f"{SERVER}:8080", f"{CLIENT}:4001", 20),
    )
    made = connections(*records)
    node.table.apply(made)
    slot = node.table.find(np.array([3], np.uint64))
    node.table.rows["peer"][slot] = node.table.peers.number((packed(SERVER).tobytes(), 8080))
    node.publish(*records)
    assert [node.mate(number) for number in (1, 2, 3, 4)] == [102, 101, 104, 103]
