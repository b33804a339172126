"""Kubernetes objects as the pipeline keeps them; see ``schemas/pb/kubernetes.proto``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError as ProtobufDecodeError

from schemas.errors import DecodeError
from schemas.pb import kubernetes_pb2 as wire
from schemas.topics import ENDPOINTSLICES, NODES, PODS, SERVICES

__all__ = [
    "Container",
    "Endpoint",
    "EndpointSlice",
    "KubernetesObject",
    "Node",
    "Pod",
    "Service",
    "ServicePort",
    "decode_object",
    "encode_object",
]


@dataclass(slots=True)
class Container:
    """One container of a pod; ``id`` without the runtime's scheme."""

    name: str = ""
    id: str = ""
    kind: str = "container"
    ports: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Pod:
    """A pod, alive or (with ``deleted_ms``) gone.

    It had no address before ``accepted_ms`` and had it by ``running_ms``; 0 is not known.
    """

    uid: str = ""
    namespace: str = ""
    name: str = ""
    node: str = ""
    host_network: bool = False
    pod_ips: list[str] = field(default_factory=list)
    host_ips: list[str] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    workload_kind: str = ""
    workload_name: str = ""
    phase: str = ""
    created_ms: int = 0
    deleted_ms: int = 0
    accepted_ms: int = 0
    running_ms: int = 0


@dataclass(slots=True)
class ServicePort:
    """One port of a service."""

    name: str = ""
    protocol: str = "TCP"
    port: int = 0
    node_port: int = 0


@dataclass(slots=True)
class Service:
    """A service and the virtual addresses that lead to it."""

    uid: str = ""
    namespace: str = ""
    name: str = ""
    type: str = "ClusterIP"
    cluster_ips: list[str] = field(default_factory=list)
    external_ips: list[str] = field(default_factory=list)
    load_balancer_ips: list[str] = field(default_factory=list)
    ports: list[ServicePort] = field(default_factory=list)
    selector: dict[str, str] = field(default_factory=dict)
    created_ms: int = 0
    deleted_ms: int = 0


@dataclass(slots=True)
class Endpoint:
    """One backend of a service."""

    addresses: list[str] = field(default_factory=list)
    pod_uid: str = ""
    pod_name: str = ""
    node: str = ""
    ready: bool = True


@dataclass(slots=True)
class EndpointSlice:
    """Backends of one service."""

    uid: str = ""
    namespace: str = ""
    name: str = ""
    service: str = ""
    address_type: str = "IPv4"
    endpoints: list[Endpoint] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    created_ms: int = 0
    deleted_ms: int = 0


@dataclass(slots=True)
class Node:
    """A node and its addresses."""

    uid: str = ""
    name: str = ""
    addresses: list[str] = field(default_factory=list)
    pod_cidrs: list[str] = field(default_factory=list)
    created_ms: int = 0
    deleted_ms: int = 0


KubernetesObject: TypeAlias = Pod | Service | EndpointSlice | Node

_NESTED: dict[type[Any], dict[str, type[Any]]] = {
    Pod: {"containers": Container},
    Service: {"ports": ServicePort},
    EndpointSlice: {"endpoints": Endpoint},
}
_MESSAGES: dict[type[Any], type[Any]] = {
    Pod: wire.Pod,
    Container: wire.Container,
    Service: wire.Service,
    ServicePort: wire.ServicePort,
    EndpointSlice: wire.EndpointSlice,
    Endpoint: wire.Endpoint,
    Node: wire.Node,
}
_KINDS: dict[str, type[Any]] = {
    PODS.name: Pod,
    SERVICES.name: Service,
    ENDPOINTSLICES.name: EndpointSlice,
    NODES.name: Node,
}


def encode_object(record: KubernetesObject) -> bytes:
    """Return the value of a ``podwire.k8s.*`` message; equal records give equal bytes."""
    data: bytes = _to_message(record).SerializeToString(deterministic=True)
    return data


def decode_object(topic: str, data: bytes) -> KubernetesObject:
    """Read a value of the given ``podwire.k8s.*`` topic.

    Raises:
        DecodeError: If the bytes are no object of that topic, or have no uid.
    """
    kind = _KINDS[topic]
    try:
        message = _MESSAGES[kind].FromString(data)
    except (ProtobufDecodeError, TypeError) as error:
        raise DecodeError(f"no {kind.__name__}: {error}") from error
    record: KubernetesObject = _from_message(kind, message)
    if not record.uid:
        raise DecodeError(f"{kind.__name__} without uid")
    return record


def _to_message(record: Any) -> Any:
    kind = type(record)
    nested = _NESTED.get(kind, {})
    values = {
        item.name: [_to_message(inner) for inner in getattr(record, item.name)]
        if item.name in nested
        else getattr(record, item.name)
        for item in fields(kind)
    }
    return _MESSAGES[kind](**values)


def _from_message(kind: type[Any], message: Any) -> Any:
    nested = _NESTED.get(kind, {})
    values: dict[str, Any] = {}
    for item in fields(kind):
        value = getattr(message, item.name)
        if item.name in nested:
            value = [_from_message(nested[item.name], inner) for inner in value]
        elif item.name in ("labels", "selector"):
            value = dict(value)
        elif not isinstance(value, str | int | bool):
            value = list(value)
        values[item.name] = value
    return kind(**values)
