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

from typing import Final, Literal, NamedTuple

from collector.protocols.bodies import CHUNKED, UNKNOWN, Body
from collector.protocols.calls import (
    NO_STATUS,
    NOT_GRPC,
    UNMEASURED,
    Call,
    Outcome,
    Settings,
    Side,
)
from collector.protocols.heads import (
    HeadBuffer,
    HeadCache,
    RequestHead,
    ResponseHead,
    begins_known_request,
    looks_like_request,
    looks_like_response,
    parse_request_head,
    parse_response_head,
    shared_heads,
)
from collector.protocols.pairing import Pairing

__all__ = ["Http1", "Piece"]

_IDLE, _HEAD, _BODY, _LOST, _WAITING, _OVER = range(6)
"""What a side is in: between messages; a header section; content; bytes that make no sense; after
a request that may switch protocols, until its response; after a switch or the end."""

_UNANSWERED: Final = Outcome.UNANSWERED
_ANSWERED: Final = Outcome.ANSWERED
_EMPTY_LINE: Final = b"\r\n\r\n"
_LINE_ENDS: Final = b"\r\n"
_BARE: Final = frozenset({"HEAD", "CONNECT"})
_LAST_CHUNK: Final = b"0\r\n\r\n"
_REQUESTS_LOST: Final = 1
_RESPONSES_LOST: Final = 2
_MAX_KEPT_BYTES: Final = 65_536
_MAX_KEPT_PIECES: Final = 256


class Piece(NamedTuple):
    """What `feed` or, without data, `skip` was told."""

    side: Side
    data: bytes
    size: int
    start_ns: int
    end_ns: int


class Http1:
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
        self.lost = _REQUESTS_LOST | _RESPONSES_LOST if is_joined else 0
        self.misfits = 0
        self.recoveries = 0
        self._heads = heads or shared_heads(settings.keep_query)
        self._known_requests = self._heads.requests
        self._known_responses = self._heads.responses
        self._max_header = settings.max_header_bytes
        self._max_open = settings.max_open_calls
        self._pairs = Pairing(done, settings.max_open_calls)
        self._open = self._pairs.open
        self._request_state = self._response_state = _LOST if is_joined else _IDLE
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

    def feed(self, side: Side, data: bytes, start_ns: int, end_ns: int) -> None:
        """Take the next bytes of a side."""
        if side:
            self._feed_response(data, start_ns, end_ns)
            if self._request_state == _WAITING:
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
            if self._request_state == _WAITING:
                self._release_waiting()
        else:
            self._skip_request(piece)

    def unneeded(self, side: Side) -> int:
        """How many of the next bytes are content of known length, or anything until the close."""
        if side:
            # Whether an unseen request's response has content at all is not known (HEAD).
            known = self._response_state == _BODY and not self._is_orphan
            return self._response_body.unneeded if known else 0
        return self._request_body.unneeded if self._request_state == _BODY else 0

    def close(self, end_ns: int) -> None:
        """End everything that is open."""
        if self._request_state == _OVER:
            return
        if self._request_state == _WAITING:
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

    def _stop(self) -> None:
        self._request_state = self._response_state = _OVER
        self.lost = 0
        self._held = []
        self._waiting = []

    def _find_side(self, lost: int) -> None:
        if self.lost & lost:
            self.lost &= ~lost
            self.recoveries += 1

    # Requests

    def _feed_request(self, data: bytes, start_ns: int, end_ns: int) -> None:
        position = 0
        size = len(data)
        pairs = self._pairs
        opened = self._open
        while position < size:
            if self._request_state:
                position = self._continue_request(data, position, start_ns, end_ns)
                continue
            end = data.find(_EMPTY_LINE, position) + 4
            raw = data[position:end]
            head = self._known_requests.get(raw) or (self._heads.request(raw) if end > 3 else None)
            if head is None or end - position > self._max_header:
                # Not one whole header section, or none at all.
                while position < size and data[position] in _LINE_ENDS:
                    position += 1
                if position < size:
                    self._request_state = _HEAD
                    self._request_buffer.begin(start_ns, end_ns)
                continue
            after = end + head.framing
            if (
                head.is_simple
                and after <= size
                and pairs.is_settled
                and not self._held
                and self._current is None
                and len(opened) < self._max_open
            ):
                if opened:
                    pairs.pipelines = True
                opened.append(
                    Call(
                        head.version,
                        start_ns,
                        head.method,
                        head.path,
                        head.host,
                        NO_STATUS,
                        NOT_GRPC,
                        _UNANSWERED,
                        end - position,
                        head.framing,
                        0,
                        0,
                        UNMEASURED,
                        0,
                        head.trace,
                    )
                )
                position = after
            else:
                call = _call(head, start_ns, end - position)
                position = self._begin_request(call, head, data, end, start_ns, end_ns)

    def _continue_request(self, data: bytes, position: int, start_ns: int, end_ns: int) -> int:
        state = self._request_state
        if state == _BODY:
            if self._early and not position and self._is_withheld(data):
                self.misfits += 1
                self._end_request()
                return position
            return self._read_request(data, position, end_ns)
        if state == _HEAD:
            return self._read_request_head(data, position, start_ns, end_ns)
        if state == _LOST and not position:
            self._request_state = _HEAD
            self._request_buffer.begin(start_ns, end_ns)
            return self._read_request_head(data, position, start_ns, end_ns)
        if state == _WAITING:
            self._wait(Piece(Side.REQUEST, data[position:], 0, start_ns, end_ns))
        return len(data)

    def _is_withheld(self, data: bytes) -> bool:
        # A final response instead of 100 (Continue) keeps the client from sending its content, and
        # some then send the next request in its place (RFC 9110 section 10.1.1).
        body = self._request_body
        return body.size == 0 and body.is_length and looks_like_request(data) is True

    def _read_request_head(self, data: bytes, position: int, start_ns: int, end_ns: int) -> int:
        buffer = self._request_buffer
        if buffer.size and self.lost & _REQUESTS_LOST and begins_known_request(data):
            # What could have become a request line did not; this piece does.
            buffer.begin(start_ns, end_ns)
        position = buffer.take(data, position)
        begun = buffer.begins()
        if begun is not None:
            looks = looks_like_request(begun)
            if looks:
                buffer.is_accepted()
                self._find_side(_REQUESTS_LOST)
            elif looks is False:
                self._misfit_request(end_ns)
                return len(data)
        if not buffer.raw:
            return position
        raw = buffer.raw
        head = (
            self._known_requests.get(raw)
            or self._heads.request(raw)
            or parse_request_head(raw, self._heads.keep_query)
        )
        if head is None:
            self._misfit_request(end_ns)
            return len(data)
        call = _call(head, buffer.start_ns, buffer.size)
        return self._begin_request(call, head, data, position, start_ns, end_ns)

    def _begin_request(
        self,
        call: Call,
        head: RequestHead,
        data: bytes,
        position: int,
        start_ns: int,
        end_ns: int,
    ) -> int:
        self._reading = call
        self._switches = head.switches
        self._request_body.begin(head.framing)
        self._request_state = _BODY
        self._add(call)
        if self.switched:
            if position < len(data):
                self.leftover.append(Piece(Side.REQUEST, data[position:], 0, start_ns, end_ns))
            return len(data)
        return self._read_request(data, position, end_ns)

    def _add(self, call: Call) -> None:
        # Opens a request. Responses that came before it was told answer it, or one not seen.
        if self._held:
            self._drop_held(call.start_ns)
        if self._current is not None and self.lost & _RESPONSES_LOST and not self._open:
            self._end_response(self._response_end_ns)
        self._pairs.add(call, self._current is not None)
        if self._held:
            self._replay_held()

    def _read_request(self, data: bytes, position: int, end_ns: int) -> int:
        body = self._request_body
        position = body.read(data, position)
        if body.is_over:
            self._end_request()
        elif body.is_bad:
            self._misfit_request(end_ns)
            return len(data)
        return position

    def _end_request(self) -> None:
        call = self._reading
        self._reading = None
        self._request_state = _IDLE
        if call is None:
            return
        call.request_body_size = self._request_body.size
        call.request_header_size += self._request_body.trailer_size
        if call is self._early:
            self._early = None
            self.done.append(call)
        elif self._switches and not self._is_hasty and self._open and self._open[-1] is call:
            self._request_state = _WAITING

    def _misfit_request(self, end_ns: int) -> None:
        if self.lost & _REQUESTS_LOST:
            self._request_state = _LOST
        else:
            self.misfits += 1
            self._lose_request(end_ns)

    def _lose_request(self, end_ns: int) -> None:
        call = self._reading
        if call is not None:
            self._reading = None
            call.request_body_size = UNMEASURED
            if call is self._early:
                self._early = None
                self.done.append(call)
        self._request_state = _LOST
        self.lost |= _REQUESTS_LOST
        self._pairs.lose_requests(end_ns)

    def _skip_request(self, piece: Piece) -> None:
        size, end_ns = piece.size, piece.end_ns
        if self._request_state == _BODY:
            size = self._request_body.skip(size)
            if self._request_body.is_over:
                self._end_request()
            if not size and not self._request_body.is_bad:
                return
        elif self._request_state == _HEAD and not self.lost & _REQUESTS_LOST:
            buffer = self._request_buffer
            head = parse_request_head(buffer.partial(), self._heads.keep_query)
            if head is not None:
                call = _call(head, buffer.start_ns, UNMEASURED)
                call.request_body_size = UNMEASURED
                self._add(call)
        if self._request_state == _WAITING:
            self._wait(piece._replace(size=size))
        elif self._request_state != _OVER:
            self._lose_request(end_ns)

    def _wait(self, piece: Piece) -> None:
        # Keeps what follows a request that may switch protocols, until its response says.
        self._waiting.append(piece)
        self._waiting_size += len(piece.data)
        if self._waiting_size > _MAX_KEPT_BYTES or len(self._waiting) > _MAX_KEPT_PIECES:
            self._is_hasty = True
            self._replay_waiting()
            self._is_hasty = False

    def _release_waiting(self) -> None:
        while self._request_state == _WAITING and not self._open:
            self._replay_waiting()

    def _replay_waiting(self) -> None:
        pieces = self._waiting
        self._waiting = []
        self._waiting_size = 0
        self._request_state = _IDLE
        for piece in pieces:
            if piece.data:
                self._feed_request(piece.data, piece.start_ns, piece.end_ns)
            else:
                self._skip_request(piece)

    # Responses

    def _feed_response(self, data: bytes, start_ns: int, end_ns: int) -> None:
        if self._held and not self._no_holding:
            self._hold(Piece(Side.RESPONSE, data, 0, start_ns, end_ns))
            return
        position = 0
        size = len(data)
        opened = self._open
        while position < size:
            if self._response_state:
                position = self._continue_response(data, position, start_ns, end_ns)
                continue
            end = data.find(_EMPTY_LINE, position) + 4
            raw = data[position:end]
            head = self._known_responses.get(raw) or (
                self._heads.response(raw) if end > 3 else None
            )
            if end - position > self._max_header:
                head = None
            if not opened:
                if not self._no_holding and not self._pairs.unsure:
                    self._hold(Piece(Side.RESPONSE, data[position:], 0, start_ns, end_ns))
                    return
            elif head is not None and head.is_simple and self._pairs.is_settled:
                call = opened[0]
                after = end + head.framing
                if (
                    after <= size
                    and call.start_ns <= end_ns
                    and call.method not in _BARE
                    and call is not self._reading
                ):
                    opened.popleft()
                    call.status = head.status
                    call.outcome = _ANSWERED
                    call.response_header_size += end - position
                    call.response_body_size = head.framing
                    call.first_byte_ns = call.end_ns = end_ns
                    self.done.append(call)
                    position = after
                    continue
            if head is not None:
                position = self._begin_response(
                    head, end - position, end_ns, data, end, start_ns, end_ns
                )
                continue
            while position < size and data[position] in _LINE_ENDS:
                position += 1
            if position < size:
                self._response_state = _HEAD
                self._response_buffer.begin(start_ns, end_ns)

    def _continue_response(self, data: bytes, position: int, start_ns: int, end_ns: int) -> int:
        state = self._response_state
        if state == _BODY:
            if self._is_orphan and not position and looks_like_response(data):
                # It had no content, so it answered HEAD.
                self.misfits += 1
                self._is_orphan = False
                self._response_state = _IDLE
                return position
            return self._read_response(data, position, end_ns)
        if state == _HEAD:
            return self._read_response_head(data, position, start_ns, end_ns)
        if state == _LOST and not position:
            self._response_state = _HEAD
            self._response_buffer.begin(start_ns, end_ns)
            return self._read_response_head(data, position, start_ns, end_ns)
        return len(data)

    def _read_response_head(self, data: bytes, position: int, start_ns: int, end_ns: int) -> int:
        buffer = self._response_buffer
        if buffer.size and self.lost & _RESPONSES_LOST and looks_like_response(data):
            buffer.begin(start_ns, end_ns)
        position = buffer.take(data, position)
        begun = buffer.begins()
        if begun is not None:
            looks = looks_like_response(begun)
            if looks:
                buffer.is_accepted()
                if self.lost & _RESPONSES_LOST:
                    self._end_lost_response()
            elif looks is False:
                self._misfit_response(data, end_ns)
                return len(data)
        if not buffer.raw:
            return position
        raw = buffer.raw
        head = (
            self._known_responses.get(raw) or self._heads.response(raw) or parse_response_head(raw)
        )
        if head is None:
            self._misfit_response(data, end_ns)
            return len(data)
        return self._begin_response(
            head, buffer.size, buffer.first_ns, data, position, start_ns, end_ns
        )

    def _end_lost_response(self) -> None:
        # The responses make sense again.
        if self._current is not None:
            self._end_response(self._response_end_ns)
        self._find_side(_RESPONSES_LOST)

    def _begin_response(
        self,
        head: ResponseHead,
        header_size: int,
        first_ns: int,
        data: bytes,
        position: int,
        start_ns: int,
        end_ns: int,
    ) -> int:
        self._response_state = _IDLE
        status, framing = head.status, head.framing
        call = self._pairs.match(first_ns)
        if call is not None:
            call.response_header_size += header_size
        is_tunnel = call is not None and call.method == "CONNECT" and 200 <= status < 300
        if status == 101 or is_tunnel:
            rest = Piece(Side.RESPONSE, data[position:], 0, start_ns, end_ns)
            self._switch(call, head, first_ns, rest)
            return len(data)
        if status < 200:
            if call is not None:
                self._pairs.put_back(call)
            return position
        if call is None:
            self._is_orphan = True
            if framing < CHUNKED:
                framing = UNKNOWN
        else:
            call.status = status
            call.first_byte_ns = first_ns
            if call.method == "HEAD":
                framing = 0
        self._current = call
        self._is_chunked = framing == CHUNKED
        self._response_body.begin(framing)
        self._response_end_ns = end_ns
        self._response_state = _BODY
        return self._read_response(data, position, end_ns)

    def _read_response(self, data: bytes, position: int, end_ns: int) -> int:
        body = self._response_body
        position = body.read(data, position)
        if body.is_over:
            self._response_state = _IDLE
            self._end_response(end_ns)
        elif body.is_bad:
            self._misfit_response(data, end_ns)
            return len(data)
        self._response_end_ns = end_ns
        return position

    def _end_response(self, end_ns: int) -> None:
        call = self._current
        self._current = None
        self._is_orphan = False
        if call is None:
            return
        call.outcome = _ANSWERED
        call.end_ns = end_ns
        if call.response_body_size != UNMEASURED:
            call.response_body_size = self._response_body.size
            call.response_header_size += self._response_body.trailer_size
        if call is self._reading:
            self._early = call
        else:
            self.done.append(call)

    def _switch(self, call: Call | None, head: ResponseHead, first_ns: int, rest: Piece) -> None:
        # RFC 9110 sections 7.8 (Upgrade) and 9.3.6 (CONNECT)
        names = {name.strip() for name in head.upgrade.split(",")}
        self.switched = "h2c" if head.status == 101 and "h2c" in names else "opaque"
        self.leftover = [*self._waiting, rest] if rest.data else self._waiting
        if call is not None:
            if call is self._reading:
                call.request_body_size = self._request_body.size
                self._reading = None
            if self.switched == "h2c":
                self.upgraded = call
            else:
                call.status = head.status
                call.outcome = _ANSWERED
                call.first_byte_ns = first_ns
                call.end_ns = rest.end_ns
                self.done.append(call)
        self._pairs.close(rest.end_ns)
        self._stop()

    def _misfit_response(self, data: bytes, end_ns: int) -> None:
        if not self.lost & _RESPONSES_LOST:
            if not self._is_orphan:
                self.misfits += 1
            self._lose_response(end_ns)
            return
        self._response_state = _LOST
        self._response_end_ns = end_ns
        if self._is_chunked and self._current and _ends_chunks(data):
            self._end_lost_response()
            self._response_state = _IDLE

    def _lose_response(self, end_ns: int, is_gap: bool = False) -> None:
        if self._current is not None:
            self._current.response_body_size = UNMEASURED
        if is_gap or not self._is_orphan:
            self._pairs.lose_responses(end_ns)
        self._is_orphan = False
        self._response_end_ns = end_ns
        self._response_state = _LOST
        self.lost |= _RESPONSES_LOST

    def _skip_response(self, piece: Piece) -> None:
        if self._held and not self._no_holding:
            self._hold(piece)
            return
        size, end_ns = piece.size, piece.end_ns
        if self._response_state == _BODY:
            body = self._response_body
            size = body.skip(size)
            if body.is_over:
                self._response_state = _IDLE
                self._end_response(end_ns)
            if not size and not body.is_bad:
                self._response_end_ns = end_ns
                return
        elif self._response_state == _HEAD and not self.lost & _RESPONSES_LOST:
            self._break_response_head()
        if self._response_state != _OVER:
            self._lose_response(end_ns, is_gap=True)
            if self._request_state == _WAITING:
                self._replay_waiting()

    def _break_response_head(self) -> Call | None:
        # What is sure of a response whose header section is not whole.
        buffer = self._response_buffer
        head = parse_response_head(buffer.partial())
        if head is None or (head.status < 200 and head.status != 101):
            return None
        call = self._pairs.match(buffer.first_ns)
        if call is not None:
            call.status = head.status
            call.first_byte_ns = buffer.first_ns
            self._current = call
            self._is_chunked = call.method != "HEAD"
            self._response_body.begin(0)
            call.response_header_size = UNMEASURED
        return call

    def _close_response(self, end_ns: int) -> None:
        seen = 0
        if self._response_state == _HEAD and not self.lost & _RESPONSES_LOST:
            self._break_response_head()
            seen = self._response_buffer.size
        call = self._current
        if call is None:
            return
        if self.lost & _RESPONSES_LOST or self._response_body.is_until_close:
            self._end_response(self._response_end_ns)
            return
        self._current = None
        call.outcome = Outcome.ABORTED
        call.end_ns = end_ns
        if seen:
            call.response_header_size = seen
        call.response_body_size = self._response_body.size
        call.response_header_size += self._response_body.trailer_size
        self.done.append(call)

    # Responses without their requests

    def _hold(self, piece: Piece) -> None:
        # Keeps responses that may be those of requests which were not told yet.
        self._held.append(piece)
        self._held_size += len(piece.data)
        if self._held_size > _MAX_KEPT_BYTES or len(self._held) > _MAX_KEPT_PIECES:
            self._drop_held(None)

    def _drop_held(self, before_ns: int | None) -> None:
        # Those that began before a time, or all, answer requests that were not seen.
        count = len(self._held)
        if before_ns is not None:
            count = sum(1 for piece in self._held if piece.end_ns < before_ns)
        pieces, kept = self._held[:count], self._held[count:]
        self._held = []
        self._no_holding = True
        for piece in pieces:
            self._replay(piece)
        self._no_holding = False
        self._held = kept
        self._held_size = sum(len(piece.data) for piece in kept)

    def _replay_held(self) -> None:
        pieces = self._held
        self._held = []
        self._held_size = 0
        for piece in pieces:
            self._replay(piece)

    def _replay(self, piece: Piece) -> None:
        if piece.data:
            self._feed_response(piece.data, piece.start_ns, piece.end_ns)
        else:
            self._skip_response(piece)


def _call(head: RequestHead, start_ns: int, header_size: int) -> Call:
    return Call(
        version=head.version,
        start_ns=start_ns,
        method=head.method,
        path=head.path,
        host=head.host,
        request_header_size=header_size,
        trace=head.trace,
    )


def _ends_chunks(data: bytes) -> bool:
    return data == _LAST_CHUNK or data.endswith(b"\r\n" + _LAST_CHUNK)
