from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.protocols.calls import Call, Settings, Side
from collector.protocols.detect import Protocol
from collector.protocols.exchange import Conversation
from collector.protocols.frames import PREFACE, FrameType
from tests.collector.protocols.generate import Turn, conversations, cut
from tests.collector.protocols.talk import Talk, get, head, ok, paths
from tests.collector.protocols.wire import STATUS_200, body, frame, headers, request
from tests.fuzz.http1 import SEEDS

SETTINGS = frame(FrameType.SETTINGS, 0)
H2_CLIENT = PREFACE + SETTINGS + headers(1, request(b"/two"), end=True)
H2_SERVER = SETTINGS + headers(1, STATUS_200) + body(1, b"abc", end=True)


def talk(is_joined: bool = False) -> Talk:
    return Talk(is_joined, make=Conversation)


def protocol(one: Talk) -> Protocol:
    assert isinstance(one.parser, Conversation)
    return one.parser.protocol


@pytest.mark.parametrize("size", [1, 5, 1_000])
@pytest.mark.parametrize("prefix", [b"", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"])
def test_http_1(size: int, prefix: bytes) -> None:
    one = talk()
    text = prefix + get("/1")
    one.ask(*(text[at : at + size] for at in range(0, len(text), size))).answer(ok(b"1"))
    assert (protocol(one), paths(one.done)) == (Protocol.HTTP1, [("/1", 200, "ANSWERED")])
    assert one.done[0].request_header_size == len(get("/1"))


@pytest.mark.parametrize("size", [1, 5, 1_000])
def test_http_2_by_prior_knowledge(size: int) -> None:
    one = talk()
    one.ask(*(H2_CLIENT[at : at + size] for at in range(0, len(H2_CLIENT), size)))
    one.answer(H2_SERVER)
    assert (protocol(one), paths(one.done)) == (Protocol.HTTP2, [("/two", 200, "ANSWERED")])


def test_an_http_2_server_that_speaks_first() -> None:
    one = talk().answer(SETTINGS).ask(H2_CLIENT).answer(H2_SERVER[len(SETTINGS) :])
    assert (protocol(one), paths(one.done)) == (Protocol.HTTP2, [("/two", 200, "ANSWERED")])


def test_h2c_by_upgrade_answers_the_request_as_stream_1() -> None:
    switch = head("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: h2c")
    one = talk().ask(head("POST /up HTTP/1.1", "Content-Length: 3", "Upgrade: h2c") + b"abc")
    one.answer(switch + SETTINGS + headers(1, STATUS_200)).ask(PREFACE + SETTINGS)
    one.answer(body(1, b"12345", end=True)).ask(headers(3, request(b"/next"), end=True))
    one.answer(headers(3, STATUS_200, end=True))
    assert protocol(one) is Protocol.HTTP2
    assert paths(one.done) == [("/up", 200, "ANSWERED"), ("/next", 200, "ANSWERED")]
    first = one.done[0]
    assert (first.request_body_size, first.response_body_size) == (3, 5)
    assert (first.start_ns, first.first_byte_ns, first.end_ns) == (10, 25, 45)


def test_a_websocket_is_not_looked_at() -> None:
    one = talk().ask(get("/ws", "Upgrade: websocket"))
    one.answer(head("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket") + b"\x81\x01a")
    one.ask(b"\x81\x81abcd")
    assert (protocol(one), paths(one.close())) == (Protocol.OTHER, [("/ws", 101, "ANSWERED")])
    assert one.parser.unneeded(Side.REQUEST) > 1 << 30


@pytest.mark.parametrize(
    ("client", "server", "found", "calls"),
    [
        (get("/in"), ok(), Protocol.HTTP1, [("/in", 200, "ANSWERED")]),
        (H2_CLIENT, H2_SERVER, Protocol.HTTP2, [("/two", 200, "ANSWERED")]),
        (b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x03", Protocol.OTHER, []),
    ],
)
@pytest.mark.parametrize("is_early", [False, True])
def test_the_content_of_a_tunnel_is_looked_at(
    client: bytes, server: bytes, found: Protocol, calls: list[object], is_early: bool
) -> None:
    one = talk().ask(head("CONNECT b:80 HTTP/1.1"))
    if is_early:
        one.ask(client).answer(head("HTTP/1.1 200 OK") + server)
    else:
        one.answer(head("HTTP/1.1 200 OK")).ask(client).answer(server)
    assert protocol(one) is found
    assert paths(one.close()) == [("b:80", 200, "ANSWERED"), *calls]


def test_tunnels_in_tunnels() -> None:
    connect, established = head("CONNECT b:80 HTTP/1.1"), head("HTTP/1.1 200 OK")
    one = talk().ask(*[connect] * 200).answer(established * 200)
    assert paths(one.close()) == [("b:80", 200, "ANSWERED")] * 200


def test_other_protocols_are_left_alone() -> None:
    one = talk().answer(b"SSH-2.0-OpenSSH_9.2\r\n").ask(get())
    assert (protocol(one), one.close()) == (Protocol.OTHER, [])
    assert one.parser.unneeded(Side.RESPONSE) > 1 << 30


def test_a_preface_where_http_1_was_taken_for_granted() -> None:
    one = talk().ask(get("/1")).answer(ok()).ask(H2_CLIENT).answer(H2_SERVER)
    assert protocol(one) is Protocol.HTTP2
    assert paths(one.done) == [("/1", 200, "ANSWERED"), ("/two", 200, "ANSWERED")]


def test_http_1_that_makes_no_sense_any_more_is_given_up() -> None:
    one = talk().ask(get("/1")).answer(ok())
    for _ in range(20):
        one.ask(b"\0\1\2\3" * 5).answer(b"\4\5\6\7")
    assert (protocol(one), paths(one.done)) == (Protocol.OTHER, [("/1", 200, "ANSWERED")])


def test_http_1_that_makes_sense_again_is_kept() -> None:
    one = talk()
    for number in range(40):
        one.ask(get(f"/{number}")).answer(ok()).ask(b"\0\1\2\3" * 5)
    assert (protocol(one), len(one.done)) == (Protocol.HTTP1, 40)


def test_http_2_that_breaks_its_rules_is_given_up() -> None:
    one = talk().ask(H2_CLIENT).answer(H2_SERVER).ask(*[b"\xff" * 20] * 40)
    assert (protocol(one), paths(one.done)) == (Protocol.OTHER, [("/two", 200, "ANSWERED")])


# Joined


def test_joined_http_1() -> None:
    one = talk(is_joined=True).answer(b"the rest of a body", 5_000, b"more")
    assert protocol(one) is Protocol.UNDECIDED
    one.ask(get("/1")).answer(ok(b"1"))
    assert (protocol(one), paths(one.done)) == (Protocol.HTTP1, [("/1", 200, "ANSWERED")])


def test_joined_http_1_in_a_long_upload() -> None:
    one = talk(is_joined=True)
    for _ in range(5_000):
        one.ask(b"x" * 10, 1_000)
    one.answer(ok(b"old")).ask(get("/1")).answer(ok(b"1"))
    assert paths(one.done) == [("/1", 200, "ANSWERED")]
    assert one.done[0].response_body_size == 1


def test_joined_http_2() -> None:
    one = talk(is_joined=True).answer(b"the rest of a body", body(1, b"abc", end=True))
    one.ask(headers(3, request(b"/3"), end=True)).answer(headers(3, STATUS_200, end=True))
    assert (protocol(one), paths(one.done)) == (Protocol.HTTP2, [("/3", 200, "ANSWERED")])


def test_joined_connections_that_speak_something_else_are_given_up() -> None:
    one = talk(is_joined=True)
    for _ in range(20):
        one.ask(b"SELECT 1;").answer(b"\1\0\0\1\1")
    assert protocol(one) is Protocol.OTHER


def test_a_connection_whose_beginning_was_not_captured_counts_as_joined() -> None:
    one = talk().ask(500).answer(ok(b"old")).ask(get("/1")).answer(ok(b"1"))
    assert [call.response_body_size for call in one.done] == [1]


def test_what_is_undecided_at_the_end_is_no_call() -> None:
    one = talk().ask(b"GET /unfin")
    assert (one.parser.unneeded(Side.REQUEST), one.close(), one.close()) == (0, [], [])


@settings(max_examples=60)
@given(conversations(), st.lists(st.integers(1, 40), max_size=5))
def test_a_valid_conversation_gives_its_calls_however_it_is_cut(
    conversation: tuple[list[Turn], list[Call]], sizes: list[int]
) -> None:
    turns, calls = conversation
    done: list[Call] = []
    parser = Conversation(done, Settings())
    for turn in cut(turns, sizes):
        parser.feed(*turn)
    parser.close(turns[-1][2] + 90 if turns else 0)
    assert done == calls


@settings(max_examples=150)
@given(
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from(Side),
            st.sampled_from((*SEEDS, H2_CLIENT, H2_SERVER, SETTINGS))
            | st.binary(max_size=30)
            | st.integers(1, 99),
        ),
        max_size=20,
    ),
)
def test_anything(is_joined: bool, pieces: list[tuple[Side, bytes | int]]) -> None:
    one = talk(is_joined)
    for side, piece in pieces:
        (one.answer if side else one.ask)(piece)
        assert one.parser.unneeded(side) >= 0
    one.close()
