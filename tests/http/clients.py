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
import socket
import struct
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from tests.http.servers import HERE, node_path
from tests.requirements import unmet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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
    "raw",
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
        unread: How many more, at most, the server may have been sent in pipelines that were left
            before it looked at them.
    """

    requests: int
    answered: int
    unread: int = 0

    def __add__(self, other: Sent) -> Sent:
        return Sent(
            self.requests + other.requests,
            self.answered + other.answered,
            self.unread + other.unread,
        )


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
-- One thread sends what `paths` say, `depth` at a time, and stops after `limit` answers.
local paths, depth, limit, at, answers = PATHS, DEPTH, LIMIT, 0, 0
function request()
  local out = {}
  for i = 1, depth do
    at = at + 1
    out[i] = wrk.format("GET", paths[(at - 1) % #paths + 1])
  end
  return table.concat(out)
end
function response(status)
  answers = answers + 1
  if answers == limit then wrk.thread:stop() end
end
"""


def wrk(
    address: Address, paths: Sequence[str], limit: int, connections: int, depth: int, seconds: int
) -> Sent:
    """wrk on one thread, for that long; what it has under way in the end it gives up.

    Args:
        address: Of the server.
        paths: Asked for in turn.
        limit: Answers after which it only waits for its end.
        connections: Kept open.
        depth: Requests that each sends at once.
        seconds: Whole ones; wrk knows no other end.
    """
    listed = "{" + ",".join(f'"{path}"' for path in paths) + "}"
    script = _WRK.replace("PATHS", listed).replace("DEPTH", str(depth))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script.replace("LIMIT", str(limit)))
        file.flush()
        options = ["-t1", f"-c{connections}", f"-d{seconds}s", "-s", file.name]
        said = run_tool(["wrk", *options, _url(address)])
    found = re.search(r"(\d+) requests in", said)
    assert found is not None, said
    return Sent(int(found[1]), int(found[1]), connections * depth)


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


# -- sockets --------------------------------------------------------------------------------------


def _connect(address: Address) -> socket.socket:
    made = socket.create_connection(address, timeout=15)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


class Reader:
    """Reads responses off a socket, knowing no more of HTTP than these tests need."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._held = b""

    def _more(self) -> None:
        data = self._client.recv(262_144)
        if not data:
            raise ConnectionError("closed by the server")
        self._held += data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._held:
            self._more()
        head, _, self._held = self._held.partition(mark)
        return head

    def _exactly(self, size: int) -> bytes:
        while len(self._held) < size:
            size -= len(self._held)
            self._held = b""
            self._more()
        data, self._held = self._held[:size], self._held[size:]
        return data

    def response(self, method: str = "GET") -> int:
        """Read one whole final response; its status."""
        while True:
            head = self._until(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if status >= 200 or status == 101:
                break
        if method == "HEAD" or status in (101, 204, 304):
            return status
        fields = dict(
            line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line
        )
        if b"content-length" in fields:
            self._exactly(int(fields[b"content-length"]))
        elif b"chunked" in fields.get(b"transfer-encoding", b""):
            while size := int(self._until(b"\r\n").split(b";")[0], 16):
                self._exactly(size + 2)
            while self._until(b"\r\n"):
                pass
        else:
            with contextlib.suppress(ConnectionError):
                while True:
                    self._held = b""
                    self._more()
        return status


def _head(method: str, path: str, *fields: str, version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: traffic.test", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _chunked(body: bytes, size: int, *trailers: str, extension: str = "") -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x%s\r\n%s\r\n" % (len(p), extension.encode(), p) for p in pieces)
    return framed + b"0\r\n" + "".join(f"{each}\r\n" for each in trailers).encode() + b"\r\n"


def pipelined(address: Address, tag: str, count: int = 20) -> Sent:
    """Many requests in one write, bodies among them; then all answers are read."""
    methods = ["GET", "POST", "HEAD", "GET"]
    wire = b""
    for number in range(count):
        method = methods[number % 4]
        body = b"p" * (number * 7) if method == "POST" else b""
        fields = [f"Content-Length: {len(body)}"] if method == "POST" else []
        wire += _head(method, f"/size/{number * 50}/{tag}{number}", *fields) + body
    with _connect(address) as client:
        client.sendall(wire)
        reader = Reader(client)
        for number in range(count):
            assert reader.response(methods[number % 4]) == 200
    return Sent(count, count)


def byte_by_byte(address: Address, tag: str) -> Sent:
    """A request whose every byte is a write of its own, then one after it."""
    wire = _head("POST", f"/size/9/{tag}", "content-length: 12") + b"twelve bytes"
    with _connect(address) as client:
        reader = Reader(client)
        for at in range(len(wire)):
            client.send(wire[at : at + 1])
        assert reader.response() == 200
        client.sendall(_head("GET", f"/size/1/{tag}after"))
        assert reader.response() == 200
    return Sent(2, 2)


def split_everywhere(address: Address, tag: str, step: int = 1) -> Sent:
    """Two requests cut in two at each boundary in turn, on one connection."""
    count = 0
    with _connect(address) as client:
        reader = Reader(client)
        size = len(_head("POST", f"/size/3/{tag}000", "Content-Length: 5")) + 5
        for at in range(1, size, step):
            wire = _head("POST", f"/size/3/{tag}{at:03}", "Content-Length: 5") + b"12345"
            client.sendall(wire[:at])
            time.sleep(0.0005)
            client.sendall(wire[at:])
            assert reader.response() == 200
            count += 1
    return Sent(count, count)


def odd_fields(address: Address, tag: str) -> Sent:
    """Lower-case names, much white space, empty and long values, names in every case."""
    wire = (
        f"GET /size/4/{tag} HTTP/1.1\r\nhost:traffic.test\r\nx-empty:\r\nX-SPACE: \t  a b \t\r\n"
        f"x-long: {'l' * 6000}\r\nCoNtEnT-LeNgTh:0\r\n\r\n"
    ).encode()
    with _connect(address) as client:
        reader = Reader(client)
        client.sendall(wire)
        assert reader.response() == 200
        client.sendall(_head("GET", f"http://other.test/size/5/{tag}absolute?query=1"))
        assert reader.response() == 200
        client.sendall(b"\r\n" + _head("GET", f"/size/6/{tag}%20escaped?a=b#c"))
        assert reader.response() == 200
    return Sent(3, 3)


def many_pieces(address: Address, tag: str) -> Sent:
    """Requests by sendmsg with hundreds of small pieces, one of them empty."""
    count = 5
    with _connect(address) as client:
        reader = Reader(client)
        for number in range(count):
            body = b"v" * 2000
            wire = _head("POST", f"/size/8/{tag}{number}", f"Content-Length: {len(body)}") + body
            pieces = [wire[at : at + 3] for at in range(0, len(wire), 3)]
            pieces.insert(2, b"")
            assert client.sendmsg(pieces) == len(wire)
            assert reader.response() == 200
    return Sent(count, count)


def sendfile_upload(address: Address, tag: str, size: int = 3_000_000) -> Sent:
    """An upload whose body leaves by sendfile."""
    with tempfile.TemporaryFile() as file, _connect(address) as client:
        file.truncate(size)
        client.sendall(_head("PUT", f"/size/2/{tag}", f"Content-Length: {size}"))
        client.sendfile(file)
        reader = Reader(client)
        assert reader.response() == 200
        client.sendall(_head("GET", f"/size/2/{tag}after"))
        assert reader.response() == 200
    return Sent(2, 2)


def chunked_upload(address: Address, tag: str) -> Sent:
    """Chunked uploads: of many sizes, with extensions, with trailers, echoed back."""
    bodies = [(b"c" * 10_000, 1), (b"c" * 100_000, 4096), (b"", 1), (b"c" * 300_000, 65_536)]
    with _connect(address) as client:
        reader = Reader(client)
        for number, (body, size) in enumerate(bodies):
            wire = _head("POST", f"/size/7/{tag}{number}", "Transfer-Encoding: chunked")
            client.sendall(wire + _chunked(body, max(size, 1), extension=";name=v"))
            assert reader.response() == 200
        wire = _head("POST", f"/size/7/{tag}t", "Transfer-Encoding: chunked", "Trailer: X-Sum")
        client.sendall(wire + _chunked(b"c" * 50, 7, "X-Sum: 50"))
        assert reader.response() == 200
    return Sent(len(bodies) + 1, len(bodies) + 1)


def expect_continue(address: Address, tag: str) -> Sent:
    """Uploads that wait for the interim response before the body."""
    with _connect(address) as client:
        reader = Reader(client)
        for number in range(3):
            fields = ("Content-Length: 4000", "Expect: 100-continue")
            client.sendall(_head("PUT", f"/size/3/{tag}{number}", *fields))
            client.settimeout(10)
            first = reader._until(b"\r\n\r\n")
            assert b" 100 " in first, first
            client.sendall(b"e" * 4000)
            assert reader.response() == 200
    return Sent(3, 3)


def slow_reader(address: Address, tag: str, path: str = "") -> Sent:
    """Reads a long answer in small pieces through a small window, then asks again."""
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(address)
        client.sendall(_head("GET", path or f"/size/400000/{tag}"))
        time.sleep(0.05)
        reader = Reader(client)
        assert reader.response() == 200
        client.sendall(_head("GET", f"/size/1/{tag}after"))
        assert reader.response() == 200
    return Sent(2, 2)


def half_close(address: Address, tag: str) -> Sent:
    """The client says all it has to say and closes its side before it reads."""
    with _connect(address) as client:
        client.sendall(_head("GET", f"/slow/30/{tag}", "Connection: close"))
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            Reader(client).response()
    return Sent(1, 0)


def http_1_0(address: Address, tag: str) -> Sent:
    """HTTP/1.0: closed after the answer, or kept alive on demand."""
    with _connect(address) as client:
        client.sendall(_head("GET", f"/size/40/{tag}", version="1.0"))
        assert Reader(client).response() == 200
    with _connect(address) as client:
        reader = Reader(client)
        for number in range(3):
            path = f"/size/41/{tag}{number}"
            client.sendall(_head("GET", path, "Connection: keep-alive", version="1.0"))
            assert reader.response() == 200
    with _connect(address) as client:
        client.sendall(_head("GET", f"/chunked/3/500/{tag}", version="1.0"))
        assert Reader(client).response() == 200
    return Sent(5, 5)


def abort_head(address: Address, tag: str) -> Sent:
    """Requests whose head never ends, on a fresh connection and after another request."""
    with _connect(address) as client:
        client.sendall(f"GET /size/3/{tag}0 HTTP/1.1\r\nHost: tra".encode())
        time.sleep(0.03)
    with _connect(address) as client:
        client.sendall(_head("GET", f"/size/3/{tag}1"))
        assert Reader(client).response() == 200
        client.sendall(f"GET /size/3/{tag}2 HT".encode())
        time.sleep(0.03)
        _reset(client)
    return Sent(1, 1)


def abort_body(address: Address, tag: str) -> Sent:
    """Uploads that end in the middle of the body: closed, and reset."""
    for number, reset in enumerate((False, True)):
        with _connect(address) as client:
            _meet(client, f"{tag}{number}")
            client.sendall(_head("PUT", f"/size/3/{tag}{number}", "Content-Length: 100000"))
            client.sendall(b"a" * 30_000)
            time.sleep(0.05)
            if reset:
                _reset(client)
    return Sent(4, 2)


def _meet(client: socket.socket, tag: str) -> None:
    # A server that is busy would accept a connection that was reset without knowing whose it was.
    client.sendall(_head("GET", f"/size/1/met-{tag}"))
    assert Reader(client).response() == 200


def abort_answer(address: Address, tag: str, path: str = "") -> Sent:
    """Downloads that are left in the middle, and answers that nobody waits for."""
    for reset in (False, True):
        with _connect(address) as client:
            client.sendall(_head("GET", path or f"/size/9000000/left-{tag}"))
            assert client.recv(20_000)
            if reset:
                _reset(client)
    for number in range(2):
        with _connect(address) as client:
            _meet(client, f"{tag}{number}")
            client.sendall(_head("GET", f"/slow/300/{tag}{number}"))
            time.sleep(0.05)
            if number:
                _reset(client)
    return Sent(6, 2)


def abort_second(address: Address, tag: str) -> Sent:
    """A connection that is kept alive, and left during its third request."""
    with _connect(address) as client:
        reader = Reader(client)
        for number in range(2):
            client.sendall(_head("GET", f"/size/20/{tag}{number}"))
            assert reader.response() == 200
        client.sendall(_head("GET", f"/slow/300/{tag}2"))
        time.sleep(0.05)
    return Sent(3, 2)


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


RAW: Final[dict[str, Callable[[Address, str], Sent]]] = {
    each.__name__: each
    for each in (
        pipelined,
        byte_by_byte,
        split_everywhere,
        odd_fields,
        many_pieces,
        sendfile_upload,
        chunked_upload,
        expect_continue,
        slow_reader,
        half_close,
        http_1_0,
        abort_head,
        abort_body,
        abort_answer,
        abort_second,
    )
}
"""Sockets of our own, by name; each needs a server with the paths of ``node/server.js``."""


def raw(name: str, address: Address, tag: str) -> Sent:
    """Run one of `RAW`; ``tag`` makes its paths its own."""
    return RAW[name](address, tag)


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
    client.unary(3, timeout_s=0.1, delay=300)
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
