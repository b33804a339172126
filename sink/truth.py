"""The views that say how far the names and bytes of relations can be trusted.

``coverage``: how well the ends of connections are known, and why not better. ``*_agreement``: the
same bytes as each end counted them, where both were seen. ``tls``: what is inside of it.
"""
# ruff: noqa: S608 -- statements are built from our own declarations

from __future__ import annotations

from typing import Final

from schemas.catalogue import COVERAGE, SCOPE_BY_NAME, TLS, UNRESOLVED, Scope
from sink.declarations import Column, View
from sink.tables import COVERAGE_TABLE, TLS_TABLE, metrics_columns

__all__ = ["AGREEMENT_VIEWS", "COVERAGE_VIEW", "TLS_VIEW"]

_PERIODS: Final = (("", "minute"), ("_hourly", "hour"), ("_daily", "day"))
_REASON: Final = "Why it is no instance; empty for one. " + "; ".join(
    f"{name}: {meaning}" for name, meaning in UNRESOLVED.items()
)
_WHOLE: Final = "l.time, l.cluster, l.node, l.role"


def _coverage() -> View:
    keys = COVERAGE_TABLE.columns[: 1 + len(COVERAGE.keys)]
    columns = [
        Column(key.name, key.type, _REASON if key.name == "reason" else key.comment) for key in keys
    ]
    terms = [f"l.{key.name} AS {key.name}" for key in keys]
    for figure in COVERAGE.figures:
        columns.append(Column(figure.name, "UInt64", figure.description))
        terms.append(f"sum(l.{figure.name}) AS {figure.name}")
    for figure in COVERAGE.figures:
        share = figure.name.replace("_count", "_share")
        total = f"sum(l.{figure.name})"
        comment = f"{figure.description}: part of what the node saw in this role"
        columns.append(Column(share, "Nullable(Float64)", comment))
        terms.append(f"{total} / nullIf(sum({total}) OVER (PARTITION BY {_WHOLE}), 0) AS {share}")
    group = ", ".join(f"l.{key.name}" for key in keys)
    return View(
        name="coverage",
        comment="How well the ends of connections are known, per minute, node and role",
        columns=tuple(columns),
        select=f"SELECT {', '.join(terms)} FROM {{store}}.{COVERAGE_TABLE.name} AS l "
        f"GROUP BY {group}",
    )


def _tls() -> View:
    keys = TLS_TABLE.columns[: 1 + len(TLS.keys)]
    terms = [f"l.{key.name} AS {key.name}" for key in keys]
    terms += [f"sum(l.{figure.name}) AS {figure.name}" for figure in TLS.figures]
    return View(
        name="tls",
        comment="What is inside TLS, and how much of it can be read, per minute, node and role",
        columns=(
            *(Column(key.name, key.type, key.comment) for key in keys),
            *(Column(figure.name, "UInt64", figure.description) for figure in TLS.figures),
        ),
        select=f"SELECT {', '.join(terms)} FROM {{store}}.{TLS_TABLE.name} AS l "
        f"GROUP BY {', '.join(f'l.{key.name}' for key in keys)}",
    )


_DIRECTIONS: Final = (
    # the way, who wrote, who read
    ("to_server", "client", "server"),
    ("to_client", "server", "client"),
)


def _agreement(scope: Scope, suffix: str, what: str) -> View:
    declared = metrics_columns(scope, f"Start of the {what}, UTC")[: 1 + len(scope.keys)]
    keys = [key for key in declared if key.name != "role"]
    columns = [Column(key.name, key.type, key.comment) for key in keys]
    terms = [f"m.{key.name} AS {key.name}" for key in keys]
    for way, writer, reader in _DIRECTIONS:
        for name, figure, role in (
            (f"{writer}_wrote_bytes", "write_bytes", writer),
            (f"{reader}_read_bytes", "read_bytes", reader),
        ):
            columns.append(Column(name, "UInt64", f"What the {role}s counted"))
            terms.append(f"sumIf(m.{figure}, m.role = '{role}') AS {name}")
        comment = f"Bytes {way.replace('_', ' ')} that were written and not read in this {what}"
        columns.append(Column(f"unread_{way}_bytes", "Int64", comment))
        terms.append(
            f"toInt64(sumIf(m.write_bytes, m.role = '{writer}')) - "
            f"toInt64(sumIf(m.read_bytes, m.role = '{reader}')) AS unread_{way}_bytes"
        )
    return View(
        name=f"{scope.name}_agreement{suffix}",
        comment=f"{scope.description}: bytes as both ends counted them, per {what}, where both "
        "were seen; what is under way at its edges, and what nobody reads, differs",
        columns=tuple(columns),
        select=f"SELECT {', '.join(terms)} FROM {{public}}.{scope.metrics_table}{suffix} AS m "
        f"GROUP BY {', '.join(f'm.{key.name}' for key in keys)} "
        "HAVING uniqExact(m.role) = 2",
    )


COVERAGE_VIEW: Final = _coverage()
TLS_VIEW: Final = _tls()
AGREEMENT_VIEWS: tuple[View, ...] = tuple(
    _agreement(SCOPE_BY_NAME[name], suffix, what)
    for name in ("service_relation", "instance_relation")
    for suffix, what in _PERIODS
)
"""They read the metrics views, and so come after them."""
