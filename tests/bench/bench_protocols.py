"""HTTP/1.1 from bytes to calls, beside httptools on the same bytes.

httptools is llhttp in C with callbacks into Python for each part of a message; what it is given
here keeps what a call needs (target, host, status, body sizes), so that both do the same work.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import httptools

from collector.protocols.calls import Call, Settings, Side
from collector.protocols.exchange import Conversation
from collector.protocols.heads import HeadCache
from collector.protocols.http1 import Http1
from tests.bench.measure import Row, measure

if TYPE_CHECKING:
    from collections.abc import Callable

EXCHANGES = 20_000
PIPELINED = 16
BODY = 1 << 20
PIECE = 1 << 16
BODIES = 200

REQUEST = (
    "GET /api/v1/orders/{path} HTTP/1.1\r\nHost: orders.shop.svc:8080\r\nUser-Agent: wrk/4.1.0\r\n"
    "Accept: */*\r\nAccept-Encoding: gzip, deflate\r\n{trace}\r\n"
)
TRACE = "traceparent: 00-{0:032x}-{0:016x}-01\r\n"
RESPONSE = (
    "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 29 Nov 2026 12:00:{second:02d} GMT\r\n"
    "Content-Type: application/json\r\nContent-Length: {size}\r\nConnection: keep-alive\r\n"
    "{extra}\r\n"
)
CONTENT = b'{"ok": true}\n'

Pieces = list[tuple[Side, bytes]]


def _repeated() -> Pieces:
    # Every piece is an object of its own, as bytes from a ring are, so that none has its hash yet.
    request = REQUEST.format(path="latest", trace="").encode()
    response = RESPONSE.format(second=0, size=len(CONTENT), extra="").encode() + CONTENT
    pieces: Pieces = []
    for _ in range(EXCHANGES):
        pieces.append((Side.REQUEST, bytes(bytearray(request))))
        pieces.append((Side.RESPONSE, bytes(bytearray(response))))
    return pieces


def _distinct(has_trace: bool) -> Pieces:
    pieces: Pieces = []
    for number in range(1, EXCHANGES + 1):
        trace = TRACE.format(number) if has_trace else ""
        extra = f"X-Request-Id: {number:032x}\r\n"
        response = RESPONSE.format(second=number % 60, size=len(CONTENT), extra=extra).encode()
        pieces.append((Side.REQUEST, REQUEST.format(path=number, trace=trace).encode()))
        pieces.append((Side.RESPONSE, response + CONTENT))
    return pieces


def _pipelined() -> Pieces:
    pieces: Pieces = []
    for side, data in _repeated()[: EXCHANGES // PIPELINED * 2]:
        pieces.append((side, data * PIPELINED))
    return pieces


def _chunked() -> Pieces:
    pieces: Pieces = []
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    response += (b"400\r\n" + bytes(1024) + b"\r\n") * 4 + b"0\r\n\r\n"
    for side, data in _repeated():
        pieces.append((side, data if side == Side.REQUEST else response))
    return pieces


def _large() -> Pieces:
    pieces: Pieces = []
    head = RESPONSE.format(second=0, size=BODY, extra="").encode()
    data = head + os.urandom(BODY)
    for side, request in _repeated()[: BODIES * 2]:
        if side == Side.REQUEST:
            pieces.append((side, request))
        else:
            pieces += [(side, data[at : at + PIECE]) for at in range(0, len(data), PIECE)]
    return pieces


class _Peer:
    # Callbacks that httptools finds by their names.

    def __init__(self) -> None:
        self.calls: list[list[object]] = []
        self.target = b""
        self.host = b""
        self.size = 0

    def on_message_begin(self) -> None:
        self.target = b""
        self.size = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"host":
            self.host = value

    def on_body(self, body: bytes) -> None:
        self.size += len(body)

    def on_message_complete(self) -> None:
        self.calls.append([self.target, self.host, self.size])


def _httptools(pieces: Pieces) -> int:
    asked, answered = _Peer(), _Peer()
    requests = httptools.HttpRequestParser(asked)
    responses = httptools.HttpResponseParser(answered)
    for side, data in pieces:
        (responses if side else requests).feed_data(data)
    return len(answered.calls)


def _ours(pieces: Pieces, make: Callable[[list[Call]], Http1 | Conversation]) -> int:
    done: list[Call] = []
    parser = make(done)
    feed = parser.feed
    now = 0
    count = 0
    for side, data in pieces:
        now += 100
        feed(side, data, now, now + 50)
        if len(done) >= 1_000:  # the collector takes what is done every so often
            count += len(done)
            done.clear()
    parser.close(now)
    return count + len(done)


def run() -> list[Row]:
    rows = []
    cases = [
        ("heads that repeat", _repeated(), EXCHANGES, ""),
        ("heads that all differ", _distinct(has_trace=False), EXCHANGES, ""),
        ("heads that all differ, with traceparent", _distinct(has_trace=True), EXCHANGES, ""),
        (f"pipelined by {PIPELINED}", _pipelined(), EXCHANGES // PIPELINED * PIPELINED, ""),
        ("chunked responses, 4 x 1 KB", _chunked(), EXCHANGES, ""),
        ("responses of 1 MB in pieces of 64 KB", _large(), BODIES, "all bytes given"),
    ]
    for name, pieces, calls, note in cases:
        cache = HeadCache()

        def parse(pieces: Pieces = pieces, cache: HeadCache = cache) -> int:
            return _ours(pieces, lambda done: Http1(done, Settings(), heads=cache))

        def follow(pieces: Pieces = pieces) -> int:
            return _ours(pieces, lambda done: Conversation(done, Settings()))

        def compare(pieces: Pieces = pieces) -> int:
            return _httptools(pieces)

        assert parse() == follow() == compare() == calls
        if "differ" in name:
            # Nothing of an earlier run may be known.
            parse_row = measure(name, calls, parse, unit="call", prepare=cache.requests.clear)
        else:
            parse_row = measure(name, calls, parse, unit="call", note=note)
        rows.append(parse_row)
        if name == "heads that repeat":
            rows.append(
                measure("  through Conversation", calls, follow, unit="call", note="as collected")
            )
        rows.append(measure("  httptools", calls, compare, unit="call"))
    return rows
