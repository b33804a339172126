"""The responses of an HTTP/1 connection (RFC 9112 sections 4 and 6.3)."""

from __future__ import annotations

from typing import Final

from collector.protocols.bodies import CHUNKED, UNKNOWN
from collector.protocols.calls import UNMEASURED, Call, Outcome, Side
from collector.protocols.first_lines import looks_like_response
from collector.protocols.heads import ResponseHead, parse_response_head
from collector.protocols.http1_state import (
    ANSWERED,
    BODY,
    EMPTY_LINE,
    HEAD,
    IDLE,
    LINE_ENDS,
    LOST,
    MAX_KEPT_BYTES,
    MAX_KEPT_PIECES,
    OVER,
    RESPONSES_LOST,
    Piece,
    State,
)

__all__ = ["Responses"]

_BARE: Final = frozenset({"HEAD", "CONNECT"})  # methods whose responses end where others do not
_LAST_CHUNK: Final = b"0\r\n\r\n"


class Responses(State):
    """Answers calls, and switches protocols where a response says so."""

    __slots__ = ()

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
            end = data.find(EMPTY_LINE, position) + 4
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
                    self._pairs.note_wait(end_ns)
                    opened.pop(0)
                    call.status = head.status
                    call.outcome = ANSWERED
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
            while position < size and data[position] in LINE_ENDS:
                position += 1
            if position < size:
                self._response_state = HEAD
                self._response_buffer.begin(start_ns, end_ns)

    def _continue_response(self, data: bytes, position: int, start_ns: int, end_ns: int) -> int:
        state = self._response_state
        if state == BODY:
            if self._is_orphan and not position and looks_like_response(data):
                # It had no content, so it answered HEAD.
                self.misfits += 1
                self._is_orphan = False
                self._response_state = IDLE
                return position
            return self._read_response(data, position, end_ns)
        if state == HEAD:
            return self._read_response_head(data, position, start_ns, end_ns)
        if state == LOST and not position:
            self._response_state = HEAD
            self._response_buffer.begin(start_ns, end_ns)
            return self._read_response_head(data, position, start_ns, end_ns)
        return len(data)

    def _read_response_head(self, data: bytes, position: int, start_ns: int, end_ns: int) -> int:
        buffer = self._response_buffer
        if buffer.size and self.lost & RESPONSES_LOST and looks_like_response(data):
            buffer.begin(start_ns, end_ns)
        position = buffer.take(data, position)
        begun = buffer.begins()
        if begun is not None:
            looks = looks_like_response(begun)
            if looks:
                buffer.is_accepted()
                if self.lost & RESPONSES_LOST:
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
        self._find_side(RESPONSES_LOST)

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
        self._response_state = IDLE
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
        self._response_state = BODY
        return self._read_response(data, position, end_ns)

    def _read_response(self, data: bytes, position: int, end_ns: int) -> int:
        body = self._response_body
        position = body.read(data, position)
        if body.is_over:
            self._response_state = IDLE
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
        call.outcome = ANSWERED
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
                call.outcome = ANSWERED
                call.first_byte_ns = first_ns
                call.end_ns = rest.end_ns
                self.done.append(call)
        self._pairs.close(rest.end_ns)
        self._stop()

    def _misfit_response(self, data: bytes, end_ns: int) -> None:
        if not self.lost & RESPONSES_LOST:
            if not self._is_orphan:
                self.misfits += 1
            self._lose_response(end_ns)
            return
        self._response_state = LOST
        self._response_end_ns = end_ns
        if self._is_chunked and self._current and _ends_chunks(data):
            self._end_lost_response()
            self._response_state = IDLE

    def _lose_response(self, end_ns: int, is_gap: bool = False) -> None:
        if self._current is not None:
            self._current.response_body_size = UNMEASURED
        if is_gap or not self._is_orphan:
            self._pairs.lose_responses(end_ns)
        self._is_orphan = False
        self._response_end_ns = end_ns
        self._response_state = LOST
        self.lost |= RESPONSES_LOST

    def _skip_response(self, piece: Piece) -> None:
        if self._held and not self._no_holding:
            self._hold(piece)
            return
        size, end_ns = piece.size, piece.end_ns
        if self._response_state == BODY:
            body = self._response_body
            size = body.skip(size)
            if body.is_over:
                self._response_state = IDLE
                self._end_response(end_ns)
            if not size and not body.is_bad:
                self._response_end_ns = end_ns
                return
        elif self._response_state == HEAD and not self.lost & RESPONSES_LOST:
            self._break_response_head()
        if self._response_state != OVER:
            self._lose_response(end_ns, is_gap=True)

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
        if self._response_state == HEAD and not self.lost & RESPONSES_LOST:
            self._break_response_head()
            seen = self._response_buffer.size
        call = self._current
        if call is None:
            return
        if self.lost & RESPONSES_LOST or self._response_body.is_until_close:
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
        if self._held_size > MAX_KEPT_BYTES or len(self._held) > MAX_KEPT_PIECES:
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


def _ends_chunks(data: bytes) -> bool:
    return data == _LAST_CHUNK or data.endswith(b"\r\n" + _LAST_CHUNK)
