"""Sockets older than the programs, and the life of processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from collector import attach
from collector.abi import ConnectionEvent, ConnectionFlag, Direction, Kind, ProcessEvent, Role
from tests.bpf.harness import BY_DESCRIPTOR, UNMEASURED, Watch, map_values
from tests.bpf.test_connections import life, listening, pair, port_of, settle
from tests.bpf.traffic import tcp_state
from tests.requirements import require

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.bpf

ANNOUNCED = ConnectionEvent.ANNOUNCED


@pytest.mark.parametrize("iterate", [True, False])
def test_older_connections(variant: Path, iterate: bool) -> None:
    with listening() as server, listening("::1") as server6:
        pairs = [pair(server), pair(server), pair(server6)]
        half_closed, peer = pair(server)
        half_closed.shutdown(socket.SHUT_WR)
        settle(0.05)
        watch = Watch(iterate=iterate, path=variant)
        try:
            port = port_of(server)
            watch.drain()
            told = watch.connections(port, ANNOUNCED)
            if iterate:
                assert len(told) == 6
                assert (told["role"] == Role.SERVER).sum() == 3
                assert (told["flags"] == ConnectionFlag.PREEXISTING).all()
                assert set(told["pid"]) == {os.getpid()}
                assert set(told["cgroup_id"]) == {_own_cgroup()}
                assert len(watch.connections(port_of(server6), ANNOUNCED)) == 2
            else:
                assert not len(told)
            pairs[0][0].sendall(b"x" * 100)
            pairs[0][1].recv(100)
            for left, right in pairs:
                left.close()
                right.close()
            half_closed.close()
            peer.close()
            settle()
            connects, accepts, *closes = life(watch, port)
            assert (connects, accepts) == (0, 0)
            # Even a socket that did nothing else is seen when it closes: tcp_close_state() sets
            # the state of a half-closed one anew.
            assert sum(closes) == 6
            if iterate:  # nothing else tells which ports were listened on
                assert closes == [3, 3]
                assert watch.moved(port, Role.CLIENT, Direction.WRITE) == 100
                assert watch.moved(port, Role.SERVER, Direction.READ) == 100
                once = np.unique(watch.connections(port, ANNOUNCED)["connection_id"])
                assert len(once) == len(watch.connections(port, ANNOUNCED)) == 6
            moved = watch.records("transfers")
            assert moved[moved["pid"] == os.getpid()]["size"].sum() == 200
        finally:
            watch.close()


def test_what_ends_while_programs_are_attached_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By address it would be another's: a new connection that is taken for a closed one."""
    require("bpf")
    attach_one = attach._attach_one
    with listening() as server:
        pairs = [pair(server) for _ in range(100)]

        def attach_and_close(*arguments: Any) -> attach.Hook:
            hook = attach_one(*arguments)
            for end in pairs.pop():
                end.close()
            return hook

        monkeypatch.setattr(attach, "_attach_one", attach_and_close)
        watch = Watch(path=BY_DESCRIPTOR)
        try:
            assert 10 < len(pairs) < 90
            for end in itertools.chain(*pairs):
                end.close()
            settle()
            watch.drain()
            assert watch.counts(Kind.CLOSE)["submitted"] >= 2 * len(pairs)
            owner = struct.pack("=II", os.getpid(), threading.get_native_id())
            kept = map_values(watch.object.map_fd("sockets"))
            assert not [value for value in kept if owner in value]
        finally:
            watch.close()


@pytest.mark.parametrize("iterate", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_accepted_without_a_handshake(variant: Path, host: str, iterate: bool) -> None:
    """Its handshake was over before the programs came, as where the kernel skips one of them."""
    with listening(host) as server:
        clients = [socket.create_connection(server.getsockname()[:2]) for _ in range(3)]
        clients[0].sendall(b"x" * 100)
        watch = Watch(iterate=iterate, path=variant)
        try:
            used, idle, other = (server.accept()[0] for _ in clients)
            assert used.recv(200) == b"x" * 100
            used.sendall(b"y" * 50)
            # What nobody uses is told when it is closed, by either end.
            idle.close()
            for each in (*clients, used, other):
                each.close()
            settle()
            port = port_of(server)
            connects, accepts, _, closes = life(watch, port)
            assert (connects, accepts, closes) == (0, 3, 3)
            told = watch.connections(port, ConnectionEvent.ACCEPTED)
            assert set(told["role"]) == {Role.SERVER}
            assert set(told["flags"]) == {0}
            assert set(told["pid"]) == {os.getpid()}
            assert watch.moved(port, Role.SERVER, Direction.READ) == 100
            assert watch.moved(port, Role.SERVER, Direction.WRITE) == 50
            assert any(not watch.keys("accept_queue") for _ in range(50))  # others may use it too
        finally:
            watch.close()


def _own_cgroup() -> int:
    with open("/proc/self/cgroup") as lines:
        inside = next(line.split("::", 1)[1].strip() for line in lines if line.startswith("0::"))
    with open("/proc/self/mounts") as lines:
        root = next(line.split()[1] for line in lines if line.split()[2] == "cgroup2")
    return os.stat(root + inside).st_ino


def test_connect_under_way(variant: Path) -> None:
    """A handshake that began before the programs is decided, without a duration."""
    with listening(backlog=0) as server, contextlib.ExitStack() as held:
        held.enter_context(socket.create_connection(server.getsockname()))
        select.select([server], [], [])  # the queue is full: the next SYN is dropped
        late = held.enter_context(socket.socket())
        late.setblocking(False)
        began = time.monotonic()
        late.connect_ex(server.getsockname())
        port = late.getsockname()[1]
        second = Watch(iterate=True, path=variant)
        held.callback(second.close)
        server.settimeout(1)
        assert tcp_state(late) == 2  # SYN_SENT
        # It is sent again after a second and then after twice as long each time.
        deadline = 2 * time.monotonic() - began + 8
        while select.select([], [late], [], 0)[1] == [] and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                held.enter_context(server.accept()[0])
        second.drain()
        found = second.connections(port, ConnectionEvent.CONNECTED)
        assert [(each["error"], each["duration_ns"]) for each in found] == [(0, UNMEASURED)]


def test_own_process_is_left_out(variant: Path) -> None:
    watch = Watch(constants={"podwire_own_pid": os.getpid()}, path=variant)
    try:
        with listening() as server:
            port = port_of(server)
            client, accepted = pair(server)
            client.sendall(b"x")
            accepted.recv(1)
            client.close()
            accepted.close()
            settle()
            assert socket.create_connection(server.getsockname()).close() is None
        with socket.socket() as refused:
            refused.connect_ex(("127.0.0.1", port))
        settle()
        watch.drain()
        assert not len(watch.connections(port))
        assert not (watch.records("transfers")["pid"] == os.getpid()).any()
        assert any(not watch.keys("accept_queue") for _ in range(50))  # others may use it too
    finally:
        watch.close()


def test_processes(watch: Watch) -> None:
    children = [subprocess.Popen(["sleep", "0"]) for _ in range(5)]
    for child in children:
        child.wait()
    watch.drain()
    found = watch.records("processes")
    for child in children:
        mine = found[found["pid"] == child.pid]
        assert list(mine["event"]) == [ProcessEvent.EXEC, ProcessEvent.EXIT]
        assert {bytes(each).rstrip(b"\0") for each in mine["comm"]} == {b"sleep"}
        assert set(mine["cgroup_id"]) == {_own_cgroup()}
    assert watch.counts(Kind.PROCESS)["ring_full"] == 0
