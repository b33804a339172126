"""Starts the parts of the sink in order, and ends them in reverse."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import unquote

from schemas.clock import SystemClock
from schemas.telemetry import Health, served
from schemas.topics import ENTITIES
from sink.access_pipeline import AccessLog
from sink.consumer import DeadLetters, Source, Stopped, topic_epoch
from sink.ddl import apply_schema
from sink.pipeline import Pipeline
from sink.rollup import Roller
from sink.store import Store
from sink.writer import BlockWriter, Retry

if TYPE_CHECKING:
    from schemas.config import KafkaConfig
    from sink.config import SinkConfig

__all__ = ["run_sink"]

log = logging.getLogger(__name__)


def run_sink(config: SinkConfig, kafka: KafkaConfig, stop: threading.Event) -> None:
    """Run until the event is set, SIGTERM or SIGINT; then finish what is in flight.

    Raises:
        PodwireError: If something is wrong that repeating will not change.
    """
    config.check()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    clock = SystemClock()
    health = Health()
    with ExitStack() as stack:
        stack.enter_context(served(config, health))
        store = Store.connect(config)
        stack.callback(store.close)
        log.info("clickhouse %s at %s", store.version, config.url.rpartition("@")[2])
        if config.create_schema:
            apply_schema(store)
        if config.sql_port:
            _serve_sql(config, stack)
        try:
            _move(config, kafka, store, clock, health, stop, stack)
        except Stopped:
            log.info("stopped before the topics were there")
    log.info("stopped")


def _move(
    config: SinkConfig,
    kafka: KafkaConfig,
    store: Store,
    clock: SystemClock,
    health: Health,
    stop: threading.Event,
    stack: ExitStack,
) -> None:
    source = Source(kafka, config.group, stop, alone=config.embedded)
    stack.callback(source.close)
    source.start()
    epoch = topic_epoch(kafka, stop.wait)
    retry = Retry(source.wait, config.retry_min_s, config.retry_max_s)
    writer = BlockWriter(store, retry, clock, epoch)
    pipeline = Pipeline(
        source=source,
        dead_letters=DeadLetters(kafka),
        store=store,
        writer=writer,
        retry=retry,
        clock=clock,
        health=health,
        stop=stop,
        bad_in_a_row=config.bad_messages_in_a_row,
    )
    roller_store = Store.connect(config)
    roller = Roller(roller_store, clock, config.rollup_delay_s, config.retention_days)
    thread = threading.Thread(
        # The entities topic has one partition: its owner does what only one sink should do.
        target=roller.run,
        args=(stop, lambda: source.owns(ENTITIES.name, 0)),
        name="rollup",
    )

    def end_roller() -> None:
        stop.set()
        thread.join()
        roller_store.close()

    stack.callback(end_roller)
    thread.start()
    if config.access_log:
        access_log = AccessLog(config, kafka, clock)
        stack.callback(access_log.stop)
        access_log.start()
    pipeline.run()


def _serve_sql(config: SinkConfig, stack: ExitStack) -> None:
    # Imported here: a sink in front of a server has no embedded engine installed.
    from sink.sql_engine import SqlEngine, SqlLimits
    from sink.sql_server import SqlServer

    limits = SqlLimits(config.sql_max_seconds, config.sql_max_memory_mb, config.sql_max_queries)
    engine = SqlEngine(unquote(config.url.removeprefix("chdb://")), limits)
    stack.callback(engine.close)
    server = SqlServer(engine, config.sql_host, config.sql_port)
    server.start()
    stack.callback(server.stop)
    log.info("read-only SQL: curl 'http://%s:%d/?query=SELECT+1'", config.sql_host, server.port)
