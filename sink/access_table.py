"""The tables of the access log: a row per HTTP call, and what was done with each batch of them.

A batch of events is known by the collector run that sent it, its number there and its part. A row
of `ACCESS_BATCHES`, written after the rows of its calls, says that the batch is stored: the same
batch from another offset, as a stream worker leaves it that started again, is then left out.
"""
# ruff: noqa: S608 -- statements are built from our own declarations

from __future__ import annotations

from sink.declarations import COUNTER, TIME, Column, StoredTable, View, name_columns

__all__ = [
    "ACCESS_BATCHES",
    "ACCESS_LOG",
    "ACCESS_VIEW",
    "HTTP_VERSIONS",
    "LEDGER_OF_CALLS",
    "OUTCOMES",
    "PROVIDERS",
]

NAME = "LowCardinality(String)"
_TEXT = "CODEC(ZSTD(1))"
_SIZE = "Nullable(UInt64)"

OUTCOMES = "Enum8('answered' = 0, 'aborted' = 1, 'unanswered' = 2)"
"""As `schemas.events.RequestOutcome` numbers them."""

HTTP_VERSIONS = {10: "HTTP/1.0", 11: "HTTP/1.1", 20: "HTTP/2"}
PROVIDERS = ("", "w3c", "b3", "skywalking")
"""By their numbers in the contract."""


ACCESS_LOG = StoredTable(
    name="access_log",
    comment="One row per HTTP call and end that saw it",
    columns=(
        Column("time", "DateTime64(9, 'UTC')", "End of the call, UTC", TIME),
        Column("duration_ns", "UInt64", "From its start to its end", COUNTER),
        Column(
            "time_to_first_byte_ns",
            "Nullable(UInt64)",
            "From its start to the first byte of the response; NULL without one",
            _TEXT,
        ),
        *name_columns(("cluster", "node", "role")),
        *name_columns(("client_service", "client_instance", "server_service", "server_instance")),
        Column("client_address", "FixedString(16)", "Address of the client", _TEXT),
        Column("client_port", "UInt16", "Port of the client", _TEXT),
        Column(
            "server_address",
            "FixedString(16)",
            "Address of the server; behind a virtual address, where that is known",
            _TEXT,
        ),
        Column("server_port", "UInt16", "Port of the server", _TEXT),
        Column("version", NAME, "HTTP/1.0, HTTP/1.1 or HTTP/2"),
        Column("method", NAME, "Method; empty when not known"),
        Column("path", "String", "Path as it was asked for, without the query", _TEXT),
        Column("endpoint", NAME, "Name of the endpoint: the path without ids and numbers"),
        Column("host", NAME, "Host or authority that was asked for"),
        Column("status", "Nullable(UInt16)", "Status of the final response; NULL without", _TEXT),
        Column(
            "grpc_status",
            "Nullable(Int32)",
            "grpc-status; NULL for a call that is no gRPC, -1 where it is not known",
            _TEXT,
        ),
        Column("outcome", OUTCOMES, "answered, aborted in its response, or unanswered", _TEXT),
        Column("request_header_size", _SIZE, "Bytes on the wire; NULL: not measured", _TEXT),
        Column("request_body_size", _SIZE, "Bytes without framing; NULL: not measured", _TEXT),
        Column("response_header_size", _SIZE, "Bytes on the wire; NULL: not measured", _TEXT),
        Column("response_body_size", _SIZE, "Bytes without framing; NULL: not measured", _TEXT),
        Column("tls", "Bool", "Whether it was inside TLS", _TEXT),
        Column("trace_provider", NAME, "Whose header had the ids: w3c, b3, skywalking or none"),
        Column("trace_id", "String", "Id of the trace; empty without", _TEXT),
        Column("segment_id", "String", "Id of the segment, SkyWalking's only", _TEXT),
        Column("span_id", "String", "Id of the span that made the call", _TEXT),
        Column("container", NAME, "Container id of the end that saw it"),
        Column("container_name", NAME, "What its pod calls that container; empty if not known"),
        Column("process", NAME, "Process name of the end that saw it"),
        Column(
            "sample_weight",
            "Float64",
            "How many calls the row stands for; their sum estimates the number of calls",
            _TEXT,
        ),
        Column("batch", "UInt64", "Which batch of events the row came with", _TEXT),
    ),
    engine="MergeTree",
    order_by="(toStartOfHour(time), server_service, endpoint, time)",
    partition_by="toDate(time)",
    shard_by="batch",
    time="time",
    retention="access_log_retention_days",
    indexes=(
        ("trace", "trace_id TYPE bloom_filter(0.01) GRANULARITY 1"),
        ("batches", "batch TYPE bloom_filter(0.01) GRANULARITY 4"),
    ),
)

ACCESS_BATCHES = StoredTable(
    name="access_batches",
    comment="Batches whose calls are stored in full; written after all their rows",
    columns=(
        Column("time", "DateTime('UTC')", "Minute in which its first call ended, UTC", TIME),
        *name_columns(("cluster", "node")),
        Column("run", NAME, "Collector run that sent the batch"),
        Column("sequence", "UInt64", "Its number within the run", TIME),
        Column("part", "UInt32", "Its part, of a batch that was too large for a message", _TEXT),
        Column("in_count", "UInt64", "Calls of the batch", COUNTER),
        Column("out_count", "UInt64", "Calls that are stored", COUNTER),
        Column("sampled_count", "UInt64", "Calls left out by sampling", COUNTER),
        Column("internal_count", "UInt64", "Calls left out as both ends are in one pod", COUNTER),
    ),
    engine="MergeTree",
    order_by="(run, sequence, part)",
    partition_by="toDate(time)",
    shard_by="cityHash64(run)",
    time="time",
    retention="access_log_retention_days",
)


def _view() -> View:
    # The start is told by the end and the duration; addresses are text, as in all other tables.
    start = "fromUnixTimestamp64Nano(toUnixTimestamp64Nano(c.time) - toInt64(c.duration_ns), 'UTC')"
    columns, terms = [], []
    for column in ACCESS_LOG.columns:
        if column.name == "batch":
            continue
        kind, sql = column.type, f"c.{column.name}"
        if column.name.endswith("_address"):
            text = f"IPv6NumToString({sql})"
            kind, sql = "String", f"if(startsWith({text}, '::ffff:'), substring({text}, 8), {text})"
        columns.append(Column(column.name, kind, column.comment))
        terms.append(f"{sql} AS {column.name}")
        if column.name == "time":
            columns.append(Column("start", column.type, "Start of the call, UTC"))
            terms.append(f"{start} AS start")
    return View(
        name=ACCESS_LOG.name,
        comment=ACCESS_LOG.comment,
        columns=tuple(columns),
        select=f"SELECT {', '.join(terms)} FROM {{store}}.{ACCESS_LOG.name} AS c",
    )


ACCESS_VIEW = _view()

LEDGER_OF_CALLS = (
    "SELECT b.time AS time, b.cluster AS cluster, b.node AS node, 'sink' AS stage, "
    "'request' AS kind, c.1 AS reason, c.2 AS in_count, c.3 AS out_count, c.4 AS dropped_count "
    f"FROM {{store}}.{ACCESS_BATCHES.name} AS b ARRAY JOIN "
    "[('', b.in_count, b.out_count, toUInt64(0)), "
    "('sampled', toUInt64(0), toUInt64(0), b.sampled_count), "
    "('pod_internal', toUInt64(0), toUInt64(0), b.internal_count)] AS c "
    "WHERE c.1 = '' OR c.4 > 0"
)
"""What the sink did with calls, as rows of the ledger."""
