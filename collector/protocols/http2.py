"""Calls of an HTTP/2 connection, gRPC included (RFC 9113, gRPC over HTTP/2).

Frames come from `FrameReader`, fields from `HeadReader`; here they become calls. A call begins with
the field block that opens its stream, and ends with the response: where a client goes on sending
after that, its bytes no longer count.

A connection that was joined late, or of which bytes were missed, has streams whose beginning was
not seen. They are no calls. Of a stream whose response may have gone by unread only what was seen
is told: its sizes are unmeasured, and without any further sign of it nothing is said at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from collector.protocols.calls import (
    NO_STATUS,
    NOT_GRPC,
    UNMEASURED,
    Call,
    Outcome,
    Settings,
    Side,
    Version,
)
from collector.protocols.field_blocks import Head, HeadReader
from collector.protocols.frame_reader import FrameReader
from collector.protocols.frames import LARGEST_FRAME_SIZE, Setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.protocols.frame_sink import Block

__all__ = ["Http2"]

_UPGRADED_STREAM: Final = 1  # RFC 7540 section 3.2
_UNLIMITED: Final = 0xFFFF_FFFF

# Of a block that was too long to keep.
_UNREAD: Final = Head([], is_whole=False, keep_query=False)


class _Stream:
    # A call that has not ended, and what only matters until it does.
    __slots__ = (
        "call",
        "has_final",
        "is_grpc",
        "is_request_partial",
        "is_response_doubtful",
        "is_response_partial",
        "request_ended",
        "request_size",
        "response_size",
    )

    def __init__(self, call: Call, *, request_ended: bool) -> None:
        self.call = call
        self.request_ended = request_ended
        self.request_size = self.response_size = 0
        self.has_final = False
        # None: its content type is not known.
        self.is_grpc: bool | None = None
        # Whether frames of it may have gone by unread, and for the response, whether none came
        # since.
        self.is_request_partial = False
        self.is_response_partial = self.is_response_doubtful = False


class Http2:
    """A parser of one HTTP/2 connection; see `collector.protocols.calls.Exchange`.

    Args:
        done: Where calls go when they end.
        settings: Limits, and what to keep.
        is_joined: Whether the connection was already in use.

    Attributes:
        given_up: Calls that are not told, because too many were open at once or because their end
            may have gone by unread.
    """

    __slots__ = (
        "_has_grpc",
        "_has_response_block",
        "_heads",
        "_is_closed",
        "_is_exact",
        "_last_opened",
        "_readers",
        "_settings",
        "_streams",
        "done",
        "given_up",
    )

    def __init__(self, done: list[Call], settings: Settings, is_joined: bool = False) -> None:
        self.done = done
        self.given_up = 0
        self._settings = settings
        self._is_closed = False
        self._is_exact = not is_joined
        self._has_grpc = False
        self._streams: dict[int, _Stream] = {}
        # Highest stream that a client opened: streams are opened in order (RFC 9113 section 5.1.1).
        self._last_opened = 0
        self._has_response_block = False
        self._readers = [
            FrameReader(side, self, settings.max_header_bytes, is_joined=is_joined) for side in Side
        ]
        self._heads = [self._create_heads(is_joined=is_joined) for _ in Side]

    @property
    def is_failed(self) -> bool:
        """Whether a side broke the rules of framing, so that nothing more of it is read.

        Never true of a connection that was joined: there the parser looks for the next frame.
        """
        return any(reader.is_failed for reader in self._readers)

    def is_lost(self, side: Side) -> bool:
        """Whether the parser is looking for the beginning of a frame (RFC 9113 section 4.1)."""
        return self._readers[side].is_lost

    def adopt(self, call: Call, end_ns: int) -> None:
        """Take over an HTTP/1.1 request that was upgraded (RFC 7540 section 3.2).

        Its response is that of stream 1. What the request's ``HTTP2-Settings`` announced is not
        known, so that frames and tables of any size are taken.

        Args:
            call: The request, its header and sizes filled in; no longer the caller's.
            end_ns: When the response with status 101 ended.
        """
        del end_ns  # the response counts from its final header
        call.version = Version.HTTP_2
        call.outcome = Outcome.UNANSWERED
        call.status = NO_STATUS
        call.first_byte_ns = UNMEASURED
        stream = _Stream(call, request_ended=True)
        stream.request_size = call.request_body_size
        self._streams[_UPGRADED_STREAM] = stream
        self._last_opened = max(self._last_opened, _UPGRADED_STREAM)
        self._lift_limits(Side.RESPONSE)

    def feed(self, side: Side, data: bytes, start_ns: int, end_ns: int) -> None:
        """See `Exchange.feed`."""
        if not self._is_closed:
            self._readers[side].feed(data, start_ns, end_ns)

    def skip(self, side: Side, size: int, start_ns: int, end_ns: int) -> None:
        """See `Exchange.skip`."""
        del start_ns
        if not self._is_closed:
            self._readers[side].skip(size, end_ns)

    def unneeded(self, side: Side) -> int:
        """See `Exchange.unneeded`: the rest of the frame under way (RFC 9113 section 4.1)."""
        return 0 if self._is_closed else self._readers[side].unneeded()

    def close(self, end_ns: int) -> None:
        """See `Exchange.close`."""
        self._is_closed = True
        while self._streams:
            self._break_off(self._streams.pop(next(iter(self._streams))), end_ns)

    # What FrameReader calls.

    def on_preface(self) -> None:
        """See `FrameSink`: the client's table is known from its beginning after all."""
        self._is_exact = True
        self._heads[Side.REQUEST] = self._create_heads(is_joined=False)
        self._heads[Side.REQUEST].decoder.allow(_UNLIMITED)
        if not self._has_response_block:
            self._heads[Side.RESPONSE] = self._create_heads(is_joined=False)
            self._heads[Side.RESPONSE].decoder.allow(_UNLIMITED)

    def on_block(self, side: Side, block: Block) -> bool:
        """See `FrameSink`."""
        data = block.data
        if data is None:
            head = _UNREAD
            self._heads[side].decoder.forget()
        else:
            head = self._heads[side].read(data)
        if side is Side.REQUEST:
            self._take_request(block, head)
        else:
            self._has_response_block = True
            if block.promised_id:
                self._open(block.promised_id, block, head, request_ended=True)
            else:
                self._take_response(block, head)
        return head.is_whole or data is None

    def on_data(self, side: Side, stream_id: int, size: int) -> None:
        """See `FrameSink`."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if side is Side.REQUEST:
            stream.request_size += size
        else:
            stream.response_size += size
            stream.has_final = True  # even if its header went by unread (RFC 9113 section 8.1)
            stream.is_response_doubtful = False

    def on_end(self, side: Side, stream_id: int, end_ns: int) -> None:
        """See `FrameSink`."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if side is Side.REQUEST:
            stream.request_ended = True
        else:
            self._end(stream_id, stream, end_ns)

    def on_reset(self, side: Side, stream_id: int, end_ns: int) -> None:
        """See `FrameSink`: the response never ends (RFC 9113 section 5.4.2)."""
        del side
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            self._break_off(stream, end_ns)

    def on_settings(self, side: Side, settings: Sequence[tuple[int, int]]) -> None:
        """See `FrameSink`: what an end announces binds the other (RFC 9113 section 6.5)."""
        other = 1 - side
        for name, value in settings:
            if name == Setting.HEADER_TABLE_SIZE:
                self._heads[other].decoder.allow(value)
            elif name == Setting.MAX_FRAME_SIZE:
                reader = self._readers[other]
                reader.longest = max(reader.longest, min(value, LARGEST_FRAME_SIZE))

    def on_goaway(self, side: Side, last_stream_id: int, end_ns: int) -> None:
        """See `FrameSink`: later streams are not processed (RFC 9113 section 6.8)."""
        opened_by = 1 if side is Side.RESPONSE else 0
        refused = [
            stream_id
            for stream_id, stream in self._streams.items()
            if stream_id > last_stream_id
            and stream_id & 1 == opened_by
            and not stream.has_final
            and not stream.is_response_doubtful
        ]
        for stream_id in refused:
            self._break_off(self._streams.pop(stream_id), end_ns)

    def on_loss(self, side: Side) -> None:
        """See `FrameSink`: open streams may have gone on, tables and limits may have changed."""
        self._is_exact = False
        self._heads[side].decoder.forget()
        self._lift_limits(Side(1 - side))
        for stream in self._streams.values():
            if side is Side.RESPONSE:
                stream.is_response_partial = stream.is_response_doubtful = True
            elif not stream.request_ended:
                stream.is_request_partial = True

    def _create_heads(self, *, is_joined: bool) -> HeadReader:
        return HeadReader(is_joined=is_joined, keep_query=self._settings.keep_query)

    def _lift_limits(self, side: Side) -> None:
        self._readers[side].longest = LARGEST_FRAME_SIZE
        self._heads[side].decoder.allow(_UNLIMITED)

    def _take_request(self, block: Block, head: Head) -> None:
        stream_id = block.stream_id
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.call.request_header_size += block.size
            stream.request_ended |= block.ends_stream
        elif (
            stream_id > self._last_opened
            and stream_id & 1
            # In a connection that was joined it may be the trailer section of an earlier request.
            # Every request refers to a pseudo-header field of the static table.
            and (self._is_exact or (head.is_request and head.is_whole) or head is _UNREAD)
        ):
            self._last_opened = stream_id
            self._open(stream_id, block, head, request_ended=block.ends_stream)

    def _open(self, stream_id: int, block: Block, head: Head, *, request_ended: bool) -> None:
        if stream_id in self._streams:
            return
        streams = self._streams
        if len(streams) >= self._settings.max_open_calls:
            del streams[next(iter(streams))]
            self.given_up += 1
        call = Call(
            Version.HTTP_2,
            block.start_ns,
            head.method,
            head.path,
            head.host,
            request_header_size=block.size,
            trace=head.trace,
        )
        streams[stream_id] = stream = _Stream(call, request_ended=request_ended)
        stream.is_grpc = head.is_grpc

    def _take_response(self, block: Block, head: Head) -> None:
        stream_id = block.stream_id
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        call = stream.call
        call.response_header_size += block.size
        stream.is_response_doubtful = False
        status = head.status
        if stream.has_final and (block.ends_stream or call.status != NO_STATUS):
            self._take_trailer(stream, head)
        elif not stream.has_final and stream.is_response_partial and head.is_trailer:
            # Its header went by unread.
            stream.has_final = True
            self._take_trailer(stream, head)
        elif not 100 <= status < 200:
            # A status that is not known is taken for final. If another header follows that ends
            # nothing, it was not, and this one is (RFC 9113 section 8.1).
            stream.has_final = True
            call.status = status
            call.first_byte_ns = block.first_ns
            if head.is_grpc is not None and not stream.is_grpc:
                stream.is_grpc = head.is_grpc
            self._take_grpc_status(stream, head)
        if block.ends_stream:
            self._end(stream_id, stream, block.end_ns)

    def _take_trailer(self, stream: _Stream, head: Head) -> None:
        self._take_grpc_status(stream, head)
        if stream.is_grpc is None and head.has_hidden:
            # Trailers of fields that the table hides: hardly anything but gRPC has such.
            stream.is_grpc = True

    def _take_grpc_status(self, stream: _Stream, head: Head) -> None:
        if head.grpc_status != UNMEASURED:
            stream.call.grpc_status = head.grpc_status
            if stream.is_grpc is None:
                stream.is_grpc = True

    def _end(self, stream_id: int, stream: _Stream, end_ns: int) -> None:
        del self._streams[stream_id]
        is_answered = stream.has_final or stream.is_response_partial
        self._finish(stream, Outcome.ANSWERED if is_answered else Outcome.UNANSWERED, end_ns)

    def _break_off(self, stream: _Stream, end_ns: int) -> None:
        if stream.is_response_doubtful:  # it may have been answered, wholly or in part, or not
            self.given_up += 1
            return
        self._finish(stream, Outcome.ABORTED if stream.has_final else Outcome.UNANSWERED, end_ns)

    def _finish(self, stream: _Stream, outcome: Outcome, end_ns: int) -> None:
        call = stream.call
        call.outcome = outcome
        call.end_ns = end_ns
        call.request_body_size = UNMEASURED if stream.is_request_partial else stream.request_size
        call.response_body_size = stream.response_size
        if stream.is_response_partial:
            call.response_header_size = call.response_body_size = UNMEASURED
        if stream.is_grpc:
            self._has_grpc = True
            if call.grpc_status == NOT_GRPC:
                call.grpc_status = UNMEASURED
        elif self._has_grpc and stream.is_grpc is None:
            call.grpc_status = UNMEASURED
        else:
            call.grpc_status = NOT_GRPC
        self.done.append(call)
