"""A node whose services are virtual servers of IPVS, with all that kube-proxy sets up beside them.

Addresses of services are the node's own on a device that is never up. So a process of the node
speaks to one from the same address, and is masqueraded; so is who asks the node's port, and a pod
that reaches itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from pyroute2 import IPVS, IPVSDest, IPVSService

from tests.bpf.topology import Host

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["API", "BACKENDS", "NODE_PORT", "PORT", "SERVICE", "Node", "Talk", "node"]

BACKENDS: Final = 3
SERVICE: Final = {4: "10.99.0.9", 6: "fd99::9"}
API: Final = {4: "10.99.0.1", 6: "fd99::1"}
"""Its only backend is the node itself, like that of the Kubernetes API."""
PORT: Final = 80
NODE_PORT: Final = 30080

_NODE: Final = 254
_DEVICE: Final = "kube-ipvs0"
_MARK: Final = "0x4000"
_MASQUERADING: Final = 0
"""``IP_VS_CONN_F_MASQ``: addresses are translated."""
_PATIENCE_S: Final = 30.0


class Talk(NamedTuple):
    """A connection that its backend has answered on."""

    client: socket.socket
    accepted: socket.socket
    caller: Host
    server: Host
    backend: tuple[str, int]
    """What the answer says."""


class Node:
    """Pods joined by a node that translates; the last pod is no backend."""

    def __init__(self) -> None:
        self.host = Host(_NODE)
        self.pods = [Host(number) for number in range(1, BACKENDS + 2)]
        self._listening: dict[socket.socket, Host] = {}
        self._talks = contextlib.ExitStack()

    @property
    def path(self) -> str:
        """Of its network namespace."""
        return f"/proc/self/fd/{self.host.descriptor}"

    def call(self, caller: Host, address: str, port: int, own_port: int = 0) -> Talk:
        """Connect from a host to an address and let who accepts say its own."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with caller.inside():
            client = self._talks.enter_context(socket.socket(family))
        client.settimeout(_PATIENCE_S)
        if own_port:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(("", own_port))
        client.connect((address, port))
        ready, _, _ = select.select(list(self._listening), [], [], _PATIENCE_S)
        (server,) = ready
        accepted = self._talks.enter_context(server.accept()[0])
        accepted.sendall(" ".join(map(str, server.getsockname()[:2])).encode())
        backend, listening = client.recv(64).decode().split()
        return Talk(client, accepted, caller, self._listening[server], (backend, int(listening)))

    def hang_up(self) -> None:
        """Close all connections."""
        self._talks.close()

    def build(self) -> None:
        """Set up devices, routes, services and rules."""
        gateways = [self.host.address(family) for family in (4, 6)]
        lines = ["link set lo up", f"link add {_DEVICE} type dummy"]
        lines += [_addition(each, _DEVICE) for kind in (SERVICE, API) for each in kind.values()]
        for pod in self.pods:
            name, there = f"pod{pod.number}", f"/proc/{os.getpid()}/fd/{pod.descriptor}"
            lines.append(f"link add {name} type veth peer name eth0 netns {there}")
            lines += [_addition(each, name) for each in gateways]
            lines.append(f"link set {name} up")
            lines += [f"route add {pod.address(family)} dev {name}" for family in (4, 6)]
        self.host.batch(*lines)
        for pod in self.pods:
            pod.batch(
                "link set lo up",
                *(_addition(pod.address(family), "eth0") for family in (4, 6)),
                "link set eth0 up",
                *(f"route add {each} dev eth0" for each in gateways),
                *(f"route add default via {each}" for each in gateways),
            )
        for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/vs/conntrack"):
            self.host.set(key, 1)
        self.host.netfilter(self._rules())
        for family in (4, 6):
            backends = [self._listen(pod, family) for pod in self.pods[:BACKENDS]]
            self._serve(SERVICE[family], PORT, *backends)
            self._serve(self.host.address(family), NODE_PORT, *backends)
            self._serve(API[family], PORT, self._listen(self.host, family))

    def _listen(self, host: Host, family: int) -> tuple[str, int]:
        server = host.listen(family)
        self._listening[server] = host
        address, port, *_ = server.getsockname()
        return address, port

    def _rules(self) -> str:
        to_itself, from_itself = [], []
        for word, family in (("ip", 4), ("ip6", 6)):
            to_itself += [
                f"{word} saddr {own} {word} daddr {own} masquerade"
                for own in (pod.address(family) for pod in self.pods[:BACKENDS])
            ]
            from_itself += [
                f"{word} saddr {each} {word} daddr {each} meta mark set {_MARK}"
                for each in (SERVICE[family], API[family])
            ]
        return "\n".join(
            (
                "table inet kube {",
                "chain asked { type nat hook prerouting priority -100;",
                f"tcp dport {NODE_PORT} meta mark set {_MARK}",
                "}",
                "chain asks { type nat hook output priority -100;",
                *from_itself,
                "}",
                "chain leaves { type nat hook postrouting priority 100;",
                f"meta mark {_MARK} masquerade",
                *to_itself,
                "}",
                "}\n",
            )
        )

    def _serve(self, address: str, port: int, *backends: tuple[str, int]) -> None:
        netmask = {"netmask": "128.0.0.0"} if ":" in address else {}  # a length in the CPU's order
        service = IPVSService(
            addr=address, port=port, protocol=socket.IPPROTO_TCP, sched_name="rr", **netmask
        )
        with self.host.inside(), IPVS() as ipvs:
            ipvs.service("add", service=service)
            for own, listening in backends:
                dest = IPVSDest(addr=own, port=listening, fwd_method=_MASQUERADING)
                ipvs.dest("add", service=service, dest=dest)

    def close(self) -> None:
        """Close everything."""
        self.hang_up()
        for host in (self.host, *self.pods):
            host.close()


@contextlib.contextmanager
def node() -> Iterator[Node]:
    """A node with its pods and services."""
    made = Node()
    try:
        made.build()
        yield made
    finally:
        made.close()


def _addition(address: str, device: str) -> str:
    return f"addr add {address} dev {device}" + (" nodad" if ":" in address else "")
