"""Mixed traffic of every kind of client to every server, of a chosen size and in a seeded order."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from tests.http import clients, raw
from tests.http.clients import NOTHING, Sent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.http.clients import Address

__all__ = ["run"]

Work = tuple[str, "Callable[[], Sent]"]
_SHARES: Final = {"wrk": 0.20, "pipelined": 0.20, "h2load": 0.35, "h2load-h1": 0.05}
"""Of all requests; the rest is split among the others."""
_CURLS: Final = (
    ("/static/1k", ()),
    ("/static/100k?a=b", ("-I",)),
    ("/static/50m", ()),
    ("/copied/1m", ()),
    ("/static/50m", ("--max-time", "0.2", "--limit-rate", "2m")),
    ("/static/1k", ("-H", "If-None-Match: *")),
    ("/static/100k", ("-r", "100-1999")),
    ("/return/204", ()),
    ("/return/301", ("-L",)),
    ("/return/304", ()),
    ("/return/500", ("-X", "POST", "-d", "a=b")),
    ("/return/404", ("--http2",)),
    ("/limited", ("-d", "x" * 3000)),
    ("/size/10/curl-upload", ("-T", "-")),
    ("/size/10/curl-expect", ("-H", "Expect: 100-continue", "-d", "x" * 3000)),
    ("/unbuffered/echo/curl", ("-T", "-")),
    ("/chunked/20/3000/curl", ("-0",)),
    ("/drip/5/10/curl", ()),
)
_CURLS_HTTP2: Final = (
    ("/static/1k", ()),
    ("/static/50m", ()),
    ("/static/1k", ("-I",)),
    ("/return/204", ()),
    ("/return/500", ()),
    ("/size/10/curl2-upload", ("-T", "-")),
    ("/chunked/20/3000/curl2", ()),
)


def run(
    addresses: Mapping[str, Address], count: int, seed: int = 7, at_once: int = 3
) -> dict[str, Sent]:
    """Make about ``count`` requests, several clients side by side; what each kind counted.

    Args:
        addresses: Of nginx (``h1``, ``h2``), Node (``node``, ``node-h2``, ``node-grpc``) and
            grpcio (``grpc``).
        count: Of requests, roughly.
        seed: Of the order.
        at_once: Clients that run side by side.
    """
    work = [*_bulk(addresses, count), *_special(addresses, count)]
    random.Random(seed).shuffle(work)
    total: dict[str, Sent] = {}
    with ThreadPoolExecutor(at_once) as pool:
        for name, sent in pool.map(lambda one: (one[0], one[1]()), work):
            total[name] = total.get(name, NOTHING) + sent
    return total


def _bulk(addresses: Mapping[str, Address], count: int) -> list[Work]:
    h1, h2 = addresses["h1"], addresses["h2"]
    files = ["/static/1k", "/static/0", "/return/200", "/return/404", "/copied/100k"]
    # After an error of its own nginx closes, and never looks at what else is in the pipeline.
    small = ["/static/0", "/return/204", "/return/404", "/return/304"]

    def share(name: str) -> int:
        return max(int(count * _SHARES[name]), 100)

    tail = max(int(count * 0.03), 60)
    return [
        ("wrk", lambda: clients.wrk(h1, files, share("wrk"), 8)),
        ("wrk", lambda: clients.wrk(h1, small, share("pipelined"), 4, depth=16)),
        ("h2load", lambda: clients.h2load(h2, files, share("h2load"), 4)),
        ("h2load", lambda: clients.h2load(h2, ["/size/5/a", "/size/7/b"], tail, 2, body=3000)),
        (
            "h2load",
            lambda: clients.h2load(h1, files, share("h2load-h1"), 4, streams=8, http1=True),
        ),
        ("h2load", lambda: clients.h2load(addresses["node-h2"], ["/size/5"], tail, 2)),
        ("keep_alive", lambda: clients.keep_alive(h1, "keep", tail)),
        ("keep_alive", lambda: clients.keep_alive(addresses["node"], "keep", tail)),
        ("grpc", lambda: clients.grpc_calls(addresses["grpc"], tail)),
        ("grpc", lambda: clients.grpc_calls(addresses["node-grpc"], tail)),
        ("node grpc", lambda: clients.node_grpc_calls(addresses["grpc"], tail)),
        ("node grpc", lambda: clients.node_grpc_calls(addresses["node-grpc"], tail)),
        ("node http2", lambda: clients.node_http2(addresses["node-h2"], tail)),
        ("node http2", lambda: clients.node_http2(h2, tail, proxied=True)),
    ]


def _special(addresses: Mapping[str, Address], count: int) -> list[Work]:
    rounds = max(1, min(count // 10_000, 5))
    work: list[Work] = []
    for number in range(rounds):
        for place in ("h1", "node"):
            for name in raw.KINDS:
                tag = f"{name}-{number}-"
                work.append((name, _bind(name, addresses[place], tag)))
        work.append(("curl", lambda: clients.curl_each(addresses["h1"], _CURLS)))
        work.append(
            (
                "curl http2",
                lambda: clients.curl_each(
                    addresses["h2"],
                    [(path, ("--http2-prior-knowledge", *more)) for path, more in _CURLS_HTTP2],
                ),
            )
        )
    return work


def _bind(name: str, address: Address, tag: str) -> Callable[[], Sent]:
    def work() -> Sent:
        try:
            return raw.KINDS[name](address, tag)
        except Exception as error:
            error.add_note(f"{name} to {address}")
            raise

    return work
