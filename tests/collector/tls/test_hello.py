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
from collector.tls.hello import Hello, HelloReader
from schemas.telemetry import counter
from schemas.tls import version_name
from tests.collector.records import Talk, pieces
from tests.tls.servers import make_certificate

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}


def client_hello(name: str | None, protocols: int = 0) -> bytes:
    """Of OpenSSL, with so many protocols to choose from, each of 256 bytes."""
    context = ssl.create_default_context()
    if protocols:
        context.set_alpn_protocols([f"{number:0255}" for number in range(protocols)])
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


def read(*pieces_of_it: bytes) -> Hello | None:
    reader = HelloReader()
    for data in pieces_of_it:
        if not reader.feed(data):
            break
    return reader.hello


def in_records(hello: bytes, size: int) -> bytes:
    """The same in records of so many bytes (RFC 8446 section 5.1); from any number of records."""
    left, message = hello, b""
    while left:
        length = int.from_bytes(left[3:5], "big")
        message += left[5 : 5 + length]
        left = left[5 + length :]
    return b"".join(
        hello[:3] + len(part).to_bytes(2, "big") + part
        for part in (message[at : at + size] for at in range(0, len(message), size))
    )


def lost(reason: str) -> float:
    value: float = counter("podwire_collector_tls_hellos_lost_total").labels(reason)._value.get()
    return value


@pytest.mark.parametrize("name", ["www.example.com", "WWW.Example.COM", None])
def test_whom_a_client_asks_for(name: str | None) -> None:
    expected = (name or "").lower()
    assert read(client_hello(name)) == Hello(True, server_name=expected)


@pytest.mark.parametrize("name", VERSIONS)
def test_the_version_that_a_server_agrees_on(tmp_path: Path, name: str) -> None:
    hello = read(server_hello(*make_certificate(tmp_path), VERSIONS[name]))
    assert hello is not None
    assert not hello.is_client
    assert version_name(hello.version) == name


def test_versions_without_a_name_are_numbers() -> None:
    assert (version_name(0), version_name(0x7F1C)) == ("", "0x7f1c")


def test_what_is_cut_is_not_known() -> None:
    whole = client_hello("example.com")
    for size in range(len(whole)):
        assert read(whole[:size]) is None


@pytest.mark.parametrize("protocols", [0, 20, 100])
@pytest.mark.parametrize("record", [1, 3, 512, 16_384])
def test_a_hello_may_be_long_and_in_many_records(protocols: int, record: int) -> None:
    """OpenSSL's own are in as few as can be: two of the longest here."""
    whole = client_hello("example.com", protocols)
    assert len(whole) > 256 * protocols
    fragmented = in_records(whole, record)
    expected = Hello(True, server_name="example.com")
    assert read(fragmented) == expected
    assert read(*(fragmented[at : at + 7] for at in range(0, len(fragmented), 7))) == expected
    assert read(fragmented[:-1]) is None


@pytest.mark.parametrize(
    "between",
    [
        b"\x14\x03\x03\x00\x01\x01",  # change_cipher_spec
        b"\x16\x03\x03\x00\x00",  # an empty record
        b"\x16\x03\x03\x40\x01",  # one that is too long
        b"\x16\x02",
    ],
)
def test_nothing_may_be_between_the_records_of_a_hello(between: bytes) -> None:
    whole = in_records(HELLO, 100)
    assert read(whole[:105], between + whole[105:]) is None


@given(st.binary(max_size=300), st.integers(0, 600), st.integers(0, 255))
def test_no_bytes_are_too_much(noise: bytes, place: int, value: int) -> None:
    read(noise)
    read(b"\x16\x03\x01" + noise)
    read(b"\x16\x03\x01\x01\x00\x01", noise)
    spoilt = bytearray(HELLO)
    spoilt[place % len(spoilt)] = value
    found = read(bytes(spoilt))
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
    before = lost("cut")
    assert greetings.feed(pieces(first, rest)) == []
    assert len(greetings) == 0
    assert lost("cut") == before + 1


def test_what_was_not_captured_is_given_up_at_once() -> None:
    greetings, before = Greetings(), lost("cut")
    piece = Talk(7).read(HELLO[:100], size=len(HELLO), flags=PayloadFlag.HELLO)
    assert greetings.feed(pieces(piece)) == []
    assert (len(greetings), lost("cut")) == (0, before + 1)


def test_what_is_malformed_or_ends_early_is_counted_and_nothing_else_is_lost() -> None:
    talks, greetings = {number: Talk(number) for number in (1, 2, 3)}, Greetings()
    before = lost("malformed"), lost("ended")
    spoilt = b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03"  # too short to be one
    said = {1: spoilt, 2: HELLO[:100], 3: HELLO}
    found = greetings.feed(
        pieces(
            *(talks[each].read(data, flags=PayloadFlag.HELLO) for each, data in said.items()),
            talks[1].read(b"\x17\x03\x03\x00\x01\x00", flags=PayloadFlag.HELLO),
        )
    )
    assert found == [Greeted(3, "example.com", 0)]
    greetings.end([1, 2, 3])
    assert len(greetings) == 0
    assert (lost("malformed"), lost("ended")) == (before[0] + 1, before[1] + 1)


def test_what_never_ends_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_UNDER_WAY", 10)
    greetings = Greetings()
    for number in range(1, 100):
        begun = Talk(number).read(HELLO[:5], flags=PayloadFlag.HELLO)
        assert greetings.feed(pieces(begun)) == []
    assert len(greetings) == 10


def test_so_are_the_bytes_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 1_000)
    greetings, before, talks = Greetings(), lost("crowded"), [Talk(each) for each in range(1, 6)]
    for size in (5, 295):  # each has one or two pieces, and 295 bytes without a header
        for talk in talks:
            start = 5 if size == 295 else 0
            piece = talk.read(HELLO[start : start + size], flags=PayloadFlag.HELLO)
            assert greetings.feed(pieces(piece)) == []
    assert (len(greetings), lost("crowded")) == (3, before + 2)


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
