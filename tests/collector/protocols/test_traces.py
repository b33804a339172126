from __future__ import annotations

from base64 import b64encode

import pytest

from collector.protocols.calls import Trace, TraceProvider
from collector.protocols.traces import TRACE_FIELDS, find_trace

T32, T16, S16 = "0af7651916cd43dd8448eb211c80319c", "463ac35c9f6413ad", "b7ad6b7169203331"
TRACE, SEGMENT = b"3e1b.41.1700000000", b"5f2c.41.1700000001"


def encoded(*parts: bytes) -> str:
    return "-".join(b64encode(part).decode() for part in parts)


NO_TEXT = f"1-{encoded(bytes((255, 254)), SEGMENT)}-3-a-b-c-d"
SW8 = f"1-{encoded(TRACE, SEGMENT)}-3-{encoded(b'shop', b'pod', b'/a', b'b:80')}"


@pytest.mark.parametrize(
    ("fields", "trace"),
    [
        ({"traceparent": f"00-{T32}-{S16}-01"}, Trace(TraceProvider.W3C, T32, S16)),
        ({"traceparent": f" 00-{T32}-{S16}-00 "}, Trace(TraceProvider.W3C, T32, S16)),
        ({"traceparent": f"cc-{T32}-{S16}-01-more"}, Trace(TraceProvider.W3C, T32, S16)),
        ({"traceparent": f"00-{T32}-{S16}-01-more"}, None),
        ({"traceparent": f"ff-{T32}-{S16}-01"}, None),
        ({"traceparent": f"00-{'0' * 32}-{S16}-01"}, None),
        ({"traceparent": f"00-{T32}-{'0' * 16}-01"}, None),
        ({"traceparent": f"00-{T32[:-1]}g-{S16}-01"}, None),
        ({"traceparent": f"00-{T32}-01"}, None),
        ({"b3": f"{T32}-{S16}-1-{T16}"}, Trace(TraceProvider.ZIPKIN, T32, S16)),
        ({"b3": f"{T16}-{S16}"}, Trace(TraceProvider.ZIPKIN, T16, S16)),
        ({"b3": "0"}, None),
        ({"b3": "x-y"}, None),
        ({"x-b3-traceid": T16, "x-b3-spanid": S16}, Trace(TraceProvider.ZIPKIN, T16, S16)),
        ({"x-b3-traceid": T16}, Trace(TraceProvider.ZIPKIN, T16, "")),
        ({"x-b3-spanid": S16}, None),
        (
            {"sw8": SW8},
            Trace(TraceProvider.SKYWALKING, TRACE.decode(), "3", SEGMENT.decode()),
        ),
        ({"sw8": SW8.replace("-3-", "-x-")}, None),
        ({"sw8": SW8.replace("1-", "2-", 1)}, None),
        ({"sw8": "1-%%%-%%%-3-a-b-c-d"}, None),
        ({"sw8": NO_TEXT}, None),
        ({"sw8": f"1-{encoded(b'a' * 300, SEGMENT)}-3-a-b-c-d"}, None),
        (
            {"sw8": SW8, "traceparent": f"00-{T32}-{S16}-01", "b3": f"{T32}-{S16}"},
            Trace(TraceProvider.SKYWALKING, TRACE.decode(), "3", SEGMENT.decode()),
        ),
        (
            {"sw8": "nonsense", "traceparent": f"00-{T32}-{S16}-01"},
            Trace(TraceProvider.W3C, T32, S16),
        ),
        ({}, None),
    ],
)
def test_traces(fields: dict[str, str], trace: Trace | None) -> None:
    assert find_trace(fields.get) == trace
    assert set(fields) <= set(TRACE_FIELDS)
