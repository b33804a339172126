"""A whole connection, whatever it speaks: finds out what, hands over, and follows switches.

A connection that was seen from its beginning is decided by the first bytes of either side. One that
was joined is looked at wherever a piece begins, until a piece says what it is; it is given up after
several changes of direction, each of which begins a message in any protocol that answers requests.
Memory: what a parser keeps, or the few bytes that do not tell yet.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from collector.protocols.calls import Call, Settings, Side
from collector.protocols.detect import Protocol, detect, proxy_header_size
from collector.protocols.frames import PREFACE
from collector.protocols.http1 import Http1
from collector.protocols.http1_state import Piece
from collector.protocols.http2 import Http2

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Conversation"]

_ENDLESS: Final = (1 << 31) - 1
_MAX_TURNS: Final = 16
_MAX_UNDECIDED_PIECES: Final = 65_536
_PIECES_PER_CHECK: Final = 32
"""A failed parser takes nothing, so that it is enough to look for one now and then."""
_MAX_KEPT_BYTES: Final = 16_384
_MAX_KEPT_PIECES: Final = 256


class Conversation:
    """A parser of one connection; see `collector.protocols.calls.Exchange`.

    Starts as `Protocol.UNDECIDED`, follows HTTP/2 by prior knowledge (RFC 9113 section 3.3) and by
    upgrade (RFC 7540 section 3.2), other upgrades (RFC 9110 section 7.8) and tunnels (section
    9.3.6), whose content is looked at as a new connection's.

    Attributes:
        protocol: What it speaks now.
    """

    def __init__(self, done: list[Call], settings: Settings, is_joined: bool = False) -> None:
        self.done = done
        self.protocol = Protocol.UNDECIDED
        self._settings = settings
        self._is_joined = is_joined
        self._http1: Http1 | None = None
        self._http2: Http2 | None = None
        # While undecided: pieces that may be the beginning, and per side their bytes
        self._pieces: list[Piece] = []
        self._first = [b"", b""]
        self._lost: dict[Side, Piece] = {}
        self._seen = 0
        # Changes of direction since something made sense
        self._turns = 0
        self._last_side: Side | None = None
        self._recoveries = 0

    def feed(self, side: Side, data: bytes, start_ns: int, end_ns: int) -> None:
        """Take the next bytes of a side."""
        http1 = self._http1
        if http1 is not None:
            http1.feed(side, data, start_ns, end_ns)
            if http1.switched or http1.lost:
                self._run(self._review(http1, Piece(side, data, 0, start_ns, end_ns)))
        elif self._http2 is not None:
            self._http2.feed(side, data, start_ns, end_ns)
            self._seen += 1
            if self._seen % _PIECES_PER_CHECK == 0 and self._http2.is_failed:
                self._become_other(end_ns)
        elif self.protocol is Protocol.UNDECIDED and data:
            self._run((Piece(side, data, 0, start_ns, end_ns),))

    def skip(self, side: Side, size: int, start_ns: int, end_ns: int) -> None:
        """Take note of bytes that were not captured."""
        if self.protocol is not Protocol.OTHER and size > 0:
            self._run((Piece(side, b"", size, start_ns, end_ns),))

    def unneeded(self, side: Side) -> int:
        """How many of the next bytes need not be captured; of other protocols any number."""
        parser = self._http1 or self._http2
        if parser is not None:
            return parser.unneeded(side)
        return _ENDLESS if self.protocol is Protocol.OTHER else 0

    @property
    def is_guess(self) -> bool:
        """Whether a connection that was joined has yet to say anything known.

        Other protocols have messages that begin like a frame of HTTP/2, so that nothing is missed
        where what follows could not be read: Kafka's are sent from files, for one.
        """
        return self.protocol is Protocol.UNDECIDED and self._is_joined

    def close(self, end_ns: int) -> None:
        """End everything that is open."""
        parser = self._http1 or self._http2
        if parser is not None:
            parser.close(end_ns)
        self._pieces.clear()
        self._first = [b"", b""]

    def _run(self, pieces: Iterable[Piece]) -> None:
        # What a piece leaves to be taken again comes before what follows it.
        pending = deque(pieces)
        while pending:
            pending.extendleft(reversed(self._take(pending.popleft())))

    def _take(self, piece: Piece) -> list[Piece]:
        side, data, size, start_ns, end_ns = piece
        parser = self._http1 or self._http2
        if parser is None:
            return self._examine(piece) if self.protocol is Protocol.UNDECIDED else []
        if data:
            parser.feed(side, data, start_ns, end_ns)
        elif size:
            parser.skip(side, size, start_ns, end_ns)
        if self._http1 is not None and (self._http1.switched or self._http1.lost):
            return self._review(self._http1, piece)
        if self._http2 is not None and self._http2.is_failed:
            self._become_other(end_ns)
        return []

    # While undecided

    def _examine(self, piece: Piece) -> list[Piece]:
        side = piece.side
        self._seen += 1
        if not piece.data:
            # What comes next is not the beginning any more.
            self._is_joined = True
            self._forget(side)
            self._lost[side] = piece
            return []
        first = self._first[side] + piece.data[:_MAX_KEPT_BYTES]
        found = detect(first, self._is_joined)
        if found in (None, Protocol.OTHER) and self._is_joined and self._first[side]:
            # What might have been a beginning was none, but this piece can be.
            alone = detect(piece.data, is_joined=True)
            if alone in (Protocol.HTTP1, Protocol.HTTP2):
                self._forget(side)
                found = alone
        self._pieces.append(piece)
        if found is None and len(first) <= _MAX_KEPT_BYTES and len(self._pieces) < _MAX_KEPT_PIECES:
            self._first[side] = first
            return []
        if found in (Protocol.HTTP1, Protocol.HTTP2):
            return self._decide(found, first)
        self._forget(side)
        self._note_turn(side)
        if not self._is_joined or self._turns > _MAX_TURNS or self._seen > _MAX_UNDECIDED_PIECES:
            self._become_other(piece.end_ns)
        return []

    def _forget(self, side: Side) -> None:
        self._first[side] = b""
        self._pieces = [piece for piece in self._pieces if piece.side != side]

    def _note_turn(self, side: Side) -> None:
        if side != self._last_side:
            self._last_side = side
            self._turns += 1

    def _decide(self, protocol: Protocol, first: bytes) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        side = pieces[-1].side
        if not self._is_joined:
            pieces = list(_without_prefix(pieces, side, proxy_header_size(first) or 0))
        self._first = [b"", b""]
        self._turns = 0
        self.protocol = protocol
        lost, self._lost = self._lost, {}
        if protocol is Protocol.HTTP2:
            self._http2 = Http2(self.done, self._settings, self._is_joined)
            return pieces
        self._http1 = Http1(self.done, self._settings, self._is_joined)
        self._recoveries = 0
        return sorted([*lost.values(), *pieces], key=lambda each: each.end_ns)

    # When a parser has something to say

    def _review(self, http1: Http1, piece: Piece) -> list[Piece]:
        if http1.switched:
            return self._switch(http1, piece.end_ns)
        side, data = piece.side, piece.data
        if side == Side.REQUEST and data.startswith(PREFACE):
            http1.close(piece.end_ns)
            self._http1 = None
            self._is_joined = False
            self._pieces = [piece]
            return self._decide(Protocol.HTTP2, b"")
        if http1.recoveries != self._recoveries:
            self._recoveries = http1.recoveries
            self._turns = 0
        if data:
            self._note_turn(side)
            if self._turns > _MAX_TURNS:
                self._become_other(piece.end_ns)
        return []

    def _switch(self, http1: Http1, end_ns: int) -> list[Piece]:
        self._http1 = None
        self._is_joined = False
        self._turns = self._seen = 0
        if http1.switched == "h2c":
            self.protocol = Protocol.HTTP2
            self._http2 = Http2(self.done, self._settings)
            if http1.upgraded is not None:
                self._http2.adopt(http1.upgraded, end_ns)
        else:
            self.protocol = Protocol.UNDECIDED
        return http1.leftover

    def _become_other(self, end_ns: int) -> None:
        self.close(end_ns)
        self._http1 = self._http2 = None
        self.protocol = Protocol.OTHER


def _without_prefix(pieces: list[Piece], side: Side, size: int) -> Iterable[Piece]:
    # The pieces without the first bytes of a side
    for piece in pieces:
        if piece.side == side and size:
            cut = min(size, len(piece.data))
            size -= cut
            if cut == len(piece.data):
                continue
            piece = piece._replace(data=piece.data[cut:])
        yield piece
