"""Where rows of calls come from: a real collector, or a witness in the middle of the connection.

Rows are those of ``EventBatch.requests`` with strings for numbers of names, None for what is not
known, and of their connection `role`, `local_port`, `remote_port`, `container` and `preexisting`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from collector.protocols.calls import NOT_GRPC, UNMEASURED, Side
from collector.recording import read_recording
from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.events import (
    GRPC_UNKNOWN,
    ConnectionFlag,
    EventBatch,
    RequestFlag,
    Requests,
    Role,
    decode_batch,
)
from schemas.ledger import Ledger
from tests.http.servers import REPOSITORY
from tests.support.sockets import half_closed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from collector.protocols.calls import Call
    from schemas.ledger import Entry
    from tests.http.truth import Row

__all__ = ["Collector", "Observed", "Tap", "Witness", "rows_of"]

_STRINGS: Final = ("method", "path", "host", "trace_id", "segment_id", "span_id")
_ROLES: Final = {int(Role.CLIENT): "client", int(Role.SERVER): "server"}
_SETTLE_S: Final = 0.5
"""For clients that close in the background."""
_CLOSES_S: Final = 10.0
"""For servers that have yet to see it."""
_STOP_S: Final = 120.0
"""For what is in the rings; a busy machine is behind by that much."""


class Observed(Protocol):
    """Something that sees calls from `start` to `stop`."""

    def start(self) -> None:
        """Begin; connections and calls from now on are seen."""

    def stop(self) -> None:
        """End; what was under way is let go of."""

    def rows(self) -> list[Row]:
        """All calls that came to their end."""


def rows_of(batches: Iterable[EventBatch]) -> list[Row]:
    """Rows of the calls in batches."""
    found = []
    names = [each.name for each in fields(Requests)]
    for batch in batches:
        columns = [getattr(batch.requests, name).tolist() for name in names]
        of = {
            name: getattr(batch.connections, name).tolist()
            for name in ("local_port", "remote_port", "role", "container", "flags", "netns", "pid")
        }
        for values in zip(*columns, strict=True):
            row: Row = dict(zip(names, values, strict=True))
            place = row.pop("connection")
            for name in _STRINGS:
                row[name] = batch.names[row[name]]
            grpc = row["grpc_status"]
            row["grpc_status"] = (
                NOT_GRPC
                if grpc == int(UNMEASURED_U32)
                else UNMEASURED
                if grpc == GRPC_UNKNOWN
                else grpc
            )
            for name in ("request_header_size", "response_header_size"):
                row[name] = None if row[name] == int(UNMEASURED_U32) else row[name]
            for name in ("request_body_size", "response_body_size", "first_byte_ns"):
                row[name] = None if row[name] == int(UNMEASURED_U64) else row[name]
            row |= {name: of[name][place] for name in ("local_port", "remote_port", "netns", "pid")}
            row["role"] = _ROLES.get(of["role"][place], "")
            row["container"] = batch.names[of["container"][place]]
            row["tls"] = bool(row.pop("flags") & RequestFlag.TLS)
            row["preexisting"] = bool(of["flags"][place] & ConnectionFlag.PREEXISTING)
            found.append(row)
    return found


class Collector:
    """The collector's own kernel source and pipeline in a process of its own.

    Args:
        work: Directory for its recording.
        ring_bytes: Size of its payload ring.
    """

    def __init__(self, work: Path, ring_bytes: int) -> None:
        self._ring_bytes = ring_bytes
        self._recording = work / "collector.events"
        self._errors = work / "collector.txt"
        self._process: subprocess.Popen[str] | None = None
        self._half_closed: set[tuple[str, str]] = set()

    def start(self) -> None:
        """Return once it watches.

        Raises:
            RuntimeError: If it does not; says what it printed.
        """
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.http.collector_process"),
                    *(str(self._recording), str(self._ring_bytes)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=REPOSITORY,
            )
        self._half_closed = half_closed()
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self._process.wait(10)
            raise RuntimeError(f"the collector did not start: {self.said()}")

    def stop(self) -> None:
        """End it as SIGTERM does in earnest, after what is under way has settled."""
        if self._process is None:
            return
        time.sleep(_SETTLE_S)
        deadline = time.monotonic() + _CLOSES_S
        while half_closed() - self._half_closed and time.monotonic() < deadline:
            time.sleep(0.02)
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        assert process.returncode == 0, self.said()

    def said(self) -> str:
        """The end of what it printed."""
        return self._errors.read_text()[-2000:]

    def batches(self) -> list[EventBatch]:
        """All that it sent."""
        return [decode_batch(message) for message in read_recording(self._recording)]

    def rows(self) -> list[Row]:
        return rows_of(self.batches())

    def ledger(self) -> dict[tuple[str, str, str], Entry]:
        """What all of it says was counted, by stage, kind and reason."""
        total = Ledger()
        for batch in self.batches():
            total.add(batch.header.ledger)
        return {(one.stage, one.kind, one.reason): one for one in total.drain()}


class Tap:
    """Counts what each connection said, and may hold it in memory: `Witness`'s listener."""

    def __init__(self) -> None:
        self.said = {Side.REQUEST: 0, Side.RESPONSE: 0}
        self.kept = {Side.REQUEST: bytearray(), Side.RESPONSE: bytearray()}
        self.keeps = False
        self.exchange: Any = None
        self.port = 0
        """Of the proxy's connection to the server, which is the client in the server's log."""


_PORTS: Final = itertools.cycle(range(10_000, 30_000))
"""None of those that the kernel gives: a log's line with one of them came through a witness."""


class Witness:
    """A proxy that hands every byte on and shows it to a parser; kernel and privileges not needed.

    Clients connect to `port`. Bytes are parsed in the order in which they passed, so that what is
    seen is the same as at the server, except that the proxy reads ahead of it.

    Args:
        target: The server.
        create: Makes a parser of a connection, from the list for its calls and whether the first
            bytes of the client are HTTP/2's; None to count bytes only.
        keeps: Whether the bytes themselves are kept.
    """

    def __init__(
        self,
        target: tuple[str, int],
        create: Callable[[list[Call], bool], Any] | None,
        keeps: bool = False,
    ) -> None:
        self._target = target
        self._create = create
        self._keeps = keeps
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.address = ("127.0.0.1", self.port)
        self.taps: list[Tap] = []
        self._rows: list[Row] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._pipes: set[_Pipe] = set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        if self._stop.is_set():
            return
        deadline = time.monotonic() + 5
        while self._pipes and time.monotonic() < deadline:
            time.sleep(0.05)  # connections that are about to end
        self._stop.set()
        self._thread.join()
        for pipe in list(self._pipes):
            pipe.end()
        self._listener.close()
        self._selector.close()

    def rows(self) -> list[Row]:
        return list(self._rows)

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, events in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    key.data.move(key.fileobj, events)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = self._listener.accept()
            server = _connect(self._target)
            self._pipes.add(_Pipe(self, client, server))

    def show(self, tap: Tap, side: Side, data: bytes) -> None:
        """Let a connection's parser see bytes."""
        tap.said[side] += len(data)
        if self._keeps:
            tap.kept[side] += data
        if self._create is None:
            return
        now = time.monotonic_ns()
        if tap.exchange is None:
            tap.exchange = self._create([], side == Side.REQUEST and data[:3] == b"PRI")
        tap.exchange.feed(side, data, now, now)
        self._take(tap)

    def over(self, pipe: _Pipe) -> None:
        """A connection has ended."""
        self._pipes.discard(pipe)
        if pipe.tap.exchange is not None:
            pipe.tap.exchange.close(time.monotonic_ns())
            self._take(pipe.tap)

    def _take(self, tap: Tap) -> None:
        for call in tap.exchange.done:
            row = {name: getattr(call, name) for name in call.__slots__}
            sizes = [name for name in row if name.endswith("_size")]
            row |= {name: None if row[name] == UNMEASURED else row[name] for name in sizes}
            row |= {"version": int(call.version), "outcome": int(call.outcome)}
            row |= {"role": "server", "local_port": self._target[1], "remote_port": tap.port}
            row |= {"container": "", "preexisting": False, "tls": False}
            self._rows.append(row)
        tap.exchange.done.clear()


def _connect(target: tuple[str, int]) -> socket.socket:
    while True:
        try:
            return socket.create_connection(target, source_address=("", next(_PORTS)))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise


class _Pipe:
    """Both directions of one connection through a `Witness`."""

    _HELD: Final = 1 << 20

    def __init__(self, witness: Witness, client: socket.socket, server: socket.socket) -> None:
        self._witness = witness
        self._ends = {client: server, server: client}
        self._sides = {client: Side.REQUEST, server: Side.RESPONSE}
        self._out: dict[socket.socket, bytearray] = {client: bytearray(), server: bytearray()}
        self._closing: set[socket.socket] = set()  # ends that said all they have to say
        self._is_over = False
        self.tap = Tap()
        self.tap.port = server.getsockname()[1]
        witness.taps.append(self.tap)
        for end in self._ends:
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            witness._selector.register(end, selectors.EVENT_READ, self)

    def move(self, end: socket.socket, events: int) -> None:
        """Do what an end is ready for."""
        if self._is_over:
            return  # by the other end's event of the same round
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(end)
            if events & selectors.EVENT_READ and end not in self._closing:
                data = end.recv(262_144)
                if data:
                    self._witness.show(self.tap, self._sides[end], data)
                    self._out[self._ends[end]] += data
                else:
                    self._closing.add(end)
                self._flush(self._ends[end])
        except BlockingIOError:
            return
        except OSError:
            self.end(reset=True)
            return
        if len(self._closing) == 2 and not any(self._out.values()):
            self.end()
            return
        self._watch()

    def _flush(self, end: socket.socket) -> None:
        out = self._out[end]
        if out:
            with contextlib.suppress(BlockingIOError):
                sent = end.send(out)
                del out[:sent]
        if not out and self._ends[end] in self._closing:
            end.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        for end, other in self._ends.items():
            events = 0
            if end not in self._closing and len(self._out[other]) < self._HELD:
                events |= selectors.EVENT_READ
            if self._out[end]:
                events |= selectors.EVENT_WRITE
            registered = end in self._witness._selector.get_map()
            if events and registered:
                self._witness._selector.modify(end, events, self)
            elif events:
                self._witness._selector.register(end, events, self)
            elif registered:
                self._witness._selector.unregister(end)

    def end(self, reset: bool = False) -> None:
        """Close both ends, as a reset if one of them was."""
        self._is_over = True
        for end in self._ends:
            if end in self._witness._selector.get_map():
                self._witness._selector.unregister(end)
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()
        self._witness.over(self)
