"""Records as the kernel would write them, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from collector.abi import (
    CONNECTION_RECORD,
    DROP_RECORD,
    PROCESS_RECORD,
    TRANSFER_RECORD,
    ConnectionEvent,
    Direction,
)
from collector.pipeline import Drained
from collector.ringbuf import framed

if TYPE_CHECKING:
    from numpy.typing import NDArray

V4 = bytes(10) + b"\xff\xff" + bytes((10, 0, 0, 1))
PEER = bytes(10) + b"\xff\xff" + bytes((10, 0, 0, 2))


def connection(connection_id: int, event: ConnectionEvent, **values: Any) -> dict[str, Any]:
    return {
        "connection_id": connection_id,
        "event": event,
        "end_ns": 1_000,
        "family": 4,
        "local_address": np.frombuffer(V4, np.uint8),
        "remote_address": np.frombuffer(PEER, np.uint8),
        "local_port": 8080,
        "remote_port": 40_000,
        "pid": 7,
        "cgroup_id": 70,
        "comm": comm(b"server"),
        **values,
    }


def transfer(connection_id: int, **values: Any) -> dict[str, Any]:
    return {
        "connection_id": connection_id,
        "direction": Direction.READ,
        "end_ns": 1_000,
        "size": 10,
        "pid": 7,
        **values,
    }


def drop(connection_id: int, **values: Any) -> dict[str, Any]:
    return {"connection_id": connection_id, "end_ns": 1_000, "packets": 1, "reason": 2, **values}


def comm(name: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(name.ljust(16, b"\0"), np.uint8)


def connections(*rows: dict[str, Any]) -> NDArray[Any]:
    return _filled(CONNECTION_RECORD, rows)


def transfers(*rows: dict[str, Any]) -> NDArray[Any]:
    return _filled(TRANSFER_RECORD, rows)


def processes(*rows: dict[str, Any]) -> NDArray[Any]:
    return _filled(PROCESS_RECORD, rows)


def drops(*rows: dict[str, Any]) -> NDArray[Any]:
    return _filled(DROP_RECORD, rows)


def drained(
    connection_rows: list[dict[str, Any]] | None = None,
    transfer_rows: list[dict[str, Any]] | None = None,
    process_rows: list[dict[str, Any]] | None = None,
    drop_rows: list[dict[str, Any]] | None = None,
) -> Drained:
    return Drained(
        connections(*(connection_rows or [])),
        transfers(*(transfer_rows or [])),
        processes(*(process_rows or [])),
        drops(*(drop_rows or [])),
    )


def _filled(record: np.dtype[Any], rows: tuple[dict[str, Any], ...]) -> NDArray[Any]:
    records = np.zeros(len(rows), framed(record))
    records["_length"] = record.itemsize
    for position, row in enumerate(rows):
        for name, value in row.items():
            records[name][position] = value
    return records
