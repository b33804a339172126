"""HTTP/2 whose content is not copied: whatever is missing is content, and nothing else is."""

from __future__ import annotations

import random
import socket
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from collector.abi import Direction, Role
from collector.protocols.frames import PREFACE
from tests.bpf.harness import BY_DESCRIPTOR, Watch
from tests.bpf.test_connections import listening, pair, port_of
from tests.bpf.test_payloads import noise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.bpf

LEAST = 2048
DATA, HEADERS, RST, SETTINGS, PUSH, CONTINUATION, UPDATE = 0, 1, 3, 4, 5, 9, 0x10


@pytest.fixture(scope="module")
def _framing(variant: Path) -> Iterator[Watch]:
    watch = Watch(path=variant, constants={"podwire_payloads": 1})
    yield watch
    watch.close()


@pytest.fixture
def framing(_framing: Watch) -> Watch:
    _framing.drain()
    _framing.pieces.clear()
    if _framing.path == BY_DESCRIPTOR:
        pytest.skip("the verifier of old kernels follows a copy step by step")
    return _framing


def frame(kind: int, payload: bytes, flags: int = 0, stream: int = 1) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    )


def conversation(seed: int, count: int) -> tuple[bytes, set[int]]:
    """What a side says, and the places in it that are long content without padding."""
    random_ = random.Random(seed)
    said = PREFACE + frame(SETTINGS, bytes(12), stream=0)
    content: set[int] = set()
    for _ in range(count):
        size = random_.choice((0, 5, 400, LEAST - 1, LEAST, 9000, 16_384, 70_000))
        kind = random_.choice((DATA, DATA, HEADERS, RST, CONTINUATION, PUSH, UPDATE))
        if kind == DATA:
            flags = random_.choice((0, 1, 8))
            said += frame(DATA, noise(size), flags)
            if size >= LEAST and not flags & 8:
                content |= set(range(len(said) - size, len(said)))
        else:
            said += frame(kind, bytes(4) if kind == RST else noise(random_.randrange(4, 3000)))
    return said + frame(DATA, b"", 1), content


def missing(pieces: list[tuple[int, int, bytes]], said: bytes) -> set[int]:
    """Places of a direction that were not captured; what was is what was said."""
    first = pieces[0][0]
    gone = set(range(len(said)))
    for position, size, data in pieces:
        at = position - first & 0xFFFF_FFFF
        assert said[at : at + len(data)] == data
        assert at + size <= len(said)
        gone -= set(range(at, at + len(data)))
    return gone


def send(end: socket.socket, said: bytes, random_: random.Random) -> None:
    at = len(PREFACE)
    end.sendall(said[:at])  # in pieces it would not be recognized
    while at < len(said):
        sizes = [
            random_.choice((1, 3, 9, 500, 9000, 40_000)) for _ in range(random_.randrange(1, 9))
        ]
        parts = []
        for size in sizes:
            parts.append(said[at : at + size])
            at += size
        left = b"".join(parts)
        sent = end.sendmsg([part for part in parts if part])
        end.sendall(left[sent:])


@pytest.mark.parametrize("seed", range(6))
def test_only_content_is_left_out(framing: Watch, seed: int) -> None:
    said, content = conversation(seed, 60)
    random_ = random.Random(seed)
    with listening() as server:
        client, accepted = pair(server)
        sender = threading.Thread(target=send, args=(client, said, random.Random(seed)))
        sender.start()
        read = 0
        while read < len(said):
            read += len(accepted.recv(random_.choice((9, 100, 5000, 100_000))))
        sender.join()
        client.close()
        accepted.close()
        framing.drain()
        port = port_of(server)
        for role, direction in ((Role.CLIENT, Direction.WRITE), (Role.SERVER, Direction.READ)):
            gone = missing(framing.pieces_of(port, role, direction), said)
            assert gone <= content
            assert len(gone) > 0.9 * len(content)


def test_every_call_tells_how_far_it_came(framing: Watch) -> None:
    """The end of a message is known when its last byte has moved, not when the next one does."""
    calls = [PREFACE, frame(DATA, bytes(30_000), 1)[:20_000], bytes(10_009)]
    with listening() as server:
        client, accepted = pair(server)
        for call in calls:
            client.sendall(call)
            accepted.recv(len(call), socket.MSG_WAITALL)
        framing.drain()
        for role, direction in ((Role.CLIENT, Direction.WRITE), (Role.SERVER, Direction.READ)):
            found = framing.pieces_of(port_of(server), role, direction)
            assert sum(size for _, size, _ in found) == sum(map(len, calls))
            assert b"".join(data for _, _, data in found) == PREFACE + calls[1][:9]
        client.close()
        accepted.close()


def test_what_is_lost_is_found_at_the_next_call(framing: Watch) -> None:
    """After bytes that were no frame everything is copied, until a call begins with one."""
    noisy = b"\xff" * 5000
    whole = frame(DATA, np.zeros(8000, np.uint8).tobytes())
    with listening() as server:
        client, accepted = pair(server)
        for call in (PREFACE, noisy, noisy, whole):
            client.sendall(call)
            accepted.recv(len(call), socket.MSG_WAITALL)
        client.close()
        accepted.close()
        framing.drain()
        found = framing.pieces_of(port_of(server), Role.CLIENT, Direction.WRITE)
    assert b"".join(data for _, _, data in found) == PREFACE + noisy + noisy + whole[:9]
