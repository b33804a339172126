"""What Go programs say inside TLS comes out as in the server's own log, line by line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.http.clients import Sent
from tests.requirements import require
from tests.tls import clients
from tests.tls.golang import become, build
from tests.tls.programs import BuiltServer, ask
from tests.tls.servers import HOST
from tests.tls.test_openssl import check_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.http.observed import Collector

pytestmark = pytest.mark.bpf

CALLS = 200
"""Of each protocol."""


@pytest.mark.parametrize("kind", ["plain", "stripped"])
def test_both_ends(tmp_path: Path, collector: Collector, kind: str) -> None:
    """Goroutines, which go from thread to thread in the middle of a call."""
    require("bpf")
    binary = build(kind)
    with BuiltServer(tmp_path / "server", binary) as server:
        collector.start()
        address = HOST, server.port
        sent = Sent(0, 0)
        for protocol in ("http1", "http2", "grpc"):
            sent += ask(binary, protocol, address, CALLS, 8)
        sent += clients.curl_each(address, [(f"/size/{each}/curl", ()) for each in range(8)])
        collector.stop()
    rows = collector.rows()
    check_server(rows, server, sent.requests)
    ends = [row for row in rows if server.port in (row["local_port"], row["remote_port"])]
    assert len(ends) == 2 * sent.requests == 2 * (3 * CALLS + 8)
    assert sum(row["grpc_status"] == 0 for row in ends) == 2 * CALLS


def test_a_few_calls(tmp_path: Path, collector: Collector) -> None:
    """As many as an emulated machine makes in seconds."""
    require("bpf")
    binary = build("stripped")
    with BuiltServer(tmp_path / "server", binary) as server:
        collector.start()
        sent = Sent(0, 0)
        for protocol in ("http1", "http2"):
            sent += ask(binary, protocol, (HOST, server.port), 8, 2)
        collector.stop()
    check_server(collector.rows(), server, sent.requests)


def test_a_program_in_the_process_of_another(tmp_path: Path, collector: Collector) -> None:
    """Its goroutine is where one of the other was, which never came back from its read."""
    require("bpf")
    binary = build()
    with BuiltServer(tmp_path / "server", binary) as server:
        collector.start()
        sent = become(binary, (HOST, server.port), 8)
        collector.stop()
    check_server(collector.rows(), server, sent.requests)
