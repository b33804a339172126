"""The running sums of a minute, and what one batch adds to them.

Pure. A minute adds contributions up, so that nothing of a batch is kept. All sums are integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from schemas.catalogue import DISTRIBUTIONS
from streams.histograms import CELLS, SpreadCounts, Values
from streams.requests import Calls, CallSums
from streams.tls import Protected, add_protected
from streams.transfers import PLAIN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.columns import U64
    from streams.identity import Relation
    from streams.losses import Losses

__all__ = ["Contribution", "LedgerKey", "MinuteSums"]

LedgerKey = tuple[str, str, str, str, str]
"""cluster, node, stage, kind, reason."""


@dataclass(slots=True)
class Contribution:
    """What one batch adds to one minute.

    Attributes:
        relations: Whose the rows of `sums` are, each relation once.
        sums: Shape (relations, columns): the first of COLUMNS, or all.
        stages: The stage values of reads and writes, by place in `relations`.
        calls: HTTP calls, by place in `relations`; None without any.
        losses: Lost packets by place in `relations` and reason; they are in `sums` as well.
        protected: What is inside TLS, by place in `relations`; in `sums` as well.
        ledger: in, out and dropped counts.
        lost: Events lost before they reached this batch, by its node.
    """

    minute_s: int
    relations: list[Relation] = field(default_factory=list)
    sums: U64 = field(default_factory=lambda: np.zeros((0, len(PLAIN)), np.uint64))
    stages: list[Values] = field(default_factory=list)
    calls: Calls | None = None
    losses: Losses = field(default_factory=dict)
    protected: Protected = field(default_factory=dict)
    ledger: dict[LedgerKey, list[int]] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)

    def count(self, key: LedgerKey, entered: int, left: int, dropped: int) -> None:
        """Add to a row of the ledger."""
        _count(self.ledger, key, entered, left, dropped)

    def exceeding(self) -> dict[str, int]:
        """Stage values that are in no bucket, by stage: a part was greater than its whole."""
        found: dict[str, int] = {}
        for values in self.stages:
            for place, count in enumerate(np.bincount(values.exceeding).tolist()):
                if count:
                    found[DISTRIBUTIONS[place].name] = count
        return found


class MinuteSums:
    """The running sums of one minute."""

    def __init__(self) -> None:
        self._places: dict[Relation, int] = {}
        self._sums = np.zeros((16, len(PLAIN)), np.uint64)
        self._owners: dict[tuple[str, int, str, str], int] = {}
        self._owner: list[int] = []
        self._spread = SpreadCounts(CELLS)
        self.calls = CallSums()
        self.losses: Losses = {}
        self.protected: Protected = {}
        self.ledger: dict[LedgerKey, list[int]] = {}
        self.lost: dict[str, int] = {}

    @property
    def relations(self) -> list[Relation]:
        """Whose the rows of `sums` are."""
        return list(self._places)

    @property
    def sums(self) -> U64:
        """Shape (relations, columns): the first of COLUMNS, or all. No batch had the others."""
        return self._sums[: len(self._places)]

    def spread(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint64]]:
        """How often the values of each stage occurred: place in `relations`, cell and count.

        Relations between the same services are counted together, in the place of the first.
        """
        owner, cell, count = self._spread.counted()
        _, first = np.unique(np.array(self._owner, np.intp), return_index=True)
        return first[owner], cell, count

    def add(self, part: Contribution) -> None:
        """Add a contribution to this minute."""
        if part.relations:
            index = np.array([self._place(relation) for relation in part.relations], np.intp)
            width = part.sums.shape[1]
            self._make_room(len(self._places), width)
            # Each relation once, so no place is added to twice.
            self._sums[:, :width][index] += part.sums
            if part.stages:
                owners = np.array(self._owner, np.intp)[index]
                for values in part.stages:
                    self._spread.add(owners[values.relation], values.cell, len(self._owners))
            if part.calls is not None:
                self.calls.add(part.calls, index)
            for (place, reason), packets in part.losses.items():
                loss = (int(index[place]), reason)
                self.losses[loss] = self.losses.get(loss, 0) + packets
            add_protected(self.protected, part.protected, index)
        for key, (entered, left, dropped) in part.ledger.items():
            _count(self.ledger, key, entered, left, dropped)
        for node, count in part.lost.items():
            self.lost[node] = self.lost.get(node, 0) + count

    def _place(self, relation: Relation) -> int:
        place = self._places.get(relation)
        if place is None:
            place = self._places[relation] = len(self._places)
            services = (
                relation.cluster,
                relation.role,
                relation.local.service,
                relation.remote.service,
            )
            self._owner.append(self._owners.setdefault(services, len(self._owners)))
        return place

    def _make_room(self, rows: int, width: int) -> None:
        had_rows, had_width = self._sums.shape
        if rows > had_rows or width > had_width:
            rows = max(rows, 2 * had_rows) if rows > had_rows else had_rows
            grown = np.zeros((rows, max(width, had_width)), np.uint64)
            grown[:had_rows, :had_width] = self._sums
            self._sums = grown


def _count(
    ledger: dict[LedgerKey, list[int]], key: LedgerKey, entered: int, left: int, dropped: int
) -> None:
    counts = ledger.setdefault(key, [0, 0, 0])
    counts[0] += entered
    counts[1] += left
    counts[2] += dropped
