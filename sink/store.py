"""ClickHouse behind a small interface: a server over HTTP or the engine inside this process.

Both go through clickhouse-connect and take the same bytes. Errors are told apart by ClickHouse's
numeric code: those that pass by themselves become `RetryableError`, the others `FatalError`.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError
from urllib3.exceptions import HTTPError

from schemas.errors import ConfigError, FatalError, RetryableError, SinkBackpressure, TransportError
from schemas.telemetry import counter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sink.batches import Insert
    from sink.config import SinkConfig
    from sink.statements import Layout

__all__ = ["Store"]

_BACKPRESSURE: Final = {
    202,  # TOO_MANY_SIMULTANEOUS_QUERIES
    241,  # MEMORY_LIMIT_EXCEEDED
    243,  # NOT_ENOUGH_SPACE
    252,  # TOO_MANY_PARTS
    439,  # CANNOT_SCHEDULE_TASK
    574,  # DISTRIBUTED_TOO_MANY_PENDING_BYTES
    745,  # SERVER_OVERLOADED
}
_TRANSIENT: Final = {
    3,  # UNEXPECTED_END_OF_FILE: the request was cut
    32,  # ATTEMPT_TO_READ_AFTER_EOF: likewise
    159,  # TIMEOUT_EXCEEDED
    160,  # TOO_SLOW
    198,  # DNS_ERROR: of a replica, while it moves
    203,  # NO_FREE_CONNECTION
    209,  # SOCKET_TIMEOUT
    210,  # NETWORK_ERROR
    225,  # NO_ZOOKEEPER
    236,  # ABORTED: the server shuts down
    242,  # TABLE_IS_READ_ONLY: a replica lost its Keeper session
    279,  # ALL_CONNECTION_TRIES_FAILED
    285,  # TOO_FEW_LIVE_REPLICAS
    286,  # UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
    319,  # UNKNOWN_STATUS_OF_INSERT: the token decides at the next try
    394,  # QUERY_WAS_CANCELLED
    473,  # DEADLOCK_AVOIDED
    999,  # KEEPER_EXCEPTION
}
_PAUSE_S: Final = 5.0

_ONE_BLOCK: Final = 1 << 31
"""Rows of one insert never split: a part of an insert must not be stored alone."""

_INSERT_SETTINGS: Final = {
    "async_insert": 0,  # the server's default may be 1, which knows tokens only half
    "wait_end_of_query": 1,
    "insert_deduplicate": 1,
    "optimize_on_insert": 0,
    "max_insert_block_size": _ONE_BLOCK,
    "min_insert_block_size_rows": _ONE_BLOCK,
    "min_insert_block_size_bytes": 0,
    "max_insert_threads": 1,
    "distributed_foreground_insert": 1,
}

log = logging.getLogger(__name__)


class Store:
    """One connection. Not for use by several threads at once."""

    def __init__(self, client: Any, layout: Layout) -> None:
        self._client = client
        self.layout = layout

    @classmethod
    def connect(cls, config: SinkConfig, database: str = "default") -> Store:
        """Open the engine or reach the server.

        Raises:
            ConfigError: If the engine is not installed or its directory is in use.
            TransportError: If the server does not answer.
            FatalError: If it answers but refuses.
        """
        arguments: dict[str, Any]
        if config.embedded:
            path = unquote(config.url.removeprefix("chdb://"))
            try:
                Path(path).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError("sink.url", f"{path}: {error.strerror}") from error
            arguments = {"interface": "chdb", "path": path}
        else:
            url = urlsplit(config.url)
            arguments = {
                "interface": url.scheme,
                "host": url.hostname or "127.0.0.1",
                "port": url.port or (8443 if url.scheme == "https" else 8123),
                "username": unquote(url.username or "default"),
                "password": config.password or unquote(url.password or ""),
                "send_receive_timeout": int(config.insert_timeout_s),
                "compress": "lz4",
                "query_retries": 0,
                # A session id would make the server refuse a retry that overlaps the request it
                # repeats, and one statement at a time needs no session.
                "autogenerate_session_id": False,
            }
        try:
            client = clickhouse_connect.get_client(database=database, **arguments)
        except ImportError as error:
            raise ConfigError("sink.url", f"{error}: install podwire[local]") from error
        except (ClickHouseError, HTTPError, OSError, RuntimeError) as error:
            if config.embedded:
                text = _one_line(error)
                raise ConfigError("sink.url", f"{path} cannot be opened: {text}") from error
            raise _translated(error, f"ClickHouse at {_shown(config.url)}") from error
        return cls(client, config.layout())

    @property
    def version(self) -> str:
        """Version of the server or engine."""
        return str(self._client.server_version)

    def insert(self, insert: Insert) -> None:
        """Store one batch; when this returns, the rows survive the death of every process.

        Raises:
            RetryableError: If the same call may succeed later. Repeating it stores nothing twice.
            FatalError: If it will not.
        """
        settings: dict[str, Any] = dict(_INSERT_SETTINGS)
        if insert.token:
            settings["insert_deduplication_token"] = insert.token
        begin = time.monotonic()
        try:
            self._client.raw_insert(
                self.layout.written(insert.table),
                insert.columns,
                insert.payload,
                fmt="Native",
                settings=self._known(settings),
            )
        except (ClickHouseError, HTTPError, OSError, RuntimeError) as error:
            raise _translated(error, f"insert into {insert.table.name}") from error
        finally:
            counter("podwire_sink_insert_seconds_total").inc(time.monotonic() - begin)
        counter("podwire_sink_rows_total").labels(insert.table.name).inc(insert.rows)

    def command(
        self,
        statement: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Run a statement that returns no rows.

        Raises:
            RetryableError: If the same call may succeed later.
            FatalError: If it will not.
        """
        try:
            self._client.command(
                statement,
                parameters=dict(parameters or {}),
                settings=self._known(dict(settings or {})),
            )
        except (ClickHouseError, HTTPError, OSError, RuntimeError) as error:
            raise _translated(error, statement.split("\n", 1)[0][:80]) from error

    def rows(
        self, query: str, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[tuple[Any, ...]]:
        """Return the rows of a small query.

        Raises:
            RetryableError: If the same call may succeed later.
            FatalError: If it will not.
        """
        try:
            result = self._client.query(query, parameters=dict(parameters or {}))
        except (ClickHouseError, HTTPError, OSError, RuntimeError) as error:
            raise _translated(error, query[:80]) from error
        rows: Sequence[tuple[Any, ...]] = result.result_rows
        return rows

    def close(self) -> None:
        """Give the connection back; the embedded engine ends with its last connection."""
        self._client.close()

    def _known(self, settings: dict[str, Any]) -> dict[str, Any]:
        # Servers of several versions: a setting that one does not have cannot matter there.
        known = self._client.server_settings
        keep = self._client.valid_transport_settings
        return {name: value for name, value in settings.items() if name in known or name in keep}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _shown(url: str) -> str:
    # The URL without its credentials.
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _translated(error: Exception, doing: str) -> RetryableError | FatalError:
    code = getattr(error, "code", None)
    text = f"{doing}: {_one_line(error)}"
    if code in _BACKPRESSURE:
        return SinkBackpressure(text, _PAUSE_S)
    if code in _TRANSIENT:
        return RetryableError(text)
    if code is None and not isinstance(error, RuntimeError):
        # No answer of ClickHouse's own: the connection, a proxy, or a server that is starting.
        return TransportError(text)
    return FatalError(text)
