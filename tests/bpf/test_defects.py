"""Defects found in Apache SkyWalking Rover's access log programs, each tried here and absent.

B1 to B16 are numbers of the list that this project was started with. What it does not do yet can
have no defect: those are listed with the part that will have to show it.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from collector.abi import ConnectionEvent, Direction, ProcessEvent, Role
from tests.bpf.harness import Watch
from tests.bpf.test_connections import life, listening, pair, port_of, settle
from tests.bpf.test_payloads import HEAD
from tests.bpf.traffic import ping_pong, receive

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Defect:
    """One of the list: what was wrong there, and where the opposite is shown here."""

    what: str
    tests: tuple[str, ...]
    """Functions, by the path of their module below ``tests``."""


DEFECTS: Final = {
    "B1": Defect(
        "the mask of an upload cuts payloads of 2 KiB and more",
        (
            "bpf.test_payloads.test_large_calls_come_in_pieces",
            "bpf.test_payloads.test_every_call_that_reads",
        ),
    ),
    "B2": Defect(
        "an upload takes 20.5 KiB whatever the payload",
        ("bpf.test_defects.test_a_payload_takes_its_own_length",),
    ),
    "B3": Defect(
        "netfilter's share of receiving is lost to that of sending",
        ("bpf.test_stages.test_requests_and_responses",),
    ),
    "B4": Defect(
        "no close that returns 0 is a success",
        ("bpf.test_connections.test_ways_to_close", "bpf.test_defects.test_every_close_counts"),
    ),
    "B5": Defect(
        "an accept() that fails is a connection", ("bpf.test_defects.test_failing_accepts",)
    ),
    "B6": Defect(
        "of sendmmsg() and recvmmsg() only the first message counts",
        ("bpf.test_transfers.test_write_calls", "bpf.test_transfers.test_read_calls"),
    ),
    "B7": Defect("reads of Go's TLS are writes", ("tls.test_golang.test_both_ends",)),
    "B8": Defect(
        "the first read of an OpenSSL connection is a write",
        ("bpf.test_tls.test_what_both_ends_say",),
    ),
    "B9": Defect(
        "packets sent stay in a map for ever",
        (
            "bpf.test_stages.test_nothing_is_left_behind",
            "bpf.test_rings.test_short_connections_leave_nothing",
        ),
    ),
    "B10": Defect(
        "every call opens its connection again when a map is full",
        (
            "bpf.test_defects.test_calls_open_nothing",
            "bpf.test_rings.test_an_announcement_is_repeated_until_it_fits",
        ),
    ),
    "B11": Defect(
        "a non-blocking connect succeeds at once, and never fails",
        ("bpf.test_connections.test_non_blocking_counts_once", "bpf.test_connections.test_refused"),
    ),
    "B12": Defect(
        "of several packets of a call only the last one's time counts",
        (
            "bpf.test_stages_times.test_waiting_in_the_sockets_queue",
            "bpf.test_stages_times.test_an_unknown_neighbour",
            "bpf.test_stages_times.test_bulk_over_a_delay",
            "bpf.test_stages.test_bulk",
        ),
    ),
    "B13": Defect(
        "over IPv6 layers 2 and 3 take no time",
        (
            "bpf.test_stages.test_requests_and_responses",
            "bpf.test_stages_times.test_parts_and_wholes",
        ),
    ),
    "B14": Defect("256 packets of a call are none", ("bpf.test_stages.test_bulk",)),
    "B15": Defect(
        "a thread's number stands for its process",
        ("bpf.test_defects.test_threads_are_no_processes",),
    ),
    "B16": Defect(
        "a request without details crashes the parser",
        (
            "fuzz.test_fuzz.test_half_a_minute_finds_nothing",
            "collector.protocols.test_http1_gaps.test_a_gap_in_a_request_line_loses_the_request",
        ),
    ),
}


def test_the_list_is_whole() -> None:
    assert list(DEFECTS) == [f"B{number}" for number in range(1, 17)]
    assert all(each.tests for each in DEFECTS.values())


@pytest.mark.parametrize("name", DEFECTS)
def test_it_is_shown_where_it_says(name: str) -> None:
    for test in DEFECTS[name].tests:
        module, _, function = test.rpartition(".")
        assert callable(getattr(importlib.import_module(f"tests.{module}"), function)), test


@pytest.mark.bpf
def test_a_payload_takes_its_own_length(variant: Path) -> None:
    """And 48 bytes of a record, 8 of the ring's own, up to a multiple of 8."""
    watch = Watch(path=variant, constants={"podwire_payloads": 1})
    try:
        with listening() as server:
            client, accepted = pair(server)
            watch.drain()
            client.sendall(HEAD)
            receive(accepted, len(HEAD))
            watch.drain()
            assert watch.payloads.used == 2 * (48 + 8 + len(HEAD) + 7 & ~7)
            client.close()
            accepted.close()
    finally:
        watch.close()


@pytest.mark.bpf
def test_failing_accepts(watch: Watch) -> None:
    with listening() as server:
        server.setblocking(False)
        for _ in range(5):
            with pytest.raises(BlockingIOError):
                server.accept()
        port = port_of(server)
    assert life(watch, port) == (0, 0, 0, 0)
    assert not len(watch.connections(port))


@pytest.mark.bpf
def test_every_close_counts(watch: Watch) -> None:
    with listening() as server:
        for _ in range(7):
            for end in pair(server):
                end.close()
        port = port_of(server)
    assert life(watch, port) == (7, 7, 7, 7)
    assert not watch.connections(port, ConnectionEvent.CLOSED)["error"].any()


@pytest.mark.bpf
def test_calls_open_nothing(watch: Watch) -> None:
    with listening() as server:
        port = port_of(server)
        client, accepted = pair(server)
        ping_pong(client, accepted, 300, (10, 10))
        client.close()
        accepted.close()
    assert life(watch, port) == (1, 1, 1, 1)
    for role in (Role.CLIENT, Role.SERVER):
        assert watch.count(port, ConnectionEvent.ANNOUNCED, role) <= 2
        for direction in Direction:
            assert len(watch.transfers(port, role, direction)) == 300


@pytest.mark.bpf
def test_threads_are_no_processes(watch: Watch) -> None:
    """Neither in what is told of processes nor in whose a call is."""
    threads: list[int] = []
    with listening() as server:
        port = port_of(server)
        client, accepted = pair(server)

        def write() -> None:
            threads.append(threading.get_native_id())
            client.sendall(b"x" * 100)

        for _ in range(5):
            thread = threading.Thread(target=write)
            thread.start()
            thread.join()
        accepted.recv(500, socket.MSG_WAITALL)
        client.close()
        accepted.close()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    settle()
    watch.drain()
    written = watch.transfers(port, Role.CLIENT, Direction.WRITE)
    assert set(written["pid"]) == {os.getpid()}
    assert list(written["tid"]) == threads
    processes = watch.records("processes")
    assert not set(threads) & set(processes["pid"].tolist())
    mine = processes[processes["pid"] == child.pid]
    assert sorted(set(mine["event"].tolist())) == [ProcessEvent.EXEC, ProcessEvent.EXIT]
