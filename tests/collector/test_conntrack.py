from __future__ import annotations

import socket
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.connections import ROW
from collector.conntrack import NOBODY, Change, Dump, PeerTable, Translations, changes, sides

EVENT = bytes.fromhex(
    "c4000000 00010006 00000000 00000000 02000000"  # nlmsghdr, nfgenmsg: an IPv4 entry is new
    "34000180 14000180 08000100 0a4d0001 08000200 0a630009"  # original: 10.77.0.1 to 10.99.0.9
    "1c000280 05000100 06000000 06000200 da1a0000 06000300 00500000"  # TCP, 55834 to 80
    "34000280 14000180 08000100 0a4d0002 08000200 0a4d0001"  # reply: 10.77.0.2 to 10.77.0.1
    "1c000280 05000100 06000000 06000200 1f900000 06000300 da1a0000"  # TCP, 8080 to 55834
    "08000c00 07fd7995 08000300 000001a8 08000700 00000078"  # id, status, timeout
    "30000480 2c000180 05000100 01000000 05000200 0a000000 05000300 00000000"  # TCP state
    "06000400 03000000 06000500 00000000"
)
"""What kernel 6.18 said of a connection to a service address."""


def _wide(text: str) -> bytes:
    return bytes(10) + b"\xff\xff" + socket.inet_aton(text)


CLIENT, SERVICE, BACKEND = _wide("10.77.0.1"), _wide("10.99.0.9"), _wide("10.77.0.2")
CHANGE = Change(
    False, (CLIENT, 55834, SERVICE, 80), (BACKEND, 8080, CLIENT, 55834)
)  # fmt: skip


def _message(kind: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, 0, 0, 0) + payload


def _side(local: bytes, port: int, remote: bytes, to_port: int) -> bytes:
    row = np.zeros(1, ROW)
    row["local_address"], row["remote_address"] = (
        np.frombuffer(address, np.uint8) for address in (local, remote)
    )
    row["local_port"], row["remote_port"] = port, to_port
    return sides(row)[0]


def test_an_entry_says_who_was_asked_and_who_replies() -> None:
    assert list(changes(EVENT)) == [CHANGE]


def test_several_messages_are_read_in_order() -> None:
    gone = bytearray(EVENT)
    gone[4:6] = struct.pack("=H", 0x0102)
    found = list(changes(EVENT + bytes(gone)))
    assert found == [CHANGE, Change(True, CHANGE.original, CHANGE.reply)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0a4d0002 08000200", "0a630009 08000200"),  # the reply comes from whom was asked
        ("05000100 06000000", "05000100 11000000"),  # UDP
        ("34000180 14000180", "3c000180 14000180"),  # a tuple with a zone
        ("c4000000 00010006", "c4000000 00020006"),  # another subsystem
    ],
)
def test_what_is_no_translated_tcp_is_passed_over(old: str, new: str) -> None:
    data = EVENT.replace(bytes.fromhex(old), bytes.fromhex(new))
    if new.startswith("0a63"):
        data = data.replace(b"\x1f\x90", b"\x00\x50")
    assert data != EVENT
    assert list(changes(data)) == []


def test_a_dump_ends_with_a_message_or_an_error() -> None:
    dump = Dump()
    assert len(list(changes(EVENT * 2, dump))) == 2
    assert (dump.entries, dump.is_done) == (2, False)
    assert list(changes(_message(3, bytes(4)), dump)) == []
    assert (dump.is_done, dump.error) == (True, 0)
    refused = Dump()
    assert list(changes(_message(2, struct.pack("=i", -1) + bytes(16)), refused)) == []
    assert (refused.is_done, refused.error) == (True, 1)


@given(st.binary(max_size=400), st.integers(0, len(EVENT)))
def test_any_bytes_are_survived(noise: bytes, place: int) -> None:
    list(changes(noise))
    list(changes(EVENT[:place] + noise + EVENT[place:]))


def test_both_ends_of_a_connection_find_each_other() -> None:
    known = Translations(10)
    known.apply(CHANGE)
    assert known.peer(_side(CLIENT, 55834, SERVICE, 80)) == (BACKEND, 8080)
    assert known.peer(_side(BACKEND, 8080, CLIENT, 55834)) is None
    assert known.peer(_side(CLIENT, 55834, SERVICE, 81)) is None


def test_the_server_finds_the_source_behind_a_translated_one() -> None:
    known = Translations(10)
    node = _wide("10.77.0.7")
    known.apply(Change(False, CHANGE.original, (BACKEND, 8080, node, 1024)))
    assert known.peer(_side(BACKEND, 8080, node, 1024)) == (CLIENT, 55834)
    known.apply(Change(True, CHANGE.original, (BACKEND, 8080, node, 1024)))
    assert len(known) == 0


def test_the_oldest_give_way() -> None:
    known = Translations(3)
    for port in (1, 2, 3, 1, 4):
        original = (CLIENT, port, SERVICE, 80)
        known.apply(Change(False, original, (BACKEND, 8080, CLIENT, port)))
    assert known.evicted == 1
    found = [known.peer(_side(CLIENT, port, SERVICE, 80)) is not None for port in (1, 2, 3, 4)]
    assert found == [True, False, True, True]


def test_peers_are_kept_once_and_forgotten_when_nobody_has_them() -> None:
    peers = PeerTable()
    numbers = [peers.number(each) for each in ((BACKEND, 8080), (CLIENT, 1), (BACKEND, 8080))]
    assert numbers == [1, 2, 1]
    address, port = peers.columns(np.array([0, 2, 1, 2], np.uint32))
    assert [bytes(each) for each in address] == [NOBODY[0], CLIENT, BACKEND, CLIENT]
    assert port.tolist() == [0, 1, 8080, 1]
    assert peers.keep(np.array([0, 2, 2], np.uint32)).tolist() == [0, 1, 1]
    assert len(peers) == 2
    assert peers.number((BACKEND, 8080)) == 2
    address, port = peers.columns(np.empty(0, np.uint32))
    assert address.shape == (0, 16)
    assert port.shape == (0,)
