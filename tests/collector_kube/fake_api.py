"""A Kubernetes API server as far as list and watch go, over real HTTP on loopback.

Resource versions grow with every write, lists are paged over one snapshot, watches stream chunked
JSON lines from a version on, and versions older than the last compaction are Gone. Faults are
injected by name. Source: kubernetes.io/docs/reference/using-api/api-concepts.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlparse

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

_PATH: Final = re.compile(
    r"/apis?/(?:[a-z0-9.]+/)?v1/(?:namespaces/(?P<namespace>[^/]+)/)?(?P<kind>[a-z]+)"
)
_KINDS: Final = {
    "pods": "Pod",
    "services": "Service",
    "endpointslices": "EndpointSlice",
    "nodes": "Node",
    "replicasets": "ReplicaSet",
    "jobs": "Job",
}


@dataclass
class Request:
    """What a client asked."""

    kind: str
    namespace: str
    query: dict[str, str]
    headers: dict[str, str]
    at_s: float = field(default_factory=time.monotonic)

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") in ("1", "true")


@dataclass
class Fault:
    """The answer to the next requests that match, instead of the real one."""

    status: int
    times: int = 1
    kind: str = ""
    watch: bool | None = None
    retry_after: str = ""
    body: bytes | None = None
    message: str = "injected"


@dataclass
class _Stream:
    kind: str
    position: int = 0
    inject: list[bytes] = field(default_factory=list)
    is_cut: bool = False


class FakeApi:
    """Start with ``with FakeApi() as api``."""

    def __init__(self, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.token = token
        self.expire_in_stream = True
        self.requests: list[Request] = []
        self._tls = tls
        self._expiring_tokens = 0
        self._faults: list[Fault] = []
        self._changed = threading.Condition()
        self._version = 1000
        self._oldest = 1000
        self._objects: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in _KINDS}
        self._history: list[tuple[int, str, str, dict[str, Any]]] = []
        self._tokens: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self._streams: list[_Stream] = []
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    def __enter__(self) -> FakeApi:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen; after `stop` on the same port."""
        server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        server.daemon_threads = True
        if self._tls is not None:
            server.socket = self._tls.wrap_socket(server.socket, server_side=True)
        self._server, self._port = server, server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening and cut every watch."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.cut()

    # What happens in the cluster.

    def put(self, *documents: dict[str, Any]) -> None:
        """Create or replace objects."""
        with self._changed:
            for document in documents:
                kind = _plural(document)
                uid = document["metadata"]["uid"]
                change = "MODIFIED" if uid in self._objects[kind] else "ADDED"
                self._write(kind, change, document)

    def delete(self, kind: str, uid: str) -> None:
        """Delete an object."""
        with self._changed:
            self._write(kind, "DELETED", self._objects[kind].pop(uid))

    def _write(self, kind: str, change: str, document: dict[str, Any]) -> None:
        self._version += 1
        stored = copy.deepcopy(document)
        stored["metadata"]["resourceVersion"] = str(self._version)
        if change != "DELETED":
            self._objects[kind][stored["metadata"]["uid"]] = stored
        self._history.append((self._version, change, kind, stored))
        self._changed.notify_all()

    # What happens to the server.

    def compact(self) -> None:
        """Forget all history and all page tokens."""
        with self._changed:
            self._oldest = self._version
            self._history.clear()
            self._tokens.clear()

    def bookmark(self) -> None:
        """Send every watch a bookmark of the present version."""
        with self._changed:
            for stream in self._streams:
                event = {
                    "type": "BOOKMARK",
                    "object": {
                        "kind": _KINDS[stream.kind],
                        "metadata": {"resourceVersion": str(self._version)},
                    },
                }
                stream.inject.append(_line(event))
            self._changed.notify_all()

    def inject(self, data: bytes, kind: str = "pods") -> None:
        """Send raw bytes to the watches of a kind."""
        with self._changed:
            for stream in self._streams:
                if stream.kind == kind:
                    stream.inject.append(data)
            self._changed.notify_all()

    def cut(self, kind: str = "") -> None:
        """Break the connection of the watches (of a kind)."""
        with self._changed:
            for stream in self._streams:
                if kind in ("", stream.kind):
                    stream.is_cut = True
            self._changed.notify_all()

    def fail_tokens(self, times: int) -> None:
        """Let the next page tokens expire before they are used."""
        with self._changed:
            self._expiring_tokens = times

    @contextlib.contextmanager
    def unreachable_watches(self, kind: str) -> Iterator[None]:
        """Break the watches of a kind and answer 503 until the end of the block."""
        fault = Fault(503, times=10**9, kind=kind, watch=True)
        with self._changed:
            self._faults.append(fault)
        self.cut(kind)
        self.wait_for(lambda: fault.times < 10**9)
        try:
            yield
        finally:
            with self._changed:
                fault.times = 0

    def fail(self, status: int, **options: Any) -> None:
        """Inject a `Fault`."""
        with self._changed:
            self._faults.append(Fault(status, **options))

    # What clients did.

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
        """Wait until the condition holds; it is looked at after every request and change."""
        with self._changed:
            deadline = time.monotonic() + timeout_s
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, "the client did not get there in time"
                self._changed.wait(min(left, 0.5))

    def wait_for_watches(self, *kinds: str) -> None:
        """Wait until there is a live watch of each kind."""
        self.wait_for(
            lambda: set(kinds) <= {stream.kind for stream in self._streams if not stream.is_cut}
        )

    def lists(self, kind: str) -> list[Request]:
        """The first pages of lists that were asked for."""
        return [
            request
            for request in self.requests
            if request.kind == kind and not request.is_watch and "continue" not in request.query
        ]

    def watches(self, kind: str) -> list[Request]:
        """The watches that were asked for."""
        return [r for r in self.requests if r.kind == kind and r.is_watch]

    @property
    def version(self) -> str:
        return str(self._version)

    # HTTP.

    def _handler(api) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):  # the client went away
                    api._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlparse(handler.path)
        match = _PATH.fullmatch(url.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if match is None or match["kind"] not in _KINDS:
            return _status(handler, 404, "the server could not find the requested resource")
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(match["kind"], match["namespace"] or "", query, headers)
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            fault = self._fault(request)
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            return _status(handler, 401, "Unauthorized")
        if fault is not None:
            if fault.body is not None:
                return _send(handler, fault.status, fault.body, fault.retry_after)
            return _status(handler, fault.status, fault.message, fault.retry_after)
        if request.is_watch:
            return self._watch(handler, request)
        return self._list(handler, request)

    def _fault(self, request: Request) -> Fault | None:
        for fault in self._faults:
            if fault.kind not in ("", request.kind) or not fault.times:
                continue
            if fault.watch is not None and fault.watch != request.is_watch:
                continue
            fault.times -= 1
            return fault
        return None

    def _list(self, handler: BaseHTTPRequestHandler, request: Request) -> None:
        with self._changed:
            token = request.query.get("continue", "")
            if token:
                if self._expiring_tokens:
                    self._expiring_tokens -= 1
                    self._tokens.clear()
                if token not in self._tokens:
                    return _status(handler, 410, "The provided continue parameter is too old")
                version, items = self._tokens[token]
            else:
                version = self._version
                items = [
                    document
                    for document in self._objects[request.kind].values()
                    if request.namespace in ("", document["metadata"].get("namespace"))
                ]
            limit = int(request.query.get("limit", "0")) or len(items) or 1
            page, rest = items[:limit], items[limit:]
            metadata = {"resourceVersion": str(version)}
            if rest:
                metadata["continue"] = f"token-{len(self._tokens)}-{version}"
                metadata["remainingItemCount"] = len(rest)  # type: ignore[assignment]
                self._tokens[metadata["continue"]] = (version, rest)
        # Items of a server's list carry neither kind nor apiVersion.
        shown = [_shown(document, request, without_kind=True) for document in page]
        kind = f"{_KINDS[request.kind]}List"
        body = json.dumps({"kind": kind, "metadata": metadata, "items": shown or None})
        return _send(handler, 200, body.encode())

    def _watch(self, handler: BaseHTTPRequestHandler, request: Request) -> None:
        stream = _Stream(request.kind, int(request.query["resourceVersion"]))
        with self._changed:
            is_gone = stream.position < self._oldest
            if is_gone and not self.expire_in_stream:
                return _status(handler, 410, "too old resource version")
            if not is_gone:
                self._streams.append(stream)
                self._changed.notify_all()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        if is_gone:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            _chunk(handler, _line({"type": "ERROR", "object": status}))
            _chunk(handler, b"")
            return None
        deadline = time.monotonic() + float(request.query.get("timeoutSeconds", "3600"))
        try:
            while self._stream(handler, request, stream, deadline):
                pass
        finally:
            with self._changed:
                self._streams.remove(stream)
                self._changed.notify_all()
        return None

    def _stream(
        self,
        handler: BaseHTTPRequestHandler,
        request: Request,
        stream: _Stream,
        deadline: float,
    ) -> bool:
        with self._changed:
            pending = [
                (version, change, document)
                for version, change, kind, document in self._history
                if version > stream.position
                and kind == request.kind
                and request.namespace in ("", document["metadata"].get("namespace"))
            ]
            if not pending and not stream.inject and not stream.is_cut:
                self._changed.wait(min(0.5, max(0.0, deadline - time.monotonic())))
            injected, stream.inject = stream.inject, []
            is_cut = stream.is_cut
            if is_cut:
                pending = []
        for version, change, document in pending:
            stream.position = version
            _chunk(handler, _line({"type": change, "object": _shown(document, request)}))
        for data in injected:
            _chunk(handler, data)
        if is_cut:
            handler.close_connection = True
            with contextlib.suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)
            return False
        if time.monotonic() >= deadline:
            _chunk(handler, b"")
            return False
        return True


def _plural(document: dict[str, Any]) -> str:
    return next(plural for plural, kind in _KINDS.items() if kind == document["kind"])


def _shown(
    document: dict[str, Any], request: Request, *, without_kind: bool = False
) -> dict[str, Any]:
    shown = dict(document)
    if "PartialObjectMetadata" in request.headers.get("accept", ""):
        shown = {
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": document["metadata"],
        }
    if without_kind:
        shown.pop("kind", None)
        shown.pop("apiVersion", None)
    return shown


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _chunk(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
    handler.wfile.flush()


def _status(
    handler: BaseHTTPRequestHandler, status: int, message: str, retry_after: str = ""
) -> None:
    body = {"kind": "Status", "status": "Failure", "message": message, "code": status}
    _send(handler, status, json.dumps(body).encode(), retry_after)


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, retry_after: str = "") -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    if retry_after:
        handler.send_header("Retry-After", retry_after)
    handler.end_headers()
    handler.wfile.write(body)
