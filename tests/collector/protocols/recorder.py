"""A TCP proxy on loopback that keeps what went through it, as a parser would be fed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from collector.protocols.calls import Side

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collector.protocols.calls import Exchange

CHUNK = 65_536


@dataclass(frozen=True)
class Moved:
    """Bytes that one ``recv`` gave."""

    side: Side
    data: bytes
    start_ns: int
    end_ns: int


@dataclass
class Connection:
    """What was said on one connection, each byte recorded before it was passed on."""

    moved: list[Moved] = field(default_factory=list)
    ended_ns: int = 0

    def replay(self, parser: Exchange, begin: int = 0) -> None:
        for item in self.moved[begin:]:
            parser.feed(item.side, item.data, item.start_ns, item.end_ns)
        parser.close(self.ended_ns)


class Recorder:
    """Listens on ``port`` and passes on to ``target``."""

    def __init__(self, target: int, listener: socket.socket) -> None:
        self.connections: list[Connection] = []
        self.port: int = listener.getsockname()[1]
        self._target = target
        self._listener = listener
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def join(self) -> None:
        """Wait for the ends of all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = Connection()
                self.connections.append(connection)
                self._start(self._serve, connection, client, server)

    def _serve(self, connection: Connection, client: socket.socket, server: socket.socket) -> None:
        lock = threading.Lock()
        back = threading.Thread(
            target=_move, args=(connection, Side.RESPONSE, server, client, lock), daemon=True
        )
        back.start()
        _move(connection, Side.REQUEST, client, server, lock)
        back.join()
        connection.ended_ns = time.monotonic_ns()
        client.close()
        server.close()


def _move(
    connection: Connection,
    side: Side,
    source: socket.socket,
    target: socket.socket,
    lock: threading.Lock,
) -> None:
    with contextlib.suppress(OSError):
        while True:
            data = source.recv(CHUNK)
            if not data:
                break
            with lock:
                now = time.monotonic_ns()
                connection.moved.append(Moved(side, data, now, now))
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RD if end is source else socket.SHUT_WR)


@contextlib.contextmanager
def recorder(target: int) -> Iterator[Recorder]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        result = Recorder(target, listener)
        try:
            yield result
        finally:
            result.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
