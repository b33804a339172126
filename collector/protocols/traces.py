"""Trace ids in request header fields, whichever protocol carried them."""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from typing import TYPE_CHECKING, Final

from collector.protocols.calls import Trace, TraceProvider

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TRACE_FIELDS", "find_trace"]

TRACE_FIELDS: Final = ("sw8", "traceparent", "b3", "x-b3-traceid", "x-b3-spanid")
"""The header fields that `find_trace` asks for, in lower case."""

_W3C: Final = re.compile(
    r"([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-[0-9a-f]{2}(-.*)?",
    re.IGNORECASE | re.ASCII,
)
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_MAX_ID: Final = 256
_B3_IDS: Final = (16, 32)
_SW8_PARTS: Final = 8


def find_trace(get: Callable[[str], str | None]) -> Trace | None:
    """Return the trace that a request belongs to, or None.

    SkyWalking's field comes first, because it alone names the segment that made the call; then
    W3C, then Zipkin's single field and its several. A malformed field counts as absent.

    Args:
        get: Value of a header field by its lower-case name, None where there is none.

    Source: RFC 9110 section 5.1 (field names); the formats are named at `Trace`.
    """
    value = get("sw8")
    if value and (trace := _skywalking(value)):
        return trace
    value = get("traceparent")
    if value and (trace := _w3c(value)):
        return trace
    value = get("b3")
    if value:
        parts = value.strip().split("-")
        # One part alone is only a sampling decision.
        if len(parts) > 1 and (trace := _zipkin(parts[0], parts[1])):
            return trace
    value = get("x-b3-traceid")
    return _zipkin(value.strip(), (get("x-b3-spanid") or "").strip()) if value else None


def _skywalking(value: str) -> Trace | None:
    # sample-traceid-segmentid-spanindex-service-instance-endpoint-address; ids and names in base64
    parts = value.strip().split("-")
    if len(parts) != _SW8_PARTS or parts[0] not in ("0", "1") or not parts[3].isdecimal():
        return None
    trace_id, segment_id = _plain(parts[1]), _plain(parts[2])
    if not trace_id or not segment_id:
        return None
    return Trace(TraceProvider.SKYWALKING, trace_id, parts[3][:_MAX_ID], segment_id)


def _plain(encoded: str) -> str:
    try:
        text = b64decode(encoded, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    return text if len(text) <= _MAX_ID and text.isprintable() else ""


def _w3c(value: str) -> Trace | None:
    match = _W3C.fullmatch(value.strip())
    if match is None:
        return None
    version, trace_id, span_id, more = match.groups()
    # Later versions may append fields; ff is none, and neither are ids of zeros.
    if (version == "00" and more) or version.lower() == "ff":
        return None
    return Trace(TraceProvider.W3C, trace_id, span_id)


def _zipkin(trace_id: str, span_id: str) -> Trace | None:
    if len(trace_id) not in _B3_IDS or not _HEX.issuperset(trace_id):
        return None
    if len(span_id) != 16 or not _HEX.issuperset(span_id):
        span_id = ""
    return Trace(TraceProvider.ZIPKIN, trace_id, span_id)
