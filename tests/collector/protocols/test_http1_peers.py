"""The same bytes through an independent parser (llhttp, by way of httptools)."""

from __future__ import annotations

import httptools
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.protocols.calls import Call, Settings, Side
from collector.protocols.http1 import Http1
from tests.collector.protocols.generate import Message, messages

MESSAGES = st.lists(messages(is_strict=True), min_size=1, max_size=4)
SLOW = [HealthCheck.too_slow]


class Peer:
    """What httptools says of a stream of messages."""

    def __init__(self) -> None:
        self.urls: list[bytes] = []
        self.hosts: list[bytes] = []
        self.bodies: list[int] = []
        self.is_whole: list[bool] = []

    def on_message_begin(self) -> None:
        self.urls.append(b"")
        self.hosts.append(b"")
        self.bodies.append(0)
        self.is_whole.append(False)

    def on_url(self, url: bytes) -> None:
        self.urls[-1] += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"host":
            self.hosts[-1] = value

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += len(body)

    def on_message_complete(self) -> None:
        self.is_whole[-1] = True


def read(found: list[Message]) -> list[Call]:
    done: list[Call] = []
    parser = Http1(done, Settings(keep_query=True))
    parser.feed(Side.REQUEST, b"".join(m.request for m in found), 1, 2)
    parser.feed(Side.RESPONSE, b"".join(m.response for m in found), 3, 4)
    parser.close(5)
    return done


@settings(max_examples=100, suppress_health_check=SLOW)
@given(MESSAGES)
def test_requests(found: list[Message]) -> None:
    peer = Peer()
    httptools.HttpRequestParser(peer).feed_data(b"".join(m.request for m in found))
    calls = read(found)
    assert [call.path.encode() for call in calls] == peer.urls
    assert [call.host.encode() for call in calls] == peer.hosts
    assert [call.request_body_size for call in calls] == peer.bodies
    assert all(peer.is_whole)


@settings(max_examples=100, suppress_health_check=SLOW)
@given(MESSAGES)
def test_responses(found: list[Message]) -> None:
    # llhttp is not told of HEAD, so those are left out on both sides.
    found = [message for message in found if message.call.method != "HEAD"]
    peer = Peer()
    parser = httptools.HttpResponseParser(peer)
    parser.feed_data(b"".join(message.response for message in found))
    calls = read(found)
    assert [call.response_body_size for call in calls] == peer.bodies
    assert all(peer.is_whole)
    if found:
        assert calls[-1].status == parser.get_status_code()


@settings(max_examples=100, suppress_health_check=SLOW)
@given(messages(is_strict=True), st.integers(0, 200), st.integers(0, 255))
def test_what_the_peer_takes_in_spite_of_a_changed_byte(
    message: Message, position: int, byte: int
) -> None:
    """Where llhttp finds one whole request in damaged bytes, so does the parser, the same one."""
    text = bytearray(message.request)
    text[position % len(text)] = byte
    peer = Peer()
    parser = httptools.HttpRequestParser(peer)
    try:
        parser.feed_data(bytes(text))
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return
    if peer.is_whole != [True] or not parser.get_http_version().startswith("1."):
        return
    done: list[Call] = []
    ours = Http1(done, Settings(keep_query=True))
    ours.feed(Side.REQUEST, bytes(text), 1, 2)
    ours.close(3)
    assert len(done) == 1
    assert done[0].method.encode() == parser.get_method()
    assert done[0].request_body_size == peer.bodies[0]
