"""A collector that starts in the middle of connections: exact from the next call on."""

from __future__ import annotations

import threading
import time
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
    slow = threading.Thread(target=client.ask, args=("/drip/100/20/under-way",))
    slow.start()
    time.sleep(0.2)
    scene.watch()
    slow.join()
    for number in range(20):
        _ask(client, number, "after")
    client.close()
    rows = scene.finish()
    rows = [row for row in rows if "under-way" not in row["path"] and row["path"]]
    wanted = [one for one in scene.expected("node") if "after" in str(one.fields["path"])]
    assert len(wanted) == 80
    truth.check(rows, wanted, "server", scene.node.port)


@pytest.mark.parametrize("place", ["grpc", "node-grpc"])
def test_grpc_counts_are_exact_from_the_next_call_on(scene: Scene, place: str) -> None:
    """Right after ten calls per connection 95 % of the paths are known."""
    server = scene.grpc if place == "grpc" else scene.node_grpc
    clients = [Grpc((HOST, server.port)) for _ in range(3)]
    for client in clients:
        for _ in range(5):
            client.unary(10)
        client.bidi([5])
    before = len(server.lines())
    scene.watch()
    for client in clients:
        for number in range(60):
            if number % 6 == 5:
                client.server_stream(count=2, size=10)
            elif number % 7 == 6:
                client.unary(3, code=5)
            else:
                client.unary(number)
    for client in clients:
        client.close()
    rows = [
        row
        for row in scene.finish()
        if row["role"] == "server" and row["local_port"] == server.port
    ]
    lines = server.lines()[before:]
    assert len(lines) == 180
    by_port: dict[int, list[dict[str, object]]] = {}
    for line in lines:
        by_port.setdefault(line["port"], []).append(line)
    known = late = 0
    for port, told in by_port.items():
        seen = sorted(
            (row for row in rows if row["remote_port"] == port), key=lambda row: row["start_ns"]
        )
        assert len(seen) == len(told), "calls"
        for row, line in list(zip(seen, told, strict=True))[10:]:
            late += 1
            known += row["path"] == line["uri"]
        statuses = [row["grpc_status"] for row in seen]
        right = [line["grpc_status"] for line in told]
        # A status whose field was indexed before is not known, but never wrong.
        assert all(is_ in (-1, -2, was) for is_, was in zip(statuses, right, strict=True))
    assert known >= 0.95 * late


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
