"""What the two sides of TLS say first, in clear: who is asked for, and which version they agree on.

Pure, and never raises on bytes. Source: RFC 8446 sections 4.1.2, 4.1.3 (both hellos), 4.2.1
(supported_versions) and 5.1 (records); RFC 6066 section 3 (server_name). Earlier versions have the
same shape (RFC 5246 section 7.4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Hello", "parse_hello"]

_RECORD_HEADER: Final = 5
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_HELLO: Final = 2
_RANDOM: Final = 32
_SERVER_NAME: Final = 0
_SUPPORTED_VERSIONS: Final = 43
_HOST_NAME: Final = 0
_LONGEST_NAME: Final = 255


@dataclass(frozen=True, slots=True)
class Hello:
    """A ClientHello or ServerHello.

    Attributes:
        is_client: Whether a client said it.
        server_name: Whom a client asked for, lower case; empty if it said nothing.
        version: On which a server agreed, see `schemas.tls`; 0 of a client, which only offers.
    """

    is_client: bool
    server_name: str = ""
    version: int = 0


class _Bytes:
    # Reads forwards; `ok` is False once something was missing, and all that is read then is empty.
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self.ok = True

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += len(taken)
        if len(taken) < size:
            self.ok = False
            return b""
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size_of_length: int) -> bytes:
        return self.take(self.number(size_of_length))


def parse_hello(data: bytes) -> Hello | None:
    """Read the hello that a side begins with, as far as it is there.

    Args:
        data: The first bytes of a side; its first record may have been cut.

    Returns:
        None if the bytes are no beginning of a hello, or end before its extensions do: what is
        known then may not be all.
    """
    record = _Bytes(data)
    if record.number(1) != _HANDSHAKE:
        return None
    record.take(2)
    body = _Bytes(data[_RECORD_HEADER : _RECORD_HEADER + record.number(2)])
    kind = body.number(1)
    message = _Bytes(body.take(body.number(3)))
    if not (record.ok and body.ok) or kind not in (_CLIENT_HELLO, _SERVER_HELLO):
        return None
    version = message.number(2)
    message.take(_RANDOM)
    message.block(1)  # session id
    if kind == _CLIENT_HELLO:
        message.block(2)  # cipher suites
        message.block(1)  # compression methods
        if not message.ok:
            return None
        return Hello(True, server_name=_server_name(_extensions(message).get(_SERVER_NAME, b"")))
    message.take(3)  # cipher suite and compression method
    if not message.ok:
        return None
    chosen = _extensions(message).get(_SUPPORTED_VERSIONS, b"")
    return Hello(False, version=int.from_bytes(chosen, "big") if len(chosen) == 2 else version)


def _extensions(message: _Bytes) -> dict[int, bytes]:
    block = _Bytes(message.block(2))
    found: dict[int, bytes] = {}
    while block.ok:
        kind = block.number(2)
        value = block.block(2)
        if block.ok:
            found.setdefault(kind, value)
    return found


def _server_name(extension: bytes) -> str:
    names = _Bytes(_Bytes(extension).block(2))
    kind = names.number(1)
    name = names.block(2)
    if kind != _HOST_NAME or not names.ok or len(name) > _LONGEST_NAME:
        return ""
    text = name.decode("ascii", "replace").lower()
    return text if text.isprintable() and "\ufffd" not in text else ""
