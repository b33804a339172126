"""Programs that use GnuTLS, with both versions of HTTP."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from tests.http import truth
from tests.requirements import unmet
from tests.tls import clients
from tests.tls.servers import HOST

if TYPE_CHECKING:
    from tests.http.observed import Collector
    from tests.tls.servers import TlsNginx

pytestmark = pytest.mark.bpf

ROUNDS: Final = 3
PATHS: Final = ["/static/1k", "/static/0", "/copied/1m", "/static/100k", "/chunked/3/100"]
"""Nothing from nginx's backend with a length: see `tests.tls.test_openssl.test_http2`."""


def test_wget_and_curl(nginx: TlsNginx, collector: Collector) -> None:
    wget = shutil.which("wget")
    if wget is None:
        unmet("bpf", "no wget (Debian: wget)")
    linked = subprocess.run(["ldd", wget], capture_output=True, text=True, check=True).stdout
    if "libgnutls" not in linked:
        unmet("bpf", "this wget does without GnuTLS")
    collector.start()
    addresses = {"1.1": (HOST, nginx.port), "2": (HOST, nginx.port2)}
    clients.wget(addresses["1.1"], ["/return/204"])  # the first process with this library
    counts = dict.fromkeys(addresses, 0)
    for _ in range(ROUNDS):
        counts["1.1"] += clients.wget(addresses["1.1"], PATHS).requests
        for version, address in addresses.items():
            counts[version] += clients.gnutls(address, version, PATHS).requests
    collector.stop()
    nginx.stop()
    rows, lines = collector.rows(), nginx.lines()
    assert len(lines) == 1 + sum(counts.values())
    settled = [row for row in rows if row["path"] != "/return/204"]
    assert all(row["tls"] for row in settled if row["remote_port"] in (nginx.port, nginx.port2))
    for version, (_, port) in addresses.items():
        for role in ("server", "client"):
            expected = truth.from_nginx(lines[1:], port, role)
            assert len(expected) == counts[version]
            truth.check(settled, expected, role, port)
