"""A large cluster in a stream worker: memory, start from the topics, and the cost of an answer.

100,000 pods on 2,000 nodes, 5,000 services of 20 pods each, each pod dual stack with two containers
and the usual labels. Names are asked for anew after every change of the directory, so the cost of
an answer that is in no cache counts. The start is measured once.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from schemas.kubernetes import (
    Container,
    Endpoint,
    EndpointSlice,
    KubernetesObject,
    Node,
    Pod,
    Service,
    ServicePort,
    decode_object,
    encode_object,
)
from schemas.topics import ENDPOINTSLICES, NODES, PODS, SERVICES
from streams.addresses import pack_address
from streams.directory import Directory
from streams.naming import Naming, NamingSettings
from tests.bench.measure import Row, measure
from tests.streams.build import MINUTE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

POD_COUNT, SERVICE_COUNT, NODE_COUNT = 100_000, 5_000, 2_000
ASKED = 2_000
NOW_MS = MINUTE_S * 1000


def run() -> list[Row]:
    messages = [(topic, encode_object(record)) for topic, record in _objects()]
    size = sum(len(data) for _, data in messages)
    gc.collect()
    before = _resident_mb()
    directory = Directory()

    started = time.process_time()
    for topic, data in messages:
        directory.apply(decode_object(topic, data))
    took = time.process_time() - started
    gc.collect()
    resident = _resident_mb() - before
    note = (
        f"{took:.1f} s for {len(messages):,} objects, {size / 1e6:.0f} MB of messages; "
        f"{resident:,.0f} MB resident, {1e6 * resident / len(messages):,.0f} B each"
    )
    rows = [Row("start: decode and index", len(messages), took, "object", note)]
    chosen = np.random.default_rng(1).integers(0, POD_COUNT, ASKED).tolist()
    for name, addresses in (
        ("pod address", [_pod_address(number) for number in chosen]),
        ("service address", [_service_address(number % SERVICE_COUNT) for number in chosen]),
        ("address in a pod range, no pod", [f"10.{n % 200}.{n // 200 % 250}.251" for n in chosen]),
        ("outside address", [f"203.0.{n % 250}.{n // 250 % 250}" for n in chosen]),
    ):
        packed = [address for text in addresses if (address := pack_address(text))]
        naming = Naming(directory, NamingSettings(external_names=1 << 20))

        def ask(naming: Naming = naming, packed: list[bytes] = packed) -> None:
            for address in packed:
                naming.remote("", address, 80, NOW_MS)

        rows.append(
            measure(f"answer: {name}", ASKED, ask, unit="answer", prepare=naming._pods.clear)
        )
    (changed,) = directory.pods_at(pack_address(_pod_address(7)) or b"", NOW_MS)[0]
    assert changed is not None

    def change() -> None:
        assert changed is not None
        for number in range(1000):
            changed.created_ms = number + 1
            directory.remove(changed.uid)
            directory.apply(changed)

    rows.append(measure("a pod goes and comes", 1000, change, unit="change"))
    return rows


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def _pod_address(number: int) -> str:
    node = number % NODE_COUNT
    return (
        f"10.{node // 10 % 200}.{node % 10 * 25 + number // NODE_COUNT % 25}.{number // 50_000 + 2}"
    )


def _service_address(number: int) -> str:
    return f"172.20.{number // 250}.{number % 250 + 1}"


def _objects() -> Iterator[tuple[str, KubernetesObject]]:
    for number in range(NODE_COUNT):
        cidr = f"10.{number // 10 % 200}.{number % 10 * 25}.0/24"
        address = f"192.168.{number // 250}.{number % 250 + 1}"
        yield NODES.name, Node(f"node-{number}", f"node-{number}", [address], [cidr], 1)
    for number in range(POD_COUNT):
        service = number % SERVICE_COUNT
        yield (
            PODS.name,
            Pod(
                uid=f"{number:08x}-0000-4000-8000-000000000000",
                namespace=f"team-{service % 100}",
                name=f"app-{service}-7d9c5b6f4d-{number:05x}",
                node=f"node-{number % NODE_COUNT}",
                pod_ips=[_pod_address(number), f"fd00:10::{number:x}"],
                host_ips=["192.168.1.1"],
                containers=[
                    Container("main", f"{number:064x}", ports=[8080]),
                    Container("sidecar", f"{number + (1 << 200):064x}"),
                ],
                labels={"app": f"app-{service}", "pod-template-hash": "7d9c5b6f4d"},
                workload_kind="Deployment",
                workload_name=f"app-{service}",
                phase="Running",
                created_ms=1,
            ),
        )
    for number in range(SERVICE_COUNT):
        name, namespace = f"app-{number}", f"team-{number % 100}"
        yield (
            SERVICES.name,
            Service(
                uid=f"service-{number}",
                namespace=namespace,
                name=name,
                cluster_ips=[_service_address(number)],
                ports=[ServicePort("main", "TCP", 80)],
                selector={"app": name},
                created_ms=1,
            ),
        )
        pods = range(number, POD_COUNT, SERVICE_COUNT)
        endpoints = [
            Endpoint([_pod_address(p)], f"{p:08x}-0000-4000-8000-000000000000", f"pod-{p}")
            for p in pods
        ]
        yield (
            ENDPOINTSLICES.name,
            EndpointSlice(
                f"slice-{number}", namespace, f"{name}-x", name, "IPv4", endpoints, [8080]
            ),
        )
