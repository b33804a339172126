"""The views of the histograms: where reads and writes wait.

A bucket is turned into nanoseconds here as in `schemas.histograms`, and a percentile is found in
the summed buckets of a row, so that it is as true for a day as for a minute.
"""
# ruff: noqa: S608 -- statements are built from our own declarations

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from schemas.catalogue import (
    DISTRIBUTION_SCOPES,
    DISTRIBUTIONS,
    FIGURE_BY_NAME,
    SCOPE_BY_NAME,
    Distribution,
    Scope,
)
from sink.tables import Column, View, metrics_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WAIT_VIEWS"]

NAME: Final = "LowCardinality(String)"

_PER_MILLE: Final = {"p50_ns": 500, "p90_ns": 900, "p99_ns": 990, "p999_ns": 999}

_STAGES = "; ".join(f"{each.name}: {each.description}" for each in DISTRIBUTIONS)
_STAGE_COLUMNS = (
    Column("direction", NAME, "read or write"),
    Column("stage", NAME, f"Stage of the way: {_STAGES}"),
)


def _mean(distribution: Distribution) -> str:
    # Each figure over the events that measured it, before one is taken from the other.
    def average(name: str) -> str:
        return f"m.{name} / nullIf(m.{FIGURE_BY_NAME[name].measured_name}, 0)"

    plus = " + ".join(average(name) for name in distribution.plus)
    return " - ".join((plus, *(average(name) for name in distribution.minus)))


def _lowest(bucket: str) -> str:
    # Bucket 1 + 4 * e + q begins at (1 + q / 4) * 2 ** e; bucket 0 holds 0 alone.
    return f"if({bucket} = 0, 0, (4 + ({bucket} - 1) % 4) * exp2(intDiv({bucket} - 1, 4) - 2))"


def _percentile(place: int, per_mille: int) -> str:
    # Inside the bucket as if its values were spread evenly: wrong by no more than its width.
    at = f"w.places[{place}]"
    bucket, count = f"w.buckets[{at}]", f"w.counts[{at}]"
    inside = f"(w.total * {per_mille} / 1000 - (w.sums[{at}] - {count})) / {count}"
    low, high = _lowest(bucket), _lowest(f"({bucket} + 1)")
    # The value 0 has a bucket of its own, and is no estimate.
    return f"multiIf(w.total = 0, NULL, {bucket} = 0, 0, {low} + ({high} - {low}) * {inside})"


def _percentile_comment(per_mille: int) -> str:
    return f"{per_mille / 10:g} % took no longer, nanoseconds; wrong by at most a bucket's width"


def _stages(scope: Scope, suffix: str) -> str:
    # A row per stage of each row of the metrics. They are read once, and the engine pushes
    # conditions on time and keys below the ARRAY JOIN.
    stages = ", ".join(
        f"('{d.direction}', '{d.name}', m.{d.column}, {_mean(d)})" for d in DISTRIBUTIONS
    )
    keys = ", ".join(f"m.{key} AS {key}" for key in ("time", *scope.keys))
    return (
        f"SELECT {keys}, s.1 AS direction, s.2 AS stage, s.3 AS histogram, s.4 AS mean_ns "
        f"FROM {{public}}.{scope.metrics_table}{suffix} AS m ARRAY JOIN [{stages}] AS s"
    )


def _waits(scope: Scope, suffix: str, what: str) -> View:
    rows = [
        ("count", "UInt64", "w.total", "Reads or writes that measured it; 0: not measured"),
        (
            "mean_ns",
            "Nullable(Float64)",
            "w.mean_ns",
            "Time in the stage per event that measured it, nanoseconds; "
            "with packets that came after a connection's last call",
        ),
    ]
    rows += [
        (name, "Nullable(Float64)", _percentile(place, part), _percentile_comment(part))
        for place, (name, part) in enumerate(_PER_MILLE.items(), 1)
    ]
    source = (
        "(SELECT *, mapKeys(histogram) AS buckets, mapValues(histogram) AS counts, "
        "arraySum(counts) AS total, arrayCumSum(counts) AS sums, "
        "arrayMap(p -> arrayFirstIndex(c -> c * 1000 >= total * p, sums), "
        f"{list(_PER_MILLE.values())}) AS places FROM ({_stages(scope, suffix)})) AS w"
    )
    comment = f"{scope.description}: where its reads and writes wait, per {what} and stage"
    return _view(scope, f"{scope.name}_waits{suffix}", what, comment, rows, source)


def _buckets(scope: Scope) -> View:
    # Unlike percentiles these can be summed over any rows.
    rows = (
        ("low_ns", "Float64", _lowest("bucket"), "Shortest time of the bucket, nanoseconds"),
        ("high_ns", "Float64", _lowest("(bucket + 1)"), "End of the bucket: its times are below"),
        ("count", "UInt64", "times", "Reads or writes in the bucket"),
    )
    source = (
        f"({_stages(scope, '')}) AS w "
        "ARRAY JOIN mapKeys(w.histogram) AS bucket, mapValues(w.histogram) AS times"
    )
    comment = f"{scope.description}: how its waits are spread, per minute, stage and bucket"
    return _view(scope, f"{scope.name}_wait_buckets", "minute", comment, rows, source)


def _view(
    scope: Scope,
    name: str,
    what: str,
    comment: str,
    rows: Sequence[tuple[str, str, str, str]],
    source: str,
) -> View:
    # Keys and stage of ``w``, and then what the rows say: name, type, SQL, meaning.
    keys = metrics_columns(scope, f"Start of the {what}, UTC")[: 1 + len(scope.keys)]
    shared = (*(Column(key.name, key.type, key.comment) for key in keys), *_STAGE_COLUMNS)
    terms = [f"w.{column.name} AS {column.name}" for column in shared]
    terms += [f"{sql} AS {column}" for column, _, sql, _ in rows]
    own = (Column(column, kind, meaning) for column, kind, _, meaning in rows)
    return View(name, comment, (*shared, *own), f"SELECT {', '.join(terms)} FROM {source}")


_SCOPES = tuple(SCOPE_BY_NAME[name] for name in DISTRIBUTION_SCOPES)
_PERIODS: Final = (("", "minute"), ("_hourly", "hour"), ("_daily", "day"))

WAIT_VIEWS: tuple[View, ...] = (
    *(_waits(scope, suffix, what) for scope in _SCOPES for suffix, what in _PERIODS),
    *(_buckets(scope) for scope in _SCOPES),
)
"""They read the metrics views, and so come after them."""
