"""What the clients of the end-to-end tests do: JSON plans for ``traffic_client.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.e2e.harness import CLOSED_PORT, DROPPED_PORT, PORT

if TYPE_CHECKING:
    from deploy.demo.cluster import Cluster

MEGABYTE = 1_000_000


def step(kind: str, host: str, connections: int, **sizes: int) -> dict[str, Any]:
    """One step of a plan; sizes default to a small request and a medium response."""
    base = {"port": PORT, "request": 200, "response": 1500}
    return {"kind": kind, "host": host, "connections": connections, **base, **sizes}


def full(cluster: Cluster, scale: float = 1.0) -> dict[str, list[dict[str, Any]]]:
    """Two clients against all servers; at scale 1 over 20,000 connections and 1 GB in all."""
    shop = [pod.name for pod in cluster.pods_of("shop")]
    cart = cluster.pods_of("cart")
    (stock,) = cluster.pods_of("stock")

    def times(count: int) -> int:
        return max(1, round(count * scale))

    plans: dict[str, list[dict[str, Any]]] = {}
    for name in shop:
        plan = []
        for server in cart:
            plan += [
                step("short", server.ipv4, times(4000)),
                step("nonblocking", server.ipv4, times(500)),
                step("keep", server.ipv4, times(20), requests=100, request=3000, response=9000),
                step("bulk", server.ipv4, times(5), request=20 * MEGABYTE, response=20 * MEGABYTE),
                step("refused", server.ipv4, times(100), port=CLOSED_PORT),
            ]
        plan += [
            step("short", stock.ipv6, times(1000)),
            step("nonblocking", stock.ipv6, times(200)),
            step("keep", stock.ipv6, times(10), requests=50, request=700, response=70_000),
            step("bulk", stock.ipv6, times(5), request=25 * MEGABYTE, response=25 * MEGABYTE),
            step("refused", stock.ipv6, times(50), port=CLOSED_PORT),
            step("abandoned", stock.ipv4, times(5), port=DROPPED_PORT),
        ]
        plans[name] = plan
    plans[shop[-1]].append(step("timeout", stock.ipv4, 3, port=DROPPED_PORT))
    return plans
