"""``podwire forwarder``: the access log to a SkyWalking OAP."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from schemas.config import KafkaConfig, load_file
from sink.oap.config import ForwarderConfig

if TYPE_CHECKING:
    import argparse

__all__ = ["HELP", "ForwarderConfig", "add_arguments", "run"]

HELP = "Feed a SkyWalking OAP"
EPILOG = """\
examples:
  podwire forwarder --addresses oap.skywalking:11800
  podwire forwarder --addresses oap-1:11800,oap-2:11800 --tls true --tls-ca-file ca.pem

The stream workers must write the access log's topic: streams.access_log."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the settings of the forwarder and of Kafka."""
    ForwarderConfig.add_arguments(parser)
    KafkaConfig.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run until the process is asked to stop."""
    from sink.oap.app import run_forwarder

    file = load_file(arguments.config) if arguments.config else None
    config = ForwarderConfig.load(file, options=vars(arguments))
    kafka = KafkaConfig.load(file, options=vars(arguments))
    run_forwarder(config, kafka, threading.Event())
    return 0
