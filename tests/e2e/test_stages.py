"""Packets and stages, live kernel to SQL: what sockets and namespaces count is what SQL answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from collector.config import CollectorConfig
from collector.doctor import load_check
from collector.drops import drop_reasons
from collector.figures import STAGE_FIGURES, measured
from schemas.catalogue import DISTRIBUTIONS, FIGURES
from tests.e2e.harness import PORT, Scenario, in_netns, scenario, segments_sent_again
from tests.e2e.plans import MEGABYTE, step
from tests.e2e.test_exact import PAIRS, assert_exact, assert_ledger_closes, assert_nothing_lost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploy.demo.cluster import Cluster

pytestmark = [
    pytest.mark.bpf,
    pytest.mark.kafka,
    pytest.mark.clickhouse,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

STAGED = [figure for figure in FIGURES if figure.optional and figure.group in ("read", "write")]
ON_EVERY_TIER = ("write_l2_duration", "read_packet_from_queue_duration")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Scenario]:
    """Every fortieth large packet to a server's port is lost there, and so sent again; a few are
    lost on the client's own way out."""
    with scenario(tmp_path, "e2e") as prepared:
        for workload in ("cart", "stock"):
            for pod in prepared.cluster.pods_of(workload):
                for line in (
                    "add table inet losses",
                    "add chain inet losses input { type filter hook input priority 0; }",
                    f"add rule inet losses input tcp dport {PORT} meta length > 1000"
                    " numgen inc mod 40 == 0 drop",
                ):
                    in_netns(prepared.cluster, pod, "nft", line)
        for pod in prepared.cluster.pods_of("shop"):
            for line in (
                "add table inet losses",
                "add chain inet losses output { type filter hook output priority 0; }",
                f"add rule inet losses output tcp dport {PORT} meta length > 1000"
                " numgen inc mod 150 == 0 drop",
            ):
                in_netns(prepared.cluster, pod, "nft", line)
        yield prepared


def plans(cluster: Cluster) -> dict[str, list[dict[str, Any]]]:
    """Small and large, over both families; nothing that a socket could not count."""
    (stock,) = cluster.pods_of("stock")
    steps = [step("short", stock.ipv6, 100), step("keep", stock.ipv6, 3, requests=50)]
    steps.append(step("bulk", stock.ipv6, 3, request=5 * MEGABYTE, response=5 * MEGABYTE))
    for server in cluster.pods_of("cart"):
        steps += [
            step("short", server.ipv4, 100),
            step("nonblocking", server.ipv4, 50),
            step("keep", server.ipv4, 3, requests=50, request=3000, response=9000),
            step("bulk", server.ipv4, 3, request=5 * MEGABYTE, response=5 * MEGABYTE),
        ]
    return {pod.name: steps for pod in cluster.pods_of("shop")}


def measured_here() -> frozenset[str]:
    """The figures that `podwire doctor` promises on this machine."""
    _, found = load_check(CollectorConfig())
    return measured(found.all_hooks)


def test_packets_and_stages(running: Scenario) -> None:
    here = measured_here()
    running.start()
    running.traffic(plans(running.cluster))
    again = {pod.name: segments_sent_again(running.cluster, pod) for pod in running.cluster.pods}
    assert running.finish() == []
    assert_exact(running)
    assert_ledger_closes(running)
    assert_nothing_lost(running)
    assert_sent_again(running, again)
    assert_reasons(running)
    for role in ("client", "server"):
        assert_measured(running, here, role)
    assert_waits(running, here)


def assert_sent_again(run: Scenario, again: dict[str, int]) -> None:
    """What was dropped was sent again; only a pod that drops on the way out has lost any."""
    rows = run.query(
        "SELECT instance, sum(write_retransmit_packet_count) AS again,"
        " sum(write_lost_packet_count) AS lost FROM podwire.instance_metrics GROUP BY ALL"
    )
    found = {row["instance"]: row for row in rows}
    for pod, count in again.items():
        assert int(found[pod]["again"]) == count, pod
        assert count > 0 or not pod.startswith("shop"), pod
        assert (int(found[pod]["lost"] or 0) > 0) == pod.startswith("shop"), pod


def assert_reasons(run: Scenario) -> None:
    """Why packets were lost: what every reason counts adds up to what was lost."""
    reason = "NETFILTER_DROP" if drop_reasons() else ""
    for table in ("service", "service_relation"):
        (lost,) = run.query(
            f"SELECT sum(write_lost_packet_count) AS packets FROM podwire.{table}_metrics"
        )
        rows = run.query(
            f"SELECT role, reason, sum(packets) AS packets FROM podwire.{table}_drops GROUP BY ALL"
        )
        assert [(row["role"], row["reason"]) for row in rows] == [("client", reason)]
        assert int(rows[0]["packets"]) == int(lost["packets"]) > 0
    rows = run.query(
        "SELECT client_service, server_service, reason, sum(packets) AS packets"
        " FROM podwire.service_relation_drops GROUP BY ALL ORDER BY ALL"
    )
    assert {row["client_service"] for row in rows} == {f"{PAIRS[0][0]}.demo"}
    assert {row["server_service"] for row in rows} <= {f"{server}.demo" for _, server in PAIRS}


def assert_measured(run: Scenario, here: frozenset[str], role: str) -> None:
    """What no hook measures is NULL, not 0; the rest was measured, at most once per call."""
    terms = ", ".join(
        f"sum({figure.name}) AS {figure.name}, "
        f"sum({figure.measured_name}) AS {figure.measured_name}"
        for figure in STAGED
    )
    (row,) = run.query(
        f"SELECT sum(read_count) AS read_count, sum(write_count) AS write_count, {terms} "
        f"FROM podwire.service_relation_metrics WHERE role = '{role}'"
        f" AND client_service = '{PAIRS[0][0]}.demo'"
    )
    for figure in STAGED:
        value, count = row[figure.name], int(row[figure.measured_name])
        if figure.name not in here:
            assert value is None, figure.name
            assert count == 0, figure.name
        else:
            assert value is not None, figure.name
            assert 0 < count <= int(row[f"{figure.group}_count"]), figure.name
    for name in ON_EVERY_TIER:
        assert int(row[name]) > 0, name
    stages = here.intersection(STAGE_FIGURES)
    assert set(ON_EVERY_TIER) <= stages
    if "write_l3_duration" in stages:
        assert int(row["write_l3_duration"]) >= int(row["write_l2_duration"])


def assert_waits(run: Scenario, here: frozenset[str]) -> None:
    """Percentiles for the stages whose figures are all measured here, and for no others."""
    for view, keys in (
        ("service_waits", ("service",)),
        ("service_relation_waits", ("client_service", "server_service")),
    ):
        rows = run.query(f"SELECT * FROM podwire.{view}")
        calls = run.query(
            f"SELECT time, role, {', '.join(keys)}, read_count, write_count"
            f" FROM podwire.{view.replace('_waits', '_metrics')}"
        )
        most = {(each["time"], each["role"], *(each[key] for key in keys)): each for each in calls}
        assert {row["stage"] for row in rows} == {each.name for each in DISTRIBUTIONS}
        for stage in DISTRIBUTIONS:
            of_stage = [row for row in rows if row["stage"] == stage.name]
            if here.issuperset((*stage.plus, *stage.minus)):
                assert any(int(row["count"]) for row in of_stage), stage.name
            else:
                assert not any(int(row["count"]) for row in of_stage), stage.name
            for row in of_stage:
                percentiles = [row[name] for name in ("p50_ns", "p90_ns", "p99_ns", "p999_ns")]
                if not int(row["count"]):
                    assert percentiles == [None] * 4, row
                    continue
                assert percentiles == sorted(percentiles), row
                all_calls = most[row["time"], row["role"], *(row[key] for key in keys)]
                assert int(row["count"]) <= int(all_calls[f"{stage.direction}_count"]), row
