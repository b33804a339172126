from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.protocols.detect import Protocol, detect, proxy_header_size
from collector.protocols.frames import PREFACE, FrameType
from tests.collector.protocols.wire import body, frame, headers

V1 = b"PROXY TCP4 10.0.0.1 10.0.0.2 56324 443\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x11\x00\x0c" + bytes(12)
SETTINGS = frame(FrameType.SETTINGS, 0, b"\0\3\0\0\0\x64")
PING = frame(FrameType.PING, 0, bytes(8))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"GET / HTTP/1.1\r\n", Protocol.HTTP1),
        (b"\r\n\nGET / HTTP/1.1\r\n", Protocol.HTTP1),
        (b"BREW /pot HTTP/1.0\n", Protocol.HTTP1),
        (b"CONNECT a:443 HTTP/1.1\r\n", Protocol.HTTP1),
        (b"HTTP/1.1 200 OK\r\n", Protocol.HTTP1),
        (b"HTTP/1.0 404\r\n", Protocol.HTTP1),
        (PREFACE, Protocol.HTTP2),
        (PREFACE + SETTINGS, Protocol.HTTP2),
        (SETTINGS, Protocol.HTTP2),
        (V1 + b"GET / HTTP/1.1\r\n", Protocol.HTTP1),
        (V2 + PREFACE, Protocol.HTTP2),
        (b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n", Protocol.HTTP1),
        (b"GET / HTTP/2.0\r\n", Protocol.OTHER),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Protocol.OTHER),
        (b"220 mail ESMTP\r\n", Protocol.OTHER),
        (b"*1\r\n$4\r\nPING\r\n", Protocol.OTHER),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Protocol.OTHER),
        (b"\x00\x00\x00\x2a\x00\x12\x00\x04\x00\x00\x00\x01\x00\x08client-1", Protocol.OTHER),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Protocol.OTHER),  # PostgreSQL asks for TLS
        (PING, Protocol.OTHER),  # no connection begins with it
        (b"PROXY nonsense\r\n", Protocol.OTHER),
        (b"HTTP/1.1 OK\r\n", Protocol.OTHER),
    ],
)
def test_what_a_connection_begins_with(data: bytes, found: Protocol) -> None:
    assert detect(data) is found
    for size in range(len(data)):
        assert detect(data[:size]) in (None, found)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (PING, Protocol.HTTP2),
        (headers(1, b"\x82", end=True), Protocol.HTTP2),
        (body(1, b"abc") + body(3, b"d"), Protocol.HTTP2),
        (body(1, bytes(5_000)) + PING + PING[:3], None),
        (body(1, bytes(5_000)) + PING + PING + b"\0", Protocol.HTTP2),
        (body(1, b"abc"), None),
        (PING[:-1], None),
        (frame(FrameType.PING, 1, bytes(8)), Protocol.OTHER),
        (body(1, b"abc") + b"text", Protocol.OTHER),
        (b"GET / HTTP/1.1\r\n", Protocol.HTTP1),
        (b"\0" * 100, Protocol.OTHER),
    ],
)
def test_what_a_joined_connection_goes_on_with(data: bytes, found: Protocol | None) -> None:
    assert detect(data, is_joined=True) is found


@given(st.binary(max_size=120), st.booleans())
def test_arbitrary_bytes(data: bytes, is_joined: bool) -> None:
    assert detect(data, is_joined) in (None, Protocol.HTTP1, Protocol.HTTP2, Protocol.OTHER)


@pytest.mark.parametrize("header", [V1, V2, b"PROXY UNKNOWN ff::1 more\r\n", b"", V2[:15] + b"\0"])
def test_proxy_headers_are_measured(header: bytes) -> None:
    expected = len(header) if len(header) != 16 else 16
    assert proxy_header_size(header + b"GET /") == expected
    for size in range(1, len(header)):
        assert proxy_header_size(header[:size]) is None


def test_a_proxy_header_that_does_not_end_is_none() -> None:
    assert proxy_header_size(b"PROXY TCP4 " + b"1" * 100) == 0
