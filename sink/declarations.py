"""What a declaration of a table or view is made of. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.tls import UNREADABLE, unreadable_name

__all__ = [
    "COUNTER",
    "KEY_COMMENTS",
    "TIME",
    "Column",
    "StoredTable",
    "View",
    "name_columns",
]

COUNTER = "CODEC(T64, ZSTD(1))"
TIME = "CODEC(DoubleDelta, ZSTD(1))"

KEY_COMMENTS = {
    "cluster": "Cluster name; empty when none is configured",
    "role": "Which end of the connection saw it: client or server",
    "service": "Service: name.namespace, or the address of an unknown peer",
    "instance": "Pod, or the address of an unknown peer",
    "endpoint": "Endpoint of the service",
    "client_service": "Service that opened the connection",
    "client_instance": "Pod that opened the connection",
    "server_service": "Service that accepted the connection",
    "server_instance": "Pod that accepted the connection",
    "node": "Node that the events come from; empty for stages that are not on a node",
    "stage": "Stage of the pipeline: kernel, collector, streams or sink",
    "kind": "What is counted: open, close, transfer, request, drop, connection, process or block",
    "reason": "Why it was dropped; empty for what came in and went out",
    "resolution": "What is known of both ends at least: instance, service, node or address",
    "process": "Name of the process",
    "server_name": "Whom clients asked for in their ClientHello; empty where that was not seen, "
    "{other} beyond the limit of names",
    "tls_version": "Version that both ends agreed on; empty where the handshake was not seen",
    "readability": "readable where what is said inside is seen in clear, else unreadable",
    "unreadable_reason": "Why it is unreadable; empty where it is readable. "
    + "; ".join(f"{unreadable_name(one)}: {meaning}" for one, meaning in UNREADABLE.items()),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: name, ClickHouse type, meaning, and how it is compressed."""

    name: str
    type: str
    comment: str
    codec: str = ""


@dataclass(frozen=True, slots=True)
class StoredTable:
    """One table of the store.

    Attributes:
        engine: Of the MergeTree family, without the ``Replicated`` prefix that a cluster adds.
        shard_by: What decides the shard of a row; whole blocks stay together.
        time: Column that the retention counts from; empty for tables that keep everything.
        retention: Name of the setting that says how many days.
        indexes: Further indexes: name and the rest of the clause.
    """

    name: str
    comment: str
    columns: tuple[Column, ...]
    engine: str
    order_by: str
    partition_by: str = ""
    shard_by: str = "rand()"
    time: str = ""
    retention: str = ""
    indexes: tuple[tuple[str, str], ...] = ()

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)


@dataclass(frozen=True, slots=True)
class View:
    """One view. ``select`` has ``{store}`` and ``{public}`` in the place of the databases."""

    name: str
    comment: str
    columns: tuple[Column, ...]
    select: str


def name_columns(keys: tuple[str, ...]) -> tuple[Column, ...]:
    """Return the columns that name what a row is about."""
    return tuple(Column(key, "LowCardinality(String)", KEY_COMMENTS[key]) for key in keys)
