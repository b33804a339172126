"""Frames of HTTP/2 out of bytes that are cut anywhere (RFC 9113 section 4).

A reader follows one side of one connection and tells a `FrameSink` what the frames mean for calls.
Bodies are counted, never copied; what is kept is a frame that matters and is not whole yet.

A reader that saw the side from its beginning knows where every frame begins, and stops for good
where the rules are broken, as the two ends do. One that joined late, or that lost bytes, looks for
a frame at the beginning of a piece, because ends write and read whole frames, and otherwise for a
chain of frames that ends where the piece does. Until a few frames fit it takes nothing on trust.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from collector.protocols.calls import Side
from collector.protocols.frame_sink import Block
from collector.protocols.frames import (
    DEFAULT_FRAME_SIZE,
    HEADER_SIZE,
    KEPT_SETTINGS,
    LARGEST_FRAME_SIZE,
    PREFACE,
    SETTING,
    STREAM_MASK,
    Flag,
    FrameType,
    find_boundary,
    is_allowed,
    is_plausible,
    unpack_header,
)

if TYPE_CHECKING:
    from collector.protocols.frame_sink import FrameSink

__all__ = ["FrameReader"]

# After so many frames that fit, a reader that joined late is sure where frames begin.
_TRUSTED: Final = 4


class _State(IntEnum):
    PREFACE = 0
    HEADER = 1
    PAD_LENGTH = 2
    BODY = 3
    PAYLOAD = 4
    SEEK = 5
    FAILED = 6


class FrameReader:
    """Bytes of one side to frames.

    Attributes:
        longest: ``SETTINGS_MAX_FRAME_SIZE`` as the other side announced it, the largest if it
            did so repeatedly (RFC 9113 section 6.5.2).
    """

    __slots__ = (
        "_block",
        "_block_ends",
        "_block_first_ns",
        "_block_promised",
        "_block_size",
        "_block_start_ns",
        "_block_stream",
        "_body",
        "_ends",
        "_first_ns",
        "_flags",
        "_has_block",
        "_is_joined",
        "_kind",
        "_length",
        "_max_block",
        "_may_seek",
        "_need",
        "_padding",
        "_pending",
        "_side",
        "_sink",
        "_start_ns",
        "_state",
        "_stream_id",
        "_trust",
        "longest",
    )

    def __init__(self, side: Side, sink: FrameSink, max_block: int, *, is_joined: bool) -> None:
        self._side = side
        self._sink = sink
        self._max_block = max_block
        self._is_joined = self._may_seek = is_joined
        self.longest = LARGEST_FRAME_SIZE if is_joined else DEFAULT_FRAME_SIZE
        self._trust = 0 if is_joined else _TRUSTED
        self._state = (
            _State.SEEK if is_joined else _State.PREFACE if side is Side.REQUEST else _State.HEADER
        )
        self._pending = bytearray()
        # Times of the piece with the first byte of the frame under way.
        self._start_ns = self._first_ns = 0
        # The frame under way: its header, and what is to come of it.
        self._length = self._kind = self._flags = self._stream_id = 0
        self._need = self._body = self._padding = 0
        self._ends = False
        # The field block under way: between its first frame and END_HEADERS.
        self._has_block = self._block_ends = False
        self._block: bytearray | None = None
        self._block_stream = self._block_promised = self._block_size = 0
        self._block_start_ns = self._block_first_ns = 0

    @property
    def is_failed(self) -> bool:
        """Whether the rules were broken so that nothing more is read."""
        return self._state is _State.FAILED

    @property
    def is_lost(self) -> bool:
        """Whether it looks for a frame."""
        return self._state is _State.SEEK

    def unneeded(self) -> int:
        """How many of the next bytes are body or padding whose number is known."""
        return self._body + self._padding if self._state is _State.BODY else 0

    def feed(self, data: bytes, start_ns: int, end_ns: int) -> None:
        """Take the next bytes."""
        position = 0
        size = len(data)
        while position < size:
            if self._state is _State.HEADER and not self._pending:
                position = self._run(data, position, start_ns, end_ns)
                if position == size:
                    return
            position = self._advance(data, position, start_ns, end_ns)

    def skip(self, size: int, end_ns: int) -> None:
        """Take note of bytes that were not captured."""
        state = self._state
        if state is _State.FAILED or size <= 0:
            return
        if state is _State.BODY:
            taken = min(size, self._body + self._padding)
            self._pass_body(taken, end_ns)
            size -= taken
        if size:
            self._may_seek = True
            self._lose()

    def _run(self, data: bytes, position: int, start_ns: int, end_ns: int) -> int:
        # The usual frames, while they are whole. Stops in front of anything else.
        sink = self._sink
        side = self._side
        last = len(data) - HEADER_SIZE
        longest = self.longest
        if self._trust < _TRUSTED or self._has_block:
            return position
        while position <= last:
            high, low, kind, flags, stream_id = unpack_header(data, position)
            length = high << 16 | low
            start = position + HEADER_SIZE
            end = start + length
            if end > last + HEADER_SIZE or length > longest:
                return position
            if kind == 0:
                if flags & 0x08 or not 0 < stream_id <= STREAM_MASK:
                    return position
                sink.on_data(side, stream_id, length)
                if flags & 0x01:
                    sink.on_end(side, stream_id, end_ns)
            elif kind == 1:
                if flags & 0x2C != 0x04 or not 0 < stream_id <= STREAM_MASK:
                    return position
                if length > self._max_block:
                    return position
                block = Block(
                    stream_id,
                    0,
                    flags & 0x01 != 0,
                    data[start:end],
                    length,
                    start_ns,
                    end_ns,
                    end_ns,
                )
                sink.on_block(side, block)
            elif not (length == 4 if kind == 8 else kind == 6 and length == 8 and not stream_id):
                return position
            position = end
        return position

    def _advance(self, data: bytes, position: int, start_ns: int, end_ns: int) -> int:
        # One step of anything: takes at least a byte, or leaves the state it was in.
        state = self._state
        size = len(data)
        if state is _State.BODY:
            taken = min(size - position, self._body + self._padding)
            self._pass_body(taken, end_ns)
            return position + taken
        if state is _State.FAILED:
            return size
        if state is _State.SEEK:
            return self._seek(data, position)
        if state is _State.PAD_LENGTH:
            self._begin_body(self._length - 1 - data[position], data[position], end_ns)
            return position + 1
        need = self._need if state is _State.PAYLOAD else HEADER_SIZE
        if state is _State.PREFACE:
            need = len(PREFACE)
        pending = self._pending
        if not pending and state is not _State.PAYLOAD:
            self._start_ns = start_ns
            self._first_ns = end_ns
        taken = min(need - len(pending), size - position)
        pending += data[position : position + taken]
        position += taken
        if state is _State.PREFACE:
            self._check_preface()
        elif len(pending) == need:
            payload = bytes(pending)
            pending.clear()
            if state is _State.PAYLOAD:
                self._take_payload(payload, end_ns)
            else:
                self._take_header(payload, end_ns)
        return position

    def _seek(self, data: bytes, position: int) -> int:
        # Only the beginning of a piece says anything; what is left of one after a break does not.
        size = len(data)
        if position:
            self._sink.on_loss(self._side)
            return size
        if self._side is Side.REQUEST and PREFACE.startswith(data[: len(PREFACE)]):
            self._state = _State.PREFACE
            return 0
        boundary = find_boundary(self._side, data, self.longest)
        if boundary:
            self._sink.on_loss(self._side)
        if boundary < 0:
            return size
        self._state = _State.HEADER
        self._trust = 0
        return boundary

    def _check_preface(self) -> None:
        if not PREFACE.startswith(self._pending):
            self._lose()
        elif len(self._pending) == len(PREFACE):
            self._pending.clear()
            self._state = _State.HEADER
            self._trust = _TRUSTED
            if self._is_joined:
                self._sink.on_preface()

    def _take_header(self, header: bytes, end_ns: int) -> None:
        high, low, kind, flags, stream_id = unpack_header(header)
        length = high << 16 | low
        side = self._side
        if self._trust < _TRUSTED:
            is_right = is_plausible(side, length, kind, flags, stream_id)
            self._trust += 1
        else:
            is_right = is_allowed(length, kind, stream_id)
        stream_id &= STREAM_MASK
        if length > self.longest or not is_right:
            self._lose()
            return
        if self._has_block and (kind != FrameType.CONTINUATION or stream_id != self._block_stream):
            # RFC 9113 section 6.10: nothing comes between the frames of a field block.
            self._lose()
            return
        self._length = length
        self._kind = kind
        self._flags = flags
        self._stream_id = stream_id
        if kind == FrameType.DATA:
            self._ends = flags & Flag.END_STREAM != 0
            if flags & Flag.PADDED:
                if not length:
                    self._lose()
                else:
                    self._state = _State.PAD_LENGTH
            else:
                self._begin_body(length, 0, end_ns)
        elif kind in (FrameType.HEADERS, FrameType.PUSH_PROMISE, FrameType.CONTINUATION):
            self._open_block(end_ns)
        elif kind == FrameType.RST_STREAM:
            self._begin_payload(4, 0, end_ns)
        elif kind == FrameType.SETTINGS:
            kept = min(length, KEPT_SETTINGS)
            self._begin_payload(kept, length - kept, end_ns)
        elif kind == FrameType.GOAWAY:
            self._begin_payload(8, length - 8, end_ns)
        else:
            self._ignore(length, end_ns)

    def _ignore(self, length: int, end_ns: int) -> None:
        self._begin_body(0, length, end_ns)

    def _begin_body(self, body: int, padding: int, end_ns: int) -> None:
        if body < 0:  # RFC 9113 section 6.1: more padding than frame
            self._lose()
            return
        self._body = body
        self._padding = padding
        self._state = _State.BODY
        if not body and not padding:
            self._end_frame(end_ns)

    def _pass_body(self, taken: int, end_ns: int) -> None:
        body = min(taken, self._body)
        self._body -= body
        self._padding -= taken - body
        if body:
            self._sink.on_data(self._side, self._stream_id, body)
        if not self._body and not self._padding:
            self._end_frame(end_ns)

    def _open_block(self, end_ns: int) -> None:
        kind = self._kind
        flags = self._flags
        length = self._length
        prefix = 0
        if kind != FrameType.CONTINUATION:
            prefix = 1 if flags & Flag.PADDED else 0
            if kind == FrameType.PUSH_PROMISE:
                prefix += 4
            elif flags & Flag.PRIORITY:
                prefix += 5
            self._has_block = True
            self._block = bytearray()
            self._block_stream = self._stream_id
            self._block_promised = self._block_size = 0
            self._block_ends = kind == FrameType.HEADERS and flags & Flag.END_STREAM != 0
            self._block_start_ns = self._start_ns
            self._block_first_ns = self._first_ns
        elif not self._has_block:
            if self._may_seek:  # its beginning went by unread
                self._sink.on_loss(self._side)
                self._ignore(length, end_ns)
            else:
                self._lose()
            return
        if length < prefix:
            self._lose()
            return
        if self._block_size + length > self._max_block:
            self._block = None
        need = prefix if self._block is None else length
        self._begin_payload(need, length - need, end_ns)

    def _begin_payload(self, need: int, rest: int, end_ns: int) -> None:
        self._body = 0
        self._padding = rest
        self._need = need
        self._state = _State.PAYLOAD
        if not need:
            self._take_payload(b"", end_ns)

    def _take_payload(self, payload: bytes, end_ns: int) -> None:
        kind = self._kind
        if kind == FrameType.RST_STREAM:
            self._sink.on_reset(self._side, self._stream_id, end_ns)
        elif kind == FrameType.SETTINGS:
            if not self._flags & Flag.ACK:
                self._sink.on_settings(self._side, list(SETTING.iter_unpack(payload)))
        elif kind == FrameType.GOAWAY:
            last = int.from_bytes(payload[:4], "big") & STREAM_MASK
            self._sink.on_goaway(self._side, last, end_ns)
        elif not self._take_fragment(payload):
            self._lose()
            return
        if self._padding:
            self._state = _State.BODY
        else:
            self._end_frame(end_ns)

    def _take_fragment(self, payload: bytes) -> bool:
        # RFC 9113 sections 6.2, 6.6 and 6.10.
        start = padding = 0
        if self._kind != FrameType.CONTINUATION:
            if self._flags & Flag.PADDED:
                padding = payload[0]
                start = 1
            if self._kind == FrameType.PUSH_PROMISE:
                promised = int.from_bytes(payload[start : start + 4], "big")
                self._block_promised = promised & STREAM_MASK
                start += 4
            elif self._flags & Flag.PRIORITY:
                start += 5
        end = self._length - padding
        if end < start:
            return False
        self._block_size += end - start
        if self._block is not None:
            self._block += payload[start:end]
        return True

    def _end_frame(self, end_ns: int) -> None:
        self._state = _State.HEADER
        if self._kind == FrameType.DATA:
            if self._ends:
                self._sink.on_end(self._side, self._stream_id, end_ns)
        elif self._has_block and self._flags & Flag.END_HEADERS:
            self._has_block = False
            block = Block(
                self._block_stream,
                self._block_promised,
                self._block_ends,
                None if self._block is None else bytes(self._block),
                self._block_size,
                self._block_start_ns,
                self._block_first_ns,
                end_ns,
            )
            self._block = None
            if not self._sink.on_block(self._side, block) and self._trust < _TRUSTED:
                self._lose()

    def _lose(self) -> None:
        self._pending.clear()
        self._has_block = False
        self._block = None
        self._body = self._padding = 0
        if self._may_seek:
            self._state = _State.SEEK
            self._trust = 0
            self._sink.on_loss(self._side)
        else:
            self._state = _State.FAILED
