"""Hellos of any length, in any number of records, and what is none of them."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Final

import pytest

from tests.requirements import program
from tests.tls.servers import HOST, make_certificate
from tests.tls.table import name_of, table

if TYPE_CHECKING:
    from pathlib import Path

    from tests.http.observed import Collector

pytestmark = pytest.mark.bpf

ALPN: Final = ",".join(f"{number:0255}" for number in range(40))
"""10 KiB of protocols to choose from."""
CLIENTS: Final = {
    "long.podwire.example": ("-alpn", ALPN),
    "fragmented.podwire.example": ("-alpn", ALPN, "-max_send_frag", "512"),
    "short.podwire.example": ("-max_send_frag", "512"),
}
SPOILT: Final = (
    b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + bytes(2_000),  # and no more
    b"\x16\x03\x01\x00\x0a\x01\x00\x00\x06" + b"\xfa" * 6,
    b"\x16\x03\x01\xff\xff\x01\xff\xff\xff\x03\x03" + b"\x0a" * 9_000,
    b"\x16\x03\x01",
)


def serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Answer one line of each client until the listener is closed."""
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            client.settimeout(20)
            with contextlib.suppress(OSError), context.wrap_socket(client, server_side=True) as end:
                assert end.recv(1_000)
                end.sendall(b"GRANTED\r\n")


def test_names_and_versions(tmp_path: Path, collector: Collector) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path))
    with socket.create_server((HOST, 0)) as listener:
        server = threading.Thread(target=serve, args=(listener, context))
        server.start()
        collector.start()
        address = listener.getsockname()[:2]
        for spoilt in SPOILT:
            with socket.create_connection(address) as client, contextlib.suppress(OSError):
                client.sendall(spoilt)
        for name, options in CLIENTS.items():
            command = [program("openssl"), "s_client", "-quiet", "-servername", name, *options]
            said = subprocess.run(
                [*command, "-connect", "{}:{}".format(*address)],
                input=b"NOOP\r\n",
                capture_output=True,
                check=False,  # nobody vouches for the certificate
                timeout=60,
            )
            assert said.stdout == b"GRANTED\r\n"
        collector.stop()
        listener.shutdown(socket.SHUT_RDWR)
        server.join(20)
    closed = {key: count for key, (count, _) in table(collector.batches()).items() if count}
    own = name_of(os.getpid())
    for name in CLIENTS:
        assert closed.pop(("client", "openssl", name, "TLS 1.3", "readable", "")) == 1
        assert closed.pop(("server", own, name, "TLS 1.3", "readable", "")) == 1
    assert not any(key[2].endswith("podwire.example") for key in closed)
