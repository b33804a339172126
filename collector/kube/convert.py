"""Kubernetes JSON to the records of the metadata topics; pure, and never raises.

Documents come from an API server or from a file that anybody may have edited. A field of the wrong
shape counts as absent and is noted; only an object without uid or name is skipped.

A pod whose phase is final (Succeeded, Failed) is gone from the network, although its object, its
IP included, may stay for days while the IP already belongs to another pod. Its record says so by
``deleted_ms``, the end of its last container.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from collector.kube.fields import Fields, ip_address
from collector.kube.workload import Owner, Workload, controller_of, workload_by_name
from schemas.kubernetes import (
    Container,
    Endpoint,
    EndpointSlice,
    KubernetesObject,
    Node,
    Pod,
    Service,
    ServicePort,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KINDS", "OWNER_KINDS", "Converted", "convert", "kind_of"]

KINDS: Final = ("pods", "services", "endpointslices", "nodes")
"""Kinds that are published, in order of `schemas.topics.KUBERNETES`."""

OWNER_KINDS: Final = ("replicasets", "jobs")
"""Kinds that are read only to learn the workloads of pods."""

_BY_NAME: Final = {
    "Pod": "pods",
    "Service": "services",
    "EndpointSlice": "endpointslices",
    "Node": "nodes",
    "ReplicaSet": "replicasets",
    "Job": "jobs",
}
_FINAL_PHASES: Final = frozenset({"Succeeded", "Failed"})
_SECOND_MS: Final = 1000
_CONTAINER_FIELDS: Final = (
    ("containers", "containerStatuses", "container"),
    ("initContainers", "initContainerStatuses", "init"),
    ("ephemeralContainers", "ephemeralContainerStatuses", "ephemeral"),
)


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of one document.

    `record` is set for the published kinds and `workload` for the owner kinds; neither is set if
    the object had to be skipped. `owner` is a pod's controller if that may have an owner itself.
    """

    uid: str
    record: KubernetesObject | None = None
    owner: Owner | None = None
    workload: Workload | None = None
    problems: tuple[str, ...] = ()

    @property
    def is_skipped(self) -> bool:
        """Whether the document was no usable object."""
        return self.record is None and self.workload is None


def kind_of(document: object) -> str:
    """Our name for the kind a document says it is; empty for kinds that nobody needs."""
    kind = document.get("kind") if isinstance(document, dict) else None
    return _BY_NAME.get(kind, "") if isinstance(kind, str) else ""


def convert(kind: str, document: object) -> Converted:
    """Read one object.

    Args:
        kind: One of `KINDS` or `OWNER_KINDS`; items of an API server's list do not say their own.
        document: Whatever the JSON parser returned.
    """
    problems: list[str] = []
    top = Fields(document, problems)
    metadata = top.child("metadata")
    uid, name = metadata.text("uid"), metadata.text("name")
    if not uid or not name:
        return Converted("", problems=(*problems, "no uid or no name"))
    record: KubernetesObject | None = None
    owner: Owner | None = None
    workload: Workload | None = None
    if kind in OWNER_KINDS:
        owner = _controller(metadata)
        own_kind = "ReplicaSet" if kind == "replicasets" else "Job"
        workload = Workload(owner.kind, owner.name) if owner else Workload(own_kind, name)
    elif kind == "pods":
        record, owner = _pod(top, metadata)
    else:
        record = _READERS[kind](top, metadata)
    return Converted(uid, record, owner, workload, tuple(problems))


def _pod(top: Fields, metadata: Fields) -> tuple[Pod, Owner | None]:
    spec, status = top.child("spec"), top.child("status")
    containers, running_ms = _containers(spec, status)
    labels = metadata.labels("labels")
    created_ms = metadata.time_ms("creationTimestamp")
    owner = _controller(metadata)
    name, node = metadata.text("name"), spec.text("nodeName")
    workload = workload_by_name(owner, name, node, labels, created_ms)
    phase = status.text("phase")
    pod = Pod(
        uid=metadata.text("uid"),
        namespace=metadata.text("namespace"),
        name=name,
        node=node,
        host_network=spec.flag("hostNetwork"),
        pod_ips=_address_list(status, "podIPs", "podIP"),
        host_ips=_address_list(status, "hostIPs", "hostIP"),
        containers=containers,
        labels=labels,
        workload_kind=workload.kind,
        workload_name=workload.name,
        phase=phase,
        created_ms=created_ms,
        deleted_ms=_ended_ms(metadata, status) if phase in _FINAL_PHASES else 0,
        accepted_ms=status.time_ms("startTime"),
        running_ms=running_ms,
    )
    return pod, owner if owner and owner.is_intermediate else None


def _containers(spec: Fields, status: Fields) -> tuple[list[Container], int]:
    # With the end of the second in which the first of those that run began; 0 if none does.
    found: list[Container] = []
    starts: list[int] = []
    for spec_key, status_key, kind in _CONTAINER_FIELDS:
        ids: dict[str, list[str]] = {}
        for item in status.children(status_key):
            # Events of the instance before a restart may still be on their way.
            last = item.child("lastState").child("terminated").text("containerID")
            ids[item.text("name")] = [_bare(item.text("containerID")), _bare(last)]
            # What ended may have been in an earlier sandbox, with another address.
            starts.append(item.child("state").child("running").time_ms("startedAt"))
        for item in spec.children(spec_key):
            name = item.text("name")
            ports = [
                port.port("containerPort")
                for port in item.children("ports")
                if port.text("protocol") in ("", "TCP")
            ]
            ports = sorted({port for port in ports if port})
            current, *earlier = ids.pop(name, ["", ""])
            found.append(Container(name, current, kind, ports))
            found.extend(Container(name, id_, kind, ports) for id_ in earlier if id_)
        # Statuses without a spec: the spec was unreadable, but the ids still resolve.
        found.extend(Container(name, id_, kind) for name in ids for id_ in ids[name] if id_)
    start = min(filter(None, starts), default=-_SECOND_MS)
    return found, start + _SECOND_MS


def _bare(container_id: str) -> str:
    return container_id.rpartition("://")[2]


def _address_list(status: Fields, plural: str, singular: str) -> list[str]:
    # Dual-stack form first; older servers have only the other one.
    found = [item.text("ip") for item in status.children(plural)]
    return status.unique_addresses(found or [status.text(singular)], plural)


def _ended_ms(metadata: Fields, status: Fields) -> int:
    # The API writes whole seconds: the container ended at some time within that second.
    ends = [
        item.child("state").child("terminated").time_ms("finishedAt") + _SECOND_MS - 1
        for _, key, _ in _CONTAINER_FIELDS
        for item in status.children(key)
    ]
    end = max(ends, default=0)
    if end >= _SECOND_MS:
        return end
    # Evicted or never started: the last thing that happened to it.
    moments = [item.time_ms("lastTransitionTime") for item in status.children("conditions")]
    moments.append(status.time_ms("startTime"))
    moments.append(metadata.time_ms("creationTimestamp"))
    return max(moments) or 1


def _controller(metadata: Fields) -> Owner | None:
    return controller_of(
        [
            (Owner(item.text("kind"), item.text("name"), item.text("uid")), item.flag("controller"))
            for item in metadata.children("ownerReferences")
        ]
    )


def _service(top: Fields, metadata: Fields) -> Service:
    spec = top.child("spec")
    cluster_ips = spec.texts("clusterIPs") or [spec.text("clusterIP")]
    ingress = top.child("status").child("loadBalancer").children("ingress")
    return Service(
        uid=metadata.text("uid"),
        namespace=metadata.text("namespace"),
        name=metadata.text("name"),
        type=spec.text("type") or "ClusterIP",
        # A headless service says "None" where others have an address.
        cluster_ips=spec.unique_addresses([ip for ip in cluster_ips if ip != "None"], "clusterIPs"),
        external_ips=spec.addresses("externalIPs"),
        load_balancer_ips=spec.unique_addresses([item.text("ip") for item in ingress], "ingress"),
        ports=[
            ServicePort(
                name=port.text("name"),
                protocol=port.text("protocol") or "TCP",
                port=port.port("port"),
                node_port=port.port("nodePort"),
            )
            for port in spec.children("ports")
        ],
        selector=spec.labels("selector"),
        created_ms=metadata.time_ms("creationTimestamp"),
    )


def _endpoint_slice(top: Fields, metadata: Fields) -> EndpointSlice:
    endpoints = []
    for item in top.children("endpoints"):
        target = item.child("targetRef")
        is_pod = target.text("kind") == "Pod"
        endpoints.append(
            Endpoint(
                # Host names (address type FQDN) stay as they are.
                addresses=[ip_address(text) or text for text in item.texts("addresses")],
                pod_uid=target.text("uid") if is_pod else "",
                pod_name=target.text("name") if is_pod else "",
                node=item.text("nodeName"),
                ready=item.child("conditions").flag("ready", default=True),
            )
        )
    ports = [
        port.port("port") for port in top.children("ports") if port.text("protocol") in ("", "TCP")
    ]
    return EndpointSlice(
        uid=metadata.text("uid"),
        namespace=metadata.text("namespace"),
        name=metadata.text("name"),
        service=metadata.labels("labels").get("kubernetes.io/service-name", ""),
        address_type=top.text("addressType") or "IPv4",
        endpoints=endpoints,
        ports=sorted({port for port in ports if port}),
        created_ms=metadata.time_ms("creationTimestamp"),
    )


def _node(top: Fields, metadata: Fields) -> Node:
    spec, status = top.child("spec"), top.child("status")
    addresses = [
        item.text("address")
        for item in status.children("addresses")
        if item.text("type") in ("InternalIP", "ExternalIP")
    ]
    return Node(
        uid=metadata.text("uid"),
        name=metadata.text("name"),
        addresses=status.unique_addresses(addresses, "addresses"),
        pod_cidrs=spec.texts("podCIDRs") or [cidr for cidr in [spec.text("podCIDR")] if cidr],
        created_ms=metadata.time_ms("creationTimestamp"),
    )


_READERS: Final[dict[str, Callable[[Fields, Fields], KubernetesObject]]] = {
    "services": _service,
    "endpointslices": _endpoint_slice,
    "nodes": _node,
}
