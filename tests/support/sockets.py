"""The TCP sockets of this thread's network namespace, as the kernel lists them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["State", "TcpSocket", "half_closed", "listens", "tcp_sockets"]


class State(StrEnum):
    """Of ``include/net/tcp_states.h``, as ``/proc/net/tcp`` writes them."""

    FIN_WAIT1 = "04"
    TIME_WAIT = "06"
    CLOSE_WAIT = "08"
    LAST_ACK = "09"
    LISTEN = "0A"
    CLOSING = "0B"


class TcpSocket(NamedTuple):
    """One line of ``/proc/net/tcp`` or ``tcp6``; of its addresses only the ports are decoded."""

    local: str
    remote: str
    state: str

    @property
    def ports(self) -> tuple[int, int]:
        """Its own and that of its peer."""
        local, remote = (int(each.rpartition(":")[2], 16) for each in (self.local, self.remote))
        return local, remote


def tcp_sockets() -> Iterator[TcpSocket]:
    """All of both families."""
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/thread-self/net", name).read_text().splitlines()[1:]:
            yield TcpSocket(*line.split()[1:4])


def listens(port: int) -> bool:
    """Whether somebody listens at a port, without a connection or a socket of its own."""
    return any(each.state == State.LISTEN and each.ports[0] == port for each in tcp_sockets())


def half_closed() -> set[tuple[str, str]]:
    """Connections that one end has closed and the other not yet, or whose last packets are due."""
    waiting = (State.FIN_WAIT1, State.CLOSE_WAIT, State.LAST_ACK, State.CLOSING)
    return {(each.local, each.remote) for each in tcp_sockets() if each.state in waiting}
