"""``podwire sink``: metrics and entities from Kafka to ClickHouse."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from schemas.config import KafkaConfig, load_file
from sink.config import SinkConfig

if TYPE_CHECKING:
    import argparse

__all__ = ["HELP", "SinkConfig", "add_arguments", "run"]

HELP = "Write metrics and entities to ClickHouse"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the settings of the sink and of Kafka."""
    SinkConfig.add_arguments(parser)
    KafkaConfig.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run until the process is asked to stop."""
    from sink.app import run_sink

    file = load_file(arguments.config) if arguments.config else None
    config = SinkConfig.load(file, options=vars(arguments))
    kafka = KafkaConfig.load(file, options=vars(arguments))
    run_sink(config, kafka, threading.Event())
    return 0
