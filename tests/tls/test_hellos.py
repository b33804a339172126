"""What is told of sessions with hellos of any length, silent ones, and what is no hello."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import threading
import time
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
ROLES: Final = ("client", "server")
SILENT: Final = "silent.podwire.example"
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


def ask_late(address: tuple[str, int]) -> None:
    """Be silent for some publishes after the handshake."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(address) as plain,
        context.wrap_socket(plain, server_hostname=SILENT) as end,
    ):
        time.sleep(1.5)
        end.sendall(b"NOOP\r\n")
        assert end.recv(1_000) == b"GRANTED\r\n"


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
        ask_late(address)
        collector.stop()
        listener.shutdown(socket.SHUT_RDWR)
        server.join(20)
    found = table(collector.batches())
    own = name_of(os.getpid())
    ends = {
        (role, "openssl" if role == "client" else own, name) for role in ROLES for name in CLIENTS
    }
    ends |= {(role, own, SILENT) for role in ROLES}
    told = {key: count for key, (count, _) in found.items() if key[2].endswith("podwire.example")}
    # All of each in one row: no byte has gone before its name or what can be read.
    assert told == {(*end, "TLS 1.3", "readable", ""): 1 for end in ends}
