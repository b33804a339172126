"""``podwire schema``: create the topics and tables, or show what they are.

``apply`` is safe to repeat. It creates what is missing and checks what is there; it never changes
the number of partitions of an existing topic, because the events of a node would move between
workers in the middle of a minute.
"""

from __future__ import annotations

import os
import time
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any, Final

from schemas.catalogue import FIGURES, LEDGER, PROVENANCE, SCOPES
from schemas.config import KafkaConfig, load_file
from schemas.errors import ConfigError, TransportError
from schemas.topics import TOPICS, Topic
from sink.access_table import ACCESS_LOG
from sink.config import SinkConfig
from sink.oap.metrics import FORMER, GENERATIONS, LATER, metrics_of
from sink.views import VIEWS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

__all__ = ["HELP", "add_arguments", "apply_topics", "run"]

HELP = "Create or show topics, tables and figures"
EPILOG = """\
examples:
  podwire schema apply --bootstrap-servers kafka:9092 --partitions 12 --replication-factor 3
  podwire schema apply --url http://clickhouse:8123
  podwire schema show figures
  podwire schema show oap
  podwire schema show access_log"""

TIMEOUT_S: Final = 20.0
_NO_LIMIT: Final = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``apply`` and ``show``."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    apply = actions.add_parser("apply", help="Create topics, and tables if a ClickHouse is given")
    apply.set_defaults(action="apply")
    KafkaConfig.add_arguments(apply)
    SinkConfig.add_arguments(apply)
    show = actions.add_parser(
        "show", help="Print topics, tables, figures, SkyWalking's metrics or one table's columns"
    )
    show.set_defaults(action="show")
    show.add_argument(
        "what",
        metavar="WHAT",
        type=_shown,
        help="topics, tables, figures, oap (where SkyWalking's metrics are), or the name of a "
        "table for its columns",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for."""
    if arguments.action == "show":
        return _show(arguments.what)
    file = load_file(arguments.config) if arguments.config else None
    kafka = KafkaConfig.load(file, options=vars(arguments))
    created = apply_topics(kafka)
    print(f"topics: {len(created)} created, {len(TOPICS) - len(created)} were there")
    if _names_clickhouse(file, arguments):
        _apply_tables(SinkConfig.load(file, options=vars(arguments)))
    return 0


def _names_clickhouse(file: Mapping[str, Any] | None, arguments: argparse.Namespace) -> bool:
    # The default address is a guess; nobody wants tables on a server that was never named.
    section = (file or {}).get(SinkConfig.SECTION) or {}
    return bool(arguments.url or "PODWIRE_SINK_URL" in os.environ or "url" in section)


def _apply_tables(config: SinkConfig) -> None:
    from sink.ddl import apply_schema
    from sink.store import Store

    config.check()
    store = Store.connect(config)
    try:
        done = apply_schema(store)
    finally:
        store.close()
    print(f"tables in {config.database}: {'created or upgraded' if done else 'were up to date'}")


def apply_topics(kafka: KafkaConfig, timeout_s: float = TIMEOUT_S) -> list[str]:
    """Create the missing topics and check the partitions of the others.

    Returns:
        Names of the topics that were created now.

    Raises:
        TransportError: If no broker answers in time, or the broker refuses a topic.
        ConfigError: If a topic exists with another number of partitions than configured.
    """
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

    # Connection failures come back as exceptions; librdkafka's own log lines would repeat them.
    admin = AdminClient({**kafka.client_settings(), "log_level": 0})
    try:
        existing = _partition_counts(admin, timeout_s)
        missing = [topic for topic in TOPICS if topic.name not in existing]
        if missing:
            futures = admin.create_topics(
                [
                    NewTopic(
                        topic.name,
                        num_partitions=_partitions(topic, kafka),
                        replication_factor=kafka.replication_factor,
                        config=topic.config(),
                    )
                    for topic in missing
                ],
                request_timeout=timeout_s,
            )
            for future in futures.values():
                try:
                    future.result()
                except KafkaException as error:
                    # Somebody else was faster: then the check below decides.
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
            existing = _after_creation(admin, timeout_s)
    except KafkaException as error:
        reason = error.args[0].str()
        raise TransportError(f"kafka at {kafka.bootstrap_servers}: {reason}") from error
    for topic in TOPICS:
        found, wanted = existing.get(topic.name, 0), _partitions(topic, kafka)
        if found != wanted:
            raise ConfigError(
                "kafka.partitions",
                f"topic {topic.name} has {found} partitions, {wanted} wanted: configure {found}, "
                "or use a new topic",
            )
    return [topic.name for topic in missing]


def _partition_counts(admin: Any, timeout_s: float) -> dict[str, int]:
    metadata = admin.list_topics(timeout=timeout_s)
    return {name: len(topic.partitions) for name, topic in metadata.topics.items()}


def _after_creation(admin: Any, timeout_s: float) -> dict[str, int]:
    # The broker that answers may learn of new topics a moment after the one that made them.
    deadline = time.monotonic() + timeout_s
    while True:
        existing = _partition_counts(admin, timeout_s)
        if all(topic.name in existing for topic in TOPICS) or time.monotonic() > deadline:
            return existing
        time.sleep(0.1)


def _partitions(topic: Topic, kafka: KafkaConfig) -> int:
    return kafka.partitions if topic.partitions == "events" else topic.partitions


def _show(what: str) -> int:
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    headings, rows = _LISTINGS[what]() if what in _LISTINGS else _columns(what)
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # Names stay whole, unless nothing else would be seen; the last column is text that wraps.
    is_whole = max(len(row[0]) for row in rows) * 2 < console.width or not console.is_terminal
    for number, heading in enumerate(headings):
        table.add_column(
            heading,
            no_wrap=is_whole and number == 0,
            overflow="fold",
            style="cyan" if number == 0 else "",
        )
    for row in rows:
        table.add_row(*row)
    if not console.is_terminal:
        # For grep and editors: a line per row, whatever its length.
        unlimited = console.options.update(width=_NO_LIMIT)
        console.width = Measurement.get(console, unlimited, table).maximum
    console.print(table)
    return 0


Listing = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _topics() -> Listing:
    def kept(topic: Topic) -> str:
        if topic.retention_ms is None:
            return "last per key"
        return f"{topic.retention_ms // 3_600_000} h"

    rows: list[tuple[str, ...]] = [
        (topic.name, topic.key, str(topic.partitions), kept(topic), topic.description)
        for topic in TOPICS
    ]
    return ("topic", "key", "partitions", "kept", "what"), rows


_KEYS: Final = {"time", *LEDGER.keys, *(key for scope in SCOPES for key in scope.keys)}
_KEYS_OF_ONE_VIEW: Final = {"direction", "stage", "low_ns", "period", "topic", "offset"}


def _tables() -> Listing:
    rows: list[tuple[str, ...]] = []
    for view in VIEWS:
        if view.name.endswith(("_hourly", "_daily")):
            continue
        names = [column.name for column in view.columns]
        if view.name == ACCESS_LOG.name:
            per = "HTTP call and end that saw it"
        elif view.name in _ENTITIES:
            per = ", ".join(("cluster", *_ENTITIES[view.name].name_keys))
        else:
            per = ", ".join(n for n in names if n in _KEYS or n in _KEYS_OF_ONE_VIEW)
        periods = [p for p in ("hourly", "daily") if f"{view.name}_{p}" in _VIEW_BY_NAME]
        also = f"; also *_{' and *_'.join(periods)}" if periods else ""
        rows.append((view.name, per, f"{view.comment}{also}"))
    return ("table", "one row per", "what"), rows


def _columns(table: str) -> Listing:
    view = _VIEW_BY_NAME[table]
    rows: list[tuple[str, ...]] = [(each.name, each.type, each.comment) for each in view.columns]
    return (f"column of {table}", "type", "what"), rows


def _figures() -> Listing:
    rows: list[tuple[str, ...]] = [
        (
            figure.name,
            figure.unit,
            "where possible" if figure.optional else "always",
            figure.description,
        )
        for figure in (*FIGURES, *PROVENANCE)
    ]
    return ("figure", "unit", "measured", "what"), rows


def _oap() -> Listing:
    former, later = metrics_of(FORMER), metrics_of(LATER)
    rows: list[tuple[str, ...]] = []
    for name in sorted(former | later):
        known = {g: found[name] for g, found in ((FORMER, former), (LATER, later)) if name in found}
        if len(known) == 2 and known[FORMER].sql == known[LATER].sql:
            known = {"all": known[LATER]}
        for generation, metric in known.items():
            note = f"; {metric.note}" if metric.note else ""
            rows.append(
                (
                    name,
                    GENERATIONS.get(generation, generation),
                    f"{metric.table}, {metric.role or 'both roles'}",
                    f"{metric.sql or 'not kept'}{note}",
                )
            )
    return ("metric of an OAP", "version", "table", "expression over its rows"), rows


_ENTITIES: Final = {scope.entity_table: scope for scope in SCOPES}
_VIEW_BY_NAME: Final = {view.name: view for view in VIEWS}
_LISTINGS: Final = {"topics": _topics, "tables": _tables, "figures": _figures, "oap": _oap}


def _shown(text: str) -> str:
    # For argparse, which shows the message.
    if text not in _LISTINGS and text not in _VIEW_BY_NAME:
        raise ArgumentTypeError(
            f"{text!r} is none of {', '.join(_LISTINGS)}, and no table of `schema show tables`"
        )
    return text
