"""What real clients and nginx said to each other through a recording proxy, beside nginx's log."""

from __future__ import annotations

import socket
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from collector.protocols.calls import Call, Outcome, Settings
from collector.protocols.detect import Protocol
from collector.protocols.exchange import Conversation
from tests.collector.protocols.recorder import Connection, free_port, recorder
from tests.requirements import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {work}/nginx.pid;
error_log {work}/error.log warn;
events {{ worker_connections 256; }}
http {{
  log_format truth '$request_method $request_uri $status $body_bytes_sent $request_length';
  access_log {work}/access.log truth;
  client_body_temp_path {work}/body;
  proxy_temp_path {work}/proxy;
  fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi;
  scgi_temp_path {work}/scgi;
  keepalive_requests 100000;
  gzip_types *;
  server {{
    listen 127.0.0.1:{port};
    root {work}/files;
    location / {{ }}
    location /gzip {{ gzip on; gzip_min_length 1; alias {work}/files/64k; }}
    location /put/ {{ client_max_body_size 4m; dav_methods PUT; create_full_put_path on; }}
    location /none {{ return 204; }}
    location /moved {{ return 302 /1k; }}
    location /broken {{ return 500 "no"; }}
    location /slow {{ alias {work}/files/1m; limit_rate 50k; }}
  }}
}}
"""
SIZES = {"empty": 0, "1k": 1_000, "64k": 65_536, "1m": 1_000_000}
PIPELINED = 40
SCRIPT = """\
local batch
init = function(args)
  batch = string.rep(wrk.format("GET", "/1k?wrk", {Host = "a"}), 8)
end
request = function() return batch end
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    for each in ("nginx", "curl", "h2load", "wrk"):
        program(each)
    files = tmp_path / "files"
    files.mkdir()
    for name, size in SIZES.items():
        (files / name).write_bytes(b"x" * size)
    port = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(work=tmp_path, port=port))
    with subprocess.Popen(["nginx", "-c", str(config)]) as process:
        deadline = time.monotonic() + 20
        while subprocess.run(
            ["curl", "-s", f"http://127.0.0.1:{port}/probe"], stdout=subprocess.DEVNULL
        ).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port, tmp_path / "access.log"
        process.terminate()


def _pipeline(port: int) -> None:
    # All requests at once, byte order as it comes, the last one closing.
    names = [*SIZES, "none", "broken", "lost"]
    text = b"".join(
        f"{'HEAD' if n % 5 == 4 else 'GET'} /{names[n % len(names)]}?p{n} HTTP/1.1\r\nhost: a\r\n"
        f"{'Connection: close' if n == PIPELINED - 1 else 'X: y'}\r\n\r\n".encode()
        for n in range(PIPELINED)
    )
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(text[:700])
        time.sleep(0.05)
        connection.sendall(text[700:])
        while connection.recv(65_536):
            pass


def _line(call: Call) -> str:
    # nginx counts chunk framing as body, so sizes of chunked messages are checked apart.
    sizes = f"{call.response_body_size} {call.request_header_size + call.request_body_size}"
    return f"{call.method} {call.path} {call.status} {sizes}"


def read(connection: Connection, begin: int = 0) -> list[Call]:
    done: list[Call] = []
    parser = Conversation(done, Settings(keep_query=True), is_joined=begin > 0)
    connection.replay(parser, begin)
    if connection.moved and not begin:
        assert parser.protocol is Protocol.HTTP1
    return done


def test_nginx_log_line_by_line(nginx: tuple[int, Path], tmp_path: Path) -> None:
    port, log = nginx
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(3_000_000))
    too_large = tmp_path / "too-large"
    too_large.write_bytes(bytes(5_000_000))
    script = tmp_path / "batch.lua"
    script.write_text(SCRIPT)
    with recorder(port) as proxy:
        base = f"http://127.0.0.1:{proxy.port}"
        uris = [f"{base}/{name}?n={n}" for n, name in enumerate((*SIZES, "none", "lost", "1k"))]
        load = ["h2load", "--h1", "-n", "1000", "-c", "4", *uris, f"{base}/broken"]
        wrk_batches = ["wrk", "-t1", "-c2", "-d1s", "-s", str(script), base]
        for command in (load, wrk_batches):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        _pipeline(proxy.port)
        curl = ["curl", "-s", "-o", "/dev/null"]
        for options in (
            ["-I", f"{base}/64k"],
            ["-0", f"{base}/64k"],
            ["-T", str(upload), "-H", "Expect:", f"{base}/put/a"],
            ["-T", str(upload), "-H", "Expect: 100-continue", f"{base}/put/b"],
            ["-T", str(upload), "-H", "Transfer-Encoding: chunked", f"{base}/put/chunked"],
            ["-T", str(too_large), "-H", "Expect: 100-continue", f"{base}/put/c"],
            ["--compressed", f"{base}/gzip"],
            [f"{base}/moved"],
            ["-H", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT", f"{base}/1k"],
            ["-H", f"X-Long: {'y' * 6_000}", f"{base}/1k?long"],
            ["--limit-rate", "500k", f"{base}/1m?slowly"],
        ):
            subprocess.run([*curl, *options], check=True)
        stopped = subprocess.run([*curl, "-m", "0.5", f"{base}/slow"], check=False)
        assert stopped.returncode == 28
    calls = [call for connection in proxy.connections for call in read(connection)]
    deadline = time.monotonic() + 10
    lines: list[str] = []
    while time.monotonic() < deadline and not any("/slow" in line for line in lines):
        # nginx writes its lines a little after the clients have gone.
        lines = [line for line in log.read_text().splitlines() if "/probe" not in line]
        time.sleep(0.2)

    # wrk leaves in the middle of things; nginx and the parser both see what was whole.
    wrk = [call for call in calls if call.path == "/1k?wrk"]
    logged = [line for line in lines if "/1k?wrk" in line]
    whole = [call for call in wrk if call.outcome is Outcome.ANSWERED]
    assert len(whole) > 100
    assert abs(len(logged) - len(whole)) <= 2 * 8 * 2
    assert {call.response_body_size for call in whole} == {1_000}

    apart = ("/slow", "/1k?wrk", "/gzip", "/put/chunked", "/put/c", "/put/b")
    found = Counter(_line(call) for call in calls if call.path not in apart)
    assert found == Counter(line for line in lines if line.split()[1] not in apart)
    others = {call.path: call for call in calls if call.path in apart[2:]}
    assert (others["/put/chunked"].status, others["/put/chunked"].request_body_size) == (
        201,
        3_000_000,
    )
    assert (others["/gzip"].status, others["/gzip"].outcome) == (200, Outcome.ANSWERED)
    assert 0 < others["/gzip"].response_body_size < 1_000
    assert others["/put/c"].status == 413
    # nginx counts 100 (Continue) as body.
    assert (others["/put/b"].status, others["/put/b"].response_body_size) == (201, 0)
    assert others["/put/b"].request_body_size == 3_000_000
    (slow,) = (call for call in calls if call.path == "/slow")
    assert (slow.status, slow.outcome) == (200, Outcome.ABORTED)
    assert 0 < slow.response_body_size < 1_000_000
    _assert_joins(proxy.connections)


def _assert_joins(connections: list[Connection]) -> None:
    # From wherever a connection is joined, every call whose request begins with a piece and after
    # one that was answered is told as it would have been.
    for connection in connections:
        everything = {call.start_ns: call for call in read(connection)}
        pipelines = len(everything) < len(read(connection))
        if pipelines:
            continue
        step = max(1, len(connection.moved) // 12)
        for begin in range(step, len(connection.moved), step):
            since = connection.moved[begin].start_ns
            joined = read(connection, begin)
            assert joined == [call for call in everything.values() if call.start_ns >= since]
