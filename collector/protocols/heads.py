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
from collector.protocols.first_lines import REQUEST_LINE, STATUS_LINE
from collector.protocols.traces import find_trace

__all__ = [
    "HeadCache",
    "RequestHead",
    "ResponseHead",
    "parse_request_head",
    "parse_response_head",
    "shared_heads",
]

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
    match = REQUEST_LINE.match(raw)
    if match is None:
        return None
    name, target, minor = match.groups()
    method = name.decode()
    host = lengths = codings = None
    switches = False
    traces: dict[str, str] = {}
    for field, value in _REQUEST_FIELDS.findall(raw):
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
            traces[field.decode()] = _text(value.strip())
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
        find_trace(traces.get) if traces else None,
        switches,
        framing >= 0 and not switches,
    )


def parse_response_head(raw: bytes) -> ResponseHead | None:
    """Parse a status line and its fields (RFC 9112 sections 4, 5 and 6).

    Returns:
        None if the status line is none.
    """
    match = STATUS_LINE.match(raw)
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
        # Trace ids are new in every request, so that with them nothing repeats.
        if head is not None and head.trace is None and self._has_room(raw):
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
