"""A connection for tests: says things to a parser, a nanosecond apart, and shows what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collector.protocols.calls import Call, Exchange, Outcome, Settings, Side
from collector.protocols.http1 import Http1

if TYPE_CHECKING:
    from collections.abc import Callable


class Talk:
    """Feeds pieces; piece number n begins at 10 n and ends at 10 n + 5."""

    def __init__(
        self,
        is_joined: bool = False,
        make: Callable[[list[Call], Settings, bool], Exchange] = Http1,
        settings: Settings | None = None,
    ) -> None:
        self.done: list[Call] = []
        self.parser = make(self.done, settings or Settings(), is_joined)
        self.now = 0

    def _times(self) -> tuple[int, int]:
        self.now += 10
        return self.now, self.now + 5

    def ask(self, *pieces: bytes | int) -> Talk:
        """The client says bytes, or so many that are not captured."""
        return self._say(Side.REQUEST, pieces)

    def answer(self, *pieces: bytes | int) -> Talk:
        """The server says bytes, or so many that are not captured."""
        return self._say(Side.RESPONSE, pieces)

    def _say(self, side: Side, pieces: tuple[bytes | int, ...]) -> Talk:
        for piece in pieces:
            if isinstance(piece, bytes):
                self.parser.feed(side, piece, *self._times())
            else:
                self.parser.skip(side, piece, *self._times())
        return self

    def close(self) -> list[Call]:
        self.parser.close(self._times()[1])
        return self.done


def head(*lines: str) -> bytes:
    return "\r\n".join((*lines, "", "")).encode()


def get(path: str = "/", *fields: str) -> bytes:
    return head(f"GET {path} HTTP/1.1", "Host: a", *fields)


def ok(body: bytes = b"", *fields: str, status: str = "200 OK") -> bytes:
    return head(f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields) + body


def chunks(*parts: bytes, extension: str = "", trailer: str = "") -> bytes:
    text = b"".join(f"{len(p):x}{extension}\r\n".encode() + p + b"\r\n" for p in parts)
    return text + f"0{extension}\r\n{trailer}\r\n".encode()


def paths(calls: list[Call]) -> list[tuple[str, int, str]]:
    return [(c.path, c.status, Outcome(c.outcome).name) for c in calls]
