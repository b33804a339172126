from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.protocols.calls import Call, Settings, Side
from collector.protocols.http1 import Http1
from tests.collector.protocols.generate import Turn, conversations, cut
from tests.fuzz.http1 import SEEDS, check

CUTS = st.lists(st.integers(1, 40), max_size=5)


def read(turns: list[Turn]) -> tuple[Http1, list[Call]]:
    done: list[Call] = []
    parser = Http1(done, Settings())
    for side, data, start_ns, end_ns in turns:
        parser.feed(side, data, start_ns, end_ns)
    parser.close(turns[-1][2] + 90 if turns else 0)
    return parser, done


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(conversations(), CUTS)
def test_a_valid_conversation_gives_its_calls_however_it_is_cut(
    conversation: tuple[list[Turn], list[Call]], sizes: list[int]
) -> None:
    turns, calls = conversation
    parser, done = read(cut(turns, sizes))
    assert done == calls
    assert (parser.misfits, parser.lost) == (0, 0)


@settings(max_examples=150)
@given(st.binary(max_size=600))
def test_arbitrary_bytes(data: bytes) -> None:
    check(data)


@settings(max_examples=150)
@given(
    st.booleans(),
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.lists(st.sampled_from((*SEEDS, b"\r\n", b"GET ", b"x")) | st.binary(max_size=9)),
            st.integers(-40, 40),
        ),
        max_size=12,
    ),
)
def test_fragments_of_http(is_joined: bool, parts: list[tuple[int, list[bytes], int]]) -> None:
    data = bytes((is_joined,))
    for side, texts, gap in parts:
        if gap > 0:
            data += bytes((16 | side, gap))
            continue
        text = b"".join(texts)[:255]
        data += bytes((side, len(text))) + text
    check(data)


def test_a_line_that_comes_byte_by_byte_is_not_looked_at_again_and_again() -> None:
    done: list[Call] = []
    parser = Http1(done, Settings())
    text = b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    for at in range(len(text)):
        parser.feed(Side.REQUEST, text[at : at + 1], 1, 2)
    parser.close(3)
    assert [len(call.path) for call in done] == [60_001]
