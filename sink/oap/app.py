"""Starts the parts of the forwarder in order, and ends them in reverse."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from schemas.clock import SystemClock
from schemas.telemetry import Health, counter, served
from schemas.topics import ACCESS_LOG
from sink.consumer import DeadLetters, Source
from sink.oap.buffer import Buffer
from sink.oap.forwarder import Forwarder
from sink.oap.sender import Senders
from sink.writer import Retry

if TYPE_CHECKING:
    from schemas.config import KafkaConfig
    from sink.oap.buffer import Parcel
    from sink.oap.config import ForwarderConfig

__all__ = ["run_forwarder"]

log = logging.getLogger(__name__)


def run_forwarder(config: ForwarderConfig, kafka: KafkaConfig, stop: threading.Event) -> None:
    """Run until the event is set, SIGTERM or SIGINT; then send what was read, for a while.

    Raises:
        PodwireError: If something is wrong that repeating will not change.
    """
    config.check()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    health = Health()
    with ExitStack() as stack:
        stack.enter_context(served(config, health))
        buffer = Buffer(config.buffer_mb << 20, _dropped)
        senders = Senders(config, buffer)
        source = Source(
            kafka, config.group, stop, alone=False, topics=(ACCESS_LOG.name,), component="forwarder"
        )
        stack.callback(source.close)
        source.start()
        stack.callback(senders.stop)
        senders.start()
        log.info("to %s", ", ".join(config.addresses))
        Forwarder(
            config=config,
            source=source,
            dead_letters=DeadLetters(kafka, "forwarder"),
            retry=Retry(source.wait, config.retry_min_s, config.retry_max_s),
            buffer=buffer,
            senders=senders,
            clock=SystemClock(),
            health=health,
            stop=stop,
        ).run()
    log.info("stopped")


def _dropped(parcel: Parcel) -> None:
    counter("podwire_forwarder_logs_total").labels("buffer_full").inc(parcel.stream.logs)
