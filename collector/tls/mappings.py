"""Files of which a process has mapped code, and the way to them from outside its namespaces."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Mapping", "Unseen", "all_processes", "mapped_code", "open_mapped"]

Unseen = Literal["gone", "forbidden"]
"""Why nothing is known of a process or file: it is not there any more, or not ours to see."""

_DELETED: Final = b" (deleted)"
_CODE: Final = re.compile(
    rb"^([0-9a-f]+-[0-9a-f]+) ..x. [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+) +(/[^\n]+)$", re.M
)


class Mapping(NamedTuple):
    """A file with code in the memory of a process.

    Attributes:
        device: Of the file, as ``st_dev``.
        inode: Of the file.
        addresses: Where it is, as in ``/proc/<pid>/map_files``.
        path: Of the file in the mount namespace of the process.
        is_deleted: No file of that path is this one any more.
    """

    device: int
    inode: int
    addresses: str
    path: bytes
    is_deleted: bool


def all_processes(proc: Path) -> list[int]:
    """Return the ids of all processes."""
    return [int(name) for name in os.listdir(proc) if name.isdecimal()]


def mapped_code(proc: Path, pid: int) -> list[Mapping] | Unseen:
    """Return the files with code of a process, each once; seeing them takes ``CAP_SYS_PTRACE``."""
    try:
        text = (proc / str(pid) / "maps").read_bytes()
    except PermissionError:
        return "forbidden"
    except OSError:  # it has ended
        return "gone"
    found: dict[tuple[int, int], Mapping] = {}
    for match in _CODE.finditer(text):
        addresses, major, minor, inode, path = match.groups()
        identity = os.makedev(int(major, 16), int(minor, 16)), int(inode)
        is_deleted = path.endswith(_DELETED)
        path = path.removesuffix(_DELETED)
        found.setdefault(identity, Mapping(*identity, addresses.decode(), path, is_deleted))
    return list(found.values())


def open_mapped(proc: Path, pid: int, mapping: Mapping) -> int | None:
    """Open a mapped file for reading; None if there is no way to it.

    Through its mapping where that is permitted (``CAP_CHECKPOINT_RESTORE``), which is this very
    file even if it was deleted; else by its path.
    """
    base = os.fsencode(proc / str(pid))
    ways = [base + b"/map_files/" + mapping.addresses.encode()]
    if not mapping.is_deleted:
        ways.append(base + b"/root" + mapping.path)
    for way in ways:
        try:
            return os.open(way, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:  # not this way
            continue
    return None
