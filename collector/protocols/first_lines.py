"""The first line of an HTTP/1 message: what is one, and what can still become one."""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "REQUEST_LINE",
    "STATUS_LINE",
    "begins_known_request",
    "looks_like_request",
    "looks_like_response",
]

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110 section 5.6.2
REQUEST_LINE: Final = re.compile(
    rb"(" + _TOKEN + rb"{1,64})[ \t]+([^\s]+)[ \t]+HTTP/1\.([0-9])[ \t]*\r?\n"
)
"""A request line (RFC 9112 section 3): method, target, minor version."""

STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9][ \t]+([1-9][0-9]{2})(?:[ \t][^\n]*)?\r?\n")
"""A status line (RFC 9112 section 4): status."""

_REQUEST_START: Final = re.compile(_TOKEN + rb"{1,64}[ \t]+[^\s]+[ \t]+HTTP/1\.[0-9](?=\s)")
_RESPONSE_START: Final = re.compile(rb"HTTP/1\.[0-9][ \t]+[1-9][0-9]{2}(?=\s)")
_KNOWN_METHOD: Final = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH)[ \t]"  # RFC 9110 section 9.3, 5789
)


def _beginning(text: bytes, rest: bytes) -> bytes:
    # A pattern for every beginning of the text, and for the text with the rest after it.
    pattern = rest
    for byte in reversed(text):
        pattern = rb"(?:" + re.escape(bytes((byte,))) + pattern + rb")?"
    return pattern


_VERSION_BEGINNING: Final = _beginning(b"HTTP/1.", rb"[0-9]?")
_REQUEST_BEGINNING: Final = re.compile(
    _TOKEN + rb"{1,64}(?:[ \t]+(?:[^\s]+(?:[ \t]+" + _VERSION_BEGINNING + rb")?)?)?"
)
_RESPONSE_BEGINNING: Final = re.compile(
    _beginning(b"HTTP/1.", rb"(?:[0-9](?:[ \t]+(?:[1-9][0-9]{0,2})?)?)?")
)


def looks_like_request(data: bytes | bytearray) -> bool | None:
    """Whether the bytes begin with a request line (RFC 9112 section 3); None: too few to tell."""
    if _REQUEST_START.match(data):
        return True
    return None if _REQUEST_BEGINNING.fullmatch(data) else False


def begins_known_request(data: bytes) -> bool:
    """Whether the bytes begin with a request line of one of the usual methods."""
    return _REQUEST_START.match(data) is not None and _KNOWN_METHOD.match(data) is not None


def looks_like_response(data: bytes | bytearray) -> bool | None:
    """Whether the bytes begin with a status line (RFC 9112 section 4); None: too few to tell."""
    if _RESPONSE_START.match(data):
        return True
    return None if _RESPONSE_BEGINNING.fullmatch(data) else False
