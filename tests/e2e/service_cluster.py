"""A demo cluster whose node routes, translates service addresses and has a world outside.

Pods have addresses of their own only and reach each other through the node, as with most network
plugins; there `ServiceCluster` translates as kube-proxy does with nftables. Host-network pods live
in the node's namespace. `Extra` says what else the objects of a workload say.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.demo.cluster import NETNS_DIRECTORY, Cluster, _ip
from deploy.demo.kubernetes import IPV4, IPV6, NODE_ADDRESS, Pod, Workload, _slice, _uid

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = Path(__file__).parent / "named_traffic.py"
NODE_IPV6 = "fd00:10:192::10"
OUTSIDE = "198.51.100.7"
EXTERNAL = "203.0.113.0/24"
OUTSIDE_GATEWAY = "198.51.100.1"
REDIRECT = """
add table ip mesh
add chain ip mesh in { type nat hook prerouting priority -100; }
add chain ip mesh out { type nat hook output priority -100; }
add rule ip mesh in tcp dport != 15006 redirect to :15006
add rule ip mesh out meta skuid 1337 return
add rule ip mesh out ip daddr 127.0.0.0/8 return
add rule ip mesh out meta l4proto tcp redirect to :15001
"""


AMBIENT = """
add table ip ambient
add chain ip ambient in { type nat hook prerouting priority -100; }
add chain ip ambient out { type nat hook output priority -100; }
add chain ip ambient mark_in { type filter hook prerouting priority -150; }
add chain ip ambient mark_out { type route hook output priority -150; }
add rule ip ambient in meta mark 0x539 return
add rule ip ambient in tcp dport != 15008 redirect to :15006
add rule ip ambient out meta mark 0x539 return
add rule ip ambient out ip daddr 127.0.0.0/8 return
add rule ip ambient out meta l4proto tcp redirect to :15001
add rule ip ambient mark_in meta mark 0x539 ct mark set 0x111
add rule ip ambient mark_out ct mark 0x111 meta mark set 0x111
"""
"""The proxy's own connections are marked. Replies to the client's address stay inside the pod."""


@dataclass(frozen=True)
class Extra:
    """What is special about a workload.

    Attributes:
        host_network: Its pods are in the node's namespace.
        node_port: Of its service, on the node's address.
        headless: Its service has no address.
        aliases: Names of further services with the same pods.
        external: Further addresses of its service: of a load balancer, and of ``externalIPs``.
        mesh: Its pods have a sidecar that everything is redirected to.
        ambient: Everything of its pods is redirected to the node's proxy, inside their namespaces.
        labels: Of its pods, besides their own.
    """

    host_network: bool = False
    node_port: int = 0
    headless: bool = False
    aliases: tuple[str, ...] = ()
    external: tuple[str, str] | None = None
    mesh: bool = False
    ambient: bool = False
    labels: tuple[tuple[str, str], ...] = ()


@dataclass
class Process:
    """A program in a pod."""

    name: str
    running: subprocess.Popen[str] = field(repr=False)


class ServiceCluster(Cluster):
    """See the module."""

    def __init__(
        self, tag: str, workloads: Sequence[Workload], node: str, extras: dict[str, Extra]
    ) -> None:
        super().__init__(tag, workloads, node)
        self.extras = extras
        self._outside = f"{self._prefix}outside"

    def extra(self, pod: Pod) -> Extra:
        return self.extras.get(pod.workload.name, Extra())

    @property
    def node_netns(self) -> Path:
        return NETNS_DIRECTORY / self._node_netns

    def _netns_path(self, pod: Pod) -> str:
        return str(self.node_netns) if self.extra(pod).host_network else super()._netns_path(pod)

    def _build(self) -> None:
        super()._build()
        self.pods = [
            replace(pod, ipv4=NODE_ADDRESS, ipv6=NODE_IPV6) if self.extra(pod).host_network else pod
            for pod in self.pods
        ]
        node = self._node_netns
        for pod in self.pods:
            if self.extra(pod).host_network:
                continue
            _ip(
                "addr flush dev eth0 scope global\n"
                f"addr add {pod.ipv4}/32 dev eth0\naddr add {pod.ipv6}/128 dev eth0 nodad\n"
                f"route add {pod.gateway_ipv4} dev eth0\n-6 route add {pod.gateway_ipv6} dev eth0\n"
                f"route replace default via {pod.gateway_ipv4}\n"
                f"-6 route replace default via {pod.gateway_ipv6}",
                pod.netns(self._prefix),
            )
            if self.extra(pod).mesh:
                self._in_netns(pod.netns(self._prefix), ["nft", "-f", "-"], REDIRECT)
                self.cgroup(self.sidecar(pod)).mkdir()
            if self.extra(pod).ambient:
                netns = pod.netns(self._prefix)
                self._in_netns(netns, ["nft", "-f", "-"], AMBIENT)
                self._in_netns(netns, ["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0"])
                _ip("rule add fwmark 0x111 lookup 100", netns)
                _ip("route add local 0.0.0.0/0 dev lo table 100", netns)
        self._in_netns(
            node,
            [
                *("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"),
                *("net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.br0.send_redirects=0"),
            ],
        )
        _ip(f"netns add {self._outside}")
        _ip(
            f"addr add {NODE_ADDRESS}/32 dev lo\naddr add {NODE_IPV6}/128 dev lo nodad\n"
            f"link add out0 type veth peer name eth0 netns {self._outside}\n"
            f"addr add {OUTSIDE_GATEWAY}/24 dev out0\nlink set out0 up\n"
            "route add 10.96.0.0/16 dev br0\n-6 route add fd00:10:96::/64 dev br0\n"
            f"route add {EXTERNAL} dev br0",
            node,
        )
        _ip(
            f"addr add {OUTSIDE}/24 dev eth0\nlink set eth0 up\nlink set lo up\n"
            f"route add default via {OUTSIDE_GATEWAY}",
            self._outside,
        )
        self._in_netns(node, ["nft", "-f", "-"], "\n".join(self._rules()))

    def _rules(self) -> list[str]:
        rules = [
            "add table inet proxy",
            "add chain inet proxy services",
            "add chain inet proxy in { type nat hook prerouting priority -100; }",
            "add chain inet proxy out { type nat hook output priority -100; }",
            "add chain inet proxy post { type nat hook postrouting priority 100; }",
            "add rule inet proxy in jump services",
            "add rule inet proxy out jump services",
            "add rule inet proxy post meta mark 0x4000 masquerade",
            "add rule inet proxy post oifname out0 masquerade",
        ]
        for service in self.services:
            extra = self.extras.get(service.name, Extra())
            if extra.headless:
                continue
            pods = self.pods_of(service.name)
            for version, address, backends in (
                ("ip", service.ipv4, [pod.ipv4 for pod in pods]),
                ("ip6", service.ipv6, [pod.ipv6 for pod in pods]),
            ):
                choices = ", ".join(
                    f"{place} : {backend} . {service.target_port}"
                    for place, backend in enumerate(backends)
                )
                target = f"dnat {version} to numgen inc mod {len(backends)} map {{ {choices} }}"
                start = f"add rule inet proxy services {version} daddr"
                rules.append(f"{start} {address} tcp dport {service.port} {target}")
                if version != "ip":
                    continue
                beyond = [(address, service.port) for address in extra.external or ()]
                if extra.node_port:
                    beyond.append((NODE_ADDRESS, extra.node_port))
                for address, port in beyond:
                    marked = f"tcp dport {port} meta mark set 0x4000"
                    rules.append(f"{start} {address} {marked} {target}")
        return rules

    def sidecar(self, pod: Pod) -> Pod:
        """The pod's second container, in the form of a pod."""
        return replace(pod, container_id=pod.container_id[::-1])

    def kube_list(self) -> dict[str, Any]:
        found = super().kube_list()
        items: list[dict[str, Any]] = found["items"]
        by_uid = {item["metadata"]["uid"]: item for item in items}
        for pod in self.pods:
            item = by_uid[pod.uid]
            extra = self.extra(pod)
            item["spec"]["hostNetwork"] = extra.host_network
            item["metadata"]["labels"] |= dict(extra.labels)
            if extra.mesh:
                (status,) = item["status"]["containerStatuses"]
                proxy = copy.deepcopy(status)
                proxy["name"] = "istio-proxy"
                proxy["containerID"] = f"containerd://{self.sidecar(pod).container_id}"
                item["status"]["containerStatuses"].append(proxy)
                item["spec"]["containers"].append({"name": "istio-proxy", "image": "demo"})
        for service in self.services:
            extra = self.extras.get(service.name, Extra())
            spec = by_uid[service.uid]["spec"]
            if extra.headless:
                spec["clusterIP"], spec["clusterIPs"] = "None", ["None"]
            if extra.node_port:
                spec["type"] = "NodePort"
                spec["ports"][0]["nodePort"] = extra.node_port
            if extra.external:
                balancer, external = extra.external
                spec["type"], spec["externalIPs"] = "LoadBalancer", [external]
                by_uid[service.uid]["status"]["loadBalancer"]["ingress"] = [{"ip": balancer}]
            for place, alias in enumerate(extra.aliases):
                other = copy.deepcopy(by_uid[service.uid])
                other["metadata"] |= {"name": alias, "uid": _uid(f"alias/{alias}")}
                addresses = [f"10.96.1.{place + 1}", f"fd00:10:96::1:{place + 1}"]
                other["spec"]["clusterIP"], other["spec"]["clusterIPs"] = addresses[0], addresses
                twin = replace(service, name=alias, uid=other["metadata"]["uid"])
                items += [other, _slice(twin, self.pods_of(service.name), "IPv4")]
        node = next(item for item in items if item["kind"] == "Node")
        node["status"]["addresses"].append({"type": "InternalIP", "address": NODE_IPV6})
        return found

    def serve(self, pod: Pod, port: int) -> Process:
        places = [pod.ipv4, str(port), pod.ipv6, str(port)]
        if self.extra(pod).mesh:
            places += ["127.0.0.1", str(port)]
        return self._ready(pod, "server", pod.name, *places)

    def relay(self, pod: Pod) -> Process:
        return self._ready(self.sidecar(pod), "proxy")

    def tunnel(self, pod: Pod, proxy: Pod) -> Process:
        """Start the node's proxy where it serves a pod: in its namespace, and in its own cgroup."""
        inside = replace(pod, uid=proxy.uid, container_id=proxy.container_id)
        return self._ready(inside, "ztunnel", pod.ipv4)

    def call(self, pod: Pod, plan: Path) -> Process:
        argv = [sys.executable, "-S", str(PROGRAM), "client", pod.name, str(plan)]
        return Process(pod.name, self.start(pod, argv, stdout=subprocess.PIPE, text=True))

    def outside(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the program beyond the cluster, where nobody watches."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self._outside, sys.executable, "-S", str(PROGRAM), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PODWIRE_RUN": str(os.getpid())},
        )

    def _ready(self, pod: Pod, *arguments: str) -> Process:
        argv = [sys.executable, "-S", str(PROGRAM), *arguments]
        running = self.start(pod, argv, stdout=subprocess.PIPE, text=True)
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n", pod.name
        return Process(pod.name, running)


__all__ = ["IPV4", "IPV6", "OUTSIDE", "Extra", "Process", "ServiceCluster"]
