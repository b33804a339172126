"""The whole product on one machine, around traffic whose counts both ends know.

`Scenario` builds pods, starts a durable Kafka broker and `podwire local`'s machinery on it, runs
the traffic programs in the pods and returns what clients and servers counted; `Answers` asks the
stored data afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.demo.cluster import Cluster
from deploy.demo.kubernetes import Pod, Workload
from deploy.local.machine import Machine
from deploy.local.settings import LocalOptions
from tests.support.kafka import KafkaBroker, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
SERVER = HERE / "traffic_server.py"
CLIENT = HERE / "traffic_client.py"
PORT = 8080
DROPPED_PORT = 7777
CLOSED_PORT = 9

WORKLOADS = (
    Workload("shop", "demo", replicas=2, port=80, target_port=80),
    Workload("cart", "demo", replicas=2, port=80, target_port=PORT),
    Workload("stock", "demo", replicas=1, port=80, target_port=PORT),
)


@dataclass
class Truth:
    """What the programs counted: per (client pod, server pod) and per server pod."""

    client: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    server: dict[str, dict[str, int]] = field(default_factory=dict)

    def add_client(self, client: str, server: str, counts: dict[str, int]) -> None:
        total = self.client.setdefault((client, server), dict.fromkeys(counts, 0))
        for name, value in counts.items():
            total[name] += value

    def relation(self, client: str, server: str) -> dict[str, int]:
        """Sum over the pods of two workloads, as the clients counted."""
        total: dict[str, int] = {}
        for (source, target), counts in self.client.items():
            if source.startswith(client) and target.startswith(server):
                for name, value in counts.items():
                    total[name] = total.get(name, 0) + value
        return total


class Scenario:
    """A cluster, its traffic, and podwire watching it."""

    def __init__(
        self,
        directory: Path,
        cluster: Cluster,
        broker: KafkaBroker,
        base: dict[str, dict[str, Any]] | None = None,
        has_file: bool = True,
    ) -> None:
        self.data = directory / "data"
        self.cluster = cluster
        self.broker = broker
        self.truth = Truth()
        self.kube_file = directory / "kube.json"
        self.kube_file.write_text(json.dumps(cluster.kube_list()))
        self.machine = Machine(
            LocalOptions(
                data=self.data,
                kube=self.kube_file if has_file else None,
                http_port=free_port(),
                broker=broker.bootstrap_servers,
                node=cluster.node,
                base=base,
            )
        )
        self._servers: dict[str, subprocess.Popen[str]] = {}
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def start(self, timeout_s: float = 60.0) -> float:
        """Start podwire and the servers; returns the seconds until the first batch was out."""
        seconds = self.watch(timeout_s)
        for pod in self.cluster.pods:
            if pod.workload.name != "shop":
                self._start_server(pod)
        return seconds

    def watch(self, timeout_s: float = 60.0) -> float:
        """Start podwire alone; returns the seconds until the first batch was out."""
        begin = time.monotonic()
        self.machine.start()
        self._keeper.start()
        while not self.machine.is_watching():
            self.check()
            if time.monotonic() - begin > timeout_s:
                raise TimeoutError("no event batch was published")
            time.sleep(0.1)
        return time.monotonic() - begin

    def check(self) -> None:
        """Raise what the supervising thread met."""
        if self._error is not None:
            raise self._error

    def kill(self, part: str) -> None:
        """``kill -9`` of a part; its supervisor starts it again."""
        pid = self.machine.supervisor.parts[part].pid
        assert pid is not None, f"{part} does not run"
        os.kill(pid, signal.SIGKILL)

    def traffic(self, plans: dict[str, list[dict[str, Any]]], timeout_s: float = 240.0) -> None:
        """Run one client per plan (keyed by pod name) at the same time and add up its counts."""
        names = {pod.ipv4: pod.name for pod in self.cluster.pods}
        names |= {pod.ipv6: pod.name for pod in self.cluster.pods}
        running = []
        for pod in self.cluster.pods:
            if pod.name in plans:
                path = self.kube_file.with_name(f"plan-{pod.name}.json")
                path.write_text(json.dumps(plans[pod.name]))
                running.append((pod, self._python(pod, CLIENT, str(path))))
        for pod, process in running:
            output, _ = process.communicate(timeout=timeout_s)
            assert process.returncode == 0, f"client in {pod.name} failed"
            for target, counts in json.loads(output).items():
                self.truth.add_client(pod.name, names[target.partition("|")[0]], counts)
        self.check()

    def finish(self) -> list[str]:
        """Stop the servers, then podwire in order; returns what did not go well."""
        for name, process in self._servers.items():
            process.terminate()
            output, _ = process.communicate(timeout=30)
            self.truth.server[name] = json.loads(output)
        time.sleep(1.5)  # the last closes cross the ring
        self._stop.set()
        self._keeper.join()
        self.check()
        return self.machine.stop()

    def abort(self) -> None:
        """End everything at once; the cluster ends the servers."""
        self._stop.set()
        self.machine.kill()
        for process in self._servers.values():
            if process.stdout is not None:
                process.stdout.close()

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Ask the stored data, after `finish`."""
        command = [sys.executable, "-m", "deploy.cli", "sql", "--data", str(self.data)]
        answer = subprocess.run(
            [
                *command,
                f"{sql} FORMAT JSONEachRow SETTINGS output_format_json_quote_64bit_integers=0",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        return [json.loads(line) for line in answer.stdout.splitlines()]

    def _start_server(self, pod: Pod) -> None:
        process = self._python(pod, SERVER, pod.ipv4, str(PORT), pod.ipv6, str(PORT))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        self._servers[pod.name] = process

    def _python(self, pod: Pod, program: Path, *arguments: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-S", str(program), *arguments]
        process: subprocess.Popen[str] = self.cluster.start(
            pod, argv, stdout=subprocess.PIPE, text=True
        )
        return process

    def _keep(self) -> None:
        while not self._stop.wait(0.1):
            try:
                self.machine.check()
            except BaseException as error:  # handed to the test by `check`
                self._error = error
                return


@contextlib.contextmanager
def scenario(directory: Path, tag: str) -> Iterator[Scenario]:
    """Everything but the traffic; always cleaned up."""
    with (
        KafkaBroker.started(directory / "kafka") as broker,
        Cluster(tag, WORKLOADS, "node-1") as cluster,
    ):
        running = Scenario(directory, cluster, broker)
        try:
            yield running
        finally:
            running.abort()


def in_netns(cluster: Cluster, pod: Pod, *argv: str) -> None:
    """Configure a pod's network from outside its cgroup."""
    subprocess.run(["ip", "netns", "exec", pod.netns(f"podwire-{cluster.tag}-"), *argv], check=True)


def drop_port(cluster: Cluster, pod: Pod, port: int) -> None:
    """Let the pod swallow every packet to a port, so that connections to it time out."""
    for line in (
        "add table inet drops",
        "add chain inet drops input { type filter hook input priority 0; }",
        f"add rule inet drops input tcp dport {port} drop",
    ):
        in_netns(cluster, pod, "nft", line)


def segments_sent_again(cluster: Cluster, pod: Pod) -> int:
    """TcpRetransSegs of the pod's namespace, over both families."""
    netns = pod.netns(f"podwire-{cluster.tag}-")
    text = subprocess.run(
        ["ip", "netns", "exec", netns, "cat", "/proc/net/snmp"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])
