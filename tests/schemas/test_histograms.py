from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.histograms import BUCKETS, bucket_bounds, bucket_of

U64_MAX = 2**64 - 1
POWERS = [2**exponent for exponent in range(64)]


def bucket(value: int) -> int:
    """The definition, with Python's own numbers."""
    if not value:
        return 0
    exponent = value.bit_length() - 1
    return 1 + 4 * exponent + ((value << 2 >> exponent) & 3)


@given(st.lists(st.integers(0, U64_MAX) | st.integers(0, 2**20)))
def test_buckets_are_those_of_the_definition(values: list[int]) -> None:
    found = bucket_of(np.array(values, np.uint64))
    assert found.dtype == np.uint16
    assert found.tolist() == [bucket(value) for value in values]


def test_values_around_each_bound_fall_on_their_side() -> None:
    """Also where a double has no more room for the last bits."""
    bounds = [(power * quarters) // 4 for power in POWERS for quarters in (4, 5, 6, 7)]
    values = sorted({v + d for v in bounds for d in (-1, 0, 1) if 0 <= v + d <= U64_MAX})
    values += [U64_MAX - 1, U64_MAX]
    assert bucket_of(np.array(values, np.uint64)).tolist() == [bucket(v) for v in values]


def test_the_last_value_has_the_last_bucket() -> None:
    assert bucket_of(np.array([0, 1, U64_MAX], np.uint64)).tolist() == [0, 1, BUCKETS - 1]


@pytest.mark.parametrize("dtype", ["<u4", "<i8", "<u8"])
def test_shape_and_type_of_the_values_are_free(dtype: str) -> None:
    values = np.array([[0, 4], [5, 1000]], dtype)
    assert bucket_of(values).tolist() == [[0, 9], [10, bucket(1000)]]
    assert bucket_of(values[:0]).shape == (0, 2)


@given(st.integers(0, U64_MAX))
def test_a_value_lies_within_the_bounds_of_its_bucket(value: int) -> None:
    low, high = bucket_bounds(int(bucket_of(np.array([value], np.uint64))[0]))
    assert low <= value < high


def test_bounds_follow_each_other_and_are_narrow() -> None:
    bounds = [bucket_bounds(number) for number in range(BUCKETS)]
    assert bounds[:2] == [(0, 1), (1, 2)]
    assert bounds[-1][1] == 2**64
    for (_, high), (low, _) in itertools.pairwise(bounds):
        assert high == low
    assert all(4 * (high - low) <= low for low, high in bounds if low >= 4)


@pytest.mark.parametrize("number", [-1, BUCKETS])
def test_there_are_no_other_buckets(number: int) -> None:
    with pytest.raises(ValueError, match=f"bucket {number} of {BUCKETS}"):
        bucket_bounds(number)
