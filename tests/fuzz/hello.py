"""Arbitrary bytes, cut anywhere, for the reader of TLS hellos: what must hold whatever they are."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

from collector.tls.hello import HelloReader

if TYPE_CHECKING:
    from collector.tls.hello import Hello


def seeds() -> list[bytes]:
    """Inputs to begin with: how long the pieces are, and what OpenSSL says to whom it asks for."""
    found = []
    for protocols in ([], ["x" * 255] * 8):
        context = ssl.create_default_context()
        context.set_alpn_protocols(protocols)
        outgoing = ssl.MemoryBIO()
        session = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="shop.example")
        with suppress(ssl.SSLWantReadError):
            session.do_handshake()
        hello = outgoing.read()
        parts = [hello[at : at + 200] for at in range(5, len(hello), 200)]
        records = (hello[:3] + len(part).to_bytes(2, "big") + part for part in parts)
        found += [b"\x05" + hello, b"\x40" + b"".join(records)]
    answer = b"\x03\x03" + bytes(32) + b"\x00\x13\x01\x00" + b"\x00\x06\x00\x2b\x00\x02\x03\x04"
    found.append(b"\x01\x16\x03\x03\x00" + bytes([4 + len(answer), 2, 0, 0, len(answer)]) + answer)
    return found


def read(data: bytes, size: int) -> Hello | None:
    """What is read of pieces of that size."""
    reader, at = HelloReader(), 0
    while at < len(data):
        piece = data[at : at + size]
        at += len(piece)
        if not reader.feed(piece):
            break
        assert reader.hello is None
        assert reader.size <= at
    return reader.hello


def check(data: bytes) -> None:
    """Nothing raises, and how the bytes are cut makes no difference."""
    size, said = data[:1], data[1:]
    whole = read(said, len(said) or 1)
    assert whole == read(said, (size[0] if size else 0) + 1)
    if whole is not None:
        assert len(whole.server_name) <= 255
        assert whole.server_name.isprintable()
        assert 0 <= whole.version <= 0xFFFF
