"""gRPC inside TLS: of grpc-js every call is read, of grpcio is known that none is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.collector.tls.test_probes import Clock, FakeObject, create
from tests.http import clients, truth
from tests.tls.servers import HOST, GrpcioServer, GrpcJsServer, make_certificate
from tests.tls.table import name_of, table

if TYPE_CHECKING:
    from tests.http.observed import Collector

pytestmark = pytest.mark.bpf

CALLS: Final = 60
CLOSING: Final = 24
"""Bytes of the alert that ends a connection, which its other end may leave unread."""


def test_calls_of_both_runtimes(tmp_path: Path, collector: Collector) -> None:
    servers = GrpcJsServer(tmp_path / "grpc-js"), GrpcioServer(tmp_path / "grpcio")
    with servers[0] as grpc_js, servers[1] as grpcio_server:
        collector.start()
        node, grpcio, own = (name_of(pid) for pid in (grpc_js.pid, grpcio_server.pid, os.getpid()))
        for server in servers:
            address, certificate = (HOST, server.port), str(make_certificate(server.work)[0])
            clients.grpc_calls(address, CALLS, certificate)
            clients.node_grpc_calls(address, CALLS, certificate)
        collector.stop()
        probes = create(FakeObject(), Path("/proc"), Clock())
        probes.look_at(grpcio_server.pid)
        reasons = {(file.library, file.reason) for file in probes.files if "cygrpc" in file.path}
        assert reasons == {("BoringSSL", "no_functions")}
    rows, batches = collector.rows(), collector.batches()
    for server in servers:
        lines = server.lines()
        assert len(lines) == 2 * CALLS
        readable = [line for line in lines if line["id"].startswith("node-")]
        assert len(readable) == CALLS
        truth.check(rows, truth.from_grpc(readable), "client", server.port)
        at_server = lines if server is grpc_js else []
        truth.check(rows, truth.from_grpc(at_server), "server", server.port)
    named = "localhost", "TLS 1.3"
    # Other programs of this machine may speak TLS as well.
    found = {key: figures for key, figures in table(batches).items() if key[2:4] == named}
    assert {key: closed for key, (closed, _) in found.items()} == {
        ("client", node, *named, "readable"): 2,
        ("server", node, *named, "readable"): 2,
        ("client", own, *named, "unreadable"): 2,
        ("server", grpcio, *named, "unreadable"): 2,
    }
    # What cannot be read is as much as what the other ends, which can, have counted.
    moved = {key[:2]: size for key, (_, size) in found.items()}
    clients_moved = moved["client", node] + moved["client", own]
    servers_moved = moved["server", node] + moved["server", grpcio]
    assert abs(clients_moved - servers_moved) <= 4 * CLOSING
    said = sum(line["received"] + line["sent"] for line in servers[1].lines())
    assert moved["server", grpcio] > said > 0
