"""HTTP/1.0 and HTTP/1.1: calls from the bytes of a connection (RFC 9112).

Sizes: a header section counts from the first byte of its first line to the end of its empty line;
empty lines before a request line are not part of it. A trailer section that has fields counts its
lines and the empty line after them; without fields that line is chunk framing. Interim responses
count as header bytes of the response they precede.

What is found does not depend on how the bytes are cut, as long as they are HTTP/1 (`Http1.misfits`
is 0). Where they are not, or were not captured, a side is lost until one of its pieces begins with
a request line or status line; see `collector.protocols.pairing` for what that means for its
counterpart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from collector.protocols.http1_requests import Requests
from collector.protocols.http1_state import (
    BODY,
    OVER,
    RESPONSES_LOST,
    WAITING,
    Piece,
)

if TYPE_CHECKING:
    from collector.protocols.calls import Side

__all__ = ["Http1"]


class Http1(Requests):
    """A parser of one HTTP/1 connection (RFC 9112); see `collector.protocols.calls.Exchange`.

    Attributes:
        switched: ``h2c`` or ``opaque`` once the connection speaks something else (RFC 9110 sections
            7.8 and 9.3.6); from then on the parser does nothing.
        upgraded: The call that the new protocol answers, of ``h2c`` (RFC 7540 section 3.2).
        leftover: Pieces that came with the switch and belong to what follows.
        lost: Which sides make no sense now: 1 the requests', 2 the responses', 3 both.
        misfits: How often bytes were not what the ones before demand, although none were missing.
        recoveries: How often a lost side made sense again.
    """

    __slots__ = ()

    def feed(self, side: Side, data: bytes, start_ns: int, end_ns: int) -> None:
        """Take the next bytes of a side."""
        if side:
            self._feed_response(data, start_ns, end_ns)
            if self._request_state == WAITING:
                self._release_waiting()
        else:
            self._feed_request(data, start_ns, end_ns)

    def skip(self, side: Side, size: int, start_ns: int, end_ns: int) -> None:
        """Take note of bytes that were not captured.

        In content of known length and in a chunk they are counted. Elsewhere the message is
        completed with what is sure, and the side is lost until a message begins with a piece.
        """
        if size <= 0:
            return
        piece = Piece(side, b"", size, start_ns, end_ns)
        if side:
            self._skip_response(piece)
            if self._request_state == WAITING:
                if self.lost & RESPONSES_LOST:
                    self._replay_waiting()  # the response that it waited for may be lost
                self._release_waiting()
        else:
            self._skip_request(piece)

    def unneeded(self, side: Side) -> int:
        """How many of the next bytes are content of known length, or anything until the close."""
        if side:
            # Whether an unseen request's response has content at all is not known (HEAD).
            known = self._response_state == BODY and not self._is_orphan
            return self._response_body.unneeded if known else 0
        if self._early and not self._request_body.size:
            return 0  # the content may be withheld
        return self._request_body.unneeded if self._request_state == BODY else 0

    def close(self, end_ns: int) -> None:
        """End everything that is open."""
        if self._request_state == OVER:
            return
        if self._request_state == WAITING:
            self._is_hasty = True
            self._replay_waiting()
        if self._reading is not None:
            self._reading.request_body_size = self._request_body.size
            self._reading.request_header_size += self._request_body.trailer_size
            self._reading = None
        if self._early is not None:
            self.done.append(self._early)
            self._early = None
        self._close_response(end_ns)
        self._pairs.close(end_ns)
        self._stop()
