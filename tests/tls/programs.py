"""Programs of ours that are built for a test: each can serve, and ask, inside a TLS of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.http.clients import Sent, run_tool
from tests.http.servers import Server
from tests.tls.servers import HOST, make_certificate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.http.clients import Address

__all__ = ["BuiltServer", "ask", "where"]


class BuiltServer(Server):
    """All protocols of a program, on one port."""

    name = "built"

    def __init__(self, work: Path, binary: Path) -> None:
        super().__init__(work)
        self._binary = binary

    def argv(self) -> Sequence[str]:
        certificate, key = make_certificate(self.work)
        address = f"{self.address}:{self.port}"
        return [str(self._binary), "serve", address, str(certificate), str(key), str(self.log)]


def ask(binary: Path, protocol: str, address: Address, count: int, connections: int) -> Sent:
    """Ask with a protocol by its name in the program, on several connections."""
    run_tool([str(binary), "ask", protocol, where(address), str(count), str(connections)])
    return Sent(count, count)


def where(address: Address) -> str:
    """Return an address as programs are given it."""
    return f"{address[0] or HOST}:{address[1]}"
