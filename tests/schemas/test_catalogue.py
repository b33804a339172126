from __future__ import annotations

import re

import pytest

from schemas.catalogue import (
    CALL_DISTRIBUTIONS,
    DISTRIBUTION_BY_NAME,
    DISTRIBUTION_SCOPES,
    DISTRIBUTIONS,
    FIGURE_BY_NAME,
    FIGURES,
    LEDGER,
    PROVENANCE,
    ROLES,
    SCOPE_BY_NAME,
    SCOPES,
    distributions_of,
)
from schemas.events import READ_FIGURES, WRITE_FIGURES
from schemas.ledger import KINDS, REASONS, STAGES

# The metric tables of SkyWalking's Kubernetes monitoring (docs/en/setup/backend/
# backend-k8s-monitoring-rover.md, "Generate Metrics"), in its order and under its names.
SKYWALKING = {
    "Connection Metrics": {
        "Connect CPM": "connect_count",
        "Connect Duration": "connect_duration",
        "Connect Success CPM": "connect_success_count",
        "Accept CPM": "accept_count",
        "Accept Duration": "accept_duration",
        "Close CPM": "close_count",
        "Close Duration": "close_duration",
    },
    "Read Data from Connection": {
        "Read CPM": "read_count",
        "Read Duration": "read_duration",
        "Read Package CPM": "read_packet_count",
        "Read Package Size": "read_packet_size",
        "Read Layer 4 Duration": "read_l4_duration",
        "Read Layer 3 Duration": "read_l3_duration",
        "Read Layer 3 Recv Duration": "read_l3_recv_duration",
        "Read Layer 3 Local Duration": "read_l3_local_duration",
        "Read Package To Queue Duration": "read_packet_to_queue_duration",
        "Read Package From Queue Duration": "read_packet_from_queue_duration",
        "Read Net Filter CPM": "read_netfilter_count",
        "Read Net Filter Duration": "read_netfilter_duration",
    },
    "Write Data to Connection": {
        "Write CPM": "write_count",
        "Write Duration": "write_duration",
        "Write Package CPM": "write_packet_count",
        "Write Package Size": "write_packet_size",
        "Write L4 Duration": "write_l4_duration",
        "Write L3 Duration": "write_l3_duration",
        "Write L3 Local Duration": "write_l3_local_duration",
        "Write L3 Output Duration": "write_l3_output_duration",
        "Write L2 Duration": "write_l2_duration",
        "Write L2 Ready Send Duration": "write_l2_ready_send_duration",
        "Write L2 Send NetDevice Duration": "write_l2_netdevice_send_duration",
    },
    "HTTP/1.x or HTTP/2.x": {
        "Call CPM": "http_call_count",
        "Duration": "http_duration",
        "Success CPM": "http_success_count",
        "Request Header Size": "http_request_header_size",
        "Request Body Size": "http_request_body_size",
        "Response Header Size": "http_response_header_size",
        "Response Body Size": "http_response_body_size",
    },
}
UNIT_BY_ENDING = {"count": "count", "duration": "ns", "size": "bytes", "bytes": "bytes"}
UNIT_BY_WORD = {"CPM": "count", "Duration": "ns", "Size": "bytes"}
ENTITIES = (
    "service_traffic",
    "instance_traffic",
    "endpoint_traffic",
    "service_relation",
    "instance_relation",
    "endpoint_relation",
)
METRICS = [
    pytest.param(name, figure, id=f"{group}: {name}")
    for group, metrics in SKYWALKING.items()
    for name, figure in metrics.items()
]


@pytest.mark.parametrize(("metric", "figure"), METRICS)
def test_every_skywalking_metric_has_a_figure_of_its_unit(metric: str, figure: str) -> None:
    assert FIGURE_BY_NAME[figure].unit == UNIT_BY_WORD[metric.split()[-1]]


def test_no_two_skywalking_metrics_share_a_figure() -> None:
    figures = [figure for metrics in SKYWALKING.values() for figure in metrics.values()]
    assert len(figures) == len(set(figures)) == 37


def test_every_entity_has_a_table_of_its_name() -> None:
    assert tuple(scope.entity_table for scope in SCOPES) == ENTITIES
    assert [scope.metrics_table for scope in SCOPES] == [
        f"{name}_metrics" for name in SCOPE_BY_NAME
    ]


def test_names_are_column_names_without_doubles() -> None:
    names = [figure.name for figure in (*FIGURES, *PROVENANCE)]
    assert len(set(names)) == len(names)
    measured = {figure.measured_name for figure in FIGURES if figure.optional}
    for scope in SCOPES:
        histograms = [distribution.column for distribution in distributions_of(scope.name)]
        columns = [*names, *measured, *histograms, *scope.keys, "time"]
        assert len(set(columns)) == len(columns)
        assert all(re.fullmatch("[a-z][a-z0-9_]*", column) for column in columns)


def test_units_show_in_the_names() -> None:
    for figure in FIGURES:
        assert figure.unit == UNIT_BY_ENDING[figure.name.rsplit("_", 1)[1]]


def test_distributions_are_of_optional_durations_of_their_direction() -> None:
    assert set(DISTRIBUTION_SCOPES) <= set(SCOPE_BY_NAME)
    assert len(DISTRIBUTION_BY_NAME) - len(CALL_DISTRIBUTIONS) == len(DISTRIBUTIONS) == 12
    for distribution in DISTRIBUTIONS:
        places = READ_FIGURES if distribution.direction == "read" else WRITE_FIGURES
        terms = (*distribution.plus, *distribution.minus)
        assert distribution.plus
        assert len(set(terms)) == len(terms)
        assert set(terms) <= set(places)
        assert {FIGURE_BY_NAME[name].unit for name in terms} == {"ns"}
        assert distribution.name.startswith(distribution.direction)
        assert distribution.column == f"{distribution.name}_histogram"


def test_every_scope_has_the_latency_of_calls() -> None:
    assert [each.column for each in CALL_DISTRIBUTIONS] == ["http_duration_histogram"]
    for scope in SCOPES:
        stages = DISTRIBUTIONS if scope.name in DISTRIBUTION_SCOPES else ()
        assert distributions_of(scope.name) == (*stages, *CALL_DISTRIBUTIONS)
    for distribution in CALL_DISTRIBUTIONS:
        assert distribution.direction == "call"
        terms = (*distribution.plus, *distribution.minus)
        assert {FIGURE_BY_NAME[name].group for name in terms} == {"http"}
        assert {FIGURE_BY_NAME[name].unit for name in terms} == {"ns"}


def test_what_is_left_of_a_layer_is_it_without_its_parts() -> None:
    write_ip = DISTRIBUTION_BY_NAME["write_ip"]
    assert write_ip.plus == ("write_l3_duration",)
    assert write_ip.minus == (
        "write_netfilter_duration",
        "resolve_mac_duration",
        "write_l2_duration",
    )
    assert DISTRIBUTION_BY_NAME["write_neighbour"].minus == ()


def test_scopes_name_both_ends_and_the_role() -> None:
    assert ROLES == ("client", "server")
    for scope in SCOPES:
        assert scope.keys[:2] == ("cluster", "role")
        sides = {key.split("_")[0] for key in scope.name_keys}
        assert ({"client", "server"} <= sides) == scope.name.endswith("_relation")


def test_only_what_every_tier_gives_is_always_measured() -> None:
    always = {figure.name for figure in FIGURES if not figure.optional}
    assert always == {
        "connect_count",
        "connect_success_count",
        "accept_count",
        "close_count",
        "read_count",
        "read_bytes",
        "write_count",
        "write_bytes",
    }


def test_ledger_rows_can_hold_every_entry() -> None:
    assert {"stage", "kind", "reason"} < set(LEDGER.keys)
    assert [figure.name for figure in LEDGER.figures] == ["in_count", "out_count", "dropped_count"]
    assert STAGES
    assert {"request", "payload"} < set(KINDS)
    assert REASONS
