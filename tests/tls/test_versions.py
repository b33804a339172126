"""Every OpenSSL that programs still have, as Node.js brings each as a part of itself."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from tests.http.clients import NOTHING
from tests.http.servers import CACHE, node_modules
from tests.requirements import unmet
from tests.tls import clients
from tests.tls.servers import HERE, HOST, NodeTlsServer
from tests.tls.test_openssl import check_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.http.observed import Collector

pytestmark = pytest.mark.bpf

ALL: Final = os.environ.get("PODWIRE_OPENSSL") == "all"
"""``PODWIRE_OPENSSL=all`` adds those that this machine's own programs are nearly the same as."""
EXPECTED: Final = {
    "openssl-1.0.2": "1.0.2",
    "openssl-1.1.1": "1.1.1",
    **({"openssl-1.1.1-quic": "1.1.1", "openssl-3.5": "3.5"} if ALL else {}),
}
"""By package of ``node/package.json``: the OpenSSL that it must have."""


def programs() -> dict[str, str]:
    """Node.js of each package."""
    if platform.machine() != "x86_64":
        unmet("bpf", "these packages are for x86-64")
    options = () if ALL else ("--omit=dev",)
    modules = node_modules(HERE / "node", CACHE / f"tls-node{'-all' * ALL}", *options)
    return {name: str(modules / name / "bin" / "node") for name in EXPECTED}


def test_servers_and_clients_of_every_version(tmp_path: Path, collector: Collector) -> None:
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, program in programs().items():
            told = [program, "-p", "process.versions.openssl"]
            version = subprocess.run(told, capture_output=True, text=True, check=True).stdout
            assert version.startswith(EXPECTED[name])
            servers[program] = stack.enter_context(NodeTlsServer(tmp_path / name, program))
        collector.start()
        sent = dict.fromkeys(servers, NOTHING)
        for program, server in servers.items():
            address = HOST, server.port
            sent[program] += clients.node(address, "/size/40000/own", 60, 6, program)
            sent[program] += clients.curl_each(address, [("/size/70000/curl", ())] * 3)
            sent[program] += clients.aio(address, "/size/300/aio", 30, 3)
        collector.stop()
    rows = collector.rows()
    for program, server in servers.items():
        check_server(rows, server, sent[program].requests)
