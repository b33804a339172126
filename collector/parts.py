"""The events of a batch, or of a part of what becomes several: columns beside slots. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from schemas.events import Closes, Connections, Drops, Opens, Requests, Transfers

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from schemas.columns import Table

__all__ = ["Events"]

_HEADER_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class Events:
    """Events of one part: slots in the connection table beside the event tables."""

    open_slots: NDArray[np.int64]
    opens: Opens
    close_slots: NDArray[np.int64]
    closes: Closes
    transfer_slots: NDArray[np.int64]
    transfers: Transfers
    request_slots: NDArray[np.int64]
    requests: Requests
    drop_slots: NDArray[np.int64]
    drops: Drops
    """Until they are assembled, their reasons are numbers of the builder's names."""

    @property
    def parts(
        self,
    ) -> tuple[tuple[NDArray[np.int64], Opens | Closes | Transfers | Requests | Drops], ...]:
        """Return each table with the slots of its rows, in the order of the fields."""
        return (
            (self.open_slots, self.opens),
            (self.close_slots, self.closes),
            (self.transfer_slots, self.transfers),
            (self.request_slots, self.requests),
            (self.drop_slots, self.drops),
        )

    @property
    def count(self) -> int:
        """Return how many events there are."""
        return sum(table.rows for _, table in self.parts)

    def halves(self) -> tuple[Events, Events]:
        """Return two pieces that have as many events each as an odd number allows."""
        pieces: list[list[Any]] = [[], []]
        first = second = 0
        for slots, table in self.parts:
            # An odd row goes to the smaller piece, so that two events always part.
            middle = (len(slots) + (first <= second)) // 2
            first, second = first + middle, second + len(slots) - middle
            for piece, rows in zip(pieces, (slice(middle), slice(middle, None)), strict=True):
                piece.extend((slots[rows], table.take(rows)))
        return Events(*pieces[0]), Events(*pieces[1])

    def size(self, connections: int, names: Iterable[str]) -> int:
        """Return how many bytes a message with these events has at most.

        Args:
            connections: Rows of its connections.
            names: Its dictionary.
        """
        return (
            _HEADER_BYTES
            + _row_bytes(Connections) * connections
            + sum(_table_bytes(table) for _, table in self.parts)
            + sum(len(name.encode()) + 4 for name in names)
        )


def _row_bytes(kind: type[Table]) -> int:
    return sum(dtype.itemsize * width for _, dtype, width in kind.specs())


def _table_bytes(table: Table) -> int:
    return sum(
        dtype.itemsize * width * len(getattr(table, name)) for name, dtype, width in table.specs()
    )
