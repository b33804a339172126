"""The views of the histograms: where reads and writes wait, and how long calls take.

A bucket is turned into nanoseconds here as in `schemas.histograms`, and a percentile is found in
the summed buckets of a row, so that it is as true for a day as for a minute.
"""
# ruff: noqa: S608 -- statements are built from our own declarations

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from schemas.catalogue import (
    CALL_DISTRIBUTIONS,
    DISTRIBUTION_SCOPES,
    DISTRIBUTIONS,
    FIGURE_BY_NAME,
    SCOPE_BY_NAME,
    SCOPES,
    Distribution,
    Scope,
)
from sink.tables import Column, View, metrics_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SPREAD_VIEWS"]

NAME: Final = "LowCardinality(String)"

_PER_MILLE: Final = {"p50_ns": 500, "p90_ns": 900, "p95_ns": 950, "p99_ns": 990, "p999_ns": 999}

_STAGES = "; ".join(f"{each.name}: {each.description}" for each in DISTRIBUTIONS)


@dataclass(frozen=True, slots=True)
class _Family:
    """Histograms that are shown together.

    Attributes:
        view: Name of the view of percentiles, after its scope.
        buckets: Name of the view of buckets.
        distributions: All with buckets of the same width.
        labels: Columns that say which distribution a row is of, out of direction and stage.
        per: What a row is, in words, after the period.
        events: What is counted.
        time: What the mean is of.
        whole: Whether there are also rows of what was not measured.
    """

    view: str
    buckets: str
    scopes: tuple[Scope, ...]
    distributions: tuple[Distribution, ...]
    labels: tuple[Column, ...]
    what: str
    per: str
    events: str
    time: str
    whole: bool

    @property
    def bits(self) -> int:
        (bits,) = {distribution.bits for distribution in self.distributions}
        return bits


_WAITS = _Family(
    view="waits",
    buckets="wait_buckets",
    scopes=tuple(SCOPE_BY_NAME[name] for name in DISTRIBUTION_SCOPES),
    distributions=DISTRIBUTIONS,
    labels=(
        Column("direction", NAME, "read or write"),
        Column("stage", NAME, f"Stage of the way: {_STAGES}"),
    ),
    what="where its reads and writes wait",
    per=" and stage",
    events="Reads or writes",
    time="Time in the stage per event that measured it, nanoseconds; "
    "with packets that came after a connection's last call",
    whole=True,
)
_LATENCY = _Family(
    view="latency",
    buckets="latency_buckets",
    scopes=SCOPES,
    distributions=CALL_DISTRIBUTIONS,
    labels=(),
    what="how long its HTTP calls take",
    per="",
    events="Answered calls",
    time="Average latency, nanoseconds",
    whole=False,
)


def _mean(distribution: Distribution) -> str:
    # Each figure over the events that measured it, before one is taken from the other.
    def average(name: str) -> str:
        return f"m.{name} / nullIf(m.{FIGURE_BY_NAME[name].measured_name}, 0)"

    plus = " + ".join(average(name) for name in distribution.plus)
    return " - ".join((plus, *(average(name) for name in distribution.minus)))


def _lowest(bucket: str, bits: int) -> str:
    # Bucket 1 + n * e + q begins at (1 + q / n) * 2 ** e, n = 2 ** bits; bucket 0 holds 0 alone.
    n = 1 << bits
    return (
        f"if({bucket} = 0, 0, "
        f"({n} + ({bucket} - 1) % {n}) * exp2(intDiv({bucket} - 1, {n}) - {bits}))"
    )


def _middle(bucket: str, bits: int) -> str:
    # The harmonic one: from no value in the bucket further than _error says, so that this holds
    # however the values lie. The value 0 has a bucket of its own.
    low, high = _lowest(bucket, bits), _lowest(f"({bucket} + 1)", bits)
    return f"if({bucket} = 0, 0, 2 / (1 / {low} + 1 / {high}))"


def _percentile(place: int, bits: int) -> str:
    return f"if(w.total = 0, NULL, {_middle(f'w.buckets[w.places[{place}]]', bits)})"


def _error(bits: int) -> float:
    # In per cent; a bucket from a to b has its harmonic middle m where (m - a) / a = (b - m) / b.
    return 100 / (2 * (1 << bits) + 1)


def _rows(family: _Family, scope: Scope, suffix: str) -> str:
    # A row per distribution of each row of the metrics. They are read once, and the engine pushes
    # conditions on time and keys below the ARRAY JOIN.
    each = ", ".join(
        f"('{d.direction}', '{d.name}', m.{d.column}, {_mean(d)})" for d in family.distributions
    )
    keys = ", ".join(f"m.{key} AS {key}" for key in ("time", *scope.keys))
    return (
        f"SELECT {keys}, s.1 AS direction, s.2 AS stage, s.3 AS histogram, s.4 AS mean_ns "
        f"FROM {{public}}.{scope.metrics_table}{suffix} AS m ARRAY JOIN [{each}] AS s"
    )


def _percentiles(family: _Family, scope: Scope, suffix: str, what: str) -> View:
    measured = f"{family.events} that measured it; 0: not measured"
    rows = [
        ("count", "UInt64", "w.total", measured if family.whole else family.events),
        ("mean_ns", "Nullable(Float64)", "w.mean_ns", family.time),
    ]
    within = f"{_error(family.bits):.1f} %"
    rows += [
        (
            name,
            "Nullable(Float64)",
            _percentile(place, family.bits),
            f"{part / 10:g} % took no longer, nanoseconds; within {within} of the true value",
        )
        for place, (name, part) in enumerate(_PER_MILLE.items(), 1)
    ]
    source = (
        "(SELECT *, mapKeys(histogram) AS buckets, mapValues(histogram) AS counts, "
        "arraySum(counts) AS total, arrayCumSum(counts) AS sums, "
        "arrayMap(p -> arrayFirstIndex(c -> c * 1000 >= total * p, sums), "
        f"{list(_PER_MILLE.values())}) AS places FROM ({_rows(family, scope, suffix)})"
        f"{'' if family.whole else ' WHERE notEmpty(histogram)'}) AS w"
    )
    comment = f"{scope.description}: {family.what}, per {what}{family.per}"
    name = f"{scope.name}_{family.view}{suffix}"
    return _view(family, scope, name, what, comment, rows, source)


def _buckets(family: _Family, scope: Scope) -> View:
    # Unlike percentiles these can be summed over any rows.
    low, high = (_lowest(text, family.bits) for text in ("bucket", "(bucket + 1)"))
    rows = (
        ("low_ns", "Float64", low, "Shortest time of the bucket, nanoseconds"),
        ("high_ns", "Float64", high, "End of the bucket: its times are below"),
        (
            "value_ns",
            "Float64",
            _middle("bucket", family.bits),
            f"Within {_error(family.bits):.1f} % of each of its times: percentiles over any rows "
            "are quantileExactWeighted(0.99)(value_ns, count)",
        ),
        ("count", "UInt64", "times", f"{family.events} in the bucket"),
    )
    source = (
        f"({_rows(family, scope, '')}) AS w "
        "ARRAY JOIN mapKeys(w.histogram) AS bucket, mapValues(w.histogram) AS times"
    )
    comment = f"{scope.description}: {family.what}, per minute{family.per}, bucket by bucket"
    name = f"{scope.name}_{family.buckets}"
    return _view(family, scope, name, "minute", comment, rows, source)


def _view(
    family: _Family,
    scope: Scope,
    name: str,
    what: str,
    comment: str,
    rows: Sequence[tuple[str, str, str, str]],
    source: str,
) -> View:
    # Keys and labels of ``w``, and then what the rows say: name, type, SQL, meaning.
    keys = metrics_columns(scope, f"Start of the {what}, UTC")[: 1 + len(scope.keys)]
    shared = (*(Column(key.name, key.type, key.comment) for key in keys), *family.labels)
    terms = [f"w.{column.name} AS {column.name}" for column in shared]
    terms += [f"{sql} AS {column}" for column, _, sql, _ in rows]
    own = (Column(column, kind, meaning) for column, kind, _, meaning in rows)
    return View(name, comment, (*shared, *own), f"SELECT {', '.join(terms)} FROM {source}")


_PERIODS: Final = (("", "minute"), ("_hourly", "hour"), ("_daily", "day"))

SPREAD_VIEWS: tuple[View, ...] = tuple(
    view
    for family in (_WAITS, _LATENCY)
    for scope in family.scopes
    for view in (
        *(_percentiles(family, scope, suffix, what) for suffix, what in _PERIODS),
        _buckets(family, scope),
    )
)
"""They read the metrics views, and so come after them."""
