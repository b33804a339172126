"""The servers of `tests.http.servers` behind TLS, and the certificate that they show."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.http.servers import GrpcServer, Nginx, NodeServer, Server
from tests.requirements import unmet

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "HOST",
    "RING_BYTES",
    "AioServer",
    "GrpcJsServer",
    "GrpcioServer",
    "NodeTlsServer",
    "TlsNginx",
    "make_certificate",
]

HERE: Final = Path(__file__).parent
HOST: Final = "127.0.0.1"
RING_BYTES: Final = 256 << 20
"""Of a collector's payload ring: a busy machine shows as time and not as loss."""


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a key and its own certificate for ``localhost``; the files, certificate first."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if not certificate.is_file():
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += [
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
        ]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        command += ["-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
    return certificate, key


class TlsNginx(Nginx):
    """nginx with HTTP/1 on `port` and HTTP/2 on `port2`, both inside TLS."""

    def argv(self) -> Sequence[str]:
        command = super().argv()
        certificate, key = make_certificate(self.work)
        path = self.work / "nginx.conf"
        text = path.read_text()
        for before, after in (
            (f"listen {HOST}:{self.port};", f"listen {HOST}:{self.port} ssl;"),
            (f"listen {HOST}:{self.port2} http2;", f"listen {HOST}:{self.port2} ssl http2;"),
            (
                "gzip off;",
                f"gzip off; ssl_certificate {certificate}; ssl_certificate_key {key};"
                " ssl_protocols TLSv1.2 TLSv1.3;",
            ),
        ):
            assert before in text
            text = text.replace(before, after)
        path.write_text(text)
        return command


class AioServer(Server):
    """An aiohttp server, whose TLS is given the bytes by its event loop."""

    name = "aiohttp"

    def argv(self) -> Sequence[str]:
        certificate, key = make_certificate(self.work)
        arguments = [str(self.port), str(certificate), str(key), str(self.log)]
        return [sys.executable, "-m", "tests.tls.aio_server", *arguments]


class NodeTlsServer(Server):
    """A Node.js server, whose OpenSSL is part of the program.

    Args:
        work: Directory for its files.
        program: Which Node.js; empty: that of this machine.
    """

    name = "node"

    def __init__(self, work: Path, program: str = "") -> None:
        super().__init__(work)
        self._program = program

    def argv(self) -> Sequence[str]:
        node = self._program or shutil.which("node")
        if node is None:
            unmet("bpf", "no node on PATH (Debian: nodejs)")
        certificate, key = make_certificate(self.work)
        arguments = [str(self.port), str(certificate), str(key), str(self.log)]
        return [node, str(HERE / "node_tls.js"), "serve", *arguments]


class GrpcJsServer(NodeServer):
    """gRPC on Node.js."""

    def __init__(self, work: Path) -> None:
        super().__init__(work, "grpc")

    def argv(self) -> Sequence[str]:
        return [*super().argv(), *map(str, make_certificate(self.work))]


class GrpcioServer(GrpcServer):
    """gRPC with the BoringSSL of its core, of which no function has a name."""

    def argv(self) -> Sequence[str]:
        return [*super().argv(), *map(str, make_certificate(self.work))]
