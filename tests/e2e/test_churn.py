"""Pods come and go, and their addresses are used again at once: every request keeps its names.

An API server tells of a pod when a kubelet would, after it has begun and after it has ended, and
with times of whole seconds: these say little of which pod had an address when it lives for one.
``PODWIRE_CHURN=2000`` replaces so many pods.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from deploy.demo.cluster import Cluster
from deploy.demo.kubernetes import Workload, _pod, _uid
from deploy.local.machine import podwire_command
from schemas.catalogue import ROLES
from schemas.events import ConnectionFlag, Direction, decode_batch
from schemas.kubernetes import decode_object
from schemas.topics import EVENTS, NODES, PODS
from streams.directory import Directory
from streams.naming import NamingSettings
from streams.resolver import Resolver
from tests.collector_kube.fake_api import FakeApi
from tests.collector_kube.test_credentials import kubeconfig
from tests.e2e.harness import Scenario
from tests.e2e.named_traffic import REQUEST, RESPONSE
from tests.e2e.service_cluster import PROGRAM
from tests.support.kafka import KafkaBroker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from deploy.demo.kubernetes import Pod

pytestmark = [
    pytest.mark.bpf,
    pytest.mark.kafka,
    pytest.mark.clickhouse,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]

TURNS = int(os.environ.get("PODWIRE_CHURN", "60"))
PORT = 8080
TOLD_LATE_S = 0.15
WORKLOADS = (Workload("asker", "churn", replicas=3), Workload("server", "churn", replicas=3))


class Turnover:
    """The pods of now: each place has an address for ever, and one pod after the other."""

    def __init__(self, cluster: Cluster, api: FakeApi) -> None:
        self.cluster = cluster
        self.api = api
        self.connected = 0
        """Connections that askers made, answered or not."""
        self.doubtful = 0
        """Others that were reset before connect() could say whether they were made."""
        self.lived: dict[str, tuple[float, float]] = {}
        """By pod: from before its program began until after it had ended."""
        self.answered: dict[tuple[str, str], int] = {}
        self.served: dict[tuple[str, str], int] = {}
        self._running: list[tuple[Pod, subprocess.Popen[str]]] = []
        self._teller = ThreadPoolExecutor(1)  # one after the other, and never later than meant
        self._told: list[Future[None]] = []
        for pod in cluster.pods:
            created = started = _now()
            self._running.append((pod, self._begin(pod)))
            api.put(_dated(pod, created, started))

    def turn(self, number: int) -> None:
        """Replace one pod."""
        place = number % len(self._running)
        old, process = self._running[place]
        created = _now()
        self._end(old, process)
        name = f"{old.name.rpartition('-')[0]}-{number:05}"
        fresh = replace(
            old,
            name=name,
            uid=_uid(f"churn/{name}"),
            container_id=f"{number:064x}",
        )
        self.cluster.cgroup(fresh).mkdir(parents=True)
        started = _now()
        self._running[place] = fresh, self._begin(fresh)
        told_at = time.monotonic() + TOLD_LATE_S
        document = _dated(fresh, created, started)
        self._told.append(self._teller.submit(self._tell, told_at, old, document))

    def _tell(self, at: float, old: Pod, fresh: dict[str, Any]) -> None:
        time.sleep(max(0.0, at - time.monotonic()))
        self.api.delete("pods", old.uid)
        self.api.put(fresh)

    def end(self) -> None:
        """Stop all; askers first."""
        self._teller.shutdown()
        for told in self._told:
            told.result()
        for pod, process in self._running:
            self._end(pod, process)

    def _begin(self, pod: Pod) -> subprocess.Popen[str]:
        self.lived[pod.name] = time.monotonic(), math.inf
        if pod.workload.name == "server":
            arguments = ["server", pod.name, pod.ipv4, str(PORT), pod.ipv6, str(PORT)]
        else:
            arguments = ["asker", pod.name]
            for server in self.cluster.pods_of("server"):
                arguments += [server.ipv4, str(PORT), server.ipv6, str(PORT)]
        argv = [sys.executable, "-S", str(PROGRAM), *arguments]
        process: subprocess.Popen[str] = self.cluster.start(
            pod, argv, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def _end(self, pod: Pod, process: subprocess.Popen[str]) -> None:
        process.terminate()
        output, _ = process.communicate(timeout=30)
        self.lived[pod.name] = self.lived[pod.name][0], time.monotonic()
        counts = json.loads(output)
        if pod.workload.name == "asker":
            self.connected += counts.pop("")
            self.doubtful += counts.pop("?")
        for other, count in counts.items():
            if pod.workload.name == "server":
                self.served[other, pod.name] = self.served.get((other, pod.name), 0) + count
            else:
                self.answered[pod.name, other] = self.answered.get((pod.name, other), 0) + count


def _now() -> str:
    # Kubernetes tells times in whole seconds.
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _dated(pod: Pod, created: str, started: str) -> dict[str, Any]:
    found = _pod(pod)
    found["metadata"]["creationTimestamp"] = found["status"]["startTime"] = created
    (status,) = found["status"]["containerStatuses"]
    status["state"]["running"]["startedAt"] = started
    return found


class ReusedCluster(Cluster):
    """Pods of one place share a network namespace, as they share its address."""

    def _netns_path(self, pod: Pod) -> str:
        (place,) = (one for one in self.pods if one.ipv4 == pod.ipv4)
        return super()._netns_path(place)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


@pytest.fixture
def running(tmp_path: Path, api: FakeApi) -> Iterator[Scenario]:
    with (
        KafkaBroker.started(tmp_path / "kafka") as broker,
        ReusedCluster("churn", WORKLOADS, "node-1") as cluster,
    ):
        base = {"streams": {"host_processes": "node"}}
        scenario = Scenario(tmp_path, cluster, broker, base, has_file=False)
        try:
            yield scenario
        finally:
            scenario.abort()


def test_every_request_keeps_its_names(running: Scenario, api: FakeApi, tmp_path: Path) -> None:
    cluster = running.cluster
    api.put(*(item for item in cluster.kube_list()["items"] if item["kind"] == "Node"))
    running.watch()
    config = tmp_path / "kubeconfig"
    config.write_text(yaml.safe_dump(kubeconfig(cluster={"server": api.url})))
    settings = running.machine.layout.config_file
    command = podwire_command("kube", "--config", str(settings), "--kubeconfig", str(config))
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as kube:
        try:
            api.wait_for_watches("pods", "nodes")
            turnover = Turnover(cluster, api)
            for number in range(TURNS):
                turnover.turn(number)
                running.check()
            turnover.end()
            assert running.finish() == []
        finally:
            kube.terminate()
    assert turnover.served == turnover.answered
    assert len(turnover.answered) > TURNS
    expected: dict[tuple[str, str, str], int] = {}
    for (client, server), count in turnover.answered.items():
        expected["client", client, server] = count * RESPONSE
        expected["server", client, server] = count * REQUEST
    instances = _rows(running, "instance_relation_metrics", "client_instance", "server_instance")
    services = _rows(running, "service_relation_metrics", "client_service", "server_service")
    # What was refused or reset moved nothing: what was read tells the requests that count.
    found = {tuple(row.values())[:3]: row["read"] for row in instances if row["read"]}
    assert {key: size for key, size in found.items() if size > expected.get(key, 0)} == {}
    # Rows whose pod is not known have its service, so nothing is lost.
    assert {tuple(row.values())[:3]: row["read"] for row in services if row["read"]} == {
        (role, "asker.churn", "server.churn"): sum(
            size for key, size in expected.items() if key[0] == role
        )
        for role in ("client", "server")
    }
    # Nor is a pod named whom the other never met, were it only for an attempt.
    for row in instances:
        names = row["client_instance"], row["server_instance"]
        assert turnover.lived.keys() >= set(names), row
        client, server = map(turnover.lived.__getitem__, names)
        assert max(client[0], server[0]) < min(client[1], server[1]), row
    connections = {row["role"]: row["connections"] for row in services}
    assert connections["server"] == sum(turnover.served.values())
    assert 0 <= connections["client"] - turnover.connected <= turnover.doubtful
    hidden = _hidden(running)
    for column in ("moved", "connections"):
        known, whole = (sum(row[column] for row in rows) for rows in (instances, services))
        assert known >= 0.99 * whole, column
        if column == "moved":
            assert hidden.get(("service", "contested_address"), 0) == whole - known
    assert set(hidden) <= {("service", "contested_address")}
    by_time = _by_time(running)
    for role, size in (("client", RESPONSE), ("server", REQUEST)):
        told = {key: read for key, read in by_time.items() if key[0] == role}
        assert sum(told.values()) == size * sum(turnover.served.values())
        known = {key: read for key, read in told.items() if all(key)}
        assert {key: read for key, read in known.items() if read > expected.get(key, 0)} == {}
        print(f"{role}s: {sum(known.values()) / sum(told.values()):.1%} known by time alone")


def _by_time(run: Scenario) -> dict[tuple[str, str, str], int]:
    """What is read by whom of whom, if the other end were on another node: by its address alone."""
    directory = Directory()
    for topic in (PODS, NODES):
        for message in run.broker.consume_all(topic.name):
            if value := message.value():
                directory.apply(decode_object(topic.name, value))
    resolver = Resolver(directory, NamingSettings())
    found: Counter[tuple[str, str, str]] = Counter()
    for message in run.broker.consume_all(EVENTS.name):
        batch = decode_batch(message.value() or b"")
        rows = batch.connections
        flags = rows.flags & ~np.uint8(ConnectionFlag.INSIDE)
        nobody = np.empty(0, np.uint32)
        alone = replace(batch, connections=replace(rows, flags=flags, remote_container=nobody))
        resolution = resolver.resolve(alone)
        reads = batch.transfers.take(batch.transfers.direction == Direction.READ)
        relations = resolution.index[reads.connection]
        sizes = np.bincount(relations, reads.size, len(resolution.relations))
        for relation, size in zip(resolution.relations, sizes.tolist(), strict=True):
            ends = relation.local, relation.remote
            if {end.namespace for end in ends} == {"churn"}:
                role = ROLES[relation.role - 1]
                client, server = ends if role == "client" else ends[::-1]
                found[role, client.instance, server.instance] += int(size)
    return found


def _rows(run: Scenario, table: str, client: str, server: str) -> list[dict[str, Any]]:
    return run.query(
        f"SELECT role, {client}, {server}, sum(read_bytes) AS read,"
        " sum(read_bytes + write_bytes) AS moved,"
        " sum(connect_success_count + accept_count) AS connections"
        f" FROM podwire.{table}"
        " WHERE client_service LIKE '%.churn' OR server_service LIKE '%.churn' GROUP BY ALL"
    )


def _hidden(run: Scenario) -> dict[tuple[str, str], int]:
    # Bytes by why their pod is not known. Loopback is the broker's.
    rows = run.query(
        "SELECT resolution, reason, sum(byte_count) AS size FROM podwire.coverage"
        " WHERE resolution != 'instance' AND reason != 'loopback' GROUP BY ALL HAVING size > 0"
    )
    return {(row["resolution"], row["reason"]): row["size"] for row in rows}
