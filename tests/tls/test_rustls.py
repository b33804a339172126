"""What Rust programs say inside rustls comes out as in the server's own log, line by line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.http.clients import Sent
from tests.requirements import require
from tests.tls import clients
from tests.tls.programs import BuiltServer, ask
from tests.tls.rust_programs import build
from tests.tls.servers import HOST
from tests.tls.table import name_of, table
from tests.tls.test_openssl import check_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.http.observed import Collector

pytestmark = pytest.mark.bpf

CALLS = 100
"""Of each protocol."""


def test_both_ends(tmp_path: Path, collector: Collector) -> None:
    """Sessions that are moved about, many of them on one thread and one on many threads."""
    require("bpf")
    binary = build()
    with BuiltServer(tmp_path / "server", binary) as server:
        collector.start()
        address = HOST, server.port
        sent = Sent(0, 0)
        for protocol in ("http1", "http2", "blocking"):
            sent += ask(binary, protocol, address, CALLS, 8)
        sent += clients.curl_each(address, [(f"/size/{each}/curl", ()) for each in range(8)])
        collector.stop()
    rows = collector.rows()
    check_server(rows, server, sent.requests)
    ends = [row for row in rows if server.port in (row["local_port"], row["remote_port"])]
    assert len(ends) == 2 * sent.requests == 2 * (3 * CALLS + 8)


def test_one_without_names(tmp_path: Path, collector: Collector) -> None:
    """Nothing is seen of it, and it is said why."""
    require("bpf")
    with BuiltServer(tmp_path / "server", build(is_stripped=True)) as server:
        collector.start()
        address = "localhost", server.port
        clients.curl(address, "/size/1/first")
        time.sleep(1.5)  # why is found out beside the rest
        clients.curl_each(address, [("/size/1/curl", ())] * 4)
        name = name_of(server.pid)
        collector.stop()
    rows = collector.rows()
    ends = [row["role"] for row in rows if server.port in (row["local_port"], row["remote_port"])]
    assert ends == ["client"] * 5
    found = {key: count for key, (count, _) in table(collector.batches()).items() if count}
    assert found[("server", name, "localhost", "TLS 1.3", "unreadable", "rustls")] >= 4
