"""Which container a process or a cgroup belongs to, without any API call.

The cgroup's path carries the container id under every runtime and cgroup driver. A record brings
the cgroup v2 id, which is the inode number of the cgroup's directory, so a walk of the mount finds
the path even when the process is gone; on nodes where containers live in cgroup v1 only,
``/proc/PID/cgroup`` answers while the process lives. Both answers are cached: a container id never
changes for a cgroup, and for a process only exec (image), exit or a move can change it.

Lookups are by distinct cgroup and process, never by event.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from schemas.clock import Clock

__all__ = ["ContainerResolver", "cgroup2_below", "container_id", "find_cgroup2_mount"]

_CONTAINER: Final = re.compile(
    r"^(?:(?:cri-containerd|containerd|nerdctl|docker|crio|libpod)-|[^/:]+:[^/:]+:)?"
    r"([0-9a-f]{64})(?:\.scope)?$"
)
"""One path segment: ``<id>`` (cgroupfs driver of containerd, docker, CRI-O and podman),
``<runtime>-<id>.scope`` (systemd driver), ``<slice>:cri-containerd:<id>`` (containerd given a
systemd-style path by a cgroupfs kubelet). ``crio-conmon-<id>`` and ``libpod-conmon-<id>`` hold the
runtime's own monitor process, not the container, and do not match.
Source: containerd pkg/cri/util, cri-o internal/config/cgmgr, moby daemon/oci_linux.go,
podman libpod/container_internal_linux.go."""

_KUBEPODS: Final = re.compile(r"^(?:.*-)?kubepods(?:\.slice)?$")
_WALK_INTERVAL_NS: Final = 100_000_000
_WALK_PAUSE: Final = 10
"""A walk of 2,000 cgroups takes 40 ms: walks take a tenth of the time at most."""
_MAX_ENTRIES: Final = 65_536
_MAX_MISSES: Final = 3


def container_id(path: str) -> str:
    """Return the container id in a cgroup path, or "" if the path is of no container.

    Inside Kubernetes the pod's own container is the first below ``kubepods``: what it runs in
    turn (docker in a pod) is part of it, and what it runs on (a node that is a container itself)
    is not. Elsewhere the innermost container counts.
    """
    segments = path.split("/")
    matches = [
        (position, match.group(1))
        for position, segment in enumerate(segments)
        if (match := _CONTAINER.match(segment))
    ]
    if not matches:
        return ""
    pods = [position for position, segment in enumerate(segments) if _KUBEPODS.match(segment)]
    if pods:
        below = [found for position, found in matches if position > pods[0]]
        if below:
            return below[0]
    return matches[-1][1]


def find_cgroup2_mount(mounts: str) -> Path | None:
    """Return the cgroup v2 mount point from the text of ``/proc/mounts``; None without one."""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) > 2 and fields[2] == "cgroup2":
            return Path(fields[1].replace("\\040", " "))
    return None


def cgroup2_below(path: Path) -> Path | None:
    """Return where cgroup v2 is: this path, or ``unified`` in it on nodes with both versions.

    None if only cgroup v1 is there. Every hierarchy numbers its directories from 1, so a walk
    through those of v1 would take them for others.
    """
    for place in (path, path / "unified"):
        if (place / "cgroup.controllers").is_file():  # in every directory of v2, in none of v1
            return place
    return None


class ContainerResolver:
    """Container ids and process names by cgroup id and pid, cached and bounded."""

    def __init__(self, proc: Path, cgroup2: Path | None, clock: Clock) -> None:
        self._proc = proc
        self._cgroup2 = cgroup2
        self._clock = clock
        self._by_cgroup: OrderedDict[int, str] = OrderedDict()
        self._by_pid: OrderedDict[int, str] = OrderedDict()
        self._names: OrderedDict[int, str] = OrderedDict()
        self._misses: OrderedDict[int, int] = OrderedDict()
        self._next_walk_ns = 0
        self.walks = 0

    def container(self, pid: int, cgroup_id: int) -> str:
        """Return the id of the container, "" if it is none or cannot be known any more."""
        if cgroup_id:
            self.learn((cgroup_id,))
            found = self._by_cgroup.get(cgroup_id)
            if found:
                return found
        if not pid:
            return ""
        cached = self._by_pid.get(pid)
        if cached is None:
            cached = self._from_proc(pid)
            if cached is None:
                return ""  # gone: its pid may soon be another process, so nothing is remembered
            _remember(self._by_pid, pid, cached)
        return cached

    def is_undecided(self, cgroup_id: int) -> bool:
        """Whether a later look may still find this cgroup."""
        return bool(cgroup_id) and self._cgroup2 is not None and cgroup_id not in self._by_cgroup

    def process(self, pid: int, comm: bytes) -> str:
        """Return the name of a process: its main thread's, else the calling thread's ``comm``."""
        if not pid:
            return _text(comm)
        name = self._names.get(pid)
        if name is None:
            try:
                name = _text((self._proc / str(pid) / "comm").read_bytes().rstrip(b"\n"))
            except OSError:  # the process is gone: the record's own name is what is left
                return _text(comm)
            _remember(self._names, pid, name)
        return name

    def carries(self, pid: int, variable: bytes) -> bool:
        """Whether a process was started with this ``NAME=value`` in its environment."""
        try:
            environment = (self._proc / str(pid) / "environ").read_bytes()
        except OSError:  # gone, or not ours to read
            return False
        return variable in environment.split(b"\0")

    def forget(self, pids: Iterable[int]) -> None:
        """Drop what was known of processes that executed a program or exited."""
        for pid in pids:
            self._by_pid.pop(pid, None)
            self._names.pop(pid, None)

    def hurry(self) -> None:
        """Let the next look not wait for its turn: there will be no other."""
        self._next_walk_ns = 0

    def learn(self, cgroup_ids: Iterable[int]) -> None:
        """Look unknown cgroups up now, while their directories exist."""
        unknown = [item for item in cgroup_ids if item and item not in self._by_cgroup]
        now = self._clock.monotonic_ns()
        if self._cgroup2 is None or not unknown:
            return
        if now < self._next_walk_ns:
            return
        self._walk(self._cgroup2)
        took = self._clock.monotonic_ns() - now
        self._next_walk_ns = now + max(_WALK_INTERVAL_NS, took * _WALK_PAUSE)
        for item in unknown:
            if item not in self._by_cgroup:
                misses = self._misses.pop(item, 0) + 1
                if misses < _MAX_MISSES:
                    self._misses[item] = misses
                else:  # gone before anybody looked: stop walking for it
                    _remember(self._by_cgroup, item, "")
        while len(self._misses) > _MAX_ENTRIES:
            self._misses.popitem(last=False)

    def _walk(self, mount: Path) -> None:
        self.walks += 1
        root = os.fspath(mount)
        pending = [root]
        while pending:
            directory = pending.pop()
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                            # d_ino is the cgroup id: kernfs numbers nodes with 64 bits
                            inode = entry.inode()
                            if inode not in self._by_cgroup:
                                path = entry.path[len(root) :]
                                _remember(self._by_cgroup, inode, container_id(path))
            except OSError:  # removed while walking: its children are gone as well
                continue

    def _from_proc(self, pid: int) -> str | None:
        try:
            lines = (self._proc / str(pid) / "cgroup").read_text(errors="replace").splitlines()
        except OSError:  # the process is gone
            return None
        # hierarchy-ID:controllers:path, one line per hierarchy; see cgroups(7)
        for line in lines:
            found = container_id(line.split(":", 2)[-1])
            if found:
                return found
        return ""


def _remember(cache: OrderedDict[int, str], key: int, value: str) -> None:
    cache[key] = value
    if len(cache) > _MAX_ENTRIES:
        cache.popitem(last=False)


def _text(comm: bytes) -> str:
    return comm.split(b"\0", 1)[0].decode("utf-8", "replace")
