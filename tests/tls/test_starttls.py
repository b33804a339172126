"""Connections that turn to TLS after some words in clear, as mail does."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Final

import pytest

from tests.tls.servers import HOST, make_certificate
from tests.tls.table import name_of, table

if TYPE_CHECKING:
    from pathlib import Path

    from tests.http.observed import Collector

pytestmark = pytest.mark.bpf

NAME: Final = "mail.podwire.example"


def serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    """SMTP for one client, as far as STARTTLS (RFC 3207) and one command after it."""
    with listener.accept()[0] as client:
        client.settimeout(20)
        client.sendall(b"220 mail ESMTP\r\n")
        assert client.recv(1000).startswith(b"EHLO")
        client.sendall(b"250-mail\r\n250 STARTTLS\r\n")
        assert client.recv(1000) == b"STARTTLS\r\n"
        client.sendall(b"220 go ahead\r\n")
        with context.wrap_socket(client, server_side=True) as inside:
            assert inside.recv(1000).startswith(b"NOOP")
            inside.sendall(b"250 OK\r\n")


def test_mail(tmp_path: Path, collector: Collector) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path))
    with socket.create_server((HOST, 0)) as listener:
        server = threading.Thread(target=serve, args=(listener, context))
        server.start()
        collector.start()
        where = f"{HOST}:{listener.getsockname()[1]}"
        command = ["openssl", "s_client", "-starttls", "smtp", "-servername", NAME, "-quiet"]
        said = subprocess.run(
            [*command, "-connect", where],
            input=b"NOOP\r\n",
            capture_output=True,
            check=False,  # it would have the server say goodbye
            timeout=30,
        )
        assert b"250 OK" in said.stdout
        server.join(20)
        collector.stop()
    found = {key: both for key, both in table(collector.batches()).items() if key[2] == NAME}
    assert {key: closed for key, (closed, _) in found.items() if closed} == {
        ("client", "openssl", NAME, "TLS 1.3", "readable", ""): 1,
        ("server", name_of(os.getpid()), NAME, "TLS 1.3", "readable", ""): 1,
    }
    assert sum(size for _, size in found.values()) > 1_000
