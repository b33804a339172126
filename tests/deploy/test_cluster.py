from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.demo.cluster import NETNS_DIRECTORY, Cluster, cgroup2_mount
from deploy.demo.kubernetes import Workload
from schemas.errors import ConfigError, UnsupportedFeature

WORKLOADS = (
    Workload("server", "a", replicas=2, port=80, target_port=8080),
    Workload("client", "b"),
)
TAG = "unittest"
SERVER = """
import socket, sys
listener = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(sys.argv[1].encode())
    connection.close()
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as connection:
    print(connection.recv(100).decode(), end="")
"""

pytestmark = pytest.mark.bpf


def leftovers() -> list[str]:
    found = [str(path) for path in NETNS_DIRECTORY.glob(f"podwire-{TAG}-*")]
    root = cgroup2_mount() / f"podwire-{TAG}.slice"
    return found + ([str(root)] if root.exists() else [])


def test_pods_reach_each_other_by_address_and_by_service() -> None:
    with Cluster(TAG, WORKLOADS, "n1") as cluster:
        servers, client = cluster.pods_of("server"), cluster.pods_of("client")[0]
        for pod in servers:
            cluster.start(pod, [sys.executable, "-c", SERVER, pod.name])
            assert cluster.wait_listening(pod, 8080)
        cluster.route_services(client)
        service = cluster.service("server")

        def ask(address: str, port: int) -> str:
            return cluster.run(client, [sys.executable, "-c", CLIENT, address, str(port)])

        for pod in servers:
            assert ask(pod.ipv4, 8080) == pod.name
            assert ask(pod.ipv6, 8080) == pod.name
        names = {pod.name for pod in servers}
        assert {ask(service.ipv4, 80) for _ in range(2)} == names
        assert {ask(service.ipv6, 80) for _ in range(2)} == names
    assert leftovers() == []


def test_a_process_is_in_its_pods_cgroup_and_namespace() -> None:
    with Cluster(TAG, WORKLOADS, "n1") as cluster:
        pod = cluster.pods[0]
        process = cluster.start(
            pod, ["sh", "-c", "echo in; exec sleep 600"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
        path = next(line.split(":", 2)[2] for line in lines if line.startswith("0::"))
        assert path.endswith(f"/cri-containerd-{pod.container_id}.scope")
        assert f"kubepods-burstable-pod{pod.uid.replace('-', '_')}.slice" in path
        ours, theirs = (Path(f"/proc/{pid}/ns/net").readlink() for pid in ("self", process.pid))
        assert ours != theirs
        process.stdout.close()
    assert process.returncode is not None
    assert leftovers() == []


def test_a_crashed_run_is_cleared_away() -> None:
    code = f"""
import os, signal
from deploy.demo.cluster import Cluster
from tests.deploy.test_cluster import WORKLOADS
cluster = Cluster({TAG!r}, WORKLOADS, "n1").__enter__()
process = cluster.start(cluster.pods[0], ["sleep", "600"], stdout=-3, stderr=-3)
while not (cluster.cgroup(cluster.pods[0]) / "cgroup.procs").read_text():
    pass
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    stale = int(answer.stdout)
    assert leftovers()
    with Cluster(TAG, WORKLOADS, "n1") as cluster:
        assert (cluster.cgroup(cluster.pods[0]) / "cgroup.procs").read_text() == ""
        state = Path(f"/proc/{stale}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"
    assert leftovers() == []


def test_two_clusters_of_one_tag_do_not_take_each_other_for_crashed() -> None:
    with Cluster(TAG, WORKLOADS, "n1") as cluster:
        with pytest.raises(ConfigError, match="another unittest cluster is running"):
            Cluster(TAG, WORKLOADS, "n1").__enter__()
        assert cluster.run(cluster.pods[0], ["echo", "alive"]) == "alive\n"


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnsupportedFeature, match="need root"):
        Cluster(TAG, WORKLOADS, "n1").__enter__()
