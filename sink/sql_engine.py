"""Runs one query on the engine inside this process, read-only and bounded.

Every query gets a connection of its own (about a millisecond): ``SET`` and ``USE`` of one never
reach another, and the connection that inserts is never waited for.
"""

from __future__ import annotations

import os
import re
import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import chdb

from sink.sql_guard import Checked, Refused, check_query

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Answer", "QueryFailed", "Request", "SqlEngine", "SqlLimits"]

_connect: Any = chdb.connect  # untyped there

# `output_format_schema` is not among them: it names a file, which the engine then writes.
_PASSED: Final = re.compile(
    r"(output_format_(?!schema$)|format_csv_|format_json_|format_tsv_|date_time_output_format$"
    r"|max_result_rows$|result_overflow_mode$|max_rows_to_read$"
    r"|read_overflow_mode$|join_use_nulls$|extremes$|session_timezone$|union_default_mode$"
    r"|max_block_size$|totals_mode$|any_join_distinct_right_table_keys$|final$)"
)
_NUMBER: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{0,15})?")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CODE: Final = re.compile(r"Code: (\d+)")
_RESULT_BYTES: Final = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SqlLimits:
    """What one query, and all together, may use."""

    seconds: int = 30
    memory_mb: int = 2048
    queries: int = 4


@dataclass(frozen=True, slots=True)
class Request:
    """One query as it came over HTTP."""

    query: str
    database: str = "default"
    format: str = "TabSeparated"
    parameters: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    query_id: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True, slots=True)
class Answer:
    """The result in its format, and what it took."""

    body: bytes
    format: str
    summary: dict[str, str]


class QueryFailed(Exception):
    """The engine refused or gave up; the text is ClickHouse's."""

    def __init__(self, text: str) -> None:
        match = _CODE.search(text)
        text = text[match.start() :] if match else text
        super().__init__(text.strip())
        self.code = int(match[1]) if match else 1001


class SqlEngine:
    """The read-only side of the embedded engine.

    Args:
        path: Directory of the engine, which this process has open already.
        limits: Bounds of a query.
    """

    def __init__(self, path: str, limits: SqlLimits) -> None:
        # The engine compares paths as text; clickhouse-connect opens the resolved one.
        self._path = os.path.realpath(path)
        self._limits = limits
        self._slots = threading.BoundedSemaphore(limits.queries)
        # Holds the engine open between queries, and tells what it knows.
        self._keeper = _connect(self._path)
        self.version = self._tell("SELECT version()")[0]
        names = self._tell("SELECT lower(name) FROM system.table_functions")
        self._table_functions = frozenset(names)

    def run(self, request: Request) -> Answer:
        """Run one query.

        Raises:
            QueryFailed: With ClickHouse's code and text, for every failure.
        """
        try:
            checked = self._check(request.query)
        except Refused as refused:
            raise QueryFailed(f"{refused} (version {self.version})") from refused
        settings = self._settings(request.settings)
        if not _NAME.fullmatch(request.database):
            raise QueryFailed("Code: 81. DB::Exception: No such database. (UNKNOWN_DATABASE)")
        if not self._slots.acquire(timeout=self._limits.seconds):
            raise QueryFailed(
                "Code: 202. DB::Exception: Too many simultaneous queries. "
                "(TOO_MANY_SIMULTANEOUS_QUERIES)"
            )
        try:
            return self._run(request, checked, settings)
        except RuntimeError as error:
            raise QueryFailed(str(error)) from error
        finally:
            self._slots.release()

    def close(self) -> None:
        """Let the engine go."""
        self._keeper.close()

    def _check(self, query: str) -> Checked:
        return check_query(query, self._table_functions)

    def _run(self, request: Request, checked: Checked, settings: dict[str, str]) -> Answer:
        connection = _connect(self._path)
        try:
            connection.query(f"USE {request.database}")
            pairs = ", ".join(f"{name} = {_quoted(value)}" for name, value in settings.items())
            connection.query(f"SET {pairs}")
            self._restrict(connection)
            result = connection.query(
                checked.query, request.format, params=dict(request.parameters) or None
            )
            summary = {
                "read_rows": str(result.storage_rows_read()),
                "read_bytes": str(result.storage_bytes_read()),
                "written_rows": "0",
                "written_bytes": "0",
                "total_rows_to_read": "0",
                "result_rows": str(result.rows_read()),
                "result_bytes": str(result.bytes_read()),
                "elapsed_ns": str(int(result.elapsed() * 1e9)),
            }
            return Answer(bytes(result.bytes() or b""), checked.format or request.format, summary)
        finally:
            connection.close()

    def _restrict(self, connection: Any) -> None:
        # From here on the connection can change neither rows nor its own settings.
        connection.query("SET readonly = 1")

    def _settings(self, asked: Mapping[str, str]) -> dict[str, str]:
        bounds = {
            "max_execution_time": self._limits.seconds,
            "max_memory_usage": self._limits.memory_mb << 20,
            "max_result_bytes": _RESULT_BYTES,
        }
        settings = {
            "session_timezone": "UTC",
            "timeout_overflow_mode": "throw",
            "max_threads": "2",
            **{name: str(limit) for name, limit in bounds.items()},
        }
        for name, value in asked.items():
            if name in bounds:
                number = int(float(value)) if _NUMBER.fullmatch(value) else 0
                settings[name] = str(min(number, bounds[name]) or bounds[name])
            elif _PASSED.match(name) and _NAME.fullmatch(name):
                settings[name] = value
            elif name == "readonly" and value in ("1", "2"):
                continue
            else:
                raise QueryFailed(
                    f"Code: 164. DB::Exception: Cannot modify '{name}' setting in readonly mode. "
                    f"(READONLY) (version {self.version})"
                )
        return settings

    def _tell(self, query: str) -> list[str]:
        answer = self._keeper.query(query, "TabSeparated")
        return bytes(answer.bytes()).decode().split()


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
