"""What is said inside TLS comes out as in the servers' own logs, line by line."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from tests.http import truth
from tests.tls import clients
from tests.tls.servers import HOST, AioServer, NodeTlsServer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.http.observed import Collector
    from tests.http.servers import Server
    from tests.http.truth import Row
    from tests.tls.servers import TlsNginx

pytestmark = pytest.mark.bpf

_CURLS: Final = [
    ("/static/1k", ()),
    ("/static/0", ("--tlsv1.2", "--tls-max", "1.2")),
    ("/copied/100k", ("--tlsv1.3",)),
    ("/static/1m", ()),
    ("/return/204", ()),
    ("/return/404", ("-I",)),
    ("/size/70000/up", ("--data-binary", "@-")),
    ("/chunked/3/100", ()),
]


def check_nginx(rows: list[Row], nginx: TlsNginx, port: int, count: int) -> None:
    """Fail unless both ends' rows of a port are the lines of the log, all inside TLS."""
    lines = nginx.lines()
    for role in ("server", "client"):
        expected = truth.from_nginx(lines, port, role)
        assert len(expected) == count
        truth.check(rows, expected, role, port)
    ends = [row for row in rows if port in (row["local_port"], row["remote_port"])]
    assert len(ends) == 2 * count
    assert all(row["tls"] for row in ends)


def test_http1(nginx: TlsNginx, collector: Collector) -> None:
    collector.start()
    address = HOST, nginx.port
    sent = clients.curl_each(address, [(path, ("--http1.1", *more)) for path, more in _CURLS] * 3)
    sent += clients.h2load(address, ["/static/1k", "/copied/100k"], 300, 4, streams=4, http1=True)
    collector.stop()
    nginx.stop()
    check_nginx(collector.rows(), nginx, nginx.port, sent.requests)


def test_http2(nginx: TlsNginx, collector: Collector) -> None:
    collector.start()
    address = HOST, nginx.port2
    # Without the upload: nginx says that its answer is over in a frame and a record of their own,
    # which curl leaves unread once it has as much as was announced.
    curls = [(path, ("--http2", *more)) for path, more in _CURLS if path != "/size/70000/up"]
    sent = clients.curl_each(address, curls * 3)
    sent += clients.h2load(address, ["/static/1k", "/static/0", "/static/100k"], 600, 4)
    collector.stop()
    nginx.stop()
    check_nginx(collector.rows(), nginx, nginx.port2, sent.requests)


def check_server(rows: list[Row], server: Server, count: int) -> None:
    """Fail unless both ends' rows of a server are the lines of its log, all inside TLS."""
    lines = sorted(
        (line["port"], line["method"], line["path"], line["received"], line["sent"])
        for line in server.lines()
    )
    assert len(lines) == count
    for role, here, there in (
        ("server", "local_port", "remote_port"),
        ("client", "remote_port", "local_port"),
    ):
        found = sorted(
            (
                row[there],
                row["method"],
                row["path"],
                row["request_body_size"],
                row["response_body_size"],
            )
            for row in rows
            if row["role"] == role and row[here] == server.port and row["status"] == 200
        )
        assert found == lines, role
    assert all(row["tls"] for row in rows if server.port in (row["local_port"], row["remote_port"]))


@pytest.mark.parametrize("kind", [AioServer, NodeTlsServer])
def test_libraries_that_make_no_system_calls(
    tmp_path: Path, collector: Collector, kind: type[AioServer | NodeTlsServer]
) -> None:
    """Event loops move the bytes themselves; sessions are paired with sockets all the same."""
    with kind(tmp_path / "server") as server:
        collector.start()
        # Node.js holds its own OpenSSL: the file is seen before the calls that count are made.
        subprocess.run(["node", "-e", "setTimeout(() => {}, 2000)"], check=True, timeout=60)
        address = HOST, server.port
        sent = clients.aio(address, "/size/3000/aio", 60, 6)
        sent += clients.node(address, "/size/40000/node", 60, 6)
        sent += clients.requests(address, "/size/10/requests", 20)
        sent += clients.curl_each(address, [(f"/size/{each}/curl", ()) for each in range(8)])
        collector.stop()
    check_server(collector.rows(), server, sent.requests)
