"""The monitoring scope in the kernel: what is out makes no record, and every event is counted."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from collector.abi import (
    ConnectionEvent,
    ConnectionFlag,
    Direction,
    Kind,
    ReadFigure,
    Role,
    WriteFigure,
)
from collector.watching import kernel_table
from schemas.monitoring import EVERYTHING, End, MonitoringScope
from tests.bpf.test_connections import life, listening, pair, port_of, settle
from tests.bpf.traffic import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collector.watching import KernelScope
    from tests.bpf.harness import Watch

pytestmark = pytest.mark.bpf

HERE = End(node="here")
KINDS = (Kind.OPEN, Kind.TRANSFER, Kind.CLOSE)


@pytest.fixture
def scope(watch: Watch) -> Iterator[KernelScope]:
    yield watch.scope
    watch.scope.set(None)


def excluding(*rules: dict[str, object]) -> np.ndarray | None:
    return kernel_table(MonitoringScope.parse({"exclude": list(rules)}), HERE)


def talk(left: socket.socket, right: socket.socket, times: int) -> None:
    for _ in range(times):
        left.sendall(b"ping")
        assert right.recv(100) == b"ping"
        right.sendall(b"pong!")
        assert left.recv(100) == b"pong!"


def left_out(watch: Watch) -> dict[Kind, int]:
    return {kind: watch.counts(kind)["excluded"] for kind in KINDS}


def packets(watch: Watch, port: int, role: Role, direction: Direction) -> int:
    figures = watch.figures(port, role, direction)
    reads, writes = ReadFigure.READ_PACKET_COUNT, WriteFigure.WRITE_PACKET_COUNT
    return figures[reads if direction == Direction.READ else writes]


def transfers(watch: Watch, port: int) -> int:
    watch.drain()
    return sum(
        len(watch.transfers(port, role, direction)) for role in Role for direction in Direction
    )


def test_an_excluded_port_makes_no_record_until_it_is_watched_again(
    watch: Watch, scope: KernelScope
) -> None:
    with listening() as server:
        port = port_of(server)
        older, idle = pair(server), pair(server)
        talk(*older, times=3)
        talk(*idle, times=3)
        assert transfers(watch, port) == 24
        before = life(watch, port)
        assert before == (2, 2, 0, 0)
        first_ids = set(watch.connections(port)["connection_id"].tolist())

        counted = left_out(watch)
        scope.set(excluding({"ports": [port]}))
        scope.let_go(first_ids)
        younger = pair(server)
        short = pair(server)
        talk(*older, times=5)
        talk(*younger, times=7)
        for end in short:
            end.close()
        settle()
        assert life(watch, port) == before
        assert transfers(watch, port) == 24
        now = left_out(watch)
        assert {kind: now[kind] - counted[kind] for kind in KINDS} == {
            Kind.OPEN: 4,
            Kind.TRANSFER: 48,
            Kind.CLOSE: 2,
        }

        scope.set(excluding({"ports": [1]}))
        talk(*older, times=2)
        talk(*younger, times=2)
        talk(*idle, times=2)  # which nobody has touched meanwhile
        newest = pair(server)
        talk(*newest, times=1)
        for end in (*older, *younger, *idle, *newest):
            end.close()
        settle()
        assert life(watch, port) == (3, 3, 4, 4)
        assert transfers(watch, port) == 24 + 28
        assert left_out(watch) == now
        # Those that come back are others to user space, older than all it knows, and what they did
        # meanwhile is not told.
        told = watch.connections(port)
        back = told[told["flags"] & ConnectionFlag.PREEXISTING != 0]
        assert len(np.unique(back["connection_id"])) == 6
        assert not first_ids & set(back["connection_id"].tolist())
        for role in (Role.CLIENT, Role.SERVER):
            for direction in Direction:
                # By the first call of one that is back its packets were counted already.
                assert 10 <= packets(watch, port, role, direction) <= 13


def test_everything_of_a_node_or_all_but_a_port(watch: Watch, scope: KernelScope) -> None:
    with listening() as server, listening() as other:
        port, second = port_of(server), port_of(other)
        include = MonitoringScope.parse({"include": [{"ports": [second]}]})
        scope.set(kernel_table(include, HERE))
        ends = (*pair(server), *pair(other))
        assert life(watch, port) == (0, 0, 0, 0)
        assert life(watch, second) == (1, 1, 0, 0)
        scope.set(excluding({"nodes": ["here"]}))
        more = (*pair(server), *pair(other))
        for end in (*ends, *more):
            end.close()
        settle()
        assert life(watch, port) == (0, 0, 0, 0)
        assert life(watch, second) == (1, 1, 0, 0)
        scope.set(excluding({"nodes": ["there"]}))
        assert kernel_table(EVERYTHING, HERE) is None
        for end in pair(server):
            end.close()
        settle()
        assert life(watch, port) == (1, 1, 1, 1)


def test_a_process_that_is_refused_is_left_out_as_long_as_it_lives(
    watch: Watch, scope: KernelScope
) -> None:
    with listening() as server:
        port = port_of(server)
        scope.set(excluding({"ports": [1]}))
        child = os.fork()
        if not child:
            client, _idle = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
            for _ in range(3):
                client.sendall(b"x")
                client.recv(1)
            os._exit(0)
        accepted, idle = server.accept()[0], server.accept()[0]
        assert accepted.recv(1) == b"x"
        until(lambda: watch_of(watch, port) == (2, 1))  # the write may be at its end only now
        told = watch.connections(port, ConnectionEvent.CONNECTED)["connection_id"].tolist()
        counted = left_out(watch)[Kind.CLOSE]
        scope.refuse([child])
        scope.let_go(told)
        for _ in range(2):
            accepted.sendall(b"x")
            assert accepted.recv(1) == b"x"
        scope.set(excluding({"ports": [2]}))  # another scope, of which the sockets do not know yet
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        settle()
        # Neither the client's later writes and its closes are told, nor what comes with its exit.
        assert watch_of(watch, port) == (2, 1)
        assert watch.count(port, ConnectionEvent.CLOSED, Role.CLIENT) == 0
        found = watch.connections(port)
        assert set(found["connection_id"][found["role"] == Role.CLIENT].tolist()) == set(told)
        assert left_out(watch)[Kind.CLOSE] == counted + 2
        assert len(watch.transfers(port, Role.SERVER, Direction.READ)) == 3
        assert child.to_bytes(4, sys.byteorder) not in watch.keys("refused", 4)
        accepted.close()
        idle.close()


def test_a_process_that_begins_is_watched_whatever_was_said_of_its_id(
    watch: Watch, scope: KernelScope
) -> None:
    last = os.fork()
    if not last:
        os._exit(0)
    os.waitpid(last, 0)
    # Of these the next processes have one: the kernel counts on, and begins again at 300.
    ids = [*range(last + 1, last + 200), *range(300, 500)]
    with listening() as server:
        port = port_of(server)
        scope.set(excluding({"ports": [1]}))
        scope.refuse(ids)
        try:
            child = os.fork()
            if not child:
                socket.create_connection(("127.0.0.1", port)).close()
                os._exit(0)
            os.waitpid(child, 0)
            assert child in ids
            settle()
            assert watch_of(watch, port) == (1, 0)
        finally:
            scope.admit(ids)


def watch_of(watch: Watch, port: int) -> tuple[int, int]:
    watch.drain()
    return (
        watch.count(port, ConnectionEvent.CONNECTED),
        len(watch.transfers(port, Role.CLIENT, Direction.WRITE)),
    )
