"""Clients that speak TLS, each with its own count of what it asked; see `tests.http.clients`."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from typing import TYPE_CHECKING

from tests.http.clients import Sent, run_tool
from tests.http.servers import REPOSITORY
from tests.requirements import unmet
from tests.tls.servers import HERE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.http.clients import Address

__all__ = ["aio", "curl", "curl_each", "gnutls", "h2load", "node", "requests", "wget"]


def _url(address: Address, path: str = "") -> str:
    return f"https://{address[0]}:{address[1]}{path}"


def curl(address: Address, path: str, *options: str) -> None:
    """One curl, which must succeed."""
    command = ["curl", "-sSk", "-o", "/dev/null", "--max-time", "60", *options]
    run_tool([*command, _url(address, path)], input="t" * 3000)


def curl_each(
    address: Address, asked: Iterable[tuple[str, Sequence[str]]], at_once: int = 4
) -> Sent:
    """A curl for each (path, options)."""
    with ThreadPoolExecutor(at_once) as pool:
        count = len(list(pool.map(lambda one: curl(address, one[0], *one[1]), asked)))
    return Sent(count, count)


def h2load(
    address: Address,
    paths: Sequence[str],
    count: int,
    connections: int,
    streams: int = 100,
    http1: bool = False,
) -> Sent:
    """h2load with HTTP/2, or with HTTP/1.1 and pipelines of ``streams``."""
    options = [f"-n{count}", f"-c{connections}", f"-m{streams}", "-t1"]
    if http1:
        options.append("--h1")
    said = run_tool(["h2load", *options, *(_url(address, path) for path in paths)])
    found = re.search(r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded", said)
    assert found is not None, said
    return Sent(int(found[2]), int(found[3]))


def aio(address: Address, path: str, count: int, connections: int) -> Sent:
    """aiohttp, on several connections at once."""
    numbers = [str(count), str(connections)]
    command = [sys.executable, "-m", "tests.tls.aio_client", _url(address, path), *numbers]
    run_tool(command, cwd=REPOSITORY)
    return Sent(count, count)


def requests(address: Address, path: str, count: int) -> Sent:
    """Python's requests, on one connection."""
    command = [sys.executable, "-m", "tests.tls.requests_client", _url(address, path), str(count)]
    run_tool(command, cwd=REPOSITORY)
    return Sent(count, count)


def node(address: Address, path: str, count: int, connections: int, program: str = "node") -> Sent:
    """Node.js, on several connections at once."""
    where = [str(address[1]), path, str(count), str(connections)]
    run_tool([program, str(HERE / "node_tls.js"), "ask", *where])
    return Sent(count, count)


def wget(address: Address, paths: Sequence[str]) -> Sent:
    """One wget, on one connection."""
    options = ["-q", "--no-check-certificate", "-O", "/dev/null"]
    run_tool(["wget", *options, *(_url(address, path) for path in paths)])
    return Sent(len(paths), len(paths))


def gnutls(address: Address, version: str, paths: Sequence[str]) -> Sent:
    """curl's library with GnuTLS, on one connection; ``version`` is that of HTTP, 1.1 or 2."""
    if find_library("curl-gnutls") is None:
        unmet("bpf", "no libcurl-gnutls (Debian: libcurl3-gnutls)")
    urls = [_url(address, path) for path in paths]
    run_tool([sys.executable, "-m", "tests.tls.gnutls_client", version, *urls], cwd=REPOSITORY)
    return Sent(len(paths), len(paths))
