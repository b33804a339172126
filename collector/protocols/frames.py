"""What frames of HTTP/2 look like (RFC 9113 sections 4 and 6), and where one might begin."""

from __future__ import annotations

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

# Where a frame of less than 64 KB with the flags of its type might begin.
_CANDIDATE: Final = re.compile(
    rb"(?=\x00..(?:\x00[\x00\x01\x08\x09]|\x01[\x00\x01\x04\x05\x08\x09\x0c\x0d\x20-\x2d]"
    rb"|[\x02\x03\x07\x08]\x00|[\x04\x06][\x00\x01]|\x05[\x00\x04\x08\x0c]|\x09[\x00\x04])[\x00-\x7f])",
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
    if _follow(side, data, 0, longest, set()) >= 0:
        return 0
    # Inside a piece a chain must end where the piece does: chance does not hit that.
    failed: set[int] = set()
    for match in _CANDIDATE.finditer(data):
        if _follow(side, data, match.start(), longest, failed) == len(data):
            return match.start()
    return -1


def _follow(side: Side, data: bytes, position: int, longest: int, failed: set[int]) -> int:
    # The end of a chain of frames, -1 if it breaks. It may end in the middle of a frame.
    visited = []
    size = len(data)
    while size - position >= HEADER_SIZE:
        if position in failed:
            break
        visited.append(position)
        high, low, kind, flags, stream_id = unpack_header(data, position)
        length = high << 16 | low
        if length > longest or not is_plausible(side, length, kind, flags, stream_id):
            break
        position += HEADER_SIZE + length
    else:
        if position != size:
            failed.update(visited)
        return position
    failed.update(visited)
    return -1
