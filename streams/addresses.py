"""Addresses in the form of the columns: 16 bytes, IPv4 as ``::ffff:a.b.c.d``."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

__all__ = ["format_address", "is_loopback", "pack_address", "pack_network"]

_V4_PREFIX = bytes(10) + b"\xff\xff"


def pack_address(text: str) -> bytes | None:
    """Return the 16 bytes of an address, or None for what is no address (``None``, empty)."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address.packed if address.version == 6 else _V4_PREFIX + address.packed


def pack_network(text: str) -> tuple[int, int] | None:
    """Return (network, mask) of a CIDR as 128-bit numbers, or None for what is no CIDR."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    packed = network.network_address.packed
    if network.version == 4:
        packed = _V4_PREFIX + packed
    length = network.prefixlen + (96 if network.version == 4 else 0)
    mask = ((1 << length) - 1) << (128 - length)
    return int.from_bytes(packed, "big"), mask


@lru_cache(maxsize=65536)
def format_address(packed: bytes) -> str:
    """Return the usual text of 16 bytes: dotted IPv4, else compressed IPv6."""
    if packed.startswith(_V4_PREFIX):
        return str(ipaddress.IPv4Address(packed[12:]))
    return str(ipaddress.IPv6Address(packed))


def is_loopback(packed: bytes) -> bool:
    """Whether the address is in 127.0.0.0/8 or is ``::1``."""
    if packed.startswith(_V4_PREFIX):
        return packed[12] == 127
    return packed == bytes(15) + b"\x01"
