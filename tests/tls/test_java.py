"""Java's own TLS cannot be read; whose it is, how much it is, and why not is told all the same."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest

from schemas.events import ConnectionFlag, Direction, Role
from tests.http.clients import run_tool
from tests.requirements import program, require, unmet
from tests.tls import clients
from tests.tls.servers import HERE, make_certificate
from tests.tls.table import table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from schemas.events import EventBatch
    from tests.http.observed import Collector

pytestmark = pytest.mark.bpf

NAME: Final = f"java-{os.getpid()}.podwire.example"
QUICKLY: Final = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m")
ASKS: Final = 10
CURLS: Final = 3
RECORD_HEADER: Final = 5
"""Bytes of a hello that Java reads first, and that may be in a batch before the others."""


def moved(batches: Iterable[EventBatch], port: int, role: Role) -> tuple[list[int], int]:
    """What Java's end of a server's port did: `Https.java`'s figures, and how much was not TLS yet.

    The figures begin with connections opened, and end with those that were closed.
    """
    figures, clear = np.zeros(4, int), 0
    for batch in batches:
        connections, transfers = batch.connections, batch.transfers
        ports = connections.local_port if role == Role.SERVER else connections.remote_port
        is_java = np.array([batch.names[each] == "java" for each in connections.process], bool)
        chosen = (ports == port) & (connections.role == role) & is_java
        sizes = transfers.size * chosen[transfers.connection]
        figures += (
            np.count_nonzero(chosen[batch.opens.connection]),
            int(sizes[transfers.direction == Direction.READ].sum()),
            int(sizes[transfers.direction == Direction.WRITE].sum()),
            np.count_nonzero(chosen[batch.closes.connection]),
        )
        inside = connections.flags & ConnectionFlag.TLS != 0
        clear += int(sizes[~inside[transfers.connection]].sum())
    return figures.tolist(), clear


def test_both_ends(tmp_path: Path, collector: Collector) -> None:
    """Of its own connections, and of the server's with a client that is read."""
    require("bpf")
    java_path = program("java")
    if "jdk.compiler" not in run_tool([java_path, "--list-modules"]):
        unmet("tools", "this Java compiles no source (Debian: default-jre-headless)")
    certificate, key = make_certificate(tmp_path)
    store = tmp_path / "store.p12"
    command = ["openssl", "pkcs12", "-export", "-passout", "pass:", "-out", str(store)]
    run_tool([*command, "-in", str(certificate), "-inkey", str(key)])
    collector.start()
    source = str(HERE / "java" / "Https.java")
    with subprocess.Popen(
        [java_path, *QUICKLY, source, str(store), NAME, str(ASKS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as java:
        assert java.stdin is not None
        assert java.stdout is not None
        port = int(java.stdout.readline())
        # Why it is not read is found out beside the rest, once it is seen to use TLS; this waits.
        first = f"first.{NAME}"
        clients.curl((first, port), "/", "--resolve", f"{first}:{port}:127.0.0.1")
        print(file=java.stdin, flush=True)
        assert java.stdout.readline() == "asked\n"
        here = ("--resolve", f"{NAME}:{port}:127.0.0.1")
        clients.curl_each((NAME, port), [("/curl", here)] * CURLS)
        print(file=java.stdin, flush=True)
        said = [java.stdout.readline().split() for _ in range(2)]
        collector.stop()
    counted = {end: [int(each) for each in figures] for end, *figures in said}
    assert {end: count for end, (count, _, _) in counted.items()} == {
        "server": 1 + ASKS + CURLS,
        "client": ASKS,
    }
    batches = collector.batches()
    everything = table(batches)
    found = {key: both for key, both in everything.items() if key[2] == NAME}
    ours = {key for key in everything if key[1] == "java" and key[2].endswith(NAME)}
    assert {key[3:] for key in ours} == {("TLS 1.3", "unreadable", "java")}
    own = "java", NAME, "TLS 1.3", "unreadable", "java"
    assert {key: count for key, (count, _) in found.items() if count} == {
        ("server", *own): ASKS + CURLS,
        ("client", *own): ASKS,
        ("client", "curl", NAME, "TLS 1.3", "readable", ""): CURLS,
    }
    for role, (count, read, written) in counted.items():
        figures, clear = moved(batches, port, Role[role.upper()])
        assert figures == [count, read, written, count]
        inside = sum(
            size
            for key, (_, size) in everything.items()
            if key[:2] == (role, "java") and key[2].endswith(NAME)
        )
        assert inside + clear == read + written
        assert clear <= count * RECORD_HEADER
