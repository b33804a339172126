"""Settings of ``podwire kube``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from schemas.config import Config, setting

__all__ = ["KubeConfig"]


@dataclass(frozen=True, repr=False)
class KubeConfig(Config):
    """Where the objects come from and how they are kept in the topics."""

    SECTION: ClassVar[str] = "kube"

    source: str = setting(
        "auto",
        "Where objects come from; auto: the file if one is given, else the kubeconfig if one is "
        "given, else the pod's service account, else kubectl's own kubeconfig",
        choices=("auto", "api", "file"),
    )
    from_file: str = setting(
        "",
        "File with the output of `kubectl get pods,services,endpointslices,nodes -A -o json`; "
        "read again when it changes",
    )
    kubeconfig: str = setting("", "Kubeconfig whose current context names the API server")
    namespaces: tuple[str, ...] = setting(
        (), "Only these namespaces, separated by commas; the same for every replica"
    )
    resync_interval_s: float = setting(
        300.0, "Every object is published again within this time; 0: never", minimum=0
    )
    keep_deleted_s: float = setting(
        3600.0, "How long deleted objects stay for late events", minimum=0
    )
    page_size: int = setting(500, "Objects per page of a list", minimum=1, maximum=10_000)
    file_poll_interval_s: float = setting(
        1.0, "How often the file is looked at", minimum=0.01, maximum=3600
    )
    kafka_timeout_s: float = setting(
        30.0, "How long to wait for the broker at start", minimum=1, maximum=3600
    )
    telemetry_port: int = setting(
        0, "Port of /metrics, /healthz and /readyz; 0: none", minimum=0, maximum=65_535
    )
    telemetry_host: str = setting("127.0.0.1", "Address of /metrics, /healthz and /readyz")
