"""Durations of layers 2 to 4 against delays made on purpose and clocks read around the calls."""

from __future__ import annotations

import functools
import socket
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from collector.abi import Call, Direction, ReadFigure, Role, WriteFigure
from collector.stages import unseen_in_ip
from tests.bpf.harness import Figures, Watch, check_each, check_sums, needs
from tests.bpf.test_stages import FAMILIES, Talk
from tests.bpf.topology import Network, cable
from tests.bpf.traffic import (
    in_background,
    is_receiving,
    on_every_cpu,
    ping_pong,
    receive,
    tcp_info,
    unread,
    until,
    wait_sent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collector.bpf_object import BpfObject

pytestmark = pytest.mark.bpf

R, W = ReadFigure, WriteFigure
MS = 1_000_000


def _has_arrived(talk: Talk, number: int) -> bool:
    return tcp_info(talk.accepted).data_segs_in == number


def deliver(talk: Talk, times: int, size: int) -> list[tuple[int, int]]:
    """Write so often, a packet each; before each write, and when it had reached the other queue."""
    moments = []
    for number in range(1, times + 1):
        before = time.monotonic_ns()
        talk.client.sendall(bytes(size))
        until(functools.partial(_has_arrived, talk, number))
        moments.append((before, time.monotonic_ns()))
    return moments


@pytest.fixture
def network() -> Iterator[Network]:
    with cable() as made:
        yield made


@FAMILIES
def test_parts_and_wholes(staged: Watch, network: Network, family: int) -> None:
    """In every record of undisturbed traffic, not only in their sums."""
    times = 50
    talk = Talk(staged, network, family)
    began = time.monotonic_ns()
    ping_pong(talk.client, talk.accepted, times, (300, 300))
    ended = time.monotonic_ns()
    for end in talk.finish():
        for found in (end.written, end.read):
            check_sums(found)
            check_each(found)
        written, read = (_told_until(ended, found) for found in (end.written, end.read))
        # One packet is under way at a time.
        assert 0 < written[W.WRITE_L2_DURATION] < ended - began
        assert 0 < read[R.READ_PACKET_TO_QUEUE_DURATION] < ended - began
        if W.WRITE_L4_DURATION in end.written:
            assert end.written[W.WRITE_L3_LOCAL_DURATION] > 0
            assert end.written[W.WRITE_L3_OUTPUT_DURATION] > 0
            assert end.read[R.READ_L3_RECV_DURATION] > 0
            assert end.read[R.READ_L3_LOCAL_DURATION] > 0
            assert end.read[R.READ_L4_DURATION] > 0
            assert end.read[R.READ_DEVICE_TO_IP_DURATION] > 0
            assert written[W.WRITE_L4_DURATION] < ended - began


def _told_until(moment_ns: int, found: Figures) -> Figures:
    records = found.records[found.records["end_ns"] <= moment_ns]
    return Figures(records, found.direction, found.measured)


@FAMILIES
@pytest.mark.parametrize("at_once", [False, True], ids=["each", "at-once"])
def test_waiting_in_the_sockets_queue(
    staged: Watch, network: Network, family: int, at_once: bool
) -> None:
    """Every packet waits from its arrival to its copy, however many wait together."""
    times, size = 24 if at_once else 12, 500
    talk = Talk(staged, network, family, counted=False)
    got = []
    sent = deliver(talk, times, size)
    time.sleep(0.1)
    for each in [times] if at_once else [1] * times:
        before = time.monotonic_ns()
        receive(talk.accepted, each * size, each * size)
        got += [(before, time.monotonic_ns())] * each
    _, server = talk.finish()
    assert server.read[R.READ_PACKET_COUNT] == times
    low = sum(read[0] - write[1] for write, read in zip(sent, got, strict=True))
    high = sum(read[1] - write[0] for write, read in zip(sent, got, strict=True))
    assert low <= server.read[R.READ_PACKET_FROM_QUEUE_DURATION] <= high


def test_more_than_32_bits_of_nanoseconds(staged: Watch, network: Network) -> None:
    """A record carries 4.29 s; what is more comes with the next one."""
    times, size = 40, 500
    talk = Talk(staged, network, counted=False)
    sent = deliver(talk, times, size)
    time.sleep(0.13)
    before = time.monotonic_ns()
    receive(talk.accepted, times * size)
    after = time.monotonic_ns()
    ping_pong(talk.client, talk.accepted, 3, (size, size))
    _, server = talk.finish()
    low = sum(before - arrived for _, arrived in sent)
    high = sum(after - written for written, _ in sent)
    assert low > 1 << 32
    assert low <= server.read[R.READ_PACKET_FROM_QUEUE_DURATION] <= high + MS
    assert server.read.column(R.READ_PACKET_FROM_QUEUE_DURATION).max() == (1 << 32) - 2


def test_waiting_for_data_is_not_reading(staged: Watch, network: Network) -> None:
    """Before the first copy a read waits; after it, it works or waits for more."""
    talk = Talk(staged, network, counted=False)

    reader = threading.get_native_id()

    def send(*sizes: int) -> None:
        until(lambda: is_receiving(reader))
        for size in sizes:
            time.sleep(0.1)
            talk.client.sendall(bytes(size))
            wait_sent(talk.client)
            until(lambda: not unread(talk.accepted))

    with in_background(lambda: send(100)):
        receive(talk.accepted, 100)
    with in_background(lambda: send(100, 100)):
        assert len(talk.accepted.recv(200, socket.MSG_WAITALL)) == 200
    _, server = talk.finish()
    calls = server.read.records["call"] != Call.NONE
    first, second = server.read.records["duration_ns"][calls]
    call = server.read.column(R.READ_CALL_DURATION)[calls]
    rest = server.read.column(R.READ_UNATTRIBUTED_DURATION)[calls]
    assert list(call + rest) == [first, second]
    assert rest[0] > 80 * MS > 60 * MS > call[0]
    assert rest[1] > 80 * MS < call[1]


def test_a_write_that_waits_for_room(staged: Watch, network: Network) -> None:
    needs(staged, W.WRITE_L4_DURATION)
    talk = Talk(staged, network, counted=False)
    talk.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    talk.accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)

    def read() -> None:
        time.sleep(0.2)
        receive(talk.accepted, 1_000_000)

    with in_background(read):
        talk.client.sendall(bytes(1_000_000))
    client, _ = talk.finish()
    check_sums(client.written)
    assert client.written[W.WRITE_L4_DURATION] > 150 * MS
    calls = client.written.records[client.written.records["call"] != Call.NONE]
    duration = int(calls["duration_ns"].sum())
    assert client.written[W.WRITE_UNATTRIBUTED_DURATION] < duration - 150 * MS
    assert (
        client.written[W.WRITE_L4_DURATION] + client.written[W.WRITE_UNATTRIBUTED_DURATION]
        >= duration
    )


@FAMILIES
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "segments"])
def test_waiting_in_a_narrow_queue(
    staged: Watch, network: Network, family: int, offload: bool
) -> None:
    """A burst through a queue of one byte per microsecond: each packet waits for those before."""
    times, size, burst = 40, 1000, 3000
    network.client.offload(offload)
    talk = Talk(staged, network, family, counted=False)
    network.client.queue("tbf", "rate", "8mbit", "burst", str(burst), "limit", "1m")
    began = time.monotonic_ns()
    for _ in range(times):
        talk.client.sendall(bytes(size))
    receive(talk.accepted, times * size)
    elapsed = time.monotonic_ns() - began
    network.client.no_queue()
    client, _ = talk.finish()
    check_sums(client.written)
    # TCP keeps only a few in the queue at a time, but always one until all have left.
    low = (times * size - burst) * 1000
    assert low < client.written[W.WRITE_L2_READY_SEND_DURATION] < times * elapsed
    if W.WRITE_L4_DURATION in client.written:
        assert client.written[W.WRITE_L3_DURATION] > low


def _skipped_in_ip(opened: BpfObject) -> int:
    misses = opened.recursion_misses()
    return sum(misses.get(f"{name}_enter", 0) for name in ("__ip_queue_xmit", "inet6_csk_xmit"))


@FAMILIES
def test_what_kprobes_do_not_see(staged: Watch, network: Network, family: int) -> None:
    """The programs of kprobes are left out in an interrupt of a system call that uses a map: what
    such packets wait for below IP is not lost to the layers above."""
    opened = staged.stages
    assert opened is not None
    times, size = 300, 1000
    before, skipped = unseen_in_ip(opened), _skipped_in_ip(opened)
    talk = Talk(staged, network, family, counted=False)
    network.client.queue("tbf", "rate", "8mbit", "burst", "3000", "limit", "1m")
    with on_every_cpu(lambda: staged.object.read_percpu("pieces", 0)):
        for _ in range(20):
            with in_background(lambda: receive(talk.accepted, times * size)):
                for _ in range(times):
                    talk.client.sendall(bytes(size))
            if staged.tier != "kprobe" or unseen_in_ip(opened) > before:
                break
        wait_sent(talk.client)
    network.client.no_queue()
    client, _ = talk.finish()
    check_sums(client.written)
    if staged.tier == "kprobe":
        assert unseen_in_ip(opened) > before
    else:  # one that interrupted itself is left out as well
        assert unseen_in_ip(opened) - before <= _skipped_in_ip(opened) - skipped


@FAMILIES
def test_an_address_that_is_used_again(staged: Watch, network: Network, family: int) -> None:
    """An acknowledgement that makes room is received and freed, and what it lets go has its
    address, before IP has returned from sending it."""
    size = 400_000
    network.expect_losses()  # a narrow window is asked about after as long as a lost packet
    network.client.offload(False)
    talk = Talk(staged, network, family)
    talk.accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 10_000)
    with in_background(lambda: talk.client.sendall(bytes(size))):
        receive(talk.accepted, size, each=2_000)
    client, server = talk.finish()
    for end in (client, server):
        check_sums(end.written)
        low, high = end.between("postrouting")
        assert low <= end.written[W.WRITE_L2_ENTER_QUEUE_COUNT] <= high


@FAMILIES
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "segments"])
def test_delay_on_the_way_out(staged: Watch, network: Network, family: int, offload: bool) -> None:
    times, delay = 10, 20
    network.client.offload(offload)
    talk = Talk(staged, network, family, counted=False)
    network.client.queue("netem", "delay", f"{delay}ms")
    ping_pong(talk.client, talk.accepted, times, (500, 500))
    wait_sent(talk.client, talk.accepted)
    network.client.no_queue()
    client, server = talk.finish()
    check_sums(client.written)
    check_sums(server.written)
    expected = times * delay * MS
    assert client.written[W.WRITE_L2_READY_SEND_DURATION] >= expected
    assert client.written[W.WRITE_L2_NETDEVICE_SEND_DURATION] < expected
    assert server.written[W.WRITE_L2_READY_SEND_DURATION] < expected
    if W.WRITE_L4_DURATION in client.written:
        assert client.written[W.WRITE_L3_DURATION] >= expected
        assert client.written[W.WRITE_L4_DURATION] >= expected
        assert client.written[W.WRITE_L3_LOCAL_DURATION] < expected
        assert client.written[W.WRITE_L3_OUTPUT_DURATION] < expected


@FAMILIES
def test_bulk_over_a_delay(staged: Watch, network: Network, family: int) -> None:
    """Many large packets wait in the queue at once. Were they cut up when they leave it, of their
    segments nothing would say whose they are, because netem has let go of their sock."""
    size, delay = 600_000, 20
    talk = Talk(staged, network, family)
    network.client.queue("netem", "delay", f"{delay}ms", "limit", "10000")
    with in_background(lambda: receive(talk.accepted, size)):
        talk.client.sendall(bytes(size))
    wait_sent(talk.client)
    network.client.no_queue()
    client, _ = talk.finish()
    check_sums(client.written)
    low, high = client.between("postrouting")
    assert low <= client.written[W.WRITE_L2_ENTER_QUEUE_COUNT] <= high
    assert client.written[W.WRITE_L2_READY_SEND_DURATION] >= (low - 5) * delay * MS


@FAMILIES
def test_large_packets_that_are_cut_up(staged: Watch, network: Network, family: int) -> None:
    """Several wait at once; each has the time since it came itself, once for all its segments."""
    segments, waiting = 2, 0.04
    network.client.offload(False)
    talk = Talk(staged, network, family)
    size = segments * talk.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    network.client.queue("plug", "limit", "1000000")
    calls, left = list[int](), list[int]()
    for number in range(1, 5):
        calls.append(time.monotonic_ns())
        talk.client.sendall(bytes(size))
        after = time.monotonic_ns()
        # Where the handshake was slow, TCP keeps back what would wait too long, to send it with
        # what comes next.
        if tcp_info(talk.client).data_segs_out != number * segments:
            break
        left.append(after)
        time.sleep(waiting)
    count = len(left)
    assert count >= 2
    whole = network.client.packets()["postrouting"].payload
    assert tcp_info(talk.client).data_segs_out == whole * segments >= count * segments
    assert network.client.queue_counts()["qlen"] >= whole  # and perhaps IPv6's own
    before = time.monotonic_ns()
    network.client.release_queue()
    receive(talk.accepted, len(calls) * size)
    after = time.monotonic_ns()
    wait_sent(talk.client)
    network.client.no_queue()
    packets = tcp_info(talk.client).data_segs_out  # after so long, some again
    client, _ = talk.finish()
    check_sums(client.written)
    assert client.written[W.WRITE_PACKET_COUNT] == packets >= len(calls) * segments
    waited = client.written[W.WRITE_L2_READY_SEND_DURATION]
    low = sum(before - each for each in left)
    # Acknowledgements and segments behind others were not long in the queue.
    high = sum(after - each for each in calls) + 20 * (after - before)
    assert low <= waited <= high
    if W.WRITE_L4_DURATION in client.written:
        assert client.written[W.WRITE_L3_DURATION] >= low
        assert client.written[W.WRITE_L4_DURATION] >= low


@FAMILIES
def test_an_unknown_neighbour(staged: Watch, network: Network, family: int) -> None:
    """Packets wait until somebody says where the other host is."""
    times = 3
    network.server.set("ipv4/conf/all/arp_ignore", 8)
    for family_ in ("ipv4", "ipv6"):
        network.client.set(f"{family_}/neigh/veth0/mcast_solicit", 1000)
    network.server.netfilter(
        "table ip6 mute { chain mute { type filter hook input priority 0;\n"
        "icmpv6 type nd-neighbor-solicit drop\n}\n}\n"
    )
    talk = Talk(staged, network, family)
    network.client.neighbour(network.server, None)
    sent, segments = [], tcp_info(talk.client).data_segs_out
    for _ in range(times):
        before = time.monotonic_ns()
        talk.client.sendall(bytes(500))
        after = time.monotonic_ns()
        # Where the handshake was slow, TCP keeps the third back until the first has left.
        if tcp_info(talk.client).data_segs_out == segments + len(sent) + 1:
            sent.append((before, after))
    time.sleep(0.12)
    assert tcp_info(talk.client).data_segs_out == segments + len(sent) > segments
    before = time.monotonic_ns()
    network.client.neighbour(network.server, "permanent")
    receive(talk.accepted, times * 500)
    after = time.monotonic_ns()
    client, server = talk.finish()
    check_sums(client.written)
    low, high = client.between("postrouting")
    assert low <= client.written[W.WRITE_L2_ENTER_QUEUE_COUNT] <= high
    waited = sum(before - each[1] for each in sent)
    assert client.written[W.WRITE_L2_DURATION] < waited
    if W.RESOLVE_MAC_COUNT in client.written:
        assert client.written[W.RESOLVE_MAC_COUNT] == len(sent)
        assert waited <= client.written[W.RESOLVE_MAC_DURATION] <= sum(after - e[0] for e in sent)
        assert client.written[W.WRITE_L3_OUTPUT_DURATION] >= client.written[W.RESOLVE_MAC_DURATION]
        assert server.written[W.RESOLVE_MAC_COUNT] == 0


@FAMILIES
def test_a_stale_neighbour_keeps_nobody(staged: Watch, network: Network, family: int) -> None:
    needs(staged, W.RESOLVE_MAC_COUNT)
    talk = Talk(staged, network, family)
    network.client.neighbour(network.server, "stale")
    ping_pong(talk.client, talk.accepted, 5, (300, 300))
    client, _ = talk.finish()
    check_sums(client.written)
    assert client.written[W.RESOLVE_MAC_COUNT] == client.written[W.RESOLVE_MAC_DURATION] == 0


@FAMILIES
def test_loopback_sends_without_receiving(staged: Watch, network: Network, family: int) -> None:
    """There the sender's thread also receives; no time of that is in its device's."""
    times = 50
    host = network.client
    server = host.listen(family, "127.0.0.1" if family == 4 else "::1")
    port = int(server.getsockname()[1])
    host.count_packets(port, padding=1000)
    client, accepted = host.connect(server)
    ping_pong(client, accepted, times, (200, 200))
    wait_sent(client, accepted)
    passed = host.packets()["postrouting"]
    for end in (client, accepted, server):
        end.close()
    until(lambda: not host.has_open(port))
    time.sleep(0.2)
    staged.drain()
    entered = 0
    for role, other in ((Role.CLIENT, Role.SERVER), (Role.SERVER, Role.CLIENT)):
        written = staged.figures(port, role, Direction.WRITE)
        read = staged.figures(port, other, Direction.READ)
        check_sums(written)
        check_sums(read)
        entered += written[W.WRITE_L2_ENTER_QUEUE_COUNT]
        assert written[W.WRITE_PACKET_COUNT] == times == read[R.READ_PACKET_COUNT]
        # Up to the queue a packet passes the slow rules twice, in its device never. Medians,
        # because an emulated processor may stand still for a while, anywhere.
        device = np.median(written.column(W.WRITE_L2_DURATION))
        assert 0 < device < np.median(read.column(R.READ_PACKET_TO_QUEUE_DURATION)) / 2
        if R.READ_NETFILTER_DURATION in read:
            assert device < np.median(read.column(R.READ_NETFILTER_DURATION))
    low = passed.payload + passed.bare - 2
    assert low <= entered <= sum(passed) + 4


def test_reading_between_two_threads(staged: Watch, network: Network) -> None:
    """Calls of two threads of one connection keep their own times."""
    talk = Talk(staged, network, counted=False)
    readers: list[int] = []

    def read() -> None:
        readers.append(threading.get_native_id())
        receive(talk.accepted, 100)

    with in_background(read):
        until(lambda: readers and is_receiving(*readers))
        time.sleep(0.1)
        talk.accepted.sendall(bytes(700))
        receive(talk.client, 700)
        talk.client.sendall(bytes(100))
    _, server = talk.finish()
    check_each(server.read)
    (reading,) = server.read.records[server.read.records["call"] != Call.NONE]
    assert reading["duration_ns"] > 80 * MS
    (writing,) = server.written.records[server.written.records["call"] != Call.NONE]
    assert writing["duration_ns"] < reading["duration_ns"]
    if W.WRITE_UNATTRIBUTED_DURATION in server.written:
        assert writing["figures"][W.WRITE_UNATTRIBUTED_DURATION] <= writing["duration_ns"]
