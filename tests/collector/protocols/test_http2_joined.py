"""Connections that were in use before anyone looked, and connections with gaps."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.protocols.calls import (
    NO_STATUS,
    NOT_GRPC,
    UNMEASURED,
    Call,
    Outcome,
    Settings,
    Side,
)
from collector.protocols.frames import PREFACE, find_boundary
from collector.protocols.http2 import Http2
from tests.collector.protocols.conversation import Expected, conversation
from tests.collector.protocols.wire import (
    GET,
    STATUS_200,
    Piece,
    body,
    frame,
    headers,
    literal,
    parse,
    request,
    reset,
    timeless,
)


def assert_true(call: Call, expected: Expected) -> None:
    """What is told is so; what cannot be known is not told."""
    assert call.method in ("", expected.method)
    assert call.path in ("", expected.path)
    assert call.host in ("", expected.host)
    assert call.status in (NO_STATUS, expected.status)
    assert call.outcome == expected.outcome
    assert call.grpc_status in (UNMEASURED, expected.grpc_status)
    assert call.request_body_size in (UNMEASURED, expected.request_body)
    assert call.response_body_size in (UNMEASURED, expected.response_body)


@pytest.mark.parametrize("seed", range(6))
def test_joined_at_every_piece(seed: int) -> None:
    """Every call that begins afterwards is counted, once and with its true outcome."""
    talk = conversation(seed, 10, 5)
    requests, responses = talk.header_sizes()
    for joined_at in range(len(talk.pieces)):
        found = {call.start_ns: call for call in parse(talk.pieces[joined_at:], is_joined=True)}
        later = {
            10 * (item.opened_at - joined_at + 1): item
            for item in talk.expected
            if item.opened_at >= joined_at
        }
        assert found.keys() == later.keys()
        for start_ns, item in later.items():
            call = found[start_ns]
            assert_true(call, item)
            assert call.outcome is item.outcome
            assert call.request_body_size == item.request_body
            assert call.response_body_size == item.response_body
            assert call.request_header_size == requests[item.stream_id]
            assert call.response_header_size == responses[item.stream_id]
            # Each path is sent once, and so as a literal.
            assert (call.method, call.path) == (item.method, item.path)


def steady(calls: int, *, indexes_path: bool, paths: int = 3, noise: bool = False) -> list[Piece]:
    """Unary gRPC as its libraries send it, after the first call mostly of indexed fields."""
    client = hpack.Encoder()
    server = hpack.Encoder()
    kind = hpack.HeaderTuple if indexes_path else hpack.NeverIndexedHeaderTuple
    pieces = [(Side.REQUEST, PREFACE + frame(4, 0)), (Side.RESPONSE, frame(4, 0))]
    for number in range(calls):
        stream_id = 2 * number + 1
        asked = [
            hpack.HeaderTuple(":method", "POST"),
            hpack.HeaderTuple(":scheme", "http"),
            kind(":path", f"/shop.Cart/Method{number % paths}"),
            hpack.HeaderTuple(":authority", "cart:7070"),
            hpack.HeaderTuple("content-type", "application/grpc"),
        ]
        if noise:
            asked.append(hpack.HeaderTuple("traceparent", f"{number:0200}"))
        answered = [(":status", "200"), ("content-type", "application/grpc")]
        trailers = [("grpc-status", "0" if number % 4 else "14"), ("grpc-message", "")]
        pieces += [
            (Side.REQUEST, headers(stream_id, client.encode(asked)) + body(stream_id, b"m" * 9)),
            (Side.REQUEST, body(stream_id, b"", end=True)),
            (Side.RESPONSE, headers(stream_id, server.encode(answered)) + body(stream_id, b"12")),
            (Side.RESPONSE, headers(stream_id, server.encode(trailers), end=True)),
        ]
    return pieces


def test_paths_sent_as_literals_are_known_at_once() -> None:
    calls = parse(steady(30, indexes_path=False)[2 + 4 * 10 :], is_joined=True)
    assert [call.path for call in calls] == [f"/shop.Cart/Method{n % 3}" for n in range(10, 30)]
    assert {call.outcome for call in calls} == {Outcome.ANSWERED}
    # The content type and the status are older entries; that it is gRPC shows in its trailers.
    assert {call.grpc_status for call in calls} == {UNMEASURED}


def test_paths_in_the_table_stay_unknown_while_they_are_not_sent() -> None:
    calls = parse(steady(30, indexes_path=True)[2 + 4 * 10 :], is_joined=True)
    assert len(calls) == 20
    assert {(call.method, call.path, call.host) for call in calls} == {("POST", "", "")}


def test_names_come_back_as_the_table_is_learned_anew() -> None:
    """Other fields push the old entries out, so that the encoder sends them again."""
    calls = parse(steady(60, indexes_path=True, noise=True)[2 + 4 * 10 :], is_joined=True)
    names = [(call.path, call.host, call.grpc_status) for call in calls]
    assert names[0][0] == names[0][1] == ""
    known = [(f"/shop.Cart/Method{n % 3}", "cart:7070", UNMEASURED) for n in range(10, 60)]
    assert names[-25:] == known[-25:]


def test_new_entries_are_known_beside_old_ones() -> None:
    pieces = [
        (Side.REQUEST, headers(9, b"\x82\x86\x84\xbe", end=True)),
        (Side.REQUEST, headers(11, b"\x82\x86\x44\x02/n\xbf", end=True)),
        (Side.REQUEST, headers(13, b"\x82\x86\xbe\xbf", end=True)),
    ]
    assert [(c.path, c.host) for c in parse(pieces, is_joined=True)] == [
        *[("/", ""), ("/n", ""), ("/n", "")]
    ]


def test_beginning_seen_after_all() -> None:
    """Joined by mistake, or before the first byte: nothing is unknown."""
    talk = conversation(4, 8)
    assert timeless(parse(talk.pieces, is_joined=True)) == timeless(parse(talk.pieces))


def test_open_streams_are_no_calls() -> None:
    trailer = literal(b"x-sum", b"1", 0x40)
    pieces = [
        (Side.REQUEST, body(5, b"rest of an upload")),
        (Side.RESPONSE, headers(3, STATUS_200) + body(3, b"of an older one", end=True)),
        (Side.REQUEST, headers(5, trailer, end=True) + headers(7, request(), end=True)),
        (Side.RESPONSE, body(5, b"x", end=True) + headers(7, STATUS_200, end=True)),
        (Side.REQUEST, headers(9, b"\x82\x86\x84\xbe", end=True)),
    ]
    calls = parse(pieces, is_joined=True)
    assert [(call.path, call.outcome) for call in calls] == [
        ("/p", Outcome.ANSWERED),
        ("/", Outcome.UNANSWERED),
    ]


def test_status_that_is_hidden_is_still_an_answer() -> None:
    pieces = [
        (Side.REQUEST, headers(7, request(), end=True)),
        (Side.RESPONSE, headers(7, b"\xbe") + body(7, b"x", end=True)),
        (Side.REQUEST, headers(9, request(), end=True)),
        # an interim response whose status is hidden, then the final one
        (Side.RESPONSE, headers(9, b"\xbe") + headers(9, STATUS_200) + body(9, b"y", end=True)),
    ]
    calls = parse(pieces, is_joined=True)
    assert [(call.status, call.outcome, call.response_body_size) for call in calls] == [
        (NO_STATUS, Outcome.ANSWERED, 1),
        (200, Outcome.ANSWERED, 1),
    ]


@pytest.mark.parametrize("lost", [b"z" * 700, bytes(700), bytes(range(256)) * 3])
def test_piece_that_begins_inside_a_body(lost: bytes) -> None:
    """The frame after it is found by where it ends."""
    end_of_upload = lost + headers(7, request(), end=True) + frame(8, 0, bytes(4))
    pieces = [
        (Side.REQUEST, lost),
        (Side.REQUEST, end_of_upload),
        (Side.RESPONSE, headers(7, STATUS_200, end=True)),
    ]
    assert [call.path for call in parse(pieces, is_joined=True)] == ["/p"]


def test_wrong_boundary_is_left_again() -> None:
    pretended = headers(9, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", end=True)
    pieces = [
        (Side.REQUEST, pretended + b"more of it"),
        (Side.REQUEST, headers(7, request(), end=True)),
        (Side.RESPONSE, headers(7, STATUS_200, end=True)),
    ]
    assert [call.path for call in parse(pieces, is_joined=True)] == ["/p"]


def test_search_takes_no_time_on_bytes_made_to_cost_some() -> None:
    chain = frame(8, 1, bytes(4)) * 5_000
    assert find_boundary(Side.REQUEST, b"\xff" + chain + b"\xff" * 9, 2**24) == -1
    assert find_boundary(Side.REQUEST, b"\xff" + chain, 2**24) == 1
    assert find_boundary(Side.REQUEST, bytes(1_000_000), 2**24) == -1


def test_gap_in_a_body_costs_nothing() -> None:
    upload = body(1, bytes(1_000), end=True)
    done: list[Call] = []
    parser = Http2(done, Settings())
    parser.feed(Side.REQUEST, PREFACE + headers(1, GET) + upload[:100], 1, 1)
    parser.skip(Side.REQUEST, len(upload) - 100, 2, 2)
    parser.feed(Side.REQUEST, headers(3, b"\x82\x86\x84\xbe", end=True), 3, 3)
    parser.feed(Side.RESPONSE, headers(1, STATUS_200, end=True), 4, 4)
    parser.close(5)
    assert [(c.request_body_size, c.host) for c in done] == [(1_000, "a"), (0, "a")]


def test_gap_with_a_header_hides_the_table() -> None:
    done: list[Call] = []
    parser = Http2(done, Settings())
    parser.feed(Side.REQUEST, PREFACE + headers(1, GET, end=True), 1, 1)
    parser.skip(Side.REQUEST, 20, 2, 2)
    parser.feed(Side.REQUEST, headers(5, b"\x82\x86\x84\xbe", end=True), 3, 3)
    parser.feed(Side.REQUEST, headers(7, b"\x82\x86\x84\x41\x01b", end=True), 3, 3)
    parser.feed(Side.REQUEST, headers(9, b"\x82\x86\x84\xbe", end=True), 3, 3)
    parser.close(4)
    assert [call.host for call in done] == ["a", "", "b", "b"]


def test_gap_in_responses_leaves_only_what_is_sure() -> None:
    done: list[Call] = []
    parser = Http2(done, Settings())
    for stream_id in (1, 3, 5):
        parser.feed(Side.REQUEST, headers_of(stream_id), 1, 1)
    parser.skip(Side.RESPONSE, 500, 2, 2)
    parser.feed(Side.RESPONSE, body(3, b"rest", end=True), 3, 3)
    parser.feed(Side.RESPONSE, headers(5, STATUS_200) + body(5, b"all", end=True), 4, 4)
    parser.close(5)
    assert [(c.path, c.status, c.response_body_size, c.outcome) for c in done] == [
        ("/3", NO_STATUS, UNMEASURED, Outcome.ANSWERED),
        ("/5", 200, UNMEASURED, Outcome.ANSWERED),
    ]
    assert parser.given_up == 1


def test_reset_after_a_gap_says_only_of_answers_that_were_seen_that_they_were_broken_off() -> None:
    done: list[Call] = []
    parser = Http2(done, Settings())
    for stream_id in (1, 3):
        parser.feed(Side.REQUEST, headers_of(stream_id), 1, 1)
    parser.skip(Side.RESPONSE, 500, 2, 2)
    parser.feed(Side.RESPONSE, reset(1) + body(3, b"half") + reset(3), 3, 3)
    parser.close(4)
    assert [(c.path, c.status, c.response_body_size, c.outcome) for c in done] == [
        ("/3", NO_STATUS, UNMEASURED, Outcome.ABORTED)
    ]
    assert parser.given_up == 1


def headers_of(stream_id: int) -> bytes:
    preface = PREFACE if stream_id == 1 else b""
    return preface + headers(stream_id, request(b"/%d" % stream_id), end=True)


@settings(max_examples=60)
@given(st.integers(0, 20), st.sets(st.integers(2, 60), max_size=4), st.booleans())
def test_gaps_anywhere_make_nothing_up(seed: int, gaps: set[int], whole: bool) -> None:
    """Each call that is told is one of those that were made, and what is told of it is so."""
    talk = conversation(seed, 8, 4)
    done: list[Call] = []
    parser = Http2(done, Settings())
    for number, (side, data) in enumerate(talk.pieces):
        if number in gaps:
            kept = 0 if whole else len(data) // 2
            if kept:
                parser.feed(side, data[:kept], number, number)
            parser.skip(side, len(data) - kept, number, number)
        else:
            parser.feed(side, data, number, number)
    parser.close(10**6)
    by_piece = {item.opened_at: item for item in talk.expected}
    assert len({call.start_ns for call in done}) == len(done)
    for call in done:
        assert_true(call, by_piece[call.start_ns])
    touched = [number for number in gaps if number < len(talk.pieces)]
    if not touched:
        assert len(done) == len(talk.expected)


def test_plain_calls_are_not_taken_for_grpc() -> None:
    pieces = []
    for stream_id in range(21, 41, 2):
        pieces.append((Side.REQUEST, headers(stream_id, b"\x82\x86\x84\xbe\xbf", end=True)))
        pieces.append(
            (Side.RESPONSE, headers(stream_id, b"\x88\xbe") + body(stream_id, b"x", end=True))
        )
    assert {call.grpc_status for call in parse(pieces, is_joined=True)} == {NOT_GRPC}
