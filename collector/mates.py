"""Which two connections of this node are the two ends of one. Pure.

An address goes from pod to pod, and what Kubernetes says of the moment is whole seconds. But of two
ends on one node both have rows here, so each is told the container of the other, which no time has
to decide. Ends are compared as they are behind a translation. A redirect changes the port of the
server's end alone, so what the whole comparison leaves over is compared without that port.

The server's row comes when its application accepts. Until the next publish a client waits for that:
then its events are held, so that the first thing said of it has its name. An acceptance that takes
longer names what comes after it. So does everything wait for a container that is not known yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from collector.abi import ConnectionEvent
from schemas.addresses import halves, is_loopback
from schemas.events import ConnectionFlag, Role
from schemas.hashing import mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from collector.connections import ConnectionTable
    from schemas.clock import ClockAnchor
    from schemas.columns import U64

__all__ = ["Mates"]

_WAITING_LIMIT: Final = 16_384
_ADDRESS_LIMIT: Final = 16_384
_PORT: Final = np.uint64(0xFFFF)
_INSIDE: Final = np.uint8(ConnectionFlag.INSIDE)
_NOTHING: Final = np.empty(0, np.uint64)


class Mates:
    """Pairs the connections of a table, publish after publish."""

    def __init__(self, table: ConnectionTable) -> None:
        self._table = table
        self._waiting = _NOTHING
        self._held = _NOTHING
        self._addresses = _NOTHING

    def pair(self, records: NDArray[Any], anchor: ClockAnchor, undecided: U64) -> U64:
        """Enter when connections began and who is at their other ends; return who has to wait.

        Args:
            records: Connection records since the last call, and those that had to wait then.
            anchor: Converts their times.
            undecided: Connections whose container is not known yet.

        Returns:
            Ids of those just begun whose container, or that of their other end, is not known yet;
            and once of clients whose other end is on this node and has not come.
        """
        rows = self._table.rows
        event = records["event"]
        opened = (event == ConnectionEvent.CONNECTED) | (event == ConnectionEvent.ACCEPTED)
        begun = records[opened]
        slots = self._table.find(begun["connection_id"])
        known = slots >= 0
        rows["opened_ns"][slots[known]] = anchor.to_unix_ns(begun["end_ns"][known])
        fresh = begun["connection_id"][known & (begun["error"] == 0)]
        # Those that were held come again.
        waiting = np.setdiff1d(self._waiting, fresh) if len(self._waiting) else self._waiting
        ids = np.concatenate([waiting, fresh])
        is_fresh = np.arange(len(ids)) >= len(waiting)
        slots = self._table.find(ids)
        known = slots >= 0
        ids, slots, is_fresh = ids[known], slots[known], is_fresh[known]
        if not len(ids):
            self._waiting = self._held = _NOTHING
            return _NOTHING
        is_server = rows["role"][slots] == Role.SERVER
        local_address = halves(rows["local_address"][slots])
        address, port = self._others(slots)
        remote_address = halves(address)
        pods = local_address[rows["container"][slots] != 0]
        self._learn(mix(pods[:, 0], pods[:, 1]))
        netns = rows["netns"][slots]
        local_port = rows["local_port"][slots].astype(np.uint64)
        ends = _client_first(
            is_server,
            (local_address, local_port),
            (remote_address, port.astype(np.uint64)),
            netns,
        )
        unsure = _among(ids, np.sort(undecided))
        paired = np.zeros(len(ids), bool)
        self._match(ends, slots, is_server, paired, unsure)
        ends[:, 5] &= ~_PORT
        self._match(ends, slots, is_server, paired, unsure)
        here = _among(mix(remote_address[:, 0], remote_address[:, 1]), self._addresses)
        left = unsure | (~paired & here & ~is_server)
        gone = np.isin(ids[left], records["connection_id"][event == ConnectionEvent.CLOSED])
        self._waiting = ids[left][~gone][-_WAITING_LIMIT:]
        # A container is decided after a few looks, for an acceptance nobody knows.
        once = np.setdiff1d(ids[left & ~unsure & is_fresh], self._held)
        held: U64 = np.union1d(once, ids[unsure & is_fresh])
        # Others may hold them for longer.
        self._held = np.union1d(held, np.intersect1d(self._held, ids[is_fresh]))
        return held

    def _others(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
        # Address and port of who is really at the other end.
        rows = self._table.rows
        address, port = self._table.peers.columns(rows["peer"][slots])
        plain = rows["peer"][slots] == 0
        address = np.where(plain[:, None], rows["remote_address"][slots], address)
        return address, np.where(plain, rows["remote_port"][slots], port)

    def _learn(self, addresses: U64) -> None:
        # Of pods on this node; an address that no pod has any more does no harm.
        if len(self._addresses) > _ADDRESS_LIMIT:
            self._addresses = _NOTHING
        new = addresses[~_among(addresses, self._addresses)]
        if len(new):
            self._addresses = np.union1d(self._addresses, new)

    def _match(
        self,
        ends: U64,
        slots: NDArray[np.int64],
        is_server: NDArray[np.bool_],
        paired: NDArray[np.bool_],
        unsure: NDArray[np.bool_],
    ) -> None:
        # Tells each of two ends the other's container. Who has a mate is `paired` then; of two
        # ends of which one is `unsure` both are.
        rows = self._table.rows
        place = np.flatnonzero(~paired)
        opened = rows["opened_ns"][slots]
        key = mix(*ends.T)
        order = place[np.lexsort((is_server[place], opened[place], key[place]))]
        clients, servers = _in_turn(key[order], is_server[order])
        clients, servers = order[clients], order[servers]
        same = (ends[clients] == ends[servers]).all(axis=1)
        clients, servers = clients[same], servers[same]
        unsure[clients] = unsure[servers] = unsure[clients] | unsure[servers]
        for one, other in ((clients, servers), (servers, clients)):
            rows["mate"][slots[one]] = rows["container"][slots[other]]
            inside = one[rows["netns"][slots[one]] == rows["netns"][slots[other]]]
            rows["flags"][slots[inside]] |= _INSIDE
            paired[one] = True


def _client_first(
    is_server: NDArray[np.bool_],
    local: tuple[U64, U64],
    remote: tuple[U64, U64],
    netns: NDArray[np.uint32],
) -> U64:
    # Shape (n, 6): the client's address as two halves, its port, and the same of the server, as
    # both rows of a connection know them. Loopback is another one in every namespace.
    sides = []
    for address, port in (local, remote):
        own = netns.astype(np.uint64) * is_loopback(address)
        sides.append(np.column_stack([address, port | (own << np.uint64(32))]))
    turned = is_server[:, None]
    return np.hstack([np.where(turned, sides[1], sides[0]), np.where(turned, sides[0], sides[1])])


def _among(values: U64, chosen: U64) -> NDArray[np.bool_]:
    # Which values are among the chosen ones, few and in order: faster than `np.isin`.
    if not len(chosen):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(chosen, values), len(chosen) - 1)
    found: NDArray[np.bool_] = chosen[place] == values
    return found


def _in_turn(key: U64, is_server: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    # Of rows that share a key, in order of time, clients and the servers that follow them. Ports
    # are used again: then they take turns, and where they do not, nobody knows who is whose.
    if not len(key):
        return np.empty(0, np.intp), np.empty(0, np.intp)
    begins = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    group = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(key))))
    turn = (np.arange(len(key)) - begins[group]) & 1
    out_of_turn = np.bincount(group[is_server != turn], minlength=len(begins)) > 0
    first = np.flatnonzero(~out_of_turn[group] & (turn == 0))
    first = first[first + 1 < len(key)]
    first = first[group[first] == group[first + 1]]
    return first, first + 1
