"""From the addresses and containers of a batch to who talks to whom.

Pure and vectorised: the connection rows of a batch are reduced to the distinct local and remote
ends, each is answered once (from a cache that the directory's generation and the answer's time
span keep honest), and the answers are spread over the rows again.

Local end: its container's pod, else the pod that holds its address (never a host-network pod), else
the process on its node. Remote end: the pod of its container, where both are on one node; else the
translated address where there is one; then the pod, the host-network pod by port, the service by
its virtual address, the node port, the node, and at last the address itself. Times are those at
which connections began. A peer that shares its host is found through the mirrored connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from schemas.addresses import halves, is_loopback
from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.events import ConnectionFlag, Role
from schemas.hashing import distinct
from streams.identity import Relation
from streams.naming import Naming, NamingSettings
from streams.peers import Peers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from schemas.events import Connections, EventBatch
    from streams.directory import Directory
    from streams.holders import Span
    from streams.identity import Identity

__all__ = ["Resolution", "Resolver"]

_CACHE_LIMIT = 200_000
_OLDEST_MS = 3_600_000

K = TypeVar("K")


@dataclass(slots=True)
class Resolution:
    """Who the connections of a batch are.

    Attributes:
        relations: The distinct pairs of the batch.
        index: Shape (connections,), which of the relations a connection row belongs to.
        missing: Ends that Kubernetes metadata on its way may still name.
        excluded: Shape (connections,), which of them are outside the monitoring scope; None if
            none is. See `streams.watching`.
    """

    relations: list[Relation]
    index: NDArray[np.intp]
    missing: set[str | bytes] = field(default_factory=set)
    excluded: NDArray[np.bool_] | None = None


class _Cache:
    # Answers for one cluster and one generation of the directory, with the span they hold for.
    def __init__(self) -> None:
        self.generation = -1
        self.locals: dict[tuple[str, str, str, bytes], tuple[Identity, Span]] = {}
        self.remotes: dict[tuple[bytes, int, str], tuple[Identity, Span]] = {}
        self.relations: dict[tuple[str, int, Identity, Identity, bool], Relation] = {}
        self.missing: dict[object, str | bytes] = {}

    def refresh(self, generation: int) -> None:
        size = len(self.locals) + len(self.remotes)
        if self.generation != generation or size > _CACHE_LIMIT:
            self.generation = generation
            self.locals.clear()
            self.remotes.clear()
            self.missing.clear()
        if len(self.relations) > _CACHE_LIMIT:
            self.relations.clear()

    def keep(
        self,
        known: dict[K, tuple[Identity, Span]],
        key: K,
        identity: Identity,
        span: Span,
        awaited: str | bytes,
    ) -> tuple[Identity, Span]:
        known[key] = identity, span
        if awaited:
            self.missing[key] = awaited
        return identity, span


class Resolver:
    """Resolves batch after batch against a directory that changes between them."""

    def __init__(self, directory: Directory, settings: NamingSettings) -> None:
        self._directory = directory
        self._naming = Naming(directory, settings)
        self._peers = Peers()
        self._caches: dict[str, _Cache] = {}

    def resolve(self, batch: EventBatch) -> Resolution:
        """Return who is at both ends of every connection row of the batch."""
        rows = batch.connections
        if not rows.rows:
            return Resolution([], np.empty(0, np.intp))
        header = batch.header
        cache = self._caches.setdefault(header.cluster, _Cache())
        cache.refresh(self._directory.generation)
        times = _times_ms(batch)
        missing: set[str | bytes] = set()
        local_address = halves(rows.local_address)
        remote_address = halves(_peer_address(rows))
        remote_port = np.where(
            rows.translated_port > 0, rows.translated_port, rows.remote_port
        ).astype(np.uint64)
        role = _roles(rows)
        locals_, local_index = self._local_ends(batch, cache, local_address, times, missing)
        server_port = np.where(role == Role.CLIENT, remote_port, np.uint64(0))
        remotes, remote_index = self._remote_ends(
            batch, cache, remote_address, server_port, times, missing
        )
        remote_index = self._same_host(
            header.node,
            rows,
            role,
            remote_address,
            remote_port,
            locals_,
            local_index,
            remotes,
            remote_index,
        )
        pair = (local_index * len(remotes) + remote_index) * 4 + _inside(rows) * 2 + (role - 1)
        codes, index = np.unique(pair, return_inverse=True)
        # Several ends may be one identity (a pod's ports, a pod's processes): one relation each.
        places: dict[Relation, int] = {}
        order: list[int] = []
        for code in codes.tolist():
            ends, sides = divmod(code, 4)
            inside, side = divmod(sides, 2)
            left, right = divmod(ends, len(remotes))
            local, remote = locals_[left], remotes[right]
            internal = _is_pod_internal(local, remote, bool(inside))
            key = (header.node, side + 1, local, remote, internal)
            relation = cache.relations.get(key)
            if relation is None:
                relation = Relation(header.cluster, header.node, side + 1, local, remote, internal)
                cache.relations[key] = relation
            order.append(places.setdefault(relation, len(places)))
        return Resolution(list(places), np.array(order, np.intp)[index], missing)

    def _local_ends(
        self,
        batch: EventBatch,
        cache: _Cache,
        address: NDArray[np.uint64],
        times: NDArray[np.int64],
        missing: set[str | bytes],
    ) -> tuple[list[Identity], NDArray[np.intp]]:
        rows, header = batch.connections, batch.header
        owner = (rows.container.astype(np.uint64) << np.uint64(32)) | rows.process
        first, index = distinct(owner, address[:, 0], address[:, 1])
        packed = np.ascontiguousarray(rows.local_address[first]).tobytes()
        keys = [
            (
                header.node,
                batch.names[rows.container[row]],
                batch.names[rows.process[row]],
                packed[place * 16 : place * 16 + 16],
            )
            for place, row in enumerate(first.tolist())
        ]

        def ask(key: tuple[str, str, str, bytes], time_ms: int) -> tuple[Identity, Span]:
            identity, span, awaited = self._naming.local(header.cluster, *key, time_ms)
            return cache.keep(cache.locals, key, identity, span, awaited)

        return _answered(keys, index, times, cache, cache.locals, ask, missing), index

    def _remote_ends(
        self,
        batch: EventBatch,
        cache: _Cache,
        address: NDArray[np.uint64],
        port: NDArray[np.uint64],
        times: NDArray[np.int64],
        missing: set[str | bytes],
    ) -> tuple[list[Identity], NDArray[np.intp]]:
        cluster, containers = batch.header.cluster, _remote_containers(batch.connections)
        first, index = distinct(port | (containers << np.uint64(32)), address[:, 0], address[:, 1])
        packed = np.ascontiguousarray(address[first]).tobytes()
        keys = [
            (packed[place * 16 : place * 16 + 16], number, batch.names[container])
            for place, (number, container) in enumerate(
                zip(port[first].tolist(), containers[first].tolist(), strict=True)
            )
        ]

        def ask(key: tuple[bytes, int, str], time_ms: int) -> tuple[Identity, Span]:
            address, port, container = key
            identity, span, awaited = self._naming.remote(
                cluster, address, port, time_ms, container
            )
            return cache.keep(cache.remotes, key, identity, span, awaited)

        return _answered(keys, index, times, cache, cache.remotes, ask, missing), index

    def _same_host(
        self,
        node: str,
        rows: Connections,
        role: NDArray[np.int64],
        remote_address: NDArray[np.uint64],
        remote_port: NDArray[np.uint64],
        locals_: list[Identity],
        local_index: NDArray[np.intp],
        remotes: list[Identity],
        remote_index: NDArray[np.intp],
    ) -> NDArray[np.intp]:
        # Peers that Kubernetes does not name may share the node's namespace and have rows. These
        # know nothing of when an address changed hands. Nor does a service call anybody: with IPVS
        # its node has that address, and calls the service from it.
        open_ends = np.array(
            [
                end.kind in ("address", "loopback", "node")
                and end.unresolved != "contested_address"
                for end in remotes
            ]
        )
        services = np.array([end.unresolved == "service_address" for end in remotes])
        is_open = open_ends[remote_index] | (services[remote_index] & (role == Role.SERVER))
        sharing = np.array([end.shares_host for end in locals_])
        candidates = np.flatnonzero(is_open | sharing[local_index])
        if not len(candidates):
            return remote_index
        peers = self._peers.find(
            node,
            rows,
            remote_address,
            remote_port,
            candidates,
            role[candidates],
            locals_,
            local_index[candidates],
        )
        found = (peers >= 0) & is_open[candidates]
        if not found.any():
            return remote_index
        remote_index = remote_index.copy()
        base = len(remotes)
        chosen, place = np.unique(peers[found], return_inverse=True)
        remotes.extend(self._peers.identity(number, locals_) for number in chosen.tolist())
        remote_index[candidates[found]] = base + place
        return remote_index


def _answered(
    keys: Sequence[K],
    index: NDArray[np.intp],
    times: NDArray[np.int64],
    cache: _Cache,
    known: Mapping[K, tuple[Identity, Span]],
    ask: Callable[[K, int], tuple[Identity, Span]],
    missing: set[str | bytes],
) -> list[Identity]:
    # The identity of each key, known or asked for. Where an address changed hands within the
    # batch, each of its rows is answered at its own time, and `index` follows.
    lower = np.full(len(keys), np.iinfo(np.int64).max)
    upper = np.full(len(keys), np.iinfo(np.int64).min)
    np.minimum.at(lower, index, times)
    np.maximum.at(upper, index, times)
    ends: list[Identity] = []
    moved: list[int] = []
    for place, (key, since, until) in enumerate(
        zip(keys, lower.tolist(), upper.tolist(), strict=True)
    ):
        found = known.get(key)
        if found is None or since < found[1][0] or until >= found[1][1]:
            found = ask(key, since)
            if until >= found[1][1]:
                moved.append(place)
        if cache.missing and key in cache.missing:
            missing.add(cache.missing[key])
        ends.append(found[0])
    if moved:
        _answer_by_time(moved, keys, index, times, ask, ends)
    return ends


def _answer_by_time(
    moved: Sequence[int],
    keys: Sequence[K],
    index: NDArray[np.intp],
    times: NDArray[np.int64],
    ask: Callable[[K, int], tuple[Identity, Span]],
    ends: list[Identity],
) -> None:
    # Rows of each key from the earliest on; what an answer holds for is not asked again.
    rows = np.flatnonzero(np.isin(index, moved))
    rows = rows[np.lexsort((times[rows], index[rows]))]
    places: dict[Identity, int] = {}
    before, until = -1, 0
    for row, place, time in zip(
        rows.tolist(), index[rows].tolist(), times[rows].tolist(), strict=True
    ):
        if place != before or time >= until:
            identity, (_, until) = ask(keys[place], time)
            before = place
        if identity not in places:
            places[identity] = len(ends)
            ends.append(identity)
        index[row] = places[identity]


def _is_pod_internal(local: Identity, remote: Identity, inside: bool) -> bool:
    if not local.pod_uid:
        return False
    if local.pod_uid == remote.pod_uid:
        return True
    # A proxy of the node is another pod, but its sockets are in the namespaces of those it serves.
    inside |= remote.kind == "loopback"
    return inside and not local.shares_host and not remote.shares_host


def _inside(rows: Connections) -> NDArray[np.bool_]:
    # What goes to loopback never leaves the namespace, whatever address it comes from.
    found: NDArray[np.bool_] = rows.flags & ConnectionFlag.INSIDE != 0
    return found | is_loopback(halves(rows.local_address))


def _roles(rows: Connections) -> NDArray[np.int64]:
    # Where nobody saw the handshake, the lower port is the service's: ephemeral ports are high.
    guessed = np.where(rows.local_port < rows.remote_port, Role.SERVER, Role.CLIENT)
    known = (rows.role == Role.CLIENT) | (rows.role == Role.SERVER)
    return np.where(known, rows.role, guessed).astype(np.int64)


def _peer_address(rows: Connections) -> NDArray[np.uint8]:
    translated = np.asarray(rows.translated_address.any(axis=1))
    if not translated.any():
        return rows.remote_address
    return np.where(translated[:, None], rows.translated_address, rows.remote_address)


def _remote_containers(rows: Connections) -> NDArray[np.uint64]:
    # Places in the names; 0 where it is not known.
    found = rows.remote_container
    if not len(found):
        return np.zeros(rows.rows, np.uint64)
    return np.where(found == UNMEASURED_U32, 0, found).astype(np.uint64)


def _times_ms(batch: EventBatch) -> NDArray[np.int64]:
    # Who is at the other end is decided when a connection is made; an address may have gone to
    # another pod since. But what is older than a while is not asked for any more.
    first = _first_event_ms(batch)
    opened = batch.connections.opened_ns
    if not len(opened):
        return first
    known = (opened != 0) & (opened != UNMEASURED_U64)
    made = np.where(known, opened // np.uint64(1_000_000), 0).astype(np.int64)
    return np.where(known, np.clip(made, first - _OLDEST_MS, first), first)


def _first_event_ms(batch: EventBatch) -> NDArray[np.int64]:
    # When each connection was first seen in this batch; numpy keeps the last of several
    # assignments to one place, so assigning backwards keeps the first event's.
    header = batch.header
    fallback = max(header.last_event_ns or header.watermark_ns, 0)
    times = np.full(batch.connections.rows, fallback, np.uint64)
    for table in (batch.requests, batch.transfers, batch.closes, batch.opens):
        times[table.connection[::-1]] = table.end_ns[::-1]
    return (times // np.uint64(1_000_000)).astype(np.int64)
