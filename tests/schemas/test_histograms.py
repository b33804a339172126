from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.histograms import bucket_bounds, bucket_of, buckets

U64_MAX = 2**64 - 1
POWERS = [2**exponent for exponent in range(64)]
BITS = (2, 4)
"""Of the stages and of the latency of calls."""


def bucket(value: int, bits: int) -> int:
    """The definition, with Python's own numbers."""
    if not value:
        return 0
    exponent = value.bit_length() - 1
    return 1 + (exponent << bits) + ((value << bits >> exponent) & ((1 << bits) - 1))


def test_two_bits_unless_said_otherwise() -> None:
    assert buckets() == buckets(2) == 257
    assert bucket_of(np.array([1000]))[0] == bucket(1000, 2)
    assert bucket_bounds(40) == bucket_bounds(40, 2)


@pytest.mark.parametrize("bits", BITS)
@given(values=st.lists(st.integers(0, U64_MAX) | st.integers(0, 2**20)))
def test_buckets_are_those_of_the_definition(bits: int, values: list[int]) -> None:
    found = bucket_of(np.array(values, np.uint64), bits)
    assert found.dtype == np.uint16
    assert found.tolist() == [bucket(value, bits) for value in values]


@pytest.mark.parametrize("bits", BITS)
def test_values_around_each_bound_fall_on_their_side(bits: int) -> None:
    """Also where a double has no more room for the last bits."""
    parts = 1 << bits
    bounds = [(power * part) // parts for power in POWERS for part in range(parts, 2 * parts)]
    values = sorted({v + d for v in bounds for d in (-1, 0, 1) if 0 <= v + d <= U64_MAX})
    values += [U64_MAX - 1, U64_MAX]
    assert bucket_of(np.array(values, np.uint64), bits).tolist() == [
        bucket(v, bits) for v in values
    ]


@pytest.mark.parametrize("bits", BITS)
def test_the_last_value_has_the_last_bucket(bits: int) -> None:
    values = np.array([0, 1, U64_MAX], np.uint64)
    assert bucket_of(values, bits).tolist() == [0, 1, buckets(bits) - 1]


@pytest.mark.parametrize("dtype", ["<u4", "<i8", "<u8"])
def test_shape_and_type_of_the_values_are_free(dtype: str) -> None:
    values = np.array([[0, 4], [5, 1000]], dtype)
    assert bucket_of(values).tolist() == [[0, 9], [10, bucket(1000, 2)]]
    assert bucket_of(values[:0]).shape == (0, 2)


@pytest.mark.parametrize("bits", BITS)
@given(value=st.integers(0, U64_MAX))
def test_a_value_lies_within_the_bounds_of_its_bucket(bits: int, value: int) -> None:
    low, high = bucket_bounds(int(bucket_of(np.array([value], np.uint64), bits)[0]), bits)
    assert low <= value < high


@pytest.mark.parametrize("bits", BITS)
def test_bounds_follow_each_other_and_are_narrow(bits: int) -> None:
    bounds = [bucket_bounds(number, bits) for number in range(buckets(bits))]
    assert bounds[:2] == [(0, 1), (1, 2)] if bits == 2 else bounds[0] == (0, 1)
    assert bounds[-1][1] == 2**64
    for (_, high), (low, _) in itertools.pairwise(bounds):
        assert high == low
    parts = 1 << bits
    assert all(parts * (high - low) <= low for low, high in bounds if low >= parts)


def test_the_middle_of_a_latency_bucket_is_within_four_percent_of_all_in_it() -> None:
    """What SQL takes for a percentile; the promise is five."""
    for number in range(1 + (4 << 4), buckets(4)):
        low, high = bucket_bounds(number, 4)
        middle = (low + high - 1) / 2
        assert max(middle - low, high - 1 - middle) <= 0.04 * low


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("beyond", [False, True])
def test_there_are_no_other_buckets(bits: int, beyond: bool) -> None:
    size = buckets(bits)
    number = size if beyond else -1
    with pytest.raises(ValueError, match=f"bucket {number} of {size}"):
        bucket_bounds(number, bits)
