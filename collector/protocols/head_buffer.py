"""A header section that comes in several pieces."""

from __future__ import annotations

__all__ = ["HeadBuffer"]


def _section_end(data: bytearray, start: int) -> int:
    # The position after the first empty line at or after a position, -1 without one
    crlf = data.find(b"\n\r\n", start)
    lf = data.find(b"\n\n", start, crlf + 1 if crlf >= 0 else len(data))
    if lf >= 0:
        return lf + 2
    return crlf + 3 if crlf >= 0 else -1


class HeadBuffer:
    """Collects a header section that comes in several pieces.

    Attributes:
        start_ns: When its first byte began to move.
        first_ns: When the piece with its first byte had moved.
        size: Its bytes so far.
        raw: The section, once it is whole; of one that is too long the lines that were kept.
    """

    __slots__ = ("_buffer", "_check_at", "_kept", "_limit", "first_ns", "raw", "size", "start_ns")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._kept = b""
        self._check_at = 0
        self.raw = b""
        self.size = 0
        self.start_ns = 0
        self.first_ns = 0

    def begin(self, start_ns: int, end_ns: int) -> None:
        """Forget what was, and start with a piece of those times."""
        self._buffer.clear()
        self._kept = self.raw = b""
        self._check_at = 1
        self.size = 0
        self.start_ns = start_ns
        self.first_ns = end_ns

    def take(self, data: bytes, position: int) -> int:
        """Take bytes up to the end of the section, if it is there; return the position after."""
        buffer = self._buffer
        while position < len(data):
            # Bytes after the section are of no use here, so never copy many of them.
            room = max(self._limit - len(buffer), 1)
            part = data[position : position + room]
            before = len(buffer)
            buffer += part
            end = _section_end(buffer, max(before - 2, 0))
            if end >= 0:
                self.size += end - before
                self.raw = self._kept or bytes(buffer[:end])
                return position + end - before
            self.size += len(part)
            position += len(part)
            if len(buffer) >= self._limit:
                self._kept = self._kept or self._whole_lines()
                del buffer[:-2]
        return position

    def _whole_lines(self) -> bytes:
        return bytes(self._buffer[: self._buffer.rfind(b"\n") + 1]) + b"\r\n"

    def begins(self) -> bytes | None:
        """Return what is there, if it is time to see whether it can become a header section.

        That is at every line end and every time that it has doubled.
        """
        buffer = self._buffer
        if self._kept or not self._check_at:
            return None
        if len(buffer) < self._check_at and b"\n" not in buffer[-1024:]:
            return None
        self._check_at = len(buffer) * 2
        return bytes(buffer)

    def is_accepted(self) -> None:
        """Note that what is there begins with a proper first line."""
        self._check_at = 0

    def partial(self) -> bytes:
        """Return the whole lines so far and an empty line, as if the section had ended."""
        return self._kept or self._whole_lines()
