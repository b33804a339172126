"""Real servers for the traffic suite; each keeps a log of its own, which is the truth.

All listen on one address, loopback unless told otherwise, in the network namespace of the thread
that starts them (``with host.inside():``). Stopping is in order, so that every line is written.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tests.requirements import unmet
from tests.support.kafka import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CACHE",
    "LARGE",
    "GrpcServer",
    "Nginx",
    "NodeServer",
    "Server",
    "node_modules",
    "node_path",
    "search_path",
]

HERE: Final = Path(__file__).parent
REPOSITORY: Final = HERE.parents[1]
CACHE: Final = REPOSITORY / ".cache"
READY_S: Final = 20.0
STOP_S: Final = 15.0
LARGE: Final = 50 * 1024 * 1024
"""Bytes of ``/static/50m``."""
FILES: Final = {"0": 0, "1k": 1024, "100k": 102_400, "1m": 1 << 20, "50m": LARGE}
"""Below ``/static/`` (by sendfile) and ``/copied/`` (through nginx's memory)."""

_FIELDS: Final = {
    "connection": "$connection",
    "sequence": "$connection_requests",
    "port": "$remote_port",
    "msec": "$msec",
    "method": "$request_method",
    "uri": "$request_uri",
    "request": "$request",
    "protocol": "$server_protocol",
    "status": "$status",
    "request_length": "$request_length",
    "request_time": "$request_time",
    "bytes_sent": "$bytes_sent",
    "body_bytes_sent": "$body_bytes_sent",
    "response_length": "$sent_http_content_length",
    "response_coding": "$sent_http_transfer_encoding",
    "content_length": "$http_content_length",
    "coding": "$http_transfer_encoding",
    "expect": "$http_expect",
    "id": "$http_x_test_id",
    "received": "$upstream_http_x_received",
    "upstream_length": "$upstream_response_length",
    "completion": "$request_completion",
    "server_port": "$server_port",
}
_LOG_FORMAT: Final = "{" + ",".join(f'"{name}":"{value}"' for name, value in _FIELDS.items()) + "}"

_CONFIGURATION: Final = """\
daemon off;
worker_processes {workers};
pid {work}/nginx.pid;
error_log {work}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  log_format truth escape=json '{log_format}';
  access_log {work}/access.log truth;
  client_body_temp_path {work}/body;
  proxy_temp_path {work}/proxy;
  fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi;
  scgi_temp_path {work}/scgi;
  default_type application/octet-stream;
  gzip off;
  keepalive_requests 1000000;
  keepalive_timeout 60s;
  http2_max_concurrent_streams 256;
  large_client_header_buffers 4 32k;
  client_max_body_size 64m;
  lingering_timeout 1s;
  upstream backend {{ server {address}:{backend}; keepalive 8; }}
  server {{
    listen {address}:{port};
    listen {address}:{port2} http2;
    sendfile on;
    location /static/ {{ alias {work}/www/; etag on; }}
    location /copied/ {{ sendfile off; alias {work}/www/; }}
    location /return/200 {{ return 200 "short\\n"; }}
    location /return/204 {{ return 204; }}
    location /return/301 {{ return 301 /static/1k; }}
    location /return/304 {{ return 304; }}
    location /return/404 {{ return 404; }}
    location /return/500 {{ return 500; }}
    location /limited {{
      client_max_body_size 1k;
      proxy_pass http://backend;
    }}
    location /unbuffered/ {{
      proxy_pass http://backend/;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_request_buffering off;
      proxy_buffering off;
    }}
    location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
"""


def node_path() -> Path:
    """Folder of the Node packages that the suite uses, installed once; skips the test without."""
    return node_modules(HERE / "node", CACHE / "http-node")


def node_modules(source: Path, where: Path, *options: str) -> Path:
    """Folder of the packages that a lock names, installed once; skips the test without.

    Args:
        source: Has ``package.json``, ``package-lock.json`` and ``.npmrc``.
        where: To install them.
        options: For ``npm ci``.
    """
    lock, done, modules = source / "package-lock.json", where / "done", where / "node_modules"
    if done.is_file() and done.read_bytes() == lock.read_bytes() and modules.is_dir():
        return modules
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            unmet("bpf", f"no {tool} on PATH (Debian: nodejs, npm)")
    where.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(source / name, where / name)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-progress"]
    answer = subprocess.run(
        [*command, *options], cwd=where, capture_output=True, text=True, check=False, timeout=180
    )
    if answer.returncode:
        unmet("bpf", f"npm ci: {answer.stderr.strip()[-300:]}")
    shutil.copy(lock, done)
    return modules


class Server:
    """A process that serves; use as a context manager.

    Args:
        work: Directory for its files; made if it is not there.
        address: Where it listens.
    """

    name = ""
    stop_signal = signal.SIGTERM

    def __init__(self, work: Path, address: str = "127.0.0.1") -> None:
        self.work = work
        self.address = address
        self.log = work / "access.log"
        self.port = free_port(address)
        self.process: subprocess.Popen[bytes] | None = None

    def argv(self) -> Sequence[str]:
        """Its command line."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the first process."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start it and wait until it listens.

        Raises:
            RuntimeError: If it does not come up; says what it printed.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        with (self.work / "errors.txt").open("ab") as errors:
            self.process = subprocess.Popen(
                self.argv(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=REPOSITORY,
                env=os.environ | self.environment(),
            )
        if not self._is_ready():
            self.process.kill()
            self.process.wait()
            said = (self.work / "errors.txt").read_text(errors="replace")[-500:]
            raise RuntimeError(f"{self.name} did not start: {said}")

    def environment(self) -> dict[str, str]:
        """Variables beside the caller's."""
        return {}

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.stdout is not None
        waiting = select.poll()
        waiting.register(self.process.stdout, select.POLLIN)
        return bool(waiting.poll(READY_S * 1000)) and self.process.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        """End it in order; safe to repeat."""
        if self.process is None:
            return
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None

    def lines(self) -> list[dict[str, Any]]:
        """What it logged so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def await_lines(self, count: int, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """Wait until it has logged so many; what there is after that or the timeout."""
        deadline = time.monotonic() + timeout_s
        while len(found := self.lines()) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return found


class Nginx(Server):
    """nginx with HTTP/1 on `port` and cleartext HTTP/2 on `port2`.

    Args:
        work: Directory for its files.
        backend: Port of a `NodeServer` of kind http on the same address.
        address: Where it listens.
        workers: Worker processes.
    """

    name = "nginx"
    stop_signal = signal.SIGQUIT

    def __init__(
        self, work: Path, backend: int, address: str = "127.0.0.1", workers: int = 1
    ) -> None:
        super().__init__(work, address)
        self.port, self.port2 = free_port(address), free_port(address)
        self._backend = backend
        self._workers = workers

    def argv(self) -> Sequence[str]:
        if shutil.which("nginx", path=search_path()) is None:
            unmet("bpf", "no nginx (Debian: nginx-light)")
        www = self.work / "www"
        www.mkdir(exist_ok=True)
        for name, size in FILES.items():
            with (www / name).open("wb") as file:
                file.truncate(size)
        text = _CONFIGURATION.format(
            work=self.work,
            address=f"[{self.address}]" if ":" in self.address else self.address,
            port=self.port,
            port2=self.port2,
            backend=self._backend,
            workers=self._workers,
            log_format=_LOG_FORMAT,
        )
        if os.geteuid() == 0:
            text = f"user root;\n{text}"
        (self.work / "nginx.conf").write_text(text)
        nginx = shutil.which("nginx", path=search_path()) or "nginx"
        return [nginx, "-c", str(self.work / "nginx.conf"), "-e", str(self.work / "error.log")]

    def _is_ready(self) -> bool:
        # Listening sockets are made before the workers; connecting would leave a trace.
        deadline = time.monotonic() + READY_S
        assert self.process is not None
        while time.monotonic() < deadline and self.process.poll() is None:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
            written = (self.work / "nginx.pid").is_file()
            if written and len(children.read_text().split()) >= self._workers:
                return True
            time.sleep(0.02)
        return False


class NodeServer(Server):
    """A Node.js server: ``http``, ``http2`` or ``grpc``."""

    def __init__(self, work: Path, kind: str, address: str = "127.0.0.1") -> None:
        super().__init__(work, address)
        self.name = self.kind = kind

    def argv(self) -> Sequence[str]:
        node = shutil.which("node")
        if node is None:
            unmet("bpf", "no node on PATH (Debian: nodejs)")
        script = str(HERE / "node" / "server.js")
        return [node, script, self.kind, self.address, str(self.port), str(self.log)]

    def environment(self) -> dict[str, str]:
        return {"NODE_PATH": str(node_path())} if self.kind == "grpc" else {}


class GrpcServer(Server):
    """A grpcio server."""

    name = "grpcio"

    def argv(self) -> Sequence[str]:
        arguments = [self.address, str(self.port), str(self.log)]
        return [sys.executable, "-m", "tests.http.grpc_server", *arguments]


def search_path() -> str:
    """Where programs are, those of the administrator included."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
