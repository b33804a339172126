"""The name of one end of a connection, by the rules of the pipeline; see `streams.resolver`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from schemas.errors import ConfigError
from streams.addresses import format_address, is_loopback, pack_address, pack_network
from streams.holders import ALWAYS
from streams.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from schemas.kubernetes import Pod, Service
    from streams.directory import Directory
    from streams.holders import Span
    from streams.identity import IdentityKind

__all__ = ["OTHER_EXTERNAL", "Naming", "NamingSettings"]

OTHER_EXTERNAL = "other-external"
"""Stands for every address beyond the limit of names."""

_PROXY_LABEL = ("app", "ztunnel")
"""Of the pods of Istio's proxy for all of a node."""
_HOUR_MS = 3_600_000
_REMEMBERED_HOURS = 8
_INTERNED_LIMIT = 500_000
_NO_LABELS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class NamingSettings:
    """What the configuration says about names.

    Attributes:
        process_services: Processes outside pods are services of their own, not of their node.
        external_names: Distinct outside addresses named per hour of event time.
    """

    process_services: bool = False
    external_names: int = 10_000
    cidr_names: dict[str, str] = field(default_factory=dict)


class Naming:
    """Answers for single ends. Asked again, it answers with the same object where it can."""

    def __init__(self, directory: Directory, settings: NamingSettings) -> None:
        self._directory = directory
        self._settings = settings
        self._ranges: list[tuple[int, int, str]] = []
        for text, name in settings.cidr_names.items():
            network = pack_network(text)
            if network is None:
                raise ConfigError("streams.cidr_names", f"{text!r} is no address range")
            self._ranges.append((*network, name))
        self._ranges.sort(key=lambda item: -item[1])  # the narrowest range wins
        self._external: dict[int, set[bytes]] = {}
        self._generation = -1
        self._pods: dict[tuple[str, str], Identity] = {}
        self._interned: dict[tuple[object, ...], Identity] = {}

    def local(
        self, cluster: str, node: str, container: str, process: str, address: bytes, time_ms: int
    ) -> tuple[Identity, Span, str | bytes]:
        """Return who a local end is, for how long that holds, and what might still name it."""
        pod = self._directory.pod_of_container(container) if container else None
        if pod is not None and not _serves_others(pod, address):
            return self._pod(cluster, pod), ALWAYS, b""
        if pod is not None:
            found, span = self._directory.pods_at(address, time_ms)
            if len(found) > 1:
                return self._process(node, process, "contested_address"), span, b""
            is_awaited = not found and self._directory.is_pod_address(address)
            return self._pod(cluster, [*found, pod][0]), span, address if is_awaited else b""
        awaited = container if container and self._directory.has_pods else b""
        unresolved = "unknown_container" if awaited else ""
        span = ALWAYS
        if not is_loopback(address):
            found, span = self._directory.pods_at(address, time_ms)
            pods = _without(found, container)
            if len(pods) == 1:
                return self._pod(cluster, pods[0]), span, awaited
            if pods:
                unresolved = "contested_address"
        return self._process(node, process, unresolved), span, awaited

    def remote(
        self, cluster: str, address: bytes, port: int, time_ms: int, container: str = ""
    ) -> tuple[Identity, Span, str | bytes]:
        """Return who a remote end is, for how long that holds, and what might still name it.

        Args:
            cluster: Goes before names.
            address: Who is really at the other end.
            port: 0 unless the remote end is the server.
            time_ms: When.
            container: That of the other end where it is known, on the same node.
        """
        pod = self._directory.pod_of_container(container) if container else None
        if pod is not None and not _serves_others(pod, address):
            return self._pod(cluster, pod), ALWAYS, b""
        if pod is not None:
            container = ""
        awaited: str | bytes = container if container and self._directory.has_pods else b""
        found, span = self._directory.pods_at(address, time_ms)
        if pods := _without(found, container):
            return self._any_of(cluster, pods, address), span, awaited
        if port:
            found, held = self._directory.host_pods_at(address, port, time_ms)
            span = _overlap(span, held)
            if pods := _without(found, container):
                return self._any_of(cluster, pods, address), span, awaited
        service, held = self._directory.service_at(address, port, time_ms)
        span = _overlap(span, held)
        if service is None and port:
            service, held = self._directory.node_port_at(address, port, time_ms)
            span = _overlap(span, held)
        if service is not None:
            return self._service(cluster, service), span, awaited
        node = self._directory.node_at(address)
        if node is not None:
            end = self._intern(
                "node", node.name, node.name, node=node.name, unresolved="node_address"
            )
            return end, span, awaited
        unresolved = "unknown_container" if awaited else "outside"
        if not awaited and self._directory.is_pod_address(address):
            unresolved, awaited = "unknown_pod", address
        identity, held = self._address(address, time_ms, unresolved)
        return identity, _overlap(span, held), awaited

    def _any_of(self, cluster: str, pods: Sequence[Pod], address: bytes) -> Identity:
        # Of several pods, what is true of all of them.
        if len(pods) == 1:
            return self._pod(cluster, pods[0])
        ends = [self._pod(cluster, pod) for pod in pods]
        if len({end.service for end in ends}) > 1:
            text = format_address(address)
            return self._intern("address", text, text, unresolved="contested_address")
        labels = set.intersection(*(set(end.labels) for end in ends))
        return self._intern(
            "service",
            ends[0].service,
            "",
            namespace=ends[0].namespace,
            workload=_common(end.workload for end in ends),
            node=_common(end.node for end in ends),
            unresolved="contested_address",
            labels=dict(labels),
        )

    def _pod(self, cluster: str, pod: Pod) -> Identity:
        if self._generation != self._directory.generation:
            self._generation = self._directory.generation
            self._pods.clear()
        identity = self._pods.get((cluster, pod.uid))
        if identity is None:
            name = self._directory.service_of(pod) or pod.workload_name or pod.name
            identity = self._pods[cluster, pod.uid] = self._intern(
                "pod",
                _service_name(cluster, name, pod.namespace),
                pod.name,
                namespace=pod.namespace,
                workload=pod.workload_name,
                node=pod.node,
                pod_uid=pod.uid,
                shares_host=pod.host_network,
                labels=pod.labels,
            )
        return identity

    def _service(self, cluster: str, service: Service) -> Identity:
        name = _service_name(cluster, service.name, service.namespace)
        return self._intern(
            "service",
            name,
            "",
            namespace=service.namespace,
            unresolved="service_address",
            labels=service.selector,
        )

    def _process(self, node: str, process: str, unresolved: str) -> Identity:
        if self._settings.process_services and process:
            service, instance = process, node
        else:
            service, instance = node, process or node
        return self._intern(
            "process", service, instance, node=node, shares_host=True, unresolved=unresolved
        )

    def _address(self, address: bytes, time_ms: int, unresolved: str) -> tuple[Identity, Span]:
        if is_loopback(address):
            text = format_address(address)
            return self._intern("loopback", text, text, unresolved="loopback"), ALWAYS
        hour = time_ms // _HOUR_MS
        named = self._external.get(hour)
        if named is None:
            # The one met longest ago goes, not the earliest: a skewed clock may be years ahead.
            if len(self._external) == _REMEMBERED_HOURS:
                del self._external[next(iter(self._external))]
            named = self._external[hour] = set()
        span = (hour * _HOUR_MS, (hour + 1) * _HOUR_MS)
        text = format_address(address)
        if address not in named:
            if len(named) < self._settings.external_names:
                named.add(address)
            else:
                text, unresolved = OTHER_EXTERNAL, "too_many_outside"
        number = int.from_bytes(address, "big")
        for network, mask, name in self._ranges:
            if number & mask == network:
                return self._intern("address", name, text, unresolved="named_range"), span
        return self._intern("address", text, text, unresolved=unresolved), span

    def _intern(
        self,
        kind: IdentityKind,
        service: str,
        instance: str,
        *,
        namespace: str = "",
        workload: str = "",
        node: str = "",
        pod_uid: str = "",
        shares_host: bool = False,
        unresolved: str = "",
        labels: Mapping[str, str] = _NO_LABELS,
    ) -> Identity:
        # The same object for the same answer, across changes of the directory.
        fields = (
            *(kind, service, instance, namespace, workload, node, pod_uid, shares_host),
            *(unresolved, tuple(sorted(labels.items()))),
        )
        identity = self._interned.get(fields)
        if identity is None:
            if len(self._interned) > _INTERNED_LIMIT:
                self._interned.clear()
            identity = self._interned[fields] = Identity(*fields)
        return identity


def _serves_others(pod: Pod, address: bytes) -> bool:
    # Whether what the pod has with this address is another one's: the proxy of an ambient mesh has
    # sockets in the namespaces of the pods on its node, with the addresses of these.
    if _PROXY_LABEL not in pod.labels.items() or is_loopback(address):
        return False
    return address not in map(pack_address, pod.pod_ips)


def _without(pods: Sequence[Pod], container: str) -> Sequence[Pod]:
    # A container that is none of the pod's may be the next pod's with the address: better none.
    if not container:
        return pods
    return [pod for pod in pods if not any(each.id for each in pod.containers)]


def _common(texts: Iterable[str]) -> str:
    found = set(texts)
    return found.pop() if len(found) == 1 else ""


def _service_name(cluster: str, name: str, namespace: str) -> str:
    prefix = f"{cluster}::" if cluster else ""
    return f"{prefix}{name}.{namespace}"


def _overlap(one: Span, other: Span) -> Span:
    return max(one[0], other[0]), min(one[1], other[1])
