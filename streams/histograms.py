"""How the stages of reads and writes are spread: how often each value of each stage occurred.

Pure. A stage's value is a sum of figures less others. Where a part is greater than its whole the
value is no time at all: it is in no bucket, but counted, and it is never made to fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from schemas.catalogue import DISTRIBUTIONS
from schemas.columns import UNMEASURED_U32
from schemas.events import READ_FIGURES, WRITE_FIGURES
from schemas.histograms import bucket_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from streams.figures import Measured

__all__ = ["CELLS", "WIDTH", "SpreadCounts", "Values", "page_width", "spread"]

_PAGE_BITS: Final = 4
_PAGE: Final = 1 << _PAGE_BITS
_LARGEST = max(len(found.plus) for found in DISTRIBUTIONS) * int(UNMEASURED_U32)


def page_width(cells: int) -> int:
    """Return the number of cells in the whole pages that hold so many."""
    return -(-cells // _PAGE) * _PAGE


WIDTH: Final = page_width(int(bucket_of(np.array([_LARGEST]))[0]) + 1)
"""Cells of a distribution: one for each bucket, in whole pages."""
CELLS: Final = WIDTH * len(DISTRIBUTIONS)
"""Cells of a relation: one for each distribution and bucket, in that order."""


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
class Values:
    """Values of stages, each with the relation it belongs to. Columns.

    Attributes:
        relation: Whose a value is.
        cell: Its distribution and bucket: see `CELLS`.
        exceeding_relation: Whose a value is that has no bucket: a part exceeded its whole.
        exceeding: Its distribution.
    """

    relation: NDArray[np.intp]
    cell: NDArray[np.intp]
    exceeding_relation: NDArray[np.intp]
    exceeding: NDArray[np.intp]

    def within(self, places: NDArray[np.intp]) -> Values:
        """Return the values of some relations.

        Args:
            places: By relation, what it is called from now on; below 0 if its values are left out.
        """
        relation, exceeding_relation = places[self.relation], places[self.exceeding_relation]
        kept, exceeding_kept = relation >= 0, exceeding_relation >= 0
        return Values(
            relation[kept],
            self.cell[kept],
            exceeding_relation[exceeding_kept],
            self.exceeding[exceeding_kept],
        )


class SpreadCounts:
    """Running counts of cells, for any number of owners.

    Values lie close together, so the cells of an owner come in pages, of which only those are kept
    that something was counted in.

    Args:
        cells: Of each owner; whole pages, see `page_width`.
    """

    def __init__(self, cells: int) -> None:
        self._cells = cells
        self._slots = np.zeros(0, np.int32)  # by owner and page; 0: no such page
        self._pages = np.zeros(1, np.intp)  # by slot, which of all pages it holds
        self._used = 1
        self._counts = np.zeros(_PAGE, np.uint32)  # a topic does not hold 2^32 events of a minute

    def add(self, owner: NDArray[np.intp], cell: NDArray[Any], owners: int) -> None:
        """Count values.

        Args:
            owner: The owner of each value; the array is used up.
            cell: Its cell.
            owners: Number of owners so far.
        """
        if not len(cell):
            return
        keys = owner
        keys *= self._cells
        keys += cell
        pages = keys >> _PAGE_BITS
        self._slots = _grown(self._slots, owners * (self._cells // _PAGE))
        slots = self._slots[pages]
        if not slots.all():
            self._new_pages(np.unique(pages[slots == 0]))
            slots = self._slots[pages]
        keys &= _PAGE - 1
        keys += np.left_shift(slots, _PAGE_BITS, dtype=np.intp)
        np.add.at(self._counts, keys, np.uint32(1))

    def counted(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint64]]:
        """Return owner, cell and count of all cells that something was counted in."""
        found = np.flatnonzero(self._counts)
        keys = self._pages[found >> _PAGE_BITS] * _PAGE + (found & (_PAGE - 1))
        owner, cell = np.divmod(keys, self._cells)
        return owner, cell, self._counts[found].astype(np.uint64)

    def _new_pages(self, pages: NDArray[np.intp]) -> None:
        used = self._used + len(pages)
        self._pages = _grown(self._pages, used)
        self._counts = _grown(self._counts, used * _PAGE)
        self._pages[self._used : used] = pages
        self._slots[pages] = np.arange(self._used, used)
        self._used = used


def spread(found: Measured, *, writes: bool, group: NDArray[np.intp]) -> Values | None:
    """Return the stage values of some rows.

    Args:
        found: The figures of the rows, all of them reads or all of them writes.
        writes: Which.
        group: The relation of each row.
    """
    stages = [
        stage
        for stage in (_WRITE if writes else _READ)
        if all(place in found.columns for place in (*stage.plus, *stage.minus))
    ]
    if not stages:
        return None
    values, unmeasured = _values(found, stages, len(group))
    relation = np.broadcast_to(group, values.shape)
    distribution = np.array([[stage.distribution] for stage in stages], np.intp)
    exceeding = values < 0
    if not exceeding.any():
        none = np.empty(0, np.intp)
        cell = bucket_of(values) + distribution * WIDTH
        if unmeasured is None:
            return Values(relation.ravel(), cell.ravel(), none, none)
        return Values(relation[~unmeasured], cell[~unmeasured], none, none)
    values[exceeding] = 0
    cell = bucket_of(values) + distribution * WIDTH
    counted = ~exceeding if unmeasured is None else ~(exceeding | unmeasured)
    return Values(
        relation[counted],
        cell[counted],
        relation[exceeding],
        np.broadcast_to(distribution, values.shape)[exceeding],
    )


def _values(
    found: Measured, stages: Sequence[_Stage], rows: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
    # The value of each stage and row, and which of them were not measured: they are 0.
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


def _grown(column: NDArray[Any], size: int) -> NDArray[Any]:
    if size <= len(column):
        return column
    grown = np.zeros(max(size, 2 * len(column)), column.dtype)
    grown[: len(column)] = column
    return grown
