"""The network interfaces of this machine, for those who want to know them by number."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from schemas.events import NetInterface

__all__ = ["net_interfaces"]

_MOST: Final = 256
"""A node has an interface for every pod."""


def net_interfaces(folder: Path = Path("/sys/class/net")) -> tuple[NetInterface, ...]:
    """Return the interfaces of the collector's own network namespace, in order of their numbers.

    That is the node's where the collector runs in it. Interfaces that go while they are read are
    left out, and so are those after the first `_MOST`.
    Source: Documentation/ABI/testing/sysfs-class-net of the kernel (``ifindex``, ``mtu``).

    Args:
        folder: Where the kernel lists them.
    """
    found = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        try:
            index, mtu = (int((entry / name).read_text()) for name in ("ifindex", "mtu"))
        except (OSError, ValueError):
            continue  # gone, or a file such as bonding_masters
        found.append(NetInterface(index, entry.name, mtu))
    return tuple(sorted(found, key=lambda each: each.index)[:_MOST])
