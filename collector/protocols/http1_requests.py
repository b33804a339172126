"""The requests of an HTTP/1 connection (RFC 9112 sections 3 and 6.3)."""

from __future__ import annotations

from collector.protocols.calls import NO_STATUS, NOT_GRPC, UNMEASURED, Call, Side
from collector.protocols.first_lines import begins_known_request, looks_like_request
from collector.protocols.heads import RequestHead, parse_request_head
from collector.protocols.http1_responses import Responses
from collector.protocols.http1_state import (
    BODY,
    EMPTY_LINE,
    HEAD,
    IDLE,
    LINE_ENDS,
    LOST,
    MAX_KEPT_BYTES,
    MAX_KEPT_PIECES,
    OVER,
    REQUESTS_LOST,
    RESPONSES_LOST,
    UNANSWERED,
    WAITING,
    Piece,
)

__all__ = ["Requests"]


class Requests(Responses):
    """Opens calls; those that may switch protocols make what follows wait for their response."""

    __slots__ = ()

    def _feed_request(self, data: bytes, start_ns: int, end_ns: int) -> None:
        position = 0
        size = len(data)
        pairs = self._pairs
        opened = self._open
        while position < size:
            if self._request_state:
                position = self._continue_request(data, position, start_ns, end_ns)
                continue
            end = data.find(EMPTY_LINE, position) + 4
            raw = data[position:end]
            head = self._known_requests.get(raw) or (self._heads.request(raw) if end > 3 else None)
            if head is None or end - position > self._max_header:
                # Not one whole header section, or none at all.
                while position < size and data[position] in LINE_ENDS:
                    position += 1
                if position < size:
                    self._request_state = HEAD
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
                if opened and opened[-1].start_ns == start_ns:
                    pairs.pipelines = True  # both in one piece
                opened.append(
                    Call(
                        head.version,
                        start_ns,
                        head.method,
                        head.path,
                        head.host,
                        NO_STATUS,
                        NOT_GRPC,
                        UNANSWERED,
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
        if state == BODY:
            if self._early and not position and self._is_withheld(data):
                self.misfits += 1
                self._end_request()
                return position
            return self._read_request(data, position, end_ns)
        if state == HEAD:
            return self._read_request_head(data, position, start_ns, end_ns)
        if state == LOST and not position:
            self._request_state = HEAD
            self._request_buffer.begin(start_ns, end_ns)
            return self._read_request_head(data, position, start_ns, end_ns)
        if state == WAITING:
            self._wait(Piece(Side.REQUEST, data[position:], 0, start_ns, end_ns))
        return len(data)

    def _is_withheld(self, data: bytes) -> bool:
        # A final response instead of 100 (Continue) keeps the client from sending its content, and
        # some then send the next request in its place (RFC 9110 section 10.1.1).
        body = self._request_body
        return body.size == 0 and body.is_length and looks_like_request(data) is True

    def _read_request_head(self, data: bytes, position: int, start_ns: int, end_ns: int) -> int:
        buffer = self._request_buffer
        if buffer.size and self.lost & REQUESTS_LOST and begins_known_request(data):
            # What could have become a request line did not; this piece does.
            buffer.begin(start_ns, end_ns)
        position = buffer.take(data, position)
        begun = buffer.begins()
        if begun is not None:
            looks = looks_like_request(begun)
            if looks and self.lost & REQUESTS_LOST:
                looks = begins_known_request(begun)  # and is not the end of a method
            if looks:
                buffer.is_accepted()
                self._find_side(REQUESTS_LOST)
            elif looks is False:
                self._misfit_request(start_ns)
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
            self._misfit_request(start_ns)
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
        self._request_state = BODY
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
        if self._current is not None and self.lost & RESPONSES_LOST and not self._open:
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
        self._request_state = IDLE
        if call is None:
            return
        call.request_body_size = self._request_body.size
        call.request_header_size += self._request_body.trailer_size
        if call is self._early:
            self._early = None
            self.done.append(call)
        elif self._switches and not self._is_hasty and self._open and self._open[-1] is call:
            self._request_state = WAITING

    def _misfit_request(self, since_ns: int) -> None:
        if self.lost & REQUESTS_LOST:
            self._request_state = LOST
            self._pairs.lose_more_requests(since_ns)  # one may have begun inside of the piece
        else:
            self.misfits += 1
            self._lose_request(0)  # nothing is missing, for all that is known

    def _lose_request(self, since_ns: int) -> None:
        call = self._reading
        if call is not None:
            self._reading = None
            call.request_body_size = UNMEASURED
            if call is self._early:
                self._early = None
                self.done.append(call)
        self._request_state = LOST
        self.lost |= REQUESTS_LOST
        self._pairs.lose_requests(since_ns)

    def _skip_request(self, piece: Piece) -> None:
        size = piece.size
        if self._request_state == BODY:
            size = self._request_body.skip(size)
            if self._request_body.is_over:
                self._end_request()
            if not size and not self._request_body.is_bad:
                return
        elif self._request_state == HEAD and not self.lost & REQUESTS_LOST:
            buffer = self._request_buffer
            head = parse_request_head(buffer.partial(), self._heads.keep_query)
            if head is not None:
                call = _call(head, buffer.start_ns, UNMEASURED)
                call.request_body_size = UNMEASURED
                self._add(call)
        if self._request_state == WAITING:
            self._wait(piece._replace(size=size))
        elif self._request_state != OVER:
            self._lose_request(piece.start_ns)

    def _wait(self, piece: Piece) -> None:
        # Keeps what follows a request that may switch protocols, until its response says.
        self._waiting.append(piece)
        self._waiting_size += len(piece.data)
        if self._waiting_size > MAX_KEPT_BYTES or len(self._waiting) > MAX_KEPT_PIECES:
            self._is_hasty = True
            self._replay_waiting()
            self._is_hasty = False

    def _release_waiting(self) -> None:
        while self._request_state == WAITING and not self._open:
            self._replay_waiting()

    def _replay_waiting(self) -> None:
        pieces = self._waiting
        self._waiting = []
        self._waiting_size = 0
        self._request_state = IDLE
        for piece in pieces:
            if piece.data:
                self._feed_request(piece.data, piece.start_ns, piece.end_ns)
            else:
                self._skip_request(piece)


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
