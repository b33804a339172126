"""Hellos that OpenSSL says, whole, cut and spoilt."""

from __future__ import annotations

import itertools
import random
import ssl
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.abi import Direction, PayloadFlag
from collector.tls import greetings as module
from collector.tls.greetings import Greeted, Greetings
from collector.tls.hello import Hello, parse_hello
from schemas.tls import version_name
from tests.collector.records import Talk, pieces
from tests.tls.servers import make_certificate

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}


def client_hello(name: str | None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def server_hello(certificate: Path, key: Path, version: ssl.TLSVersion) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(client_hello("x"))
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("name", ["www.example.com", "WWW.Example.COM", None])
def test_whom_a_client_asks_for(name: str | None) -> None:
    expected = (name or "").lower()
    assert parse_hello(client_hello(name)) == Hello(True, server_name=expected)


@pytest.mark.parametrize("name", VERSIONS)
def test_the_version_that_a_server_agrees_on(tmp_path: Path, name: str) -> None:
    hello = parse_hello(server_hello(*make_certificate(tmp_path), VERSIONS[name]))
    assert hello is not None
    assert not hello.is_client
    assert version_name(hello.version) == name


def test_versions_without_a_name_are_numbers() -> None:
    assert (version_name(0), version_name(0x7F1C)) == ("", "0x7f1c")


def test_what_is_cut_is_not_known() -> None:
    whole = client_hello("example.com")
    for size in range(len(whole)):
        assert parse_hello(whole[:size]) is None


@given(st.binary(max_size=300), st.integers(0, 600), st.integers(0, 255))
def test_no_bytes_are_too_much(noise: bytes, place: int, value: int) -> None:
    parse_hello(noise)
    parse_hello(b"\x16\x03\x01" + noise)
    spoilt = bytearray(HELLO)
    spoilt[place % len(spoilt)] = value
    found = parse_hello(bytes(spoilt))
    assert found is None or found.server_name == "" or found.server_name.isprintable()


HELLO = client_hello("example.com")


@pytest.mark.parametrize("cuts", [(), (5,), (5, 6, 300), (100, 200, 516)])
def test_pieces_are_put_together(cuts: tuple[int, ...]) -> None:
    """OpenSSL reads the header of a record, then the rest."""
    talk, greetings = Talk(7), Greetings()
    ends = (0, *cuts, len(HELLO))
    found: list[Greeted] = []
    for start, end in itertools.pairwise(ends):
        assert found == []
        piece = talk.read(HELLO[start:end], flags=PayloadFlag.HELLO)
        found += greetings.feed(pieces(piece))
    assert found == [Greeted(7, "example.com", 0)]
    assert len(greetings) == 0


def test_what_lacks_a_piece_is_given_up() -> None:
    talk, greetings = Talk(7), Greetings()
    first = talk.read(HELLO[:5], flags=PayloadFlag.HELLO)
    talk.passed(Direction.READ, 10)
    rest = talk.read(HELLO[15:], flags=PayloadFlag.HELLO)
    assert greetings.feed(pieces(first, rest)) == []
    assert len(greetings) == 0


def test_what_never_ends_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_UNDER_WAY", 10)
    greetings = Greetings()
    for number in range(1, 100):
        begun = Talk(number).read(HELLO[:5], flags=PayloadFlag.HELLO)
        assert greetings.feed(pieces(begun)) == []
    assert len(greetings) == 10


def test_any_order_of_many_connections() -> None:
    chance = random.Random(1)
    talks = {number: Talk(number) for number in range(1, 30)}
    left = dict.fromkeys(talks, HELLO)
    greetings, found = Greetings(), []
    while left:
        number = chance.choice(sorted(left))
        size = chance.choice((1, 5, 100, 400))
        piece = talks[number].read(left[number][:size], flags=PayloadFlag.HELLO)
        left[number] = left[number][size:]
        if not left[number]:
            del left[number]
        found += greetings.feed(pieces(piece))
    assert sorted(each.connection_id for each in found) == sorted(talks)
    assert np.unique([each.server_name for each in found]).tolist() == ["example.com"]
