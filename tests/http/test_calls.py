"""Every call is seen, once and as it was: rows equal the logs of real servers, line by line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from collector.config import CollectorConfig
from tests.http import clients, mix, raw
from tests.http.clients import NOTHING
from tests.http.scene import KINDS, ROOMY, Scene
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.http.clients import Sent

pytestmark = pytest.mark.bpf

CALLS = int(os.environ.get("PODWIRE_MIX", "3000"))
"""Of a mix, read before any test: they see no variables."""


@pytest.fixture(params=KINDS)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    require("bpf")
    # As many as a long mix has wait in the ring, which takes memory only as it is used.
    ring_bytes = ROOMY if CALLS <= 10_000 else 4 * ROOMY
    with Scene(tmp_path, request.param, ring_bytes) as made:
        yield made


def test_sockets(scene: Scene) -> None:
    """Heads and bodies cut in every way, pipelines, and clients that leave in the middle."""
    scene.watch()
    sent = NOTHING
    for place in ("h1", "node"):
        for name in raw.KINDS:
            sent += raw.KINDS[name](scene.addresses[place], f"{name}-{place}-")
    scene.finish()
    scene.check(("h1", "node"), roles=("server", "client"))
    whole = [
        one for place in ("h1", "node") for one in scene.expected(place) if not one.is_optional
    ]
    own = [one for one in whole if "-" in str(one.fields["path"]) and _is_direct(one.line)]
    assert len(own) >= sent.requests


def _is_direct(line: dict[str, object]) -> bool:
    return "server_port" in line or "-node-" in str(line["uri"])


def test_http1_tools(scene: Scene) -> None:
    scene.watch()
    address = scene.addresses["h1"]
    files = ["/static/1k", "/static/0", "/return/404"]
    worked = clients.wrk(address, files, 1000, 8)
    worked += clients.wrk(address, files, 1000, 4, depth=16)
    loaded = clients.h2load(address, files, 1000, 4, streams=8, http1=True)
    kept = clients.keep_alive(address, "keep-", 60)
    curled = clients.curl_each(address, mix._CURLS)
    scene.finish()
    assert loaded.requests == loaded.answered == 1000
    counts = scene.check(("h1",))
    assert counts["h1"] >= sum(each.requests for each in (worked, loaded, kept, curled))


def test_http2(scene: Scene) -> None:
    """A hundred streams at once, flow control, resets, trailers, interim responses."""
    scene.watch()
    h2, node = scene.addresses["h2"], scene.addresses["node-h2"]
    sent = clients.h2load(h2, ["/static/1k", "/static/0", "/static/100k"], 1000, 4)
    sent += clients.h2load(h2, ["/size/5/uploaded"], 200, 2, body=30_000)
    curls = [(path, ("--http2-prior-knowledge", *more)) for path, more in mix._CURLS_HTTP2]
    sent += clients.curl_each(h2, curls)
    sent += clients.node_http2(h2, 150, proxied=True)
    own = clients.h2load(node, ["/size/5", "/chunked/3/100"], 500, 2)
    own += clients.node_http2(node, 200)
    scene.finish()
    counts = scene.check(("h2", "node-h2"), roles=("server", "client"))
    assert counts == {"h2": sent.requests, "node-h2": own.requests}


def test_grpc(scene: Scene) -> None:
    """Unary calls and streams of two runtimes, both as client and server."""
    scene.watch()
    places = ("grpc", "node-grpc")
    count = 60
    for place in places:
        assert clients.grpc_calls(scene.addresses[place], count).requests == count
        assert clients.node_grpc_calls(scene.addresses[place], count).requests == count
    scene.finish()
    counts = scene.check(places, roles=("server", "client"))
    assert counts == dict.fromkeys(places, 2 * count)


@pytest.mark.timeout(3_600)
def test_mix(scene: Scene) -> None:
    """Everything at once; ``PODWIRE_MIX=100000`` makes it last."""
    scene.watch()
    sent = mix.run(scene.addresses, CALLS)
    rows = scene.finish()
    total = sum(one.requests for one in sent.values())
    print(f"\n{total} requests, {len(rows)} rows: {sent}")
    assert _check(scene, sent) >= total


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("ring_bytes", [CollectorConfig().payload_ring_bytes, 1 << 20])
def test_what_a_crowded_ring_loses_is_told(tmp_path: Path, ring_bytes: int) -> None:
    """What is missing is counted in bytes, and no row is wrong."""
    require("bpf")
    with Scene(tmp_path, "collector", ring_bytes) as scene:
        scene.watch()
        sent = mix.run(scene.addresses, CALLS)
        scene.finish()
        assert _check(scene, sent) >= sum(one.requests for one in sent.values())


def _check(scene: Scene, sent: Mapping[str, Sent]) -> int:
    # How many lines the logs have. All is exact, unless the ledger says that bytes are missing.
    lost = {
        reason: entry.dropped_count
        for (_, kind, reason), entry in scene.ledger.items()
        if kind in ("payload", "payload_byte") and reason
    }
    if not lost:
        return sum(scene.check().values())
    missing = [one.line for lines in scene.check_lossy().values() for one in lines]
    print(f"\n{len(missing)} lines without a row: {lost}")
    # Nothing of these was seen, so that at least their requests are among the bytes.
    asked = sum(int(line.get("request_length", 1)) for line in missing)
    assert asked <= lost.get("untold", 0) + lost.get("uncaptured", 0)
    return sum(len(scene.expected(name)) for name in scene.addresses)
