"""Who is behind every address: all ways to reach a pod at once, and the rows that they make."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from deploy.demo.kubernetes import NODE_ADDRESS, Workload
from tests.e2e.harness import Scenario
from tests.e2e.named_traffic import REQUEST, RESPONSE, TUNNEL_HEAD
from tests.e2e.service_cluster import OUTSIDE, Extra, ServiceCluster
from tests.support.kafka import KafkaBroker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploy.demo.kubernetes import Pod

pytestmark = [
    pytest.mark.bpf,
    pytest.mark.kafka,
    pytest.mark.clickhouse,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

PORT, HOST_PORT, NODE_PORT, OUTSIDE_PORT = 8080, 8090, 30080, 9000
WORKLOADS = (
    Workload("caller", "mall", replicas=2),
    Workload("plain", "mall", port=80, target_port=PORT),
    Workload("many", "mall", replicas=3, port=80, target_port=PORT),
    Workload("twice", "mall", port=80, target_port=PORT),
    Workload("headless", "mall", port=PORT, target_port=PORT),
    Workload("ported", "mall", replicas=2, port=80, target_port=PORT),
    Workload("hosted", "mall", port=80, target_port=HOST_PORT),
    Workload("hostcaller", "mall"),
    Workload("meshcaller", "mall"),
    Workload("meshed", "mall", port=80, target_port=PORT),
    Workload("ambientcaller", "mall"),
    Workload("ambient", "mall", port=80, target_port=PORT),
    Workload("ztunnel", "mall"),
    Workload("balanced", "mall", replicas=2, port=80, target_port=PORT),
    Workload("lonely", "mall"),
)
EXTRAS = {
    "twice": Extra(aliases=("tw",)),
    "headless": Extra(headless=True),
    "ported": Extra(node_port=NODE_PORT),
    "hosted": Extra(host_network=True),
    "hostcaller": Extra(host_network=True),
    "meshcaller": Extra(mesh=True),
    "meshed": Extra(mesh=True),
    "ambientcaller": Extra(ambient=True),
    "ambient": Extra(ambient=True),
    "ztunnel": Extra(labels=(("app", "ztunnel"),)),
    "balanced": Extra(external=("203.0.113.10", "203.0.113.11")),
}
SERVICES = {"twice": "tw", "lonely": "lonely"}
"""Names of services that are not those of their workloads."""
OURS = "(client_service LIKE '%.mall' OR server_service LIKE '%.mall')"
CLIENTS = ("caller", "hostcaller", "meshcaller", "ambientcaller")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Scenario]:
    with (
        KafkaBroker.started(tmp_path / "kafka") as broker,
        ServiceCluster("svc", WORKLOADS, "node-1", EXTRAS) as cluster,
    ):
        base = {"collector": {"host_netns": str(cluster.node_netns)}}
        scenario = Scenario(tmp_path, cluster, broker, base)
        try:
            yield scenario
        finally:
            scenario.abort()


def _plan(cluster: ServiceCluster, pod: Pod, count: int) -> list[dict[str, Any]]:
    def step(host: str, port: int) -> dict[str, Any]:
        return {"host": host, "port": port, "count": count}

    def pod_of(name: str) -> Pod:
        return cluster.pods_of(name)[0]

    steps = [
        step(pod_of("plain").ipv4, PORT),
        step(pod_of("lonely").ipv4, PORT),
        step(pod_of("headless").ipv4, PORT),
        step(cluster.service("many").ipv4, 80),
        step(cluster.service("twice").ipv4, 80),
        step(cluster.service("hosted").ipv4, 80),
        step(cluster.service("meshed").ipv4, 80),
        step(pod_of("meshed").ipv4, PORT),
        step(pod_of("ambient").ipv4, PORT),
        *(step(address, 80) for address in cluster.extras["balanced"].external or ()),
    ]
    if cluster.extra(pod).ambient:  # here it asks pods by their own addresses
        return [step(pod_of(name).ipv4, PORT) for name in ("ambient", "plain")]
    if not cluster.extra(pod).mesh:  # the sidecar here is one of IPv4
        steps += [
            step(pod_of("plain").ipv6, PORT),
            step(cluster.service("many").ipv6, 80),
            step(pod_of("hosted").ipv4, HOST_PORT),
        ]
    if not cluster.extra(pod).host_network:
        steps.append(step(NODE_ADDRESS, NODE_PORT))
        steps.append(step(OUTSIDE, OUTSIDE_PORT))
    return steps


def run_traffic(run: Scenario, directory: Path, count: int) -> dict[tuple[str, str], int]:
    """Start servers, let every client do its plan; returns connections by both names."""
    cluster = run.cluster
    assert isinstance(cluster, ServiceCluster)
    servers = [cluster.relay(pod) for pod in cluster.pods if cluster.extra(pod).mesh]
    (ztunnel,) = cluster.pods_of("ztunnel")
    servers += [cluster.tunnel(pod, ztunnel) for pod in cluster.pods if cluster.extra(pod).ambient]
    for pod in cluster.pods:
        if pod.workload.name not in (*CLIENTS, "ztunnel"):
            port = HOST_PORT if cluster.extra(pod).host_network else PORT
            servers.append(cluster.serve(pod, port))
    beyond = cluster.outside("server", OUTSIDE, OUTSIDE, str(OUTSIDE_PORT))
    assert beyond.stdout is not None
    assert beyond.stdout.readline() == "ready\n"
    callers = []
    for pod in cluster.pods:
        if pod.workload.name in CLIENTS:
            plan = directory / f"{pod.name}.json"
            plan.write_text(json.dumps(_plan(cluster, pod, count)))
            callers.append(cluster.call(pod, plan))
    plan = directory / "outside.json"
    balancer, _ = cluster.extras["balanced"].external or ("", "")
    steps = [
        {"host": NODE_ADDRESS, "port": NODE_PORT, "count": count},
        {"host": balancer, "port": 80, "count": count},
    ]
    plan.write_text(json.dumps(steps))
    beyond_caller = cluster.outside("client", OUTSIDE, str(plan))
    truth: dict[tuple[str, str], int] = {}
    for name, process in [
        *((each.name, each.running) for each in callers),
        (OUTSIDE, beyond_caller),
    ]:
        assert process.stdout is not None
        for replier, answers in json.loads(process.stdout.readline()).items():
            truth[name, replier] = truth.get((name, replier), 0) + answers
    for each in callers:
        each.running.communicate(timeout=10)
        assert each.running.returncode == 0
    time.sleep(2)  # what is outside is left out by its environment, as long as it lives
    beyond_caller.communicate()
    served: dict[tuple[str, str], int] = {}
    for name, process in [*((each.name, each.running) for each in servers), (OUTSIDE, beyond)]:
        process.terminate()
        output, _ = process.communicate(timeout=30)
        for sender, answers in json.loads(output).items():
            served[sender, name] = served.get((sender, name), 0) + answers
    assert served == truth
    return truth


def _service(name: str) -> str:
    if name == OUTSIDE:
        return name
    workload = next(w.name for w in WORKLOADS if name.startswith(f"{w.name}-"))
    return f"{SERVICES.get(workload, workload)}.mall"


def assert_covered(run: Scenario, expected: dict[Any, tuple[int, ...]]) -> None:
    """The figure says what the rows say: all is known to the pod but for the world outside."""
    rows = run.query(
        "SELECT resolution, reason, sum(connection_count) AS connections, sum(byte_count) AS size"
        # Loopback is the broker's, and outside may be anybody's on this machine.
        " FROM podwire.coverage WHERE reason NOT IN ('loopback', 'outside') GROUP BY ALL"
    )
    found = {(row["resolution"], row["reason"]): row for row in rows}
    known = found.pop(("instance", ""))
    inside = [counts for key, counts in expected.items() if OUTSIDE not in key]
    assert known["connections"] >= sum(counts[0] + counts[1] for counts in inside)
    assert known["size"] >= sum(counts[2] + counts[3] for counts in inside)
    assert {key for key, row in found.items() if row["connections"] or row["size"]} == set()


def assert_told_once(run: Scenario) -> None:
    """No hop of a way is told once more, by the address of a pod, a service or the node."""
    cluster = run.cluster
    assert isinstance(cluster, ServiceCluster)
    ours = {OUTSIDE, NODE_ADDRESS, *(cluster.extras["balanced"].external or ())}
    for pod in cluster.pods:
        ours |= {pod.ipv4, pod.ipv6}
    for workload in WORKLOADS:
        if workload.port:
            service = cluster.service(workload.name)
            ours |= {service.ipv4, service.ipv6}
    for entity in ("service", "instance"):
        ends = ", ".join(
            f"{end}_{kind}"
            for end in ("client", "server")
            for kind in ("service", *(["instance"] if entity == "instance" else []))
        )
        rows = run.query(
            f"SELECT DISTINCT {ends} FROM podwire.{entity}_relation_metrics WHERE NOT {OURS}"
        )
        assert [row for row in rows if ours & set(row.values())] == []


def assert_both_ends_agree(run: Scenario) -> None:
    rows = run.query(
        "SELECT client_instance, server_instance, sum(client_wrote_bytes) AS wrote,"
        " sum(unread_to_server_bytes) AS to_server, sum(unread_to_client_bytes) AS to_client"
        f" FROM podwire.instance_relation_agreement WHERE {OURS} GROUP BY ALL"
    )
    assert len(rows) > 20
    for row in rows:
        assert (row["to_server"], row["to_client"]) == (0, 0), row


def test_every_way_to_a_pod_leads_to_it(running: Scenario, tmp_path: Path) -> None:
    running.watch()
    truth = run_traffic(running, tmp_path, 20)
    assert len({replier for _, replier in truth if replier.startswith("many-")}) == 3
    time.sleep(1.5)
    assert running.finish() == []
    expected = {}
    for (client, server), count in truth.items():
        names = (_service(client), client, _service(server), server)
        to_server, to_client = count * REQUEST, count * RESPONSE
        if client.startswith("ambientcaller-") and server.startswith("ambient-"):
            to_server += count * TUNNEL_HEAD
        if client != OUTSIDE:
            expected["client", *names] = (count, 0, to_server, to_client)
        if server != OUTSIDE:
            expected["server", *names] = (0, count, to_client, to_server)
    rows = running.query(
        "SELECT role, client_service, client_instance, server_service, server_instance,"
        " sum(connect_success_count) AS connects, sum(accept_count) AS accepts,"
        " sum(write_bytes) AS sent, sum(read_bytes) AS received"
        f" FROM podwire.instance_relation_metrics WHERE {OURS} GROUP BY ALL"
    )
    found = {tuple(list(row.values())[:5]): tuple(list(row.values())[5:]) for row in rows}
    assert found == expected
    services = running.query(
        "SELECT DISTINCT client_service, server_service FROM podwire.service_relation_metrics"
        f" WHERE {OURS}"
    )
    assert {tuple(row.values()) for row in services} == {(key[1], key[3]) for key in expected}
    assert_covered(running, expected)
    assert_told_once(running)
    assert_both_ends_agree(running)
    dropped = running.query(
        "SELECT reason, sum(dropped_count) AS n FROM podwire.pipeline_ledger"
        " WHERE reason = 'instance_relation_dropped' GROUP BY ALL"
    )
    assert dropped == []
