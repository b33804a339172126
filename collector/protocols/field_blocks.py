"""What a field block of HTTP/2 says about its call, and blocks recognised without decoding.

A gRPC client sends the same few octets for every call once its fields are in the table. As long as
no block changes the table, the same octets mean the same, so that what they said is looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from collector.protocols.calls import NO_STATUS, UNMEASURED, Trace
from collector.protocols.hpack import Decoder
from collector.protocols.traces import TRACE_FIELDS, find_trace

if TYPE_CHECKING:
    from collector.protocols.hpack import Field

__all__ = ["Head", "HeadReader"]

_KEPT_HEADS: Final = 16
_LONGEST_KEPT: Final = 512

_PSEUDO_REQUEST: Final = frozenset({":method", ":scheme", ":path", ":authority", ":protocol"})
_TRACE_FIELDS: Final = frozenset(TRACE_FIELDS)
_WANTED: Final = _TRACE_FIELDS | {
    *(":method", ":path", ":authority", ":status"),
    *("host", "content-type", "grpc-status"),
}


class Head:
    """One field block, reduced to what a `Call` tells (RFC 9113 section 8.3, gRPC over HTTP/2).

    Attributes:
        method: ``:method``; empty without one.
        path: ``:path``, or the authority of CONNECT (RFC 9113 section 8.5); empty without one.
        host: ``:authority``, else ``host``.
        status: ``:status``, else `NO_STATUS`.
        grpc_status: ``grpc-status``; `UNMEASURED` without one.
        is_grpc: Whether the content type is one of gRPC's; None if it may be among hidden fields.
        is_request: Whether pseudo-header fields of a request are among the known ones.
        is_trailer: Whether it is known to hold no pseudo-header field, which come first.
        has_hidden: Whether there are fields whose name or value is not known.
        is_whole: Whether the block was well-formed to its end.
    """

    __slots__ = (
        "grpc_status",
        "has_hidden",
        "host",
        "is_grpc",
        "is_request",
        "is_trailer",
        "is_whole",
        "method",
        "path",
        "status",
        "trace",
    )

    def __init__(self, fields: list[Field], *, is_whole: bool, keep_query: bool) -> None:
        found: dict[str, str] = {}
        has_hidden = is_request = False
        for name, value in fields:
            if name is None or value is None:
                has_hidden = True
            elif name in _WANTED:
                found.setdefault(name, value)
            if name in _PSEUDO_REQUEST:
                is_request = True
        get = found.get
        self.is_whole = is_whole
        self.has_hidden = has_hidden or not is_whole
        self.is_request = is_request
        self.is_trailer = bool(fields) and (fields[0][0] or ":")[0] != ":"
        self.method = get(":method", "")
        self.host = get(":authority") or get("host", "")
        path = get(":path", "")
        if not path and self.method == "CONNECT":
            path = self.host
        elif not keep_query:
            path = path.partition("?")[0]
        self.path = path.partition("#")[0]
        self.status = _read_number(get(":status"), NO_STATUS)
        self.grpc_status = _read_number(get("grpc-status"), UNMEASURED)
        content_type = get("content-type")
        self.is_grpc: bool | None
        if content_type is None:
            self.is_grpc = None if self.has_hidden else False
        else:
            self.is_grpc = content_type.lower().startswith("application/grpc")
        self.trace: Trace | None = find_trace(get) if _TRACE_FIELDS & found.keys() else None


class HeadReader:
    """Blocks of one direction to heads."""

    __slots__ = ("_generation", "_keep_query", "_known", "decoder")

    def __init__(self, *, is_joined: bool, keep_query: bool) -> None:
        self.decoder = Decoder(is_joined=is_joined)
        self._keep_query = keep_query
        self._known: dict[bytes, Head] = {}
        self._generation = self.decoder.generation

    def read(self, block: bytes) -> Head:
        """Say what a block means and keep the table up to date."""
        decoder = self.decoder
        if decoder.generation == self._generation:
            head = self._known.get(block)
            if head is not None:
                return head
        generation = decoder.generation
        fields, is_whole = decoder.decode(block)
        if not is_whole:
            # The rest of the block may have changed the table in ways that nobody knows.
            decoder.forget()
        head = Head(fields, is_whole=is_whole, keep_query=self._keep_query)
        if decoder.generation == generation and len(block) <= _LONGEST_KEPT:
            self._keep(block, head, generation)
        return head

    def _keep(self, block: bytes, head: Head, generation: int) -> None:
        if generation != self._generation:
            self._known.clear()
            self._generation = generation
        elif len(self._known) >= _KEPT_HEADS:
            del self._known[next(iter(self._known))]
        self._known[block] = head


def _read_number(text: str | None, missing: int) -> int:
    # Statuses are short and plain; int() would take signs, spaces and foreign digits.
    if text is None or len(text) > 4 or not (text.isascii() and text.isdigit()):
        return missing
    return int(text)
