"""Requests to a Kubernetes API server: one page of a list, and the lines of a watch.

Knows HTTP and the shape of errors, nothing of what the objects mean. Every failure is an
`ApiError`; nothing is retried here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import urllib3

from schemas.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from collector.kube.credentials import Credentials

__all__ = ["ApiClient", "ApiError", "WatchStream"]

_log = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S: Final = 10.0
_LIST_TIMEOUT_S: Final = 60.0
_WATCH_SLACK_S: Final = 30.0
_LINE_LIMIT: Final = 64 * 1024 * 1024
_READ_SIZE: Final = 64 * 1024
_KEEPALIVE: Final = (
    # A watch is silent for minutes: only probes tell a dead server from a quiet one.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class ApiError(TransportError):
    """The API server refused, failed or could not be reached (status 0)."""

    def __init__(self, reason: str, status: int = 0, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def is_expired(self) -> bool:
        """Whether the resource version or the page token is too old (410 Gone)."""
        return self.status == 410

    @property
    def label(self) -> str:
        """A short name for metrics."""
        return f"api_{self.status}" if self.status else "api_unreachable"


class ApiClient:
    """Thread-safe; connections are pooled and made anew when credentials may have changed."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._lock = threading.Lock()
        self._pool: urllib3.PoolManager | None = None

    @property
    def server(self) -> str:
        """The address, for messages."""
        return self._credentials.server

    def page(
        self, path: str, parameters: Mapping[str, str], accept: str = "application/json"
    ) -> dict[str, Any]:
        """One GET with a JSON object as answer.

        Raises:
            ApiError: On any failure.
            ConfigError: If the credentials cannot be read.
        """
        response = self._get(path, parameters, accept, _LIST_TIMEOUT_S)
        try:
            data = response.read()
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(f"{self.server}{path}: {_reason(error)}") from error
        finally:
            response.release_conn()
        document = _object(data)
        if document is None:
            raise ApiError(f"{self.server}{path}: the answer is no JSON object")
        return document

    def watch(
        self,
        path: str,
        parameters: Mapping[str, str],
        timeout_s: float,
        accept: str = "application/json",
    ) -> WatchStream:
        """Open a watch that the server ends after ``timeout_s``.

        Raises:
            ApiError: On any failure.
            ConfigError: If the credentials cannot be read.
        """
        values = {
            **parameters,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(timeout_s)),
        }
        return WatchStream(self._get(path, values, accept, timeout_s + _WATCH_SLACK_S))

    def _get(
        self, path: str, parameters: Mapping[str, str], accept: str, timeout_s: float
    ) -> urllib3.BaseHTTPResponse:
        url = f"{self.server}{path}?{urlencode(parameters)}"
        headers = {"Accept": accept, "User-Agent": "podwire-kube", **self._credentials.headers()}
        try:
            response = self._connections().request(
                "GET",
                url,
                headers=headers,
                preload_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=timeout_s),
            )
        except urllib3.exceptions.HTTPError as error:
            if isinstance(error, urllib3.exceptions.SSLError):
                self._forget_connections()
            raise ApiError(f"{self.server}: {_reason(error)}") from error
        except ValueError as error:  # http.client's word for a header or a URL it cannot send
            raise ApiError(f"{self.server}: {_reason(error)}") from error
        if response.status == 200:
            return response
        raise self._refused(response, path)

    def _refused(self, response: urllib3.BaseHTTPResponse, path: str) -> ApiError:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            # A body that breaks off says nothing that the status does not.
            data = response.read(_READ_SIZE)
            document = _object(data) or {}
            message = str(document.get("message") or response.reason or "").split("\n")[0][:300]
            if response.status == 401:
                self._forget_connections()  # the client certificate may have been rotated
            response.close()
            return ApiError(
                f"{self.server}{path}: {response.status} {message}".rstrip(),
                response.status,
                _retry_after(response, document),
            )
        response.close()
        return ApiError(f"{self.server}{path}: {response.status}", response.status)

    def _connections(self) -> urllib3.PoolManager:
        with self._lock:
            if self._pool is None:
                options: dict[str, Any] = {}
                context = self._credentials.ssl_context()
                if context is not None:
                    options["ssl_context"] = context
                    if self._credentials.is_insecure:
                        _log.warning("the certificate of %s is not checked", self.server)
                        # Said once, above; urllib3 would say it with every request.
                        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
                        options["assert_hostname"] = False
                    if self._credentials.server_name:
                        options["server_hostname"] = self._credentials.server_name
                        options["assert_hostname"] = self._credentials.server_name
                self._pool = urllib3.PoolManager(
                    num_pools=2,
                    maxsize=16,
                    block=False,
                    socket_options=list(_KEEPALIVE),
                    **options,
                )
            return self._pool

    def _forget_connections(self) -> None:
        # Not cleared: other threads' watches go on until they end.
        with self._lock:
            self._pool = None


class WatchStream:
    """The lines of one watch."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response

    def events(self) -> Iterator[dict[str, Any]]:
        """The events until the server ends the stream.

        A line that breaks off with the connection is dropped: the watch resumes before it.

        Raises:
            ApiError: If the connection breaks or a complete line is no JSON object.
        """
        rest: list[bytes] = []
        held = 0
        while True:
            try:
                data = self._response.read1(_READ_SIZE)
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                # ValueError: `interrupt` took the socket away under the read.
                raise ApiError(f"the watch broke off: {_reason(error)}") from error
            if not data:
                return
            *lines, last = data.split(b"\n")
            if lines:
                lines[0] = b"".join((*rest, lines[0]))
                rest, held = [], 0
            rest.append(last)
            held += len(last)
            if held > _LINE_LIMIT:
                raise ApiError(f"the watch sent a line longer than {_LINE_LIMIT} bytes")
            for line in lines:
                if line.strip():
                    event = _object(line)
                    if event is None:
                        raise ApiError("the watch sent a line that is no JSON object")
                    yield event

    def interrupt(self) -> None:
        """Make a read that waits in another thread end."""
        with contextlib.suppress(ValueError, RuntimeError, OSError):
            # Each says that there is nothing left to shut down.
            self._response.shutdown()

    def close(self) -> None:
        """Close the connection."""
        self._response.close()


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _retry_after(response: urllib3.BaseHTTPResponse, document: dict[str, Any]) -> float:
    details = document.get("details")
    given = response.headers.get("Retry-After") or (
        details.get("retryAfterSeconds") if isinstance(details, dict) else None
    )
    try:
        return min(300.0, max(0.0, float(given or 0)))
    except (TypeError, ValueError):  # a date: the back-off will do
        return 0.0


def _reason(error: BaseException) -> str:
    # urllib3 wraps the operating system's words in the names of its own objects.
    inner: BaseException = error
    while True:
        deeper = getattr(inner, "reason", None)
        if not isinstance(deeper, BaseException):
            deeper = inner.__cause__
        if deeper is None or deeper is inner:
            break
        inner = deeper
    text = inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)
    return (text.splitlines() or [type(inner).__name__])[0]
