"""Settings of the stream worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from schemas.config import Config, setting

__all__ = ["StreamsConfig"]


@dataclass(frozen=True, repr=False)
class StreamsConfig(Config):
    """How events become minutes of metrics."""

    SECTION: ClassVar[str] = "streams"

    grace_s: float = setting(
        2.0,
        "A minute closes when every node's events have passed its end by so many seconds",
        minimum=0,
        maximum=600,
    )
    node_timeout_s: float = setting(
        10.0, "A node silent for so many seconds is not waited for", minimum=1, maximum=600
    )
    close_after_s: float = setting(
        30.0,
        "A minute closes so many seconds after its end whatever the nodes say",
        minimum=1,
        maximum=3600,
    )
    scope_file: str = setting(
        "",
        "File with the section `scope`, what is watched; read again when it changes"
        " [default: the configuration]",
    )
    host_processes: str = setting(
        "node",
        "Service name of processes outside any pod: the node, or the process itself",
        choices=("node", "process"),
    )
    external_names: int = setting(
        10_000,
        "Addresses outside the cluster that get a name of their own per hour; more become"
        " other-external",
        minimum=0,
    )
    cidr_names: dict[str, str] = setting(
        {}, "Names of address ranges outside the cluster: 203.0.113.0/24=partner,..."
    )
    endpoint_name: str = setting(
        "path",
        "What names an endpoint: its path, or METHOD:path; a gRPC path always stands alone",
        choices=("path", "method_path"),
    )
    max_endpoints: int = setting(
        1_000,
        "Endpoints of one service that get a name of their own per hour; more become {other}",
        minimum=1,
    )
    access_log: bool = setting(
        False,
        "Whether to write every batch, with the names of both ends and of endpoints, to"
        " podwire.access-log.v1",
    )
    address_tolerance_s: float = setting(
        30.0,
        "How long after its pod's end an address still means that pod, unless a new pod has it",
        minimum=0,
    )
    metadata_start_timeout_s: float = setting(
        30.0, "Longest wait at start for the Kubernetes objects on the topics", minimum=0
    )
    metadata_wait_s: float = setting(
        2.0, "Longest wait of a batch for the pod of a container just seen", minimum=0, maximum=60
    )
    metadata_delay_s: float = setting(
        2.0,
        "Age at which events are named: Kubernetes tells of pods that come and go so much later",
        minimum=0,
        maximum=60,
    )
    rows_per_block: int = setting(
        20_000, "Rows of one metrics message; larger minutes travel in parts", minimum=1
    )
    undecodable_limit: int = setting(
        100, "Undecodable messages in a row after which the worker stops", minimum=1
    )
    entity_refresh_s: float = setting(
        60.0, "An entity that is still seen is published again at most this often", minimum=1
    )
    session_timeout_s: float = setting(
        10.0,
        "The broker gives the partitions of a silent worker away after so many seconds",
        minimum=1,
        maximum=39,
    )
    idempotent_producer: bool = setting(
        True,
        "Whether the broker has to recognise what is sent again; off for one that cannot, as the"
        " sink drops blocks that come twice",
    )
    instance_id: str = setting(
        "",
        "Fixed name of this worker in its consumer group: a restart keeps its partitions without"
        " waiting for the session to time out",
    )
    broker_epoch: str = setting(
        "",
        "Name of the broker's life, for a broker whose topics begin again at offset 0 when it"
        " restarts; becomes part of the identity of every block",
    )
    telemetry_port: int = setting(
        0, "Port of /metrics, /healthz and /readyz; 0 is off", minimum=0, maximum=65535
    )
    telemetry_host: str = setting("127.0.0.1", "Address of that port")
