"""What is known of the TLS of connections besides what is said inside it. Pure.

Who is asked for and which version is agreed on come from the hellos; why what is said inside is not
seen in clear, from whoever looks at the files of processes, beside the drain.

A publish may come in the middle of a handshake, or between it and what is said first. So a
connection of which the version is not known then, or that may still turn out to be readable, waits
for the next publish once, and its first bytes are told with what is known by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from collector.abi import ConnectionFlag, PayloadFlag
from collector.tls.greetings import Greetings
from schemas.tls import Unreadable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from collector.connections import ConnectionTable
    from collector.names import NameTable
    from collector.payload_ring import Pieces
    from collector.ports import Source
    from collector.tls.greetings import Greeted
    from schemas.columns import U64

__all__ = ["Sessions"]

_NOTHING: Final = np.empty(0, np.uint64)
_OPEN: Final = (
    *(Unreadable.UNKNOWN, Unreadable.NO_FUNCTIONS, Unreadable.NOTHING_SEEN),
    *(Unreadable.REFUSED, Unreadable.TOO_MANY),
)
"""Whoever has one of these may have a library that is read as well."""


class Sessions:
    """Enters what is known of sessions into a table.

    Args:
        table: The connections.
        names: Of those who are asked for.
        source: Knows why processes are not read.
    """

    def __init__(self, table: ConnectionTable, names: NameTable, source: Source) -> None:
        self._table = table
        self._names = names
        self._source = source
        self._greetings = Greetings()
        self._early: list[Greeted] = []
        self._greeted: list[int] = []
        self._unexplained = _NOTHING
        self._fresh = _NOTHING

    def greet(self, pieces: Pieces) -> Pieces:
        """Take what is of hellos out of pieces; return the others.

        One whose connection is not known yet waits for the next call: an announcement may be
        committed to its ring a moment later.
        """
        early, self._early = self._early, []
        for greeted in early:
            self._enter(greeted)
        is_hello = pieces.records["flags"] & PayloadFlag.HELLO != 0
        if not is_hello.any():
            return pieces
        found = self._greetings.feed(pieces.take(is_hello))
        self._early = [greeted for greeted in found if not self._enter(greeted)]
        return pieces.take(~is_hello)

    def end(self, connection_ids: list[int]) -> None:
        """Give up the hellos of connections that have ended."""
        self._greetings.end(connection_ids)

    def _enter(self, greeted: Greeted) -> bool:
        # Whether its connection is known.
        rows = self._table.rows
        slot = int(self._table.find(np.array([greeted.connection_id], np.uint64))[0])
        if slot < 0:
            return False
        rows["flags"][slot] |= ConnectionFlag.TLS
        if greeted.version:
            rows["tls_version"][slot] = greeted.version
        if greeted.server_name:
            rows["server_name"][slot] = self._names.number(greeted.server_name)
        self._greeted.append(greeted.connection_id)
        return True

    def explain(self, records: NDArray[Any]) -> None:
        """Ask why what is inside TLS was not seen in clear, as soon as that may be; or again.

        Args:
            records: Connection records that came with the last pieces.
        """
        inside = records["connection_id"][records["flags"] & ConnectionFlag.TLS != 0]
        if not (len(inside) or self._greeted or len(self._unexplained)):
            return
        told = np.concatenate([np.array(self._greeted, np.uint64), inside])
        self._greeted.clear()
        fresh = self._unread(np.setdiff1d(told, self._unexplained))
        self._fresh = np.union1d(self._fresh, fresh)
        ids = self._unread(np.union1d(self._unexplained, fresh))
        rows, slots = self._table.rows, self._table.find(ids)
        pids, index = np.unique(rows["pid"][slots], return_inverse=True)
        asked = pids.tolist()
        known = self._source.unreadable(asked)
        reasons = [known.get(pid, Unreadable.UNKNOWN) for pid in asked]
        rows["unreadable"][slots] = np.array(reasons, np.uint8)[index]
        self._unexplained = ids[rows["unreadable"][slots] == Unreadable.UNKNOWN]

    def undecided(self) -> U64:
        """Return which of the connections that turned to TLS since the last call have to wait."""
        fresh, self._fresh = self._fresh, _NOTHING
        if not len(fresh):
            return fresh
        slots = self._table.find(fresh)
        fresh, slots = fresh[slots >= 0], slots[slots >= 0]
        rows = self._table.rows[slots]
        may_change = np.isin(rows["unreadable"], _OPEN) | (rows["tls_version"] == 0)
        waiting: U64 = fresh[may_change & ~_is_read(rows)]
        return waiting

    def _unread(self, ids: U64) -> U64:
        # Those of which nothing was seen in clear and nobody has said why.
        slots = self._table.find(ids)
        rows = self._table.rows[slots]  # slot -1 is not looked at
        wanted = (slots >= 0) & ~_is_read(rows)
        wanted &= (rows["unreadable"] == Unreadable.UNKNOWN) & (rows["excluded"] == 0)
        return ids[wanted]


def _is_read(rows: NDArray[Any]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = rows["flags"] & ConnectionFlag.READABLE != 0
    return found
