"""The Kubernetes objects known now, indexed for the resolver.

Pure: records go in one by one, questions come with an event time. Pod addresses are reused, so an
address leads to the pods that may have held it, see `streams.holders`. Every change moves
`generation`, which tells caches of answers that they are stale.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from schemas.kubernetes import EndpointSlice, KubernetesObject, Node, Pod, Service
from streams.addresses import pack_address, pack_network
from streams.holders import ALWAYS, Holders

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streams.holders import Span

__all__ = ["Directory"]

_KINDS = (Pod, Service, EndpointSlice, Node)

K = TypeVar("K")


@dataclass(slots=True)
class _Keys:
    """Where a record was indexed, to take it out again."""

    addresses: list[bytes] = field(default_factory=list)
    ports: list[tuple[bytes, int]] = field(default_factory=list)
    node_ports: list[int] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)


class Directory:
    """Pods, services, EndpointSlices and nodes.

    Args:
        tolerance_ms: How long an address still means a pod that is gone, and how much earlier than
            its creation (clocks differ), unless another pod may hold it then; see `Holders`.
    """

    def __init__(self, tolerance_ms: int = 30_000) -> None:
        self._tolerance_ms = tolerance_ms
        self.generation = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.generation += 1
        self._records: dict[str, KubernetesObject] = {}
        self._counts: Counter[type[KubernetesObject]] = Counter()
        self._keys: dict[str, _Keys] = {}
        self._pods_by_container: dict[str, str] = {}
        self._pods_by_address: dict[bytes, set[str]] = {}
        self._pods_by_host_port: dict[tuple[bytes, int], set[str]] = {}
        self._known_holders: dict[object, Holders] = {}
        self._services_by_cluster_ip: dict[bytes, set[str]] = {}
        self._services_by_external_port: dict[tuple[bytes, int], set[str]] = {}
        self._services_by_node_port: dict[int, set[str]] = {}
        self._services_by_name: dict[tuple[str, str], str] = {}
        self._services_by_namespace: dict[str, set[str]] = {}
        self._nodes_by_address: dict[bytes, set[str]] = {}
        self._slices_by_service: dict[tuple[str, str], set[str]] = {}
        self._slices_by_pod: dict[tuple[str, str], set[str]] = {}
        # Networks by mask: a cluster has thousands of ranges, but of one or two sizes.
        self._pod_ranges: dict[int, Counter[int]] = {}
        self._last_service: dict[str, str] = {}

    # Changes

    def apply(self, record: KubernetesObject) -> None:
        """Add a record or replace the one with its uid."""
        current = self._records.get(record.uid)
        if current == record:
            return
        if current is not None:
            self._take_out(record.uid)
        self.generation += 1
        self._records[record.uid] = record
        self._counts[type(record)] += 1
        keys = self._keys[record.uid] = _Keys()
        if isinstance(record, Pod):
            self._index_pod(record, keys)
        elif isinstance(record, Service):
            self._index_service(record, keys)
        elif isinstance(record, EndpointSlice):
            self._index_slice(record)
        else:
            self._index_node(record, keys)

    def remove(self, uid: str) -> None:
        """Forget one record."""
        if uid in self._records:
            self.generation += 1
            self._take_out(uid)
            self._last_service.pop(uid, None)

    def counts(self) -> dict[str, int]:
        """Number of records of each kind."""
        return {kind.__name__.lower(): self._counts[kind] for kind in _KINDS}

    @property
    def has_pods(self) -> bool:
        """Whether any container of any pod is known: then an unknown one may be on its way."""
        return bool(self._pods_by_container)

    def _index_pod(self, pod: Pod, keys: _Keys) -> None:
        for container in pod.containers:
            if container.id:
                self._pods_by_container[container.id] = pod.uid
                keys.containers.append(container.id)
        if pod.host_network:
            hosts = [a for a in map(pack_address, (*pod.host_ips, *pod.pod_ips)) if a]
            for address in dict.fromkeys(hosts):
                for port in {port for c in pod.containers for port in c.ports}:
                    self._pods_by_host_port.setdefault((address, port), set()).add(pod.uid)
                    keys.ports.append((address, port))
        else:
            for address in filter(None, map(pack_address, pod.pod_ips)):
                self._pods_by_address.setdefault(address, set()).add(pod.uid)
                keys.addresses.append(address)
        self._forget_holders(keys)

    def _forget_holders(self, keys: _Keys) -> None:
        for key in (*keys.addresses, *keys.ports):
            self._known_holders.pop(key, None)

    def _index_service(self, service: Service, keys: _Keys) -> None:
        name = (service.namespace, service.name)
        current = self._records.get(self._services_by_name.get(name, ""))
        # A service made again under its old name wins over the tombstone of the old one.
        if not (isinstance(current, Service) and service.deleted_ms and not current.deleted_ms):
            self._services_by_name[name] = service.uid
        self._services_by_namespace.setdefault(service.namespace, set()).add(service.uid)
        for text in service.cluster_ips:
            if address := pack_address(text):
                self._services_by_cluster_ip.setdefault(address, set()).add(service.uid)
                keys.addresses.append(address)
        # Several services share an external address (often a node's), each with its own ports.
        for text in (*service.external_ips, *service.load_balancer_ips):
            if address := pack_address(text):
                for key in {(address, port.port) for port in service.ports}:
                    self._services_by_external_port.setdefault(key, set()).add(service.uid)
                    keys.ports.append(key)
        for node_port in {port.node_port for port in service.ports if port.node_port}:
            self._services_by_node_port.setdefault(node_port, set()).add(service.uid)
            keys.node_ports.append(node_port)

    def _index_slice(self, record: EndpointSlice) -> None:
        service = (record.namespace, record.service)
        self._slices_by_service.setdefault(service, set()).add(record.uid)
        for reference in _slice_references(record):
            self._slices_by_pod.setdefault(reference, set()).add(record.uid)

    def _index_node(self, node: Node, keys: _Keys) -> None:
        for text in node.addresses:
            if address := pack_address(text):
                self._nodes_by_address.setdefault(address, set()).add(node.uid)
                keys.addresses.append(address)
        for network, mask in filter(None, map(pack_network, node.pod_cidrs)):
            self._pod_ranges.setdefault(mask, Counter())[network] += 1

    def _take_out(self, uid: str) -> None:
        record = self._records.pop(uid)
        self._counts[type(record)] -= 1
        keys = self._keys.pop(uid)
        if isinstance(record, Pod):
            for container in keys.containers:
                if self._pods_by_container.get(container) == uid:
                    del self._pods_by_container[container]
            _discard_all(self._pods_by_address, keys.addresses, uid)
            _discard_all(self._pods_by_host_port, keys.ports, uid)
            self._forget_holders(keys)
        elif isinstance(record, Service):
            name = (record.namespace, record.name)
            if self._services_by_name.get(name) == uid:
                del self._services_by_name[name]
            _discard_all(self._services_by_namespace, [record.namespace], uid)
            _discard_all(self._services_by_cluster_ip, keys.addresses, uid)
            _discard_all(self._services_by_external_port, keys.ports, uid)
            _discard_all(self._services_by_node_port, keys.node_ports, uid)
        elif isinstance(record, EndpointSlice):
            _discard_all(self._slices_by_service, [(record.namespace, record.service)], uid)
            _discard_all(self._slices_by_pod, _slice_references(record), uid)
        else:
            _discard_all(self._nodes_by_address, keys.addresses, uid)
            for network, mask in filter(None, map(pack_network, record.pod_cidrs)):
                networks = self._pod_ranges[mask]
                networks[network] -= 1
                if not networks[network]:
                    del networks[network]
                if not networks:
                    del self._pod_ranges[mask]

    # Questions

    def pod_of_container(self, container_id: str) -> Pod | None:
        """The pod that runs, or ran, the container."""
        return self._pod(self._pods_by_container.get(container_id, ""))

    def container_name(self, container_id: str) -> str:
        """What the container's pod calls it; empty while no pod is known that runs, or ran, it."""
        pod = self.pod_of_container(container_id)
        if pod is None:
            return ""
        return next(each.name for each in pod.containers if each.id == container_id)

    def pods_at(self, address: bytes, time_ms: int) -> tuple[Sequence[Pod], Span]:
        """The pods that may have held the address at the time, never host-network pods.

        It was one of them. Several: what Kubernetes says of the hand-over leaves it open.
        """
        return self._holders(self._pods_by_address, address, time_ms)

    def host_pods_at(self, address: bytes, port: int, time_ms: int) -> tuple[Sequence[Pod], Span]:
        """The host-network pods that may have served the port on the node's address."""
        return self._holders(self._pods_by_host_port, (address, port), time_ms)

    def service_at(self, address: bytes, port: int, time_ms: int) -> tuple[Service | None, Span]:
        """The service with this cluster address, or this external address and port."""
        uids = self._services_by_cluster_ip.get(address)
        if uids is None:
            uids = self._services_by_external_port.get((address, port))
        return self._holder(uids, time_ms)

    def node_port_at(self, address: bytes, port: int, time_ms: int) -> tuple[Service | None, Span]:
        """The service behind a port of every node, if the address is a node's."""
        if address not in self._nodes_by_address:
            return None, ALWAYS
        return self._holder(self._services_by_node_port.get(port), time_ms)

    def node_at(self, address: bytes) -> Node | None:
        """The node with this address; one made again wins over the tombstone of the old one."""
        found = (self._records[uid] for uid in self._nodes_by_address.get(address, ()))
        nodes = [record for record in found if isinstance(record, Node)]
        return max(nodes, key=lambda n: (not n.deleted_ms, n.created_ms, n.uid), default=None)

    def is_pod_address(self, address: bytes) -> bool:
        """Whether the address lies in a node's pod range, known pod or not."""
        number = int.from_bytes(address, "big")
        return any(number & mask in networks for mask, networks in self._pod_ranges.items())

    def service_of(self, pod: Pod) -> str:
        """Name of the service the pod stands for: the shortest, then the first in ASCII order.

        EndpointSlices decide. Selectors decide for services without slices, and for pods that are
        gone and so have left their slices. A pod that is in no slice any more (it terminates)
        keeps the service it was last in. Empty: no service.
        """
        names = self._services_by_slices(pod) or self._services_by_selector(pod)
        if names:
            name = min(names, key=lambda name: (len(name), name))
            self._last_service[pod.uid] = name
            return name
        last = self._last_service.get(pod.uid, "")
        return last if (pod.namespace, last) in self._services_by_name else ""

    def _services_by_slices(self, pod: Pod) -> set[str]:
        slices = self._slices_by_pod.get(("", pod.uid), set()) | self._slices_by_pod.get(
            (pod.namespace, pod.name), set()
        )
        names = set()
        for uid in slices:
            record = self._records[uid]
            assert isinstance(record, EndpointSlice)
            # While any slice is alive, tombstones of replaced slices have no say.
            if record.service and (not record.deleted_ms or pod.deleted_ms):
                names.add(record.service)
        return names

    def _services_by_selector(self, pod: Pod) -> set[str]:
        names = set()
        for uid in self._services_by_namespace.get(pod.namespace, ()):
            service = self._records[uid]
            assert isinstance(service, Service)
            if not service.selector or (service.deleted_ms and not pod.deleted_ms):
                continue
            if not pod.deleted_ms and self._slices_by_service.get((pod.namespace, service.name)):
                continue
            if service.selector.items() <= pod.labels.items():
                names.add(service.name)
        return names

    def _pod(self, uid: str) -> Pod | None:
        record = self._records.get(uid)
        return record if isinstance(record, Pod) else None

    def _holders(
        self, index: dict[K, set[str]], key: K, time_ms: int
    ) -> tuple[Sequence[Pod], Span]:
        uids = index.get(key)
        if not uids:
            return (), ALWAYS
        holders = self._known_holders.get(key)
        if holders is None:
            pods = [pod for uid in uids if (pod := self._pod(uid)) is not None]
            holders = self._known_holders[key] = Holders(pods, self._tolerance_ms)
        return holders.at(time_ms)

    def _holder(self, uids: set[str] | None, time_ms: int) -> tuple[Service | None, Span]:
        # Which service held what they share at the time, and for how long that answer holds. One
        # that was made before its predecessor's end got it only at that end.
        if not uids:
            return None, ALWAYS
        found = (self._records[uid] for uid in uids)
        records = [record for record in found if isinstance(record, Service)]
        # Creations are told in whole seconds: of two in one, the one that is gone was first.
        records.sort(key=lambda it: (it.created_ms, it.deleted_ms or ALWAYS[1], it.uid))
        lower = ALWAYS[0]
        for place, record in enumerate(records):
            if place:
                start = max(record.created_ms, records[place - 1].deleted_ms)
            else:
                start = record.created_ms - self._tolerance_ms if record.created_ms else lower
            end = record.deleted_ms + self._tolerance_ms if record.deleted_ms else ALWAYS[1]
            if place + 1 < len(records):
                following = records[place + 1]
                end = min(end, max(following.created_ms, record.deleted_ms))
            if time_ms < start:
                return None, (lower, start)
            if time_ms < end:
                return record, (start, end)
            lower = end
        return None, (lower, ALWAYS[1])


def _slice_references(record: EndpointSlice) -> list[tuple[str, str]]:
    # Pods by uid where the slice says it, else by name.
    return [
        ("", endpoint.pod_uid) if endpoint.pod_uid else (record.namespace, endpoint.pod_name)
        for endpoint in record.endpoints
        if endpoint.pod_uid or endpoint.pod_name
    ]


def _discard_all(index: dict[K, set[str]], keys: Iterable[K], uid: str) -> None:
    for key in keys:
        members = index.get(key)
        if members is not None:
            members.discard(uid)
            if not members:
                del index[key]
