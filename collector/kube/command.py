"""``podwire kube``: Kubernetes objects into the metadata topics."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from collector.kube.api_client import ApiClient
from collector.kube.config import KubeConfig
from collector.kube.credentials import (
    Credentials,
    default_kubeconfig,
    in_cluster,
    is_in_cluster,
    read_kubeconfig,
)
from collector.kube.pipeline import Pipeline
from collector.kube.publisher import Publisher
from collector.kube.source_api import ApiSource
from collector.kube.source_file import FileSource
from collector.kube.topics import MetadataTopics
from schemas.config import KafkaConfig, load_file
from schemas.errors import ConfigError
from schemas.telemetry import Health, served

if TYPE_CHECKING:
    import argparse

    from collector.kube.feed import Source

__all__ = ["HELP", "add_arguments", "create_source", "run"]

HELP = "publish pods, services, EndpointSlices and nodes to the metadata topics"

_log = logging.getLogger(__name__)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subcommand."""
    KubeConfig.add_arguments(parser)
    KafkaConfig.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT.

    Raises:
        PodwireError: If a setting is wrong, the file unreadable or the broker out of reach.
    """
    file = load_file(arguments.config) if arguments.config else None
    config = KubeConfig.load(file, options=vars(arguments))
    kafka = KafkaConfig.load(file, options=vars(arguments))
    source = create_source(config)
    health = Health()
    with served(config, health):
        pipeline = Pipeline(config, source, MetadataTopics(kafka), Publisher(kafka), health)

        def stop(number: int, frame: Any) -> None:
            pipeline.stop()

        before = {number: signal.signal(number, stop) for number in _SIGNALS}
        try:
            pipeline.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return 0


def create_source(config: KubeConfig) -> Source:
    """The source that the settings ask for.

    Raises:
        ConfigError: If there is none, or it cannot work.
    """
    if config.source == "file" or (config.source == "auto" and config.from_file):
        if not config.from_file:
            raise ConfigError("kube.from_file", "is needed for kube.source=file")
        path = Path(config.from_file)
        source = FileSource(path, config.namespaces, config.file_poll_interval_s)
        source.check()
        _log.info("objects come from the file %s", path)
        return source
    if config.from_file:
        raise ConfigError("kube.from_file", "has no use with kube.source=api")
    client = ApiClient(_credentials(config))
    _log.info("objects come from the API server %s", client.server)
    return ApiSource(client, config.namespaces, config.page_size)


def _credentials(config: KubeConfig) -> Credentials:
    if config.kubeconfig:
        credentials = read_kubeconfig([Path(config.kubeconfig)])
    elif is_in_cluster():
        credentials = in_cluster()
    else:
        paths = default_kubeconfig()
        if not paths:
            raise ConfigError(
                "kube.source",
                "no Kubernetes found: give --from-file or --kubeconfig, or run in a pod",
            )
        credentials = read_kubeconfig(paths)
    # Unusable certificates and tokens should show now and not as a retried failure.
    credentials.ssl_context()
    credentials.headers()
    return credentials
