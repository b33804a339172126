"""gRPC inside TLS: of grpc-js every call is read, of grpcio is known that none is."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from schemas.events import Role
from tests.collector.tls.test_probes import Clock, FakeObject, create
from tests.http import clients, truth
from tests.tls.servers import HOST, GrpcioServer, GrpcJsServer, make_certificate
from tests.tls.table import name_of, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from schemas.events import EventBatch
    from tests.http.observed import Collector

pytestmark = pytest.mark.bpf

CALLS: Final = 60
HANDSHAKE: Final = 4_096
"""More than the bytes of one."""
CLOSING: Final = 24
"""Bytes of the alert that ends a connection, which its other end may leave unread."""


def moved_by(batches: Iterable[EventBatch], ports: set[int]) -> Counter[str]:
    """Bytes of connections to these ports, by the role of the end that counted them."""
    found: Counter[str] = Counter()
    for batch in batches:
        of = batch.connections
        for place, size in zip(batch.transfers.connection, batch.transfers.size, strict=True):
            is_server = of.role[place] == Role.SERVER
            if int((of.local_port if is_server else of.remote_port)[place]) in ports:
                found["server" if is_server else "client"] += int(size)
    return found


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
    assert {key: closed for key, (closed, _) in found.items() if closed} == {
        ("client", node, *named, "readable", ""): 2,
        ("server", node, *named, "readable", ""): 2,
        ("client", own, *named, "unreadable", "no_functions"): 2,
        ("server", grpcio, *named, "unreadable", "no_functions"): 2,
    }
    # All that these ends moved is there, less what came before their hellos were known.
    ports = {server.port for server in servers}
    moved = moved_by(batches, ports)
    assert abs(moved["client"] - moved["server"]) <= 4 * CLOSING
    for role in ("client", "server"):
        known = sum(size for key, (_, size) in found.items() if key[0] == role)
        assert moved[role] - 4 * HANDSHAKE < known <= moved[role]
    unreadable = {key[:2]: size for key, (_, size) in found.items() if key[4] == "unreadable"}
    said = sum(line["received"] + line["sent"] for line in servers[1].lines())
    assert unreadable["server", grpcio] > said > 0
    assert all(size < 2 * HANDSHAKE for (_, name), size in unreadable.items() if name == node)
