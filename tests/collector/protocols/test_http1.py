from __future__ import annotations

import pytest

from collector.protocols.calls import NO_STATUS, UNMEASURED, Outcome, Settings, Side, Version
from collector.protocols.http1 import Http1
from tests.collector.protocols.talk import Talk, chunks, get, head, ok, paths

POST = head("POST /p HTTP/1.1", "Host: a", "Content-Length: 5")
CHUNKED_POST = head("POST /p HTTP/1.1", "Host: a", "Transfer-Encoding: chunked")
CHUNKED_OK = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked")


def test_a_call_has_its_times_and_sizes() -> None:
    request, response = (
        head("POST /p?q=1#f HTTP/1.1", "host: shop:80", "content-length: 3"),
        ok(b"12"),
    )
    (call,) = Talk().ask(request[:30], request[30:], b"abc").answer(response[:5], response[5:]).done
    assert (call.method, call.path, call.host, call.status) == ("POST", "/p", "shop:80", 200)
    assert (call.version, call.outcome) == (Version.HTTP_1_1, Outcome.ANSWERED)
    assert (call.request_header_size, call.request_body_size) == (len(request), 3)
    assert (call.response_header_size, call.response_body_size) == (len(response) - 2, 2)
    assert (call.start_ns, call.first_byte_ns, call.end_ns) == (10, 45, 55)


@pytest.mark.parametrize(
    ("line", "fields", "method", "path", "host"),
    [
        ("GET / HTTP/1.1", ["Host: a"], "GET", "/", "a"),
        ("GET /x?y=z HTTP/1.1", ["HOST:a"], "GET", "/x", "a"),
        ("GET /x#y HTTP/1.1", [], "GET", "/x", ""),
        ("OPTIONS * HTTP/1.1", ["Host: a"], "OPTIONS", "*", "a"),
        ("GET http://b.c:81/d/e?f HTTP/1.1", ["Host: a"], "GET", "/d/e", "b.c:81"),
        ("GET http://user:secret@b/ HTTP/1.1", [], "GET", "/", "b"),
        ("GET http://b HTTP/1.1", [], "GET", "/", "b"),
        ("GET http://b?x=1 HTTP/1.1", [], "GET", "/", "b"),
        ("OPTIONS http://b HTTP/1.1", [], "OPTIONS", "*", "b"),
        ("M-SEARCH /x HTTP/1.1", ["Host: a"], "M-SEARCH", "/x", "a"),
        ("PROPFIND!x /x HTTP/1.1", ["Host: a"], "PROPFIND!x", "/x", "a"),
        ("GET /caf\u00e9 HTTP/1.1", ["Host: a"], "GET", "/caf\u00e9", "a"),
        ("GET / HTTP/1.1", ["X: 1", "Host:", "  folded"], "GET", "/", "folded"),
        ("GET / HTTP/1.1", ["X: 1", " Host: not"], "GET", "/", ""),
        ("GET  /x\tHTTP/1.1 ", ["Host: a"], "GET", "/x", "a"),
    ],
)
def test_request_lines(line: str, fields: list[str], method: str, path: str, host: str) -> None:
    (call,) = Talk().ask(head(line, *fields)).answer(ok()).done
    assert (call.method, call.path, call.host) == (method, path, host)


def test_connect_has_its_authority_for_path_and_host() -> None:
    (call,) = Talk().ask(head("CONNECT b:443 HTTP/1.1")).answer(ok(status="403 No")).done
    assert (call.method, call.path, call.host, call.status) == ("CONNECT", "b:443", "b:443", 403)


def test_the_query_is_kept_when_asked_for() -> None:
    talk = Talk(settings=Settings(keep_query=True))
    assert talk.ask(get("/x?y=z")).answer(ok()).done[0].path == "/x?y=z"


def test_bytes_that_are_no_text_are_escaped() -> None:
    assert Talk().ask(b"GET /\xff HTTP/1.1\r\n\r\n").answer(ok()).done[0].path == "/\\xff"


def test_bare_line_feeds_end_lines() -> None:
    request = b"\n\r\nPOST /x HTTP/1.1\nHost: a\nContent-Length: 2\n\n12"
    (call,) = Talk().ask(request).answer(b"HTTP/1.1 200\nContent-Length: 1\n\r\n1").done
    assert (call.path, call.host, call.status) == ("/x", "a", 200)
    assert (call.request_header_size, call.request_body_size) == (len(request) - 5, 2)
    assert call.response_body_size == 1


def test_http_1_0() -> None:
    (call,) = (
        Talk().ask(b"GET / HTTP/1.0\r\n\r\n").answer(b"HTTP/1.0 200 OK\r\n\r\nabc", b"de").close()
    )
    assert (call.version, call.outcome, call.response_body_size) == (10, Outcome.ANSWERED, 5)
    assert call.end_ns == 35  # of the piece with the last byte, not of the close


def test_pipelined_requests_are_answered_in_order() -> None:
    talk = Talk().ask(get("/1") + get("/2") + POST + b"12345" + get("/3"))
    talk.answer(ok(b"a") + ok(b"bc", status="404 No"), ok() + ok(b"d" * 9))
    assert paths(talk.done) == [
        ("/1", 200, "ANSWERED"),
        ("/2", 404, "ANSWERED"),
        ("/p", 200, "ANSWERED"),
        ("/3", 200, "ANSWERED"),
    ]
    assert [call.response_body_size for call in talk.done] == [1, 2, 0, 9]
    assert [call.request_body_size for call in talk.done] == [0, 0, 5, 0]


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "gzip, chunked", "gzip,chunked "])
def test_chunks_are_counted_without_framing(coding: str) -> None:
    talk = Talk().ask(head("POST /p HTTP/1.1", f"Transfer-Encoding: {coding}", "Content-Length: 1"))
    talk.ask(chunks(b"abc", b"d" * 300, extension=' ;a="b"'))
    (call,) = talk.answer(CHUNKED_OK, chunks(b"x" * 20)).done
    assert (call.request_body_size, call.response_body_size) == (303, 20)
    assert call.response_header_size == len(CHUNKED_OK)


def test_a_trailer_section_counts_with_its_empty_line_and_none_counts_nothing() -> None:
    trailer = "a: b\r\nDigest: c\r\n"
    talk = Talk().ask(CHUNKED_POST + chunks(b"1", trailer=trailer))
    (call,) = talk.answer(CHUNKED_OK + chunks(b"1")).done
    assert call.request_header_size == len(CHUNKED_POST) + len(trailer) + 2
    assert call.response_header_size == len(CHUNKED_OK)


@pytest.mark.parametrize(
    ("method", "response", "size"),
    [
        ("HEAD", head("HTTP/1.1 200 OK", "Content-Length: 100"), 0),
        ("HEAD", head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), 0),
        ("HEAD", head("HTTP/1.1 200 OK"), 0),
        ("GET", head("HTTP/1.1 204 No Content"), 0),
        ("GET", head("HTTP/1.1 304 Not Modified", "Content-Length: 100"), 0),
        ("GET", head("HTTP/1.1 200 OK", "Content-Length: 2, 2") + b"ab", 2),
        ("GET", head("HTTP/1.1 200 OK", "Content-Length: 2", "content-length: 2") + b"ab", 2),
        (
            "GET",
            head("HTTP/1.1 200 OK", "Transfer-Encoding: identity", "Content-Length: 2") + b"ab",
            2,
        ),
        ("GET", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 0),
    ],
)
def test_where_a_response_ends(method: str, response: bytes, size: int) -> None:
    talk = Talk().ask(head(f"{method} /1 HTTP/1.1"), get("/2"))
    first, second = talk.answer(response + ok(b"next")).done
    assert (first.response_body_size, second.response_body_size) == (size, 4)


@pytest.mark.parametrize("fields", [[], ["Transfer-Encoding: gzip"]])
def test_a_response_without_length_ends_with_the_connection(fields: list[str]) -> None:
    talk = (
        Talk().ask(get()).answer(head("HTTP/1.1 200 OK", *fields), b"HTTP/1.1 200 OK\r\n\r\n", 40)
    )
    assert talk.done == []
    assert talk.parser.unneeded(Side.RESPONSE) > 1 << 30
    (call,) = talk.close()
    assert (call.outcome, call.response_body_size, call.end_ns) == (Outcome.ANSWERED, 59, 45)


def test_interim_responses_count_as_header_bytes() -> None:
    interim = head("HTTP/1.1 100 Continue"), head("HTTP/1.1 103 Early Hints", "Link: </s>")
    talk = Talk().ask(head("POST / HTTP/1.1", "Content-Length: 2", "Expect: 100-continue"))
    (call,) = talk.answer(*interim).ask(b"ab").answer(ok()).done
    assert (call.status, call.first_byte_ns, call.end_ns) == (200, 55, 55)
    assert call.response_header_size == sum(map(len, (*interim, ok())))


def test_a_response_before_the_end_of_its_request() -> None:
    talk = Talk().ask(POST, b"12").answer(ok(status="413 Too Large"))
    assert talk.done == []
    (call,) = talk.ask(b"345" + get("/2")).done
    assert (call.status, call.request_body_size, call.end_ns) == (413, 5, 35)
    assert paths(talk.answer(ok()).done)[1] == ("/2", 200, "ANSWERED")


def test_a_request_that_the_close_cuts_off_after_its_response() -> None:
    (call,) = Talk().ask(POST, b"12").answer(ok(status="413 Too Large")).close()
    assert (call.status, call.outcome, call.request_body_size) == (413, Outcome.ANSWERED, 2)


def test_content_that_is_withheld_after_a_final_response() -> None:
    talk = Talk().ask(POST).answer(ok(status="417 No")).ask(get("/2")).answer(ok())
    assert paths(talk.done) == [("/p", 417, "ANSWERED"), ("/2", 200, "ANSWERED")]
    assert talk.done[0].request_body_size == 0


def test_open_calls_at_the_end() -> None:
    talk = Talk().ask(get("/1") + get("/2") + get("/3") + b"GET /4 HTTP/1.1\r\nHo")
    talk.answer(ok(b"12345")[:-2])
    assert paths(talk.close()) == [
        ("/1", 200, "ABORTED"),
        ("/2", NO_STATUS, "UNANSWERED"),
        ("/3", NO_STATUS, "UNANSWERED"),
    ]
    assert talk.done[0].response_body_size == 3
    assert {call.end_ns for call in talk.done} == {35}
    assert talk.done[1].first_byte_ns == UNMEASURED
    assert len(talk.close()) == 3
    talk.ask(get()).answer(ok(), 5).ask(5)
    assert len(talk.close()) == 3


@pytest.mark.parametrize(
    ("response", "status", "outcome"),
    [
        (b"", 0, "UNANSWERED"),
        (b"HTTP/1.1 2", 0, "UNANSWERED"),
        (b"HTTP/1.1 200 OK\r\nSer", 200, "ABORTED"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", 0, "UNANSWERED"),
        (CHUNKED_OK + b"5\r\nabcde\r\n0\r\n", 200, "ABORTED"),
        (CHUNKED_OK + chunks(b"a"), 200, "ANSWERED"),
    ],
)
def test_responses_that_the_close_cuts_off(response: bytes, status: int, outcome: str) -> None:
    assert paths(Talk().ask(get()).answer(response).close()) == [("/", status, outcome)]


def test_responses_without_request_are_dropped() -> None:
    talk = Talk().answer(ok(b"a", status="408 Timeout")).ask(get()).answer(ok(b"bc"))
    assert [call.response_body_size for call in talk.close()] == [2]


def test_a_response_that_is_told_before_its_request_is_held() -> None:
    done: list = []
    parser = Http1(done, Settings())
    parser.feed(Side.RESPONSE, ok(b"a") + ok(b"old")[:50], 1, 2)  # of requests that were not seen
    parser.feed(Side.RESPONSE, ok(b"bc"), 30, 40)
    parser.feed(Side.RESPONSE, ok(b"def"), 50, 60)
    parser.feed(Side.REQUEST, get("/2"), 20, 45)
    assert [call.response_body_size for call in done] == [2]
    parser.feed(Side.REQUEST, get("/3"), 46, 65)
    assert [call.response_body_size for call in done] == [2, 3]


def test_what_is_held_is_bounded() -> None:
    talk = Talk()
    for _ in range(1_000):
        talk.answer(ok(b"a" * 1_000))
    assert talk.parser._held_size <= 65_536
    assert paths(talk.ask(get("/1")).answer(ok()).done) == [("/1", 200, "ANSWERED")]


def test_an_answer_older_than_the_request_is_not_its() -> None:
    done: list = []
    parser = Http1(done, Settings(), is_joined=True)
    parser.feed(Side.REQUEST, get("/1"), 100, 110)
    parser.feed(Side.RESPONSE, ok(b"old"), 80, 90)
    parser.feed(Side.RESPONSE, ok(b"new!"), 120, 130)
    assert [call.response_body_size for call in done] == [4]


def test_requests_beyond_the_limit_give_up_the_oldest() -> None:
    talk = Talk(settings=Settings(max_open_calls=2))
    talk.ask(*(get(f"/{n}") for n in range(4)))
    assert paths(talk.done) == [("/0", 0, "UNANSWERED"), ("/1", 0, "UNANSWERED")]
    talk.answer(*(ok(b"x" * n) for n in range(4)))
    assert [(c.path, c.response_body_size) for c in talk.done[2:]] == [("/2", 2), ("/3", 3)]


def test_a_section_that_is_too_long_is_counted_and_not_kept() -> None:
    talk = Talk(settings=Settings(max_header_bytes=512))
    request = head("GET /long HTTP/1.1", "Host: a", *[f"X-{n}: {'y' * 90}" for n in range(40)])
    for at in range(0, len(request), 100):
        talk.ask(request[at : at + 100])
    (call,) = talk.answer(ok()).done
    assert (call.path, call.host, call.request_header_size) == ("/long", "a", len(request))
    assert len(talk.parser._request_buffer._buffer) < 1_024


def test_what_is_unneeded() -> None:
    talk = Talk().ask(head("POST / HTTP/1.1", "Content-Length: 1000") + b"a" * 10)
    assert talk.parser.unneeded(Side.REQUEST) == 990
    talk.ask(990)
    assert talk.parser.unneeded(Side.REQUEST) == 0
    talk.answer(CHUNKED_OK + b"3e8\r\n" + b"a")
    assert talk.parser.unneeded(Side.RESPONSE) == 999
    talk.answer(999)
    assert talk.parser.unneeded(Side.RESPONSE) == 0
    (call,) = talk.answer(b"\r\n0\r\n\r\n").done
    assert (call.request_body_size, call.response_body_size) == (1000, 1000)


def test_upgrade_to_h2c_hands_over_the_call() -> None:
    upgrade = get("/up", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
    talk = Talk().ask(upgrade, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    talk.answer(head("HTTP/1.1 101 Switching Protocols", "Upgrade: h2c") + b"frames")
    parser = talk.parser
    assert isinstance(parser, Http1)
    assert (parser.switched, talk.done) == ("h2c", [])
    assert parser.upgraded is not None
    assert parser.upgraded.path == "/up"
    assert [piece.data for piece in parser.leftover] == [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"frames",
    ]


def test_websocket_ends_the_call_and_http() -> None:
    talk = Talk().ask(get("/ws", "Connection: Upgrade", "Upgrade: websocket"))
    talk.answer(head("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket") + b"\x81\x01a")
    assert paths(talk.done) == [("/ws", 101, "ANSWERED")]
    assert isinstance(talk.parser, Http1)
    assert talk.parser.switched == "opaque"
    assert [piece.data for piece in talk.parser.leftover] == [b"\x81\x01a"]


def test_a_tunnel_begins_after_connect() -> None:
    talk = (
        Talk().ask(head("CONNECT b:443 HTTP/1.1"), b"early").answer(head("HTTP/1.1 200 OK") + b"x")
    )
    assert paths(talk.done) == [("b:443", 200, "ANSWERED")]
    assert isinstance(talk.parser, Http1)
    assert [piece.data for piece in talk.parser.leftover] == [b"early", b"x"]


@pytest.mark.parametrize("pieces", [1, 400])
def test_a_refused_upgrade_goes_on_as_http_1(pieces: int) -> None:
    talk = Talk().ask(get("/1", "Upgrade: h2c"), *[get("/2")] * pieces)
    talk.answer(ok(), *[ok(b"2")] * pieces)
    assert len(talk.done) == pieces + 1
    assert [call.response_body_size for call in talk.done[1:]] == [1] * pieces
    assert talk.parser.switched == ""


def test_a_switch_that_is_held_ends_http_at_once() -> None:
    done: list = []
    parser = Http1(done, Settings())
    parser.feed(Side.RESPONSE, head("HTTP/1.1 101 Switching Protocols", "Upgrade: x"), 5, 6)
    parser.feed(Side.REQUEST, get("/ws", "Upgrade: x") + b"rest", 1, 7)
    assert paths(done) == [("/ws", 101, "ANSWERED")]
    assert (parser.switched, [p.data for p in parser.leftover]) == ("opaque", [b"rest"])
