"""Event batches and Kubernetes objects, written down as a test thinks of them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.events import (
    FIGURE_WIDTH,
    READ_FIGURES,
    WRITE_FIGURES,
    BatchHeader,
    Closes,
    ConnectionFlag,
    Connections,
    Direction,
    Drops,
    EventBatch,
    OpenKind,
    Opens,
    RequestOutcome,
    Requests,
    Role,
    Transfers,
)
from schemas.kubernetes import Container, Endpoint, EndpointSlice, Node, Pod, Service, ServicePort

if TYPE_CHECKING:
    from schemas.ledger import Entry

MINUTE_S = 1_700_000_040
"""Start of a minute."""
MINUTE_NS = MINUTE_S * 1_000_000_000
SECOND_NS = 1_000_000_000
NO_FLAGS = ConnectionFlag(0)
UNMEASURED = int(UNMEASURED_U64)
UNMEASURED_FIGURE = int(UNMEASURED_U32)


def packed(text: str) -> np.ndarray:
    address = ipaddress.ip_address(text)
    data = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
    return np.frombuffer(data, np.uint8)


@dataclass
class BatchBuilder:
    """Collects rows and makes one batch of them."""

    node: str = "node-a"
    cluster: str = ""
    run_id: str = "run-1"
    sequence: int = 0
    watermark_ns: int = MINUTE_NS
    final: bool = False
    ledger: list[Entry] = field(default_factory=list)
    _connections: list[dict[str, Any]] = field(default_factory=list)
    _names: list[str] = field(default_factory=lambda: [""])
    _opens: list[tuple[int, ...]] = field(default_factory=list)
    _closes: list[tuple[int, ...]] = field(default_factory=list)
    _transfers: list[tuple[int | tuple[int, ...], ...]] = field(default_factory=list)
    _requests: list[dict[str, int]] = field(default_factory=list)
    _drops: list[tuple[int, ...]] = field(default_factory=list)
    _index: dict[str, int] = field(default_factory=dict)

    def connection(
        self,
        local: str,
        remote: str,
        role: Role = Role.CLIENT,
        *,
        container: str = "",
        process: str = "",
        netns: int = 1,
        translated: str = "",
        flags: ConnectionFlag = NO_FLAGS,
        server_name: str = "",
        tls_version: int = 0,
        unreadable: int = 0,
        opened: int = 0,
        remote_container: str = "",
    ) -> int:
        """Add a connection ``address:port`` to ``address:port``; return its row."""
        local_address, local_port = _split(local)
        remote_address, remote_port = _split(remote)
        translated_address, translated_port = _split(translated) if translated else ("::", 0)
        self._connections.append(
            {
                "id": len(self._connections) + 1,
                "family": 4 if "." in local_address else 6,
                "local_address": packed(local_address),
                "local_port": local_port,
                "remote_address": packed(remote_address),
                "remote_port": remote_port,
                "translated_address": packed(translated_address),
                "translated_port": translated_port,
                "role": int(role),
                "netns": netns,
                "cgroup_id": 1,
                "pid": 1,
                "container": self._name(container),
                "process": self._name(process),
                "flags": int(flags),
                "server_name": self._name(server_name),
                "tls_version": tls_version,
                "opened_ns": opened,
                "remote_container": self._name(remote_container),
                "unreadable": unreadable,
            }
        )
        return len(self._connections) - 1

    def open(
        self,
        connection: int,
        *,
        accept: bool = False,
        at: int = MINUTE_NS,
        duration: int = UNMEASURED,
        error: int = 0,
    ) -> BatchBuilder:
        kind = OpenKind.ACCEPT if accept else OpenKind.CONNECT
        self._opens.append((connection, int(kind), at, duration, error))
        return self

    def close(
        self, connection: int, *, at: int = MINUTE_NS, duration: int = UNMEASURED
    ) -> BatchBuilder:
        self._closes.append((connection, at, duration))
        return self

    def transfer(
        self,
        connection: int,
        size: int,
        *,
        write: bool = False,
        at: int = MINUTE_NS,
        duration: int = UNMEASURED,
        call: int = 1,
        **figures: int,
    ) -> BatchBuilder:
        direction = Direction.WRITE if write else Direction.READ
        row = [UNMEASURED_FIGURE] * FIGURE_WIDTH
        for name, value in figures.items():
            row[(WRITE_FIGURES if write else READ_FIGURES).index(name)] = value
        self._transfers.append((connection, int(direction), call, at, duration, size, tuple(row)))
        return self

    def request(
        self,
        connection: int,
        path: str = "/",
        *,
        method: str = "GET",
        host: str = "",
        outcome: RequestOutcome = RequestOutcome.ANSWERED,
        status: int = 200,
        grpc: int = UNMEASURED_FIGURE,
        at: int = MINUTE_NS,
        duration: int = 1000,
        sizes: tuple[int, int, int, int] = (UNMEASURED_FIGURE, UNMEASURED) * 2,
        trace_id: str = "",
    ) -> BatchBuilder:
        """Add a call; `sizes` are those of request header and body, response header and body."""
        self._requests.append(
            {
                "connection": connection,
                "version": 11,
                "outcome": int(outcome),
                "flags": 0,
                "method": self._name(method),
                "path": self._name(path),
                "host": self._name(host),
                "status": status,
                "grpc_status": grpc,
                "start_ns": max(at - duration, 0),
                "first_byte_ns": UNMEASURED,
                "end_ns": at,
                "request_header_size": sizes[0],
                "request_body_size": sizes[1],
                "response_header_size": sizes[2],
                "response_body_size": sizes[3],
                "trace_provider": 0,
                "trace_id": self._name(trace_id),
                "segment_id": 0,
                "span_id": 0,
                "endpoint": UNMEASURED_FIGURE,
            }
        )
        return self

    def drop(
        self, connection: int, packets: int, reason: str, *, at: int = MINUTE_NS
    ) -> BatchBuilder:
        self._drops.append((connection, at, self._name(reason), packets))
        return self

    def batch(self) -> EventBatch:
        times = [row[2] for row in self._opens] + [row[1] for row in self._closes]
        times += [row[3] for row in self._transfers]  # type: ignore[misc]
        times += [row["end_ns"] for row in self._requests]
        times += [row[1] for row in self._drops]
        return EventBatch(
            header=BatchHeader(
                cluster=self.cluster,
                node=self.node,
                run_id=self.run_id,
                sequence=self.sequence,
                first_event_ns=min(times, default=0),
                last_event_ns=max(times, default=0),
                watermark_ns=self.watermark_ns,
                final=self.final,
                ledger=list(self.ledger),
            ),
            connections=_table(Connections, [tuple(row.values()) for row in self._connections]),
            names=list(self._names),
            opens=_table(Opens, self._opens),
            closes=_table(Closes, self._closes),
            transfers=_table(Transfers, self._transfers),
            requests=_table(Requests, [tuple(row.values()) for row in self._requests]),
            drops=_table(Drops, self._drops),
        )

    def _name(self, text: str) -> int:
        if not text:
            return 0
        place = self._index.setdefault(text, len(self._names))
        if place == len(self._names):
            self._names.append(text)
        return place


def _table(kind: Any, rows: list[tuple[Any, ...]]) -> Any:
    columns = {}
    for place, (name, dtype, width) in enumerate(kind.specs()):
        values = [row[place] for row in rows]
        if width > 1:
            columns[name] = np.array(values, dtype).reshape(len(rows), width)
            if name == "figures" and (columns[name] == UNMEASURED_U32).all():
                del columns[name]  # as a collector that measures none of them leaves it out
        else:
            columns[name] = np.array(values, np.uint64).astype(dtype)
    return kind(**columns)


def _split(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)


def pod(name: str, *ips: str, **values: Any) -> Pod:
    """A pod in namespace ``shop`` whose container is ``c-<name>``."""
    values.setdefault("uid", f"uid-{name}")
    values.setdefault("namespace", "shop")
    values.setdefault("node", "node-a")
    values.setdefault("workload_kind", "Deployment")
    values.setdefault("workload_name", name.rsplit("-", 1)[0])
    values.setdefault("containers", [Container("main", f"c-{name}")])
    return Pod(name=name, pod_ips=list(ips), **values)


def service(name: str, *ips: str, port: int = 80, node_port: int = 0, **values: Any) -> Service:
    values.setdefault("uid", f"uid-service-{name}")
    values.setdefault("namespace", "shop")
    return Service(
        name=name,
        cluster_ips=list(ips),
        ports=[ServicePort("main", "TCP", port, node_port)],
        **values,
    )


def endpoint_slice(service_name: str, *pods: Pod, **values: Any) -> EndpointSlice:
    values.setdefault("uid", f"uid-slice-{service_name}")
    values.setdefault("namespace", "shop")
    return EndpointSlice(
        name=f"{service_name}-1",
        service=service_name,
        endpoints=[Endpoint(list(p.pod_ips), p.uid, p.name, p.node) for p in pods],
        **values,
    )


def node(name: str, *addresses: str, **values: Any) -> Node:
    return Node(uid=f"uid-{name}", name=name, addresses=list(addresses), **values)
