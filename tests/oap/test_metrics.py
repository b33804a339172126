"""The table of an OAP's metrics: all names of both generations, each on figures that exist."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from schemas.catalogue import FIGURE_BY_NAME, SCOPE_BY_NAME
from sink.oap.metrics import FORMER, LATER, metrics_of
from sink.views import VIEWS
from tests.oap import oal_rows
from tests.oap.analysis import names_of


def oal(generation):
    """Rows of the metrics language of a generation."""
    later = oal_rows.LATER.strip().splitlines()
    if generation == LATER:
        return "\n".join(later)
    common = []
    for line in later:
        suffix, scopes, _, _, function = line.split(" | ")
        is_late_sum = suffix.startswith("client_http_avg") and scopes == "IR"
        if function in ("cpm()", "sum()") and not is_late_sum:
            common.append(line)
    return "\n".join((*common, *oal_rows.FORMER.strip().splitlines()))


def test_the_oracle_knows_as_many_metrics_as_an_oap():
    assert len(names_of(oal(FORMER))) == len(set(names_of(oal(FORMER)))) == 283
    assert len(names_of(oal(LATER))) == len(set(names_of(oal(LATER)))) == 296
    assert len(set(names_of(oal(FORMER))) & set(names_of(oal(LATER)))) == 154


@pytest.mark.parametrize("generation", [FORMER, LATER])
def test_every_metric_is_in_the_table_of_metrics(generation):
    assert sorted(metrics_of(generation)) == sorted(names_of(oal(generation)))


@pytest.mark.parametrize(
    ("generation", "counts"),
    [
        (FORMER, (283, 48, 48, 15, 87, 85)),
        (LATER, (296, 50, 50, 15, 92, 89)),
    ],
)
def test_there_are_exactly_as_many_names(generation, counts):
    metrics = metrics_of(generation)
    by = Counter(metric.scope for metric in metrics.values())
    scopes = ("service", "instance", "endpoint", "service_relation", "instance_relation")
    assert (len(metrics), *(by[scope] for scope in scopes)) == counts


@pytest.mark.parametrize("generation", [FORMER, LATER])
def test_every_metric_is_a_formula_over_its_table_or_refused_with_a_reason(generation):
    views = {view.name: {column.name for column in view.columns} for view in VIEWS}
    for metric in metrics_of(generation).values():
        assert metric.scope in SCOPE_BY_NAME
        assert metric.figure in FIGURE_BY_NAME
        assert metric.role in ("", "client", "server")
        if metric.how == "refused":
            assert metric.sql == ""
            assert len(metric.note) > 50
            continue
        if metric.how not in ("apdex", "percentile"):
            for column in re.findall(r"sum\((\w+)\)", metric.sql):
                assert column in views[metric.table], metric.name
        else:
            view, _, column = metric.sql.rpartition("see ")[2].partition(".")
            assert view in views, metric.name
            assert not column or column in views[view]


def test_only_one_is_refused():
    refused = [
        m.name for g in (FORMER, LATER) for m in metrics_of(g).values() if m.how == "refused"
    ]
    assert refused == ["kubernetes_service_endpoint_call_duration"]


def test_an_unknown_generation_is_an_error():
    with pytest.raises(KeyError):
        metrics_of("9.0")
