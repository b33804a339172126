"""Frames of HTTP/2 by hand, and what a parser is fed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from collector.protocols.calls import Call, Settings, Side
from collector.protocols.frames import PREFACE, Flag, FrameType
from collector.protocols.http2 import Http2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Piece = tuple[Side, bytes]

GET = b"\x82\x86\x84\x41\x01a"  # GET http://a/, the host put into the table
STATUS_200 = b"\x88"
NO_INDEX = b"\x00"


def frame(kind: int, stream_id: int, payload: bytes = b"", flags: int = 0) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big")
    return head + payload


def headers(stream_id: int, block: bytes, *, end: bool = False, flags: int = 4) -> bytes:
    return frame(FrameType.HEADERS, stream_id, block, flags | (Flag.END_STREAM if end else 0))


def body(stream_id: int, payload: bytes, *, end: bool = False) -> bytes:
    return frame(FrameType.DATA, stream_id, payload, Flag.END_STREAM if end else 0)


def reset(stream_id: int, code: int = 8) -> bytes:
    return frame(FrameType.RST_STREAM, stream_id, code.to_bytes(4, "big"))


def goaway(last: int) -> bytes:
    return frame(FrameType.GOAWAY, 0, last.to_bytes(4, "big") + b"\0\0\0\0bye")


def literal(name: bytes, value: bytes, first: int = 0) -> bytes:
    """A field without Huffman code: 0 without indexing, 0x40 with."""
    return bytes((first, len(name))) + name + bytes((len(value),)) + value


def request(path: bytes = b"/p", *more: bytes) -> bytes:
    return b"\x82\x86\x04" + bytes((len(path),)) + path + b"\x01\x01a" + b"".join(more)


def parse(
    pieces: Iterable[Piece],
    *,
    settings: Settings | None = None,
    is_joined: bool = False,
    closes: bool = True,
) -> list[Call]:
    """Feed pieces; piece number n began at 10 n and ended at 10 n + 5."""
    done: list[Call] = []
    parser = Http2(done, settings or Settings(), is_joined)
    number = 0
    for number, (side, data) in enumerate(pieces, 1):
        parser.feed(side, data, 10 * number, 10 * number + 5)
    if closes:
        parser.close(10 * number + 10)
    return done


def exchange(client: bytes, server: bytes) -> list[Piece]:
    settings = frame(FrameType.SETTINGS, 0)
    return [(Side.REQUEST, PREFACE + settings + client), (Side.RESPONSE, settings + server)]


def cut(pieces: Sequence[Piece], sizes: Iterable[int]) -> list[Piece]:
    """The same bytes in smaller pieces, of the given sizes in turn."""
    cuts = list(sizes) or [1]
    result = []
    turn = 0
    for side, data in pieces:
        position = 0
        while position < len(data):
            size = max(cuts[turn % len(cuts)], 1)
            turn += 1
            result.append((side, data[position : position + size]))
            position += size
    return result


def timeless(calls: Iterable[Call]) -> list[Call]:
    return [dataclasses.replace(call, start_ns=0, first_byte_ns=0, end_ns=0) for call in calls]
