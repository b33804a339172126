"""Names, addresses and Kubernetes objects of a demo cluster; pure, nothing is created here."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Pod", "Service", "Workload", "kube_list", "plan"]

CREATED: Final = "2020-01-01T00:00:00Z"
IPV4: Final = "10.244.0."
IPV6: Final = "fd00:10:244::"
SERVICE_IPV4: Final = "10.96.0."
SERVICE_IPV6: Final = "fd00:10:96::"
NODE_ADDRESS: Final = "192.0.2.10"  # documentation range: the node itself sends nothing
FIRST_HOST: Final = 10


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment.

    Attributes:
        name: Also the name of its service.
        namespace: Kubernetes namespace.
        replicas: Number of pods.
        port: Port of its service; 0 for a workload that nobody calls and that has no service.
        target_port: Where its pods listen.
        container: Name of the one container.
    """

    name: str
    namespace: str
    replicas: int = 1
    port: int = 0
    target_port: int = 0
    container: str = "main"


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod and its addresses."""

    name: str
    workload: Workload
    replica_set: str
    uid: str
    container_id: str
    ipv4: str
    ipv6: str
    node: str
    gateway_ipv4: str = f"{IPV4}1"
    gateway_ipv6: str = f"{IPV6}1"

    def netns(self, prefix: str) -> str:
        """Name of its network namespace."""
        return f"{prefix}{self.name}"


@dataclass(frozen=True, slots=True)
class Service:
    """One service and its virtual addresses."""

    name: str
    namespace: str
    uid: str
    ipv4: str
    ipv6: str
    port: int
    target_port: int


def plan(tag: str, workloads: Sequence[Workload], node: str) -> tuple[list[Pod], list[Service]]:
    """Give names and addresses to everything; the same for the same tag and workloads."""
    pods: list[Pod] = []
    services: list[Service] = []
    for workload in workloads:
        place = f"{workload.namespace}/{workload.name}"
        template = hashlib.sha256(f"{tag}/{place}".encode()).hexdigest()[:10]
        for replica in range(workload.replicas):
            host = FIRST_HOST + len(pods)
            suffix = hashlib.sha256(f"{tag}/{place}/{replica}".encode()).hexdigest()
            pods.append(
                Pod(
                    name=f"{workload.name}-{template}-{suffix[:5]}",
                    workload=workload,
                    replica_set=f"{workload.name}-{template}",
                    uid=_uid(f"{tag}/pod/{place}/{replica}"),
                    container_id=suffix,
                    ipv4=f"{IPV4}{host}",
                    ipv6=f"{IPV6}{host:x}",
                    node=node,
                )
            )
        if workload.port:
            host = FIRST_HOST + len(services)
            services.append(
                Service(
                    name=workload.name,
                    namespace=workload.namespace,
                    uid=_uid(f"{tag}/service/{place}"),
                    ipv4=f"{SERVICE_IPV4}{host}",
                    ipv6=f"{SERVICE_IPV6}{host:x}",
                    port=workload.port,
                    target_port=workload.target_port or workload.port,
                )
            )
    return pods, services


def kube_list(pods: Sequence[Pod], services: Sequence[Service], node: str) -> dict[str, Any]:
    """Return what ``kubectl get pods,services,endpointslices,nodes -A -o json`` would print."""
    items: list[dict[str, Any]] = [_pod(pod) for pod in pods]
    items += [_service(service) for service in services]
    for service in services:
        backends = [pod for pod in pods if pod.workload.name == service.name]
        items += [_slice(service, backends, version) for version in ("IPv4", "IPv6")]
    items.append(_node(node))
    return {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}


def _uid(text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"podwire/{text}"))


def _metadata(name: str, uid: str, namespace: str = "", **more: Any) -> dict[str, Any]:
    place = {"namespace": namespace} if namespace else {}
    return {
        "name": name,
        **place,
        "uid": uid,
        "resourceVersion": "1",
        "creationTimestamp": CREATED,
        **more,
    }


def _pod(pod: Pod) -> dict[str, Any]:
    workload = pod.workload
    ports = [{"containerPort": workload.target_port, "protocol": "TCP"}] if workload.port else []
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": pod.replica_set,
        "uid": _uid(f"replicaset/{pod.replica_set}"),
        "controller": True,
    }
    labels = {"app": workload.name, "pod-template-hash": pod.replica_set.rpartition("-")[2]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(
            pod.name, pod.uid, workload.namespace, labels=labels, ownerReferences=[owner]
        ),
        "spec": {
            "nodeName": pod.node,
            "containers": [
                {"name": workload.container, "image": "demo", "ports": ports},
            ],
        },
        "status": {
            "phase": "Running",
            "hostIP": NODE_ADDRESS,
            "hostIPs": [{"ip": NODE_ADDRESS}],
            "podIP": pod.ipv4,
            "podIPs": [{"ip": pod.ipv4}, {"ip": pod.ipv6}],
            "startTime": CREATED,
            "containerStatuses": [
                {
                    "name": workload.container,
                    "containerID": f"containerd://{pod.container_id}",
                    "ready": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": CREATED}},
                }
            ],
        },
    }


def _service(service: Service) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(service.name, service.uid, service.namespace),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": service.ipv4,
            "clusterIPs": [service.ipv4, service.ipv6],
            "ipFamilies": ["IPv4", "IPv6"],
            "selector": {"app": service.name},
            "ports": [
                {
                    "name": "main",
                    "protocol": "TCP",
                    "port": service.port,
                    "targetPort": service.target_port,
                }
            ],
        },
        "status": {"loadBalancer": {}},
    }


def _slice(service: Service, backends: Sequence[Pod], version: str) -> dict[str, Any]:
    name = f"{service.name}-{version.lower()}"
    owner = {
        "apiVersion": "v1",
        "kind": "Service",
        "name": service.name,
        "uid": service.uid,
        "controller": True,
    }
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _metadata(
            name,
            _uid(f"slice/{service.uid}/{version}"),
            service.namespace,
            labels={"kubernetes.io/service-name": service.name},
            ownerReferences=[owner],
        ),
        "addressType": version,
        "ports": [{"name": "main", "protocol": "TCP", "port": service.target_port}],
        "endpoints": [
            {
                "addresses": [pod.ipv4 if version == "IPv4" else pod.ipv6],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": pod.node,
                "targetRef": {
                    "kind": "Pod",
                    "namespace": pod.workload.namespace,
                    "name": pod.name,
                    "uid": pod.uid,
                },
            }
            for pod in backends
        ],
    }


def _node(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": _metadata(name, _uid(f"node/{name}")),
        "spec": {"podCIDR": f"{IPV4}0/24", "podCIDRs": [f"{IPV4}0/24", f"{IPV6}/64"]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": NODE_ADDRESS},
                {"type": "Hostname", "address": name},
            ],
            "nodeInfo": {"machineID": "", "bootID": "", "osImage": "podwire demo"},
        },
    }
