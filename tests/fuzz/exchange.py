"""Arbitrary bytes and gaps for a whole connection, whatever it turns out to speak."""

from __future__ import annotations

from collector.protocols.calls import Call, Settings, Side
from collector.protocols.exchange import Conversation
from collector.protocols.frames import PREFACE
from tests.fuzz import http1

SETTINGS = Settings(max_header_bytes=512, max_open_calls=8)
FRAMES = PREFACE + bytes.fromhex(
    "000000040000000000 000006010500000001 82868441 0161".replace(" ", "")
)


def seeds() -> list[bytes]:
    """Inputs to begin with."""
    return [*http1.seeds(), bytes((0, 0, len(FRAMES))) + FRAMES, b"\1\0\x11" + FRAMES[24:]]


def check(data: bytes) -> None:
    """Nothing raises, and what is undecided stays small."""
    done: list[Call] = []
    parser = Conversation(done, SETTINGS, is_joined=bool(data[:1] and data[0] & 1))
    now = 0
    for side, text, gap in http1.steps(data):
        now += 10
        if gap:
            parser.skip(Side(side), gap, now, now + 5)
        else:
            parser.feed(Side(side), text, now, now + 5)
        assert parser.unneeded(Side(side)) >= 0
        assert sum(len(piece.data) for piece in parser._pieces) < 1 << 18
    parser.close(now + 10)
    count = len(done)
    parser.close(now + 10)
    assert len(done) == count
    for call in done:
        assert call.end_ns >= call.start_ns
