"""The content of an HTTP/1 message: counted by arithmetic, never looked at.

A `Body` is told how its message is framed and then where each piece of it begins; it says where
the message ends. Memory: one chunk-size line.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["CHUNKED", "UNKNOWN", "UNTIL_CLOSE", "Body"]

CHUNKED: Final = -1
"""Framing of a message with ``Transfer-Encoding: chunked``; 0 and more are a Content-Length."""

UNTIL_CLOSE: Final = -2
"""Framing of a response that the end of the connection ends."""

UNKNOWN: Final = -3
"""Framing that contradicts itself: the end of the message cannot be known."""

_OVER, _LENGTH, _SIZE_LINE, _CHUNK, _CHUNK_END, _TRAILER, _CLOSE, _BAD = range(8)

# Extensions and the blanks before them are bounded, because an incomplete line is kept.
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]{0,64}(?:;[^\n]{0,4096})?\r?\n")
_LINE_START: Final = re.compile(rb"[0-9A-Fa-f]{1,15}(?:[ \t]{0,64}(?:;[^\n]{0,4096})?\r?)?")
_ENDLESS: Final = (1 << 31) - 1


class Body:
    """How far a message's content has come (RFC 9112 sections 6 and 7).

    Attributes:
        size: Bytes of content so far, chunk framing not included.
        trailer_size: Bytes of the trailer section. One with fields counts its field lines and the
            empty line that ends it; without fields that line is chunk framing and counts nothing.
    """

    __slots__ = ("_left", "_line", "_state", "size", "trailer_size")

    def __init__(self) -> None:
        self.size = 0
        self.trailer_size = 0
        self._state = _OVER
        self._left = 0  # of the content or chunk; in a trailer, bytes of the line so far
        self._line = b""

    def begin(self, framing: int) -> None:
        """Start a message: a Content-Length, `CHUNKED`, `UNTIL_CLOSE` or `UNKNOWN`."""
        self.size = self.trailer_size = self._left = 0
        self._line = b""
        if framing > 0:
            self._state = _LENGTH
            self._left = framing
        elif framing == 0:
            self._state = _OVER
        elif framing == CHUNKED:
            self._state = _SIZE_LINE
        else:
            self._state = _CLOSE if framing == UNTIL_CLOSE else _BAD

    @property
    def is_over(self) -> bool:
        """Whether the last byte of the message was seen."""
        return self._state == _OVER

    @property
    def is_bad(self) -> bool:
        """Whether the bytes were not what the framing demands, or were lost: no end to be seen."""
        return self._state == _BAD

    @property
    def is_until_close(self) -> bool:
        """Whether only the end of the connection ends it (RFC 9112 section 6.3, rule 8)."""
        return self._state == _CLOSE

    @property
    def is_length(self) -> bool:
        """Whether it is in content whose length a field gave."""
        return self._state == _LENGTH

    @property
    def unneeded(self) -> int:
        """How many of the next bytes are content for sure."""
        if self._state in (_LENGTH, _CHUNK):
            return self._left
        return _ENDLESS if self._state == _CLOSE else 0

    def read(self, data: bytes, position: int) -> int:
        """Take the bytes from a position on; return the position after those that belonged to it.

        Where that is not the end of the bytes, the message is over or bad.
        """
        size = len(data)
        while position < size:
            state = self._state
            if state in (_LENGTH, _CHUNK):
                taken = min(self._left, size - position)
                position += taken
                self.skip(taken)
            elif state == _SIZE_LINE:
                if not self._line:
                    position = self._pass_chunks(data, position)
                if position < size:
                    position = self._read_size_line(data, position)
            elif state == _CHUNK_END:
                position = self._read_chunk_end(data, position)
            elif state == _TRAILER:
                position = self._read_trailer(data, position)
            elif state == _CLOSE:
                self.size += size - position
                return size
            else:
                break
        return position

    def skip(self, size: int) -> int:
        """Take bytes unseen; return how many of them cannot be said to belong to the message.

        The message is bad where they may have been framing.
        """
        state = self._state
        if state == _CLOSE:
            self.size += size
            return 0
        if state in (_LENGTH, _CHUNK):
            taken = min(self._left, size)
            self.size += taken
            self._left -= taken
            size -= taken
            if not self._left:
                self._state = state = _OVER if state == _LENGTH else _CHUNK_END
        if size and state != _OVER:
            self._state = _BAD
        return size

    def _pass_chunks(self, data: bytes, position: int) -> int:
        # Chunks that are whole, up to the last, which is left.
        size = len(data)
        while match := _CHUNK_SIZE.match(data, position):
            length = int(match[1], 16)
            after = match.end() + length
            if not length or after + 2 > size or data[after : after + 2] != b"\r\n":
                break
            self.size += length
            position = after + 2
        return position

    def _read_size_line(self, data: bytes, position: int) -> int:
        if self._line:
            end = data.find(b"\n", position) + 1
            part = data[position : end or len(data)]
            line = self._line + part
            match = _CHUNK_SIZE.match(line)
            position += len(part)
        else:
            line = data
            match = _CHUNK_SIZE.match(data, position)
            if match is None:
                line = data[position:]
                position = len(data)
            else:
                position = match.end()
        if match is None:
            # A line that has not ended yet is kept.
            if _LINE_START.fullmatch(line):
                self._line = line
            else:
                self._state = _BAD
            return position
        self._line = b""
        self._left = int(match[1], 16)
        self._state = _CHUNK if self._left else _TRAILER
        return position

    def _read_chunk_end(self, data: bytes, position: int) -> int:
        # _left is 1 after a carriage return.
        byte = data[position]
        if byte == 0x0A:
            self._left = 0
            self._state = _SIZE_LINE
        elif byte == 0x0D and not self._left:
            self._left = 1
        else:
            self._state = _BAD
        return position + 1

    def _read_trailer(self, data: bytes, position: int) -> int:
        # _left counts the bytes of the line, without a carriage return that begins it.
        if not (self._left or self._line) and data[position : position + 2] == b"\r\n":
            self.trailer_size += 2 if self.trailer_size else 0
            self._state = _OVER
            return position + 2
        end = data.find(b"\n", position)
        until = len(data) if end < 0 else end
        length = until - position
        if length and not self._left and not self._line and data[position] == 0x0D:
            self._line = b"\r"
            length -= 1
        self._left += length
        if end < 0:
            return until
        size = self._left + len(self._line) + 1
        is_empty = not self._left
        if not is_empty or self.trailer_size:
            self.trailer_size += size
        if is_empty:
            self._state = _OVER
        self._left = 0
        self._line = b""
        return end + 1
