"""The batches of one node and period as one, each connection once.

Pure. A stream tells a connection before all of its logs, and what belongs to one call may have come
in two batches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from schemas.events import (
    Closes,
    Connections,
    Drops,
    EventBatch,
    Opens,
    Parties,
    Requests,
    Transfers,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["merged"]

_ENDS: Final = ("local_service", "local_instance", "remote_service", "remote_instance")
_NAMED: Final = ("connections", "parties", "requests", "drops")


def merged(batches: Sequence[EventBatch]) -> EventBatch:
    """Return one batch with the events of all, under the header of the last.

    A connection that changed its names in between is there once for each.

    Args:
        batches: Of one node and boot, with `parties`; at least one.
    """
    if len(batches) == 1:
        return batches[0]
    index: dict[str, int] = {"": 0}
    moved = [_with_names(batch, index) for batch in batches]
    first = np.cumsum([0, *(batch.connections.rows for batch in moved)]).tolist()
    connections = Connections.concatenate([batch.connections for batch in moved])
    parties = Parties.concatenate([batch.parties for batch in moved])
    last, place = _once(connections, parties)
    connections = replace(connections.take(last), flags=_joined_flags(connections.flags, place))

    def joined(kind: type, name: str) -> Any:
        tables = [getattr(batch, name) for batch in moved]
        table = kind.concatenate(tables)  # type: ignore[attr-defined]
        offset = np.repeat(first[:-1], [each.rows for each in tables])
        return replace(table, connection=place[table.connection + offset].astype(np.uint32))

    return EventBatch(
        header=batches[-1].header,
        connections=connections,
        names=list(index),
        opens=joined(Opens, "opens"),
        closes=joined(Closes, "closes"),
        transfers=joined(Transfers, "transfers"),
        requests=joined(Requests, "requests"),
        drops=joined(Drops, "drops"),
        parties=parties.take(last),
    )


def _with_names(batch: EventBatch, index: dict[str, int]) -> EventBatch:
    # The batch with indices into the common dictionary.
    places = np.array([index.setdefault(name, len(index)) for name in batch.names], np.uint32)

    return replace(
        batch,
        **{name: getattr(batch, name).with_names(places) for name in _NAMED},
    )


def _once(connections: Connections, parties: Parties) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    # For each distinct connection its last row, and for each row its distinct connection. That
    # a container got its name in between makes no other connection: the last row has the name.
    code = np.unique(connections.id, return_inverse=True)[1]
    for name in (*_ENDS, "internal"):
        values = getattr(parties, name).astype(np.int64)
        code = np.unique(code * (int(values.max(initial=0)) + 1) + values, return_inverse=True)[1]
    last = np.empty(int(code.max(initial=-1)) + 1, np.intp)
    last[code] = np.arange(len(code))
    return last, code


def _joined_flags(flags: NDArray[np.uint8], place: NDArray[np.intp]) -> NDArray[np.uint8]:
    joined = np.zeros(int(place.max(initial=-1)) + 1, np.uint8)
    np.bitwise_or.at(joined, place, flags)
    return joined
