"""What tests of the stages send, and what the kernel says of it through ``TCP_INFO``."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import platform
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "TcpInfo",
    "alone_on_a_cpu",
    "bulk",
    "crowded_cpu",
    "in_background",
    "is_receiving",
    "on_every_cpu",
    "ping_pong",
    "receive",
    "tcp_info",
    "tcp_state",
    "unread",
    "until",
    "wait_sent",
]

_INFO_BYTES: Final = 232
_RECVFROM: Final = {"x86_64": "45", "aarch64": "207"}


class TcpInfo(NamedTuple):
    """The counters of ``struct tcp_info`` that ``ss -ti`` shows under the same names."""

    unacked: int
    total_retrans: int
    bytes_received: int
    notsent_bytes: int
    data_segs_in: int
    data_segs_out: int
    bytes_sent: int
    bytes_retrans: int


def tcp_state(end: socket.socket) -> int:
    """Of include/net/tcp_states.h: 2 is SYN_SENT, 7 CLOSE."""
    return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def tcp_info(end: socket.socket) -> TcpInfo:
    """Ask the kernel for the counters of a socket."""
    raw = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    return TcpInfo(
        *struct.unpack_from("<I", raw, 24),
        *struct.unpack_from("<I", raw, 100),
        *struct.unpack_from("<Q", raw, 128),
        *struct.unpack_from("<I", raw, 144),
        *struct.unpack_from("<II", raw, 152),
        *struct.unpack_from("<QQ", raw, 200),
    )


def unread(end: socket.socket) -> int:
    """How many bytes wait in its queue."""
    return int.from_bytes(fcntl.ioctl(end, termios.FIONREAD, bytes(4)), sys.byteorder)


def is_receiving(thread: int) -> bool:
    """Whether a thread of this process is in recvfrom()."""
    call = Path(f"/proc/self/task/{thread}/syscall").read_text().split()[0]
    return call == _RECVFROM[platform.machine()]


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something that the kernel does on its own.

    Raises:
        TimeoutError: If it does not.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {seconds} s")
        time.sleep(0.002)


def wait_sent(*ends: socket.socket) -> None:
    """Wait until everything written has been acknowledged."""
    for end in ends:
        until(functools.partial(_is_sent, end))


def _is_sent(end: socket.socket) -> bool:
    info = tcp_info(end)
    return not info.unacked and not info.notsent_bytes


def receive(end: socket.socket, size: int, each: int = 1 << 16) -> int:
    """Read exactly so many bytes; returns in how many calls."""
    calls = 0
    while size:
        chunk = end.recv(min(size, each))
        assert chunk, "closed too early"
        size -= len(chunk)
        calls += 1
    return calls


def ping_pong(
    client: socket.socket, server: socket.socket, times: int, sizes: tuple[int, int]
) -> None:
    """One request and one response after the other, each smaller than a segment."""
    for _ in range(times):
        client.sendall(b"q" * sizes[0])
        receive(server, sizes[0])
        server.sendall(b"a" * sizes[1])
        receive(client, sizes[1])


@contextlib.contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    """Run something beside the body; its failure fails the body's end."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failed:
        raise failed[0]


@contextlib.contextmanager
def on_every_cpu(work: Callable[[], object]) -> Iterator[None]:
    """Do something over and over beside the body, in a thread on each CPU."""
    done = threading.Event()

    def repeat(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})  # of this thread
        while not done.is_set():
            work()

    with contextlib.ExitStack() as running:
        for cpu in os.sched_getaffinity(0):
            running.enter_context(in_background(functools.partial(repeat, cpu)))
        running.callback(done.set)
        yield


@contextlib.contextmanager
def _spinning() -> Iterator[int]:
    # A process that never waits, on this thread's CPUs; its id.
    script = f'import os\nprint("spins", flush=True)\nwhile os.getppid() == {os.getpid()}: pass'
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "spins\n"
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def crowded_cpu(rivals: int = 3) -> Iterator[None]:
    """Run the body, in this thread, on a CPU that it shares with tasks that never wait."""
    allowed = os.sched_getaffinity(0)
    with contextlib.ExitStack() as undo:
        undo.callback(os.sched_setaffinity, 0, allowed)
        os.sched_setaffinity(0, {max(allowed)})  # the rivals' too
        for _ in range(rivals):
            undo.enter_context(_spinning())
        yield


@contextlib.contextmanager
def alone_on_a_cpu() -> Iterator[None]:
    """Run the body, and the timers that it starts, on a CPU where no other task runs meanwhile.

    A sandbox may hide its supervisor from BPF programs, and with it every interrupt that comes
    while the supervisor runs: packets that a timer sends are then seen by no tracepoint.
    """
    allowed = os.sched_getaffinity(0)
    with contextlib.ExitStack() as undo:
        undo.callback(os.sched_setaffinity, 0, allowed)
        os.sched_setaffinity(0, {max(allowed)})
        spinner = undo.enter_context(_spinning())
        os.sched_setscheduler(spinner, os.SCHED_FIFO, os.sched_param(1))
        undo.callback(os.sched_setscheduler, 0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
        yield


def bulk(sender: socket.socket, receiver: socket.socket, size: int, each: int = 1 << 16) -> None:
    """Write so many bytes in calls of one size while the other end reads them."""
    with in_background(lambda: receive(receiver, size)):
        for _ in range(size // each):
            sender.sendall(bytes(each))
        sender.sendall(bytes(size % each))
