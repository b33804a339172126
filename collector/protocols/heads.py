"""Header sections of HTTP/1: what they say, and a memory of those that repeat.

Most connections send the same few header sections over and over. `HeadCache` answers for those by
one look-up of their raw bytes, without parsing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from collector.protocols.bodies import CHUNKED, UNKNOWN, UNTIL_CLOSE
from collector.protocols.calls import Trace, Version
from collector.protocols.traces import find_trace

__all__ = [
    "HeadBuffer",
    "HeadCache",
    "RequestHead",
    "ResponseHead",
    "begins_known_request",
    "looks_like_request",
    "looks_like_response",
    "parse_request_head",
    "parse_response_head",
    "shared_heads",
]

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110 section 5.6.2
_REQUEST_LINE: Final = re.compile(
    rb"(" + _TOKEN + rb"{1,64})[ \t]+([^\s]+)[ \t]+HTTP/1\.([0-9])[ \t]*\r?\n"
)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9][ \t]+([1-9][0-9]{2})(?:[ \t][^\n]*)?\r?\n")
_REQUEST_START: Final = re.compile(_TOKEN + rb"{1,64}[ \t]+[^\s]+[ \t]+HTTP/1\.[0-9](?=\s)")
_RESPONSE_START: Final = re.compile(rb"HTTP/1\.[0-9][ \t]+[1-9][0-9]{2}(?=\s)")
_KNOWN_METHOD: Final = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH)[ \t]"  # RFC 9110 section 9.3, 5789
)
# Fields that are asked for, with values that may be folded (RFC 9112 section 5.2)
_VALUE: Final = rb":([^\n]*(?:\n[ \t][^\n]*)*)"
_REQUEST_FIELDS: Final = re.compile(
    rb"\n(host|content-length|transfer-encoding|upgrade|traceparent|sw8|b3|x-b3-(?:trace|span)id)"
    + _VALUE,
    re.IGNORECASE,
)
_RESPONSE_FIELDS: Final = re.compile(
    rb"\n(content-length|transfer-encoding)" + _VALUE, re.IGNORECASE
)
_ABSOLUTE: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://([^/?#]*)(.*)", re.DOTALL)
_FOLD: Final = re.compile(rb"[ \t]*\r?\n[ \t]+")
_SLASH: Final = 0x2F
_HTTP_1_0: Final = Version.HTTP_1_0
_HTTP_1_1: Final = Version.HTTP_1_1
_MAX_LENGTH_DIGITS: Final = 18  # a Content-Length that 64 bits hold


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


@dataclass(slots=True)
class RequestHead:
    """What a request's header section says.

    Attributes:
        framing: See `collector.protocols.bodies`.
        switches: It is CONNECT or has ``Upgrade``: what follows may not be HTTP/1.
        is_simple: It has a known length and does not switch.
    """

    version: int
    method: str
    path: str
    host: str
    framing: int
    trace: Trace | None
    switches: bool
    is_simple: bool


@dataclass(slots=True)
class ResponseHead:
    """What a response's header section says.

    Attributes:
        framing: See `collector.protocols.bodies`; without regard to the request's method.
        upgrade: The protocols of ``Upgrade``, in lower case.
        is_simple: It is a final response of known length.
    """

    status: int
    framing: int
    upgrade: str
    is_simple: bool


def parse_request_head(raw: bytes, keep_query: bool = False) -> RequestHead | None:
    """Parse a request line and its fields (RFC 9112 sections 3, 5 and 6).

    Args:
        raw: From the request line to the empty line, both included; lines may end in a bare LF and
            fields may be folded.
        keep_query: Whether the path keeps its query.

    Returns:
        None if the request line is none.
    """
    match = _REQUEST_LINE.match(raw)
    if match is None:
        return None
    name, target, minor = match.groups()
    method = name.decode()
    fields = _REQUEST_FIELDS.findall(raw)
    host = lengths = codings = None
    switches = has_trace = False
    for field, value in fields:
        field = field.lower()
        if field == b"host":
            host = value.strip()
        elif field == b"content-length":
            lengths = _join(lengths, value)
        elif field == b"transfer-encoding":
            codings = _join(codings, value)
        elif field == b"upgrade":
            switches = True
        else:
            has_trace = True
    if target[0] != _SLASH and method != "CONNECT":
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is not None:
            # Absolute form: its authority replaces Host (RFC 9112 section 3.2.2).
            host = absolute[1].rpartition(b"@")[2]
            target = absolute[2]
            if target[:1] != b"/":
                target = b"*" if method == "OPTIONS" and not target else b"/" + target
    if not keep_query:
        target = target.partition(b"?")[0].partition(b"#")[0]
    if method == "CONNECT":
        switches = True
        host = host or target
    framing = 0 if lengths is None else _length(lengths)
    if codings is not None:
        framing = _coded_framing(codings, UNKNOWN, framing)
    return RequestHead(
        _HTTP_1_0 if minor == b"0" else _HTTP_1_1,
        method,
        _text(target),
        _text(host) if host else "",
        framing,
        _trace(fields) if has_trace else None,
        switches,
        framing >= 0 and not switches,
    )


def parse_response_head(raw: bytes) -> ResponseHead | None:
    """Parse a status line and its fields (RFC 9112 sections 4, 5 and 6).

    Returns:
        None if the status line is none.
    """
    match = _STATUS_LINE.match(raw)
    if match is None:
        return None
    status = int(match[1])
    if status < 200 or status == 204 or status == 304:
        return ResponseHead(status, 0, _upgrade(raw) if status == 101 else "", status >= 200)
    lengths = codings = None
    for field, value in _RESPONSE_FIELDS.findall(raw):
        if field[0] in b"cC":
            lengths = _join(lengths, value)
        else:
            codings = _join(codings, value)
    framing = UNTIL_CLOSE if lengths is None else _length(lengths)
    if codings is not None:
        framing = _coded_framing(codings, UNTIL_CLOSE, framing)
    return ResponseHead(status, framing, "", framing >= 0)


def _text(value: bytes) -> str:
    if b"\n" in value:
        value = _FOLD.sub(b" ", value)
    return value.decode("utf-8", "backslashreplace")


def _join(values: bytes | None, value: bytes) -> bytes:
    # Several fields of one name are one list (RFC 9110 section 5.3).
    return value if values is None else values + b"," + value


def _trace(fields: list[tuple[bytes, bytes]]) -> Trace | None:
    values = {name.lower(): value for name, value in fields}

    def get(name: str) -> str | None:
        value = values.get(name.encode())
        return None if value is None else _text(value.strip())

    return find_trace(get)


def _upgrade(raw: bytes) -> str:
    values = (value for name, value in _REQUEST_FIELDS.findall(raw) if name.lower() == b"upgrade")
    return _text(b",".join(values)).lower()


def _coded_framing(codings: bytes, otherwise: int, plain: int) -> int:
    # RFC 9112 section 6.3, rules 3 and 4; identity was a coding in RFC 2616.
    names = [name.strip().lower() for name in codings.split(b",") if name.strip()]
    if names and names[-1] == b"chunked":
        return CHUNKED
    return plain if names in ([], [b"identity"]) else otherwise


def _length(lengths: bytes) -> int:
    # RFC 9112 section 6.3, rule 5: the same number several times counts once.
    value = lengths.strip()
    if not value.isdigit():
        numbers = {number.strip() for number in lengths.split(b",")}
        value = numbers.pop() if len(numbers) == 1 else b""
    return int(value) if value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS else UNKNOWN


class HeadCache:
    """Header sections by their raw bytes, and what they say.

    Bounded by entries and bytes: a full cache is emptied, so that sections which never repeat cost
    a bounded amount of memory and those which do are soon back.

    Attributes:
        requests: What is known; a look-up of bytes that are no whole section finds nothing.
        responses: As of requests.
    """

    __slots__ = ("_bytes", "keep_query", "max_bytes", "max_entries", "requests", "responses")

    def __init__(
        self, keep_query: bool = False, max_entries: int = 8_192, max_bytes: int = 4 << 20
    ) -> None:
        self.keep_query = keep_query
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.requests: dict[bytes, RequestHead] = {}
        self.responses: dict[bytes, ResponseHead] = {}
        self._bytes = 0

    def request(self, raw: bytes) -> RequestHead | None:
        """Parse and remember bytes that end in an empty line.

        Returns:
            None if they are not exactly one request's header section.
        """
        if not _is_one_section(raw):
            return None
        head = parse_request_head(raw, self.keep_query)
        if head is not None and self._has_room(raw):
            self.requests[raw] = head
        return head

    def response(self, raw: bytes) -> ResponseHead | None:
        """As `request`, of a response."""
        if not _is_one_section(raw):
            return None
        head = parse_response_head(raw)
        if head is not None and self._has_room(raw):
            self.responses[raw] = head
        return head

    def __len__(self) -> int:
        return len(self.requests) + len(self.responses)

    def _has_room(self, raw: bytes) -> bool:
        # Room for the bytes is made; only those too long to be worth it have none.
        size = len(raw)
        if size > self.max_bytes >> 6:
            return False
        if len(self) >= self.max_entries or self._bytes + size > self.max_bytes:
            self.requests.clear()
            self.responses.clear()
            self._bytes = 0
        self._bytes += size
        return True


_shared: Final[dict[bool, HeadCache]] = {}


def shared_heads(keep_query: bool) -> HeadCache:
    """Return the cache that all connections of this process share."""
    cache = _shared.get(keep_query)
    if cache is None:
        cache = _shared[keep_query] = HeadCache(keep_query)
    return cache


def _is_one_section(raw: bytes) -> bool:
    # The empty line is the last, and lines before it end as lines do.
    end = raw.find(b"\n\r\n")
    return end == len(raw) - 3 and b"\n\n" not in raw


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
