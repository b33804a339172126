"""Which figures of a transfer record say nothing: masks that make them unmeasured. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from collector.abi import MeasuredFlag
from schemas.columns import UNMEASURED_U32
from schemas.events import FIGURE_WIDTH, READ_FIGURES, WRITE_FIGURES

if TYPE_CHECKING:
    from schemas.columns import U32

__all__ = ["COUNTERS", "FLAGS", "unmeasured"]

COUNTERS: Final = frozenset(
    {
        "read_packet_count",
        "read_packet_size",
        "write_packet_count",
        "write_packet_size",
        "write_retransmit_packet_count",
    }
)
"""Figures that the sock itself counts; a record has them with ``MEASURED_COUNTERS``, the others
with ``MEASURED_STAGES``."""

FLAGS: Final = 4
"""How many values `MeasuredFlag` has."""


def unmeasured(measured: frozenset[str]) -> U32:
    """Return all ones where a figure is not measured, by direction and flags, then by figure."""
    masks = np.full((2 * FLAGS, FIGURE_WIDTH), UNMEASURED_U32)
    for direction, names in enumerate((READ_FIGURES, WRITE_FIGURES)):
        for place, name in enumerate(names):
            flag = (
                MeasuredFlag.MEASURED_COUNTERS if name in COUNTERS else MeasuredFlag.MEASURED_STAGES
            )
            for flags in range(FLAGS):
                if name in measured and flags & flag:
                    masks[direction * FLAGS + flags, place] = 0
    return masks
