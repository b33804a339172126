"""What a parser of HTTP/1 knows about its connection between two pieces."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from collector.protocols.bodies import Body
from collector.protocols.calls import Call, Outcome, Settings, Side
from collector.protocols.head_buffer import HeadBuffer
from collector.protocols.heads import HeadCache, shared_heads
from collector.protocols.pairing import Pairing

__all__ = ["Piece", "State"]  # and the constants, for the sides

IDLE, HEAD, BODY, LOST, WAITING, OVER = range(6)
"""What a side is in: between messages; a header section; content; bytes that make no sense; after
a request that may switch protocols, until its response; after a switch or the end."""

REQUESTS_LOST: Final = 1
RESPONSES_LOST: Final = 2
"""Bits of `State.lost`."""

EMPTY_LINE: Final = b"\r\n\r\n"
LINE_ENDS: Final = b"\r\n"
UNANSWERED: Final = Outcome.UNANSWERED
ANSWERED: Final = Outcome.ANSWERED

MAX_KEPT_BYTES: Final = 65_536
MAX_KEPT_PIECES: Final = 256
"""Of what one side said too early."""


class Piece(NamedTuple):
    """What `feed` or, without data, `skip` was told."""

    side: Side
    data: bytes
    size: int
    start_ns: int
    end_ns: int


class State:
    """See `collector.protocols.http1.Http1`, which also names what is public of it."""

    __slots__ = (
        "_current",
        "_early",
        "_heads",
        "_held",
        "_held_size",
        "_is_chunked",
        "_is_hasty",
        "_is_orphan",
        "_known_requests",
        "_known_responses",
        "_max_header",
        "_max_open",
        "_no_holding",
        "_open",
        "_pairs",
        "_reading",
        "_request_body",
        "_request_buffer",
        "_request_state",
        "_response_body",
        "_response_buffer",
        "_response_end_ns",
        "_response_state",
        "_switches",
        "_waiting",
        "_waiting_size",
        "done",
        "leftover",
        "lost",
        "misfits",
        "recoveries",
        "switched",
        "upgraded",
    )

    def __init__(
        self,
        done: list[Call],
        settings: Settings,
        is_joined: bool = False,
        heads: HeadCache | None = None,
    ) -> None:
        self.done = done
        self.switched: Literal["", "h2c", "opaque"] = ""
        self.upgraded: Call | None = None
        self.leftover: list[Piece] = []
        self.lost = REQUESTS_LOST | RESPONSES_LOST if is_joined else 0
        self.misfits = 0
        self.recoveries = 0
        self._heads = shared_heads(settings.keep_query) if heads is None else heads
        self._known_requests = self._heads.requests
        self._known_responses = self._heads.responses
        self._max_header = settings.max_header_bytes
        self._max_open = settings.max_open_calls
        self._pairs = Pairing(done, settings.max_open_calls)
        self._open = self._pairs.open
        self._request_state = self._response_state = LOST if is_joined else IDLE
        self._request_buffer = HeadBuffer(settings.max_header_bytes)
        self._response_buffer = HeadBuffer(settings.max_header_bytes)
        self._request_body = Body()
        self._response_body = Body()
        self._reading: Call | None = None  # its content is under way
        self._switches = False  # so may the one that is read
        self._early: Call | None = None  # answered before its request was over
        self._current: Call | None = None  # its response is under way
        self._is_chunked = False  # so is that response
        self._is_orphan = False  # so is the response under way: of a request that was not seen
        self._response_end_ns = 0  # of its latest piece
        self._waiting: list[Piece] = []  # of requests, for the response that may switch
        self._waiting_size = 0
        self._is_hasty = False  # nothing waits
        self._held: list[Piece] = []  # of responses, for their requests
        self._held_size = 0
        self._no_holding = False

    def _stop(self) -> None:
        self._request_state = self._response_state = OVER
        self.lost = 0
        self._held = []
        self._waiting = []

    def _find_side(self, lost: int) -> None:
        if self.lost & lost:
            self.lost &= ~lost
            self.recoveries += 1
