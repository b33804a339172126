"""Every figure and every scope, declared once.

Protobuf keeps figures by name, ClickHouse tables are built from these lists, and the stream
workers aggregate into them. A figure that no hook of a node can give is absent there, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "BREAKDOWNS",
    "BREAKDOWN_BY_NAME",
    "BREAKDOWN_SCOPES",
    "CALL_DISTRIBUTIONS",
    "COUNT_TABLES",
    "COVERAGE",
    "DISTRIBUTIONS",
    "DISTRIBUTION_BY_NAME",
    "DISTRIBUTION_SCOPES",
    "FIGURES",
    "FIGURE_BY_NAME",
    "LEDGER",
    "PROVENANCE",
    "READABILITIES",
    "RESOLUTIONS",
    "ROLES",
    "SCOPES",
    "SCOPE_BY_NAME",
    "TLS",
    "UNRESOLVED",
    "Breakdown",
    "CountTable",
    "Distribution",
    "Figure",
    "Scope",
    "distributions_of",
]

Group = Literal[
    "connection", "read", "write", "http", "grpc", "provenance", "ledger", "coverage", "tls"
]
Direction = Literal["read", "write", "call"]
Unit = Literal["count", "ns", "bytes"]

ROLES = ("client", "server")
"""Which end of the connection saw it."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One additive number per minute."""

    name: str
    group: Group
    unit: Unit
    description: str
    optional: bool = False
    """Whether some tier, kernel or call cannot measure it; then events that did are counted."""

    @property
    def measured_name(self) -> str:
        """Column that says how many events measured an optional figure."""
        return f"{self.name}_measured_count"


@dataclass(frozen=True, slots=True)
class Scope:
    """What rows are keyed by, besides the minute."""

    name: str
    keys: tuple[str, ...]
    description: str

    @property
    def name_keys(self) -> tuple[str, ...]:
        """The keys that name the entity: all but ``cluster`` and ``role``."""
        return tuple(key for key in self.keys if key not in ("cluster", "role"))

    @property
    def metrics_table(self) -> str:
        """What analysts query."""
        return f"{self.name}_metrics"

    @property
    def entity_table(self) -> str:
        """Where the entity itself is listed."""
        return self.name if self.name.endswith("_relation") else f"{self.name}_traffic"


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a time is spread over reads, writes or calls: a histogram per minute.

    The value of a read, write or call is the sum of its figures ``plus`` less those of ``minus``.
    """

    name: str
    direction: Direction
    plus: tuple[str, ...]
    minus: tuple[str, ...]
    description: str
    bits: int = 2
    """How fine its buckets are: see `schemas.histograms`."""

    @property
    def column(self) -> str:
        """Column of the histogram."""
        return f"{self.name}_histogram"


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A figure told apart by names that nobody knows before: counts by name per minute.

    Its counts add up to the figure; what has no name counts under the empty one.
    """

    name: str
    figure: str
    description: str


def _figures(group: Group, rows: str) -> tuple[Figure, ...]:
    figures = []
    for row in rows.strip().splitlines():
        name, unit, presence, description = (part.strip() for part in row.split("|"))
        figures.append(Figure(name, group, unit, description, presence == "optional"))  # type: ignore[arg-type]
    return tuple(figures)


FIGURES: tuple[Figure, ...] = (
    *_figures(
        "connection",
        """
        connect_count            | count | always   | Connections tried, each decided once: by the handshake, a refusal, a time-out or its abandonment
        connect_duration         | ns    | optional | From the first SYN to the decision
        connect_success_count    | count | always   | Connections whose handshake succeeded
        accept_count             | count | always   | Connections handed to the accepting application
        accept_duration          | ns    | optional | Time in the accepting call while the connection was already there; waiting for a client is not charged
        close_count              | count | always   | Established connections that this end closed
        close_duration           | ns    | optional | Time in the closing call
        """,
    ),
    *_figures(
        "read",
        """
        read_count                      | count | always   | Calls that received payload bytes
        read_bytes                      | bytes | always   | Payload bytes that these calls handed to the application
        read_duration                   | ns    | optional | Time in these calls, from system call entry to exit
        read_packet_count               | count | optional | TCP segments with payload that were received
        read_packet_size                | bytes | optional | New payload bytes of these segments: what came twice counts once
        read_l4_duration                | ns    | optional | Time of packets in TCP on the receive path
        read_l3_duration                | ns    | optional | Time of packets in IP on the receive path: the next two together
        read_l3_recv_duration           | ns    | optional | Part of it: from entering IP to local delivery, with the routing decision
        read_l3_local_duration          | ns    | optional | Part of it: from local delivery to TCP
        read_packet_to_queue_duration   | ns    | optional | From the device to the socket's queue
        read_packet_from_queue_duration | ns    | optional | From the socket's queue to the application's copy
        read_netfilter_count            | count | optional | Netfilter hook runs on the receive path
        read_netfilter_duration         | ns    | optional | Time in these runs
        read_device_to_ip_duration      | ns    | optional | From the device to IP
        read_ip_to_queue_duration       | ns    | optional | From TCP, where IP hands over, to the socket's queue
        read_call_duration              | ns    | optional | Part of the calls: from the first copy to the end
        read_unattributed_duration      | ns    | optional | Rest of the calls, before the first copy: waiting for data or for a CPU
        """,
    ),
    *_figures(
        "write",
        """
        write_count                     | count | always   | Calls that sent payload bytes
        write_bytes                     | bytes | always   | Payload bytes that these calls took from the application
        write_duration                  | ns    | optional | Time in these calls, from system call entry to exit
        write_packet_count              | count | optional | TCP segments with payload that were transmitted, again or for the first time
        write_packet_size               | bytes | optional | Payload bytes of these segments
        write_retransmit_packet_count   | count | optional | Segments transmitted again
        write_lost_packet_count         | count | optional | Packets dropped on this host on the way out
        write_l4_duration               | ns    | optional | Time in the TCP part of the calls, and what IP took outside of them
        write_l3_duration               | ns    | optional | Time of packets from entering IP until they have left the host, with the device layer
        write_l3_local_duration         | ns    | optional | Part of it: local output with routing, up to IP output
        write_l3_output_duration        | ns    | optional | Part of it: from IP output to the device layer
        write_netfilter_count           | count | optional | Netfilter hook runs on the send path
        write_netfilter_duration        | ns    | optional | Time in these runs
        resolve_mac_count               | count | optional | Packets that waited for an unknown link-layer address
        resolve_mac_duration            | ns    | optional | Time of packets from link-layer address resolution to the device layer
        write_l2_duration               | ns    | optional | Time of packets in the device layer: queue discipline and driver
        write_l2_enter_queue_count      | count | optional | Packets given to the device layer
        write_l2_ready_send_duration    | ns    | optional | Part of it: from the device layer to the driver, with the queue discipline
        write_l2_netdevice_send_duration| ns    | optional | Part of it: time in the driver
        write_unattributed_duration     | ns    | optional | Part of the calls outside TCP
        """,
    ),
    *_figures(
        "http",
        """
        http_call_count           | count | optional | HTTP calls, answered or not, gRPC among them
        http_duration             | ns    | optional | Of answered calls. Server: first byte of the request to last byte of the response; client: first byte written to last byte read
        http_success_count        | count | optional | Calls answered with a status below 500, less gRPC calls whose grpc-status is known and not OK
        http_aborted_count        | count | optional | Calls whose response began and did not end
        http_unanswered_count     | count | optional | Calls that got no response before their connection or stream ended
        http_request_header_size  | bytes | optional | Request header bytes on the wire
        http_request_body_size    | bytes | optional | Request body bytes without framing
        http_response_header_size | bytes | optional | Response header bytes on the wire
        http_response_body_size   | bytes | optional | Response body bytes without framing
        http_status_1xx_count     | count | optional | Calls answered with 1xx
        http_status_2xx_count     | count | optional | Calls answered with 2xx
        http_status_3xx_count     | count | optional | Calls answered with 3xx
        http_status_4xx_count     | count | optional | Calls answered with 4xx
        http_status_5xx_count     | count | optional | Calls answered with 5xx
        """,
    ),
    *_figures(
        "grpc",
        """
        grpc_call_count  | count | optional | gRPC calls
        grpc_error_count | count | optional | gRPC calls whose grpc-status was not OK; measured by those that told it
        """,
    ),
)
"""Figures of every metrics table, in column order."""


def _distributions(direction: Direction, rows: str) -> tuple[Distribution, ...]:
    distributions = []
    for row in rows.strip().splitlines():
        name, terms, description = (part.strip() for part in row.split("|"))
        plus, _, minus = terms.partition(" - ")
        distributions.append(
            Distribution(
                name, direction, (plus,), tuple(minus.split(" - ")) if minus else (), description
            )
        )
    return tuple(distributions)


DISTRIBUTIONS: tuple[Distribution, ...] = (
    *_distributions(
        "read",
        """
        read_device_to_ip | read_device_to_ip_duration                 | From the device to IP
        read_ip           | read_l3_duration - read_netfilter_duration | In IP, without netfilter
        read_netfilter    | read_netfilter_duration                    | In netfilter hooks
        read_ip_to_queue  | read_ip_to_queue_duration                  | From TCP, where IP hands over, to the socket's queue
        read_in_queue     | read_packet_from_queue_duration            | In the socket's queue, until the application's copy
        read_call         | read_call_duration                         | In the call, from its first copy to its end
        """,
    ),
    *_distributions(
        "write",
        """
        write_tcp              | write_l4_duration - write_l3_duration | In TCP
        write_ip               | write_l3_duration - write_netfilter_duration - resolve_mac_duration - write_l2_duration | In IP, without the stages below
        write_netfilter        | write_netfilter_duration         | In netfilter hooks
        write_neighbour        | resolve_mac_duration             | In link-layer address resolution
        write_queue_discipline | write_l2_ready_send_duration     | In the queue discipline
        write_device           | write_l2_netdevice_send_duration | In the driver
        """,
    ),
)
"""Histograms of the metrics tables of `DISTRIBUTION_SCOPES`, in column order."""

DISTRIBUTION_SCOPES = ("service", "service_relation")
"""The scopes that have them."""

CALL_DISTRIBUTIONS: tuple[Distribution, ...] = (
    Distribution("http_duration", "call", ("http_duration",), (), "Latency of answered calls", 4),
)
"""Histograms of every metrics table, in column order, after those of the stages."""

BREAKDOWNS: tuple[Breakdown, ...] = (
    Breakdown(
        "write_lost_packet_reasons",
        "write_lost_packet_count",
        "Packets dropped on this host on the way out, by the kernel's reason",
    ),
)
"""Columns of the metrics tables of `BREAKDOWN_SCOPES`, after the histograms."""

BREAKDOWN_SCOPES = ("service", "service_relation")
"""The scopes that have them."""

PROVENANCE: tuple[Figure, ...] = _figures(
    "provenance",
    """
    events_seen | count | always | Kernel events behind this row
    events_lost | count | always | Events that the nodes behind this row lost in this minute: an upper bound for the row
    """,
)
"""How complete a row is; columns of every metrics table, after the figures."""

SCOPES: tuple[Scope, ...] = (
    Scope("service", ("cluster", "role", "service"), "One service"),
    Scope("instance", ("cluster", "role", "service", "instance"), "One pod of a service"),
    Scope("endpoint", ("cluster", "role", "service", "endpoint"), "One endpoint of a service"),
    Scope(
        "service_relation",
        ("cluster", "role", "client_service", "server_service"),
        "One service calling another",
    ),
    Scope(
        "instance_relation",
        (
            "cluster",
            "role",
            "client_service",
            "client_instance",
            "server_service",
            "server_instance",
        ),
        "One pod calling another",
    ),
    Scope(
        "endpoint_relation",
        ("cluster", "role", "client_service", "server_service", "endpoint"),
        "One service calling an endpoint of another",
    ),
)

FIGURE_BY_NAME = {figure.name: figure for figure in (*FIGURES, *PROVENANCE)}
SCOPE_BY_NAME = {scope.name: scope for scope in SCOPES}
DISTRIBUTION_BY_NAME = {
    distribution.name: distribution for distribution in (*DISTRIBUTIONS, *CALL_DISTRIBUTIONS)
}
BREAKDOWN_BY_NAME = {breakdown.name: breakdown for breakdown in BREAKDOWNS}


def distributions_of(scope: str) -> tuple[Distribution, ...]:
    """Return the histograms that the metrics table of a scope has, in column order."""
    stages = DISTRIBUTIONS if scope in DISTRIBUTION_SCOPES else ()
    return (*stages, *CALL_DISTRIBUTIONS)


@dataclass(frozen=True, slots=True)
class CountTable:
    """A table of counts per minute and node, besides those of the scopes."""

    name: str
    keys: tuple[str, ...]
    figures: tuple[Figure, ...]
    later_keys: frozenset[str] = frozenset()
    """Those of its keys that are empty in blocks of earlier workers, which lack them."""


LEDGER = CountTable(
    name="ledger",
    keys=("cluster", "node", "stage", "kind", "reason"),
    figures=_figures(
        "ledger",
        """
        in_count      | count | always | Events that entered the stage
        out_count     | count | always | Events that left it for the next stage
        dropped_count | count | always | Events that it dropped, for the reason of the row
        """,
    ),
)

RESOLUTIONS = ("instance", "service", "node", "address")
"""How well an end of a connection is known, the best first."""

UNRESOLVED = {
    "service_address": "the pod behind a service address is not known",
    "contested_address": "its address went from one pod to another at about that time",
    "unknown_container": "its container belongs to no known pod",
    "node_address": "which process is behind a node's address is not known",
    "unknown_pod": "the address is in a node's pod range, and no known pod had it",
    "loopback": "a process of the same host that was not seen",
    "named_range": "outside the cluster, in a range with a name",
    "outside": "outside the cluster",
    "too_many_outside": "outside the cluster, beyond the limit of names",
}
"""Why an end is not known to its instance."""

COVERAGE = CountTable(
    name="coverage",
    keys=("cluster", "node", "role", "resolution", "reason"),
    figures=_figures(
        "coverage",
        """
        connection_count | count | always | Connections that were tried or accepted
        byte_count       | bytes | always | Payload bytes read and written
        """,
    ),
)
"""How well the ends of connections are known: the worse one decides."""

READABILITIES = ("unreadable", "readable")
"""Whether what is said inside TLS is seen in clear."""

TLS = CountTable(
    name="tls",
    keys=(
        *("cluster", "node", "role", "service", "process"),
        *("server_name", "tls_version", "readability", "unreadable_reason"),
    ),
    figures=_figures(
        "tls",
        """
        close_count | count | always | Connections inside TLS that this end closed
        byte_count  | bytes | always | Bytes that these and others still open read and wrote, encrypted
        """,
    ),
    later_keys=frozenset({"unreadable_reason"}),
)
"""How much of the traffic is inside TLS, and how much of that can be read."""

COUNT_TABLES = {table.name: table for table in (LEDGER, COVERAGE, TLS)}
