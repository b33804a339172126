"""Exact integer sums by group.

Pure. numpy's weighted bincount adds in float64, which is exact below 2**53 only, so larger values
go in two halves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.columns import U64

__all__ = ["exact_sums", "measured_sums"]

_EXACT: Final = 1 << 53
_LOW: Final = np.uint64(0xFFFF_FFFF)
_HALF: Final = np.uint64(32)


def exact_sums(group: NDArray[np.intp], values: NDArray[Any], size: int) -> U64:
    """Return the sum of the values of each group, modulo 2**64.

    Args:
        group: Of each value, below `size`.
        values: Whole numbers, none negative.
        size: Number of groups.
    """
    if not len(values):
        return np.zeros(size, np.uint64)
    if int(values.max()) * len(values) < _EXACT:
        return np.bincount(group, values, size).astype(np.uint64)
    wide = values.astype(np.uint64)
    low = np.bincount(group, wide & _LOW, size).astype(np.uint64)
    high = np.bincount(group, wide >> _HALF, size).astype(np.uint64)
    return low + (high << _HALF)


def measured_sums(
    group: NDArray[np.intp],
    values: NDArray[Any],
    size: int,
    counts: NDArray[np.intp] | None = None,
) -> tuple[U64, NDArray[np.intp]]:
    """Return the sum of the measured values of each group, and how many they are.

    Args:
        group: Of each value, below `size`.
        values: Whole numbers; the greatest of their type is no value.
        size: Number of groups.
        counts: How many values each group has, if that is known.
    """
    nothing = np.iinfo(values.dtype).max
    if len(values) and values.max() == nothing:
        measured = values != nothing
        group, values, counts = group[measured], values[measured], None
    if counts is None:
        counts = np.bincount(group, minlength=size)
    return exact_sums(group, values, size), counts
