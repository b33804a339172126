"""A server inside TLS, and a collector that sees it; both end with their test, whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.http.observed import Collector
from tests.http.servers import NodeServer
from tests.requirements import require
from tests.tls.servers import RING_BYTES, TlsNginx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[TlsNginx]:
    require("bpf")
    with (
        NodeServer(tmp_path / "node", "http") as node,
        TlsNginx(tmp_path / "nginx", node.port) as server,
    ):
        yield server


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    require("bpf")
    made = Collector(tmp_path, RING_BYTES)
    yield made
    made.stop()
