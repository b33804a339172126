"""Clear bytes of TLS sessions against the bytes that the applications themselves gave and got."""

from __future__ import annotations

import functools
import platform
import socket
import ssl
import threading
from typing import TYPE_CHECKING, TypeVar

import pytest

from collector.abi import ConnectionEvent, ConnectionFlag, Direction, Kind, PayloadFlag, Role
from collector.config import CollectorConfig
from collector.tls.attaching import OneByOne
from collector.tls.greetings import Greetings
from collector.tls.watcher import Watcher, start_tls
from schemas.tls import version_name
from tests.bpf.harness import Watch, native_code
from tests.bpf.test_connections import listening, pair, port_of
from tests.bpf.test_payloads import HEAD, noise, stream
from tests.bpf.test_scope import excluding
from tests.collector.tls.test_hello import in_records
from tests.requirements import kernel_version
from tests.tls.servers import make_certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from collector.payload_ring import Pieces

pytestmark = pytest.mark.bpf

ANSWER = b"HTTP/1.1 200 OK\r\n\r\n"
ANYS = ("_any", "_any_exit")
"""How names of programs end that are entered at all functions of a file."""
OF_CPU = bytes.fromhex("654c030c25")
"""``add r9, gs:[...]``: the stack is the CPU's."""
NAME = "podwire.example"
"""Whom clients ask for."""
ENDS = ((Role.CLIENT, Direction.WRITE), (Role.SERVER, Direction.READ))
"""Who says what a client says, and who hears it."""


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a client and of a server."""
    certificate, key = make_certificate(tmp_path_factory.mktemp("tls"))
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return client, server


@pytest.fixture(scope="module")
def attached(variant: Path) -> Iterator[tuple[Watch, Watcher]]:
    watch = Watch(path=variant, constants={"podwire_payloads": 1, "podwire_tls": 1})
    watcher = start_tls(CollectorConfig(), watch.object, {})
    assert watcher.reason == ""
    yield watch, watcher
    watcher.close()
    watch.close()


@pytest.fixture
def inside(attached: tuple[Watch, Watcher]) -> Watch:
    """The programs with those for TLS, emptied of what was there before."""
    watch, _ = attached
    watch.drain()
    watch.pieces.clear()
    for records in watch.seen.values():
        records.clear()
    return watch


T = TypeVar("T")


class Blocking:
    """A session whose library reads and writes the socket."""

    def __init__(self, context: ssl.SSLContext, end: socket.socket, is_server: bool) -> None:
        self._tls = context.wrap_socket(
            end,
            server_side=is_server,
            do_handshake_on_connect=False,
            server_hostname=None if is_server else NAME,
        )
        self._tls.settimeout(20)

    def shake(self) -> None:
        self._tls.do_handshake()

    def say(self, data: bytes) -> None:
        self._tls.sendall(data)

    def hear(self, size: int) -> bytes:
        heard = b""
        while len(heard) < size:
            heard += self._tls.recv(size - len(heard))
        return heard

    def close(self) -> None:
        self._tls.close()


class InMemory:
    """A session that is given the socket's bytes, and whose bytes are written for it."""

    def __init__(self, context: ssl.SSLContext, end: socket.socket, is_server: bool) -> None:
        self._end = end
        self._end.settimeout(20)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._in,
            self._out,
            server_side=is_server,
            server_hostname=None if is_server else NAME,
        )

    def _until_done(self, call: Callable[[], T]) -> T:
        while True:
            try:
                done = call()
            except ssl.SSLWantReadError:
                self._flush()
                self._in.write(self._end.recv(100_000))
            else:
                self._flush()
                return done

    def _flush(self) -> None:
        if data := self._out.read():
            self._end.sendall(data)

    def shake(self) -> None:
        self._until_done(self._tls.do_handshake)

    def say(self, data: bytes) -> None:
        self._until_done(lambda: self._tls.write(data))

    def hear(self, size: int) -> bytes:
        heard = b""
        while len(heard) < size:
            heard += self._until_done(functools.partial(self._tls.read, size - len(heard)))
        return heard

    def close(self) -> None:
        self._end.close()


def talk(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    kind: type[Blocking | InMemory],
    said: Iterable[bytes],
    before: Callable[[], None] = lambda: None,
    plain: int = 0,
) -> int:
    """A client says things, a server answers each; the server's port.

    Args:
        contexts: Of both.
        kind: Of both sessions.
        said: By the client.
        before: Called between the hellos and what is said.
        plain: As often both say something in clear before they turn to TLS.
    """
    with listening() as server:
        near, far = pair(server)
        for _ in range(plain):
            for end, other in ((far, near), (near, far)):
                end.sendall(b"250 STARTTLS\r\n")
                assert other.recv(100)
        client, accepted = kind(contexts[0], near, False), kind(contexts[1], far, True)
        shaking = threading.Thread(target=accepted.shake)
        shaking.start()
        client.shake()
        shaking.join()
        before()
        for data in said:
            saying = threading.Thread(target=client.say, args=(data,))
            saying.start()
            assert accepted.hear(len(data)) == data
            saying.join()
            accepted.say(ANSWER)
            assert client.hear(len(ANSWER)) == ANSWER
        client.close()
        accepted.close()
        return port_of(server)


@pytest.mark.parametrize("kind", [Blocking, InMemory])
@pytest.mark.parametrize("size", [len(HEAD), 513, 3_000, 100_001])
def test_what_both_ends_say(
    inside: Watch,
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    kind: type[Blocking | InMemory],
    size: int,
) -> None:
    said = [HEAD + noise(size - len(HEAD)), HEAD]
    port = talk(contexts, kind, said)
    inside.drain()
    for role, direction in ENDS:
        found = inside.pieces_of(port, role, direction)
        assert found[0][0] == 0
        assert stream(found) == b"".join(said)
    for role, direction in ((Role.SERVER, Direction.WRITE), (Role.CLIENT, Direction.READ)):
        assert stream(inside.pieces_of(port, role, direction)) == 2 * ANSWER
    flags = {int(flag) for pieces in inside.pieces for flag in pieces.records["flags"]}
    assert PayloadFlag.CLEAR | PayloadFlag.BEGUN in flags
    closed = inside.connections(port)
    assert (closed["flags"][closed["event"] == 4] == ConnectionFlag.TLS).all()


@pytest.mark.parametrize("kind", [Blocking, InMemory])
def test_functions_that_are_attached_one_by_one(
    variant: Path,
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    kind: type[Blocking | InMemory],
) -> None:
    """As kernels before 6.6 need it."""
    watch = Watch(path=variant, constants={"podwire_payloads": 1, "podwire_tls": 1})
    watcher = start_tls(CollectorConfig(), watch.object, {}, (OneByOne,))
    try:
        port = talk(contexts, kind, [HEAD, HEAD])
        watch.drain()
        for role, direction in ENDS:
            assert stream(watch.pieces_of(port, role, direction)) == 2 * HEAD
    finally:
        watcher.close()
        watch.close()


def test_both_hellos_are_told_of_any_session(
    inside: Watch, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """Whether probes see the library or not: this is what the sockets move."""
    check_greeted(inside, talk(contexts, InMemory, [HEAD]))
    taken = [each for pieces in inside.pieces for each in hellos(pieces).captured()]
    assert all(len(data) <= 4096 for data in taken)


@pytest.mark.parametrize("kind", [Blocking, InMemory])
def test_hellos_of_more_than_one_record(
    inside: Watch, contexts: tuple[ssl.SSLContext, ssl.SSLContext], kind: type[Blocking | InMemory]
) -> None:
    client = asking_for_much(contexts[0])
    check_greeted(inside, talk((client, contexts[1]), kind, [HEAD]))


def asking_for_much(context: ssl.SSLContext, protocols: int = 100) -> ssl.SSLContext:
    """Of a client with so many protocols to choose from, each of 256 bytes."""
    client = ssl.create_default_context()
    client.check_hostname = context.check_hostname
    client.verify_mode = context.verify_mode
    client.set_alpn_protocols([f"{number:0255}" for number in range(protocols)])
    return client


@pytest.mark.parametrize("fragment", [0, 300])
def test_a_hello_in_calls_of_any_length_is_told_to_its_end_only(
    inside: Watch, contexts: tuple[ssl.SSLContext, ssl.SSLContext], fragment: int
) -> None:
    """Read as libraries do, a header and what it announces; what follows is no hello."""
    outgoing = ssl.MemoryBIO()
    client = asking_for_much(contexts[0], 30).wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname=NAME
    )
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    assert 7_000 < len(hello) < 1 << 14
    if fragment:
        hello = in_records(hello, fragment)
    with listening() as server:
        near, far = pair(server)
        rest = hello[2_000:] + b"\x16\x03\x03" + noise(5_000)
        for buffers in ([hello[:5], hello[5:700]], [hello[700:2_000]], [rest]):
            near.sendmsg(buffers)
        for size in (5, 300, 1_000, len(hello) - 1_305, 5_003):
            assert len(far.recv(size, socket.MSG_WAITALL)) == size
        port = port_of(server)
        near.close()
        far.close()
    inside.drain()
    told = inside.connections(port)
    for role, direction in ENDS:
        (identity,) = set(told["connection_id"][told["role"] == role].tolist())
        taken = [
            data
            for pieces in inside.pieces
            for record, data in zip(hellos(pieces).records, hellos(pieces).captured(), strict=True)
            if (record["connection_id"], record["direction"]) == (identity, direction)
        ]
        assert b"".join(taken) == hello


def check_greeted(inside: Watch, port: int) -> None:
    """Fail unless what both hellos tell is known of both ends."""
    inside.drain()
    told = inside.connections(port)
    greeted = [each for pieces in inside.pieces for each in Greetings().feed(hellos(pieces))]
    for role in (Role.CLIENT, Role.SERVER):
        (identity,) = set(told["connection_id"][told["role"] == role].tolist())
        found = [each for each in greeted if each.connection_id == identity]
        assert sorted(each.server_name for each in found) == ["", NAME]
        assert sorted(version_name(each.version) for each in found) == ["", "TLS 1.3"]


@pytest.mark.parametrize("kind", [Blocking, InMemory])
@pytest.mark.parametrize("plain", [1, 7])
def test_connections_that_turn_to_tls(
    inside: Watch,
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    kind: type[Blocking | InMemory],
    plain: int,
) -> None:
    """As databases and mail do: names, versions and what is said are told all the same."""
    port = talk(contexts, kind, [HEAD], plain=plain)
    check_greeted(inside, port)
    for role, direction in ENDS:
        assert stream(inside.pieces_of(port, role, direction)) == HEAD


def test_what_is_long_in_clear_is_not_looked_at_for_ever(
    inside: Watch, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    port = talk(contexts, Blocking, [HEAD], plain=9)
    inside.drain()
    ours = set(inside.connections(port)["connection_id"].tolist())
    told = {int(i) for pieces in inside.pieces for i in hellos(pieces).records["connection_id"]}
    assert ours
    assert not ours & told


@pytest.mark.parametrize("kind", [Blocking, InMemory])
def test_what_is_not_watched_is_neither_told_nor_missed(
    inside: Watch,
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    kind: type[Blocking | InMemory],
) -> None:
    inside.scope.set(excluding({"nodes": ["here"]}))
    try:
        inside.drain()
        inside.pieces.clear()
        before = inside.counts(Kind.PAYLOAD)
        said = [HEAD, HEAD]
        port = talk(contexts, kind, said)
        inside.drain()
        assert len(inside.connections(port)) == 0
        assert sum(len(pieces) for pieces in inside.pieces) == 0
        after = inside.counts(Kind.PAYLOAD)
        # Of a thread that has moved nothing itself nobody knows what it writes to: one for each.
        threads = len(said) if kind is InMemory else 0
        assert after.pop("unpaired") - before.pop("unpaired") == threads
        assert after == before
    finally:
        inside.scope.set(None)


@pytest.mark.parametrize("kind", [Blocking, InMemory])
def test_what_is_watched_again_is_told_or_counted(
    inside: Watch,
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    kind: type[Blocking | InMemory],
) -> None:
    """A session is told again once system calls are made inside it."""
    before = 0

    def said() -> Iterator[bytes]:
        nonlocal before
        yield HEAD
        inside.scope.set(excluding({"nodes": ["here"]}))
        yield HEAD
        inside.scope.set(None)
        inside.drain()
        inside.pieces.clear()
        before = inside.counts(Kind.PAYLOAD)["unpaired"]
        yield HEAD
        yield HEAD

    try:
        port = talk(contexts, kind, said())
    finally:
        inside.scope.set(None)
    inside.drain()
    told = [
        b"".join(data for _, _, data in inside.pieces_of(port, role, direction))
        for role, direction in ENDS
    ]
    missed = inside.counts(Kind.PAYLOAD)["unpaired"] - before
    assert told == [b"" if kind is InMemory else 2 * HEAD] * 2
    assert missed == (2 * 4 if kind is InMemory else 0)


def hellos(pieces: Pieces) -> Pieces:
    return pieces.take(pieces.records["flags"] & PayloadFlag.HELLO != 0)


def test_sessions_older_than_the_probes(
    variant: Path, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """The next system call inside the library pairs them; without any, their bytes are counted."""
    watch = Watch(path=variant, constants={"podwire_payloads": 1, "podwire_tls": 1})
    watchers = []

    def begin() -> None:
        watchers.append(start_tls(CollectorConfig(), watch.object, {}))

    try:
        port = talk(contexts, Blocking, [HEAD, HEAD], begin)
        watchers.pop().close()
        watch.drain()
        assert stream(watch.pieces_of(port, Role.SERVER, Direction.READ)) == 2 * HEAD
        before = watch.counts(Kind.PAYLOAD)["unpaired"]
        port = talk(contexts, InMemory, [HEAD, HEAD], begin)
        watch.drain()
        assert watch.pieces_of(port, Role.SERVER, Direction.READ) == []
        assert watch.counts(Kind.PAYLOAD)["unpaired"] >= before + 8
    finally:
        for watcher in watchers:
            watcher.close()
        watch.close()


def test_programs_that_may_be_preempted_keep_the_stack_of_their_task(
    attached: tuple[Watch, Watcher],
) -> None:
    """Two tasks on one CPU would write over each other's: see KEEP_TASK_STACK."""
    watch, watcher = attached
    assert watcher.probes is not None
    programs = watcher.probes._programs
    loaded = [each.name for each in programs.programs if each.name.endswith(ANYS)]
    if kernel_version() < (6, 6):
        pytest.skip("no program is entered at all functions at once before Linux 6.6")
    assert not [name for name in loaded if OF_CPU in native_code(programs.program_fd(name))]
    if platform.machine() == "x86_64" and kernel_version() >= (6, 13):
        assert OF_CPU in native_code(watch.object.program_fd("sys_exit"))


def test_nothing_more_is_told_once_they_are_stopped(
    variant: Path, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """At once, and not when the kernel has let go of all probes."""
    watch = Watch(path=variant, constants={"podwire_payloads": 1, "podwire_tls": 1})
    watcher = start_tls(CollectorConfig(), watch.object, {})
    try:
        port = talk(contexts, Blocking, [HEAD], watcher.stop)
        watch.drain()
        assert watch.count(port, ConnectionEvent.CLOSED) == 2
        for role, direction in ENDS:
            assert watch.pieces_of(port, role, direction) == []
    finally:
        watcher.close()
        watch.close()


def test_nothing_is_left_of_a_connection(
    inside: Watch, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    port = talk(contexts, Blocking, [HEAD])
    inside.drain()
    ids = set(inside.connections(port)["connection_id"].tolist())
    left = {int.from_bytes(key, "little") for key in inside.keys("tls_streams")}
    assert ids
    assert not ids & left
