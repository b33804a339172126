"""Kubernetes objects as a server or kubectl writes them; every field can be overridden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

CLUSTER_FILE: Final = Path(__file__).parent / "data" / "cluster.json"


def cluster() -> dict[str, Any]:
    """What kubectl printed for a small cluster."""
    content: dict[str, Any] = json.loads(CLUSTER_FILE.read_text())
    return content


def item(kind: str, name: str) -> dict[str, Any]:
    """One object of `cluster`."""
    for document in cluster()["items"]:
        if document["kind"] == kind and document["metadata"]["name"] == name:
            found: dict[str, Any] = document
            return found
    raise KeyError(name)


def pod(
    uid: str,
    ip: str = "10.0.0.1",
    *,
    namespace: str = "shop",
    owner: tuple[str, str, str] | None = None,
    labels: dict[str, str] | None = None,
    phase: str = "Running",
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "uid": uid,
        "name": f"pod-{uid}",
        "namespace": namespace,
        "creationTimestamp": "2024-05-01T10:00:00Z",
        "labels": labels or {"app": "web"},
    }
    if owner is not None:
        kind, name, owner_uid = owner
        metadata["ownerReferences"] = [
            {"kind": kind, "name": name, "uid": owner_uid, "controller": True}
        ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": "node-a", "containers": [{"name": "main"}]},
        "status": {
            "phase": phase,
            "podIPs": [{"ip": ip}],
            "hostIPs": [{"ip": "192.168.1.10"}],
            "containerStatuses": [{"name": "main", "containerID": f"containerd://c-{uid}"}],
        },
    }


def service(uid: str, ip: str = "10.96.0.1", *, namespace: str = "shop") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"uid": uid, "name": f"service-{uid}", "namespace": namespace},
        "spec": {"clusterIPs": [ip], "ports": [{"port": 80}], "selector": {"app": "web"}},
    }


def endpoint_slice(uid: str, *, namespace: str = "shop") -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"uid": uid, "name": f"slice-{uid}", "namespace": namespace},
        "addressType": "IPv4",
        "endpoints": None,
        "ports": None,
    }


def node(uid: str, ip: str = "192.168.1.10") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"uid": uid, "name": f"node-{uid}"},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
    }


def replica_set(uid: str, name: str, deployment: str = "") -> dict[str, Any]:
    metadata: dict[str, Any] = {"uid": uid, "name": name, "namespace": "shop"}
    if deployment:
        metadata["ownerReferences"] = [
            {"kind": "Deployment", "name": deployment, "uid": f"d-{uid}", "controller": True}
        ]
    return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata}


def kubectl_list(*items: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "items": list(items), "kind": "List", "metadata": {}}
