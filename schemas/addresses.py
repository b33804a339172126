"""Addresses as the columns of a batch hold them: 16 bytes a row, looked at as two numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.columns import U8, U64

__all__ = ["halves", "is_loopback"]


def halves(address: U8) -> U64:
    """Return addresses, shape (n, 16), as little-endian halves, shape (n, 2)."""
    return np.ascontiguousarray(address).view("<u8")


def is_loopback(address: U64) -> NDArray[np.bool_]:
    """Return which addresses, shape (n, 2) as little-endian halves, mean the host itself."""
    upper, lower = address[:, 0], address[:, 1]
    fourth = (lower & np.uint64(0xFF_FFFF_FFFF)) == np.uint64(0x7F_FFFF_0000)  # ::ffff:127.
    found: NDArray[np.bool_] = (upper == 0) & (fourth | (lower == np.uint64(1 << 56)))
    return found
