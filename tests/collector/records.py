"""Records as the kernel would write them, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from collector.abi import (
    CONNECTION_RECORD,
    DROP_RECORD,
    PAYLOAD_RECORD,
    PROCESS_RECORD,
    TRANSFER_RECORD,
    ConnectionEvent,
    Direction,
    PayloadFlag,
)
from collector.payload_ring import Pieces, joined
from collector.ports import Drained
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


def piece(connection_id: int, direction: Direction, data: bytes, **values: Any) -> bytes:
    """A payload record and its bytes; all of its call unless ``size`` says more."""
    record = np.zeros((), PAYLOAD_RECORD)
    given = {"size": len(data), "captured": len(data), "end_ns": 1_000, **values}
    for name, value in given.items():
        record[name] = value
    record["connection_id"], record["direction"] = connection_id, direction
    return record.tobytes() + data


class Talk:
    """Pieces of one connection, numbered as TCP numbers its bytes."""

    def __init__(self, connection_id: int, first: int = 1_000) -> None:
        self._connection_id = connection_id
        self._next = {Direction.READ: first, Direction.WRITE: first}
        self._now = 1_000

    def moved(self, direction: Direction, data: bytes, missing: int = 0, **values: Any) -> bytes:
        """A call that moved the data, and ``missing`` bytes after it that were not captured."""
        position = self._next[direction]
        self.passed(direction, len(data) + missing)
        self._now += 1_000
        times = {"start_ns": self._now - 10, "end_ns": self._now}
        given = {"position": position, "size": len(data) + missing, **times, **values}
        return piece(self._connection_id, direction, data, **given)

    def read(self, data: bytes, missing: int = 0, **values: Any) -> bytes:
        return self.moved(Direction.READ, data, missing, **values)

    def written(self, data: bytes, missing: int = 0, **values: Any) -> bytes:
        return self.moved(Direction.WRITE, data, missing, **values)

    def told(self, direction: Direction, flags: int = 0) -> bytes:
        """How far a direction has come, at the time of what it said last."""
        times = {"start_ns": self._now, "end_ns": self._now}
        given = {"position": self._next[direction], **times, "flags": flags}
        return piece(self._connection_id, direction, b"", **given)

    def ended(self, direction: Direction) -> bytes:
        """The same, at the end of the connection."""
        return self.told(direction, PayloadFlag.ENDED)

    def passed(self, direction: Direction, size: int) -> None:
        """Bytes moved of which no record tells."""
        self._next[direction] = (self._next[direction] + size) & 0xFFFF_FFFF


def pieces(*records: bytes) -> Pieces:
    return joined(list(records))


def drained(
    connection_rows: list[dict[str, Any]] | None = None,
    transfer_rows: list[dict[str, Any]] | None = None,
    process_rows: list[dict[str, Any]] | None = None,
    payloads: list[bytes] | None = None,
    drop_rows: list[dict[str, Any]] | None = None,
) -> Drained:
    return Drained(
        connections(*(connection_rows or [])),
        transfers(*(transfer_rows or [])),
        processes(*(process_rows or [])),
        drops(*(drop_rows or [])),
        pieces(*(payloads or [])),
    )


def _filled(record: np.dtype[Any], rows: tuple[dict[str, Any], ...]) -> NDArray[Any]:
    records = np.zeros(len(rows), framed(record))
    records["_length"] = record.itemsize
    for position, row in enumerate(rows):
        for name, value in row.items():
            records[name][position] = value
    return records
