"""``podwire collector``: watch this machine's TCP connections, or replay a recording."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from collector.batches import Run
from collector.config import CollectorConfig
from collector.containers import ContainerResolver, cgroup2_below, find_cgroup2_mount
from collector.heap import bound_heap
from collector.interfaces import net_interfaces
from collector.netlink import Conntrack
from collector.pipeline import Pipeline
from collector.pods import LocalPods
from collector.publisher import Publisher
from collector.recording import Recorder
from collector.replay import PACES, TIMES, replay
from collector.watching import kernel_table
from schemas.clock import SystemClock
from schemas.config import KafkaConfig, load_file
from schemas.errors import ConfigError
from schemas.monitoring import End, ScopeFile
from schemas.telemetry import Health, served

if TYPE_CHECKING:
    import argparse

__all__ = ["HELP", "add_arguments", "node_name", "run"]

HELP = "Watch every TCP connection of this machine and publish what happens to Kafka"

_LOG: Final = logging.getLogger("podwire.collector")
_BOOT_ID: Final = "sys/kernel/random/boot_id"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="also write every batch to a file (.gz packs)"
    )
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="publish a recording instead of the kernel"
    )
    parser.add_argument(
        "--replay-times", choices=TIMES, default="shift", help="times as if now, or as recorded"
    )
    parser.add_argument(
        "--replay-pace", choices=PACES, default="recorded", help="as recorded, or at full speed"
    )
    CollectorConfig.add_arguments(parser)
    KafkaConfig.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT, then flush and leave."""
    file = load_file(arguments.config) if arguments.config else None
    config = CollectorConfig.load(file, options=vars(arguments))
    kafka = KafkaConfig.load(file, options=vars(arguments))
    bound_heap()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    health = Health()
    with served(config, health):
        if arguments.replay:
            _replay(arguments, config, kafka, stop)
        else:
            path = Path(config.scope_file) if config.scope_file else arguments.config
            scope = ScopeFile(path, config.SECTION)
            if path is not None:
                signal.signal(signal.SIGHUP, lambda *_: scope.reload())
            _collect(arguments.record, config, kafka, stop, health, scope)
    return 0


def node_name(config: CollectorConfig) -> str:
    """Return the configured name of this node, else the host name."""
    return config.node or socket.gethostname()


def _collect(
    record: Path | None,
    config: CollectorConfig,
    kafka: KafkaConfig,
    stop: threading.Event,
    health: Health,
    scope: ScopeFile,
) -> None:
    # Here, so that a replay needs neither libbpf nor an object.
    from collector.source import KernelSource

    clock = SystemClock()
    proc = Path(config.proc_path)
    try:
        boot_id = (proc / _BOOT_ID).read_text().strip()
        # Paths must hold in our own mount namespace, whichever /proc the node's processes are in.
        mount = find_cgroup2_mount(Path("/proc/self/mounts").read_text())
    except OSError as error:
        raise ConfigError("collector.proc_path", f"{error.filename}: {error.strerror}") from error
    if config.cgroup_path:
        if not Path(config.cgroup_path).is_dir():
            raise ConfigError("collector.cgroup_path", f"{config.cgroup_path} is no directory")
        mount = cgroup2_below(Path(config.cgroup_path))
    if mount is None:
        _LOG.warning("no cgroup v2 here: a container is found only while its process lives")
    identity = Run(
        node=node_name(config),
        boot_id=boot_id,
        run_id=uuid4().hex,
        cluster=config.cluster,
        interfaces=net_interfaces(),
    )
    recorder = Recorder(record) if record else None
    publisher = Publisher(config, kafka, identity.node)
    source = KernelSource(config, kernel_table(scope.scope, End(node=identity.node)))
    pods = LocalPods(kafka, identity.node)
    conntrack = Conntrack(config, clock)
    try:
        source.log_missing()
        _LOG.info(
            "watching as node %s with %d hooks, pid %d",
            identity.node,
            sum(hook.attached for hook in (*source.hooks, *source.stages.hooks)),
            os.getpid(),
        )
        pipeline = Pipeline(
            config,
            identity,
            source,
            publisher,
            ContainerResolver(proc, mount, clock),
            clock,
            health,
            recorder,
            conntrack,
            scope,
            pods,
        )
        pipeline.run(stop)
        _LOG.info(
            "stopped after %d batches, %d of them not taken by kafka",
            pipeline.sequence,
            publisher.undelivered,
        )
    finally:
        pods.stop()
        conntrack.close()
        source.close()
        if recorder is not None:
            recorder.close()


def _replay(
    arguments: argparse.Namespace,
    config: CollectorConfig,
    kafka: KafkaConfig,
    stop: threading.Event,
) -> None:
    replay(
        arguments.replay,
        Publisher(config, kafka, node_name(config)),
        SystemClock(),
        stop,
        times=arguments.replay_times,
        pace=arguments.replay_pace,
        queue_bytes=config.queue_bytes,
        timeout_s=config.stop_timeout_s,
    )
