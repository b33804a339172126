"""``podwire streams``: one stream worker."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from schemas.config import KafkaConfig, load_file
from schemas.monitoring import ScopeFile
from streams.config import StreamsConfig

if TYPE_CHECKING:
    import argparse

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Turn events into minutes of metrics (one Faust worker)"


_REPEAT_S: Final = 10.0


class _Repeats(logging.Filter):
    # While a broker is away aiokafka says so ten times a second; once in a while is enough.
    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("aiokafka"):
            return True
        key = (record.name, str(record.msg))
        if record.created - self._last.get(key, -_REPEAT_S) < _REPEAT_S:
            return False
        self._last[key] = record.created
        return True


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
        for handler in logging.getLogger().handlers:
            handler.addFilter(_Repeats())
    path = Path(settings.scope_file) if settings.scope_file else arguments.config
    asyncio.run(_run(kafka, settings, ScopeFile(path, StreamsConfig.SECTION)))
    return 0


async def _run(kafka: KafkaConfig, settings: StreamsConfig, scope: ScopeFile) -> None:
    from streams.app import Worker  # Faust takes a second to import; --help need not wait

    await Worker(kafka, settings, scope).run()
