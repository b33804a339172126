"""What every protocol parser takes and gives: bytes of two sides in, calls out.

A parser sees one connection. It is fed what its two ends said, in the order in which the local
socket moved it, and appends a `Call` to a list for each request that came to its end. It never
raises on bytes, keeps a bounded amount of memory, and what it finds does not depend on how the
bytes are cut into pieces (times do: a piece carries the time of the call that moved it).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from schemas.events import RequestOutcome as Outcome

__all__ = [
    "NOT_GRPC",
    "NO_STATUS",
    "UNMEASURED",
    "Call",
    "Exchange",
    "Outcome",
    "Settings",
    "Side",
    "Trace",
    "TraceProvider",
    "Version",
]

UNMEASURED: Final = -1
"""In a size or time of a `Call`: not known."""

NO_STATUS: Final = 0
"""``Call.status`` of a call without a final response."""

NOT_GRPC: Final = -2
"""``Call.grpc_status`` of a call that is not gRPC; `UNMEASURED` for one whose status is unknown."""


class Side(IntEnum):
    """Who said it."""

    REQUEST = 0
    RESPONSE = 1


class Version(IntEnum):
    """Of HTTP."""

    HTTP_1_0 = 10
    HTTP_1_1 = 11
    HTTP_2 = 20


class TraceProvider(IntEnum):
    """Whose header carried the trace ids."""

    NONE = 0
    W3C = 1
    ZIPKIN = 2
    SKYWALKING = 3


@dataclass(frozen=True, slots=True)
class Trace:
    """Ids that the request carried, as they stood in its header.

    Source: https://www.w3.org/TR/trace-context/ (``traceparent``),
    https://github.com/openzipkin/b3-propagation (``b3``, ``x-b3-traceid``, ``x-b3-spanid``),
    SkyWalking cross process propagation header v3 (``sw8``).
    """

    provider: TraceProvider
    trace_id: str
    span_id: str
    segment_id: str = ""


@dataclass(slots=True)
class Call:
    """One request and what became of it.

    Attributes:
        method: As on the wire; empty where it is not known (a header field whose entry in HPACK's
            dynamic table is older than the parser).
        path: Without query and fragment unless the parser was told to keep them. In authority form
            (CONNECT) the authority, in absolute form only its path; empty where it is not known.
        host: ``Host``, ``:authority`` or that of the absolute form; empty where there is none.
        status: Of the final response, `NO_STATUS` without one.
        grpc_status: ``grpc-status``, `NOT_GRPC` or `UNMEASURED`.
        request_header_size: HTTP/1: bytes from the request line to the empty line, both included,
            and of the trailer section (RFC 9112 section 2). HTTP/2: bytes of the field blocks,
            trailers included, without frame headers and padding (RFC 9113 section 4.3).
        request_body_size: Bytes of content without framing (RFC 9110 section 6.4): no chunk sizes,
            no frame headers, no padding.
        response_header_size: As of the request; interim (1xx) responses included.
        response_body_size: As of the request.
        start_ns: Start of the request's first byte: when it arrived (server), or when the call that
            wrote it began (client). What `Exchange.feed` was given as ``start_ns``.
        first_byte_ns: Of the final response, ``end_ns`` of the piece that held its first byte;
            `UNMEASURED` without one.
        end_ns: ``end_ns`` of the piece that held the last byte of the response; without a whole
            response the time at which that was certain.
        is_inside_tls: Whether these were the clear bytes of TLS; parsers do not know.
    """

    version: int
    start_ns: int
    method: str = ""
    path: str = ""
    host: str = ""
    status: int = NO_STATUS
    grpc_status: int = NOT_GRPC
    outcome: Outcome = Outcome.UNANSWERED
    request_header_size: int = 0
    request_body_size: int = 0
    response_header_size: int = 0
    response_body_size: int = 0
    first_byte_ns: int = UNMEASURED
    end_ns: int = 0
    trace: Trace | None = None
    is_inside_tls: bool = False


class Exchange(Protocol):
    """A parser of one connection. ``done`` is the list that it was made with and appends to."""

    done: list[Call]

    def feed(self, side: Side, data: bytes, start_ns: int, end_ns: int) -> None:
        """Take the next bytes of a side.

        Args:
            side: Who said it.
            data: Any number of bytes, cut anywhere.
            start_ns: When the first of them began to move (see `Call.start_ns`).
            end_ns: When the last of them had moved.
        """
        ...

    def skip(self, side: Side, size: int, start_ns: int, end_ns: int) -> None:
        """Take note of the next bytes of a side, which were not captured; they moved in that time.

        Inside a body of known length nothing is lost by it; elsewhere the parser finds the
        beginning of a later message again, and counts only what it is sure of.
        """
        ...

    def unneeded(self, side: Side) -> int:
        """How many of the next bytes of a side need not be captured: the rest of a long body."""
        ...

    def close(self, end_ns: int) -> None:
        """The connection is over: what is open is aborted or unanswered. Safe to repeat."""
        ...


@dataclass(frozen=True, slots=True)
class Settings:
    """How parsers work.

    Attributes:
        keep_query: Whether `Call.path` keeps the query (RFC 9110 section 4.2.4 warns of what
            queries carry).
        max_header_bytes: A header section longer than this is not kept; its message is counted
            without names, or not at all where its end cannot be found.
        max_open_calls: Requests without an end that a connection may have; the oldest are given up.
    """

    keep_query: bool = False
    max_header_bytes: int = 65_536
    max_open_calls: int = 4_096
