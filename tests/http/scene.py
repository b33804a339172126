"""Servers, something that sees their calls, and the comparison of what it saw with their logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from collector.protocols.calls import Settings
from collector.protocols.exchange import Conversation
from tests.http import truth
from tests.http.observed import Collector, Witness
from tests.http.servers import GrpcServer, Nginx, NodeServer, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from collector.protocols.calls import Call
    from schemas.ledger import Entry
    from tests.http.clients import Address
    from tests.http.truth import Expected, Row

__all__ = ["KINDS", "ROOMY", "Scene"]

ROOMY: Final = 512 << 20
KINDS: Final = ("collector", "witness")
HOST: Final = "127.0.0.1"


@dataclass
class _Place:
    server: Server
    port: int
    expected: Callable[[str], list[Expected]]


def _parse(done: list[Call], is_http2: bool) -> Conversation:
    del is_http2  # it finds out
    return Conversation(done, Settings(), False)


class Scene:
    """All servers, started; use as a context manager.

    Args:
        work: Directory for files.
        kind: ``collector``: the kernel's programs and the pipeline. ``witness``: the parsers alone,
            fed by a proxy before each server.
        ring_bytes: Of the collector's ring. The default has room for what clients and servers that
            run side by side with their watcher can say in seconds, so that a busy machine shows as
            time and not as loss.
    """

    def __init__(self, work: Path, kind: str, ring_bytes: int = ROOMY) -> None:
        self.kind = kind
        self._ring_bytes = ring_bytes
        self.ledger: dict[tuple[str, str, str], Entry] = {}
        """What the collector counted, by stage, kind and reason; after `finish`."""
        self.node = NodeServer(work / "node", "http")
        self.nginx = Nginx(work / "nginx", self.node.port)
        self.node_http2 = NodeServer(work / "node-h2", "http2")
        self.grpc = GrpcServer(work / "grpc")
        self.node_grpc = NodeServer(work / "node-grpc", "grpc")
        self._servers = (self.node, self.nginx, self.node_http2, self.grpc, self.node_grpc)
        nginx = self.nginx
        self._places = {
            "h1": _Place(nginx, nginx.port, lambda role: self._of_nginx(nginx.port, role)),
            "h2": _Place(nginx, nginx.port2, lambda role: self._of_nginx(nginx.port2, role)),
            "node": _Place(self.node, self.node.port, lambda _: truth.from_node(self.node.lines())),
            "node-h2": _Place(
                self.node_http2,
                self.node_http2.port,
                lambda _: truth.from_node_http2(self.node_http2.lines()),
            ),
            "grpc": _Place(self.grpc, self.grpc.port, lambda _: truth.from_grpc(self.grpc.lines())),
            "node-grpc": _Place(
                self.node_grpc,
                self.node_grpc.port,
                lambda _: truth.from_grpc(self.node_grpc.lines()),
            ),
        }
        self._witnesses: dict[str, Witness] = {}
        self._collector: Collector | None = None
        self._work = work
        self._rows: list[Row] = []

    def _of_nginx(self, port: int, role: str) -> list[Expected]:
        # A proxy that was reset lets go of what nginx has written, as a client does.
        is_cut = role == "client" or self.kind == "witness"
        return truth.from_nginx(self.nginx.lines(), port, "client" if is_cut else "server")

    def __enter__(self) -> Scene:
        try:
            for server in self._servers:
                server.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def watch(self) -> None:
        """Begin to see calls."""
        if self.kind == "collector":
            self._collector = Collector(self._work, self._ring_bytes)
            self._collector.start()
        else:
            for name, place in self._places.items():
                self._witnesses[name] = Witness((HOST, place.port), _parse)
                self._witnesses[name].start()

    @property
    def addresses(self) -> dict[str, Address]:
        """Where clients connect to, by place; after `watch`."""
        if self.kind == "witness":
            return {name: witness.address for name, witness in self._witnesses.items()}
        return {name: (HOST, place.port) for name, place in self._places.items()}

    def finish(self) -> list[Row]:
        """Stop seeing and serving, in this order for what is left open; all rows."""
        if self._collector is not None:
            self._collector.stop()
            self._rows = self._collector.rows()
            self.ledger = self._collector.ledger()
            self._collector = None
        for witness in self._witnesses.values():
            witness.stop()
            self._rows += witness.rows()
        for server in self._servers:
            server.stop()
        return self._rows

    def expected(self, name: str, role: str = "server") -> list[Expected]:
        """What a place's log demands, of what `watch` could see."""
        found = self._places[name].expected(role)
        if self.kind == "witness":
            ports = {tap.port for tap in self._witnesses[name].taps}
            found = [one for one in found if one.port in ports]
        return found

    def check(
        self,
        names: Sequence[str] = (),
        roles: Sequence[str] = ("server",),
    ) -> dict[str, int]:
        """Compare rows and logs of places; how many lines each had.

        Args:
            names: Places; all of them if none is named.
            roles: Whose rows are looked at.

        Raises:
            AssertionError: If anything differs; names every place.
        """
        counts, wrong = {}, []
        for name in names or self._places:
            for role in roles if self.kind == "collector" else ("server",):
                expected = self.expected(name, role)
                counts[name] = len(expected)
                try:
                    truth.check(self._rows, expected, role, self._places[name].port)
                except AssertionError as error:
                    wrong.append(f"{name}: {error}")
        if wrong:
            raise AssertionError("\n".join(wrong))
        return counts

    def check_lossy(self) -> dict[str, list[Expected]]:
        """Compare rows and logs where bytes are missing; the lines without a row, by place.

        Raises:
            AssertionError: If a row is wrong.
        """
        missing = {}
        for name, place in self._places.items():
            expected = self.expected(name)
            wrong, missing[name] = truth.compare_lossy(self._rows, expected, "server", place.port)
            assert not wrong, f"{name}: {len(wrong)}\n" + "\n".join(wrong[:10])
        return missing

    def close(self) -> None:
        """End everything."""
        if self._collector is not None:
            self._collector.stop()
        for witness in self._witnesses.values():
            witness.stop()
        for server in self._servers:
            server.stop()
