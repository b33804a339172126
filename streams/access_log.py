"""Batches with the names of both ends, as messages of ``podwire.access-log.v1``.

Pure. A batch keeps its identity (run and sequence), so that whoever reads it twice can tell; where
the names make it too large for a message it is cut, and the parts are numbered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.events import Parties, encode_batch
from schemas.hashing import compact
from schemas.topics import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from schemas.columns import U32
    from schemas.events import EventBatch
    from streams.resolver import Resolution

__all__ = ["access_log_messages", "with_parties"]

_KINDS: Final = ("opens", "closes", "transfers", "requests", "drops")


def access_log_messages(
    batch: EventBatch,
    resolution: Resolution,
    container_name: Callable[[str], str],
    max_bytes: int = MAX_MESSAGE_BYTES,
) -> list[bytes]:
    """Return the messages of a batch; none if it holds no event.

    Args:
        batch: With the names of its endpoints: see `streams.endpoints`.
        resolution: Who its connections are.
        container_name: Of a container id, its name; see `streams.directory`.
        max_bytes: Size of one message at most, as far as one event allows.
    """
    if not batch.events:
        return []
    named = with_parties(batch, resolution, container_name)
    if resolution.excluded is not None:
        named = _with_own_rows(named)
    pending = [named]
    messages: list[bytes] = []
    while pending:
        part = pending.pop()
        part.header.part = len(messages)
        message = encode_batch(part)
        if len(message) > max_bytes and part.events > 1:
            first, second = _halves(part)
            pending += (second, first)
        else:
            messages.append(message)
    return messages


def with_parties(
    batch: EventBatch, resolution: Resolution, container_name: Callable[[str], str]
) -> EventBatch:
    """Return the batch with who is behind its connections, and without its ledger."""
    index: dict[str, int] = {}
    offset = len(batch.names)

    def column(texts: Sequence[str], rows: NDArray[np.intp] = resolution.index) -> U32:
        places = [index.setdefault(text, offset + len(index)) if text else 0 for text in texts]
        return np.array(places, np.uint32)[rows]

    relations = resolution.relations
    containers, of_row = compact(batch.connections.container, offset)
    parties = Parties(
        local_service=column([each.local.service for each in relations]),
        local_instance=column([each.local.instance for each in relations]),
        remote_service=column([each.remote.service for each in relations]),
        remote_instance=column([each.remote.instance for each in relations]),
        internal=np.array([each.internal for each in relations], np.uint8)[resolution.index],
        local_container=column(
            [container_name(batch.names[place]) for place in containers.tolist()], of_row
        ),
    )
    # What the ledger counts was counted with the batch itself.
    return replace(
        batch,
        header=replace(batch.header, ledger=[]),
        names=[*batch.names, *index],
        parties=parties,
    )


def _halves(batch: EventBatch) -> tuple[EventBatch, EventBatch]:
    # By event: the first half of all events in order of their kinds, and the rest.
    middle = batch.events // 2
    first, second = {}, {}
    for kind in _KINDS:
        table = getattr(batch, kind)
        cut = min(max(middle, 0), table.rows)
        first[kind] = table.take(slice(0, cut))
        second[kind] = table.take(slice(cut, None))
        middle -= table.rows
    return _with_own_rows(replace(batch, **first)), _with_own_rows(replace(batch, **second))


def _with_own_rows(batch: EventBatch) -> EventBatch:
    # Only the connections that these events point at, and the names that all of these use.
    tables = {kind: getattr(batch, kind) for kind in _KINDS}
    rows = [table.connection for table in tables.values() if table.rows]
    used, places = _used(rows, batch.connections.rows)
    for kind, table in tables.items():
        tables[kind] = replace(table, connection=places[table.connection])
    tables |= {name: getattr(batch, name).take(used) for name in ("connections", "parties")}
    columns = [values for table in tables.values() for values in table.used_names()]
    kept, places = _used([*columns, np.zeros(1, np.uint32)], len(batch.names))
    return replace(
        batch,
        header=replace(batch.header),
        names=[batch.names[place] for place in kept.tolist()],
        **{name: table.with_names(places) for name, table in tables.items()},
    )


def _used(columns: Sequence[U32], size: int) -> tuple[NDArray[np.intp], U32]:
    # Which rows the columns point at, and the new place of each.
    seen = np.zeros(size, bool)
    for values in columns:
        seen[values] = True
    used = np.flatnonzero(seen)
    places = np.zeros(size, np.uint32)
    places[used] = np.arange(len(used), dtype=np.uint32)
    return used, places
