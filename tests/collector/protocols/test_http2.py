from __future__ import annotations

import itertools

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
    Trace,
    TraceProvider,
    Version,
)
from collector.protocols.frames import PREFACE
from collector.protocols.http2 import Http2
from tests.collector.protocols.conversation import conversation
from tests.collector.protocols.wire import (
    GET,
    STATUS_200,
    body,
    cut,
    exchange,
    frame,
    goaway,
    headers,
    literal,
    parse,
    request,
    reset,
    timeless,
)

SIZES = st.lists(st.integers(1, 40) | st.integers(1, 20_000), min_size=1, max_size=8)
GRPC = literal(b"content-type", b"application/grpc+proto")
GRPC_STATUS_7 = literal(b"grpc-status", b"7")


def one(client: bytes, server: bytes, **options: object) -> Call:
    (call,) = parse(exchange(client, server), **options)  # type: ignore[arg-type]
    return call


@pytest.mark.parametrize("seed", range(20))
def test_conversation_of_h2(seed: int) -> None:
    talk = conversation(seed, 25)
    requests, responses = talk.header_sizes()
    found = [
        (
            *(call.method, call.path, call.host, call.status, call.grpc_status, call.outcome),
            *(call.request_header_size, call.request_body_size),
            *(call.response_header_size, call.response_body_size),
        )
        for call in parse(talk.pieces)
    ]
    expected = [
        (
            *(item.method, item.path, item.host, item.status, item.grpc_status, item.outcome),
            *(requests[item.stream_id], item.request_body),
            *(responses[item.stream_id], item.response_body),
        )
        for item in talk.expected
    ]
    assert sorted(found) == sorted(expected)


def test_hundred_streams_at_once() -> None:
    talk = conversation(1, 150)
    assert len(parse(talk.pieces)) == len(talk.expected)


@settings(max_examples=50)
@given(st.integers(0, 20), SIZES)
def test_result_does_not_depend_on_cuts(seed: int, sizes: list[int]) -> None:
    pieces = conversation(seed, 5).pieces
    assert timeless(parse(cut(pieces, sizes))) == timeless(parse(pieces))


def test_every_single_byte_apart() -> None:
    pieces = conversation(3, 3).pieces
    assert timeless(parse(cut(pieces, [1]))) == timeless(parse(pieces))


@given(st.lists(st.tuples(st.sampled_from(Side), st.binary(max_size=60))), SIZES)
def test_any_bytes_cut_anywhere(pieces: list[tuple[Side, bytes]], sizes: list[int]) -> None:
    begun = [(Side.REQUEST, PREFACE), *pieces]
    assert timeless(parse(cut(begun, sizes))) == timeless(parse(begun))


@st.composite
def damaged(draw: st.DrawFn) -> list[tuple[Side, bytes]]:
    """A conversation with octets changed, which gets further than noise."""
    pieces = conversation(draw(st.integers(0, 20)), 4).pieces
    result = []
    for side, data in pieces:
        changed = bytearray(data)
        if draw(st.integers(0, 3)) == 0:
            for _ in range(draw(st.integers(1, 3))):
                changed[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        result.append((side, bytes(changed)))
    return result


@settings(max_examples=40)
@given(damaged(), SIZES)
def test_damaged_conversations_cut_anywhere(
    pieces: list[tuple[Side, bytes]], sizes: list[int]
) -> None:
    assert timeless(parse(cut(pieces, sizes))) == timeless(parse(pieces))


@settings(max_examples=40)
@given(damaged(), st.data(), st.booleans())
def test_damage_and_gaps_neither_raise_nor_grow(
    pieces: list[tuple[Side, bytes]], data: st.DataObject, is_joined: bool
) -> None:
    limits = Settings(max_open_calls=3, max_header_bytes=500)
    done: list[Call] = []
    parser = Http2(done, limits, is_joined)
    for number, (side, chunk) in enumerate(pieces):
        if data.draw(st.integers(0, 5)) == 0:
            parser.skip(side, len(chunk), number, number)
        else:
            parser.feed(side, chunk, number, number)
        assert parser.unneeded(side) >= 0
        assert len(parser._streams) <= 3
        for reader in parser._readers:
            assert len(reader._pending) <= 500
            assert len(reader._block or b"") <= 500
    parser.close(10**6)
    assert not parser._streams


def test_times_are_those_of_the_pieces() -> None:
    client = headers(1, request()) + body(1, b"abc", end=True)
    server = headers(1, STATUS_200) + body(1, b"hello", end=True)
    pieces = [(Side.REQUEST, PREFACE), (Side.REQUEST, client[:5]), (Side.REQUEST, client[5:])]
    pieces += [(Side.RESPONSE, server[:3]), (Side.RESPONSE, server[3:-1])]
    pieces += [(Side.RESPONSE, server[-1:])]
    (call,) = parse(pieces)
    assert (call.start_ns, call.first_byte_ns, call.end_ns) == (20, 45, 65)


def test_call_in_full() -> None:
    trace = literal(b"traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01")
    client = headers(1, request(b"/a?b=c", trace)) + body(1, b"abc") + body(1, b"d", end=True)
    server = headers(1, STATUS_200) + body(1, b"hello", end=True)
    call = one(client, server)
    assert call == Call(
        Version.HTTP_2,
        10,
        "GET",
        "/a",
        "a",
        200,
        NOT_GRPC,
        Outcome.ANSWERED,
        request_header_size=len(request(b"/a?b=c", trace)),
        request_body_size=4,
        response_header_size=1,
        response_body_size=5,
        first_byte_ns=25,
        end_ns=25,
        trace=Trace(TraceProvider.W3C, "1" * 32, "2" * 16),
    )


def test_query_is_kept_on_demand() -> None:
    client = headers(1, request(b"/a?b=c"), end=True)
    server = headers(1, STATUS_200, end=True)
    assert one(client, server, settings=Settings(keep_query=True)).path == "/a?b=c"


def test_padding_and_priority_are_no_part_of_sizes() -> None:
    block = request()
    padded = frame(1, 1, b"\x03" + b"\0\0\0\0\x10" + block + bytes(3), 0x04 | 0x08 | 0x20)
    data = frame(0, 1, b"\x05hello" + bytes(5), 0x08 | 0x01)
    call = one(padded + data, headers(1, STATUS_200) + data)
    assert (call.request_header_size, call.request_body_size) == (len(block), 5)
    assert (call.response_header_size, call.response_body_size) == (1, 5)


def test_block_in_continuation_frames() -> None:
    block = request(b"/long")
    client = frame(1, 1, block[:3], 0x01) + frame(9, 1, block[3:6]) + frame(9, 1, block[6:], 0x04)
    call = one(client, headers(1, STATUS_200, end=True))
    assert (call.path, call.request_header_size) == ("/long", len(block))


def test_interim_responses_count_as_header_only() -> None:
    interim = literal(b":status", b"103")
    server = headers(1, interim) + headers(1, STATUS_200) + body(1, b"x", end=True)
    call = one(headers(1, request(), end=True), server)
    assert (call.status, call.response_header_size) == (200, len(interim) + 1)


def test_frames_of_unknown_types_are_passed_over() -> None:
    odd = frame(0xEE, 1, b"whatever", 0xFF) + frame(6, 0, bytes(8)) + frame(8, 1, bytes(4))
    client = odd + headers(1, request(), end=True)
    call = one(client, odd + headers(1, STATUS_200) + odd + body(1, b"", end=True))
    assert call.outcome is Outcome.ANSWERED


@pytest.mark.parametrize(
    ("server", "outcome", "status"),
    [
        (b"", Outcome.UNANSWERED, NO_STATUS),
        (headers(1, literal(b":status", b"100")), Outcome.UNANSWERED, NO_STATUS),
        (headers(1, STATUS_200) + body(1, b"half"), Outcome.ABORTED, 200),
        (headers(1, STATUS_200) + reset(1), Outcome.ABORTED, 200),
        (reset(1, 7), Outcome.UNANSWERED, NO_STATUS),
        (headers(1, STATUS_200, end=True) + reset(1, 0), Outcome.ANSWERED, 200),
        (headers(1, STATUS_200) + body(1, b"", end=True) + reset(1, 2), Outcome.ANSWERED, 200),
        (goaway(0), Outcome.UNANSWERED, NO_STATUS),
        (goaway(1) + headers(1, STATUS_200, end=True), Outcome.ANSWERED, 200),
        (goaway(2**31 - 1) + headers(1, STATUS_200, end=True), Outcome.ANSWERED, 200),
    ],
)
def test_outcomes(server: bytes, outcome: Outcome, status: int) -> None:
    call = one(headers(1, request(), end=True), server)
    assert (call.outcome, call.status) == (outcome, status)
    assert (call.first_byte_ns == UNMEASURED) == (status == NO_STATUS)


def test_goaway_ends_at_once_what_was_refused() -> None:
    client = headers(1, request(), end=True) + headers(3, request(b"/late"), end=True)
    (call,) = parse(exchange(client, goaway(1)), closes=False)
    assert (call.path, call.outcome, call.end_ns) == ("/late", Outcome.UNANSWERED, 25)


def test_late_request_bytes_are_not_counted() -> None:
    pieces = exchange(headers(1, request()) + body(1, b"ab"), headers(1, b"\x8d", end=True))
    pieces.append((Side.REQUEST, body(1, b"more", end=True) + reset(1)))
    (call,) = parse(pieces)
    assert (call.status, call.request_body_size, call.outcome) == (404, 2, Outcome.ANSWERED)


@pytest.mark.parametrize(
    ("server", "grpc_status", "outcome"),
    [
        (headers(1, STATUS_200 + GRPC) + headers(1, GRPC_STATUS_7, end=True), 7, 0),
        (headers(1, STATUS_200 + GRPC + GRPC_STATUS_7, end=True), 7, 0),
        (headers(1, STATUS_200 + GRPC) + body(1, b"x", end=True), UNMEASURED, 0),
        (headers(1, b"\x8e", end=True), UNMEASURED, 0),
        (headers(1, STATUS_200 + GRPC) + reset(1), UNMEASURED, 1),
        (reset(1), UNMEASURED, 2),
    ],
)
def test_grpc(server: bytes, grpc_status: int, outcome: int) -> None:
    call = one(headers(1, request(b"/s/m", GRPC)) + body(1, b"x", end=True), server)
    assert (call.grpc_status, call.outcome) == (grpc_status, outcome)


def test_grpc_status_of_another_content_is_none() -> None:
    text = literal(b"content-type", b"text/plain")
    server = headers(1, STATUS_200 + text) + headers(1, GRPC_STATUS_7, end=True)
    assert one(headers(1, request(), end=True), server).grpc_status == NOT_GRPC


def test_pushed_request_is_a_call() -> None:
    block = request(b"/style.css")
    server = frame(5, 1, b"\0\0\0\x02" + block, 4)
    server += headers(2, STATUS_200) + headers(1, STATUS_200, end=True) + body(2, b"css", end=True)
    calls = parse(exchange(headers(1, request(), end=True), server))
    assert [(c.path, c.status, c.response_body_size) for c in calls] == [
        *[("/p", 200, 0), ("/style.css", 200, 3)]
    ]


def test_extended_connect() -> None:
    block = literal(b":method", b"CONNECT") + literal(b":protocol", b"websocket") + b"\x86"
    block += literal(b":path", b"/chat") + literal(b":authority", b"a")
    client = headers(1, block) + body(1, b"frames", end=True)
    call = one(client, headers(1, STATUS_200) + body(1, b"more", end=True))
    assert (call.method, call.path, call.host) == ("CONNECT", "/chat", "a")
    assert (call.request_body_size, call.response_body_size) == (6, 4)


def test_connect_has_the_authority_for_path() -> None:
    block = literal(b":method", b"CONNECT") + literal(b":authority", b"db:5432")
    call = one(headers(1, block), headers(1, STATUS_200))
    assert (call.path, call.outcome) == ("db:5432", Outcome.ABORTED)


def test_upgraded_request_is_stream_1() -> None:
    done: list[Call] = []
    parser = Http2(done, Settings())
    first = Call(Version.HTTP_1_1, 3, "POST", "/up", "a", request_header_size=90)
    first.request_body_size = 12
    parser.adopt(first, 9)
    parser.feed(Side.RESPONSE, frame(4, 0) + headers(1, STATUS_200), 10, 11)
    parser.feed(Side.REQUEST, PREFACE + frame(4, 0), 12, 13)
    parser.feed(Side.RESPONSE, body(1, b"hi", end=True), 14, 15)
    parser.feed(Side.REQUEST, headers(3, request(b"/next"), end=True), 16, 17)
    parser.feed(Side.RESPONSE, headers(3, STATUS_200, end=True), 18, 19)
    assert [(c.version, c.path, c.start_ns, c.first_byte_ns, c.end_ns) for c in done] == [
        (20, "/up", 3, 11, 15),
        (20, "/next", 16, 19, 19),
    ]
    assert (done[0].request_body_size, done[0].response_body_size) == (12, 2)


def test_too_long_a_header_leaves_the_call_without_names() -> None:
    limits = Settings(max_header_bytes=100)
    long = request(b"/long", literal(b"x", b"y" * 100))
    client = frame(1, 1, b"\x02" + long + bytes(2), 0x0C | 0x01)
    client += frame(1, 3, long[:60], 0x01) + frame(9, 3, long[60:], 0x04)
    client += headers(5, request(b"/short"), end=True)
    server = b"".join(headers(number, STATUS_200, end=True) for number in (1, 3, 5))
    calls = parse(exchange(client, server), settings=limits)
    assert [(c.path, c.request_header_size) for c in calls] == [
        ("", len(long)),
        ("", len(long)),
        ("/short", len(request(b"/short"))),
    ]


def test_too_many_open_calls_give_up_the_oldest() -> None:
    done: list[Call] = []
    parser = Http2(done, Settings(max_open_calls=2))
    client = b"".join(headers(n, request(b"/%d" % n), end=True) for n in (1, 3, 5))
    parser.feed(Side.REQUEST, PREFACE + client, 1, 1)
    parser.close(2)
    parser.close(3)
    assert ([call.path for call in done], parser.given_up) == (["/3", "/5"], 1)


@pytest.mark.parametrize(
    "wrong",
    [
        frame(0, 0, b"x"),  # DATA without a stream
        frame(6, 0, b"short"),
        frame(4, 0, b"12345"),
        frame(1, 3, b"", 0) + frame(0, 3, b"x"),  # something inside a field block
        frame(9, 3, b"\x82", 4),
        frame(0, 3, b"\x09x", 8),  # more padding than frame
        frame(0, 3, b"", 8),
        frame(1, 3, b"\x01\x82", 0x2C),
        (20_000).to_bytes(3, "big") + b"\0\0\0\0\0\3" + bytes(20_000),
    ],
)
def test_broken_framing_is_the_end(wrong: bytes) -> None:
    done: list[Call] = []
    parser = Http2(done, Settings())
    parser.feed(Side.REQUEST, PREFACE + headers(1, request(), end=True) + wrong, 1, 1)
    parser.feed(Side.REQUEST, headers(5, request(), end=True), 2, 2)
    parser.feed(Side.RESPONSE, headers(1, STATUS_200, end=True), 3, 3)
    parser.close(4)
    assert parser.is_failed
    assert [call.status for call in done] == [200]


def test_other_protocols_are_refused() -> None:
    done: list[Call] = []
    parser = Http2(done, Settings())
    parser.feed(Side.REQUEST, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r", 1, 1)
    assert parser.is_failed


def test_frames_as_large_as_announced() -> None:
    larger = frame(4, 0, b"\0\x05\0\0\x4e\x20")  # 20,000
    pieces = [(Side.REQUEST, PREFACE + larger + headers(1, request(), end=True))]
    pieces.append((Side.RESPONSE, headers(1, STATUS_200) + body(1, bytes(20_000), end=True)))
    assert parse(pieces)[0].response_body_size == 20_000


def test_malformed_header_hides_what_the_table_holds() -> None:
    client = headers(1, GET, end=True) + headers(3, b"\x40\x01x", end=True)
    client += headers(5, b"\x82\x86\x84\xbe", end=True)
    calls = parse(exchange(client, b""))
    assert [(c.path, c.host) for c in calls] == [("/", "a"), ("", ""), ("/", "")]


def test_repeated_blocks_mean_the_same_until_the_table_changes() -> None:
    repeated = b"\x82\x86\x84\xbe"
    blocks = [GET, repeated, repeated, b"\x82\x86\x84\x41\x01b", repeated, repeated]
    client = b"".join(headers(2 * n + 1, block, end=True) for n, block in enumerate(blocks))
    assert "".join(call.host for call in parse(exchange(client, b""))) == "aaabbb"


@pytest.mark.parametrize("step", [1, 7, 1_000])
def test_body_is_passed_over_without_its_bytes(step: int) -> None:
    done: list[Call] = []
    parser = Http2(done, Settings())
    parser.feed(Side.REQUEST, PREFACE + headers(1, request()), 1, 1)
    upload = body(1, bytes(1_000)) + body(1, bytes(500), end=True)
    position = 0
    skipped = 0
    while position < len(upload):
        size = min(parser.unneeded(Side.REQUEST), step)
        if size:
            parser.skip(Side.REQUEST, size, 2, 2)
            skipped += size
        else:
            size = 3
            parser.feed(Side.REQUEST, upload[position : position + size], 2, 2)
        position += size
    parser.feed(Side.RESPONSE, headers(1, STATUS_200, end=True), 3, 3)
    assert skipped >= 1_490
    assert (done[0].request_body_size, done[0].outcome) == (1_500, Outcome.ANSWERED)


def test_nothing_counts_after_the_close() -> None:
    done: list[Call] = []
    parser = Http2(done, Settings())
    parser.close(1)
    for side, data in itertools.chain(exchange(headers(1, request(), end=True), b"")):
        parser.feed(side, data, 2, 2)
    parser.skip(Side.REQUEST, 5, 3, 3)
    parser.close(4)
    assert (done, parser.unneeded(Side.REQUEST)) == ([], 0)
