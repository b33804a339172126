"""The hellos of connections, put together from what each call has moved of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from collector.abi import Direction
from collector.tls.hello import HelloReader
from schemas.telemetry import counter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from collector.payload_ring import Pieces

__all__ = ["Greeted", "Greetings"]

_MAX_UNDER_WAY: Final = 4_096
_MAX_BYTES: Final = 8 << 20
"""Of all that are under way; the kernel's programs take 32 KiB of one at most."""
_FIELDS: Final = ("connection_id", "direction", "position", "size")
_HANDSHAKE: Final = b"\x16"


@dataclass(frozen=True, slots=True)
class Greeted:
    """What a side of a connection has said of TLS.

    Attributes:
        connection_id: Of the connection.
        server_name: See `collector.tls.hello.Hello`, as all that follows.
        version: Likewise.
    """

    connection_id: int
    server_name: str
    version: int


class Greetings:
    """Hellos that are not whole yet, the oldest first; those that are given up are counted."""

    def __init__(self) -> None:
        # By connection and direction: the number of the next byte, and what came so far
        self._under_way: dict[tuple[int, int], tuple[int, HelloReader]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._under_way)

    def feed(self, pieces: Pieces) -> list[Greeted]:
        """Take pieces with `PayloadFlag.HELLO`; what they complete."""
        found = []
        columns = (pieces.records[name].tolist() for name in _FIELDS)
        for (connection_id, direction, position, size), data in zip(
            zip(*columns, strict=True), pieces.captured(), strict=True
        ):
            key = connection_id, direction
            before = self._take(key)
            if before is None and not data.startswith(_HANDSHAKE):
                continue  # it is behind one that was whole, or given up
            expected, reader = before or (position, HelloReader())
            if expected != position:
                _count("cut")
            elif not reader.feed(data):
                if reader.hello is None:
                    _count("malformed")
                else:
                    name, version = reader.hello.server_name, reader.hello.version
                    found.append(Greeted(connection_id, name, version))
            elif len(data) < size:
                _count("cut")
            else:
                self._keep(key, position + size & 0xFFFF_FFFF, reader)
        return found

    def end(self, connection_ids: Iterable[int]) -> None:
        """Give up what connections that have ended did not come to an end with."""
        if not self._under_way:
            return
        for connection_id in connection_ids:
            for direction in Direction:
                if self._take((connection_id, direction)) is not None:
                    _count("ended")

    def _keep(self, key: tuple[int, int], position: int, reader: HelloReader) -> None:
        self._under_way[key] = position, reader
        self._bytes += reader.size
        while len(self._under_way) > _MAX_UNDER_WAY or self._bytes > _MAX_BYTES:
            self._take(next(iter(self._under_way)))
            _count("crowded")

    def _take(self, key: tuple[int, int]) -> tuple[int, HelloReader] | None:
        found = self._under_way.pop(key, None)
        if found is not None:
            self._bytes -= found[1].size
        return found


def _count(reason: str) -> None:
    counter("podwire_collector_tls_hellos_lost_total").labels(reason).inc()
