"""HTTP calls as protocol logs. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from sink.oap.wire import message, nested, number, offset_timestamp, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from schemas.events import EventBatch, Requests
    from sink.oap.kernel import Times
    from sink.oap.wire import Cells

__all__ = ["METHODS", "protocol_logs"]

METHODS: Final = {
    "GET": 0,
    "POST": 1,
    "PUT": 2,
    "DELETE": 3,
    "HEAD": 4,
    "PATCH": 5,
    "OPTIONS": 6,
    "TRACE": 7,
    "CONNECT": 8,
}
"""Any other method has no number there and is told as GET, as SkyWalking's own agent does."""

_HTTP2: Final = 20
_B3, _SW8 = 2, 3  # of Requests.trace_provider; SkyWalking knows no other
_PROTOCOL_LOG: Final = 4  # EBPFAccessLogMessage.protocolLog
_HTTP: Final = 1  # AccessLogProtocolLogs.http
_REQUEST, _RESPONSE = 4, 5  # of AccessLogHTTPProtocol
_PATH, _TRACE, _HOST = 2, 5, 6  # of AccessLogHTTPProtocolRequest
_OF_SKYWALKING: Final = b"\x08\x01"  # AccessLogTraceInfo.provider; Zipkin's number is 0
_UNKNOWN_PATH: Final = "{unknown}"


def protocol_logs(batch: EventBatch, times: Times, *, by_endpoint: bool) -> list[bytes]:
    """Return each request as the field ``protocolLog`` of a message.

    Args:
        batch: With its requests.
        times: How times are told.
        by_endpoint: Tell the name of the endpoint instead of the path.
    """
    requests, names = batch.requests, batch.names
    if not requests.rows:
        return []
    begun = np.where(requests.start_ns > 0, requests.start_ns, requests.end_ns)
    length = requests.end_ns - np.minimum(begun, requests.end_ns)
    start, end = times.stamps(requests.end_ns, length)
    heads = _rows(
        [
            offset_timestamp(1, start),
            offset_timestamp(2, end),
            number(3, requests.version == _HTTP2),
        ]
    )
    methods = np.zeros(len(names), np.uint8)
    for place in np.unique(requests.method).tolist():
        methods[place] = METHODS.get(names[place].upper(), 0)
    numbers = _rows(
        [
            number(1, methods[requests.method]),
            _size(3, requests.request_header_size, UNMEASURED_U32),
            _size(4, requests.request_body_size, UNMEASURED_U64),
        ]
    )
    responses = _rows(
        [
            message(
                _RESPONSE,
                [
                    number(1, requests.status),
                    _size(3, requests.response_header_size, UNMEASURED_U32),
                    _size(4, requests.response_body_size, UNMEASURED_U64),
                ],
            )
        ]
    )
    texts = _Texts(names)
    paths = _paths(requests, names, by_endpoint=by_endpoint)
    traces = _traces(requests, texts)
    logs = []
    for head, sizes, path, host, trace, response in zip(
        heads,
        numbers,
        paths,
        requests.host.tolist(),
        traces,
        responses,
        strict=True,
    ):
        request = b"".join((sizes, texts.of(_PATH, path), texts.of(_HOST, host), trace))
        http = b"".join((head, nested(_REQUEST, request), response))
        logs.append(nested(_PROTOCOL_LOG, nested(_HTTP, http)))
    return logs


class _Texts:
    # String fields by name, each encoded once.
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._known: dict[tuple[int, int | str], bytes] = {}

    def of(self, field: int, name: int | str) -> bytes:
        found = self._known.get((field, name))
        if found is None:
            value = name if isinstance(name, str) else self._names[name]
            found = self._known[field, name] = text(field, value)
        return found


def _rows(parts: Sequence[Cells]) -> list[bytes]:
    # The fields of each row, as bytes.
    cells = np.hstack([part.cells for part in parts])
    used = np.hstack([part.used for part in parts])
    data = cells[used].tobytes()
    ends = np.cumsum(sum((part.size for part in parts[1:]), parts[0].size)).tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _size(field: int, values: NDArray[np.unsignedinteger], missing: object) -> Cells:
    return number(field, values, values != missing)


def _paths(requests: Requests, names: Sequence[str], *, by_endpoint: bool) -> list[int | str]:
    path: list[int | str] = requests.path.tolist()
    endpoint = requests.endpoint.tolist()
    if not by_endpoint:
        return [
            own if own else (_named(names, other) or _UNKNOWN_PATH)
            for own, other in zip(path, endpoint, strict=True)
        ]
    methods = requests.method.tolist()
    known: dict[tuple[int, int], str] = {}
    found: list[int | str] = []
    for own, other, method in zip(path, endpoint, methods, strict=True):
        name = known.get((other, method))
        if name is None:
            # An OAP puts the method in front itself.
            name = _named(names, other).removeprefix(f"{names[method]}:")
            known[other, method] = name
        found.append(name or own or _UNKNOWN_PATH)
    return found


def _named(names: Sequence[str], place: int) -> str:
    return "" if place == UNMEASURED_U32 else names[place]


def _traces(requests: Requests, texts: _Texts) -> list[bytes]:
    provider = requests.trace_provider
    if not ((provider == _B3) | (provider == _SW8)).any():
        return [b""] * requests.rows
    found = []
    for kind, trace, segment, span in zip(
        provider.tolist(),
        requests.trace_id.tolist(),
        requests.segment_id.tolist(),
        requests.span_id.tolist(),
        strict=True,
    ):
        if kind not in (_B3, _SW8) or not trace:
            found.append(b"")
            continue
        body = b"".join(
            (
                _OF_SKYWALKING if kind == _SW8 else b"",
                texts.of(2, trace),
                texts.of(3, segment),
                texts.of(4, span),
            )
        )
        found.append(nested(_TRACE, body))
    return found
