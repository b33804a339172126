"""The demo's application: a shop and a bank, real servers and clients of several runtimes.

shoppers (h2load) ──> frontend (nginx) ──> api (node.js) ──> stock (Python asyncio)
monitor (curl, IPv4 and IPv6, one refused port) ──> frontend, api
billing (Python, TLS) ──> payments (openssl), stock

All traffic is bounded by count and stays inside the cluster's network namespaces.
"""

from __future__ import annotations

import importlib.resources
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from deploy.demo.kubernetes import Workload
from schemas.errors import UnsupportedFeature

if TYPE_CHECKING:
    from pathlib import Path

    from deploy.demo.cluster import Cluster

__all__ = ["PROGRAMS", "WORKLOADS", "AccessLog", "Shop"]

PROGRAMS: Final = ("nginx", "node", "openssl", "curl", "h2load", "ss")
"""What must be installed; deploy/apt-packages.txt brings them."""

WORKLOADS: Final = (
    Workload("frontend", "shop", replicas=2, port=80, target_port=8080, container="nginx"),
    Workload("api", "shop", replicas=2, port=80, target_port=3000, container="node"),
    Workload("stock", "shop", port=9000, target_port=9000, container="python"),
    Workload("payments", "bank", port=443, target_port=8443, container="openssl"),
    Workload("billing", "bank", container="python"),
    Workload("shoppers", "shop", container="h2load"),
    Workload("monitor", "ops", container="curl"),
)

SHOPPERS: Final = 4
REQUESTS_PER_SECOND: Final = 100
CLOSED_PORT: Final = 9999

NGINX: Final = """\
daemon off;
user root;
worker_processes 1;
pid {work}/{name}.pid;
error_log {work}/{name}.error.log warn;
events {{ worker_connections 512; }}
http {{
  log_format truth '$connection $request_length $bytes_sent $status';
  access_log {work}/{name}.access.log truth;
  client_body_temp_path {work}/{name}.body;
  proxy_temp_path {work}/{name}.proxy;
  fastcgi_temp_path {work}/{name}.fastcgi;
  uwsgi_temp_path {work}/{name}.uwsgi;
  scgi_temp_path {work}/{name}.scgi;
  keepalive_requests 100000;
  upstream api {{ {backends} keepalive 4; }}
  server {{
    listen 8080;
    listen [::]:8080;
    location / {{ root {work}/www; }}
    location /api/ {{ proxy_pass http://api; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""  # noqa: E501


@dataclass(slots=True)
class AccessLog:
    """What nginx itself counted.

    Attributes:
        connections: TCP connections that carried at least one request.
        requests: Requests.
        bytes_received: Bytes of these requests.
        bytes_sent: Bytes of the responses, headers included.
    """

    connections: int = 0
    requests: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0

    def add(self, text: str) -> None:
        """Add the lines of one log."""
        connections = set()
        for line in text.splitlines():
            connection, received, sent, _status = line.split()
            connections.add(connection)
            self.requests += 1
            self.bytes_received += int(received)
            self.bytes_sent += int(sent)
        self.connections += len(connections)


@dataclass(slots=True)
class Shop:
    """The application in a cluster.

    Args:
        cluster: Built of `WORKLOADS`.
        work: Directory for its files.
        seconds: How long the traffic lasts.
    """

    cluster: Cluster
    work: Path
    seconds: int
    clients: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)

    @staticmethod
    def require_programs() -> None:
        """Check what is installed.

        Raises:
            UnsupportedFeature: Naming what is missing.
        """
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing:
            raise UnsupportedFeature("demo", f"not installed: {', '.join(missing)}")

    def start_servers(self) -> None:
        """Start all servers and wait until they listen.

        Raises:
            UnsupportedFeature: If one of them does not come up.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        self._write_files()
        cluster, data = self.cluster, importlib.resources.files("deploy").joinpath("data")
        stock = cluster.pods_of("stock")[0]
        for pod in cluster.pods_of("frontend"):
            self._serve(pod.name, ["nginx", "-c", str(self.work / f"{pod.name}.conf")])
        for pod in cluster.pods_of("api"):
            script = str(data.joinpath("demo_api.js"))
            self._serve(pod.name, ["node", script, "3000", stock.ipv4, "9000"])
        self._serve(stock.name, [sys.executable, str(data.joinpath("demo_stock.py")), "9000"])
        key, certificate = str(self.work / "key.pem"), str(self.work / "certificate.pem")
        accept = ["-accept", "8443", "-cert", certificate, "-key", key, "-www", "-quiet"]
        self._serve(cluster.pods_of("payments")[0].name, ["openssl", "s_server", *accept])
        for pod in cluster.pods:
            workload = pod.workload
            if workload.port and not cluster.wait_listening(pod, workload.target_port):
                log = self.work / f"{pod.name}.log"
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise UnsupportedFeature("demo", f"{workload.name} did not start: {last}")

    def start_clients(self) -> None:
        """Start the bounded traffic."""
        cluster, data = self.cluster, importlib.resources.files("deploy").joinpath("data")
        shoppers, monitor, billing = (
            cluster.pods_of(name)[0] for name in ("shoppers", "monitor", "billing")
        )
        cluster.route_services(shoppers)
        frontend = cluster.service("frontend")
        self.clients["shoppers"] = self._client(
            shoppers.name,
            [
                "h2load",
                "--h1",
                f"--clients={SHOPPERS}",
                f"--requests={REQUESTS_PER_SECOND * self.seconds}",
                f"--rps={REQUESTS_PER_SECOND // SHOPPERS}",
                f"http://{frontend.ipv4}/index.html",
                f"http://{frontend.ipv4}/api/items",
            ],
        )
        first, second = cluster.pods_of("frontend")
        api = cluster.pods_of("api")[0]
        urls = " ".join(
            (
                f"http://[{first.ipv6}]:8080/",
                f"http://{second.ipv4}:8080/index.html",
                f"http://{api.ipv4}:3000/health",
                f"http://{api.ipv4}:{CLOSED_PORT}/",
            )
        )
        rounds = max(self.seconds - 2, 1)
        script = (
            f"for round in $(seq {rounds}); do "
            f"for url in {urls}; do curl -s -o /dev/null $url; done; sleep 0.9; done"
        )
        self.clients["monitor"] = self._client(monitor.name, ["sh", "-c", script])
        payments, stock = cluster.pods_of("payments")[0], cluster.pods_of("stock")[0]
        target = [payments.ipv4, "8443", stock.ipv4, "9000"]
        rounds = max((self.seconds - 2) * 2, 1)
        program = [sys.executable, str(data.joinpath("demo_billing.py")), str(rounds), "0.45"]
        self.clients["billing"] = self._client(billing.name, [*program, *target])

    @property
    def is_busy(self) -> bool:
        """Whether a client still has something to do."""
        return any(client.poll() is None for client in self.clients.values())

    def failures(self) -> list[str]:
        """Clients that ended with an error, and their last line."""
        found = []
        for name, client in self.clients.items():
            # The monitor's last call each round is refused on purpose.
            if client.poll() not in (None, 0) and name != "monitor":
                pod = self.cluster.pods_of(name)[0]
                last = (self.work / f"{pod.name}.log").read_text(errors="replace").strip()
                found.append(f"{name}: {(last.splitlines() or ['no output'])[-1]}")
        return found

    def access_log(self) -> AccessLog:
        """Sum of the access logs of all nginx pods."""
        total = AccessLog()
        for pod in self.cluster.pods_of("frontend"):
            total.add((self.work / f"{pod.name}.access.log").read_text())
        return total

    def succeeded_requests(self) -> int:
        """Requests that the load generator itself saw answered."""
        pod = self.cluster.pods_of("shoppers")[0]
        text = (self.work / f"{pod.name}.log").read_text(errors="replace")
        found = re.search(r"(\d+) succeeded", text)
        return int(found[1]) if found else 0

    def _write_files(self) -> None:
        www = self.work / "www"
        www.mkdir(exist_ok=True)
        (www / "index.html").write_text("<h1>podwire demo shop</h1>\n" + "<p>stock</p>\n" * 500)
        backends = " ".join(f"server {pod.ipv4}:3000;" for pod in self.cluster.pods_of("api"))
        for pod in self.cluster.pods_of("frontend"):
            text = NGINX.format(work=self.work, name=pod.name, backends=backends)
            (self.work / f"{pod.name}.conf").write_text(text)
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=payments"),
                *("-keyout", str(self.work / "key.pem")),
                *("-out", str(self.work / "certificate.pem")),
            ],
            check=True,
            capture_output=True,
        )

    def _serve(self, pod_name: str, argv: list[str]) -> None:
        self._client(pod_name, argv)

    def _client(self, pod_name: str, argv: list[str]) -> subprocess.Popen[Any]:
        pod = next(pod for pod in self.cluster.pods if pod.name == pod_name)
        with (self.work / f"{pod_name}.log").open("wb") as log:
            return self.cluster.start(pod, argv, stdout=log, stderr=log)
