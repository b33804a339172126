from __future__ import annotations

import numpy as np
import pytest

from collector.abi import ConnectionEvent, ConnectionFlag, Direction, Role
from collector.connections import ConnectionTable
from collector.conversations import Conversations, Verdict
from collector.protocols.calls import NO_STATUS, UNMEASURED, Call, Outcome, Settings
from tests.collector.records import Talk, connection, connections, pieces

GET = b"GET /a?secret HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
LONG = 1_000_000
LONG_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LONG
SERVER, CLIENT, OLD, EXCLUDED = 1, 2, 3, 4


@pytest.fixture
def table() -> ConnectionTable:
    table = ConnectionTable()
    table.apply(
        connections(
            connection(SERVER, ConnectionEvent.ACCEPTED, role=Role.SERVER),
            connection(CLIENT, ConnectionEvent.CONNECTED, role=Role.CLIENT),
            connection(
                OLD,
                ConnectionEvent.ANNOUNCED,
                role=Role.CLIENT,
                flags=ConnectionFlag.PREEXISTING,
            ),
            connection(EXCLUDED, ConnectionEvent.ACCEPTED, role=Role.SERVER),
        )
    )
    slot = table.find(connections(connection(EXCLUDED, ConnectionEvent.CLOSED))["connection_id"])
    table.rows["excluded"][slot] = 1
    return table


@pytest.fixture
def conversations(table: ConnectionTable) -> Conversations:
    return Conversations(table, Settings())


def only_call(conversations: Conversations, connection_id: int = SERVER) -> Call:
    ((found, call),) = conversations.take_calls()
    assert found == connection_id
    assert conversations.take_calls() == []
    return call


@pytest.mark.parametrize("connection_id", [SERVER, CLIENT])
def test_the_role_says_who_asks(conversations: Conversations, connection_id: int) -> None:
    talk = Talk(connection_id)
    asked, answered = Direction.READ, Direction.WRITE
    if connection_id == CLIENT:
        asked, answered = answered, asked
    conversations.apply(pieces(talk.moved(asked, GET), talk.moved(answered, OK)))
    call = only_call(conversations, connection_id)
    assert (call.method, call.path, call.status, call.outcome) == ("GET", "/a", 200, 0)
    assert (call.start_ns, call.first_byte_ns, call.end_ns) == (1_990, 3_000, 3_000)
    assert call.response_body_size == 3
    assert conversations.gaps == 0
    assert conversations.take_verdicts() == []


def test_a_read_that_does_not_know_its_arrival_begins_at_its_end(
    conversations: Conversations,
) -> None:
    talk = Talk(SERVER)
    conversations.apply(pieces(talk.read(GET, start_ns=0, end_ns=77), talk.written(OK)))
    assert only_call(conversations).start_ns == 77


def test_pieces_of_many_drains_make_one_message(conversations: Conversations) -> None:
    talk = Talk(SERVER, first=0xFFFF_FFF0)  # sequence numbers begin again
    for byte in GET:
        conversations.apply(pieces(talk.read(bytes([byte]))))
    for byte in OK:
        conversations.apply(pieces(talk.written(bytes([byte]))))
    assert only_call(conversations).request_header_size == len(GET)
    assert conversations.gaps == 0


def test_what_a_body_lacks_is_not_missed(conversations: Conversations) -> None:
    talk = Talk(SERVER)
    conversations.apply(pieces(talk.read(GET), talk.written(LONG_HEAD + b"x" * 100, missing=900)))
    talk.passed(Direction.WRITE, LONG - 2_000)  # of which no record tells
    conversations.apply(pieces(talk.written(b"", missing=999), talk.written(b"x")))
    call = only_call(conversations)
    assert (call.response_body_size, call.outcome) == (LONG, Outcome.ANSWERED)
    assert conversations.gaps == 0


def test_what_is_missing_elsewhere_is_counted_and_later_calls_are_whole(
    conversations: Conversations,
) -> None:
    talk = Talk(SERVER)
    conversations.apply(pieces(talk.read(GET), talk.written(OK)))
    talk.passed(Direction.READ, len(GET))
    talk.passed(Direction.WRITE, len(OK))
    conversations.apply(pieces(talk.read(GET), talk.written(OK)))
    calls = [call for _, call in conversations.take_calls()]
    assert conversations.gaps == 2
    whole = [call for call in calls if call.request_header_size != UNMEASURED]
    assert [(call.path, call.status) for call in whole] == [("/a", 200), ("/a", 200)]


@pytest.mark.parametrize("connection_id", [SERVER, CLIENT])
@pytest.mark.parametrize("captured", [1_000, 90])
def test_a_lost_piece_costs_its_own_call_only(
    conversations: Conversations, connection_id: int, captured: int
) -> None:
    """Also where every response lacks its end, as with a crowded ring."""
    talk = Talk(connection_id)
    ask, answer = (
        (talk.read, talk.written) if connection_id == SERVER else (talk.written, talk.read)
    )
    lost = {(20, "answer"), (21, "answer"), (40, "ask"), (60, "ask"), (60, "answer")}
    for number in range(100):
        chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (100, b"x" * 100)
        told = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
        for kind, made in (
            ("ask", ask(b"GET /%d HTTP/1.1\r\n\r\n" % number)),
            ("answer", answer(told[:captured], missing=len(told[captured:]))),
        ):
            if (number, kind) not in lost:
                conversations.apply(pieces(made))
    conversations.end([connection_id], [10**9])
    for _ in range(2):
        conversations.apply(pieces())
    statuses = {call.path: call.status for _, call in conversations.take_calls()}
    unseen = {"/40", "/60"}  # their requests
    assert statuses == {
        f"/{number}": 0 if number in (20, 21) else 200
        for number in range(100)
        if f"/{number}" not in unseen
    }


@pytest.mark.parametrize("connection_id", [SERVER, CLIENT])
def test_what_is_told_to_be_lost_before_the_next_message_costs_nothing_else(
    conversations: Conversations, connection_id: int
) -> None:
    """From the first message on, when nothing yet says that the connection does not pipeline."""
    talk = Talk(connection_id)
    ask, answer, asks, answers = (
        (talk.read, talk.written, Direction.READ, Direction.WRITE)
        if connection_id == SERVER
        else (talk.written, talk.read, Direction.WRITE, Direction.READ)
    )
    lost = {(0, "answer"), (2, "ask"), (4, "answer"), (5, "answer"), (7, "ask"), (7, "answer")}
    lost |= {(8, "ask"), (9, "answer"), (10, "ask")}
    untold: dict[Direction, bytes] = {}
    for number in range(12):
        for kind, say, data, side in (
            ("ask", ask, b"GET /%d HTTP/1.1\r\n\r\n" % number, asks),
            ("answer", answer, OK, answers),
        ):
            made = say(data)
            if (number, kind) in lost:
                untold.pop(side, None)
                untold[side] = talk.told(side)
            else:
                conversations.apply(pieces(*untold.values(), made))
                untold.clear()
    conversations.end([connection_id], [10**9])
    for _ in range(2):
        conversations.apply(pieces())
    calls = {call.path: (call.status, call.outcome) for _, call in conversations.take_calls()}
    unknown = NO_STATUS, Outcome.ANSWERED
    assert calls == {
        f"/{number}": unknown if (number, "answer") in lost else (200, Outcome.ANSWERED)
        for number in range(12)
        if (number, "ask") not in lost
    }


def test_bytes_told_twice_are_taken_once(conversations: Conversations) -> None:
    talk = Talk(SERVER)
    again = talk.read(GET)
    conversations.apply(pieces(again, again, talk.written(OK)))
    assert only_call(conversations).path == "/a"
    assert conversations.gaps == 1


def test_the_kernel_is_told_what_need_not_be_captured(conversations: Conversations) -> None:
    talk = Talk(SERVER)
    head = LONG_HEAD + b"x" * 10_000
    conversations.apply(pieces(talk.read(GET), talk.written(head)))
    end = 1_000 + len(LONG_HEAD) + LONG
    assert conversations.take_verdicts() == [Verdict(SERVER, None, end)]
    conversations.apply(pieces(talk.written(b"x" * 8_000)))
    assert conversations.take_verdicts() == []  # it knows
    talk.passed(Direction.WRITE, LONG - 18_000)
    conversations.apply(pieces(talk.written(b"")))
    assert conversations.take_verdicts() == [Verdict(SERVER, None, None)]
    assert only_call(conversations).response_body_size == LONG


@pytest.mark.parametrize("fin", [0, 1])
def test_an_aborted_body_is_as_long_as_it_came(conversations: Conversations, fin: int) -> None:
    talk = Talk(SERVER)
    conversations.apply(pieces(talk.read(GET), talk.written(LONG_HEAD + b"x" * 10_000)))
    assert conversations.take_verdicts()
    talk.passed(Direction.WRITE, 500_000)
    last = talk.ended(Direction.WRITE)
    talk.passed(Direction.WRITE, fin)
    conversations.end([SERVER], [9_000])
    conversations.apply(pieces(last if not fin else talk.ended(Direction.WRITE)))
    conversations.apply(pieces())
    call = only_call(conversations)
    assert (call.outcome, call.status) == (Outcome.ABORTED, 200)
    assert call.response_body_size == 510_000 + fin


def test_a_fin_is_no_byte_of_a_whole_body(conversations: Conversations) -> None:
    talk = Talk(SERVER)
    conversations.apply(pieces(talk.read(GET), talk.written(LONG_HEAD + b"x" * 10_000)))
    talk.passed(Direction.WRITE, LONG - 10_000 + 1)
    conversations.end([SERVER], [9_000])
    conversations.apply(pieces(talk.ended(Direction.WRITE)))
    conversations.apply(pieces())
    call = only_call(conversations)
    assert (call.outcome, call.response_body_size) == (Outcome.ANSWERED, LONG)
    assert conversations.gaps == 0


def test_what_is_no_http_is_not_wanted(conversations: Conversations) -> None:
    talk = Talk(SERVER)
    conversations.apply(pieces(talk.read(b"EHLO example.com\r\n"), talk.read(GET)))
    assert conversations.take_verdicts() == [Verdict(SERVER, is_unwanted=True)]
    assert conversations.take_calls() == []


def test_excluded_connections_are_not_wanted(conversations: Conversations) -> None:
    talk = Talk(EXCLUDED)
    conversations.apply(pieces(talk.read(GET), talk.written(OK)))
    assert conversations.take_verdicts() == [Verdict(EXCLUDED, is_unwanted=True)]
    assert conversations.take_calls() == []
    assert (conversations.excluded, conversations.unknown) == (2, 0)


def test_pieces_of_unknown_connections_are_counted(conversations: Conversations) -> None:
    conversations.apply(pieces(Talk(99).read(GET), Talk(98).read(GET)))
    assert conversations.unknown == 2
    assert len(conversations) == 0


def test_the_guess_of_an_old_connections_role_gives_way_to_what_it_says(
    table: ConnectionTable,
) -> None:
    for first in (GET, OK):  # either shows it
        conversations = Conversations(table, Settings())
        slot = table.find(np.array([OLD], np.uint64))
        table.rows["role"][slot] = Role.CLIENT
        talk = Talk(OLD)
        begin = talk.read(GET) if first is GET else talk.written(OK)
        conversations.apply(pieces(begin, talk.written(OK), talk.read(GET), talk.written(OK)))
        assert {call.status for _, call in conversations.take_calls()} == {200}
        assert table.rows["role"][slot] == Role.SERVER


def test_a_close_waits_for_the_last_pieces(conversations: Conversations) -> None:
    talk = Talk(SERVER)
    conversations.apply(pieces(talk.read(GET)))
    conversations.end([SERVER, 12345], [9_000, 9_000])
    assert conversations.held_since_ns == 9_000
    conversations.apply(pieces())
    assert conversations.take_calls() == []
    conversations.apply(pieces(talk.written(OK)))
    assert only_call(conversations).outcome == Outcome.ANSWERED
    assert conversations.held_since_ns is None
    assert len(conversations) == 0


def test_what_was_not_answered_ends_with_its_connection(conversations: Conversations) -> None:
    talk = Talk(SERVER)
    conversations.apply(pieces(talk.read(GET)))
    conversations.end([SERVER], [9_000])
    for _ in range(2):
        conversations.apply(pieces())
    call = only_call(conversations)
    assert (call.outcome, call.end_ns, call.status) == (Outcome.UNANSWERED, 9_000, 0)


def test_the_end_of_the_collector_judges_nothing(conversations: Conversations) -> None:
    first, second = Talk(SERVER), Talk(CLIENT)
    conversations.apply(pieces(first.read(GET), second.written(GET)))
    conversations.end([SERVER], [9_000])
    conversations.finish()
    assert only_call(conversations).outcome == Outcome.UNANSWERED
    assert len(conversations) == 0


def test_the_oldest_gives_way(table: ConnectionTable) -> None:
    conversations = Conversations(table, Settings(), max_conversations=1)
    first, second = Talk(SERVER), Talk(CLIENT)
    conversations.apply(pieces(first.read(GET), second.written(GET), second.read(OK)))
    assert only_call(conversations, CLIENT).status == 200
    assert conversations.given_up == 1
    assert len(conversations) == 1


def test_bytes_that_are_missing_are_counted(conversations: Conversations) -> None:
    """Those that parsers needed: the content of known length that follows is none of them."""
    talk = Talk(SERVER)
    conversations.apply(pieces(talk.read(GET), talk.written(OK)))
    talk.passed(Direction.READ, len(GET))
    conversations.apply(pieces(talk.read(GET), talk.written(LONG_HEAD, missing=LONG + 7)))
    assert conversations.captured_bytes == 2 * len(GET) + len(OK) + len(LONG_HEAD)
    assert conversations.untold_bytes == len(GET)
    assert conversations.uncaptured_bytes == 7


def test_what_an_older_connection_may_be_misses_nothing_before_it_is(
    conversations: Conversations,
) -> None:
    """A broker's answer begins like a frame of HTTP/2 by chance, and comes from a file."""
    talk = Talk(OLD)
    frame_like = bytes([0, 8, 0xA4, 0, 0, 0, 0, 0x12, 0x34]) + b"\0" * 50
    conversations.apply(pieces(talk.read(frame_like), talk.read(b"", missing=566_291)))
    conversations.apply(pieces(talk.read(b"\xff" * 100, missing=5_000)))
    assert (conversations.uncaptured_bytes, conversations.gaps) == (0, 0)
    # What is HTTP misses what it lacks.
    conversations.apply(pieces(talk.written(GET), talk.read(OK), talk.written(GET, missing=7)))
    assert conversations.uncaptured_bytes == 7
    assert only_call(conversations, OLD).status == 200


def test_a_response_that_was_lost_to_the_end_is_not_known(conversations: Conversations) -> None:
    """The kernel tells how far a connection came that lost something; a FIN alone is nothing."""
    for seen in (OK, b""):
        talk = Talk(SERVER)
        said = [talk.read(GET), talk.written(OK), talk.read(GET)] if seen else [talk.read(GET)]
        conversations.apply(pieces(*said))
        talk.passed(Direction.WRITE, len(OK) + 1)
        conversations.end([SERVER], [9_000])
        conversations.apply(pieces(talk.ended(Direction.WRITE)))
        conversations.apply(pieces())
        call = conversations.take_calls()[-1][1]
        assert (call.outcome, call.status) == (Outcome.ANSWERED, NO_STATUS)
        assert call.response_body_size == UNMEASURED
