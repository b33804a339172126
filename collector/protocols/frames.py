"""What frames of HTTP/2 look like (RFC 9113 sections 4 and 6), and where one might begin."""

from __future__ import annotations

import itertools
import re
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from collector.protocols.calls import Side

__all__ = [
    "DEFAULT_FRAME_SIZE",
    "HEADER_SIZE",
    "KEPT_SETTINGS",
    "LARGEST_FRAME_SIZE",
    "PREFACE",
    "SETTING",
    "STREAM_MASK",
    "Flag",
    "FrameType",
    "Setting",
    "find_boundary",
    "is_allowed",
    "is_plausible",
    "unpack_header",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first (RFC 9113 section 3.4)."""


class FrameType(IntEnum):
    """RFC 9113 section 6."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag(IntEnum):
    """RFC 9113 section 6. ``ACK`` is that of SETTINGS and PING."""

    END_STREAM = 0x01
    ACK = 0x01
    END_HEADERS = 0x04
    PADDED = 0x08
    PRIORITY = 0x20


class Setting(IntEnum):
    """Those of RFC 9113 section 6.5.2 that matter to an observer."""

    HEADER_TABLE_SIZE = 1
    MAX_FRAME_SIZE = 5


_HEADER: Final = struct.Struct(">BHBBI")
HEADER_SIZE: Final = 9
unpack_header: Final = _HEADER.unpack_from
SETTING: Final = struct.Struct(">HI")

DEFAULT_FRAME_SIZE: Final = 16_384
LARGEST_FRAME_SIZE: Final = 0xFF_FFFF
STREAM_MASK: Final = 0x7FFF_FFFF
KEPT_SETTINGS: Final = 64 * SETTING.size


class _Rule(NamedTuple):
    # What RFC 9113 section 6 allows: flags, sizes, and stream 0 (False), others (True) or any.
    flags: int
    shortest: int
    longest: int
    has_stream: bool | None


_RULES: Final[dict[int, _Rule]] = {
    FrameType.DATA: _Rule(0x09, 0, LARGEST_FRAME_SIZE, True),
    FrameType.HEADERS: _Rule(0x2D, 0, LARGEST_FRAME_SIZE, True),
    FrameType.PRIORITY: _Rule(0x00, 5, 5, True),
    FrameType.RST_STREAM: _Rule(0x00, 4, 4, True),
    FrameType.SETTINGS: _Rule(0x01, 0, LARGEST_FRAME_SIZE, False),
    FrameType.PUSH_PROMISE: _Rule(0x0C, 4, LARGEST_FRAME_SIZE, True),
    FrameType.PING: _Rule(0x01, 8, 8, False),
    FrameType.GOAWAY: _Rule(0x00, 8, LARGEST_FRAME_SIZE, False),
    FrameType.WINDOW_UPDATE: _Rule(0x00, 4, 4, None),
    FrameType.CONTINUATION: _Rule(0x04, 0, LARGEST_FRAME_SIZE, True),
}

# Extensions that are in use: ALTSVC (RFC 7838), ORIGIN (RFC 8336), PRIORITY_UPDATE (RFC 9218).
_EXTENSIONS: Final = frozenset({0x0A, 0x0C, 0x10})

# Frames in a row, on streams of usual numbers, that are hardly there by chance.
_LONG_CHAIN: Final = 2
_USUAL_STREAM: Final = 1 << 24
_MAX_CANDIDATES: Final = 1_024

# Where a frame of less than 64 KB might begin: flags of its type, a stream if it needs one. Done
# here and not in Python because bodies of zeros would pass for lengths everywhere.
_CANDIDATE: Final = re.compile(
    rb"(?=\x00..(?:"
    rb"(?:\x00[\x00\x01\x08\x09]|\x01[\x00\x01\x04\x05\x08\x09\x0c\x0d\x20-\x2d]|[\x02\x03]\x00"
    rb"|\x05[\x00\x04\x08\x0c]|\x09[\x00\x04])(?!\x00{4})[\x00-\x7f].{3}"
    rb"|(?:[\x04\x06][\x00\x01]|\x07\x00)\x00{4}|\x08\x00[\x00-\x7f].{3}))",
    re.DOTALL,
)


def is_plausible(side: Side, length: int, kind: int, flags: int, stream_id: int) -> bool:
    """Whether these nine octets look like a frame's header to one who does not know.

    Stricter than RFC 9113 section 4.1, which has receivers ignore unknown flags and types.
    """
    if stream_id > STREAM_MASK:
        return False
    rule = _RULES.get(kind)
    if rule is None:
        return kind in _EXTENSIONS and length <= DEFAULT_FRAME_SIZE
    if flags & ~rule.flags or not rule.shortest <= length <= rule.longest:
        return False
    if rule.has_stream is not None and rule.has_stream is not (stream_id != 0):
        return False
    if kind == FrameType.SETTINGS:
        return length % SETTING.size == 0 and length <= KEPT_SETTINGS
    if kind == FrameType.PUSH_PROMISE:
        return side is Side.RESPONSE
    if kind == FrameType.HEADERS:
        return length > 0 and (side is Side.RESPONSE or stream_id & 1 == 1)
    return kind != FrameType.DATA or side is Side.RESPONSE or stream_id & 1 == 1


def is_allowed(length: int, kind: int, stream_id: int) -> bool:
    """Whether a frame is one that does not break the connection (RFC 9113 section 6)."""
    rule = _RULES.get(kind)
    if rule is None:
        return True
    if not rule.shortest <= length <= rule.longest:
        return False
    if kind == FrameType.SETTINGS and length % SETTING.size:
        return False
    return rule.has_stream is None or rule.has_stream is (stream_id & STREAM_MASK != 0)


def find_boundary(side: Side, data: bytes, longest: int) -> int:
    """Say where a frame begins in a piece met without knowing; -1 if nowhere for sure."""
    # At the beginning any chain will do, but for a lone header of a frame so large that taking it
    # by mistake would cost megabytes.
    end, _ = _follow(side, data, 0, longest, set())
    if end >= 0:
        is_lone = int.from_bytes(data[:3], "big") > len(data) - HEADER_SIZE
        if not is_lone or end - len(data) <= DEFAULT_FRAME_SIZE:
            return 0
    # Inside a piece a chain must end where the piece does, or be long: chance hits neither.
    # One begins within the length of a usual frame, if the side is in the middle of such.
    failed: set[int] = set()
    candidates = _CANDIDATE.finditer(data, 1, DEFAULT_FRAME_SIZE + 2 * HEADER_SIZE)
    for match in itertools.islice(candidates, _MAX_CANDIDATES):
        start = match.start()
        end, frames = _follow(side, data, start, longest, failed)
        if end == len(data) or (end >= 0 and frames >= _LONG_CHAIN):
            return start
        failed.add(start)
    return -1


def _is_usual(length: int, kind: int, flags: int, stream_id: int) -> bool:
    # An empty frame that ends nothing has no use, but is what small numbers look like.
    is_idle = kind == FrameType.DATA and not length and not flags
    return stream_id < _USUAL_STREAM and not is_idle


def _follow(
    side: Side, data: bytes, position: int, longest: int, failed: set[int]
) -> tuple[int, int]:
    # The end of a chain of frames, -1 if it breaks, and how many frames it has; the last may go on
    # beyond the data. Where a chain broke is remembered: what leads there breaks as well.
    start = position
    frames = 0
    visited: list[int] = []
    size = len(data)
    while size - position >= HEADER_SIZE:
        high, low, kind, flags, stream_id = unpack_header(data, position)
        length = high << 16 | low
        if (
            position in failed
            or length > longest
            or not is_plausible(side, length, kind, flags, stream_id)
            or (start and not _is_usual(length, kind, flags, stream_id))
        ):
            failed.update(visited)
            return -1, frames
        visited.append(position)
        frames += 1
        position += HEADER_SIZE + length
    return position, frames
