"""What the two sides of TLS say first, in clear: who is asked for, and which version they agree on.

Pure, and never raises on bytes. Source: RFC 8446 sections 4.1.2, 4.1.3 (both hellos), 4.2.1
(supported_versions) and 5.1 (records, and messages that go on in several of them); RFC 6066 section
3 (server_name). Earlier versions have the same shape (RFC 5246 section 7.4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Hello", "HelloReader"]

_RECORD_HEADER: Final = 5
_MESSAGE_HEADER: Final = 4
_HANDSHAKE: Final = 22
_MAJOR_VERSION: Final = 3
_LONGEST_RECORD: Final = 1 << 14
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


class HelloReader:
    """Puts together the hello that a side begins with; each byte is looked at once.

    Attributes:
        hello: Once it is whole; None if what was whole was no hello.
    """

    def __init__(self) -> None:
        self.hello: Hello | None = None
        self._header = b""  # of a record, as far as it came
        self._left = 0  # of the record under way
        self._message = bytearray()

    @property
    def size(self) -> int:
        """Bytes that are held of it."""
        return len(self._header) + len(self._message)

    def feed(self, data: bytes) -> bool:
        """Take what comes next; returns whether there has to be more."""
        at = 0
        while at < len(data):
            if not self._left:
                taken = data[at : at + _RECORD_HEADER - len(self._header)]
                if not self._begin_record(self._header + taken):
                    return False
            else:
                taken = data[at : at + self._left]
                self._left -= len(taken)
                self._message += taken
            at += len(taken)
            if self._has_all():
                self.hello = _parse(bytes(self._message))
                return False
        return True

    def _begin_record(self, header: bytes) -> bool:
        # Whether a hello may begin or go on with it; empty ones are forbidden.
        self._header = header
        if len(header) == _RECORD_HEADER:
            self._left = int.from_bytes(header[3:], "big")
            self._header = b""
            if not 0 < self._left <= _LONGEST_RECORD:
                return False
        return header[0] == _HANDSHAKE and header[1:2] in (b"", bytes([_MAJOR_VERSION]))

    def _has_all(self) -> bool:
        message = self._message
        if message and message[0] not in (_CLIENT_HELLO, _SERVER_HELLO):
            return True  # there will be none
        if len(message) < _MESSAGE_HEADER:
            return False
        length = int.from_bytes(message[1:_MESSAGE_HEADER], "big")
        return len(message) >= _MESSAGE_HEADER + length


def _parse(data: bytes) -> Hello | None:
    # A message that may be followed by others.
    body = _Bytes(data)
    kind = body.number(1)
    message = _Bytes(body.block(3))
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
    if kind != _SERVER_HELLO or not message.ok:
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
