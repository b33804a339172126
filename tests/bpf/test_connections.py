"""Opens, accepts and closes against what the applications themselves saw."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING

import pytest

from collector.abi import ConnectionEvent, Direction, Role
from tests.bpf.harness import UNMEASURED, Watch
from tests.bpf.traffic import crowded_cpu, tcp_state, until
from tests.requirements import unmet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.bpf

CONNECTED, ACCEPTED, CLOSED = (
    ConnectionEvent.CONNECTED,
    ConnectionEvent.ACCEPTED,
    ConnectionEvent.CLOSED,
)


@contextlib.contextmanager
def listening(host: str = "127.0.0.1", backlog: int = 128) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=backlog) as server:
        yield server


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def pair(server: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(server.getsockname()[:2])
    return client, server.accept()[0]


def life(watch: Watch, port: int) -> tuple[int, int, int, int]:
    """Connects, accepts, closes by the client and by the server."""
    watch.drain()
    return (
        watch.count(port, CONNECTED),
        watch.count(port, ACCEPTED),
        watch.count(port, CLOSED, Role.CLIENT),
        watch.count(port, CLOSED, Role.SERVER),
    )


def settle(seconds: float = 0.2) -> None:
    """Let the kernel finish what no application waits for (FIN, timers)."""
    time.sleep(seconds)


@pytest.mark.parametrize(
    ("host", "family", "address"),
    [
        ("127.0.0.1", 4, b"\0" * 10 + b"\xff\xff\x7f\0\0\x01"),
        ("::1", 6, b"\0" * 15 + b"\x01"),
    ],
)
def test_blocking_connection(watch: Watch, host: str, family: int, address: bytes) -> None:
    with listening(host) as server:
        port = port_of(server)
        client, accepted = pair(server)
        local_port = client.getsockname()[1]
        client.sendall(b"x" * 1000)
        assert accepted.recv(4096) == b"x" * 1000
        client.close()
        accepted.close()
    assert life(watch, port) == (1, 1, 1, 1)
    told = watch.connections(port)
    assert set(told["family"]) == {family}
    assert set(told["pid"]) == {os.getpid()}
    assert set(told["netns"]) == {os.stat("/proc/self/ns/net").st_ino}
    assert {bytes(each) for each in told["remote_address"]} == {address}
    assert {bytes(each) for each in told["local_address"]} == {address}
    clients = told[told["role"] == Role.CLIENT]
    assert set(clients["local_port"]) == {local_port}
    assert set(clients["remote_port"]) == {port}
    servers = told[told["role"] == Role.SERVER]
    assert set(servers["local_port"]) == {port}
    assert set(servers["remote_port"]) == {local_port}
    assert not told["error"].any()
    timed = told[told["event"] != ConnectionEvent.ANNOUNCED]
    assert (timed["duration_ns"] < 1_000_000_000).all()
    assert len(set(told["connection_id"])) == 2
    assert watch.moved(port, Role.CLIENT, Direction.WRITE) == 1000
    assert watch.moved(port, Role.SERVER, Direction.READ) == 1000


def test_mapped_ipv4_is_ipv4(watch: Watch) -> None:
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server,
        socket.create_connection(("127.0.0.1", port_of(server))),
    ):
        accepted, _ = server.accept()
        accepted.close()
        port = port_of(server)
    assert life(watch, port)[:2] == (1, 1)
    assert set(watch.connections(port)["family"]) == {4}


def test_cgroup(watch: Watch) -> None:
    with open("/proc/self/cgroup") as lines:
        inside = next(line.split("::", 1)[1].strip() for line in lines if line.startswith("0::"))
    with open("/proc/self/mounts") as lines:
        root = next(line.split()[1] for line in lines if line.split()[2] == "cgroup2")
    with listening() as server:
        client, accepted = pair(server)
        client.close()
        accepted.close()
        watch.drain()
        found = watch.connections(port_of(server))["cgroup_id"]
    assert set(found) == {os.stat(root + inside).st_ino}


def test_waiting_for_a_client_is_not_charged(watch: Watch) -> None:
    with listening() as server:
        accepted = []
        thread = threading.Thread(target=lambda: accepted.append(server.accept()[0]))
        thread.start()
        settle()
        waited_ns = time.monotonic_ns()
        client = socket.create_connection(server.getsockname())
        thread.join()
        waited_ns = time.monotonic_ns() - waited_ns
        client.close()
        accepted[0].close()
        watch.drain()
        found = watch.connections(port_of(server), ACCEPTED)
    assert len(found) == 1
    assert found["duration_ns"][0] < waited_ns


def test_accept_out_of_a_queue(watch: Watch) -> None:
    with listening() as server:
        client = socket.create_connection(server.getsockname())
        settle()
        waited_ns = time.monotonic_ns()
        accepted, _ = server.accept()
        waited_ns = time.monotonic_ns() - waited_ns
        client.close()
        accepted.close()
        watch.drain()
        found = watch.connections(port_of(server), ACCEPTED)
    assert len(found) == 1
    assert found["duration_ns"][0] < waited_ns


def test_never_accepted(watch: Watch) -> None:
    before = watch.keys("accept_queue")
    with listening() as server:
        port = port_of(server)
        clients = [socket.create_connection(server.getsockname()) for _ in range(20)]
        for client in clients[:10]:
            client.send(b"not read by anybody")
        until(lambda: len(watch.keys("accept_queue") - before) >= 20)
        waiting = watch.keys("accept_queue") - before
        for client in clients[:5]:
            client.close()
    for client in clients[5:]:
        client.close()
    settle()
    assert life(watch, port) == (20, 0, 20, 0)
    assert len(waiting & watch.keys("accept_queue")) <= len(waiting) - 20


def test_accept_queue_overflow(watch: Watch) -> None:
    with listening(backlog=0) as server:
        port = port_of(server)
        clients = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            assert client.connect_ex(server.getsockname()) == errno.EINPROGRESS
            clients.append(client)
        settle()
        accepted, _ = server.accept()
        accepted.close()
        established = sum(tcp_state(client) != 2 for client in clients)  # not SYN_SENT
        for client in clients:
            client.close()
    settle()
    connects, accepts, closes, server_closes = life(watch, port)
    assert (connects, accepts, closes, server_closes) == (4, 1, established, 1)
    errors = watch.connections(port, CONNECTED)["error"]
    assert sorted(errors) == [0] * established + [errno.ECANCELED] * (4 - established)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_refused(watch: Watch, host: str) -> None:
    with listening(host) as server:
        port = port_of(server)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port))
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
        client.setblocking(False)
        assert client.connect_ex((host, port)) == errno.EINPROGRESS
        select.select([], [client], [])  # the refusal may be left to ksoftirqd
        assert client.connect_ex((host, port)) == errno.ECONNREFUSED
        assert client.connect_ex((host, port)) == errno.EINPROGRESS  # a new attempt
        select.select([], [client], [])
    assert life(watch, port) == (3, 0, 0, 0)
    found = watch.connections(port, CONNECTED)
    assert list(found["error"]) == [errno.ECONNREFUSED] * 3
    assert len(set(found["connection_id"])) == 3
    assert (found["duration_ns"] < 1_000_000_000).all()


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_failure_that_was_not_seen_is_told_by_the_call_or_the_end(
    variant: Path, is_blocking: bool
) -> None:
    """As where the kernel skips the programs while a packet is received."""
    watch = Watch(path=variant)
    hooks = [each.name for each in watch.object.programs if "set_state" in each.section]
    errors: list[int] = []
    try:
        with listening(backlog=0) as server, socket.socket() as client:
            address = server.getsockname()
            others = [socket.create_connection(address)]  # all that there is room for
            select.select([server], [], [])
            if is_blocking:
                calling = threading.Thread(target=lambda: errors.append(client.connect_ex(address)))
                calling.start()
            else:
                client.setblocking(False)
                errors.append(client.connect_ex(address))
            time.sleep(0.3)
            watch.object.detach(*hooks)
            server.close()  # who asks again is refused
            if is_blocking:
                calling.join(20)
            else:
                select.select([], [client], [], 20)
        for other in others:
            other.close()
        watch.drain()
        found = watch.connections(address[1], CONNECTED)
    finally:
        watch.close()
    assert errors == [errno.ECONNREFUSED if is_blocking else errno.EINPROGRESS]
    assert sorted(found["error"].tolist()) == [0, errno.ECONNREFUSED]
    assert found["remote_port"].tolist() == [address[1]] * 2
    assert len(set(found["connection_id"])) == 2


def test_non_blocking_counts_once(watch: Watch) -> None:
    with listening() as server, socket.socket() as client:
        port = port_of(server)
        client.setblocking(False)
        assert client.connect_ex(server.getsockname()) == errno.EINPROGRESS
        accepted, _ = server.accept()
        assert client.connect_ex(server.getsockname()) in (0, errno.EISCONN)
        assert client.connect_ex(server.getsockname()) == errno.EISCONN
        accepted.close()
    assert life(watch, port) == (1, 1, 1, 1)
    assert watch.connections(port, CONNECTED)["error"][0] == 0


def test_asyncio(watch: Watch) -> None:
    async def traffic() -> int:
        ended = asyncio.Semaphore(0)

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
            writer.close()
            await writer.wait_closed()
            ended.release()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = int(server.sockets[0].getsockname()[1])

        async def client() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(10):
                writer.write(b"z" * 100_000)
                await reader.readexactly(100_000)
            writer.close()
            await writer.wait_closed()

        await asyncio.gather(*(client() for _ in range(30)))
        for _ in range(30):
            await ended.acquire()
        server.close()
        return port

    port = asyncio.run(traffic())
    assert life(watch, port) == (30, 30, 30, 30)
    for role in (Role.CLIENT, Role.SERVER):
        for direction in Direction:
            assert watch.moved(port, role, direction) == 30_000_000


def test_no_such_local_port(watch: Watch) -> None:
    """Every attempt to reuse a bound pair fails in tcp_v4_connect() after SYN_SENT."""
    with listening() as server:
        port = port_of(server)
        first = socket.create_connection(server.getsockname())
        second = socket.socket()
        for each in (second,):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            second.bind(first.getsockname())
        bound = second.getsockname()[1] == first.getsockname()[1]
        result = second.connect_ex(server.getsockname()) if bound else None
        second.close()
        first.close()
    found = life(watch, port)
    if not bound:
        unmet("bpf", "this kernel refuses to bind the pair")
    assert result == errno.EADDRNOTAVAIL
    assert found[0] == 2
    assert sorted(watch.connections(port, CONNECTED)["error"]) == [0, errno.EADDRNOTAVAIL]


def test_shutdown_is_not_a_close(watch: Watch) -> None:
    with listening() as server:
        port = port_of(server)
        client, accepted = pair(server)
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(1) == b""
        accepted.sendall(b"late")
        assert client.recv(10) == b"late"
        settle()
        assert life(watch, port) == (1, 1, 0, 0)
        accepted.shutdown(socket.SHUT_RDWR)
        settle()
        assert life(watch, port) == (1, 1, 0, 0)
        client.close()
        accepted.close()
        settle()
        assert life(watch, port) == (1, 1, 1, 1)


def test_duplicates_close_once(watch: Watch) -> None:
    with listening() as server:
        port = port_of(server)
        client, accepted = pair(server)
        copies = [client.dup() for _ in range(3)]
        child = os.fork()
        if child == 0:
            signal.pause()
        client.close()
        for copy in copies:
            copy.close()
        settle()
        assert life(watch, port) == (1, 1, 0, 0)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        settle()
        assert life(watch, port) == (1, 1, 1, 0)
        assert watch.connections(port, CLOSED)["duration_ns"][0] == UNMEASURED
        accepted.close()
    settle()
    assert life(watch, port) == (1, 1, 1, 1)


def test_dup2_and_close_range_close(watch: Watch) -> None:
    with listening() as server:
        port = port_of(server)
        pairs = [pair(server) for _ in range(4)]
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, pairs[0][0].fileno())
        top = os.dup(null) + 200
        high = [os.dup2(client.fileno(), top + i) for i, (client, _) in enumerate(pairs[1:])]
        for client, _ in pairs[1:]:
            client.close()
        settle(0.05)
        assert life(watch, port)[2] == 1
        os.closerange(high[0], high[-1] + 1)
        for _, accepted in pairs:
            accepted.close()
        os.close(pairs[0][0].detach())
        os.close(null)
        os.close(top - 200)
    settle()
    assert life(watch, port) == (4, 4, 4, 4)
    assert (watch.connections(port, CLOSED)["duration_ns"] < 1_000_000_000).all()


def test_a_close_that_waits_for_its_cpu_is_measured(watch: Watch) -> None:
    """Before v6.6 a file is let go of on the way out of close(), where other tasks take turns."""
    count = turns = 0
    with listening() as server, crowded_cpu():
        port = port_of(server)
        while turns < 20:
            pairs = [pair(server) for _ in range(100)]
            turns -= resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            for client, accepted in pairs:
                client.close()
                accepted.close()
            turns += resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            count += len(pairs)
            watch.drain()
    settle()
    assert life(watch, port) == (count, count, count, count)
    found = watch.connections(port, CLOSED)["duration_ns"]
    print(f"{turns} turns of others, {(found > 1_000_000).sum()} closes took over a millisecond")
    assert (found != UNMEASURED).all()


def test_killed_with_open_sockets(watch: Watch) -> None:
    script = """
        import socket, sys, time
        held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(300)]
        for each in held: each.send(b"hello")
        print("ready", flush=True)
        time.sleep(60)
    """
    with listening(backlog=400) as server:
        port = port_of(server)
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(port)], stdout=subprocess.PIPE
        ) as process:
            accepted = [server.accept()[0] for _ in range(300)]
            assert process.stdout is not None
            process.stdout.readline()
            process.kill()
        settle()
        assert life(watch, port) == (300, 300, 300, 0)
        found = watch.connections(port, CLOSED)
        assert set(found["pid"]) == {process.pid}
        assert set(found["duration_ns"]) == {UNMEASURED}
        for each in accepted:
            each.close()
    settle()
    assert life(watch, port) == (300, 300, 300, 300)


@pytest.mark.parametrize("way", ["linger", "unread", "reset", "plain"])
def test_ways_to_close(watch: Watch, way: str) -> None:
    with listening() as server:
        port = port_of(server)
        client, accepted = pair(server)
        if way == "linger":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif way == "unread":
            accepted.sendall(b"never read")
            settle(0.05)
        elif way == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.sendall(b"x")
        client.close()
        settle(0.05)
        assert life(watch, port) == (1, 1, 1, 0)
        with contextlib.suppress(ConnectionResetError):
            accepted.recv(1)
        accepted.close()
    settle()
    assert life(watch, port) == (1, 1, 1, 1)
    found = watch.connections(port, CLOSED)
    assert (found["duration_ns"] < 1_000_000_000).all()
    assert (found["local_port"] > 0).all()


def test_disconnect_and_connect_again(watch: Watch) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with listening() as server:
        port = port_of(server)
        client, accepted = pair(server)
        assert libc.connect(client.fileno(), struct.pack("H14x", 0), 16) == 0
        settle(0.05)
        assert life(watch, port) == (1, 1, 1, 0)
        accepted.close()
        client.connect(server.getsockname())
        again, _ = server.accept()
        client.close()
        again.close()
    settle()
    assert life(watch, port) == (2, 2, 2, 2)


def test_given_up(watch: Watch) -> None:
    """The application closes before the handshake has decided."""
    run_in_namespace(
        """
        client = socket.socket()
        client.setblocking(False)
        print(client.connect_ex(("10.77.0.9", 4711)))
        client.close()
        """,
    )
    watch.drain()
    found = watch.connections(4711, CONNECTED)
    assert list(found["error"]) == [errno.ECANCELED]
    assert watch.count(4711, CLOSED) == 0


def test_unroutable_and_timed_out(watch: Watch) -> None:
    output = run_in_namespace(
        """
        for family, address, port in (
            (socket.AF_INET, "192.0.2.1", 4721),      # no route
            (socket.AF_INET6, "2001:db8::1", 4722),   # no route
            (socket.AF_INET, "10.78.0.1", 4723),      # unreachable route
            (socket.AF_INET, "10.77.0.9", 4724),      # silently dropped
        ):
            client = socket.socket(family)
            print(client.connect_ex((address, port)))
            client.close()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        print(udp.connect_ex(("192.0.2.1", 4725)))
        """,
    )
    watch.drain()
    expected = [errno.ENETUNREACH, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT]
    assert [int(line) for line in output.split()] == [*expected, errno.ENETUNREACH]
    for port, error in zip(range(4721, 4725), expected, strict=True):
        found = watch.connections(port)
        assert [(each["event"], each["error"]) for each in found] == [(CONNECTED, error)], port
        assert found["role"][0] == Role.CLIENT
    assert not len(watch.connections(4725))
    assert bytes(watch.connections(4722)["remote_address"][0]) == socket.inet_pton(
        socket.AF_INET6, "2001:db8::1"
    )
    assert bytes(watch.connections(4721)["remote_address"][0])[12:] == bytes([192, 0, 2, 1])
    assert watch.connections(4724)["duration_ns"][0] > 500_000_000


def run_in_namespace(script: str) -> str:
    """Run Python in a new network namespace whose veth drops what it gets."""
    name, peer = f"pw{os.getpid()}", f"pp{os.getpid()}"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    ip("netns", "add", name)
    ip("netns", "add", peer)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", peer)
        ip("-n", name, "address", "add", "10.77.0.1/24", "dev", "v0")
        ip("-n", name, "link", "set", "v0", "up")
        ip("-n", peer, "link", "set", "v1", "up")
        # A fixed neighbour: SYNs leave and nobody answers.
        ip("-n", name, "neigh", "add", "10.77.0.9", "lladdr", "02:00:00:00:00:09", "dev", "v0")
        ip("-n", name, "route", "add", "unreachable", "10.78.0.0/16")
        enter = ["ip", "netns", "exec", name]
        subprocess.run(
            [*enter, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_syn_retries"], check=True
        )
        return subprocess.run(
            [*enter, sys.executable, "-c", "import socket\n" + textwrap.dedent(script)],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
    finally:
        ip("netns", "del", name)
        ip("netns", "del", peer)
