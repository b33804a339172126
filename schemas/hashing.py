"""Distinct combinations of columns by one mixed 64-bit number, several times faster than by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["compact", "distinct", "mix"]

_FACTOR = np.uint64(0x9E37_79B9_7F4A_7C15)
_SHIFT = np.uint64(29)
_DENSE: Final = 8
_SMALL: Final = 1 << 16


def mix(*columns: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the columns, each of shape (n,), into one number per row."""
    mixed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        mixed = (mixed ^ column) * _FACTOR
        mixed ^= mixed >> _SHIFT
    return mixed


def distinct(*columns: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first row of each distinct combination, and each row's combination.

    Exact: a collision of mixed numbers is noticed, and then the rows themselves are sorted.
    """
    _, first, index = np.unique(mix(*columns), return_index=True, return_inverse=True)
    if all((column[first][index] == column).all() for column in columns):
        return first, index
    stacked = np.stack(columns, axis=1)
    _, first, index = np.unique(stacked, axis=0, return_index=True, return_inverse=True)
    return first, index.reshape(-1)


def compact(values: NDArray[Any], size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the distinct values in order, and the place of each value among them.

    Args:
        values: Whole numbers below `size`, none negative.
        size: With few more than there are values nothing has to be sorted.
    """
    if size > _DENSE * len(values) + _SMALL:
        found, index = np.unique(values, return_inverse=True)
        return found.astype(np.intp), index
    seen = np.zeros(size, bool)
    seen[values] = True
    found = np.flatnonzero(seen)
    places = np.empty(size, np.intp)
    places[found] = np.arange(len(found))
    return found, places[values]
