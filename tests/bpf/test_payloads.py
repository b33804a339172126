"""Captured bytes against the bytes that the applications themselves moved."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from collector.abi import VERDICT, ConnectionFlag, Direction, Kind, Role
from tests.bpf.harness import BY_DESCRIPTOR, Watch
from tests.bpf.test_connections import listening, pair, port_of
from tests.bpf.test_transfers import Message, libc
from tests.bpf.traffic import receive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

import ctypes

pytestmark = pytest.mark.bpf

HEAD = b"GET /some/path?query HTTP/1.1\r\nHost: example\r\n\r\n"
PIECE = 8192


@pytest.fixture(scope="module")
def _capturing(variant: Path) -> Iterator[Watch]:
    # Room for both ends of the longest call, whichever of them is told first.
    rings = {"payloads": 64 << 20}
    watch = Watch(rings, path=variant, constants={"podwire_payloads": 1})
    yield watch
    watch.close()


@pytest.fixture
def capturing(_capturing: Watch) -> Watch:
    """The programs with payload, emptied of what was there before."""
    _capturing.drain()
    _capturing.pieces.clear()
    for records in _capturing.seen.values():
        records.clear()
    _capturing.drain()
    return _capturing


def noise(size: int) -> bytes:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()


def stream(pieces: list[tuple[int, int, bytes]]) -> bytes:
    """The bytes of a direction; fails where any is missing."""
    whole = b""
    position = pieces[0][0]
    for start, size, data in pieces:
        assert start == position, (start, position)
        assert len(data) == size
        whole += data
        position = (position + size) & 0xFFFF_FFFF
    return whole


def vectors(parts: list[bytes]) -> tuple[Message, list[object]]:
    buffers = [ctypes.create_string_buffer(part, len(part)) for part in parts]
    flat = [number for each in buffers for number in (ctypes.addressof(each), len(each))]
    vector = (ctypes.c_size_t * len(flat))(*flat)
    return Message(vector=ctypes.addressof(vector), vectors=len(parts)), [buffers, vector]


def sendmmsg(end: socket.socket, *messages: list[bytes]) -> None:
    made = [vectors(parts) for parts in messages]
    array = (Message * len(made))(*(message for message, _ in made))
    assert libc.sendmmsg(end.fileno(), array, len(made), 0) == len(made)


BODY = noise(3000)
WRITES: dict[str, Callable[[socket.socket], object]] = {
    "write": lambda s: os.write(s.fileno(), HEAD + BODY),
    "send": lambda s: s.send(HEAD + BODY),
    "writev": lambda s: os.writev(s.fileno(), [HEAD[:5], HEAD[5:], b"", BODY[:1], BODY[1:]]),
    "sendmsg": lambda s: s.sendmsg([HEAD[:16], HEAD[16:], BODY]),
    "sendmmsg": lambda s: sendmmsg(s, [HEAD, BODY]),
    "bytes": lambda s: [s.send(bytes([byte])) for byte in HEAD + BODY[:40]],
    "many buffers": lambda s: s.sendmsg([HEAD, *(BODY[i : i + 1] for i in range(15))]),
}


@pytest.mark.parametrize("call", WRITES)
def test_every_call_that_writes(capturing: Watch, call: str) -> None:
    with listening() as server:
        client, accepted = pair(server)
        WRITES[call](client)
        client.shutdown(socket.SHUT_WR)
        truth = b""
        while data := accepted.recv(700):
            truth += data
        client.close()
        accepted.close()
        capturing.drain()
        port = port_of(server)
        assert truth.startswith(HEAD)
        assert stream(capturing.pieces_of(port, Role.CLIENT, Direction.WRITE)) == truth
        assert stream(capturing.pieces_of(port, Role.SERVER, Direction.READ)) == truth


def readv(end: socket.socket, sizes: list[int]) -> bytes:
    buffers = [bytearray(size) for size in sizes]
    got = os.readv(end.fileno(), buffers)
    return b"".join(buffers)[:got]


def recvmmsg(end: socket.socket, size: int) -> bytes:
    message, keep = vectors([bytes(size)])
    array = (Message * 1)(message)
    assert libc.recvmmsg(end.fileno(), array, 1, 0, None) == 1
    buffers = keep[0]
    assert isinstance(buffers, list)
    return bytes(buffers[0].raw[: array[0].length])


READS: dict[str, Callable[[socket.socket], bytes]] = {
    "read": lambda s: os.read(s.fileno(), 400),
    "recv": lambda s: s.recv(400),
    "readv": lambda s: readv(s, [1, 0, 20, 300]),
    "recvmsg": lambda s: s.recvmsg(400)[0],
    "recvmmsg": lambda s: recvmmsg(s, 400),
    "recv_into": lambda s: s.recv(400, socket.MSG_WAITALL),
}


@pytest.mark.parametrize("call", READS)
def test_every_call_that_reads(capturing: Watch, call: str) -> None:
    sent = HEAD + BODY
    with listening() as server:
        client, accepted = pair(server)
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        read = b""
        while len(read) < len(sent):
            assert accepted.recv(10, socket.MSG_PEEK)  # looks, takes nothing
            read += READS[call](accepted)
        client.close()
        accepted.close()
        capturing.drain()
        found = capturing.pieces_of(port_of(server), Role.SERVER, Direction.READ)
    assert read == sent
    assert stream(found) == sent


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 100_001])
def test_large_calls_come_in_pieces(capturing: Watch, size: int) -> None:
    sent = HEAD + noise(size - len(HEAD))
    with listening() as server:
        client, accepted = pair(server)
        reader = threading.Thread(target=receive, args=(accepted, size, 1 << 20))
        reader.start()
        client.sendall(sent)
        reader.join()
        client.close()
        accepted.close()
        capturing.drain()
        port = port_of(server)
        for role, direction in ((Role.CLIENT, Direction.WRITE), (Role.SERVER, Direction.READ)):
            found = capturing.pieces_of(port, role, direction)
            assert stream(found) == sent
            assert max(len(data) for _, _, data in found) <= PIECE


def test_more_than_a_call_may_give_is_told_by_size(capturing: Watch) -> None:
    size = 8 << 20
    with listening() as server:
        client, accepted = pair(server)
        reader = threading.Thread(target=receive, args=(accepted, size))
        reader.start()
        client.sendall(HEAD + bytes(size - len(HEAD)))
        reader.join()
        client.close()
        accepted.close()
        capturing.drain()
        found = capturing.pieces_of(port_of(server), Role.CLIENT, Direction.WRITE)
    assert sum(moved for _, moved, _ in found) == size
    assert found[0][2].startswith(HEAD)
    if capturing.path == BY_DESCRIPTOR:
        assert sum(len(data) for _, _, data in found) < size
        assert found[-1][1] > len(found[-1][2])


def test_a_call_of_very_many_buffers(capturing: Watch) -> None:
    if capturing.path == BY_DESCRIPTOR:
        pytest.skip("the verifier of old kernels follows a copy step by step")
    parts = [HEAD, *(BODY[i : i + 2] for i in range(1000))]
    with listening() as server:
        client, accepted = pair(server)
        assert client.sendmsg(parts) == sum(map(len, parts))
        receive(accepted, sum(map(len, parts)))
        client.close()
        accepted.close()
        capturing.drain()
        found = capturing.pieces_of(port_of(server), Role.CLIENT, Direction.WRITE)
    assert stream(found) == b"".join(parts)


def test_sendfile_is_told_by_size(capturing: Watch, tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_bytes(noise(50_000))
    with listening() as server, file.open("rb") as body:
        client, accepted = pair(server)
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        assert client.sendfile(body) == 50_000
        client.close()
        receive(accepted, 50_019)
        accepted.close()
        capturing.drain()
        port = port_of(server)
        written = capturing.pieces_of(port, Role.CLIENT, Direction.WRITE)
        read = capturing.pieces_of(port, Role.SERVER, Direction.READ)
    assert stream(read).endswith(file.read_bytes())
    if capturing.path != BY_DESCRIPTOR or written[0][1] < 50_000:
        assert sum(size for _, size, _ in written) == 50_019
    assert b"".join(data for _, _, data in written) == b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    "first",
    [
        b"EHLO example.com\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),  # TLS
        b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n",
        b"\x00\x00\x00\x2f\x00\x12\x00\x04\x00\x00\x00\x01" + bytes(30),  # Kafka
        b"Q\x00\x00\x00\x0dselect 1;\x00",
        b"get / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
    ],
)
def test_nothing_is_taken_of_what_is_not_http(capturing: Watch, first: bytes) -> None:
    with listening() as server:
        client, accepted = pair(server)
        client.sendall(first)
        receive(accepted, len(first))
        client.sendall(HEAD)
        receive(accepted, len(HEAD))
        client.close()
        accepted.close()
        capturing.drain()
        port = port_of(server)
        for role, direction in ((Role.CLIENT, Direction.WRITE), (Role.SERVER, Direction.READ)):
            assert capturing.pieces_of(port, role, direction) == []
            assert capturing.moved(port, role, direction) == len(first) + len(HEAD)


@pytest.mark.parametrize(
    "first",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 4000 80\r\n",
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12),
        b"M-SEARCH * HTTP/1.1\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\n",
        b"GET http://example.com/ HTTP/1.1\r\n",
        b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + bytes(6),  # SETTINGS, of a server that begins
    ],
)
def test_other_beginnings_of_http(capturing: Watch, first: bytes) -> None:
    with listening() as server:
        client, accepted = pair(server)
        client.sendall(first)
        receive(accepted, len(first))
        client.close()
        accepted.close()
        capturing.drain()
        found = capturing.pieces_of(port_of(server), Role.SERVER, Direction.READ)
    assert stream(found) == first


def test_connections_older_than_the_programs(variant: Path) -> None:
    with listening() as server:
        client, accepted = pair(server)
        client.sendall(b"in the middle of something")
        receive(accepted, 26)
        watch = Watch(path=variant, constants={"podwire_payloads": 1}, iterate=True)
        try:
            for _ in range(300):  # calls in one direction are one message
                client.sendall(b"and on")
                receive(accepted, 6)
            accepted.sendall(b"a binary answer")
            receive(client, 15)
            client.sendall(HEAD)
            receive(accepted, len(HEAD))
            client.close()
            accepted.close()
            watch.drain()
            port = port_of(server)
            assert (watch.connections(port)["flags"] & ConnectionFlag.PREEXISTING).all()
            found = watch.pieces_of(port, Role.SERVER, Direction.READ)
        finally:
            watch.close()
    assert stream(found) == HEAD


def test_older_connections_are_given_up_in_the_end(variant: Path) -> None:
    with listening() as server:
        client, accepted = pair(server)
        watch = Watch(path=variant, constants={"podwire_payloads": 1}, iterate=True)
        try:
            for _ in range(120):
                client.sendall(b"question")
                receive(accepted, 8)
                accepted.sendall(b"answer")
                receive(client, 6)
            client.sendall(HEAD)
            receive(accepted, len(HEAD))
            client.close()
            accepted.close()
            watch.drain()
            found = watch.pieces_of(port_of(server), Role.SERVER, Direction.READ)
        finally:
            watch.close()
    assert found == []


def verdict(**values: object) -> bytes:
    made = np.zeros((), VERDICT)
    for name, value in values.items():
        made[name] = value
    return made.tobytes()


def test_user_space_says_what_it_does_not_need(capturing: Watch) -> None:
    with listening() as server:
        client, accepted = pair(server)
        port = port_of(server)

        def say(data: bytes) -> None:
            client.sendall(data)
            receive(accepted, len(data))

        def tell(**values: object) -> None:
            told = capturing.connections(port)
            server_end = told["connection_id"][told["role"] == Role.SERVER][0]
            capturing.object.update_map("verdicts", server_end.tobytes(), verdict(**values))

        say(HEAD)
        capturing.drain()
        ((first, _, _),) = capturing.pieces_of(port, Role.SERVER, Direction.READ)
        begun = first + len(HEAD)
        tell(position=[(begun + 100) & 0xFFFF_FFFF, 0], is_skipping=[1, 0])
        say(b"a" * 60)  # not needed
        say(b"a" * 30 + b"b" * 20)  # the last ten of them are, and a half of that
        say(b"a" * 0 + b"c" * 7)
        capturing.drain()
        found = capturing.pieces_of(port, Role.SERVER, Direction.READ)[1:]
        assert [(start - begun, data) for start, _, data in found] == [
            (100, b"b" * 10),
            (110, b"c" * 7),
        ]
        tell(is_unwanted=1)
        say(b"d" * 10)
        capturing.drain()
        assert capturing.pieces_of(port, Role.SERVER, Direction.READ)[1:] == found
        client.close()
        accepted.close()


def test_the_end_of_what_is_not_needed_is_told(capturing: Watch) -> None:
    with listening() as server:
        client, accepted = pair(server)
        client.sendall(HEAD)
        receive(accepted, len(HEAD))
        capturing.drain()
        port = port_of(server)
        ((first, _, _),) = capturing.pieces_of(port, Role.SERVER, Direction.READ)
        told = capturing.connections(port)
        server_end = told["connection_id"][told["role"] == Role.SERVER][0]
        end = (first + len(HEAD) + 50) & 0xFFFF_FFFF
        skip = verdict(position=[end, 0], is_skipping=[1, 0])
        capturing.object.update_map("verdicts", server_end.tobytes(), skip)
        for size in (20, 30):
            client.sendall(b"x" * size)
            receive(accepted, size)
        capturing.drain()
        found = capturing.pieces_of(port, Role.SERVER, Direction.READ)[1:]
        client.close()
        accepted.close()
    assert found == [(end, 0, b"")]


@pytest.mark.parametrize("closing", ["server", "client"])
def test_a_close_says_how_far_it_came(capturing: Watch, closing: str) -> None:
    size = 300_000
    with listening() as server:
        client, accepted = pair(server)
        client.sendall(HEAD)
        receive(accepted, len(HEAD))
        capturing.drain()
        port = port_of(server)
        told = capturing.connections(port)
        ends = {role: told["connection_id"][told["role"] == role][0] for role in Role if role}
        accepted.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        receive(client, 19)
        capturing.drain()
        ((begun, moved, _),) = capturing.pieces_of(port, Role.SERVER, Direction.WRITE)
        begun = (begun + moved) & 0xFFFF_FFFF
        for role, direction in ((Role.SERVER, Direction.WRITE), (Role.CLIENT, Direction.READ)):
            place = direction - 1
            skip = verdict(
                position=[(begun + (1 << 20)) & 0xFFFF_FFFF] * 2,
                is_skipping=[place == 0, place == 1],
            )
            capturing.object.update_map("verdicts", ends[role].tobytes(), skip)
        reader = threading.Thread(target=receive, args=(client, size))
        reader.start()
        accepted.sendall(bytes(size))
        reader.join()
        for end in (accepted, client) if closing == "server" else (client, accepted):
            end.close()
        capturing.drain()
        written = capturing.pieces_of(port, Role.SERVER, Direction.WRITE)[1:]
        read = capturing.pieces_of(port, Role.CLIENT, Direction.READ)[1:]
    assert [((at - begun) & 0xFFFF_FFFF, length) for at, length, _ in written] == [(size, 0)]
    assert [((at - begun) & 0xFFFF_FFFF, length) for at, length, _ in read] == [(size, 0)]


def test_a_full_ring_is_counted(variant: Path) -> None:
    watch = Watch(path=variant, constants={"podwire_payloads": 1}, rings={"payloads": 65_536})
    try:
        with listening() as server:
            client, accepted = pair(server)
            for _ in range(100):
                client.sendall(HEAD + bytes(1000))
                receive(accepted, len(HEAD) + 1000)
            client.close()
            accepted.close()
            watch.drain()
            counted = watch.counts(Kind.PAYLOAD)
            drained = sum(map(len, watch.pieces))
    finally:
        watch.close()
    assert counted["submitted"] + counted["ring_full"] >= 200
    assert counted["ring_full"] > 100
    assert 0 < drained <= counted["submitted"]


def test_what_was_lost_is_told_before_the_other_side_goes_on(variant: Path) -> None:
    watch = Watch(path=variant, constants={"podwire_payloads": 1}, rings={"payloads": 65_536})
    request, answer = HEAD + noise(1000), b"HTTP/1.1 200 OK\r\n\r\n"
    count = 100
    try:
        with listening() as server:
            client, accepted = pair(server)
            for _ in range(count):
                client.sendall(request)
                receive(accepted, len(request))
            watch.drain()
            accepted.sendall(answer)
            receive(client, len(answer))
            watch.drain()
            client.close()
            accepted.close()
            told = watch.connections(port_of(server))
        records = np.concatenate([each.records for each in watch.pieces])
    finally:
        watch.close()
    for role, asking in ((Role.CLIENT, Direction.WRITE), (Role.SERVER, Direction.READ)):
        (identity,) = set(told["connection_id"][told["role"] == role])
        *asked, lost, answered = records[records["connection_id"] == identity]
        assert 10 < len(asked) < count
        assert {record["direction"] for record in (*asked, lost)} == {asking}
        assert lost["size"] == lost["captured"] == 0
        moved = int(lost["position"]) - int(asked[0]["position"]) & 0xFFFF_FFFF
        assert moved == count * len(request)
        assert asked[-1]["end_ns"] < lost["start_ns"] == lost["end_ns"] < answered["end_ns"]
        assert (answered["direction"], answered["size"]) == (3 - asking, len(answer))


def test_bodies_do_not_crowd_out_heads(variant: Path) -> None:
    ring = 1 << 20
    watch = Watch(path=variant, constants={"podwire_payloads": 1}, rings={"payloads": ring})
    message = HEAD + noise(20_000)
    try:
        with listening() as server:
            client, accepted = pair(server)
            for _ in range(100):
                client.sendall(message)
                receive(accepted, len(message), 1 << 20)
            client.close()
            accepted.close()
            watch.drain()
            found = watch.pieces_of(port_of(server), Role.CLIENT, Direction.WRITE)
            counted = watch.counts(Kind.PAYLOAD)
    finally:
        watch.close()
    assert counted["ring_full"] == 0
    assert sum(size for _, size, _ in found) == 100 * len(message)
    assert sum(data.startswith(HEAD) for _, _, data in found) == 100
    assert sum(len(data) for _, _, data in found) < ring
