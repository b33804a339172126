"""``podwire doctor``: what this machine can measure, and how much of what is stored is known.

The first part is the collector's own report. The second asks the database, if one answers where
the sink writes to: that of a cluster, or of a running ``podwire local``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from collector import doctor
from collector.config import CollectorConfig
from deploy.endpoint import QueryError, ask
from schemas.config import SCOPE, load_file
from schemas.errors import TransportError
from schemas.monitoring import MonitoringScope
from sink.config import SinkConfig

if TYPE_CHECKING:
    import argparse

__all__ = [
    "HELP",
    "add_arguments",
    "coverage",
    "coverage_table",
    "inside_tls",
    "run",
    "scope_text",
    "tls_table",
]

HELP = doctor.HELP
_TIMEOUT_S: Final = 3.0
_LOCAL_PORT: Final = 8123
QUERY: Final = """
SELECT role, resolution, reason,
       sum(connection_count) AS connections, sum(byte_count) AS bytes,
       connections / nullIf(sum(connections) OVER (PARTITION BY role), 0) AS connection_share,
       bytes / nullIf(sum(bytes) OVER (PARTITION BY role), 0) AS byte_share
FROM coverage
WHERE time >= now() - INTERVAL 1 HOUR
GROUP BY role, resolution, reason
ORDER BY role, connections DESC, bytes DESC
SETTINGS output_format_json_quote_64bit_integers = 0
"""
TLS_QUERY: Final = """
SELECT service, process, sum(byte_count) AS bytes,
       sumIf(byte_count, readability = 'readable') / nullIf(bytes, 0) AS readable_share,
       arraySort(groupUniqArrayIf(tls_version, tls_version != '')) AS versions,
       arraySort(groupUniqArrayIf(3)(server_name, server_name != '')) AS server_names,
       arraySort(groupUniqArrayIf(unreadable_reason, unreadable_reason != '')) AS reasons
FROM tls
WHERE time >= now() - INTERVAL 1 HOUR
GROUP BY service, process
ORDER BY bytes DESC, service, process
LIMIT 20
SETTINGS output_format_json_quote_64bit_integers = 0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument(
        "--skip-coverage", action="store_true", help="do not ask the database what is known"
    )
    doctor.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print all reports; 0 if the collector can work here, else 1."""
    code = doctor.run(arguments)
    file = load_file(arguments.config) if arguments.config else None
    console = Console()
    named = CollectorConfig.load(file, options=vars(arguments)).scope_file
    scope = load_file(Path(named)) if named else file or {}
    console.print(scope_text(MonitoringScope.parse(scope.get(SCOPE))))
    console.print()
    if arguments.skip_coverage:
        return code
    config = SinkConfig.load(file)
    try:
        rows, protected = coverage(config), inside_tls(config)
    except (QueryError, TransportError) as error:
        console.print(Text(f"coverage is not known: {error}"))
        return code
    console.print(coverage_table(rows))
    if protected:
        console.print()
        console.print(tls_table(protected))
    return code


def scope_text(scope: MonitoringScope) -> Text:
    """Return what is watched, for people."""
    lines = [f"  {line}" for line in str(scope).splitlines()]
    return Text("\n".join(("what is watched", *lines)))


def coverage(config: SinkConfig) -> list[dict[str, Any]]:
    """Return what the database says of the last hour, see `QUERY`.

    Args:
        config: Where the sink writes to.

    Raises:
        QueryError: If the database refuses.
        TransportError: If nobody answers there.
    """
    return _rows(config, QUERY)


def inside_tls(config: SinkConfig) -> list[dict[str, Any]]:
    """Return what the database says of TLS in the last hour, see `TLS_QUERY`; as `coverage`."""
    return _rows(config, TLS_QUERY)


def _rows(config: SinkConfig, query: str) -> list[dict[str, Any]]:
    url = config.url
    if config.embedded:
        url = f"http://{config.sql_host}:{config.sql_port or _LOCAL_PORT}"
    text = ask(
        url,
        query,
        config.database,
        password=config.password,
        output_format="JSONEachRow",
        timeout_s=_TIMEOUT_S,
    )
    return [json.loads(line) for line in text.splitlines()]


def coverage_table(rows: list[dict[str, Any]]) -> Table:
    """Return what `QUERY` found, for people."""
    table = _table("who is at the ends of connections, last hour")
    for column in ("seen by", "known to its"):
        table.add_column(column)
    for column in ("connections", "share", "bytes", "share"):
        table.add_column(column, justify="right")
    table.add_column("why no instance")
    for row in rows:
        table.add_row(
            row["role"],
            row["resolution"],
            f"{row['connections']:,}",
            _percent(row["connection_share"]),
            f"{row['bytes']:,}",
            _percent(row["byte_share"]),
            row["reason"].replace("_", " "),
        )
    return table


def tls_table(rows: list[dict[str, Any]]) -> Table:
    """Return what `TLS_QUERY` found, for people."""
    table = _table("what is inside TLS, last hour")
    for column in ("service", "process"):
        table.add_column(column)
    for column in ("bytes", "readable"):
        table.add_column(column, justify="right")
    for column in ("version", "asked for", "why not"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["service"],
            row["process"],
            f"{row['bytes']:,}",
            _percent(row["readable_share"]),
            ", ".join(row["versions"]),
            ", ".join(row["server_names"]),
            ", ".join(row["reasons"]).replace("_", " "),
        )
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
