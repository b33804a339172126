"""Probes at the functions of TLS libraries: file by file, for every process that uses a file.

A file is looked at once, whoever has it mapped: at the start in every process, later when a
process is the first to map it (the kernel's programs tell: ``bpf/programs/processes.h``) or to
execute it. Its probes belong to the inode, so they hold for all processes that there are and will
be. They go when nobody has used the file for a while: not at once, as short-lived programs would
then be missed each time anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from collector.tls.elf import Elf, Malformed, Wrong
from collector.tls.libraries import JAVA, find_libraries, named_library
from collector.tls.mappings import Unseen, all_processes, mapped_code, open_mapped
from collector.tls.rust import RUSTLS, mentions_rustls
from schemas.errors import BpfError
from schemas.tls import Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from collector.bpf_object import BpfObject
    from collector.tls.attaching import Attacher
    from collector.tls.elf import Read
    from collector.tls.libraries import Found
    from collector.tls.mappings import Mapping

__all__ = ["KNOWN_FILES", "LINGER_S", "File", "Probes", "Reason"]

KNOWN_FILES: Final = "known_files"
"""The kernel's map of the files that it has told of."""
LINGER_S: Final = 600.0
"""How long a file keeps its probes that nobody uses."""
_LOG: Final = logging.getLogger("podwire.collector")
_MAX_FILES: Final = 65_536

Reason = Literal[
    Malformed,
    Unseen,
    "not_a_file",
    "no_functions",
    "java",
    "rustls",
    "too_many",
    "refused",
    "unexpected",
]
"""Why a file has no probes: see `Malformed` and `Unseen`; it is a device or the like; by its name
it is a TLS library, but its functions have no names or others, or it is Java; it has rustls, but
not all the names that are needed; no room for so many probes beside those in use; the kernel
refused a probe; an error of ours, or of no memory."""

_NO_CODE: Final = ("not_elf", "not_a_file")
"""What is true of such a file says nothing of a process's TLS."""
_FOREMOST: Final = ("refused", "too_many", "no_functions", "java", "rustls")
"""Of a process that is read as well: what it says on another connection is not."""


@dataclass(slots=True)
class File:
    """A file that was looked at.

    Attributes:
        path: Where it was found, as its process sees it.
        library: Names of the families of what it has, empty if it has no TLS library.
        functions: How many of their functions have probes.
        reason: Why it has none, if something was wrong.
        changed_ns: Its change time when it was looked at.
        links: For `Attacher.release`.
        probes: How many it has, of which a link may be of many.
        attached_in: Number of the look that gave it probes; 0 if it has none.
        mentions_rustls: Whether it has rustls without names; None: nobody has asked.
        keys: Of the kernel, under which it may be known.
        last_used_s: When a process was last seen to use it.
    """

    path: str
    library: str = ""
    functions: int = 0
    reason: Reason | None = None
    changed_ns: int = 0
    links: list[int] = field(default_factory=list)
    probes: int = 0
    attached_in: int = 0
    mentions_rustls: bool | None = None
    keys: set[int] = field(default_factory=set)
    last_used_s: float = 0.0


class Probes:
    """All probes of one object with the programs of ``bpf/programs/tls.h``, loaded.

    Args:
        programs: That object.
        attacher: Attaches its programs.
        proc: Where the node's ``/proc`` is.
        room: For how many probes, all files together; see `Attacher.room`.
        now_s: The clock, seconds.
    """

    def __init__(
        self,
        programs: BpfObject,
        attacher: Attacher,
        proc: Path,
        room: int,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._programs = programs
        self._attacher = attacher
        self._proc = proc
        self._now_s = now_s
        self._files: dict[tuple[int, int], File] = {}
        self.failed: Counter[str] = Counter()
        """Looks that found no answer, by `Reason`."""
        self._room = room
        self._looked_s = 0.0
        self._looks = 0
        self.late = 0
        """Processes that were seen to have a library before its probes: what their first
        connections say may be missing. Those that had gone by then are among the failed."""

    @property
    def files(self) -> list[File]:
        """Files of TLS libraries, and those that something was wrong with."""
        return [file for file in self._files.values() if file.library or file.reason]

    def look_everywhere(self, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Look at the files of every process, and release those that nobody uses any more.

        Args:
            is_enough: Asked before each file; then the others are left for the next time.
        """
        used: set[tuple[int, int]] = set()
        self._looks += 1
        for pid in all_processes(self._proc):
            mappings = mapped_code(self._proc, pid)
            if mappings == "forbidden":
                self.failed[mappings] += 1
            if isinstance(mappings, str):
                continue
            for mapping in mappings:
                identity = mapping.device, mapping.inode
                if is_enough():
                    self._count_late(mappings)
                    return
                if identity not in used:
                    used.add(identity)
                    self._look_at(pid, mapping)
            self._count_late(mappings)
        now_s = self._looked_s = self._now_s()
        for identity in used & self._files.keys():
            self._files[identity].last_used_s = now_s
        for identity, file in list(self._files.items()):
            if now_s - file.last_used_s > (LINGER_S if file.links else 0):
                self._release(self._files.pop(identity))

    def look_at(
        self,
        pid: int,
        keys: Collection[int] = (),
        is_enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Look at the files of a process.

        Args:
            pid: Of the process.
            keys: Of files that the kernel told of with it; told again if they cannot be seen.
            is_enough: As of `look_everywhere`.
        """
        mappings = mapped_code(self._proc, pid)
        if isinstance(mappings, str):
            self.failed[mappings] += 1
            self._tell_again(keys)
            return
        self._looks += 1
        for mapping in mappings:
            if is_enough():
                break
            file = self._look_at(pid, mapping, is_again=True)
            if file is None:
                self._tell_again(keys)
            elif file.links:
                file.keys |= set(keys)
        self._count_late(mappings)

    def unreadable(self, pid: int) -> Unreadable:
        """Find out why what a process says inside TLS is not seen in clear, from its files."""
        mappings = mapped_code(self._proc, pid)
        if isinstance(mappings, str):
            return Unreadable[mappings.upper()]
        files = [self._look_at(pid, mapping) for mapping in mappings]
        for mapping, file in zip(mappings, files, strict=True):
            if file is not None and not file.library and file.reason is None:
                self._ask_for_rustls(pid, mapping, file)
        reasons = {"gone" if file is None else file.reason for file in files}
        for reason in _FOREMOST:
            if reason in reasons:
                return Unreadable[reason.upper()]
        if any(file is not None and file.links for file in files):
            return Unreadable.NOTHING_SEEN
        others = sorted(reason for reason in reasons if reason and reason not in _NO_CODE)
        if others:
            return Unreadable[others[0].upper()]
        has_rustls = any(file is not None and file.mentions_rustls for file in files)
        return Unreadable.RUSTLS if has_rustls else Unreadable.NO_LIBRARY

    def close(self) -> None:
        """Detach everything."""
        for file in self._files.values():
            self._release(file)
        self._files.clear()

    def _count_late(self, mappings: Sequence[Mapping]) -> None:
        files = (self._files.get((mapping.device, mapping.inode)) for mapping in mappings)
        self.late += any(file is not None and file.attached_in == self._looks for file in files)

    def _tell_again(self, keys: Collection[int]) -> None:
        for key in keys:
            self._programs.delete_from_map(KNOWN_FILES, struct.pack("=Q", key))

    def _release(self, file: File) -> None:
        self._attacher.release(file.links)
        self._room += file.probes
        file.probes = 0
        file.links.clear()
        self._tell_again(file.keys)

    def _look_at(self, pid: int, mapping: Mapping, is_again: bool = False) -> File | None:
        # None if it could not be opened. One that was looked at may be another file since, with the
        # inode of one that is gone; not while it has probes, which hold the inode.
        identity = mapping.device, mapping.inode
        file = self._files.get(identity)
        if file is not None and (file.links or not is_again):
            file.last_used_s = self._now_s()
            return file
        descriptor = open_mapped(self._proc, pid, mapping)
        if descriptor is None:
            self.failed["gone"] += 1
            return None
        try:
            changed_ns = os.fstat(descriptor).st_ctime_ns
            if file is None or file.changed_ns != changed_ns:
                file = self._examine(descriptor, os.fsdecode(mapping.path))
                file.changed_ns = changed_ns
                if file.reason:
                    self.failed[file.reason] += 1
        finally:
            os.close(descriptor)
        file.last_used_s = self._now_s()
        if file.reason == "too_many":
            return file  # and looked at again with the next look everywhere
        if len(self._files) < _MAX_FILES:
            self._files[identity] = file
        else:
            self._release(file)
        return file

    def _ask_for_rustls(self, pid: int, mapping: Mapping, file: File) -> None:
        # Once, and of those files only of which it is of interest: they are read for it.
        if file.mentions_rustls is not None:
            return
        descriptor = open_mapped(self._proc, pid, mapping)
        if descriptor is None:
            return
        try:
            file.mentions_rustls = mentions_rustls(Elf(_reader(descriptor)))
        except Wrong:
            file.mentions_rustls = False
        finally:
            os.close(descriptor)

    def _examine(self, descriptor: int, path: str) -> File:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return File(path, reason="not_a_file")
        try:
            found = find_libraries(_reader(descriptor))
        except Wrong as error:
            return File(path, reason=error.reason)
        except Exception:  # this file has no probes, but all others have theirs
            if not self.failed["unexpected"]:
                _LOG.exception("%s could not be looked at", path)
            return File(path, reason="unexpected")
        usable = [each for each in found if each.probes]
        if usable:
            return self._attach(descriptor, path, usable)
        if found:
            return File(path, RUSTLS, reason="rustls")
        name = named_library(path)
        if not name:
            return File(path)
        return File(path, name, reason="java" if name == JAVA else "no_functions")

    def _attach(self, descriptor: int, path: str, found: list[Found]) -> File:
        file = File(path, " and ".join(each.name for each in found))
        probes = [probe for each in found for probe in each.probes]
        if not self._make_room(len(probes)):
            file.reason = "too_many"
            return file
        try:
            # This very file, whatever becomes of its name.
            file.links = self._attacher.attach(f"/proc/self/fd/{descriptor}", probes)
            file.functions = sum(each.functions for each in found)
            file.attached_in = self._looks
            file.probes = len(probes)
            self._room -= file.probes
        except BpfError:
            file.reason = "refused"
        return file

    def _make_room(self, wanted: int) -> bool:
        # Anybody may map any number of copies: those go first that nobody was seen to use, unless
        # not even all of these would make room.
        if wanted <= self._room:
            return True
        unused = sorted(
            (file.last_used_s, identity)
            for identity, file in self._files.items()
            if file.links and file.last_used_s < self._looked_s
        )
        if wanted > self._room + sum(self._files[identity].probes for _, identity in unused):
            return False
        for _, identity in unused:
            if wanted <= self._room:
                break
            self._release(self._files.pop(identity))
        return wanted <= self._room


def _reader(descriptor: int) -> Read:
    def read(place: int, size: int) -> bytes:
        data = bytearray()
        # A file system of another machine may give less at a time than it was asked for.
        with contextlib.suppress(OSError):  # of one that is gone: as if the file were shorter
            while piece := os.pread(descriptor, size - len(data), place + len(data)):
                data += piece
        return bytes(data)

    return read
