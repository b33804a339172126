"""``podwire streams``: one stream worker."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from schemas.config import KafkaConfig, load_file
from streams.config import StreamsConfig

if TYPE_CHECKING:
    import argparse

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Turn events into minutes of metrics (one Faust worker)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the worker and of Kafka."""
    StreamsConfig.add_arguments(parser)
    KafkaConfig.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Work until SIGTERM or SIGINT.

    Raises:
        PodwireError: If a setting is wrong, no broker answers, or going on would give wrong
            numbers.
    """
    file = load_file(arguments.config) if arguments.config else None
    settings = StreamsConfig.load(file, options=vars(arguments))
    kafka = KafkaConfig.load(file, options=vars(arguments))
    if logging.getLogger().level > logging.DEBUG:
        for library in ("aiokafka", "faust", "mode"):  # a page of text at every rebalance
            logging.getLogger(library).setLevel(logging.WARNING)
    asyncio.run(_run(kafka, settings))
    return 0


async def _run(kafka: KafkaConfig, settings: StreamsConfig) -> None:
    from streams.app import Worker  # Faust takes a second to import; --help need not wait

    await Worker(kafka, settings).run()
