"""The views of lost packets: why a host dropped what it was to send.

A row for each reason of each row of the metrics, so that reasons can be grouped and summed.
"""
# ruff: noqa: S608 -- statements are built from our own declarations

from __future__ import annotations

from typing import Final

from schemas.catalogue import BREAKDOWN_SCOPES, SCOPE_BY_NAME, Scope
from sink.declarations import Column, View
from sink.tables import metrics_columns

__all__ = ["DROP_VIEWS"]

_PERIODS: Final = (("", "minute"), ("_hourly", "hour"), ("_daily", "day"))
_OWN: Final = (
    Column(
        "reason",
        "String",
        "Why, as the kernel names it (enum skb_drop_reason without the prefix), a number where it "
        "has no name; empty where the kernel gives no reason",
    ),
    Column("packets", "UInt64", "Packets dropped on this host on the way out"),
)


def _drops(scope: Scope, suffix: str, what: str) -> View:
    keys = metrics_columns(scope, f"Start of the {what}, UTC")[: 1 + len(scope.keys)]
    terms = ", ".join(f"m.{key.name} AS {key.name}" for key in keys)
    return View(
        name=f"{scope.name}_drops{suffix}",
        comment=f"{scope.description}: packets that hosts dropped, per {what} and reason",
        columns=(*(Column(key.name, key.type, key.comment) for key in keys), *_OWN),
        select=f"SELECT {terms}, reason, packets "
        f"FROM {{public}}.{scope.metrics_table}{suffix} AS m "
        "ARRAY JOIN mapKeys(m.write_lost_packet_reasons) AS reason, "
        "mapValues(m.write_lost_packet_reasons) AS packets",
    )


DROP_VIEWS: tuple[View, ...] = tuple(
    _drops(SCOPE_BY_NAME[name], suffix, what)
    for name in BREAKDOWN_SCOPES
    for suffix, what in _PERIODS
)
"""They read the metrics views, and so come after them."""
