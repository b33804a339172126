"""SQL over HTTP in ClickHouse's own manner, for the engine inside this process.

What curl, Grafana or clickhouse-connect send to a ClickHouse server works here too, as far as it
reads: the query in the URL or the body, ``FORMAT``, ``default_format``, ``database``, ``param_*``,
output settings, gzip, ``/ping``, and ClickHouse's own headers and error texts.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import sys
import threading
import uuid
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from schemas.errors import ConfigError
from schemas.telemetry import counter
from sink.sql_engine import QueryFailed, Request

if TYPE_CHECKING:
    from sink.sql_engine import Answer, SqlEngine

__all__ = ["SqlServer"]

MAX_BODY: Final = 1024 * 1024
_DISCARDED: Final = 16 * MAX_BODY
_IDLE_S: Final = 30.0

_NOT_SETTINGS: Final = frozenset(
    {
        *("query", "query_id", "database", "default_format", "user", "password", "quota_key"),
        *("session_id", "session_timeout", "session_check", "close_session", "role"),
        *("wait_end_of_query", "buffer_size", "client_protocol_version", "stacktrace"),
        *("enable_http_compression", "http_zlib_compression_level", "add_http_cors_header"),
        *("send_progress_in_http_headers", "http_headers_progress_interval_ms"),
        *("cancel_http_readonly_queries_on_client_close", "log_queries", "decompress"),
    }
)
"""URL parameters that are about the request, or that make no difference here."""

_CONTENT_TYPES: Final = {
    "tabseparated": "text/tab-separated-values; charset=UTF-8",
    "tsv": "text/tab-separated-values; charset=UTF-8",
    "csv": "text/csv; charset=UTF-8; header=absent",
    "csvwithnames": "text/csv; charset=UTF-8; header=present",
    "json": "application/json; charset=UTF-8",
    "jsoncompact": "application/json; charset=UTF-8",
    "jsoneachrow": "application/x-ndjson; charset=UTF-8",
    "native": "application/octet-stream",
}

_STATUS: Final = {
    **dict.fromkeys((62, 36, 27, 41, 42, 43, 53, 6, 457, 115, 456), 400),
    **dict.fromkeys((164, 497, 452), 403),
    **dict.fromkeys((46, 47, 60, 81), 404),
    159: 408,
    202: 503,
    48: 501,
}
"""HTTP status of ClickHouse codes; others are 500. Source: ClickHouse
src/Server/HTTP/exceptionCodeToHTTPStatus.cpp."""

log = logging.getLogger(__name__)


class SqlServer:
    """Answers queries from threads of its own, until `stop`.

    Raises:
        ConfigError: If the port is taken.
    """

    def __init__(self, engine: SqlEngine, host: str, port: int) -> None:
        handler = type("Handler", (_Exchange,), {"engine": engine, "timeout": _IDLE_S})
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise ConfigError(
                "sink.sql_port", f"{host}:{port} cannot be used: {error.strerror}"
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="sql", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port; queries that run end with the engine."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that goes away before its answer is its own business; the others are counted.
        error = sys.exception()
        counter("podwire_errors_total").labels("sql", type(error).__name__).inc()
        if not isinstance(error, ConnectionError):
            log.warning("query of %s: %r", client_address, error)


class _Exchange(BaseHTTPRequestHandler):
    # One connection. `engine` is set by the subclass that SqlServer makes.
    engine: SqlEngine
    protocol_version = "HTTP/1.1"
    server_version = "podwire"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path in ("/ping", "/replicas_status"):
            self._send(200, b"Ok.\n", {})
        elif path != "/":
            self._send(404, b"There is no handle here: try /?query=SELECT+1\n", {})
        elif not urlsplit(self.path).query:
            self._send(200, b"Ok.\n", {})
        else:
            self._answer(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self._body()
        if body is not None:
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        parameters = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        query_id = parameters.get("query_id") or str(uuid.uuid4())
        headers = {"X-ClickHouse-Query-Id": query_id, "X-ClickHouse-Server-Display-Name": "podwire"}
        try:
            answer = self._run(parameters, body, query_id)
        except QueryFailed as failure:
            counter("podwire_sink_queries_total").labels("failed").inc()
            headers["X-ClickHouse-Exception-Code"] = str(failure.code)
            self._send(_STATUS.get(failure.code, 500), f"{failure}\n".encode(), headers)
            return
        counter("podwire_sink_queries_total").labels("answered").inc()
        headers["X-ClickHouse-Format"] = answer.format
        headers["X-ClickHouse-Timezone"] = "UTC"
        headers["X-ClickHouse-Summary"] = json.dumps(answer.summary, separators=(",", ":"))
        content_type = _CONTENT_TYPES.get(answer.format.lower(), "text/plain; charset=UTF-8")
        content = answer.body
        accepted = self.headers.get("Accept-Encoding", "")
        if parameters.get("enable_http_compression") == "1" and "gzip" in accepted:
            content = gzip.compress(content, 3)
            headers["Content-Encoding"] = "gzip"
        self._send(200, content, headers, content_type)

    def _run(self, parameters: dict[str, str], body: bytes, query_id: str) -> Answer:
        try:
            query = "\n".join(t for t in (parameters.get("query", ""), body.decode()) if t)
        except UnicodeDecodeError as error:
            raise QueryFailed(
                "Code: 62. DB::Exception: The query is not UTF-8. (SYNTAX_ERROR)"
            ) from error
        if parameters.get("compress") == "1":
            raise QueryFailed(
                "Code: 48. DB::Exception: compress=1 is not supported here, "
                "use enable_http_compression=1. (NOT_IMPLEMENTED)"
            )
        default = parameters.get("default_format") or self.headers.get("X-ClickHouse-Format")
        database = parameters.get("database") or self.headers.get("X-ClickHouse-Database")
        return self.engine.run(
            Request(
                query=query,
                database=database or "default",
                format=default or "TabSeparated",
                parameters={
                    name.removeprefix("param_"): value
                    for name, value in parameters.items()
                    if name.startswith("param_")
                },
                settings={
                    name: value
                    for name, value in parameters.items()
                    if name not in _NOT_SETTINGS
                    and not name.startswith("param_")
                    and name != "compress"
                },
                query_id=query_id,
            )
        )

    def _body(self) -> bytes | None:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._chunks()
        text = self.headers.get("Content-Length", "0")
        length = int(text) if text.isdecimal() else -1
        if not 0 <= length <= MAX_BODY:
            # A client that is still sending would see a broken pipe instead of the answer.
            left = min(length, _DISCARDED)
            while left > 0 and (piece := self.rfile.read(min(left, 65536))):
                left -= len(piece)
            self.close_connection = True
            self._send(413, b"The query is too large\n", {})
            return None
        return self._decoded(self.rfile.read(length))

    def _chunks(self) -> bytes | None:
        pieces: list[bytes] = []
        total = 0
        while True:
            size_text = self.rfile.readline(32).split(b";")[0].strip()
            try:
                size = int(size_text, 16)
            except ValueError:
                size = -1
            total += size
            if size < 0 or total > MAX_BODY:
                self.close_connection = True
                self._send(413, b"The query is too large or badly framed\n", {})
                return None
            pieces.append(self.rfile.read(size))
            self.rfile.readline(8)
            if size == 0:
                return self._decoded(b"".join(pieces))

    def _decoded(self, body: bytes) -> bytes | None:
        encoding = self.headers.get("Content-Encoding", "identity")
        if encoding == "identity":
            return body
        try:
            if encoding == "gzip":
                with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
                    plain = file.read(MAX_BODY + 1)
                if len(plain) <= MAX_BODY:
                    return plain
        except (OSError, EOFError, zlib.error) as error:
            log.debug("bad gzip body: %s", error)
        self._send(400, b"Only plain or gzip bodies of at most 1 MiB\n", {})
        return None

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str],
        content_type: str = "text/plain; charset=UTF-8",
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, "".join(c for c in value if c.isprintable()))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)
