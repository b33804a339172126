"""Sums of the figures that reads and writes tell beside their bytes.

Pure. Columns that no row measured cost next to nothing: most nodes cannot measure them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.events import FIGURE_MAX, READ_FIGURES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.columns import U32, U64

__all__ = ["WAITED", "Measured", "add_sums", "is_unmeasured", "long_waits", "measured"]

WAITED: Final = READ_FIGURES.index("read_unattributed_duration")
"""Its place among the figures of a read."""
_CALL: Final = READ_FIGURES.index("read_call_duration")
_FOLD: Final = 32


@dataclass(slots=True)
class Measured:
    """The figures of some rows, by place, as far as any of the rows measured them.

    Attributes:
        columns: Values, exact: whole numbers of 32 bits. 0 where a row did not measure.
        gaps: For columns that some of the rows did not measure, which of them.
    """

    columns: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    gaps: dict[int, NDArray[np.bool_]] = field(default_factory=dict)


def is_unmeasured(figures: U32) -> bool:
    """Whether the column was left out of the message, seen without reading it."""
    return not figures.size or (not any(figures.strides) and figures[0, 0] == UNMEASURED_U32)


def measured(block: U32, width: int) -> Measured:
    """Return the measured columns among the first `width` of rows of ``Transfers.figures``."""
    found = Measured()
    low, high = _extremes(block)
    for place in np.flatnonzero(low[:width] < UNMEASURED_U32).tolist():
        column = block[:, place].astype(np.float64)
        if high[place] == UNMEASURED_U32:
            gap = found.gaps[place] = column == UNMEASURED_U32
            column *= ~gap
        found.columns[place] = column
    return found


def add_sums(
    found: Measured,
    group: NDArray[np.intp],
    sums: NDArray[np.uint64],
    counts: NDArray[np.uint64] | None,
) -> None:
    """Add up the figures of each group, and how many of its rows measured them.

    Args:
        found: The figures.
        group: Of each row.
        sums: Shape (places, groups), added to.
        counts: The same for the numbers of rows; None if they do not count.
    """
    size = sums.shape[1]
    # Doubles are exact up to 2^53: 2^21 rows of the greatest value, far more than a message holds.
    for place, column in found.columns.items():
        sums[place] += np.bincount(group, column, size).astype(np.uint64)
    if counts is None or not found.columns:
        return
    whole = np.bincount(group, minlength=size).astype(np.uint64)
    gap: NDArray[np.bool_] | None = None
    missing = whole
    for place in found.columns:
        if place not in found.gaps:
            counts[place] += whole
            continue
        # What is missing in one figure of a row is mostly missing in the next one too.
        if gap is None or not np.array_equal(gap, found.gaps[place]):
            gap = found.gaps[place]
            missing = np.bincount(group[gap], minlength=size).astype(np.uint64)
        counts[place] += whole - missing


def long_waits(found: Measured, duration_ns: U64) -> tuple[NDArray[np.intp], U64]:
    """Return what reads waited beyond `FIGURE_MAX`: a read may wait for data for hours.

    Args:
        found: The figures of rows that are all calls that read.
        duration_ns: Of these calls, shape (rows,).

    Returns:
        Which rows, and how much more than their figure says.
    """
    waited, call = found.columns.get(WAITED), found.columns.get(_CALL)
    if waited is None or call is None:
        return np.empty(0, np.intp), np.empty(0, np.uint64)
    full = np.flatnonzero((waited == FIGURE_MAX) & (duration_ns != UNMEASURED_U64))
    if _CALL in found.gaps:
        full = full[~found.gaps[_CALL][full]]
    known = call[full].astype(np.uint64) + np.uint64(FIGURE_MAX)
    longer = duration_ns[full] > known
    return full[longer], duration_ns[full][longer] - known[longer]


def _extremes(block: U32) -> tuple[U32, U32]:
    # Least and greatest of each column. Long lines are what numpy is fast with, so many rows are
    # taken for one.
    rows, width = block.shape
    even = rows - rows % _FOLD
    low = high = rest = block[even:]
    if even:
        lines = block[:even].reshape(-1, _FOLD * width)
        low = np.concatenate([lines.min(axis=0).reshape(_FOLD, width), rest])
        high = np.concatenate([lines.max(axis=0).reshape(_FOLD, width), rest])
    return low.min(axis=0), high.max(axis=0)
