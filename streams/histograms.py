"""How the stages of reads and writes are spread: sparse counts of (relation, distribution, bucket).

Pure. A stage's value is a sum of figures less others. Where a part is greater than its whole the
value is no time at all: it is in no bucket, but counted, and it is never made to fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.catalogue import DISTRIBUTIONS
from schemas.columns import UNMEASURED_U32
from schemas.events import READ_FIGURES, WRITE_FIGURES
from schemas.histograms import bucket_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from streams.figures import Measured

__all__ = ["CELLS", "EXCEEDS", "WIDTH", "RunningTally", "Tally", "spread", "summed"]

_LARGEST = max(len(found.plus) for found in DISTRIBUTIONS) * int(UNMEASURED_U32)

EXCEEDS: Final = int(bucket_of(np.array([_LARGEST]))[0]) + 1
"""Stands for a bucket: a part was greater than its whole."""
WIDTH: Final = EXCEEDS + 1
"""Cells of a distribution: its buckets and `EXCEEDS`."""
CELLS: Final = WIDTH * len(DISTRIBUTIONS)
"""Cells of a relation: one for each distribution and bucket, in that order."""

_DENSE = 8  # places per key up to which counting all places is cheaper than sorting keys
_LEAST_PENDING = 1 << 16
_DIGIT_BITS = 16


@dataclass(frozen=True, slots=True)
class _Stage:
    # A distribution: its place among all, and the places of its figures.
    distribution: int
    plus: tuple[int, ...]
    minus: tuple[int, ...]


def _stages(direction: str, figures: Sequence[str]) -> tuple[_Stage, ...]:
    return tuple(
        _Stage(
            place,
            tuple(figures.index(name) for name in found.plus),
            tuple(figures.index(name) for name in found.minus),
        )
        for place, found in enumerate(DISTRIBUTIONS)
        if found.direction == direction
    )


_READ: Final = _stages("read", READ_FIGURES)
_WRITE: Final = _stages("write", WRITE_FIGURES)


@dataclass(slots=True)
class Tally:
    """Counts of cells, columns of one length. A pair may come more than once, in any order.

    Attributes:
        relation: Whose it is.
        cell: Of `CELLS`.
        count: How many values.
    """

    relation: NDArray[np.int64]
    cell: NDArray[np.int64]
    count: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[Tally]) -> Tally:
        """Return one with the counts of all."""
        nothing = np.empty(0, np.int64)
        return cls(
            np.concatenate([nothing, *(part.relation for part in parts)]),
            np.concatenate([nothing, *(part.cell for part in parts)]),
            np.concatenate([nothing, *(part.count for part in parts)]),
        )

    def take(self, chosen: NDArray[np.bool_]) -> Tally:
        """Return some of the counts."""
        return Tally(self.relation[chosen], self.cell[chosen], self.count[chosen])


class RunningTally:
    """Counts that grow by small parts, kept sorted but for what came last."""

    def __init__(self) -> None:
        self._keys = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._waiting = 0

    def add(self, part: Tally, places: NDArray[np.intp]) -> None:
        """Add counts.

        Args:
            part: The counts.
            places: What its relations are called here.
        """
        self._pending.append((places[part.relation] * CELLS + part.cell, part.count))
        self._waiting += len(part.count)
        # No small part moves all that is there.
        if self._waiting > max(_LEAST_PENDING, len(self._keys) // 2):
            self._merge()

    def total(self) -> Tally:
        """Return all counts, ascending by relation and cell, no pair twice."""
        self._merge()
        relation, cell = np.divmod(self._keys, CELLS)
        return Tally(relation, cell, self._counts)

    def _merge(self) -> None:
        if not self._waiting:
            return
        keys, counts = summed(
            np.concatenate([part[0] for part in self._pending]),
            np.concatenate([part[1] for part in self._pending]),
        )
        self._pending, self._waiting = [], 0
        at = np.searchsorted(self._keys, keys)
        known = at < len(self._keys)
        known[known] = self._keys[at[known]] == keys[known]
        self._counts[at[known]] += counts[known]
        if not known.all():
            self._keys = np.insert(self._keys, at[~known], keys[~known])
            self._counts = np.insert(self._counts, at[~known], counts[~known])


def spread(found: Measured, *, writes: bool, group: NDArray[np.intp], size: int) -> Tally | None:
    """Count the stage values of some rows.

    Args:
        found: The figures of the rows, all of them reads or all of them writes.
        writes: Which.
        group: The relation of each row.
        size: Number of relations.
    """
    stages = [
        stage
        for stage in (_WRITE if writes else _READ)
        if all(place in found.columns for place in (*stage.plus, *stage.minus))
    ]
    if not stages or not len(group):
        return None
    values, unmeasured = _values(found, stages, len(group))
    exceeding = values < 0
    some_exceed = bool(exceeding.any())
    if some_exceed:
        values[exceeding] = 0
    buckets = bucket_of(values)
    bits = (int(buckets.max()) + 1).bit_length()
    beyond = (1 << bits) - 1  # no bucket that occurs
    if some_exceed:
        buckets[exceeding] = beyond
    lines = np.arange(len(stages), dtype=np.int64)[:, None] * size
    keys = ((lines + group) << bits) + buckets
    keys = keys.ravel() if unmeasured is None else keys[~unmeasured]
    keys, counts = _counted(keys, len(stages) * size << bits)
    # Back to relations and cells. The keys come stage by stage; to divide would take longer.
    place, bucket = keys >> bits, keys & beyond
    ends = np.searchsorted(place, np.append(lines[1:], len(stages) * size))
    repeats = np.diff(ends, prepend=0)
    if some_exceed:
        bucket[bucket == beyond] = EXCEEDS
    first = np.array([stage.distribution * WIDTH for stage in stages], np.int64)
    return Tally(place - np.repeat(lines, repeats), bucket + np.repeat(first, repeats), counts)


def _counted(keys: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Keys below `size`, and how often each occurs; as they are when few of them can be equal.
    if size > _DENSE * len(keys):
        return keys, np.ones(len(keys), np.int64)
    counts = np.bincount(keys, minlength=size)
    distinct = np.flatnonzero(counts)
    return distinct, counts[distinct]


def summed(
    keys: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct keys, ascending, and for each the sum of its counts; there is one."""
    order = _order(keys)
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(counts[order], starts)


def _order(keys: NDArray[np.int64]) -> NDArray[np.intp]:
    # Digit by digit: numpy sorts 16 bits by their radix, several times faster than wider numbers.
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    for shift in range(_DIGIT_BITS, int(keys.max()).bit_length(), _DIGIT_BITS):
        digits = (keys >> shift).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order


def _values(
    found: Measured, stages: Sequence[_Stage], rows: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
    # The value of each stage and row, and which of them were not measured.
    values = np.zeros((len(stages), rows))
    unmeasured = np.zeros((len(stages), rows), bool) if found.gaps else None
    for line, stage in enumerate(stages):
        for place in stage.plus:
            values[line] += found.columns[place]
        for place in stage.minus:
            values[line] -= found.columns[place]
        if unmeasured is not None:
            for place in (*stage.plus, *stage.minus):
                if place in found.gaps:
                    unmeasured[line] |= found.gaps[place]
            values[line] *= ~unmeasured[line]
    return values, unmeasured
