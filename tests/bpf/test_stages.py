"""Counts of layers 2 to 4 against what the kernel, netfilter and the queue disciplines count."""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from collector.abi import Call, Direction, MeasuredFlag, ReadFigure, Role, WriteFigure
from collector.drops import drop_reasons
from collector.stages import unseen_in_ip
from tests.bpf.harness import UNMEASURED, Figures, Watch, check_sums
from tests.bpf.topology import Host, Network, Packets, cable
from tests.bpf.traffic import (
    TcpInfo,
    alone_on_a_cpu,
    bulk,
    in_background,
    on_every_cpu,
    ping_pong,
    receive,
    tcp_info,
    until,
    wait_sent,
)
from tests.requirements import kernel_version

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.bpf

R, W = ReadFigure, WriteFigure
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
HOOKS = ("output", "postrouting", "prerouting", "input")


@dataclass
class End:
    """What one end of a conversation did, by its own counters, by netfilter's and by ours."""

    role: Role
    info: TcpInfo
    packets: dict[str, tuple[Packets, Packets, Packets]]
    """By hook: after the handshake, before the close, after it."""
    written: Figures
    read: Figures
    skipped: int
    """Runs at netfilter's hooks that the kernel left out at either end, by its own count."""

    def between(self, hook: str) -> tuple[int, int]:
        """How many packets passed a hook: without those of handshake and close, and with."""
        opened, closing, closed = self.packets[hook]
        return sum(closing) - sum(opened), sum(closed)


class Talk:
    """One connection over a network, counted by everything there is; used from open to finish."""

    def __init__(
        self, watch: Watch, network: Network, family: int = 4, counted: bool = True
    ) -> None:
        self.watch, self.network, self.counted = watch, network, counted
        self.server = network.server.listen(family)
        self.port = int(self.server.getsockname()[1])
        if counted:
            for host in (network.client, network.server):
                host.count_packets(self.port)
        self.client, self.accepted = network.client.connect(self.server)
        until(lambda: tcp_info(self.accepted).unacked == 0)
        self._snapshots = [self._count()]
        self._skipped = self._skips()

    def finish(self) -> tuple[End, End]:
        """Close the client's end, then the server's; what both did."""
        wait_sent(self.client, self.accepted)
        infos = (tcp_info(self.client), tcp_info(self.accepted))
        self._snapshots.append(self._count())
        self.client.close()
        assert self.accepted.recv(1) == b""
        self.accepted.close()
        self.server.close()
        until(lambda: not any(host.has_open(self.port) for host in self.network.hosts))
        time.sleep(0.2)  # the last acknowledgement, and the end of the socks
        self._snapshots.append(self._count())
        self.watch.drain()
        return self._end(Role.CLIENT, infos[0]), self._end(Role.SERVER, infos[1])

    def _skips(self) -> int:
        # Passes of netfilter at which the kernel says it ran no program, or the packet says so.
        opened = self.watch.stages
        if opened is None:
            return 0
        if self.watch.tier == "kprobe" and kernel_version() < (6, 7):
            return 2 * unseen_in_ip(opened)
        return sum(
            count
            for each in (opened.recursion_misses(), opened.probe_misses())
            for program, count in each.items()
            if "nf_hook_slow" in program
        )

    def _count(self) -> dict[Role, dict[str, Packets]]:
        hosts = {Role.CLIENT: self.network.client, Role.SERVER: self.network.server}
        if not self.counted:
            return {role: {} for role in hosts}
        return {role: host.packets() for role, host in hosts.items()}

    def _end(self, role: Role, info: TcpInfo) -> End:
        opened, closing, closed = (snapshot[role] for snapshot in self._snapshots)
        return End(
            role,
            info,
            {hook: (opened[hook], closing[hook], closed[hook]) for hook in opened},
            self.watch.figures(self.port, role, Direction.WRITE),
            self.watch.figures(self.port, role, Direction.READ),
            self._skips() - self._skipped,
        )


def check_counters(end: End) -> None:
    """What the sock counts itself is told to the last packet and byte."""
    assert end.written[W.WRITE_PACKET_COUNT] == end.info.data_segs_out
    assert end.written[W.WRITE_PACKET_SIZE] == end.info.bytes_sent
    assert end.written[W.WRITE_RETRANSMIT_PACKET_COUNT] == end.info.total_retrans
    assert end.read[R.READ_PACKET_COUNT] == end.info.data_segs_in
    assert end.read[R.READ_PACKET_SIZE] == end.info.bytes_received
    for found in (end.written, end.read):
        calls = found.records[found.records["call"] != Call.NONE]
        assert (calls["measured"] & MeasuredFlag.MEASURED_COUNTERS).all()


def check_packets(end: End) -> None:
    """Every packet is counted once in each layer; those of handshake and close may be nobody's.
    Where the kernel left out a program, as one does not interrupt itself, it says so."""
    if W.WRITE_L2_ENTER_QUEUE_COUNT in end.written:
        low, high = end.between("postrouting")
        assert low <= end.written[W.WRITE_L2_ENTER_QUEUE_COUNT] <= high
    if W.WRITE_NETFILTER_COUNT in end.written:
        low, high = (sum(each) for each in zip(*map(end.between, HOOKS[:2]), strict=True))
        assert low - end.skipped <= end.written[W.WRITE_NETFILTER_COUNT] <= high
        assert end.written[W.WRITE_NETFILTER_DURATION] > 0
    if R.READ_NETFILTER_COUNT in end.read:
        low, high = (sum(each) for each in zip(*map(end.between, HOOKS[2:]), strict=True))
        assert low - end.skipped <= end.read[R.READ_NETFILTER_COUNT] <= high
        assert end.read[R.READ_NETFILTER_DURATION] > 0


def check_undisturbed(end: End) -> None:
    """Nothing was lost and nobody's address was unknown; a slow machine may send again."""
    if W.WRITE_LOST_PACKET_COUNT in end.written:
        assert end.written[W.WRITE_LOST_PACKET_COUNT] == 0
    if W.RESOLVE_MAC_COUNT in end.written:
        assert end.written[W.RESOLVE_MAC_COUNT] == end.written[W.RESOLVE_MAC_DURATION] == 0


def check_residuals(found: Figures) -> None:
    """What is told beside the calls is no call, and tells something."""
    rests = found.records[found.records["call"] == Call.NONE]
    assert not rests["size"].any()
    assert (rests["duration_ns"] == UNMEASURED).all()
    assert all(each["figures"].any() for each in rests)


def check_reasons(end: End, *reasons: str) -> None:
    """What was lost was lost for one of these reasons, where the kernel gives any."""
    told = sum(end.written.lost.values())
    assert set(end.written.lost) <= set(reasons)
    assert told == (end.written[W.WRITE_LOST_PACKET_COUNT] if drop_reasons() else 0)


def check(*ends: End) -> None:
    """All of the above that holds for any traffic."""
    for end in ends:
        check_counters(end)
        if end.packets:
            check_packets(end)
        for found in (end.written, end.read):
            check_residuals(found)
            check_sums(found)


@pytest.fixture
def network() -> Iterator[Network]:
    with cable() as made:
        yield made


@FAMILIES
@pytest.mark.parametrize("bridge", [False, True], ids=["cable", "bridge"])
def test_requests_and_responses(staged: Watch, family: int, bridge: bool) -> None:
    times, request, response = 40, 400, 900
    with cable(bridge=bridge) as network:
        talk = Talk(staged, network, family)
        ping_pong(talk.client, talk.accepted, times, (request, response))
        client, server = talk.finish()
    check(client, server)
    for end, sent, received in ((client, request, response), (server, response, request)):
        check_undisturbed(end)
        assert end.written[W.WRITE_PACKET_COUNT] == times
        assert end.written[W.WRITE_PACKET_SIZE] == times * sent
        assert end.read[R.READ_PACKET_COUNT] == times
        assert end.read[R.READ_PACKET_SIZE] == times * received
        calls = end.written.records[end.written.records["call"] != Call.NONE]
        assert len(calls) == times


@FAMILIES
@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "segments"])
def test_bulk(staged: Watch, family: int, mtu: int, offload: bool) -> None:
    size = 3_000_000
    with cable(mtu) as network:
        for host in network.hosts:
            host.offload(offload)
        talk = Talk(staged, network, family)
        bulk(talk.client, talk.accepted, size, each=1 << 20)
        client, server = talk.finish()
    check(client, server)
    check_undisturbed(client)
    assert client.written[W.WRITE_PACKET_SIZE] - client.info.bytes_retrans == size
    assert server.read[R.READ_PACKET_SIZE] == size
    assert client.written[W.WRITE_PACKET_COUNT] >= size // mtu
    # In one record, more than a byte can count.
    most = client.written.records["figures"][:, W.WRITE_PACKET_COUNT].max()
    assert most > (255 if mtu == 1500 else 60)


def test_many_threads_on_one_connection(staged: Watch, network: Network) -> None:
    """No packet is lost or told twice when records are made at the same time."""
    size, each = 600_000, 3_000
    talk = Talk(staged, network)

    def write(end: socket.socket) -> None:
        for _ in range(size // each):
            end.sendall(bytes(each))

    with contextlib.ExitStack() as running:
        for end in (talk.client, talk.accepted):
            running.enter_context(in_background(functools.partial(receive, end, 2 * size)))
            for _ in range(2):
                running.enter_context(in_background(functools.partial(write, end)))
    client, server = talk.finish()
    check(client, server)
    for each_end in (client, server):
        assert each_end.read[R.READ_PACKET_SIZE] == 2 * size
        check_undisturbed(each_end)


def test_what_interrupts_itself_is_counted(staged: Watch, network: Network) -> None:
    """Packets that come while a program at netfilter's hooks runs pass it unseen."""
    if staged.tier != "fentry" or kernel_version() < (5, 12):
        pytest.skip("only a program at an entry of a function, from Linux 5.12 on, says so")
    talk = Talk(staged, network)
    network.server.queue("netem", "delay", "1ms")
    with network.client.inside():
        other = socket.socket(type=socket.SOCK_DGRAM)
    with other, on_every_cpu(lambda: other.sendto(b"x", ("127.0.0.1", 9))):
        ping_pong(talk.client, talk.accepted, 1000, (100, 100))
    network.server.no_queue()
    client, server = talk.finish()
    check(client, server)
    assert client.skipped > 0


@FAMILIES
def test_half_open(staged: Watch, network: Network, family: int) -> None:
    """One side has said its last word; the other goes on."""
    talk = Talk(staged, network, family)
    talk.client.sendall(bytes(1000))
    talk.client.shutdown(socket.SHUT_WR)
    receive(talk.accepted, 1000)
    assert talk.accepted.recv(1) == b""
    talk.accepted.sendall(bytes(50_000))
    receive(talk.client, 50_000)
    wait_sent(talk.accepted)
    infos = tcp_info(talk.client), tcp_info(talk.accepted)
    talk.accepted.close()
    assert talk.client.recv(1) == b""
    talk.client.close()
    talk.server.close()
    until(lambda: not any(host.has_open(talk.port) for host in network.hosts))
    time.sleep(0.2)
    staged.drain()
    sums = {
        (role, direction): staged.figures(talk.port, role, direction)
        for role in (Role.CLIENT, Role.SERVER)
        for direction in Direction
    }
    assert sums[Role.CLIENT, Direction.WRITE][W.WRITE_PACKET_SIZE] == 1000
    assert sums[Role.SERVER, Direction.READ][R.READ_PACKET_SIZE] == 1000
    assert sums[Role.SERVER, Direction.WRITE][W.WRITE_PACKET_SIZE] == 50_000
    assert sums[Role.CLIENT, Direction.READ][R.READ_PACKET_SIZE] == 50_000
    assert sums[Role.CLIENT, Direction.READ][R.READ_PACKET_COUNT] == infos[0].data_segs_in
    assert sums[Role.SERVER, Direction.WRITE][W.WRITE_PACKET_COUNT] == infos[1].data_segs_out
    for found in sums.values():
        check_sums(found)


def drop_rule(host: Host, port: int, hook: str) -> None:
    """Drop what carries payload for a port at a hook, counting it."""
    host.netfilter(
        f"table inet loss {{ chain loss {{ type filter hook {hook} priority 10; policy accept;\n"
        f'tcp dport {port} meta length >= 120 counter drop comment "payload"\n}}\n}}\n'
    )


def dropped(host: Host) -> int:
    """Packets that `drop_rule` has dropped."""
    listing = host.netfilter("list table inet loss")
    return int(listing.partition("counter packets ")[2].split()[0])


@FAMILIES
@pytest.mark.parametrize("hook", ["output", "postrouting"])
def test_dropped_by_own_netfilter(staged: Watch, network: Network, family: int, hook: str) -> None:
    network.expect_losses()
    talk = Talk(staged, network, family, counted=False)
    drop_rule(network.client, talk.port, hook)
    talk.client.sendall(bytes(1000))
    until(lambda: dropped(network.client) >= 2)
    lost = dropped(network.client)
    network.client.netfilter("flush table inet loss")
    receive(talk.accepted, 1000)
    client, server = talk.finish()
    check(client, server)
    # One more at most, after the counter was read and before the rule was gone.
    assert lost <= client.written[W.WRITE_LOST_PACKET_COUNT] <= lost + 1
    assert server.written[W.WRITE_LOST_PACKET_COUNT] == 0
    check_reasons(client, "NETFILTER_DROP")


@FAMILIES
def test_dropped_by_the_other_host(staged: Watch, network: Network, family: int) -> None:
    """That is nothing this host can know: retransmitted, told after the last call, not lost."""
    network.expect_losses()
    talk = Talk(staged, network, family)
    before = network.client.segments("RetransSegs")  # of the handshake, on a busy machine
    drop_rule(network.server, talk.port, "prerouting")
    talk.client.sendall(bytes(1000))
    until(lambda: tcp_info(talk.client).total_retrans >= before + 2)
    network.server.netfilter("flush table inet loss")
    receive(talk.accepted, 1000)
    client, server = talk.finish()
    check(client, server)
    retransmitted = network.client.segments("RetransSegs")
    assert client.written[W.WRITE_RETRANSMIT_PACKET_COUNT] == retransmitted
    retransmitted -= before
    assert client.written[W.WRITE_PACKET_COUNT] == 1 + retransmitted >= 3
    assert client.written[W.WRITE_PACKET_SIZE] == 1000 * (1 + retransmitted)
    for end in (client, server):
        assert end.written[W.WRITE_LOST_PACKET_COUNT] == 0
    call, *rests = client.written.records
    assert {each["call"] for each in rests} == {Call.NONE}
    assert call["call"] == Call.SENDTO
    assert call["figures"][W.WRITE_RETRANSMIT_PACKET_COUNT] == before


@pytest.mark.parametrize(
    ("queue", "size"),
    [
        # Slower than an emulated machine is, with room for one packet: after a slow handshake TCP
        # keeps no more than two in the queue (tcp_small_queue_check).
        (("tbf", "rate", "1mbit", "burst", "5k", "limit", "2k"), 250_000),
        (("netem", "loss", "2%"), 1_500_000),
        (("netem", "delay", "2ms", "loss", "2%"), 1_500_000),
    ],
    ids=["tail-drop", "loss", "delay-and-loss"],
)
def test_dropped_by_the_queue(
    staged: Watch, network: Network, queue: tuple[str, ...], size: int
) -> None:
    """Lost as the queue discipline counts it, sent again as the namespace counts it."""
    network.expect_losses()
    network.client.run("ip", "link", "set", "veth0", "gso_max_segs", "1")
    network.client.set("ipv6/conf/veth0/disable_ipv6", 1)  # its own packets could be lost, too
    talk = Talk(staged, network)
    network.client.queue(*queue)
    with alone_on_a_cpu():
        bulk(talk.client, talk.accepted, size)
        wait_sent(talk.client)
    drops = network.client.queue_counts()["drops"]
    network.client.no_queue()
    client, server = talk.finish()
    check_counters(client)
    check_counters(server)
    check_packets(client)
    check_sums(client.written)
    assert drops > 0
    assert client.written[W.WRITE_LOST_PACKET_COUNT] == drops
    check_reasons(client, "QDISC_DROP", "QDISC_OVERLIMIT", "QDISC_CONGESTED")
    retransmitted = network.client.segments("RetransSegs")
    assert client.written[W.WRITE_RETRANSMIT_PACKET_COUNT] == retransmitted
    # Of a full queue TCP is told at once, and does not call it a retransmission.
    assert retransmitted >= drops or queue[0] == "tbf"
    assert server.read[R.READ_PACKET_SIZE] == size


def test_what_leaves_after_the_call(staged: Watch, network: Network) -> None:
    """One call fills the socket's buffer; most of it leaves when acknowledgements allow it."""
    talk = Talk(staged, network)
    talk.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    talk.client.setblocking(False)
    size = talk.client.send(bytes(400_000))
    receive(talk.accepted, size)
    client, server = talk.finish()
    check(client, server)
    call, *rests = client.written.records
    assert (call["call"], call["size"]) == (Call.SENDTO, size)
    assert {each["call"] for each in rests} == {Call.NONE}
    assert client.written[W.WRITE_PACKET_SIZE] == size
    for figure in (W.WRITE_PACKET_COUNT, W.WRITE_L2_ENTER_QUEUE_COUNT):
        assert 0 < call["figures"][figure] < client.written[figure]


def test_nothing_is_left_behind(staged: Watch, network: Network) -> None:
    before = len(staged.keys("flows"))
    server = network.server.listen(4)
    for _ in range(150):
        client, accepted = network.client.connect(server)
        ping_pong(client, accepted, 1, (200, 200))
        client.close()
        accepted.close()
    server.close()
    # Others on this machine may have opened some meanwhile.
    until(lambda: len(staged.keys("flows")) < before + 75)
