"""Settings of the collector."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from schemas.config import Config, setting
from schemas.errors import ConfigError, UnsupportedFeature

__all__ = [
    "ARCHITECTURES",
    "RINGS",
    "CollectorConfig",
    "allowed_twins",
    "object_path",
    "object_paths",
    "stages_path",
    "tls_path",
]

ARCHITECTURES = ("x86_64", "aarch64")
"""Machines (``uname -m``) that objects are built for."""


RINGS = ("connections", "transfers", "processes", "payloads", "drops")
"""Ring buffers of an object that makes records."""


@dataclass(frozen=True, repr=False)
class CollectorConfig(Config):
    """How the collector reads the kernel and writes batches."""

    SECTION: ClassVar[str] = "collector"

    node: str = setting("", "Name of this node, as in Kubernetes [default: the host name]")
    cluster: str = setting("", "Name of the cluster; prefixes service names when set")
    drain_interval_s: float = setting(
        0.01, "Seconds between two drains of the rings", minimum=0.001, maximum=1
    )
    publish_interval_s: float = setting(
        1.0, "Seconds between two batches", minimum=0.05, maximum=60
    )
    watermark_margin_s: float = setting(
        0.1, "How long an event may take from its end to its ring", minimum=0, maximum=60
    )
    batch_max_events: int = setting(
        65_536, "Events per batch; more are sent in several", minimum=1, maximum=10_000_000
    )
    max_connections: int = setting(
        1 << 20, "Connections known at most; 145 to 290 bytes each", minimum=1024, maximum=1 << 26
    )
    transfer_ring_bytes: int = setting(
        32 << 20, "Ring for reads and writes, 128 bytes each", minimum=65_536, maximum=1 << 30
    )
    connection_ring_bytes: int = setting(
        8 << 20, "Ring for opens and closes, 128 bytes each", minimum=65_536, maximum=1 << 30
    )
    process_ring_bytes: int = setting(
        1 << 20, "Ring for exec and exit, 64 bytes each", minimum=65_536, maximum=1 << 30
    )
    payload_ring_bytes: int = setting(
        32 << 20, "Ring for the bytes of messages", minimum=65_536, maximum=1 << 30
    )
    protocols: str = setting(
        "http",
        "What is parsed: http: HTTP/1.x, HTTP/2 and gRPC; off: nothing, and no bytes are captured",
        choices=("http", "off"),
    )
    keep_query: bool = setting(False, "Whether paths keep their query; it may hold secrets")
    max_conversations: int = setting(
        65_536, "Connections parsed at once, some kilobytes each", minimum=16, maximum=1 << 22
    )
    drop_ring_bytes: int = setting(
        1 << 18, "Ring for reasons of lost packets, 64 bytes each", minimum=65_536, maximum=1 << 30
    )
    ring_reader: str = setting(
        "mapped", "mapped: arrays of shared memory; libbpf: a call per record",
        choices=("mapped", "libbpf"),
    )  # fmt: skip
    scope_file: str = setting(
        "",
        "File with the section `scope`, what is watched; read again when it changes"
        " [default: the configuration]",
    )
    own_traffic: bool = setting(False, "Whether to record the collector's own connections")
    excluded_run: int = setting(
        0,
        "Leave out the connections of this process and of those with PODWIRE_RUN=<its id> in their"
        " environment; 0: of nobody",
        minimum=0,
    )
    stages: str = setting(
        "auto",
        "Hooks that time packets between application and wire; auto: all that this kernel allows,"
        " functions by fentry, else kprobe; fentry, kprobe: functions only in this way; tracepoint:"
        " no functions; off: none, sockets count packets all the same",
        choices=("auto", "fentry", "kprobe", "tracepoint", "off"),
    )
    conntrack: str = setting(
        "auto",
        "Network namespaces whose conntrack says who is behind a service address; auto: the node's,"
        " and those of pods that translate themselves; host: the node's only; off: none",
        choices=("auto", "host", "off"),
    )
    host_netns: str = setting("", "Network namespace of the node [default: that of process 1]")
    max_translations: int = setting(
        65_536,
        "Translated connections of a namespace kept until they are looked up, at the next batch",
        minimum=1024,
        maximum=1 << 22,
    )
    tls: str = setting(
        "on",
        "on: messages inside TLS are read at the functions of TLS libraries; off: they are not",
        choices=("on", "off"),
    )
    object_file: str = setting("", "eBPF object to load [default: the one for this machine]")
    proc_path: str = setting("/proc", "Where the /proc of the node's own processes is")
    cgroup_path: str = setting("", "Where the node's /sys/fs/cgroup is [default: as mounted]")
    compression: str = setting(
        "lz4", "Compression of batches in Kafka", choices=("none", "lz4", "zstd")
    )
    linger_s: float = setting(
        0.02, "How long a batch may wait for another one", minimum=0, maximum=10
    )
    idempotent_producer: bool = setting(
        True,
        "Whether the broker has to recognise what is sent again; off for one that cannot, as the"
        " workers know every batch by its number",
    )
    queue_bytes: int = setting(
        32 << 20, "Batches kept while Kafka is slow or away", minimum=1 << 20, maximum=1 << 31
    )
    delivery_timeout_s: float = setting(
        300.0, "After this a batch that Kafka did not take is given up", minimum=1, maximum=86_400
    )
    stop_timeout_s: float = setting(
        20.0, "How long a stop waits for Kafka to take the rest", minimum=0, maximum=600
    )
    telemetry_port: int = setting(0, "Port of /metrics; 0 for none", minimum=0, maximum=65_535)
    telemetry_host: str = setting("127.0.0.1", "Address of /metrics")


def object_path(config: CollectorConfig) -> Path:
    """Return the eBPF object to load on a kernel that has everything; raises as `object_paths`."""
    return object_paths(config)[0]


def object_paths(config: CollectorConfig) -> list[Path]:
    """Return the eBPF objects to try, in order of preference.

    Raises:
        ConfigError: If the configured file is not there.
        UnsupportedFeature: If no object is built for this machine.
    """
    if config.object_file:
        path = Path(config.object_file)
        if not path.is_file():
            raise ConfigError("collector.object_file", f"{path} is no file")
        return [path]
    return _built("podwire.bpf.o", "podwire-fd.bpf.o")


def stages_path() -> Path:
    """Return the eBPF object of the stages.

    Raises:
        UnsupportedFeature: If none is built for this machine.
    """
    return _built("podwire-stages.bpf.o")[0]


def tls_path(core: Path) -> Path:
    """Return the eBPF object for what is inside TLS, to run beside a core object.

    Raises:
        UnsupportedFeature: If none is built for this machine.
    """
    return _built(core.name.replace("podwire", "podwire-tls", 1))[0]


def allowed_twins(config: CollectorConfig) -> tuple[str, ...]:
    """Return the ways to hook a kernel function that are allowed, the preferred one first."""
    return {"auto": ("fentry", "kprobe"), "fentry": ("fentry",), "kprobe": ("kprobe",)}.get(
        config.stages, ()
    )


def _built(*names: str) -> list[Path]:
    import bpf

    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise UnsupportedFeature(
            f"architecture {machine}", f"objects exist for {' and '.join(ARCHITECTURES)}"
        )
    assert bpf.__file__ is not None
    folder = Path(bpf.__file__).parent / "objects" / machine
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise UnsupportedFeature("eBPF object", f"{path} is missing; build it with `make bpf`")
    return paths
