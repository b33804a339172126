"""Makes the recording that ships with podwire: of a whole run, only what the pods did.

The collector records everything on the machine. What is not of the demo's containers is taken out,
with its names, and the ledger of each batch is brought in line with the rows that stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from collector.recording import Recorder, read_recording
from collector.requests import STRINGS
from schemas.events import EventBatch, decode_batch, encode_batch
from schemas.ledger import Entry

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from schemas.columns import Table

__all__ = ["only_containers", "reduce_recording"]


def reduce_recording(source: Path, target: Path, containers: Collection[str]) -> int:
    """Copy a recording with only the connections of these containers; returns the events kept.

    Raises:
        ConfigError: If a file cannot be read or written.
        DecodeError: If the source is damaged.
    """
    recorder = Recorder(target)
    kept = 0
    try:
        for message in read_recording(source):
            batch = only_containers(decode_batch(message), containers)
            kept += batch.events
            recorder.write(encode_batch(batch))
    finally:
        recorder.close()
    return kept


def only_containers(batch: EventBatch, containers: Collection[str]) -> EventBatch:
    """Return the batch with only the connections of these containers and their events."""
    wanted = np.array([name in containers for name in batch.names], bool)
    is_kept = wanted[batch.connections.container]
    place = np.cumsum(is_kept) - 1
    connections = batch.connections.take(is_kept)
    opens = batch.opens.take(is_kept[batch.opens.connection])
    closes = batch.closes.take(is_kept[batch.closes.connection])
    transfers = batch.transfers.take(is_kept[batch.transfers.connection])
    requests = batch.requests.take(is_kept[batch.requests.connection])
    tables = (opens, closes, transfers, requests)
    for table in tables:
        table.connection = place[table.connection].astype("<u4")
    named: list[tuple[Table, str]] = [(connections, "container"), (connections, "process")]
    named.extend((requests, column) for column in STRINGS)
    used = np.unique(np.concatenate([getattr(table, column) for table, column in named]))
    order = [0, *(int(index) for index in used if index)]
    renamed = np.zeros(len(batch.names), "<u4")
    renamed[order] = np.arange(len(order), dtype="<u4")
    for named_table, column in named:
        setattr(named_table, column, renamed[getattr(named_table, column)])
    header = batch.header
    header.ledger = [
        Entry(stage, kind, "", in_count=rows, out_count=rows)
        for stage in ("kernel", "collector")
        for kind, rows in (
            ("open", opens.rows),
            ("close", closes.rows),
            ("transfer", transfers.rows),
            *((("request", requests.rows),) if stage == "collector" else ()),
        )
        if rows
    ]
    ends = np.concatenate([table.end_ns for table in tables])
    header.first_event_ns = int(ends.min()) if len(ends) else 0
    header.last_event_ns = int(ends.max()) if len(ends) else 0
    return EventBatch(
        header,
        connections,
        [batch.names[index] for index in order],
        opens,
        closes,
        transfers,
        requests,
    )
