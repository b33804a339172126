"""Which protocol a connection speaks, from the first bytes of one of its sides."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

from collector.protocols.calls import Side
from collector.protocols.first_lines import looks_like_request, looks_like_response
from collector.protocols.frames import (
    HEADER_SIZE,
    PREFACE,
    FrameType,
    is_plausible,
    unpack_header,
)

__all__ = ["Protocol", "detect", "proxy_header_size"]

_PROXY_V1: Final = b"PROXY "
_PROXY_V1_LINE: Final = re.compile(
    rb"PROXY (?:UNKNOWN[^\r\n]*|TCP[46](?: [0-9A-Fa-f.:]+){2}(?: [0-9]{1,5}){2})\r\n"
)
_PROXY_V1_MAX: Final = 107
_PROXY_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_PROXY_V2_FIXED: Final = 16

_MAX_FRAME: Final = 1 << 20  # far more than the default of 2**14, far less than random bytes say
_ENOUGH_FRAMES: Final = 3


class Protocol(IntEnum):
    """What a connection speaks."""

    UNDECIDED = 0
    HTTP1 = 1
    HTTP2 = 2
    OTHER = 3


def detect(data: bytes, is_joined: bool = False) -> Protocol | None:
    """Say what the first bytes of a side speak.

    An HTTP/1 request or status line (RFC 9112 sections 3 and 4), an HTTP/2 connection preface or
    frames that fit together (RFC 9113 sections 3.4, 4.1 and 6), each also after a PROXY header.

    Args:
        data: From the beginning of a message, or of the piece if that is not known.
        is_joined: Whether the connection is older than its bytes; then frames of every kind can
            come first, else only SETTINGS.

    Returns:
        None where there are too few bytes to tell.
    """
    if not is_joined:
        prefix = proxy_header_size(data)
        if prefix is None:
            return None
        data = data[prefix:].lstrip(b"\r\n")  # empty lines may come first (RFC 9112 section 2.2)
    if not data:
        return None
    if data.startswith(PREFACE[: len(data)]):
        return Protocol.HTTP2 if len(data) >= len(PREFACE) else None
    answers = (looks_like_request(data), looks_like_response(data))
    if True in answers:
        return Protocol.HTTP1
    frames = _frames(data, is_joined)
    if frames:
        return Protocol.HTTP2
    return None if frames is None or None in answers else Protocol.OTHER


def proxy_header_size(data: bytes) -> int | None:
    """Return the length of the PROXY header before the first message, 0 without one.

    Returns:
        None where there are too few bytes to tell.
    Source: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt sections 2.1 and 2.2.
    """
    if data[:1] == b"P" and data[: len(_PROXY_V1)] == _PROXY_V1[: len(data)]:
        match = _PROXY_V1_LINE.match(data)
        if match:
            return match.end()
        return 0 if len(data) >= _PROXY_V1_MAX or b"\n" in data else None
    if data[:1] == b"\r" and data[: len(_PROXY_V2)] == _PROXY_V2[: len(data)]:
        if len(data) < _PROXY_V2_FIXED:
            return None
        size = _PROXY_V2_FIXED + int.from_bytes(data[14:16], "big")
        return size if len(data) >= size else None
    return 0


def _frames(data: bytes, is_joined: bool) -> bool | None:
    # Whether the bytes are HTTP/2 frames: several in a row, or one that ends with the bytes.
    size = len(data)
    position = count = 0
    while position < size:
        if size - position < HEADER_SIZE:
            can_be_first = is_joined or count or data[3:4] in (b"", b"\x04")
            return None if can_be_first and not data[position] else False
        high, low, kind, flags, stream = unpack_header(data, position)
        length = high << 16 | low
        if length > _MAX_FRAME or not is_plausible(Side.RESPONSE, length, kind, flags, stream):
            return False
        if not is_joined and not count and (kind != FrameType.SETTINGS or flags):
            return False
        count += 1
        position += HEADER_SIZE + length
        if count == _ENOUGH_FRAMES:
            return True
    # Data alone says little: that is how lengths before bytes look in other protocols, too.
    return True if position == size and (count > 1 or kind != FrameType.DATA) else None
