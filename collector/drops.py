"""Why the kernel drops packets: reasons by number, which differ from version to version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from collector.btf import VMLINUX, find_enum
from schemas.errors import DecodeError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["drop_reasons"]

_PREFIX: Final = "SKB_DROP_REASON_"


def drop_reasons(path: Path = VMLINUX) -> dict[int, str]:
    """Return the names that a kernel gives to its reasons, such as ``NETFILTER_DROP``.

    Empty where there are none, as before v5.17, or where they cannot be read: then a reason is
    known by its number.

    Source: Linux include/net/dropreason-core.h, ``enum skb_drop_reason``.
    """
    try:
        found = find_enum(path.read_bytes(), "skb_drop_reason")
    except (OSError, DecodeError):
        return {}
    return {number: name.removeprefix(_PREFIX) for name, number in found.items()}
