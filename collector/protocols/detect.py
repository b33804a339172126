"""Which protocol a connection speaks, from the first bytes of one of its sides."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

from collector.protocols.heads import looks_like_request, looks_like_response

__all__ = ["PREFACE", "Protocol", "detect", "proxy_header_size"]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What an HTTP/2 client says first (RFC 9113 section 3.4)."""

_PROXY_V1: Final = b"PROXY "
_PROXY_V1_LINE: Final = re.compile(
    rb"PROXY (?:UNKNOWN[^\r\n]*|TCP[46](?: [0-9A-Fa-f.:]+){2}(?: [0-9]{1,5}){2})\r\n"
)
_PROXY_V1_MAX: Final = 107
_PROXY_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_PROXY_V2_FIXED: Final = 16

_FRAME_HEADER: Final = 9
_MAX_FRAME: Final = 1 << 20  # far more than the default of 2**14, far less than random bytes say
_ENOUGH_FRAMES: Final = 3
_MIN_BYTES: Final = 16
_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS = range(5)
_PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = range(5, 10)
# By type: flags that mean something; whether it belongs to a stream (None: either); its length
_FLAGS: Final = (0x09, 0x2D, 0, 0, 0x01, 0x0C, 0x01, 0, 0, 0x04)
_HAS_STREAM: Final = (True, True, True, True, False, True, False, False, None, True)
_SIZES: Final = {_PRIORITY: 5, _RST_STREAM: 4, _PING: 8, _WINDOW_UPDATE: 4}


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
        data = data[prefix:]
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
        if size - position < _FRAME_HEADER:
            return None if data[position : position + 1] in (b"", b"\0") else False
        length = int.from_bytes(data[position : position + 3], "big")
        kind, flags = data[position + 3], data[position + 4]
        stream = int.from_bytes(data[position + 5 : position + 9], "big")
        if not _is_frame(length, kind, flags, stream):
            return False
        if not is_joined and not count and (kind != _SETTINGS or flags):
            return False
        count += 1
        position += _FRAME_HEADER + length
        if count == _ENOUGH_FRAMES:
            return True
    # Data alone says little: that is how lengths before bytes look in other protocols, too.
    return True if position == size and (count > 1 or kind != _DATA) else None


def _is_frame(length: int, kind: int, flags: int, stream: int) -> bool:
    if kind > _CONTINUATION or length > _MAX_FRAME or flags & ~_FLAGS[kind] or stream >> 31:
        return False
    has_stream = _HAS_STREAM[kind]
    if has_stream is not None and has_stream != bool(stream):
        return False
    if kind == _SETTINGS:
        return length % 6 == 0 and not (flags and length)
    if kind == _GOAWAY:
        return length >= 8
    if kind == _HEADERS:
        return length > 0
    return length == _SIZES.get(kind, length)
