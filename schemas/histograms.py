"""Buckets of the histograms: ``2 ** bits`` to each power of two.

Bucket 0 holds the value 0. Bucket ``1 + 2 ** bits * e + q`` holds the values whose highest bit is
``e`` and whose next ``bits`` bits are ``q``; of small values some buckets hold no whole number.
None is wider than its start divided by ``2 ** bits``: a quarter with 2 bits, a sixteenth with 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["bucket_bounds", "bucket_of", "buckets"]

_EXACT_BITS = 53  # of a double
_BIAS = 1023


def buckets(bits: int = 2) -> int:
    """Return how many buckets there are: enough for every value of 64 bits."""
    return 1 + (64 << bits)


def bucket_of(values: NDArray[Any], bits: int = 2) -> NDArray[np.uint16]:
    """Return the bucket of each value, same shape.

    Args:
        values: Whole numbers, none negative.
        bits: How fine the buckets are.
    """
    # A double is its exponent and then the bits after the leading one: with some of them that is
    # the bucket. A value of more bits than a double has loses its last ones first, because rounding
    # could carry it into the next bucket.
    whole = np.asarray(values).astype(np.uint64)
    large = whole >> np.uint64(_EXACT_BITS) != 0
    if large.any():
        whole = np.where(large, whole & ~np.uint64((1 << 64 - _EXACT_BITS) - 1), whole)
    top = whole.astype(np.float64).view(np.uint64) >> np.uint64(_EXACT_BITS - 1 - bits)
    found = top.astype(np.int64) - ((_BIAS << bits) - 1)
    result: NDArray[np.uint16] = np.maximum(found, 0).astype(np.uint16)
    return result


def bucket_bounds(bucket: int, bits: int = 2) -> tuple[int, int]:
    """Return the lowest value of a bucket and the lowest above it: low <= value < high.

    Raises:
        ValueError: If there is no such bucket.
    """
    if not 0 <= bucket < buckets(bits):
        raise ValueError(f"bucket {bucket} of {buckets(bits)}")
    return _lowest(bucket, bits), _lowest(bucket + 1, bits)


def _lowest(bucket: int, bits: int) -> int:
    if bucket == 0:
        return 0
    exponent, part = divmod(bucket - 1, 1 << bits)
    return -(-(((1 << bits) + part) << exponent) // (1 << bits))  # rounded up
