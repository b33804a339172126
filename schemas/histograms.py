"""Buckets of the histograms: four to each power of two, none wider than a quarter of its start.

Bucket 0 holds the value 0. Bucket ``1 + 4 * e + q`` holds the values whose highest bit is ``e`` and
whose next two bits are ``q``. Below 4 some buckets hold no whole number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BUCKETS", "bucket_bounds", "bucket_of"]

BUCKETS = 257
"""Enough for every value of 64 bits."""

_EXACT_BITS = 53  # of a double
_BIAS = 1023


def bucket_of(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Return the bucket of each value, same shape.

    Args:
        values: Whole numbers, none negative.
    """
    # A double is its exponent and then the bits after the leading one: with two of them that is the
    # bucket. A value of more bits than a double has loses its last ones first, because rounding
    # could carry it into the next bucket.
    whole = np.asarray(values).astype(np.uint64)
    large = whole >> np.uint64(_EXACT_BITS) != 0
    if large.any():
        whole = np.where(large, whole & ~np.uint64((1 << 64 - _EXACT_BITS) - 1), whole)
    top = whole.astype(np.float64).view(np.uint64) >> np.uint64(_EXACT_BITS - 1 - 2)
    buckets = top.astype(np.int64) - (4 * _BIAS - 1)
    result: NDArray[np.uint16] = np.maximum(buckets, 0).astype(np.uint16)
    return result


def bucket_bounds(bucket: int) -> tuple[int, int]:
    """Return the lowest value of a bucket and the lowest above it: low <= value < high.

    Raises:
        ValueError: If there is no such bucket.
    """
    if not 0 <= bucket < BUCKETS:
        raise ValueError(f"bucket {bucket} of {BUCKETS}")
    return _lowest(bucket), _lowest(bucket + 1)


def _lowest(bucket: int) -> int:
    if bucket == 0:
        return 0
    exponent, quarter = divmod(bucket - 1, 4)
    return -(-((4 + quarter) << exponent) // 4)  # rounded up
