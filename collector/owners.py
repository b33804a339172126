"""Whose the connections are: their containers and processes, and whether these are to be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from collector.watching import BY_RUN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from collector.connections import ConnectionTable
    from collector.containers import ContainerResolver
    from collector.names import NameTable
    from collector.watching import Watching
    from schemas.columns import U64

__all__ = ["Owners"]

_OWNER_HASH: Final = np.uint64(0x9E37_79B9_7F4A_7C15)


class Owners:
    """Enters owners into a table.

    Args:
        table: The connections.
        names: Of containers and processes.
        resolver: Knows them.
        watching: Told of rows whose owner is new.
        excluded_run: Process whose run is not to be seen; 0: none.
    """

    def __init__(
        self,
        table: ConnectionTable,
        names: NameTable,
        resolver: ContainerResolver,
        watching: Watching | None,
        excluded_run: int,
    ) -> None:
        self._table = table
        self._names = names
        self._resolver = resolver
        self._watching = watching
        self._excluded_run = excluded_run
        self._bare = np.empty(0, np.uint64)
        self.undecided: U64 = np.empty(0, np.uint64)
        """Connections whose container is not known yet."""

    def enter(self, slots: NDArray[np.int64]) -> None:
        """Enter the owners of rows that are new or have another owner now."""
        self._label(slots)
        bare = slots[self._table.rows["pid"][slots] == 0]
        if len(bare):
            self._bare = np.union1d(self._bare, self._table.rows["connection_id"][bare])

    def adopt(self, transfers: NDArray[Any]) -> None:
        """Give a connection that only the kernel had touched to the process that uses it."""
        if not len(self._bare):
            return
        rows = self._table.rows
        users = transfers[transfers["pid"] != 0]
        users = users[np.isin(users["connection_id"], self._bare)]
        slots = self._table.find(users["connection_id"])
        bare = (slots >= 0) & (rows["pid"][slots] == 0)
        if bare.any():
            rows["pid"][slots[bare]] = users["pid"][bare]
            self._label(np.unique(slots[bare]))
        slots = self._table.find(self._bare)
        kept = (slots >= 0) & (rows["pid"][slots] == 0)
        self._bare = self._bare[kept]

    def decide(self) -> None:
        """Look again for containers that were too new for the last look.

        Their processes may be gone and the ids of these taken by others, so only the cgroup is
        asked.
        """
        if not len(self.undecided):
            return
        rows = self._table.rows
        slots = self._table.find(self.undecided)
        slots = slots[slots >= 0]
        # A later owner's process may have told since.
        slots = slots[rows["container"][slots] == 0]
        cgroups = rows["cgroup_id"][slots]
        left = np.zeros(len(slots), bool)
        for cgroup_id in np.unique(cgroups).tolist():
            same = cgroups == cgroup_id
            name = self._resolver.container(0, cgroup_id)
            rows["container"][slots[same]] = self._names.number(name)
            left |= same & self._resolver.is_undecided(cgroup_id)
        if self._watching is not None:
            self._watching.judge(slots)
        self.undecided = rows["connection_id"][slots[left]]

    def _label(self, slots: NDArray[np.int64]) -> None:
        # Looked up once per distinct owner; a collision of this hash would need 2**32 of them.
        table = self._table
        rows = table.rows[slots]
        owner = (rows["cgroup_id"] * _OWNER_HASH) ^ rows["pid"]
        _, first, inverse = np.unique(owner, return_index=True, return_inverse=True)
        containers, processes, excluded, undecided = [], [], [], []
        for pid, cgroup_id, comm in rows[first][["pid", "cgroup_id", "comm"]].tolist():
            containers.append(self._names.number(self._resolver.container(pid, cgroup_id)))
            name = self._resolver.process(pid, table.comms[comm])
            processes.append(self._names.number(name))
            excluded.append(BY_RUN if self._is_of_run(pid) else 0)
            undecided.append(not containers[-1] and self._resolver.is_undecided(cgroup_id))
        table.rows["container"][slots] = np.array(containers, np.uint32)[inverse]
        table.rows["process"][slots] = np.array(processes, np.uint32)[inverse]
        table.rows["excluded"][slots] = np.array(excluded, np.uint8)[inverse]
        if self._watching is not None:
            self._watching.enter(slots)
        if any(undecided):
            again = rows["connection_id"][np.array(undecided)[inverse]]
            self.undecided = np.union1d(self.undecided, again)

    def _is_of_run(self, pid: int) -> bool:
        run = self._excluded_run
        if not run or not pid:
            return False
        return pid == run or self._resolver.carries(pid, b"PODWIRE_RUN=%d" % run)
