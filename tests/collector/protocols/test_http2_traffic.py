"""What real clients and servers said to each other through a recording proxy.

Their own reports are the truth: nginx's access log, the codes that gRPC gave its callers.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from collector.protocols.calls import NOT_GRPC, UNMEASURED, Call, Outcome, Settings, Side
from collector.protocols.http2 import Http2
from tests.collector.protocols.recorder import Connection, Recorder, free_port, recorder
from tests.requirements import program

if TYPE_CHECKING:
    from collections.abc import Iterator

NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {work}/nginx.pid;
error_log {work}/error.log warn;
events {{ worker_connections 256; }}
http {{
  log_format truth '$request_method $request_uri $host $status $body_bytes_sent';
  access_log {work}/access.log truth;
  client_body_temp_path {work}/body;
  proxy_temp_path {work}/proxy;
  fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi;
  scgi_temp_path {work}/scgi;
  keepalive_requests 100000;
  server {{
    listen 127.0.0.1:{port} http2;
    root {work}/files;
    location / {{ }}
    location /put/ {{ client_max_body_size 0; dav_methods PUT; create_full_put_path on; }}
    location /none {{ return 204; }}
    location /moved {{ return 302 /1k; }}
    location /broken {{ return 500 "no"; }}
    location /slow {{ alias {work}/files/1m; limit_rate 50k; }}
  }}
}}
"""
SIZES = {"empty": 0, "1k": 1_000, "64k": 65_536, "1m": 1_000_000}


def parse(connections: list[Connection]) -> list[Call]:
    done: list[Call] = []
    for connection in connections:
        parser = Http2(done, Settings(keep_query=True))
        connection.replay(parser)
        assert not parser.is_failed
        assert parser.given_up == 0
    return done


def assert_joins(connection: Connection, points: int) -> None:
    """From wherever it is joined, what is told is so, and no call is missing that began in sync.

    The proxy reads when it can, so that its pieces begin inside frames while bodies are moving.
    """
    everything: list[Call] = []
    connection.replay(Http2(everything, Settings(keep_query=True)))
    step = max(1, len(connection.moved) // points)
    for begin in range(step, len(connection.moved), step):
        joined: list[Call] = []
        parser = Http2(joined, Settings(keep_query=True), is_joined=True)
        in_sync_ns = 0
        for item in connection.moved[begin:]:
            if not in_sync_ns and not any(map(parser.is_lost, Side)):
                in_sync_ns = item.start_ns
            parser.feed(item.side, item.data, item.start_ns, item.end_ns)
        parser.close(connection.ended_ns)
        since = connection.moved[begin].start_ns
        later = Counter(c.start_ns for c in everything if c.start_ns >= since)
        assert Counter(call.start_ns for call in joined) <= later
        sure = Counter(_timing(c) for c in everything if in_sync_ns and c.start_ns >= in_sync_ns)
        assert sure <= Counter(map(_timing, joined))
        paths = {(call.start_ns, call.path) for call in everything}
        assert all(not call.path or (call.start_ns, call.path) in paths for call in joined)


def _timing(call: Call) -> tuple[int, int, int, Outcome, int, int]:
    sizes = (call.request_body_size, call.response_body_size)
    return (call.start_ns, call.first_byte_ns, call.end_ns, call.outcome, *sizes)


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    for each in ("nginx", "curl", "h2load"):
        program(each)
    files = tmp_path / "files"
    files.mkdir()
    for name, size in SIZES.items():
        (files / name).write_bytes(b"x" * size)
    port = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(work=tmp_path, port=port))
    with subprocess.Popen(["nginx", "-c", str(config)]) as process:
        _wait_for(port)
        yield port, tmp_path / "access.log"
        process.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        probe = ["curl", "-s", "-o", "/dev/null", f"http://127.0.0.1:{port}/probe"]
        # Without HTTP/2 nginx closes; 7 is a refused connection.
        if subprocess.run(probe, check=False).returncode != 7:
            return
        time.sleep(0.05)
    pytest.fail("nginx did not start")


def test_nginx_log_line_by_line(nginx: tuple[int, Path], tmp_path: Path) -> None:
    port, log = nginx
    before = len(log.read_text().splitlines()) if log.exists() else 0
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(3_000_000))
    with recorder(port) as proxy:
        base = f"http://127.0.0.1:{proxy.port}"
        uris = [f"{base}/{name}?n={n}" for n, name in enumerate((*SIZES, "none", "lost", "1k"))]
        load = ["h2load", "-n", "1000", "-c", "4", "-m", "20", *uris, f"{base}/broken"]
        subprocess.run(load, check=True, stdout=subprocess.DEVNULL)
        single = ["h2load", "-n", "50", "-c", "1", "-m", "1", f"{base}/64k?one-by-one"]
        subprocess.run(single, check=True, stdout=subprocess.DEVNULL)
        curl = ["curl", "-s", "--http2-prior-knowledge", "-o", "/dev/null"]
        for options in (
            ["-I", f"{base}/64k"],
            ["-T", str(upload), f"{base}/put/a"],
            [f"{base}/moved"],
            ["-H", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT", f"{base}/1k"],
            ["-H", f"X-Long: {'y' * 6_000}", f"{base}/1k?long"],
        ):
            subprocess.run([*curl, *options], check=True)
        stopped = subprocess.run([*curl, "-m", "0.5", f"{base}/slow"], check=False)
        assert stopped.returncode == 28
    calls = parse(proxy.connections)
    deadline = time.monotonic() + 10
    lines: list[str] = []
    while time.monotonic() < deadline and len(lines) < len(calls):
        lines = log.read_text().splitlines()[before:]
        time.sleep(0.05)
    aborted = [call for call in calls if call.outcome is not Outcome.ANSWERED]
    assert [(call.path, call.status, call.outcome) for call in aborted] == [
        ("/slow", 200, Outcome.ABORTED)
    ]
    found = Counter(
        f"{call.method} {call.path} {call.host.partition(':')[0]} {call.status}"
        f" {call.response_body_size}"
        for call in calls
        if call.path != "/slow"
    )
    assert found == Counter(line for line in lines if "/slow" not in line)
    (put,) = (call for call in calls if call.method == "PUT")
    assert (put.request_body_size, put.status) == (3_000_000, 201)
    assert {call.grpc_status for call in calls} == {NOT_GRPC}
    assert_joins(proxy.connections[0], 10)


CODES = (
    *(grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE),
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


_DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


def _unary(request: bytes, context: grpc.ServicerContext) -> bytes:
    if request.startswith(b"fail"):
        context.abort(CODES[int(request[4:])], "told to")
    return request


def _late(request: bytes, context: grpc.ServicerContext) -> bytes:
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait(20)
    return request


def _download(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    for _ in range(int(request)):
        if not context.is_active():
            return
        yield b"d" * 1_000
        if request == b"1000":
            time.sleep(0.01)


def _upload(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    return str(sum(map(len, requests))).encode()


def _chat(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    yield from requests


@pytest.fixture
def grpc_server() -> Iterator[int]:
    methods = {
        "Late": grpc.unary_unary_rpc_method_handler(_late),
        "Unary": grpc.unary_unary_rpc_method_handler(_unary),
        "Download": grpc.unary_stream_rpc_method_handler(_download),
        "Upload": grpc.stream_unary_rpc_method_handler(_upload),
        "Chat": grpc.stream_stream_rpc_method_handler(_chat),
    }
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Shop", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait()


def test_grpc_reports(grpc_server: int) -> None:
    with recorder(grpc_server) as proxy:
        truth = _talk_grpc(proxy)
    (connection,) = proxy.connections
    calls = parse([connection])
    for call in calls:
        if call.path == "/test.Shop/Late" and call.grpc_status == _DEADLINE_EXCEEDED:
            call.grpc_status = UNMEASURED
            call.outcome = Outcome.ABORTED
    assert Counter((call.path, call.grpc_status) for call in calls) == truth
    for call in calls:
        assert (call.method, call.status) == ("POST", 200 if call.first_byte_ns > 0 else 0)
        assert (call.outcome is Outcome.ANSWERED) == (call.grpc_status != UNMEASURED)
        assert call.host == f"127.0.0.1:{proxy.port}"
        assert call.start_ns <= call.end_ns
    sizes = Counter(call.request_body_size for call in calls)
    assert sizes[5 + 3_000_000] == 1
    assert sizes[20 * (5 + 100_000)] == 1
    assert_joins(connection, 25)


def _talk_grpc(proxy: Recorder) -> Counter[tuple[str, int]]:
    # Every call that is made, by path and the code that the client was given.
    truth: Counter[tuple[str, int]] = Counter()
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{proxy.port}", options=options) as channel:
        unary = channel.unary_unary("/test.Shop/Unary")
        for number in range(100):
            assert unary(b"ping %d" % number)
            truth["/test.Shop/Unary", 0] += 1
        for pending in [unary.future(b"together") for _ in range(50)]:
            assert pending.result() == b"together"
            truth["/test.Shop/Unary", 0] += 1
        for number, code in enumerate(CODES):
            with pytest.raises(grpc.RpcError) as failed:
                unary(b"fail%d" % number)
            assert failed.value.code() is code
            truth["/test.Shop/Unary", code.value[0]] += 1
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/test.Shop/Missing")(b"")
        truth["/test.Shop/Missing", grpc.StatusCode.UNIMPLEMENTED.value[0]] += 1
        assert len(unary(bytes(3_000_000))) == 3_000_000
        truth["/test.Shop/Unary", 0] += 1
        with pytest.raises(grpc.RpcError) as late:
            channel.unary_unary("/test.Shop/Late")(b"", timeout=1)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # Whichever end is first: the client resets, the server answers with this code.
        truth["/test.Shop/Late", UNMEASURED] += 1
        assert len(list(channel.unary_stream("/test.Shop/Download")(b"50"))) == 50
        truth["/test.Shop/Download", 0] += 1
        endless = channel.unary_stream("/test.Shop/Download")(b"1000")
        next(endless)
        endless.cancel()
        truth["/test.Shop/Download", UNMEASURED] += 1
        upload = channel.stream_unary("/test.Shop/Upload")
        assert upload(bytes(100_000) for _ in range(20)) == b"2000000"
        truth["/test.Shop/Upload", 0] += 1
        chat = channel.stream_stream("/test.Shop/Chat")
        assert list(chat(iter([b"a", b"bc", b"def"]))) == [b"a", b"bc", b"def"]
        truth["/test.Shop/Chat", 0] += 1
    return truth


def test_node_reports() -> None:
    """Another runtime: a hundred streams at once, gRPC's trailers, pushes, resets by both ends."""
    program("node")
    script = Path(__file__).with_name("node_http2.js")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["node", str(script)], text=True, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with recorder(int(process.stdout.readline())) as proxy:
            print(proxy.port, file=process.stdin, flush=True)
            seen = json.loads(process.stdout.readline())
    (connection,) = proxy.connections
    calls = parse([connection])
    assert len(calls) == 3 * (100 + 4 + 2 * 5 + 2)
    assert Counter(_key(call) for call in calls) == Counter(
        (
            *(item["path"], item["status"]),
            NOT_GRPC if item["grpc"] is None else item["grpc"],
            *(item["sent"], item["received"]),
        )
        for item in seen
    )
    outcomes = Counter((call.path.split("/")[1], call.outcome) for call in calls)
    assert outcomes["reset", Outcome.UNANSWERED] == 3
    assert outcomes["cancel", Outcome.ABORTED] == 3
    assert sum(n for (_, outcome), n in outcomes.items() if outcome is Outcome.ANSWERED) == 342
    assert_joins(connection, 20)


def _key(call: Call) -> tuple[str, int, int, int, int]:
    sizes = (call.request_body_size, call.response_body_size)
    return (call.path, call.status, call.grpc_status, *sizes)
