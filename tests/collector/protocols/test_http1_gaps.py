"""Bytes that were not captured, and connections that are older than what is known of them."""

from __future__ import annotations

import pytest

from collector.protocols.calls import UNMEASURED, Side
from tests.collector.protocols.talk import Talk, chunks, get, head, ok, paths

CHUNKED_OK = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked")
CHUNKED_POST = head("POST /p HTTP/1.1", "Transfer-Encoding: chunked")


def sizes(talk: Talk) -> list[tuple[int, int]]:
    return [(call.request_body_size, call.response_body_size) for call in talk.done]


def test_gaps_in_content_lose_nothing() -> None:
    talk = Talk().ask(head("POST /1 HTTP/1.1", "Content-Length: 50") + b"a", 40, b"b" * 9)
    talk.answer(ok(b"x" * 90)[:60], 10, ok(b"x" * 90)[70:])
    talk.ask(CHUNKED_POST + b"20\r\nabc", 20, b"d" * 9 + b"\r\n0\r\n\r\n").answer(ok())
    assert sizes(talk) == [(50, 90), (32, 0)]
    assert talk.parser.lost == 0


def test_a_gap_can_end_content_exactly() -> None:
    talk = Talk().ask(head("POST /1 HTTP/1.1", "Content-Length: 50"), 50)
    talk.answer(head("HTTP/1.1 200 OK", "Content-Length: 9"), 9)
    (call,) = talk.done
    assert (call.request_body_size, call.response_body_size, call.end_ns) == (50, 9, 45)
    assert paths(talk.ask(get("/2")).answer(ok()).done)[1] == ("/2", 200, "ANSWERED")


def test_a_gap_in_a_request_line_loses_the_request() -> None:
    talk = Talk().ask(b"GET /lo", 100).answer(ok(b"1")).ask(get("/2")).answer(ok(b"2"))
    assert paths(talk.done) == [("/2", 200, "ANSWERED")]


def test_a_request_behind_one_that_was_lost_and_not_answered_has_no_answer_that_is_known() -> None:
    talk = Talk().ask(b"GET /lo", 100, get("/2")).answer(ok(b"1"), ok(b"2")).ask(get("/3"))
    talk.answer(ok(b"3"))
    assert paths(talk.done) == [("/2", 0, "ANSWERED"), ("/3", 200, "ANSWERED")]


def test_a_gap_in_request_fields_leaves_what_is_sure() -> None:
    talk = Talk().ask(get("/1")[:-4] + b"\r\nX: ", 100).answer(ok(b"1")).ask(get("/2")).answer(ok())
    assert paths(talk.done) == [("/1", 200, "ANSWERED"), ("/2", 200, "ANSWERED")]
    assert (talk.done[0].host, talk.done[0].request_header_size) == ("a", UNMEASURED)
    assert sizes(talk) == [(UNMEASURED, 1), (0, 0)]


def test_a_gap_in_a_request_without_known_length() -> None:
    talk = Talk().ask(CHUNKED_POST + b"3\r\nabc", 100).answer(ok(b"1")).ask(get("/2")).answer(ok())
    assert paths(talk.done) == [("/p", 200, "ANSWERED"), ("/2", 200, "ANSWERED")]
    assert sizes(talk) == [(UNMEASURED, 1), (0, 0)]


def test_a_gap_that_swallows_requests_swallows_their_responses() -> None:
    talk = Talk().ask(get("/1")).answer(ok(b"1")).ask(200).answer(ok(b"22"), ok(b"333"))
    talk.ask(get("/4")).answer(ok(b"4444"))
    assert paths(talk.close()) == [("/1", 200, "ANSWERED"), ("/4", 200, "ANSWERED")]
    assert sizes(talk) == [(0, 1), (0, 4)]


def test_a_gap_that_swallows_a_response() -> None:
    talk = Talk().ask(get("/1")).answer(200).ask(get("/2")).answer(ok(b"22"))
    assert paths(talk.done) == [("/1", 0, "ANSWERED"), ("/2", 200, "ANSWERED")]
    assert sizes(talk) == [(0, UNMEASURED), (0, 2)]
    assert [call.end_ns for call in talk.done] == [25, 45]


def test_a_response_after_a_gap_answers_the_only_request() -> None:
    talk = Talk().ask(get("/1")).answer(30, ok(b"1")).ask(get("/2")).answer(ok(b"22"))
    assert sizes(talk) == [(0, 1), (0, 2)]


def test_a_pipeline_whose_last_request_came_in_two_reads() -> None:
    """It began before the responses that are seen, so that these are not the answers to all."""
    first = head("POST /3 HTTP/1.1", "Content-Length: 4")
    talk = Talk().ask(get("/1") + get("/2") + first[:9]).answer(100, ok(b"2"))
    talk.ask(first[9:] + b"four" + get("/4")).answer(ok(b"3"), ok(b"4"))
    statuses = {call.path: call.status for call in talk.close()}
    assert statuses == {"/1": 0, "/2": 0, "/3": 0, "/4": 0}


def test_the_end_of_a_method_is_no_method() -> None:
    talk = Talk().ask(get("/1")).answer(ok()).ask(2, b"ST /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert paths(talk.answer(ok()).ask(get("/3")).answer(ok()).close()) == [
        ("/1", 200, "ANSWERED"),
        ("/3", 200, "ANSWERED"),
    ]


def test_pipelined_responses_after_a_gap_are_given_to_no_request() -> None:
    talk = Talk().ask(get("/1") + get("/2") + get("/3")).answer(100, ok(b"3"))
    talk.ask(get("/4")).answer(ok(b"4444"))
    assert paths(talk.close()) == [
        ("/1", 0, "ANSWERED"),
        ("/2", 0, "ANSWERED"),
        ("/3", 0, "ANSWERED"),
        ("/4", 200, "ANSWERED"),
    ]
    assert sizes(talk)[-1] == (0, 4)


def test_pipelined_requests_after_a_gap_get_no_wrong_response() -> None:
    talk = Talk().ask(get("/1"), 100, get("/3")).answer(ok(b"1"), ok(b"22"), ok(b"333"))
    talk.ask(get("/4")).answer(ok(b"4444"))
    assert paths(talk.close()) == [
        ("/1", 200, "ANSWERED"),
        ("/3", 0, "ANSWERED"),
        ("/4", 200, "ANSWERED"),
    ]
    assert sizes(talk) == [(0, 1), (0, UNMEASURED), (0, 4)]


def test_both_sides_lost_for_a_while() -> None:
    talk = Talk().ask(get("/1")).answer(100).ask(100).answer(100, ok(b"22"))
    talk.ask(get("/3")).answer(ok(b"333"))
    assert paths(talk.close()) == [("/1", 0, "ANSWERED"), ("/3", 200, "ANSWERED")]
    assert sizes(talk)[-1] == (0, 3)


def test_a_gap_in_response_fields_leaves_what_is_sure() -> None:
    talk = Talk().ask(get("/1")).answer(b"HTTP/1.1 404 No\r\nX: ", 100).ask(get("/2")).answer(ok())
    assert paths(talk.done) == [("/1", 404, "ANSWERED"), ("/2", 200, "ANSWERED")]
    first = talk.done[0]
    assert (first.response_header_size, first.response_body_size) == (UNMEASURED, UNMEASURED)
    assert (first.first_byte_ns, first.end_ns) == (25, 35)


def test_a_chunked_response_with_a_gap_ends_with_its_last_chunk() -> None:
    talk = Talk().ask(get("/1")).answer(CHUNKED_OK + b"3\r\nabc", 100, b"more", b"x\r\n0\r\n\r\n")
    assert paths(talk.done) == [("/1", 200, "ANSWERED")]
    assert (talk.done[0].response_body_size, talk.done[0].end_ns) == (UNMEASURED, 55)
    talk.ask(get("/2")).answer(CHUNKED_OK + chunks(b"22"))
    assert sizes(talk)[1] == (0, 2)


def test_a_chunked_response_with_a_gap_ends_before_the_next_request() -> None:
    talk = Talk().ask(get("/1")).answer(CHUNKED_OK + b"3\r\nabc", 100, b"more").ask(get("/2"))
    assert [(call.path, call.end_ns) for call in talk.done] == [("/1", 45)]


def test_a_chunked_response_with_a_gap_ends_before_the_next_response() -> None:
    talk = Talk().ask(get("/1") + get("/2")).answer(CHUNKED_OK + b"3\r\nabc", 100, b"more")
    talk.answer(ok(b"22"))
    assert [(call.path, call.end_ns) for call in talk.done] == [("/1", 45), ("/2", 55)]


def test_a_chunked_response_with_a_gap_ends_with_the_connection() -> None:
    talk = Talk().ask(get("/1")).answer(CHUNKED_OK + b"3\r\nabc", 100)
    assert paths(talk.close()) == [("/1", 200, "ANSWERED")]


def test_what_was_lost_at_the_end_may_have_been_the_answer() -> None:
    assert paths(Talk().ask(get("/1")).answer(100).close()) == [("/1", 0, "ANSWERED")]


def test_bytes_that_make_no_sense_are_left_out() -> None:
    talk = Talk().ask(get("/1")).answer(ok()).ask(b"\0\1\2\3" * 9, get("/2")).answer(ok(b"22"))
    talk.answer(b"no HTTP").ask(get("/3")).answer(ok(b"333"))
    assert [call.path for call in talk.close()] == ["/1", "/2", "/3"]
    assert (talk.parser.misfits, talk.parser.recoveries) == (2, 2)


@pytest.mark.parametrize(
    "fields", [["Content-Length: 1, 2"], ["Content-Length: -1"], ["Transfer-Encoding: gzip"]]
)
def test_a_request_of_unknown_length(fields: list[str]) -> None:
    talk = Talk().ask(head("POST /1 HTTP/1.1", *fields), b"abc").answer(ok(status="400 Bad"))
    assert paths(talk.ask(get("/2")).answer(ok()).done) == [
        ("/1", 400, "ANSWERED"),
        ("/2", 200, "ANSWERED"),
    ]
    assert sizes(talk) == [(UNMEASURED, 0), (0, 0)]


@pytest.mark.parametrize("line", ["xyz", "5 5", "-5", "0x5", "+5", "", "1" * 17, "5;" + "a" * 5000])
def test_chunk_sizes_that_are_none(line: str) -> None:
    talk = Talk().ask(get("/1")).answer(CHUNKED_OK + line.encode() + b"\r\nabc").ask(get("/2"))
    assert [(call.path, call.response_body_size) for call in talk.done] == [("/1", UNMEASURED)]


# Connections that were joined


def test_joined_in_the_middle_of_a_response() -> None:
    talk = Talk(is_joined=True).answer(b"rest of some body", b"more\r\n")
    talk.ask(get("/1")).answer(ok(b"1")).ask(get("/2")).answer(ok(b"22"))
    assert sizes(talk) == [(0, 1), (0, 2)]
    assert talk.parser.lost == 0


def test_joined_in_the_middle_of_a_request() -> None:
    talk = Talk(is_joined=True).ask(b"x" * 100, 500, b"abc").answer(ok(b"old"))
    talk.ask(get("/1")).answer(ok(b"1"))
    assert paths(talk.close()) == [("/1", 200, "ANSWERED")]
    assert sizes(talk) == [(0, 1)]


@pytest.mark.parametrize(
    "old",
    [
        head("HTTP/1.1 200 OK", "Content-Length: 500"),  # of HEAD, or cut short
        head("HTTP/1.1 200 OK", "Content-Length: 3") + b"abc",
        head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"),
        CHUNKED_OK + chunks(b"abc"),
        head("HTTP/1.1 200 OK") + b"no length",
        head("HTTP/1.1 100 Continue"),
    ],
)
@pytest.mark.parametrize("is_joined", [False, True])
def test_an_answer_to_a_request_that_was_not_seen(old: bytes, is_joined: bool) -> None:
    talk = Talk(is_joined).answer(old).ask(get("/1")).answer(ok(b"1")).ask(get("/2")).answer(ok())
    assert paths(talk.close())[-1] == ("/2", 200, "ANSWERED")
    assert sizes(talk) == [(0, 1), (0, 0)]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_joined_before_a_slow_client(size: int) -> None:
    text = get("/slow", "X: " + "y" * 50)
    talk = Talk(is_joined=True).ask(b"GE", b"nothing\n")
    talk.ask(*(text[at : at + size] for at in range(0, len(text), size))).answer(ok())
    assert paths(talk.done) == [("/slow", 200, "ANSWERED")]


def test_joined_where_a_body_ends_like_a_method() -> None:
    talk = Talk(is_joined=True).ask(b"abc", get("/1")).answer(ok())
    assert [(call.method, call.path) for call in talk.done] == [("GET", "/1")]


def test_joined_at_a_switch() -> None:
    talk = Talk(is_joined=True).answer(head("HTTP/1.1 101 Switching Protocols", "Upgrade: h2c"))
    assert (talk.parser.switched, talk.parser.upgraded, talk.done) == ("h2c", None, [])


def test_unseen_answers_are_always_needed() -> None:
    talk = Talk(is_joined=True).answer(head("HTTP/1.1 200 OK", "Content-Length: 500"))
    assert talk.parser.unneeded(Side.RESPONSE) == 0
