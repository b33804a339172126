"""Both ends of a connection on one host: the same five-tuple, seen mirrored.

Loopback and node addresses say nothing about the process behind them, but its own row does:
addresses and ports swapped, as they are behind a translation. Only loopback means something else
in every network namespace. The row is looked for in the batch first, then among what earlier
batches showed (connections, then listening ends, which are of one namespace).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from schemas.addresses import is_loopback
from schemas.events import Role
from schemas.hashing import mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from schemas.columns import U64
    from schemas.events import Connections
    from streams.identity import Identity

__all__ = ["Peers"]

_GENERATION_LIMIT = 200_000
_LISTENING = 0x5EED


class Peers:
    """Remembers local ends by their side of a connection, in two generations (bounded)."""

    def __init__(self) -> None:
        self._recent: dict[int, Identity] = {}
        self._older: dict[int, Identity] = {}
        self._learned: list[Identity] = []
        self._locals = 0

    def find(
        self,
        node: str,
        rows: Connections,
        remote_address: NDArray[np.uint64],
        remote_port: NDArray[np.uint64],
        candidates: NDArray[np.intp],
        role: NDArray[np.int64],
        locals_: Sequence[Identity],
        local_index: NDArray[np.intp],
    ) -> NDArray[np.int64]:
        """Return for each candidate row the number of its peer's identity, or -1.

        Args:
            node: Where the rows were seen; namespaces are numbered per node.
            rows: All connection rows of a batch.
            remote_address: Shape (rows, 2), who is really at the other end, as two halves.
            remote_port: Shape (rows,), the same.
            candidates: Shape (n,), the rows in question, and those that may be their peers.
            role: Shape (n,), their roles.
            locals_: Local ends of the batch; numbers below their count mean these.
            local_index: Shape (n,), the local end of each candidate.
        """
        self._locals = len(locals_)
        self._learned = []
        netns = rows.netns[candidates].astype(np.uint64)
        local_halves = np.ascontiguousarray(rows.local_address[candidates]).view("<u8")
        local_port = rows.local_port[candidates].astype(np.uint64)
        halves, port = remote_address[candidates], remote_port[candidates]
        start = np.full(len(candidates), hash(node) & 0xFFFF_FFFF_FFFF_FFFF, np.uint64)
        local = _endpoint(start, local_halves, local_port, netns * is_loopback(local_halves))
        remote = _endpoint(start, halves, port, netns * is_loopback(halves))
        own = mix(local, remote)
        mirrored = mix(remote, local)
        order = np.argsort(own)
        place = np.minimum(np.searchsorted(own[order], mirrored), len(own) - 1)
        partner = order[place]
        matched = own[partner] == mirrored
        peers = np.where(matched, local_index[partner], -1).astype(np.int64)
        listening = _endpoint(start, local_halves, local_port, netns)
        self._learn(own, listening, role, locals_, local_index)
        unmatched = np.flatnonzero(~matched)
        if len(unmatched):
            served = _endpoint(start, halves, port, netns)
            self._learned = self._find_learned(
                peers, unmatched, mirrored[unmatched], served[unmatched], role[unmatched]
            )
        return peers

    def identity(self, number: int, locals_: Sequence[Identity]) -> Identity:
        """Return the identity that `find` numbered."""
        return locals_[number] if number < self._locals else self._learned[number - self._locals]

    def _find_learned(
        self,
        peers: NDArray[np.int64],
        rows: NDArray[np.intp],
        mirrored: U64,
        remote: U64,
        role: NDArray[np.int64],
    ) -> list[Identity]:
        # Looks rows without a partner up among earlier batches; numbers go into `peers`.
        listening = mix(remote, np.full(len(remote), _LISTENING, np.uint64))
        is_client = (role == int(Role.CLIENT)).tolist()
        recall = self._recall
        numbers: dict[Identity, int] = {}
        found_rows, found_numbers = [], []
        for row, key, server_key, client in zip(
            rows.tolist(), mirrored.tolist(), listening.tolist(), is_client, strict=True
        ):
            known = recall(key) or (recall(server_key) if client else None)
            if known is not None:
                found_rows.append(row)
                found_numbers.append(numbers.setdefault(known, self._locals + len(numbers)))
        peers[found_rows] = found_numbers
        return list(numbers)

    def _learn(
        self,
        own: U64,
        local: U64,
        role: NDArray[np.int64],
        locals_: Sequence[Identity],
        local_index: NDArray[np.intp],
    ) -> None:
        if len(self._recent) > _GENERATION_LIMIT:
            self._older, self._recent = self._recent, {}
        owners = [locals_[number] for number in local_index.tolist()]
        self._recent.update(zip(own.tolist(), owners, strict=True))
        servers = np.flatnonzero(role == int(Role.SERVER))
        _, first = np.unique(local[servers], return_index=True)
        rows = servers[first]
        listening = mix(local[rows], np.full(len(rows), _LISTENING, np.uint64))
        for key, row in zip(listening.tolist(), rows.tolist(), strict=True):
            self._recent[key] = owners[row]

    def _recall(self, key: int) -> Identity | None:
        return self._recent.get(key) or self._older.get(key)


def _endpoint(start: U64, halves: NDArray[np.uint64], port: U64, netns: U64) -> U64:
    return mix(start, halves[:, 0], halves[:, 1], (netns << np.uint64(32)) | port)
