"""Bytes, calls and durations against what the applications themselves counted."""

from __future__ import annotations

import collections
import ctypes
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from collector.abi import Call, ConnectionEvent, Direction, Kind, Role
from tests.bpf.harness import BY_DESCRIPTOR, UNMEASURED, Watch
from tests.bpf.test_connections import life, listening, pair, port_of, settle
from tests.bpf.traffic import is_receiving, until
from tests.requirements import unmet

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.bpf

CALLS = 3000
"""Of each thread; enough for the kernel to preempt programs, where it does."""

libc = ctypes.CDLL(None, use_errno=True)
libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
libc.recvmmsg.argtypes = (*libc.sendmmsg.argtypes, ctypes.c_void_p)


class Message(ctypes.Structure):
    """``struct mmsghdr`` with one buffer."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vector", ctypes.c_void_p),
        ("vectors", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_size_t),
        ("length", ctypes.c_uint),
    )


def messages(sizes: tuple[int, ...]) -> tuple[ctypes.Array[Message], list[object]]:
    made, keep = (Message * len(sizes))(), []
    for message, size in zip(made, sizes, strict=True):
        buffer = ctypes.create_string_buffer(size)
        vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), size)
        message.vector, message.vectors = ctypes.addressof(vector), 1
        keep += [buffer, vector]
    return made, keep


def send_many(fd: int) -> int:
    made, _keep = messages((100, 200, 300))
    assert libc.sendmmsg(fd, made, 3, 0) == 3
    return 600


def receive_many(fd: int) -> int:
    made, _keep = messages((100, 200, 300))
    assert libc.recvmmsg(fd, made, 3, 0, None) == 3
    return sum(message.length for message in made)


WRITES: dict[Call, Callable[[socket.socket], int]] = {
    Call.WRITE: lambda s: os.write(s.fileno(), b"w" * 1111),
    Call.WRITEV: lambda s: os.writev(s.fileno(), [b"a" * 10, b"b" * 20]),
    Call.SENDTO: lambda s: s.send(b"s" * 70_000),
    Call.SENDMSG: lambda s: s.sendmsg([b"m" * 5, b"n" * 6]),
    Call.SENDMMSG: lambda s: send_many(s.fileno()),
}
READS: dict[Call, Callable[[socket.socket], int]] = {
    Call.READ: lambda s: len(os.read(s.fileno(), 500)),
    Call.READV: lambda s: os.readv(s.fileno(), [bytearray(10), bytearray(20)]),
    Call.RECVFROM: lambda s: len(s.recv(500)),
    Call.RECVMSG: lambda s: len(s.recvmsg(500)[0]),
    Call.RECVMMSG: lambda s: receive_many(s.fileno()),
}


@pytest.mark.parametrize("call", WRITES, ids=lambda call: call.name)
def test_write_calls(watch: Watch, call: Call) -> None:
    with listening() as server:
        client, accepted = pair(server)
        size = WRITES[call](client)
        client.close()
        accepted.close()
        watch.drain()
        found = watch.transfers(port_of(server), Role.CLIENT, Direction.WRITE)
    assert [(each["call"], each["size"]) for each in found] == [(call, size)]
    assert 0 < found["duration_ns"][0] < 1_000_000_000
    assert found["pid"][0] == os.getpid()
    assert found["tid"][0] == threading.get_native_id()


@pytest.mark.parametrize("call", READS, ids=lambda call: call.name)
def test_read_calls(watch: Watch, call: Call) -> None:
    with listening() as server:
        client, accepted = pair(server)
        client.sendall(b"x" * 10_000)
        assert len(accepted.recv(3000, socket.MSG_PEEK)) == 3000  # moves nothing
        size = READS[call](accepted)
        client.close()
        accepted.close()
        watch.drain()
        found = watch.transfers(port_of(server), Role.SERVER, Direction.READ)
    assert [(each["call"], each["size"]) for each in found] == [(call, size)]
    assert 0 < found["duration_ns"][0] < 1_000_000_000


def test_vector_calls_with_offset_minus_one(watch: Watch) -> None:
    def call(function: str, fd: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
        vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), len(buffer))
        return int(getattr(libc, function)(fd, vector, 1, ctypes.c_long(-1), 0))

    buffer = ctypes.create_string_buffer(64)
    with listening() as server:
        client, accepted = pair(server)
        assert call("pwritev2", client.fileno(), buffer) == 64
        assert call("preadv2", accepted.fileno(), buffer) == 64
        client.close()
        accepted.close()
        watch.drain()
        port = port_of(server)
    assert list(watch.transfers(port, Role.CLIENT, Direction.WRITE)["call"]) == [Call.WRITEV]
    assert list(watch.transfers(port, Role.SERVER, Direction.READ)["call"]) == [Call.READV]


def test_waiting_is_part_of_a_read(watch: Watch) -> None:
    with listening() as server:
        client, accepted = pair(server)
        thread = threading.Thread(target=lambda: accepted.recv(10))
        thread.start()
        until(lambda: is_receiving(thread.native_id or 0))
        time.sleep(0.1)
        client.send(b"x")
        thread.join()
        client.close()
        accepted.close()
        watch.drain()
        found = watch.transfers(port_of(server), Role.SERVER, Direction.READ)
    assert 50_000_000 < found["duration_ns"][0] < 1_000_000_000


def test_failing_and_empty_calls_move_nothing(watch: Watch) -> None:
    with listening() as server:
        client, accepted = pair(server)
        accepted.setblocking(False)
        with pytest.raises(BlockingIOError):
            accepted.recv(10)
        client.send(b"")
        client.close()
        select.select([accepted], [], [])
        assert accepted.recv(10) == b""
        accepted.close()
        watch.drain()
        port = port_of(server)
    for role in (Role.CLIENT, Role.SERVER):
        for direction in Direction:
            assert not len(watch.transfers(port, role, direction))


def test_other_sockets_and_files_are_left_out(watch: Watch, tmp_path: Path) -> None:
    before = watch.counts(Kind.TRANSFER)["submitted"]
    left, right = socket.socketpair()
    left.send(b"x")
    right.recv(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.connect(udp.getsockname())
        udp.send(b"x")
        udp.recv(1)
        port = udp.getsockname()[1]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(bytes(20), ("127.0.0.1", 0))
    if _has_mptcp():
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
            client.connect(server.getsockname())
            accepted, _ = server.accept()
            client.send(b"x")
            accepted.recv(1)
            client.close()
            accepted.close()
            assert life(watch, server.getsockname()[1]) == (0, 0, 0, 0)
    (tmp_path / "file").write_bytes(b"x" * 5000)
    (tmp_path / "file").read_bytes()
    left.close()
    right.close()
    watch.drain()
    mine = watch.records("transfers")
    assert not (mine["pid"] == os.getpid()).any()
    assert not len(watch.connections(port))
    assert watch.counts(Kind.TRANSFER)["submitted"] >= before


def _has_mptcp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP).close()
    except (AttributeError, OSError):  # neither Python nor every kernel has it
        return False
    return True


def test_sendfile(watch: Watch, tmp_path: Path) -> None:
    size = 3_000_000
    (tmp_path / "file").write_bytes(b"f" * size)
    with listening() as server, (tmp_path / "file").open("rb") as file:
        client, accepted = pair(server)
        received = [0]

        def read() -> None:
            while chunk := accepted.recv(1 << 16):
                received[0] += len(chunk)

        thread = threading.Thread(target=read)
        thread.start()
        calls, offset = 0, 0
        while sent := os.sendfile(client.fileno(), file.fileno(), offset, size):
            offset += sent
            calls += 1
        client.close()
        thread.join()
        accepted.close()
        watch.drain()
        port = port_of(server)
    assert received == [size]
    found = watch.transfers(port, Role.CLIENT, Direction.WRITE)
    assert len(found) == calls
    assert set(found["call"]) == {Call.SENDFILE}
    assert found["size"].sum() == size
    assert watch.moved(port, Role.SERVER, Direction.READ) == size


def test_splice_both_ways(watch: Watch) -> None:
    """A proxy that moves everything from one socket to another through a pipe."""
    size = 2_000_000
    with listening() as server:
        port = port_of(server)
        client, incoming = pair(server)
        outgoing, sink = pair(server)
        source, drain = os.pipe()
        received = [0]

        def read() -> None:
            while chunk := sink.recv(1 << 16):
                received[0] += len(chunk)

        def write() -> None:
            client.sendall(b"p" * size)
            client.close()

        threads = [threading.Thread(target=read), threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        ins, outs = [], []
        while moved := os.splice(incoming.fileno(), drain, 1 << 16):
            ins.append(moved)
            while moved:
                out = os.splice(source, outgoing.fileno(), moved)
                outs.append(out)
                moved -= out
        outgoing.close()
        for thread in threads:
            thread.join()
        for each in (incoming, sink):
            each.close()
        os.close(source)
        os.close(drain)
        watch.drain()
    assert received == [size]
    read_records = watch.transfers(port, Role.SERVER, Direction.READ, Call.SPLICE)
    write_records = watch.transfers(port, Role.CLIENT, Direction.WRITE, Call.SPLICE)
    assert list(read_records["size"]) == ins
    assert list(write_records["size"]) == outs
    assert watch.moved(port, Role.SERVER, Direction.READ) == 2 * size
    assert watch.moved(port, Role.CLIENT, Direction.WRITE) == 2 * size


def test_io_uring(watch: Watch, tmp_path: Path) -> None:
    if watch.path == BY_DESCRIPTOR:
        pytest.skip("io_uring has no system call that leads to its sockets")
    binary = tmp_path / "uring"
    source = Path(__file__).with_name("uring.c")
    subprocess.run(["cc", "-O1", "-o", str(binary), str(source)], check=True)
    done = subprocess.run(
        [str(binary), str(tmp_path / "port"), "40", "5000"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode == 3:
        unmet("bpf", f"no io_uring here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["200000", "200000"]
    port = int((tmp_path / "port").read_text())
    settle()
    assert life(watch, port) == (40, 40, 40, 40)
    assert set(watch.connections(port, ConnectionEvent.ACCEPTED)["duration_ns"]) == {UNMEASURED}
    sent = watch.transfers(port, Role.CLIENT, Direction.WRITE)
    received = watch.transfers(port, Role.SERVER, Direction.READ)
    assert sent["size"].sum() == received["size"].sum() == 200_000
    assert set(sent["call"]) == set(received["call"]) == {Call.IO_URING}
    assert set(sent["duration_ns"]) | set(received["duration_ns"]) == {UNMEASURED}


def test_threads_on_one_socket(watch: Watch) -> None:
    """Reads and writes of the same socket at once, from several threads."""
    with listening() as server:
        port = port_of(server)
        client, accepted = pair(server)
        counted: collections.Counter[str] = collections.Counter()
        calls: collections.Counter[str] = collections.Counter()
        lock = threading.Lock()

        def write(s: socket.socket, name: str) -> None:
            for _ in range(CALLS):
                s.sendall(b"t" * 999)
            with lock:
                counted[name] += CALLS * 999
                calls[name] += CALLS

        def read(s: socket.socket, name: str) -> None:
            total = reads = 0
            while total < 2 * CALLS * 999:
                total += len(s.recv(4096))
                reads += 1
            with lock:
                counted[name] += total
                calls[name] += reads

        threads = [
            threading.Thread(target=write, args=(client, "client")),
            threading.Thread(target=write, args=(client, "client")),
            threading.Thread(target=write, args=(accepted, "server")),
            threading.Thread(target=write, args=(accepted, "server")),
            threading.Thread(target=read, args=(client, "client read")),
            threading.Thread(target=read, args=(accepted, "server read")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
        accepted.close()
        watch.drain()
    for role, name in ((Role.CLIENT, "client"), (Role.SERVER, "server")):
        assert watch.moved(port, role, Direction.WRITE) == counted[name]
        assert watch.moved(port, role, Direction.READ) == counted[f"{name} read"]
        assert len(watch.transfers(port, role, Direction.WRITE)) == calls[name]
        assert len(watch.transfers(port, role, Direction.READ)) == calls[f"{name} read"]


def _detach(watch: Watch, program: str) -> None:
    """What the kernel skips, done for good."""
    watch.object.library.call("bpf_link__destroy", watch.object._links.pop(program))


@pytest.mark.parametrize("skipped", range(4))
def test_spares_stand_in(variant: Path, skipped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event is told once, whichever of its programs comes first."""
    monkeypatch.setattr("collector.attach.preempts_programs", lambda _: True)
    watch = Watch(path=variant)
    try:
        for hook in ("sys_exit", "sys_enter", "sock_send_length", "sock_recv_length"):
            order = [hook, *(f"{hook}_spare_{number}" for number in (1, 2, 3))]
            for program in order[:skipped]:
                if program in watch.object._links:
                    _detach(watch, program)
        with listening() as server:
            port = port_of(server)
            client, accepted = pair(server)
            sizes = [write(client) for write in WRITES.values()]
            read = [len(accepted.recv(1000)) for _ in range(20)]
            client.close()
            accepted.close()
            watch.drain()
    finally:
        watch.close()
    sent = watch.transfers(port, Role.CLIENT, Direction.WRITE)
    received = watch.transfers(port, Role.SERVER, Direction.READ)
    assert list(sent["size"]) == sizes
    assert list(sent["call"]) == list(WRITES)
    assert list(received["size"]) == read
    assert not (np.concatenate([sent, received])["duration_ns"] == UNMEASURED).any()
    assert life(watch, port) == (1, 1, 1, 1)


def test_a_call_whose_end_goes_unseen_is_told_later(variant: Path) -> None:
    """By the next call of its thread, or at the thread's end."""
    if variant == BY_DESCRIPTOR:
        pytest.skip("only the end of a call tells its size")
    watch = Watch()
    try:
        for hook in watch.hooks:
            if hook.target == "sys_exit":
                _detach(watch, hook.program)
        with listening() as server:
            port = port_of(server)
            client, accepted = pair(server)
            thread = threading.Thread(target=lambda: [client.send(b"e" * n) for n in (1, 2, 3)])
            thread.start()
            thread.join()  # which is over before the kernel's thread is

            def sizes() -> list[int]:
                watch.drain()
                return list(watch.transfers(port, Role.CLIENT, Direction.WRITE)["size"])

            until(lambda: len(sizes()) >= 3)
            client.close()
            accepted.close()
            assert sizes() == [1, 2, 3]
            found = watch.transfers(port, Role.CLIENT, Direction.WRITE)
    finally:
        watch.close()
    assert set(found["duration_ns"]) == {UNMEASURED}
    assert set(found["call"]) == {Call.SENDTO}


@pytest.mark.parametrize("sendfile", ["on", "off"])
def test_nginx_and_curl(watch: Watch, tmp_path: Path, sendfile: str) -> None:
    nginx, curl = shutil.which("nginx", path="/usr/sbin:/usr/bin"), shutil.which("curl")
    if not nginx or not curl:
        unmet("bpf", "nginx or curl is not installed")
    with listening() as server:
        port = port_of(server)
    body = 1_234_567
    (tmp_path / "file").write_bytes(b"n" * body)
    tmp_path.chmod(0o755)
    (tmp_path / "nginx.conf").write_text(
        f"""daemon off; pid {tmp_path}/pid; error_log stderr; user root; worker_processes 1;
        events {{}}
        http {{ access_log off; sendfile {sendfile};
                server {{ listen 127.0.0.1:{port}; root {tmp_path}; }} }}"""
    )
    process = subprocess.Popen([nginx, "-c", str(tmp_path / "nginx.conf")])
    try:

        def is_there() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(is_there)
        # The worker that accepts it may start only now.
        until(lambda: life(watch, port)[1::2] == (1, 1))
        watch.drain()
        watch.seen = {name: [] for name in watch.seen}
        url = f"http://127.0.0.1:{port}/file"
        figures = "%{size_download} %{size_header} %{size_request} %{num_connects}\n"
        done = subprocess.run(
            [curl, "-s", *(["-o", "/dev/null", url] * 5), "-w", figures],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        until(lambda: life(watch, port) == (1, 1, 1, 1))
        told = [[int(number) for number in line.split()] for line in done.stdout.split("\n")[:-1]]
        downloaded, requested = (sum(t[0] + t[1] for t in told), sum(t[2] for t in told))
        assert sum(t[3] for t in told) == 1
        assert downloaded > 5 * body
        assert watch.moved(port, Role.SERVER, Direction.WRITE) == downloaded
        assert watch.moved(port, Role.CLIENT, Direction.READ) == downloaded
        assert watch.moved(port, Role.CLIENT, Direction.WRITE) == requested
        assert watch.moved(port, Role.SERVER, Direction.READ) == requested
        calls = set(watch.transfers(port, Role.SERVER, Direction.WRITE)["call"])
        assert (Call.SENDFILE in calls) is (sendfile == "on")
    finally:
        process.terminate()
        process.wait()
