"""A collector that starts in the middle of connections: exact from the next call on."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.http import truth
from tests.http.clients import Grpc, KeepAlive
from tests.http.scene import HOST, Scene
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.bpf


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    require("bpf")
    with Scene(tmp_path, "collector") as made:
        yield made


def _ask(client: KeepAlive, number: int, when: str) -> None:
    client.ask(f"/size/{number}/{when}{number}")
    client.ask(f"/size/1/{when}post{number}", "POST", b"m" * 3000, chunked=number % 2 == 0)
    client.ask(f"/chunked/3/100/{when}{number}")
    client.ask(f"/status/204/{when}{number}")


def test_http1_is_exact_from_the_next_request_on(scene: Scene) -> None:
    places = (("h1", scene.nginx.port), ("node", scene.node.port))
    open_clients = [KeepAlive((HOST, port)) for _, port in places for _ in range(3)]
    for client in open_clients:
        for number in range(5):
            _ask(client, number, "before")
    scene.watch()
    for client in open_clients:
        for number in range(10):
            _ask(client, number, "after")
    for client in open_clients:
        client.close()
    rows = scene.finish()
    for name, port in places:
        wanted = [one for one in scene.expected(name) if "after" in str(one.fields["path"])]
        assert len(wanted) >= 3 * 40
        truth.check(rows, wanted, "server", port)


def test_http1_in_the_middle_of_a_body(scene: Scene) -> None:
    """What was under way may be missing; what follows on the connection may not."""
    client = KeepAlive((HOST, scene.node.port))
    client.ask("/size/3/first")
    slow = threading.Thread(target=client.ask, args=("/held/20/under-way",))
    slow.start()
    time.sleep(0.2)
    scene.watch()
    assert slow.is_alive()
    other = KeepAlive((HOST, scene.node.port))
    other.ask("/size/3/after")
    slow.join()
    for number in range(20):
        _ask(client, number, "after")
    for each in (client, other):
        each.close()
    rows = scene.finish()
    rows = [row for row in rows if "under-way" not in row["path"] and row["path"]]
    wanted = [one for one in scene.expected("node") if "after" in str(one.fields["path"])]
    assert len(wanted) == 81
    truth.check(rows, wanted, "server", scene.node.port)


@pytest.mark.parametrize("place", ["grpc", "node-grpc"])
def test_grpc_counts_are_exact_from_the_next_call_on(scene: Scene, place: str) -> None:
    """A method that was called before has no name until its entry in the table is made anew."""
    server = scene.grpc if place == "grpc" else scene.node_grpc
    clients = [Grpc((HOST, server.port)) for _ in range(3)]
    for client in clients:
        for _ in range(5):
            client.unary(10)
        client.bidi([5])
    before = len(server.await_lines(3 * 6))
    scene.watch()
    for client in clients:
        for number in range(60):
            if number % 3 == 0:
                client.unary(number)
            elif number % 7 == 6:
                client.client_stream([5], code=5)
            else:
                client.server_stream(count=2, size=10)
    for client in clients:
        client.close()
    rows = scene.finish()
    rows = [row for row in rows if row["role"] == "server" and row["local_port"] == server.port]
    lines = server.lines()[before:]
    assert len(lines) == 180
    for port in {line["port"] for line in lines}:
        told = [line for line in lines if line["port"] == port]
        seen = sorted(
            (row for row in rows if row["remote_port"] == port), key=lambda row: row["start_ns"]
        )
        assert len(seen) == len(told), f"calls, over {rows[:1]}"
        for row, line in zip(seen, told, strict=True):
            old = line["uri"].endswith("Unary")
            assert row["path"] in ((line["uri"], "") if old else (line["uri"],))
            # A status whose field was indexed before is not known, but never wrong.
            assert row["grpc_status"] in (-1, line["grpc_status"])
            assert row["status"] in (0, 200)


def test_http2_paths_are_known_after_ten_calls(scene: Scene) -> None:
    """nghttp2's client sends each path of its own in full; 95 % are asked for, all must be."""
    with _slow_load((HOST, scene.nginx.port2)):
        scene.nginx.await_lines(20)
        before = time.time()
        scene.watch()
        begin = time.time() + 0.1
        scene.nginx.await_lines(len(scene.nginx.lines()) + 220, 60)
    rows = scene.finish()
    lines = scene.nginx.lines()
    of_end = [row for row in rows if row["role"] == "server"]
    asked = Counter(line["port"] for line in lines if float(line["msec"]) > begin)
    assert len(asked) == 2
    assert asked.total() > 200
    for port, count in asked.items():
        told = [line for line in lines if line["port"] == port and float(line["msec"]) > before]
        seen = [row for row in of_end if str(row["remote_port"]) == port]
        assert count <= len(seen) <= len(told), "calls"
        late = sorted(seen, key=lambda row: row["start_ns"])[10:]
        known = sum(row["path"].startswith("/return/2") for row in late)
        assert known >= 0.95 * len(late)


@contextlib.contextmanager
def _slow_load(address: tuple[str, int]) -> Iterator[None]:
    paths = [f"/return/200/{number}" for number in range(200)]
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("\n".join(f"http://{address[0]}:{address[1]}{path}" for path in paths))
        file.flush()
        command = ["h2load", "-n1000000", "-c2", "-m4", "--rps=20", "-i", file.name]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.kill()


def test_connections_between_servers_are_exact_on_both_ends(scene: Scene) -> None:
    """A proxying nginx keeps HTTP/1 connections to its backend; those were open before, too."""
    address = (HOST, scene.nginx.port)
    client = KeepAlive(address)
    for number in range(10):
        client.ask(f"/size/2/before{number}")
    scene.watch()
    for number in range(30):
        client.ask(f"/size/2/after{number}")
    client.close()
    rows = scene.finish()
    wanted = [one for one in scene.expected("node") if "after" in str(one.fields["path"])]
    assert len(wanted) == 30
    truth.check(rows, wanted, "server", scene.node.port)
    truth.check(rows, wanted, "client", scene.node.port)
