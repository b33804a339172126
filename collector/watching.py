"""The collector's part of the monitoring scope: what can be told on the node, in the kernel.

Ports, the node itself and processes decide in the kernel, which then makes no record. What the
other end is called only the stream workers know; they leave out the rest.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from collector.abi import SCOPE, Role
from schemas.monitoring import UNKNOWN, End

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from collector.connections import ConnectionTable
    from collector.names import NameTable
    from schemas.monitoring import MonitoringScope, ScopeFile

__all__ = ["BY_RUN", "BY_SCOPE", "KernelScope", "Watching", "as_server", "kernel_table"]

BY_RUN: Final = 1
"""Of a row's ``excluded``: its process is a part of the run that is not to be seen."""
BY_SCOPE: Final = 2
"""Of a row's ``excluded``: its pod is not watched."""

_LATE_LOOKS: Final = 4
"""For so many looks an ended process is known as such: what it did last may be told late."""
_ZERO: Final = bytes(4)
_NO_PORTS: Final = np.zeros((), SCOPE)


class _Maps(Protocol):
    def update_map(self, map_name: str, key: bytes, value: bytes) -> None: ...
    def delete_from_map(self, map_name: str, key: bytes) -> bool: ...


class KernelScope:
    """The scope that a core object goes by."""

    def __init__(self, core: _Maps) -> None:
        self._core = core
        self._number = 0

    def set(self, table: NDArray[Any] | None) -> None:
        """Put another scope in force.

        Args:
            table: As of `kernel_table`; None: everything is watched.

        Raises:
            BpfError: If the kernel refuses.
        """
        if table is None and not self._number:
            return
        self._core.update_map("scopes", _ZERO, (_NO_PORTS if table is None else table).tobytes())
        self._renumber()

    def refuse(self, pids: Iterable[int]) -> None:
        """Leave out what these processes do, until they end.

        Raises:
            BpfError: If the kernel refuses.
        """
        keys = [pid.to_bytes(4, sys.byteorder) for pid in pids]
        for key in keys:
            self._core.update_map("refused", key, b"\1")
        if keys:
            self._renumber()

    def admit(self, pids: Iterable[int]) -> None:
        """Watch processes that were refused, or whose ids were."""
        keys = [pid.to_bytes(4, sys.byteorder) for pid in pids]
        # Of most that ended the kernel knows it, and has nothing to look at again.
        if sum(self._core.delete_from_map("refused", key) for key in keys):
            self._renumber()

    def let_go(self, ids: Iterable[int]) -> None:
        """Take connections that are left out for others once they come back.

        Raises:
            BpfError: If the kernel refuses.
        """
        for connection_id in ids:
            self._core.update_map("let_go", connection_id.to_bytes(8, sys.byteorder), b"\1")

    def _renumber(self) -> None:
        # Last: who sees the new number sees the new tables.
        self._number += 1
        self._core.update_map("scope_number", _ZERO, self._number.to_bytes(4, sys.byteorder))


class Pods(Protocol):
    """Who the containers of this node are; `collector.pods.LocalPods`."""

    generation: int

    def start(self) -> None:
        """Begin to find out, unless that has begun."""
        ...

    def stop(self, timeout_s: float) -> None:
        """End that, and wait for it so long at most."""
        ...

    def end_of(self, container: str) -> End | None:
        """The pod of a container; None if it is not known."""
        ...


class Kernel(Protocol):
    """Who makes no records of what is not watched; `collector.source.KernelSource`."""

    def watch(self, scope: NDArray[Any] | None) -> None:
        """Put another scope in force."""
        ...

    def refuse(self, pids: Iterable[int]) -> None:
        """Leave out what these processes do."""
        ...

    def admit(self, pids: Iterable[int]) -> None:
        """Watch processes that were refused."""
        ...

    def let_go(self, ids: Iterable[int]) -> None:
        """Take connections that are left out for others once they come back."""
        ...


class Watching:
    """Keeps the kernel and the connection table to the scope in force.

    Every process is watched from its first call on. When its pod is known and is excluded, whatever
    is at the other end and the port, its rows are, and the kernel is told to leave the process out.
    Only of one that was not told to have ended: its id may be another's.

    Args:
        file: The scope.
        node: Where all local ends are.
        kernel: Told of every change; has been given what `kernel_table` says at first.
        table: The connections.
        names: Of their containers.
        pods: Asked only while the scope names pods.
    """

    def __init__(
        self,
        file: ScopeFile,
        node: str,
        kernel: Kernel,
        table: ConnectionTable,
        names: NameTable,
        pods: Pods | None = None,
    ) -> None:
        self._file = file
        self._here = End(node=node)
        self._kernel = kernel
        self._table = table
        self._names = names
        self._pods = pods
        self._ports = _left_out(file.scope, self._here)
        self._generation = 0
        self._living: dict[int, tuple[int, str]] = {}  # cgroup id and container of each process
        self._refused: set[int] = set()  # of these
        self._ended: deque[set[int]] = deque([set()], _LATE_LOOKS)  # between looks, the newest last
        self._gone: list[int] = []
        self._verdicts: dict[str, bool] = {}

    def look(self) -> list[int]:
        """Follow what has changed; return the connections that are not watched any more."""
        self._ended.append(set())
        scope, generation = self._file.scope, 0
        has_changed = self._file.poll()
        if has_changed:
            scope = self._file.scope
            self._ports = _left_out(scope, self._here)
            self._kernel.watch(kernel_table(scope, self._here))
        if self._pods is not None:
            if scope.names_pods:
                self._pods.start()
                generation = self._pods.generation
            else:
                self._pods.stop(0)
        if not has_changed and generation == self._generation:
            return self._take_gone()
        self._generation = generation
        self._verdicts.clear()
        self._tell(self._living)
        slots = self._table.live_slots()
        self._mark(slots)
        self._let_go(slots)
        return self._take_gone()

    def enter(self, slots: NDArray[np.int64]) -> None:
        """Decide about connections that are new or have another owner now."""
        seen = self._processes(slots)
        self._living |= {
            pid: owner
            for pid, owner in seen.items()
            if not any(pid in ended for ended in self._ended)
        }
        self._mark(slots)
        self._tell(seen)
        self._let_go(slots)

    def judge(self, slots: NDArray[np.int64]) -> None:
        """Decide about connections whose container was not known when they were entered."""
        seen = self._processes(slots)
        for pid, (cgroup_id, container) in seen.items():
            # The id may be another process's by now.
            if self._living.get(pid) == (cgroup_id, ""):
                self._living[pid] = cgroup_id, container
        self._mark(slots)
        self._tell(seen)
        self._let_go(slots)

    def forget(self, pids: Iterable[int]) -> None:
        """Drop what was said of processes that ended."""
        ended = set(pids)
        self._ended[-1] |= ended
        for pid in ended:
            self._living.pop(pid, None)
        # The kernel did so too, unless one ended just before it was refused.
        self._kernel.admit(self._refused & ended)
        self._refused -= ended

    def _processes(self, slots: NDArray[np.int64]) -> dict[int, tuple[int, str]]:
        # Whose these connections are.
        rows = self._table.rows
        pids, first = np.unique(rows["pid"][slots], return_index=True)
        chosen = slots[first]
        containers = map(self._names.text, rows["container"][chosen].tolist())
        owners = zip(rows["cgroup_id"][chosen].tolist(), containers, strict=True)
        return {pid: owner for pid, owner in zip(pids.tolist(), owners, strict=True) if pid}

    def _mark(self, slots: NDArray[np.int64]) -> None:
        rows = self._table.rows
        numbers, inverse = np.unique(rows["container"][slots], return_inverse=True)
        names = map(self._names.text, numbers.tolist())
        refused = np.array([self._is_refused(name) for name in names], bool)[inverse]
        rows["excluded"][slots] &= ~np.uint8(BY_SCOPE)
        rows["excluded"][slots[refused]] |= np.uint8(BY_SCOPE)

    def _tell(self, pids: Iterable[int]) -> None:
        # Of what the kernel does not know yet.
        living = self._living.keys() & pids
        wanted = {pid for pid in living if self._is_refused(self._living[pid][1])}
        admitted, refused = (self._refused & living) - wanted, wanted - self._refused
        self._refused = self._refused - admitted | refused
        self._kernel.admit(admitted)
        self._kernel.refuse(refused)

    def _let_go(self, slots: NDArray[np.int64]) -> None:
        if self._file.scope.is_everything:
            return
        # The kernel tells nothing more of them; one that comes back has another id.
        slots = slots[self._table.are_open(slots)]
        rows = self._table.rows[slots]
        left = rows["connection_id"][self._are_left_out(rows)]
        self._table.retire(left)
        ids: list[int] = left.tolist()
        self._kernel.let_go(ids)
        self._gone += ids

    def _take_gone(self) -> list[int]:
        gone, self._gone = self._gone, []
        return gone

    def _is_refused(self, container: str) -> bool:
        verdict = self._verdicts.get(container)
        if verdict is None:
            scope = self._file.scope
            end = None
            if container and scope.names_pods and self._pods is not None:
                end = self._pods.end_of(container)
            verdict = end is not None and all(each.all() for each in _left_out(scope, end))
            self._verdicts[container] = verdict
        return verdict

    def _are_left_out(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        # By the kernel, which knows ports and processes.
        of_clients, of_servers = self._ports
        found: NDArray[np.bool_] = np.where(
            as_server(rows), of_servers[rows["local_port"]], of_clients[rows["remote_port"]]
        )
        of_pods = np.flatnonzero(rows["excluded"] & np.uint8(BY_SCOPE))
        refused = [pid in self._refused for pid in rows["pid"][of_pods].tolist()]
        found[of_pods] |= np.array(refused, bool)
        return found


def as_server(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which local ends are servers: the lower port's, where nobody saw the handshake."""
    guessed = rows["local_port"] < rows["remote_port"]
    found: NDArray[np.bool_] = np.where(
        rows["role"] == Role.UNKNOWN, guessed, rows["role"] == Role.SERVER
    )
    return found


def kernel_table(scope: MonitoringScope, here: End) -> NDArray[Any] | None:
    """Return which server ports are left out whatever else is true, as the kernel reads it.

    Args:
        scope: The rules.
        here: What all local ends have in common.
    """
    if scope.is_everything:
        return None
    table = np.zeros((), SCOPE)
    table["of_clients"], table["of_servers"] = map(_bits, _left_out(scope, here))
    return table


def _left_out(scope: MonitoringScope, here: End) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    # At which server ports clients here are left out, and servers here.
    return scope.left_out(here, UNKNOWN), scope.left_out(UNKNOWN, here)


def _bits(ports: NDArray[np.bool_]) -> NDArray[np.uint64]:
    return np.packbits(ports, bitorder="little").view(np.uint64)
