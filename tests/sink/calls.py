"""Enriched batches of HTTP calls to test with."""

from __future__ import annotations

import hashlib
import ipaddress

import numpy as np

from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.events import BatchHeader, Connections, EventBatch, Parties, Requests, encode_batch
from tests.sink.blocks import MINUTE_S

START_NS = MINUTE_S * 1_000_000_000
MILLISECOND = 1_000_000

DEFAULTS = {
    "client": True,
    "version": 11,
    "outcome": 0,
    "tls": False,
    "method": "GET",
    "path": "/",
    "host": "api.shop",
    "status": 200,
    "grpc_status": int(UNMEASURED_U32),
    "start_ns": START_NS,
    "first_byte_ns": int(UNMEASURED_U64),
    "end_ns": START_NS + MILLISECOND,
    "request_header_size": int(UNMEASURED_U32),
    "request_body_size": int(UNMEASURED_U64),
    "response_header_size": int(UNMEASURED_U32),
    "response_body_size": int(UNMEASURED_U64),
    "trace_provider": 0,
    "trace_id": "",
    "segment_id": "",
    "span_id": "",
    "endpoint": "/",
    "local": ("web.shop", "web-1"),
    "remote": ("api.shop", "api-1"),
    "local_address": "::ffff:10.0.0.1",
    "remote_address": "::ffff:10.96.0.1",
    "translated_address": None,
    "local_port": 40_000,
    "remote_port": 80,
    "translated_port": 0,
    "internal": False,
    "role": None,
    "container": "c1",
    "container_name": "app",
    "process": "curl",
}
_INDICES = ("method", "path", "host", "trace_id", "segment_id", "span_id", "endpoint")


def calls_batch(
    calls: list[dict], *, run: str = "run-1", sequence: int = 0, part: int = 0
) -> bytes:
    """One message; each call has a connection of its own."""
    rows = [DEFAULTS | call for call in calls]
    assert all(row.keys() == DEFAULTS.keys() for row in rows)
    names = {"": 0}

    def code(text: str) -> int:
        return names.setdefault(text, len(names))

    def column(name: str, dtype: str) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype)

    def address(name: str) -> np.ndarray:
        packed = [
            ipaddress.IPv6Address(row[name]).packed if row[name] else bytes(16) for row in rows
        ]
        return np.frombuffer(b"".join(packed), "u1").reshape(len(rows), 16)

    def codes(values: list[str]) -> np.ndarray:
        return np.array([code(value) for value in values], "<u4")

    roles = [(1 if row["client"] else 2) if row["role"] is None else row["role"] for row in rows]
    connections = Connections(
        id=np.arange(len(rows), dtype="<u8") + 7,
        family=np.full(len(rows), 4, "u1"),
        local_address=address("local_address"),
        local_port=column("local_port", "<u4"),
        remote_address=address("remote_address"),
        remote_port=column("remote_port", "<u4"),
        translated_address=address("translated_address"),
        translated_port=column("translated_port", "<u4"),
        role=np.array(roles, "u1"),
        netns=np.zeros(len(rows), "<u4"),
        cgroup_id=np.zeros(len(rows), "<u8"),
        pid=np.zeros(len(rows), "<u4"),
        container=codes([row["container"] for row in rows]),
        process=codes([row["process"] for row in rows]),
        flags=np.zeros(len(rows), "u1"),
    )
    plain = {
        name: column(name, str(dtype))
        for name, dtype, _ in Requests.specs()
        if name not in (*_INDICES, "connection", "flags")
    }
    requests = Requests(
        connection=np.arange(len(rows), dtype="<u4"),
        flags=column("tls", "u1"),
        **plain,
        **{name: codes([row[name] for row in rows]) for name in _INDICES},
    )
    parties = Parties(
        **{
            f"{side}_{what}": codes([row[side][place] for row in rows])
            for side in ("local", "remote")
            for place, what in enumerate(("service", "instance"))
        },
        internal=column("internal", "u1"),
        local_container=codes([row["container_name"] for row in rows]),
    )
    header = BatchHeader(cluster="test", node="node-1", run_id=run, sequence=sequence, part=part)
    return encode_batch(
        EventBatch(header, connections, list(names), requests=requests, parties=parties)
    )


def trace_id(number: int) -> str:
    """An id as tracers make them: nothing that compresses."""
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def plain_calls(count: int, *, first: int = 0) -> list[dict]:
    """Calls that differ in everything that a batch of real ones differs in."""
    return [
        {
            "path": f"/orders/{number}",
            "endpoint": f"/orders/{{id}}/{number % 7}",
            "trace_id": trace_id(number),
            "start_ns": START_NS + number * 1_000,
            "end_ns": START_NS + number * 1_000 + MILLISECOND + number * 7919 % 9_999_991,
        }
        for number in range(first, first + count)
    ]
