from __future__ import annotations

import numpy as np

from collector.protocols.calls import (
    NOT_GRPC,
    UNMEASURED,
    Call,
    Outcome,
    Trace,
    TraceProvider,
    Version,
)
from collector.requests import STRINGS, Strings, request_columns
from schemas.clock import ClockAnchor
from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.events import GRPC_UNKNOWN, Requests

ANCHOR = ClockAnchor(monotonic_ns=1_000, unix_ns=501_000)


def call(**values: object) -> Call:
    given = {"version": Version.HTTP_1_1, "start_ns": 10, "first_byte_ns": 20, "end_ns": 30}
    return Call(**given | values)  # type: ignore[arg-type]


def test_every_column() -> None:
    strings = Strings()
    trace = Trace(TraceProvider.SKYWALKING, "t1", "s1", "g1")
    ids, made = request_columns(
        [
            (
                7,
                call(
                    method="GET",
                    path="/a",
                    host="h",
                    status=200,
                    outcome=Outcome.ANSWERED,
                    request_header_size=1,
                    request_body_size=2,
                    response_header_size=3,
                    response_body_size=1 << 40,
                    trace=trace,
                ),
            ),
            (9, call(method="GET", path="/b", grpc_status=5, version=Version.HTTP_2)),
        ],
        ANCHOR,
        strings,
    )
    assert ids.tolist() == [7, 9]
    assert made.version.tolist() == [11, 20]
    assert made.outcome.tolist() == [0, 2]
    assert made.status.tolist() == [200, 0]
    assert made.grpc_status.tolist() == [UNMEASURED_U32, 5]
    assert made.start_ns.tolist() == [500_010, 500_010]
    assert made.first_byte_ns.tolist() == [500_020, 500_020]
    assert made.end_ns.tolist() == [500_030, 500_030]
    assert made.request_header_size.tolist() == [1, 0]
    assert made.request_body_size.tolist() == [2, 0]
    assert made.response_header_size.tolist() == [3, 0]
    assert made.response_body_size.tolist() == [1 << 40, 0]
    assert made.trace_provider.tolist() == [3, 0]
    texts = {name: [strings.texts[n] for n in getattr(made, name).tolist()] for name in STRINGS}
    assert texts == {
        "method": ["GET", "GET"],
        "path": ["/a", "/b"],
        "host": ["h", ""],
        "trace_id": ["t1", ""],
        "segment_id": ["g1", ""],
        "span_id": ["s1", ""],
    }
    for name, dtype, _ in Requests.specs():
        if name != "endpoint":
            assert getattr(made, name).dtype == dtype, name


def test_what_was_not_measured() -> None:
    _, made = request_columns(
        [
            (
                1,
                call(
                    first_byte_ns=UNMEASURED,
                    request_header_size=UNMEASURED,
                    request_body_size=UNMEASURED,
                    response_header_size=1 << 40,
                    response_body_size=UNMEASURED,
                    grpc_status=UNMEASURED,
                ),
            ),
            (1, call(grpc_status=NOT_GRPC)),
            (1, call(grpc_status=1 << 50)),
        ],
        ANCHOR,
        Strings(),
    )
    assert made.first_byte_ns.tolist()[:2] == [UNMEASURED_U64, 500_020]
    assert made.request_header_size[0] == UNMEASURED_U32
    assert made.request_body_size[0] == UNMEASURED_U64
    assert made.response_header_size[0] == UNMEASURED_U32 - 1  # more than it can say
    assert made.response_body_size[0] == UNMEASURED_U64
    assert made.grpc_status.tolist() == [GRPC_UNKNOWN, UNMEASURED_U32, GRPC_UNKNOWN]


def test_nothing() -> None:
    ids, made = request_columns([], ANCHOR, Strings())
    assert len(ids) == made.rows == 0
    assert Strings().local(made, 3) == ([], made)


def test_strings_of_a_part_are_only_its_own() -> None:
    strings = Strings()
    _, made = request_columns(
        [(1, call(path=f"/{n}", method="GET")) for n in range(5)], ANCHOR, strings
    )
    part = made.take(np.array([1, 3]))
    texts, local = strings.local(part, 10)
    assert sorted(texts) == ["/1", "/3", "GET"]
    assert [texts[n - 10] for n in local.path.tolist()] == ["/1", "/3"]
    assert [texts[n - 10] for n in local.method.tolist()] == ["GET", "GET"]
    assert local.host.tolist() == [0, 0]
    assert strings.local(made, 1)[0].count("GET") == 1  # the table itself is unchanged
