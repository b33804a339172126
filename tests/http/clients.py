"""Clients of many kinds, each with its own count of what it asked.

Every function makes bounded traffic to one server and returns a `Sent`. What became of each request
is in the log of the server; what a client counts itself says that the log is whole. They run in the
network namespace of the thread that calls them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from tests.http.servers import HERE, node_path
from tests.requirements import unmet

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Address",
    "Sent",
    "curl",
    "curl_each",
    "grpc_calls",
    "h2load",
    "keep_alive",
    "node_grpc_calls",
    "node_http2",
    "run_tool",
    "wrk",
]

LIMIT_S: Final = 120.0
Address = tuple[str, int]
_SERVICE: Final = "/podwire.test.Echo"


@dataclass(frozen=True)
class Sent:
    """What a client counted.

    Attributes:
        requests: Begun, so that the server must know of each.
        answered: Answered in full, as far as the client itself saw.
    """

    requests: int
    answered: int

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.requests + other.requests, self.answered + other.answered)


NOTHING: Final = Sent(0, 0)


def run_tool(command: Sequence[str], **options: Any) -> str:
    """Run a program to its end, which must be a good one; what it printed."""
    if shutil.which(command[0]) is None:
        unmet("bpf", f"no {command[0]} on PATH (deploy/apt-packages.txt)")
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=LIMIT_S, **options
    )
    if answer.returncode:
        raise RuntimeError(f"{command[0]}: {(answer.stderr or answer.stdout)[-500:]}")
    return answer.stdout


def _url(address: Address, path: str = "") -> str:
    host, port = address
    return f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"


# -- tools ----------------------------------------------------------------------------------------

_WRK: Final = """
-- One thread sends `limit` of what `paths` say, `depth` at a time, and says when all are answered.
local paths, depth, limit, at, answers = PATHS, DEPTH, LIMIT, -DEPTH, 0
function request()
  local out = {}
  for i = 1, at < limit and depth or 0 do
    at = at + 1
    out[i] = wrk.format("GET", paths[at % #paths + 1])
  end
  return table.concat(out)
end
function response()
  answers = answers + 1
  if answers == limit then io.write("all answered\\n") io.flush() end
end
"""
"""The first call only tells wrk how many requests there are in one."""


def wrk(
    address: Address, paths: Sequence[str], count: int, connections: int, depth: int = 1
) -> Sent:
    """wrk on one thread, until all is answered: at its own end it leaves what is under way.

    Args:
        address: Of the server.
        paths: Asked for in turn.
        count: Requests, less those that fill no pipeline.
        connections: Kept open.
        depth: Requests that each sends at once.

    Raises:
        RuntimeError: If it ended before.
    """
    if shutil.which("wrk") is None:
        unmet("bpf", "no wrk on PATH (deploy/apt-packages.txt)")
    count -= count % depth
    listed = "{" + ",".join(f'"{path}"' for path in paths) + "}"
    script = _WRK.replace("PATHS", listed).replace("DEPTH", str(depth))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script.replace("LIMIT", str(count)))
        file.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{LIMIT_S:.0f}s", "-s", file.name]
        with subprocess.Popen(
            [*command, _url(address)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            said = []
            try:
                for line in process.stdout:
                    if line == "all answered\n":
                        break
                    said.append(line)
                else:
                    raise RuntimeError(f"wrk: {''.join(said)[-500:]}")
            finally:
                process.kill()
    return Sent(count, count)


def h2load(
    address: Address,
    paths: Sequence[str],
    count: int,
    connections: int,
    streams: int = 100,
    http1: bool = False,
    body: int = 0,
) -> Sent:
    """h2load; HTTP/2 by prior knowledge, or HTTP/1.1 with pipelines of ``streams``."""
    with tempfile.NamedTemporaryFile() as file:
        options = [f"-n{count}", f"-c{connections}", f"-m{streams}", "-t1"]
        if http1:
            options.append("--h1")
        if body:
            file.truncate(body)
            options += ["-d", file.name]
        said = run_tool(["h2load", *options, *(_url(address, path) for path in paths)])
    found = re.search(r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded", said)
    assert found is not None, said
    return Sent(int(found[2]), int(found[3]))


def curl(address: Address, path: str, *options: str, text: str | None = None) -> tuple[int, int]:
    """One curl; its exit code and the status that it saw."""
    if shutil.which("curl") is None:
        unmet("bpf", "no curl on PATH (Debian: curl)")
    command = ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", "--max-time", "60", *options]
    answer = subprocess.run(
        [*command, _url(address, path)],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    return answer.returncode, int(answer.stdout or 0)


def curl_each(
    address: Address, asked: Iterable[tuple[str, Sequence[str]]], at_once: int = 4
) -> Sent:
    """A curl for each (path, options)."""
    with ThreadPoolExecutor(at_once) as pool:
        codes = list(pool.map(lambda one: curl(address, one[0], *one[1], text="t" * 3000), asked))
    return Sent(len(codes), sum(code == 0 for code, _ in codes))


# -- libraries ------------------------------------------------------------------------------------


class KeepAlive:
    """A connection of ``http.client`` that goes on being used."""

    def __init__(self, address: Address) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=30)
        self.sent = NOTHING

    def ask(
        self, path: str, method: str = "GET", body: Any = None, chunked: bool = False, **fields: str
    ) -> int:
        """One request; its status."""
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        if chunked:
            size = 1000
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            headers["Transfer-Encoding"] = "chunked"
            self._connection.request(method, path, iter(pieces), headers, encode_chunked=True)
        else:
            self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        response.read()
        self.sent += Sent(1, 1)
        return response.status

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def keep_alive(address: Address, tag: str, count: int) -> Sent:
    """``http.client`` on one connection: all methods, sizes, chunked both ways."""
    kinds: list[tuple[str, str, bytes | None, bool]] = [
        ("GET", "/size/100/", None, False),
        ("POST", "/size/10/", b"k" * 500, False),
        ("POST", "/size/10/", b"k" * 2500, True),
        ("GET", "/chunked/3/400/", None, False),
        ("HEAD", "/size/30/", None, False),
        ("GET", "/status/404/", None, False),
        ("DELETE", "/status/204/", None, False),
        ("GET", "/status/500/", None, False),
        ("PUT", "/size/0/", b"", False),
        ("OPTIONS", "/size/3/", None, False),
    ]
    client = KeepAlive(address)
    for number in range(count):
        method, path, body, chunked = kinds[number % len(kinds)]
        client.ask(f"{path}{tag}{number}?query={number}", method, body, chunked)
    client.close()
    return client.sent


class Grpc:
    """A channel of grpcio that goes on being used; counts by method.

    Args:
        address: Of the server.
        certificate: Of ``localhost``, which the server must show; empty: no TLS.
    """

    def __init__(self, address: Address, certificate: str = "") -> None:
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
        ]
        target = f"{host}:{address[1]}"
        if certificate:
            credentials = grpc.ssl_channel_credentials(Path(certificate).read_bytes())
            options.append(("grpc.ssl_target_name_override", "localhost"))
            self._channel = grpc.secure_channel(target, credentials, options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        self._unary = self._channel.unary_unary(f"{_SERVICE}/Unary")
        self._server_stream = self._channel.unary_stream(f"{_SERVICE}/ServerStream")
        self._client_stream = self._channel.stream_unary(f"{_SERVICE}/ClientStream")
        self._bidi = self._channel.stream_stream(f"{_SERVICE}/Bidi")
        self.calls: list[tuple[str, int]] = []
        """Id and status that this side saw of each call."""

    def _metadata(self, plan: dict[str, Any]) -> list[tuple[str, str]]:
        return [("x-test", json.dumps(plan)), ("x-test-id", f"call-{len(self.calls)}")]

    def _note(self, code: int) -> int:
        self.calls.append((f"call-{len(self.calls)}", code))
        return code

    def unary(self, length: int, /, timeout_s: float = 30, **plan: Any) -> int:
        """One call and its status."""
        try:
            self._unary(b"u" * length, timeout=timeout_s, metadata=self._metadata(plan))
        except grpc.RpcError as error:
            return self._note(error.code().value[0])
        return self._note(0)

    def server_stream(self, cancel_after: int = -1, **plan: Any) -> int:
        """Read a stream, up to its end or until it is cancelled."""
        call = self._server_stream(b"s", timeout=30, metadata=self._metadata(plan))
        with contextlib.suppress(grpc.RpcError):
            for number, _ in enumerate(call, 1):
                if number == cancel_after:
                    call.cancel()
        return self._note(call.code().value[0])

    def client_stream(self, sizes: Sequence[int], **plan: Any) -> int:
        """Send a stream."""
        messages = (b"c" * size for size in sizes)
        try:
            answer = self._client_stream(messages, timeout=30, metadata=self._metadata(plan))
        except grpc.RpcError as error:
            return self._note(error.code().value[0])
        assert int(answer) == len(sizes)
        return self._note(0)

    def bidi(self, sizes: Sequence[int]) -> int:
        """Send a stream and read as many messages."""
        messages = (b"b" * size for size in sizes)
        call = self._bidi(messages, timeout=30, metadata=self._metadata({}))
        assert [len(answer) for answer in call] == list(sizes)
        return self._note(call.code().value[0])

    def many(self, count: int, size: int, at_once: int = 100) -> None:
        """Unary calls side by side."""
        futures = []
        for _ in range(count):
            futures.append(self._unary.future(b"m" * size, timeout=30, metadata=self._metadata({})))
            self._note(0)
            if len(futures) >= at_once:
                futures.pop(0).result()
        for each in futures:
            each.result()

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


def grpc_calls(address: Address, count: int, certificate: str = "") -> Sent:
    """grpcio: every kind of call, errors, a deadline, a cancel, large messages; then many."""
    client = Grpc(address, certificate)
    client.unary(10)
    client.unary(0)
    client.unary(3, code=5)
    client.unary(3, code=13, message="with ünicode and spaces")
    client.unary(3, timeout_s=1, late=True)
    client.unary(1_000_000)
    client.unary(4, size=2_000_000)
    client.server_stream(count=50, size=1000)
    client.server_stream(count=0)
    client.server_stream(count=3, code=5)
    client.server_stream(count=1000, size=100, delay=5, cancel_after=3)
    client.client_stream([10, 0, 70_000, 5])
    client.client_stream([], code=5)
    client.client_stream([])
    client.bidi([1, 200, 30_000])
    client.bidi([])
    client.many(max(count - len(client.calls), 0), 50)
    client.close()
    return Sent(len(client.calls), sum(code == 0 for _, code in client.calls))


def _node(script: str, *words: str, grpc_modules: bool = False) -> Sent:
    environment = os.environ | ({"NODE_PATH": str(node_path())} if grpc_modules else {})
    said = json.loads(run_tool(["node", str(HERE / "node" / script), *words], env=environment))
    return Sent(said["requests"], said["answered"])


def node_http2(address: Address, count: int, proxied: bool = False) -> Sent:
    """Node's HTTP/2 client: 100 streams at once, trailers, resets at every stage."""
    host, port = address
    kind = "proxied" if proxied else "own"
    return _node("http2_client.js", host, str(port), str(count), kind)


def node_grpc_calls(address: Address, count: int, certificate: str = "") -> Sent:
    """@grpc/grpc-js: the same as `grpc_calls`."""
    words = [address[0], str(address[1]), str(count), *filter(None, [certificate])]
    return _node("grpc_client.js", *words, grpc_modules=True)
