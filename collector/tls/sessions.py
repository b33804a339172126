"""What is known of the TLS of connections besides what is said inside it. Pure.

Who is asked for and which version is agreed on come from the hellos; why what is said inside is not
seen in clear, from whoever looks at the files of processes, beside the drain.

A publish may come in the middle of a handshake, or between it and what is said first, which may be
much later; and why a process is not read may take a while to be found out. What a connection did
is told with what is known of it then, so it waits until that is decided: something was seen in
clear, or cannot be; or it has gone on without, or ended. It waits a bounded time, with as much as
there is room for; what gives up is counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from collector.abi import ConnectionFlag, PayloadFlag
from collector.tls.greetings import Greetings
from schemas.telemetry import counter
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
_PATIENCE_NS: Final = 10_000_000_000
_MAX_WAITING: Final = 32_768
"""Of the records of all that wait, which are few of each that is silent."""
_ENOUGH: Final = 2
"""Publishes after the first in which something moved that nobody saw in clear: the first may have
been the end of the handshake, or the first half of a moment."""
_WAITING: Final = np.dtype([("id", "u8"), ("since_ns", "i8"), ("calls", "u4"), ("moved", "u4")])
"""Since when a connection waits, its calls by now, and how many publishes had new ones."""


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
        self._waiting = np.empty(0, _WAITING)
        self.patient = _NOTHING
        """Which of those that `undecided` told last had waited before."""

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

    def undecided(self, ended: U64, transfers: NDArray[Any], now_ns: int) -> U64:
        """Return which connections inside TLS have to wait.

        Args:
            ended: Ids of connections that have, now or while they waited.
            transfers: Records since the last call, and those that had to wait then.
            now_ns: The clock.
        """
        waiting = np.zeros(len(self._waiting) + len(self._fresh), _WAITING)
        waiting[: len(self._waiting)] = self._waiting
        waiting["id"][len(self._waiting) :] = self._fresh
        waiting["since_ns"][len(self._waiting) :] = now_ns
        is_fresh = np.arange(len(waiting)) >= len(self._waiting)
        self._fresh = _NOTHING
        slots = self._table.find(waiting["id"])
        waiting, is_fresh, slots = waiting[slots >= 0], is_fresh[slots >= 0], slots[slots >= 0]
        if not len(waiting):
            self._waiting, self.patient = waiting, _NOTHING
            return _NOTHING
        calls = _occurrences(waiting["id"], transfers["connection_id"])
        waiting["moved"] += ~is_fresh & (calls > waiting["calls"])
        waiting["calls"] = calls
        rows = self._table.rows[slots]
        reason, is_known = rows["unreadable"], rows["pid"] != 0
        waits = np.isin(reason, _OPEN) | (rows["tls_version"] == 0)
        waits &= ~_is_read(rows) & (rows["excluded"] == 0)
        is_over = np.isin(waiting["id"], ended) | (waiting["moved"] >= _ENOUGH)
        waits &= is_fresh | ~is_over | (is_known & (reason == Unreadable.UNKNOWN))
        waits &= ~_given_up("late", waits & (now_ns - waiting["since_ns"] >= _PATIENCE_NS))
        newest = np.argsort(-waiting["since_ns"], kind="stable")
        room = np.empty(len(waiting), np.int64)
        room[newest] = _MAX_WAITING - np.cumsum((waits * (1 + calls))[newest])
        waits &= ~_given_up("crowded", waits & ~is_fresh & (room < 0))
        self._waiting = waiting[waits]
        self.patient = waiting["id"][waits & ~is_fresh]
        ids: U64 = self._waiting["id"]
        return ids

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


def _occurrences(ids: U64, among: U64) -> NDArray[np.int64]:
    # How often each occurs.
    order = np.argsort(ids)
    found, counts = np.unique(among[np.isin(among, ids)], return_counts=True)
    result = np.zeros(len(ids), np.int64)
    result[order[np.searchsorted(ids[order], found)]] = counts
    return result


def _given_up(reason: str, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    counter("podwire_collector_tls_undecided_total").labels(reason).inc(
        int(np.count_nonzero(chosen))
    )
    return chosen
