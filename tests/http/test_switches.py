"""Connections that change their protocol, by real clients of real servers."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

import aiohttp
import pytest

from collector.protocols.calls import Outcome, Version
from tests.http.observed import Collector
from tests.http.raw import Reader
from tests.http.servers import Nginx, NodeServer
from tests.http.switch_servers import Nghttpx, Tinyproxy, WebSocketServer
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.http.truth import Row

pytestmark = pytest.mark.bpf

HOST = "127.0.0.1"
RING = 32 << 20


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    require("bpf")
    made = Collector(tmp_path, RING)
    yield made
    made.stop()


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    require("bpf")
    with (
        NodeServer(tmp_path / "node", "http") as node,
        Nginx(tmp_path / "nginx", node.port) as server,
    ):
        yield server


def curl(*words: str) -> None:
    subprocess.run(["curl", "-s", "-o", "/dev/null", *words], check=True, timeout=60)


def rows_at(rows: list[Row], port: int, role: str = "server") -> list[Row]:
    place = "local_port" if role == "server" else "remote_port"
    found = [row for row in rows if row["role"] == role and row[place] == port]
    return sorted(found, key=lambda row: row["start_ns"])


def test_an_upgrade_to_http2(tmp_path: Path, collector: Collector, nginx: Nginx) -> None:
    """The request that asks for it is answered on stream 1, the next ones are HTTP/2's own."""
    with Nghttpx(tmp_path / "nghttpx", nginx.port) as proxy:
        collector.start()
        url = f"http://{HOST}:{proxy.port}"
        for number in range(5):
            sizes = [f"{url}/size/{size}/up{number}" for size in (0, 10, 30_000)]
            curl("--http2", *(word for each in sizes for word in ("-o", "/dev/null", each)))
        curl("--http2", "-d", "x" * 300, f"{url}/size/7/body")
        collector.stop()
    rows = collector.rows()
    lines = proxy.lines()
    assert len(lines) == 16
    for role in ("server", "client"):
        seen = rows_at(rows, proxy.port, role)
        assert Counter(
            (row["method"], row["path"], row["status"], row["response_body_size"]) for row in seen
        ) == Counter((line["method"], line["uri"], line["status"], line["sent"]) for line in lines)
        assert {row["version"] for row in seen} == {Version.HTTP_2}
        assert {row["outcome"] for row in seen} == {Outcome.ANSWERED}


def test_tunnels_of_a_proxy(tmp_path: Path, collector: Collector, nginx: Nginx) -> None:
    """CONNECT is a call of its own, and what the tunnel carries is seen at all four sockets."""
    with Tinyproxy(tmp_path / "tinyproxy") as proxy:
        collector.start()
        url = f"http://{HOST}:{nginx.port}"
        through = ("-x", f"http://{HOST}:{proxy.port}")
        for number in range(4):
            curl(*through, "--proxytunnel", f"{url}/size/{number}/tunnel", f"{url}/size/9/again")
        curl(*through, f"{url}/size/5/plain?a=b")
        collector.stop()
        asked = Counter(line["method"] for line in proxy.lines())
    rows = collector.rows()
    assert asked == {"CONNECT": 4, "GET": 1}
    wanted = Counter({("CONNECT", f"{HOST}:{nginx.port}"): 4, ("GET", "/size/5/plain"): 1})
    inside = Counter({("GET", f"/size/{number}/tunnel"): 1 for number in range(4)})
    inside["GET", "/size/9/again"] = 4
    for role in ("server", "client"):
        at_proxy = rows_at(rows, proxy.port, role)
        assert Counter((row["method"], row["path"]) for row in at_proxy) == wanted + inside
        at_nginx = rows_at(rows, nginx.port, role)
        paths = Counter((row["method"], row["path"]) for row in at_nginx)
        assert paths == inside + Counter({("GET", "/size/5/plain"): 1})
        assert {row["status"] for row in at_proxy + at_nginx} == {200}


async def _talk(port: int, count: int) -> None:
    async with aiohttp.ClientSession() as session:
        for number in range(3):
            async with session.ws_connect(f"http://{HOST}:{port}/chat/{number}") as end:
                for message in range(count):
                    await end.send_str("GET / HTTP/1.1\r\n\r\n" * message)
                    assert (await end.receive()).data == "echo"


def test_web_sockets(tmp_path: Path, collector: Collector) -> None:
    """The upgrade is the one call, whatever the messages say after it."""
    with WebSocketServer(tmp_path / "aiohttp") as server:
        collector.start()
        asyncio.run(_talk(server.port, 20))
        collector.stop()
        lines = server.await_lines(3)
    assert [line["messages"] for line in lines] == [20, 20, 20]
    for role in ("server", "client"):
        seen = rows_at(collector.rows(), server.port, role)
        assert [(row["method"], row["path"], row["status"]) for row in seen] == [
            ("GET", f"/chat/{number}", 101) for number in range(3)
        ]


def test_folded_fields(tmp_path: Path, collector: Collector, nginx: Nginx) -> None:
    """RFC 9112 section 5.2: tinyproxy takes them; the row is right whatever nginx says to them."""
    with Tinyproxy(tmp_path / "tinyproxy") as proxy:
        collector.start()
        target = f"{HOST}:{nginx.port}"
        head = f"GET http://{target}/size/6/folded HTTP/1.1\r\nHost: {target}\r\n"
        with socket.create_connection((HOST, proxy.port)) as client:
            client.sendall(f"{head}X-Long: a,\r\n  b,\r\n\tc\r\nConnection: close\r\n\r\n".encode())
            status = Reader(client).response()
        collector.stop()
    (row,) = rows_at(collector.rows(), proxy.port)
    assert (row["method"], row["path"], row["status"]) == ("GET", "/size/6/folded", status)
    assert row["host"] == target
