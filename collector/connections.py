"""The connections that are known: a hash table of numpy rows, looked up for all events at once.

Open addressing with linear probing, keyed by ``connection_id``. A slot of the hash is the row, so a
lookup is one multiplication, one gather and one comparison per event, without Python per event.

Invariants: ids are never 0 and never reused within a boot. A row outlives the publish that saw its
end by one more, because the last transfers of a connection can be drained after its close (the
transfer ring is read first). After that it stays for `GRACE_SWEEPS`, because what the kernel still
sends for a closed connection is told late: but ended rows are the first to go, and of them the
oldest, when there are too many or the table is full. A close that the ring had no room for never
comes, so a full table without ended rows gives up what was unused the longest.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from collector.conntrack import PeerTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.columns import U8, U32, U64

__all__ = ["GRACE_SWEEPS", "ROW", "ConnectionTable"]

ROW: Final = np.dtype(
    [
        ("connection_id", "<u8"),
        ("cgroup_id", "<u8"),
        ("opened_ns", "<u8"),
        ("local_address", "u1", 16),
        ("remote_address", "u1", 16),
        ("netns", "<u4"),
        ("pid", "<u4"),
        ("container", "<u4"),
        ("process", "<u4"),
        ("peer", "<u4"),
        ("mate", "<u4"),
        ("server_name", "<u4"),
        ("local_port", "<u2"),
        ("remote_port", "<u2"),
        ("tls_version", "<u2"),
        ("family", "u1"),
        ("role", "u1"),
        ("flags", "u1"),
        ("unreadable", "u1"),
        ("excluded", "u1"),
        ("comm", "<u4"),
    ]
)
"""What is kept of a connection, 99 bytes. ``container``, ``process``, ``server_name`` and ``mate``,
the container of the other end, are name numbers, ``peer`` is one of `ConnectionTable.peers`,
``comm`` a place in `ConnectionTable.comms`, ``opened_ns`` is Unix time, and ``unreadable`` one of
`schemas.tls.Unreadable`; what an ``excluded`` one does is counted and left out."""

GRACE_SWEEPS: Final = 120
"""How many sweeps an ended connection is known on: TCP sends what is left for up to minutes."""

_FREE: Final = np.uint64(0)
_DELETED: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_MULTIPLIER: Final = np.uint64(0x9E37_79B9_7F4A_7C15)  # 2**64 / golden ratio: Knuth 6.4
_HALF: Final = np.uint64(32)
_MIN_CAPACITY: Final = 1024
_MAX_COMMS: Final = 65_536
_MAX_LOAD: Final = 0.7
_GROWN_LOAD: Final = 0.5
"""After a growth: a table that doubled would have rows for twice as many as there are."""
_EVICTED_SHARE: Final = 16
"""A full table gives up one of so many at once, because finding the oldest looks at all."""
_ENDED_SHARE: Final = 8
"""At most one of so many rows is that of an ended connection, apart from what ended just now."""


class ConnectionTable:
    """Rows of `ROW` by connection id."""

    def __init__(self, max_connections: int = 1 << 20, grace_sweeps: int = GRACE_SWEEPS) -> None:
        self.max_connections = max_connections
        self._grace_sweeps = grace_sweeps
        self.peers = PeerTable()
        self.comms: list[bytes] = [b""]
        self._comm_numbers: dict[bytes, int] = {b"": 0}
        self.evicted = 0
        """Rows of connections not known to have ended that were given up for new ones."""
        self._period = 2  # so that the rows of a new table count as old
        self._allocate(_MIN_CAPACITY)
        self._retiring: list[U64] = []
        # One group for each of the last sweeps, the newest last. Its ids ended before that sweep.
        self._ended: deque[U64] = deque()
        self._ended_count = 0

    def _allocate(self, capacity: int) -> None:
        self._keys = np.zeros(capacity, np.uint64)
        self.rows: NDArray[Any] = np.zeros(capacity, ROW)
        self._used = np.zeros(capacity, np.uint32)
        self._has_ended = np.zeros(capacity, bool)
        self._live = 0
        self._dead = 0

    def __len__(self) -> int:
        return self._live

    @property
    def capacity(self) -> int:
        """Number of slots; slots are smaller than this."""
        return len(self._keys)

    def find(self, ids: U64) -> NDArray[np.int64]:
        """Return the slot of each id, shape (n,); -1 where it is unknown."""
        slots = self._home(ids)
        found = self._keys[slots]
        valid = (ids != _FREE) & (ids != _DELETED)
        hit = (found == ids) & valid
        if hit.all():
            return slots
        result = np.where(hit, slots, -1)
        pending = np.flatnonzero(~hit & (found != _FREE) & valid)
        while len(pending):
            following = self._after(slots[pending])
            slots[pending] = following
            found = self._keys[following]
            hit = found == ids[pending]
            result[pending[hit]] = following[hit]
            pending = pending[~hit & (found != _FREE)]
        return result

    def apply(self, records: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Enter connection records, oldest first.

        The addresses of the newest record with both ports, the newest owner that is not 0 and the
        newest role that is not unknown stay.

        Args:
            records: Shape (n,), fields of ``struct podwire_connection_record``.

        Returns:
            The slot of each record, shape (n,), -1 where the table may not grow any more or the
            record has no valid id; and the distinct slots whose owner is new.
        """
        slots, created = self._insert(records["connection_id"])
        if (slots < 0).any():
            records = records[slots >= 0]
            kept = slots[slots >= 0]
        else:
            kept = slots
        rows = self.rows
        complete = (records["local_port"] != 0) & (records["remote_port"] != 0)
        # A repeated index keeps the last value assigned: the newest record wins.
        for chosen in (np.isin(kept, created) & ~complete, complete):
            chosen_slots = kept[chosen]
            for name in (
                *("local_address", "remote_address", "local_port", "remote_port"),
                *("family", "netns"),
            ):
                rows[name][chosen_slots] = records[name][chosen]
        known = records["role"] != 0
        rows["role"][kept[known]] = records["role"][known]
        np.bitwise_or.at(rows["flags"], kept, records["flags"])
        grouped = (records["cgroup_id"] != 0) & (rows["pid"][kept] == 0)
        rows["cgroup_id"][kept[grouped]] = records["cgroup_id"][grouped]
        owned = records["pid"] != 0
        owned_slots = kept[owned]
        before = rows["pid"][owned_slots], rows["cgroup_id"][owned_slots]
        for name in ("pid", "cgroup_id"):
            rows[name][owned_slots] = records[name][owned]
        rows["comm"][owned_slots] = self._numbered(records["comm"][owned])
        changed = (before[0] != rows["pid"][owned_slots]) | (
            before[1] != rows["cgroup_id"][owned_slots]
        )
        return slots, np.unique(np.concatenate([created, owned_slots[changed]]))

    def retire(self, ids: U64) -> None:
        """Say that these connections ended: the second `sweep` from now may free them."""
        if len(ids):
            self._retiring.append(ids)
            slots = self.find(ids)
            self._has_ended[slots[slots >= 0]] = True

    def sweep(self) -> None:
        """Free what ended too long ago, or is too much; call once after every publish."""
        self._period += 1
        ended = np.concatenate(self._retiring) if self._retiring else np.empty(0, np.uint64)
        self._retiring = []
        self._ended.append(ended)
        self._ended_count += len(ended)
        if len(self._ended) > self._grace_sweeps:
            self._free_oldest(len(self._ended[0]))
        kept = self.max_connections // _ENDED_SHARE
        while self._ended_count > kept and len(self._ended) > 1:
            self._free_oldest(self._ended_count - kept)

    def use(self, slots: NDArray[np.int64]) -> None:
        """Say that these rows were needed since the last `sweep`."""
        self._used[slots] = self._period

    def live_slots(self) -> NDArray[np.int64]:
        """Return the slots in use."""
        return np.flatnonzero((self._keys != _FREE) & (self._keys != _DELETED))

    def are_open(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return of which of these rows in use nobody said that they ended."""
        found: NDArray[np.bool_] = ~self._has_ended[slots]
        return found

    def _numbered(self, comms: U8) -> U32:
        # Threads of a node have few names.
        if len(self.comms) > _MAX_COMMS:
            live = self.live_slots()
            used, index = np.unique(np.append(self.rows["comm"][live], 0), return_inverse=True)
            self.comms = [self.comms[number] for number in used.tolist()]
            self._comm_numbers = {comm: number for number, comm in enumerate(self.comms)}
            self.rows["comm"][live] = index[:-1]
        found, index = np.unique(comms.view("S16").reshape(-1), return_inverse=True)
        numbers = []
        for comm in found.tolist():
            number = self._comm_numbers.setdefault(comm, len(self.comms))
            if number == len(self.comms):
                self.comms.append(comm)
            numbers.append(number)
        return np.array(numbers, np.uint32)[index]

    def _home(self, ids: U64) -> NDArray[np.int64]:
        # The upper half of a product is in the range of its other factor, whatever that is: Lemire,
        # Fast Random Integer Generation in an Interval, ACM TOMACS 29 (2019).
        upper = (ids * _MULTIPLIER) >> _HALF
        return ((upper * np.uint64(self.capacity)) >> _HALF).astype(np.int64)

    def _after(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        following = slots + 1
        following[following == self.capacity] = 0
        return following

    def _insert(self, ids: U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        slots = self.find(ids)
        absent = ids[slots < 0]
        fresh = np.unique(absent[(absent != _FREE) & (absent != _DELETED)])
        self.use(slots[slots >= 0])
        missing = self._live + len(fresh) - self.max_connections
        # The newest group stays: transfers of it may still come.
        while missing > 0 and len(self._ended) > 1:
            missing -= self._free_oldest(missing)
        if missing > 0:
            self._evict(max(missing, self.max_connections // _EVICTED_SHARE))
        fresh = fresh[: max(0, self.max_connections - self._live)]
        if not len(fresh):
            return slots, np.empty(0, np.int64)
        self._reserve(len(fresh))
        created = self._place(fresh)
        self.rows[created] = np.zeros((), ROW)
        self.rows["connection_id"][created] = fresh
        self._has_ended[created] = False
        self.use(created)
        return self.find(ids), created

    def _place(self, ids: U64) -> NDArray[np.int64]:
        slots = self._home(ids)
        pending = np.arange(len(ids))
        while len(pending):
            tried = slots[pending]
            found = self._keys[tried]
            open_ = (found == _FREE) | (found == _DELETED)
            # Two ids that want one slot: the last one written has it, the others go on.
            self._keys[tried[open_]] = ids[pending[open_]]
            placed = self._keys[tried] == ids[pending]
            self._dead -= int(np.count_nonzero(placed & (found == _DELETED)))
            pending = pending[~placed]
            slots[pending] = self._after(slots[pending])
        self._live += len(ids)
        return slots

    def _reserve(self, count: int) -> None:
        if self._live + self._dead + count <= _MAX_LOAD * self.capacity:
            return
        live = self.live_slots()
        kept, used, has_ended = self.rows[live], self._used[live], self._has_ended[live]
        self._allocate(max(_MIN_CAPACITY, round((len(live) + count) / _GROWN_LOAD)))
        slots = self._place(kept["connection_id"])
        self.rows[slots], self._used[slots], self._has_ended[slots] = kept, used, has_ended

    def _free_oldest(self, count: int) -> int:
        # Up to so many ids of the oldest group; some of them may have gone before.
        ids = self._ended.popleft()
        if count < len(ids):
            self._ended.appendleft(ids[count:])
        self._ended_count -= len(ids[:count])
        return self._delete(ids[:count])

    def _evict(self, count: int) -> None:
        live = self.live_slots()
        # What was used just now may have events that wait for the next batch.
        idle = live[self._used[live] + 1 < self._period]
        if count < len(idle):
            idle = idle[np.argpartition(self._used[idle], count)[:count]]
        self._delete(self._keys[idle])
        self.evicted += len(idle)

    def _delete(self, ids: U64) -> int:
        slots = np.unique(self.find(ids))
        slots = slots[slots >= 0]
        self._keys[slots] = _DELETED
        self._live -= len(slots)
        self._dead += len(slots)
        return len(slots)
