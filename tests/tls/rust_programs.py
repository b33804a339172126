"""A Rust program that serves and asks inside TLS with rustls, built by cargo."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.http.clients import Sent, run_tool
from tests.http.servers import Server
from tests.requirements import program
from tests.tls.servers import HERE, HOST, make_certificate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.http.clients import Address

__all__ = ["RustServer", "ask", "build"]

_SETTINGS: Final = {
    # Debian's cargo would fetch the index of all packages; not to, it calls unstable.
    "RUSTC_BOOTSTRAP": "1",
    "CARGO_UNSTABLE_SPARSE_REGISTRY": "true",
}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="podwire-rust-")


@functools.cache
def build(is_stripped: bool = False) -> Path:
    """Build it once, with symbols or without."""
    if is_stripped:
        stripped = Path(_folder().name) / "stripped"
        subprocess.run([program("strip"), "-o", stripped, build()], check=True)
        return stripped
    answer = subprocess.run(
        [program("cargo"), "build", "--quiet", "--release", "--locked"],
        cwd=HERE / "rust",
        env={"CARGO_TARGET_DIR": _folder().name} | os.environ | _SETTINGS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return Path(os.environ.get("CARGO_TARGET_DIR", _folder().name)) / "release" / "rustls-test"


class RustServer(Server):
    """HTTP/1.1 and HTTP/2 on one port, on as many threads as there are CPUs."""

    name = "rust"

    def __init__(self, work: Path, binary: Path) -> None:
        super().__init__(work)
        self._binary = binary

    def argv(self) -> Sequence[str]:
        certificate, key = make_certificate(self.work)
        address = f"{self.address}:{self.port}"
        return [str(self._binary), "serve", address, str(certificate), str(key), str(self.log)]


def ask(binary: Path, protocol: str, address: Address, count: int, connections: int) -> Sent:
    """Ask with ``http1``, ``http2`` or ``blocking`` HTTP/1.1, on several connections in turns."""
    where = f"{address[0] or HOST}:{address[1]}"
    run_tool([str(binary), "ask", protocol, where, str(count), str(connections)])
    return Sent(count, count)
