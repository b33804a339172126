"""Arbitrary bytes, gaps and times for the HTTP/1 parser: what must hold whatever they are."""

from __future__ import annotations

from typing import Final

from collector.protocols.calls import Call, Settings, Side
from collector.protocols.heads import HeadCache
from collector.protocols.http1 import Http1

SETTINGS: Final = Settings(max_header_bytes=512, max_open_calls=8)
SEEDS: Final = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nt: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 101 S\r\nUpgrade: h2c\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"HEAD / HTTP/1.0\n\n",
    b"HTTP/1.0 200\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
)

Step = tuple[int, bytes, int]
"""Side, data, and size of a gap where there is no data."""


def seeds() -> list[bytes]:
    """Inputs to begin with."""
    first, second = SEEDS[0], SEEDS[1]
    return [
        *(bytes((0, side, len(text))) + text for text in SEEDS for side in (0, 1)),
        bytes((0, 0, len(first))) + first + bytes((1, len(second))) + second,
        bytes((0, 16, 2)) + bytes((17, 1)),
    ]


def steps(data: bytes) -> list[Step]:
    """Read an input as pieces: a kind, a length, and so many bytes or known fragments."""
    found: list[Step] = []
    at = 1
    while at + 1 < len(data):
        kind, size = data[at], data[at + 1]
        at += 2
        side = kind & 1
        if kind & 16:
            found.append((side, b"", size + 1))
        elif kind & 32:
            found.append((side, SEEDS[size % len(SEEDS)], 0))
        else:
            found.append((side, data[at : at + size], 0))
            at += size
    return found


def weight(parser: Http1) -> int:
    """How many bytes and objects a parser keeps."""
    pieces = [*parser._held, *parser._waiting]
    return (
        sum(len(piece.data) + 16 for piece in pieces)
        + len(parser._request_buffer._buffer)
        + len(parser._response_buffer._buffer)
        + len(parser._request_body._line)
        + len(parser._response_body._line)
        + 16 * (len(parser._pairs.open) + len(parser._pairs.unsure))
    )


def play(found: list[Step], is_joined: bool, size: int = 0) -> tuple[Http1, list[Call]]:
    """Feed pieces, or pieces of pieces, and close."""
    done: list[Call] = []
    parser = Http1(done, SETTINGS, is_joined, HeadCache(max_entries=64, max_bytes=1 << 16))
    now = 0
    for side, data, gap in found:
        now += 10
        if gap:
            parser.skip(Side(side), gap, now, now + 5)
            continue
        for at in range(0, len(data), size or len(data) or 1):
            parser.feed(Side(side), data[at : at + size] if size else data, now, now + 5)
        assert 0 <= parser.unneeded(Side(side)) < 1 << 62
        assert weight(parser) < 1 << 18
    assert parser.switched in ("", "h2c", "opaque")
    parser.close(now + 10)
    count = len(done)
    parser.close(now + 10)
    assert len(done) == count
    return parser, done


def check(data: bytes) -> None:
    """Nothing raises or grows, and how bytes are cut makes no difference while they are HTTP."""
    is_joined = bool(data[:1] and data[0] & 1)
    found = steps(data)
    parser, calls = play(found, is_joined)
    for call in calls:
        assert call.method
        assert call.end_ns >= 0
        assert (call.status == 0) or 100 <= call.status <= 999
    if is_joined or any(gap for _, _, gap in found):
        return
    total = sum(len(data) for _, data, _ in found)
    for size in (1, 7):
        if total > 200 * size:
            continue  # more pieces than are ever kept
        other, same = play(found, is_joined, size)
        if parser.misfits == other.misfits == 0:
            assert same == calls
            assert other.switched == parser.switched
