from __future__ import annotations

import pytest

from collector.protocols.bodies import CHUNKED, UNKNOWN, UNTIL_CLOSE
from collector.protocols.calls import Settings, Side, TraceProvider
from collector.protocols.first_lines import looks_like_request, looks_like_response
from collector.protocols.head_buffer import HeadBuffer
from collector.protocols.heads import (
    HeadCache,
    parse_request_head,
    parse_response_head,
    shared_heads,
)
from collector.protocols.http1 import Http1
from tests.collector.protocols.talk import get, head, ok

TRACE = f"traceparent: 00-{'a' * 32}-{'b' * 16}-01"


@pytest.mark.parametrize(
    ("fields", "framing"),
    [
        ([], 0),
        (["Content-Length: 7"], 7),
        (["content-length:7"], 7),
        (["CONTENT-LENGTH: \t7 "], 7),
        (["Content-Length: 7", "X: y", "Content-Length: 7"], 7),
        (["Content-Length: 7, 7"], 7),
        (["Content-Length: 7", "Content-Length: 8"], UNKNOWN),
        (["Content-Length: 7, 8"], UNKNOWN),
        (["Content-Length: "], UNKNOWN),
        (["Content-Length: 7x"], UNKNOWN),
        (["Content-Length: -7"], UNKNOWN),
        (["Content-Length: " + "9" * 30], UNKNOWN),
        (["X-Content-Length: 7"], 0),
        (["X: y", " Content-Length: 7"], 0),
        (["Content-Length:", " 7"], 7),
        (["Transfer-Encoding: chunked"], CHUNKED),
        (["Transfer-Encoding: CHUNKED", "Content-Length: 7"], CHUNKED),
        (["Transfer-Encoding: gzip", "Transfer-Encoding: chunked"], CHUNKED),
        (["Transfer-Encoding: gzip,", "\tchunked"], CHUNKED),
        (["Transfer-Encoding: identity", "Content-Length: 7"], 7),
        (["Transfer-Encoding:", "Content-Length: 7"], 7),
    ],
)
def test_framing_of_both_sides(fields: list[str], framing: int) -> None:
    request = parse_request_head(head("POST / HTTP/1.1", *fields))
    response = parse_response_head(head("HTTP/1.1 200 OK", *fields))
    assert request is not None
    assert response is not None
    assert request.framing == framing
    assert response.framing == (framing or UNTIL_CLOSE)


def test_framing_that_differs() -> None:
    for fields in (["Transfer-Encoding: gzip"], ["Transfer-Encoding: chunked, gzip"]):
        request = parse_request_head(head("POST / HTTP/1.1", *fields))
        response = parse_response_head(head("HTTP/1.1 200 OK", *fields))
        assert request is not None
        assert response is not None
        assert (request.framing, response.framing) == (UNKNOWN, UNTIL_CLOSE)


def test_traces_come_from_any_field() -> None:
    found = parse_request_head(head("GET / HTTP/1.1", TRACE.upper().replace(" 00", "\r\n 00")))
    assert found is not None
    assert found.trace is not None
    assert (found.trace.provider, found.trace.trace_id) == (TraceProvider.W3C, "A" * 32)


@pytest.mark.parametrize(
    "line",
    ["", "GET", "GET /", "GET / HTTP/2.0", "G@T / HTTP/1.1", "GET / x HTTP/1.1", " GET / HTTP/1.1",
     "GET / HTTP/1.1 x", "GET /\rHost HTTP/1.1", "M" * 65 + " / HTTP/1.1"],
)  # fmt: skip
def test_what_is_no_request_line(line: str) -> None:
    assert parse_request_head(head(line, "Host: a")) is None


@pytest.mark.parametrize(
    "line", ["", "HTTP/1.1", "HTTP/1.1 20", "HTTP/1.1 2000 OK", "HTTP/1.1 099 X", "http/1.1 200 OK",
             "HTTP/2 200", "HTTP/1.1 200OK"]
)  # fmt: skip
def test_what_is_no_status_line(line: str) -> None:
    assert parse_response_head(head(line, "Server: a")) is None


def test_every_beginning_of_a_first_line_may_become_one() -> None:
    for line in (b"GET /a/b HTTP/1.1\r", b"M-SEARCH  *\tHTTP/1.0\n"):
        for size in range(1, len(line)):
            assert looks_like_request(line[:size]) is None, line[:size]
        assert looks_like_request(line) is True
    for line in (b"HTTP/1.1 200 ", b"HTTP/1.0  404\r"):
        for size in range(len(line)):
            assert looks_like_response(line[:size]) is None, line[:size]
        assert looks_like_response(line) is True
    for text in (b"\0", b"GET / FTP", b"GET / HTTP/1.1x", b"{", b"GET\r\n", b"GET /\r\n"):
        assert looks_like_request(text) is False
    for text in (b"1.1", b"HTTX", b"HTTP/1.1 20x", b"HTTP/1.1 2000"):
        assert looks_like_response(text) is False


def test_sections_that_repeat_are_parsed_once() -> None:
    cache = HeadCache()
    done: list = []
    parser = Http1(done, Settings(), heads=cache)
    for _ in range(3):
        parser.feed(Side.REQUEST, get("/1"), 1, 2)
        parser.feed(Side.RESPONSE, ok(b"x"), 3, 4)
    assert len(cache) == 2
    assert done[0] == done[1] == done[2]
    parser.feed(Side.REQUEST, get("/1", TRACE), 5, 6)
    parser.feed(Side.RESPONSE, ok(b"x"), 7, 8)
    assert done[3].trace is not None
    assert len(cache) == 2


def test_a_section_with_another_inside_is_not_remembered() -> None:
    cache = HeadCache()
    done: list = []
    parser = Http1(done, Settings(), heads=cache)
    parser.feed(Side.REQUEST, b"GET /1 HTTP/1.1\n\nGET /2 HTTP/1.1\r\n\r\n", 1, 2)
    parser.close(3)
    assert [call.path for call in done] == ["/1", "/2"]
    assert list(cache.requests) == [b"GET /2 HTTP/1.1\r\n\r\n"]


def test_the_cache_is_bounded_by_entries_and_bytes() -> None:
    cache = HeadCache(max_entries=100, max_bytes=10_000)
    for number in range(1_000):
        assert cache.request(get(f"/{number}")) is not None
        assert cache.response(head("HTTP/1.1 200 OK", f"X: {number}")) is not None
        assert len(cache) <= 100
        assert sum(map(len, (*cache.requests, *cache.responses))) <= 10_000
    assert cache.request(get("/" + "x" * 1_000)) is not None
    assert not any(len(raw) > 1_000 for raw in cache.requests)


def test_settings_do_not_share_paths() -> None:
    assert shared_heads(True) is shared_heads(True)
    for keeps, path in ((True, "/q?a=b"), (False, "/q")):
        done: list = []
        parser = Http1(done, Settings(keep_query=keeps))
        parser.feed(Side.REQUEST, get("/q?a=b"), 1, 2)
        parser.close(3)
        assert done[0].path == path


@pytest.mark.parametrize("size", [1, 3, 50, 1_000])
def test_a_buffer_takes_up_to_the_empty_line(size: int) -> None:
    text = get("/1", "X: " + "y" * 200)
    buffer = HeadBuffer(1_000)
    buffer.begin(1, 2)
    data = text + b"rest"
    at = 0
    while not buffer.raw:
        at += buffer.take(data[at : at + size], 0)
    assert (at, buffer.raw, buffer.size) == (len(text), text, len(text))
