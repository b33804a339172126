# ruff: noqa: S608, E501 -- statements are built from our own declarations; one row per figure
"""The views that analysts query: their columns, meaning and SQL.

Every view lives in the public database and hides blocks, merges and roll-up engines: what it
returns is one row per key, final at any moment.
"""

from __future__ import annotations

import numpy as np

from schemas.catalogue import (
    CALL_DISTRIBUTIONS,
    FIGURES,
    LEDGER,
    PROVENANCE,
    SCOPES,
    Figure,
    Scope,
)
from schemas.histograms import bucket_of
from sink.access_table import ACCESS_VIEW, LEDGER_OF_CALLS
from sink.drops import DROP_VIEWS
from sink.spreads import SPREAD_VIEWS
from sink.tables import (
    BLOCKS,
    DEAD_LETTERS,
    ENTITY_TABLES,
    KEY_COMMENTS,
    LEDGER_TABLE,
    ROLLED,
    ROLLUPS,
    Column,
    Rollup,
    StoredTable,
    View,
    metrics_columns,
)
from sink.truth import AGREEMENT_VIEWS, COVERAGE_VIEW, TLS_VIEW

__all__ = ["VIEWS", "rollup_insert"]

NAME = "LowCardinality(String)"
MILLISECONDS = "DateTime64(3, 'UTC')"

_PERIOD_SECONDS = 60


def _metrics_view(scope: Scope, name: str, what: str, source: str) -> View:
    columns: list[Column] = []
    terms: list[str] = []
    declared = {c.name: c for c in metrics_columns(scope, f"Start of the {what}, UTC")}
    for key in ("time", *scope.keys):
        columns.append(Column(key, declared[key].type, declared[key].comment))
        terms.append(f"t.{key} AS {key}")
    for figure in (*FIGURES, *PROVENANCE):
        total = f"sum(t.{figure.name})"
        comment = declared[figure.name].comment
        if not figure.optional:
            columns.append(Column(figure.name, "UInt64", comment))
            terms.append(f"{total} AS {figure.name}")
            continue
        measured = f"sum(t.{figure.measured_name})"
        comment = f"{comment}; NULL when nothing measured it"
        columns.append(Column(figure.name, "Nullable(UInt64)", comment))
        # A minute may have figures without calls: of packets after a connection's last one.
        terms.append(f"if({measured} = 0 AND {total} = 0, NULL, {total}) AS {figure.name}")
        comment = f"Events that measured {figure.name}"
        columns.append(Column(figure.measured_name, "UInt64", comment))
        terms.append(f"{measured} AS {figure.measured_name}")
    for column in declared.values():
        if _is_map(column):
            columns.append(Column(column.name, column.type, column.comment))
            terms.append(f"{_total(column)} AS {column.name}")
    keys = ", ".join(f"t.{key}" for key in ("time", *scope.keys))
    return View(
        name=name,
        comment=f"{scope.description}: one row per {what}, role and key",
        columns=tuple(columns),
        select=f"SELECT {', '.join(terms)} FROM {source} AS t GROUP BY {keys}",
    )


def _is_map(column: Column) -> bool:
    return column.type.startswith("Map(")


def _total(column: Column) -> str:
    return f"{'sumMap' if _is_map(column) else 'sum'}(t.{column.name})"


def _rollup_view(rollup: Rollup) -> View:
    # Rolled-up rows where they are exact, the finer rows for the hours or days around them.
    scope, target = rollup.scope, rollup.target
    rest = ", ".join(c.name for c in metrics_columns(scope, "") if c.name != "time")
    rolled = f"FROM {{public}}.pipeline_rollups WHERE period = '{rollup.period}'"
    start = rollup.start.format("f.time")
    finer, values = _finer(rollup)
    source = (
        f"(SELECT time, {rest} FROM {{store}}.{target.name} "
        f"WHERE (time, version) GLOBAL IN (SELECT time, version {rolled}) "
        f"UNION ALL SELECT {start} AS time, {values} FROM {finer} AS f "
        f"WHERE {start} GLOBAL NOT IN (SELECT time {rolled}))"
    )
    return _metrics_view(scope, target.name, rollup.noun, source)


def _finer(rollup: Rollup) -> tuple[str, str]:
    # Where the finer rows come from, and their columns; views have NULL for what they lack.
    names = [c.name for c in metrics_columns(rollup.scope, "") if c.name != "time"]
    if rollup.period == "hourly":
        return f"{{store}}.{rollup.scope.metrics_table}", ", ".join(f"f.{n}" for n in names)
    optional = {figure.name for figure in FIGURES if figure.optional}
    values = ", ".join(f"ifNull(f.{n}, 0) AS {n}" if n in optional else f"f.{n}" for n in names)
    return f"{{public}}.{rollup.scope.metrics_table}_hourly", values


def rollup_insert(rollup: Rollup, store: str, public: str) -> str:
    """Return the statement of one run; parameters: ``start``, ``end``, ``version``."""
    columns = [c for c in metrics_columns(rollup.scope, "") if c.name != "time"]
    names = [column.name for column in columns]
    keys = ", ".join(f"t.{key}" for key in rollup.scope.keys)
    sums = ", ".join(_total(column) for column in columns if column.name not in rollup.scope.keys)
    finer, values = _finer(rollup)
    return (
        f"INSERT INTO {store}.{rollup.target.name} (time, version, {', '.join(names)}) "
        f"SELECT toDateTime({{start:UInt32}}, 'UTC'), {{version:UInt64}}, {keys}, {sums} "
        f"FROM (SELECT {values} FROM {finer.format(store=store, public=public)} AS f "
        "WHERE f.time >= toDateTime({start:UInt32}, 'UTC') "
        f"AND f.time < toDateTime({{end:UInt32}}, 'UTC')) AS t GROUP BY {keys}"
    )


def _rollups_view() -> View:
    starts = " UNION ALL ".join(
        f"SELECT '{period}' AS period, {start}(minute) AS time FROM {{store}}.blocks FINAL"
        for period, start in (("hourly", "toStartOfHour"), ("daily", "toStartOfDay"))
    )
    columns = {c.name: c for c in ROLLED.columns}
    names = ("period", "time", "version", "blocks")
    return View(
        name="pipeline_rollups",
        comment="Hours and days that are rolled up and hold every block stored since",
        columns=tuple(Column(n, columns[n].type, columns[n].comment) for n in names),
        select="SELECT r.period AS period, r.time AS time, r.newest AS version, r.held AS blocks "
        "FROM (SELECT t.period AS period, t.time AS time, max(t.version) AS newest, "
        "argMax(t.blocks, t.version) AS held FROM {store}.rolled AS t GROUP BY t.period, t.time) AS r "
        "GLOBAL LEFT JOIN (SELECT s.period AS period, s.time AS time, count() AS stored "
        f"FROM ({starts}) AS s GROUP BY s.period, s.time) AS b "
        "ON b.period = r.period AND b.time = r.time WHERE b.stored <= r.held",
    )


def _average(figure: Figure) -> tuple[Column, str]:
    unit = {"ns": "nanoseconds", "bytes": "bytes", "count": "count"}[figure.unit]
    comment = f"{figure.description}: average per event that measured it, {unit}"
    return (
        Column(f"{figure.name}_avg", "Nullable(Float64)", comment),
        f"m.{figure.name} / nullIf(m.{figure.measured_name}, 0)",
    )


def _attributed(direction: str) -> str:
    # Packets after a connection's last call have stages but no call: more events may have measured
    # the stages, but never fewer, or calls without stages would look explained.
    rest, whole = f"m.{direction}_unattributed_duration", f"m.{direction}_duration"
    return f"if({rest}_measured_count >= {whole}_measured_count, 1 - {rest} / nullIf({whole}, 0), NULL)"


def _per_call(figure: str) -> str:
    return f"m.{figure} / nullIf(m.http_call_count, 0)"


_APDEX_T_NS = 500_000_000


def _apdex() -> str:
    # Whole buckets: those up to the one that holds T are within T.
    (bits,) = {each.bits for each in CALL_DISTRIBUTIONS}
    limits = bucket_of(np.array([_APDEX_T_NS, 4 * _APDEX_T_NS]), bits).tolist()
    satisfied, tolerated = (
        "arraySum(arrayFilter((count, bucket) -> bucket <= "
        f"{limit}, mapValues(m.http_duration_histogram), mapKeys(m.http_duration_histogram)))"
        for limit in limits
    )
    return f"({satisfied} + {tolerated}) / 2 / nullIf(m.http_call_count, 0)"


# name, type, SQL, meaning
_DERIVED = (
    ("connects_per_second", "Float64", f"m.connect_count / {_PERIOD_SECONDS}", "Connections tried per second"),
    ("accepts_per_second", "Float64", f"m.accept_count / {_PERIOD_SECONDS}", "Connections accepted per second"),
    ("connect_error_ratio", "Nullable(Float64)", "1 - m.connect_success_count / nullIf(m.connect_count, 0)", "Part of the connections tried that failed"),
    ("reads_per_second", "Float64", f"m.read_count / {_PERIOD_SECONDS}", "Reading calls per second"),
    ("read_bytes_per_second", "Float64", f"m.read_bytes / {_PERIOD_SECONDS}", "Payload bytes read per second"),
    ("writes_per_second", "Float64", f"m.write_count / {_PERIOD_SECONDS}", "Writing calls per second"),
    ("write_bytes_per_second", "Float64", f"m.write_bytes / {_PERIOD_SECONDS}", "Payload bytes written per second"),
    ("retransmit_ratio", "Nullable(Float64)", "m.write_retransmit_packet_count / nullIf(m.write_packet_count, 0)", "Segments transmitted again per segment transmitted"),
    ("read_attributed_ratio", "Nullable(Float64)", _attributed("read"), "Part of the time in reading calls that the stages explain; NULL when it was not measured for all"),
    ("write_attributed_ratio", "Nullable(Float64)", _attributed("write"), "Part of the time in writing calls that the stages explain; NULL when it was not measured for all"),
    ("http_calls_per_second", "Nullable(Float64)", f"m.http_call_count / {_PERIOD_SECONDS}", "HTTP calls per second"),
    ("http_success_ratio", "Nullable(Float64)", _per_call("http_success_count"), "Part of the HTTP calls answered with a status below 500, of gRPC calls with OK"),
    ("http_error_ratio", "Nullable(Float64)", f"1 - {_per_call('http_success_count')}", "Part of the HTTP calls that failed: all others"),
    ("http_4xx_ratio", "Nullable(Float64)", _per_call("http_status_4xx_count"), "Part of the HTTP calls answered with 400 to 499"),
    ("http_5xx_ratio", "Nullable(Float64)", _per_call("http_status_5xx_count"), "Part of the HTTP calls answered with 500 to 599"),
    ("http_aborted_ratio", "Nullable(Float64)", _per_call("http_aborted_count"), "Part of the HTTP calls whose response began and did not end"),
    ("http_unanswered_ratio", "Nullable(Float64)", _per_call("http_unanswered_count"), "Part of the HTTP calls that got no response"),
    ("http_apdex", "Nullable(Float64)", _apdex(), "Apdex with T = 500 ms, to the end of its histogram bucket: calls answered within T, and half of those within 4 T, over all calls, answered or not"),
    ("grpc_error_ratio", "Nullable(Float64)", "m.grpc_error_count / nullIf(m.grpc_call_count, 0)", "Part of the gRPC calls that failed"),
    ("completeness", "Float64", "m.events_seen / greatest(m.events_seen + m.events_lost, 1)", "Lower bound of the part of the events that was seen"),
)  # fmt: skip


def _overview(scope: Scope) -> View:
    keys = metrics_columns(scope, "Start of the minute, UTC")[: 1 + len(scope.keys)]
    columns = [Column(column.name, column.type, column.comment) for column in keys]
    terms = [f"m.{column.name} AS {column.name}" for column in keys]
    derived = [(Column(name, kind, comment), sql) for name, kind, sql, comment in _DERIVED]
    derived += [_average(f) for f in FIGURES if f.optional and f.unit == "ns"]
    derived += [_average(f) for f in FIGURES if f.group == "http" and f.unit == "bytes"]
    for column, sql in derived:
        columns.append(column)
        terms.append(f"{sql} AS {column.name}")
    return View(
        name=f"{scope.name}_overview",
        comment=f"{scope.description}: averages, rates and ratios per minute, role and key",
        columns=tuple(columns),
        select=f"SELECT {', '.join(terms)} FROM {{public}}.{scope.metrics_table} AS m",
    )


_KNOWN = "JSONExtractString(max(e.known).2, '{}')"
_LAYER = f"if({_KNOWN.format('layer')} = '', 'KUBERNETES', {_KNOWN.format('layer')})"
_SERVICE_ID = "concat(base64Encode({}), '.1')"


def _entity_view(scope: Scope) -> View:
    """Names and columns follow SkyWalking's entity tables, then what else is known."""
    rows: list[tuple[str, str, str, str]] = []
    if scope.name == "service":
        rows += [
            ("name", NAME, "e.service", "Kubernetes service name"),
            ("short_name", NAME, "e.service", "Same as name"),
            ("service_id", "String", _SERVICE_ID.format("e.service"), "base64(name).1"),
            ("group", "String", "''", "Always empty"),
            ("layer", "String", _LAYER, "Layer of the service"),
        ]
    elif scope.name in ("instance", "endpoint"):
        what = {"instance": "Pod", "endpoint": "Endpoint"}[scope.name]
        rows += [
            ("service_id", "String", _SERVICE_ID.format("e.service"), "base64(service name).1"),
            ("name", NAME, f"e.{scope.name}", f"{what} name"),
            ("service", NAME, "e.service", "Service that it belongs to"),
        ]
    else:
        rows += [(key, NAME, f"e.{key}", KEY_COMMENTS[key]) for key in scope.name_keys]
        rows += [
            (
                f"{side}_service_id",
                "String",
                _SERVICE_ID.format(f"e.{side}_service"),
                f"base64({side} service name).1",
            )
            for side in ("client", "server")
        ]
    if scope.name == "instance":
        ping = "toUnixTimestamp64Milli(max(e.last_seen))"
        rows.append(("last_ping", "Int64", ping, "When it was last seen, Unix milliseconds"))
    rows.append(("properties", "String", "max(e.known).2", "What is known of it, JSON"))
    rows.append(("cluster", NAME, "e.cluster", KEY_COMMENTS["cluster"]))
    rows += [
        (name, "String", _KNOWN.format(name), comment)
        for name, comment in _ATTRIBUTES["relation" if "relation" in scope.name else scope.name]
    ]
    rows.append(("first_seen", MILLISECONDS, "min(e.first_seen)", "When it was first seen"))
    rows.append(("last_seen", MILLISECONDS, "max(e.last_seen)", "When it was last seen"))
    keys = ", ".join(f"e.{key}" for key in ("cluster", *scope.name_keys))
    terms = ", ".join(f"{sql} AS `{name}`" for name, _, sql, _ in rows)
    return View(
        name=scope.entity_table,
        comment=f"{scope.description}: everything ever seen",
        columns=tuple(Column(name, kind, comment) for name, kind, _, comment in rows),
        select=f"SELECT {terms} FROM {{store}}.{ENTITY_TABLES[scope.name].name} AS e "
        f"GROUP BY {keys}",
    )


_ATTRIBUTES = {
    "service": (
        ("namespace", "Kubernetes namespace"),
        ("workload", "Owning workload of its pods"),
    ),
    "instance": (
        ("namespace", "Kubernetes namespace"),
        ("workload", "Owning workload"),
        ("node", "Node that it runs on"),
    ),
    "endpoint": (("protocol", "Protocol of its calls"),),
    "relation": (
        ("protocol", "Protocols seen between the two"),
        ("tls", "How the traffic is encrypted; empty when it is not, or not known"),
    ),
}


def _ledger_source() -> str:
    # Calls are counted batch by batch, together with what says that the batch is stored.
    columns = ", ".join(f"t.{column.name} AS {column.name}" for column in LEDGER_TABLE.columns[:-1])
    blocks = f"SELECT {columns} FROM {{store}}.{LEDGER_TABLE.name} AS t"
    return f"({blocks} UNION ALL {LEDGER_OF_CALLS})"


def _ledger_view() -> View:
    keys = LEDGER_TABLE.columns[: 1 + len(LEDGER.keys)]
    terms = [f"l.{column.name} AS {column.name}" for column in keys]
    terms += [f"sum(l.{figure.name}) AS {figure.name}" for figure in LEDGER.figures]
    group = ", ".join(f"l.{column.name}" for column in keys)
    return View(
        name="pipeline_ledger",
        comment="What each stage did with each kind of event, per minute and node",
        columns=tuple(Column(c.name, c.type, c.comment) for c in LEDGER_TABLE.columns[:-1]),
        select=f"SELECT {', '.join(terms)} FROM {_ledger_source()} AS l GROUP BY {group}",
    )


def _balance_view() -> View:
    names = ("time", "cluster", "stage", "kind")
    keys = [c for c in LEDGER_TABLE.columns if c.name in names]
    sums = [f"sum(l.{figure.name})" for figure in LEDGER.figures]
    terms = [f"l.{name} AS {name}" for name in names]
    terms += [
        f"{total} AS {figure.name}" for total, figure in zip(sums, LEDGER.figures, strict=True)
    ]
    terms.append(f"toInt64({sums[0]}) - toInt64({sums[1]}) - toInt64({sums[2]}) AS balance")
    order = {name: index for index, name in enumerate(names)}
    keys.sort(key=lambda column: order[column.name])
    return View(
        name="pipeline_ledger_balance",
        comment="Whether every event that entered a stage left it or was dropped with a reason",
        columns=(
            *(Column(c.name, c.type, c.comment) for c in keys),
            *(Column(f.name, "UInt64", f.description) for f in LEDGER.figures),
            Column("balance", "Int64", "in - out - dropped: 0 when nothing is unaccounted for"),
        ),
        select=f"SELECT {', '.join(terms)} FROM {_ledger_source()} AS l "
        f"GROUP BY {', '.join(f'l.{name}' for name in names)}",
    )


def _plain_view(name: str, table: StoredTable) -> View:
    terms = ", ".join(f"t.`{column.name}` AS `{column.name}`" for column in table.columns)
    return View(
        name=name,
        comment=table.comment,
        columns=tuple(Column(c.name, c.type, c.comment) for c in table.columns),
        select=f"SELECT {terms} FROM {{store}}.{table.name} AS t FINAL",
    )


VIEWS: tuple[View, ...] = (
    _rollups_view(),
    *(
        _metrics_view(scope, scope.metrics_table, "minute", f"{{store}}.{scope.metrics_table}")
        for scope in SCOPES
    ),
    *(_rollup_view(rollup) for rollup in ROLLUPS),
    *(_overview(scope) for scope in SCOPES),
    *SPREAD_VIEWS,
    *DROP_VIEWS,
    COVERAGE_VIEW,
    TLS_VIEW,
    *AGREEMENT_VIEWS,
    *(_entity_view(scope) for scope in SCOPES),
    ACCESS_VIEW,
    _ledger_view(),
    _balance_view(),
    _plain_view("pipeline_blocks", BLOCKS),
    _plain_view("dead_letters", DEAD_LETTERS),
)
"""Every view, in the order in which they can be created."""
