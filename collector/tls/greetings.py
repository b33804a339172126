"""The hellos of connections, put together from what each call has moved of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from collector.tls.hello import parse_hello

if TYPE_CHECKING:
    from collector.payload_ring import Pieces

__all__ = ["Greeted", "Greetings"]

_MAX_UNDER_WAY: Final = 4_096
"""Of at most 4 KiB each, which is what the kernel's programs take of one."""
_FIELDS: Final = ("connection_id", "direction", "position")
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
    """Hellos that are not whole yet; one of which a piece is missing is given up."""

    def __init__(self) -> None:
        # By connection and direction: the number of the next byte, and what came so far
        self._under_way: dict[tuple[int, int], tuple[int, bytes]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def feed(self, pieces: Pieces) -> list[Greeted]:
        """Take pieces with `PayloadFlag.HELLO`; what they complete."""
        found = []
        columns = (pieces.records[name].tolist() for name in _FIELDS)
        for (connection_id, direction, position), data in zip(
            zip(*columns, strict=True), pieces.captured(), strict=True
        ):
            key = connection_id, direction
            expected, before = self._under_way.pop(key, (position, b""))
            if expected != position:
                continue
            whole = before + data
            hello = parse_hello(whole)
            if hello is not None:
                found.append(Greeted(connection_id, hello.server_name, hello.version))
            elif whole.startswith(_HANDSHAKE):
                if len(self._under_way) >= _MAX_UNDER_WAY:
                    del self._under_way[next(iter(self._under_way))]
                self._under_way[key] = position + len(data) & 0xFFFF_FFFF, whole
        return found
