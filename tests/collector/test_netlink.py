"""Conntrack of the running kernel: namespaces that translate, read as the collector does."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from collector import netlink
from collector.config import CollectorConfig
from collector.connections import ROW
from collector.conntrack import DUMP_REQUEST, NOBODY, changes
from collector.namespaces import entered
from collector.netlink import Conntrack, read_conntrack
from schemas.clock import ManualClock
from schemas.telemetry import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.bpf

NODE, POD = f"podwire-ct-{os.getpid()}-node", f"podwire-ct-{os.getpid()}-pod"
SERVER = ("10.77.0.2", "fd77::2")
SERVICE = ("10.99.0.9", "fd99::9")
Rooms = dict[socket.AddressFamily, socket.socket]
RULES = """
add table inet p
add chain inet p output { type nat hook output priority -100; }
add chain inet p post { type nat hook postrouting priority 100; }
add rule inet p output ip daddr 10.99.0.9 tcp dport 80 dnat ip to 10.77.0.2:8080
add rule inet p output ip6 daddr fd99::9 tcp dport 80 dnat ip6 to [fd77::2]:8080
add rule inet p output ip daddr 10.99.0.10 tcp dport 80 dnat ip to 10.77.0.2:8080
add rule inet p post ct original ip daddr 10.99.0.10 snat ip to 10.77.0.7
"""


def _run(*argv: str, text: str | None = None) -> None:
    subprocess.run(argv, input=text, text=True, check=True, capture_output=True)


@pytest.fixture
def rooms() -> Iterator[Rooms]:
    """A namespace that translates, wired to one with a server address."""
    names = (NODE, POD)
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            _run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0")
        _run(
            "ip",
            "-n",
            NODE,
            "link",
            "add",
            "v0",
            "type",
            "veth",
            "peer",
            "name",
            "v1",
            "netns",
            POD,
        )
        for name, link, *addresses in (
            (NODE, "v0", "10.77.0.1/24", "10.77.0.7/24", "fd77::1/64"),
            (POD, "v1", "10.77.0.2/24", "fd77::2/64"),
        ):
            for address in addresses:
                nodad = ["nodad"] if ":" in address else []
                _run("ip", "-n", name, "addr", "add", address, "dev", link, *nodad)
            _run("ip", "-n", name, "link", "set", link, "up")
        _run("ip", "-n", NODE, "route", "add", "default", "via", SERVER[0])
        _run("ip", "-n", NODE, "-6", "route", "add", "default", "via", SERVER[1])
        _run("ip", "netns", "exec", NODE, "nft", "-f", "-", text=RULES)
        with contextlib.ExitStack() as stack:
            servers = {}
            with _inside(POD):
                for family, address in ((socket.AF_INET, SERVER[0]), (socket.AF_INET6, SERVER[1])):
                    server = servers[family] = stack.enter_context(socket.socket(family))
                    server.bind((address, 8080))
                    server.listen(4096)
            yield servers
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _inside(name: str) -> contextlib.AbstractContextManager[None]:
    return entered(f"/run/netns/{name}")


@contextlib.contextmanager
def _connected(
    rooms: Rooms, count: int = 1, service: str = SERVICE[0]
) -> Iterator[list[tuple[Any, Any]]]:
    """Connections through the service address: pairs of client and accepted socket."""
    family = socket.AF_INET6 if ":" in service else socket.AF_INET
    server = rooms[family]
    with contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(count):
            with _inside(NODE):
                client = stack.enter_context(socket.socket(family))
            client.settimeout(5)
            client.connect((service, 80))
            pairs.append((client, stack.enter_context(server.accept()[0])))
        yield pairs


def _packed(text: str) -> bytes:
    if ":" in text:
        return socket.inet_pton(socket.AF_INET6, text)
    return bytes(10) + b"\xff\xff" + socket.inet_aton(text)


def _rows(*sockets: Any, space: str, pid: int = 0) -> np.ndarray[Any, Any]:
    rows = np.zeros(len(sockets), ROW)
    for row, each in zip(rows, sockets, strict=True):
        for side, (address, port, *_) in (
            ("local", each.getsockname()),
            ("remote", each.getpeername()),
        ):
            row[f"{side}_address"] = np.frombuffer(_packed(address), np.uint8)
            row[f"{side}_port"] = port
        row["netns"] = os.stat(f"/run/netns/{space}").st_ino
        row["pid"] = pid
    return rows


def _conntrack(clock: ManualClock | None = None, **settings: Any) -> Conntrack:
    settings.setdefault("host_netns", f"/run/netns/{NODE}")
    return Conntrack(CollectorConfig(**settings), clock or ManualClock())


def _losses(reason: str) -> float:
    name = "podwire_collector_conntrack_losses_total"
    return REGISTRY.get_sample_value(name, {"reason": reason}) or 0.0


@pytest.mark.parametrize(("service", "server"), list(zip(SERVICE, SERVER, strict=True)))
def test_connections_before_and_after_the_start_lead_to_the_backend(
    rooms: Rooms, service: str, server: str
) -> None:
    with _connected(rooms, service=service) as before:
        conntrack = _conntrack()
        assert conntrack.reason == ""
        with contextlib.closing(conntrack), _connected(rooms, service=service) as after:
            conntrack.poll()
            clients = [before[0][0], after[0][0]]
            backend = (_packed(server), 8080)
            assert conntrack.peers(_rows(*clients, space=NODE)) == [backend] * 2
            # The pods' packets pass the node's namespace as they are.
            assert conntrack.peers(_rows(*clients, space=POD)) == [backend] * 2
            servers = [before[0][1], after[0][1]]
            assert conntrack.peers(_rows(*servers, space=POD)) == [NOBODY] * 2


def test_a_server_learns_the_source_that_was_translated_as_well(rooms: Rooms) -> None:
    with (
        contextlib.closing(_conntrack()) as conntrack,
        _connected(rooms, service="10.99.0.10") as pairs,
    ):
        conntrack.poll()
        ((client, accepted),) = pairs
        assert accepted.getpeername()[0] == "10.77.0.7"
        port = client.getsockname()[1]
        assert conntrack.peers(_rows(accepted, space=POD)) == [(_packed("10.77.0.1"), port)]


def test_the_kernel_filters_and_both_decoders_agree(rooms: Rooms) -> None:
    path = f"/run/netns/{NODE}"
    events = netlink._open(path, netlink._NEW_AND_DESTROY)
    with events, _connected(rooms, 5), _connected(rooms, 3, SERVICE[1]):
        with _inside(POD):
            other = socket.create_server((SERVER[0], 9000))
        with other, _inside(NODE), socket.socket() as plain:
            plain.connect((SERVER[0], 9000))
        seen = []
        with contextlib.suppress(BlockingIOError):
            while True:
                seen.append(events.recv(65_536))
        found = [list(changes(data)) for data in seen]
        assert [len(each) for each in found] == [1] * 8
        with netlink._open(path) as asked:
            asked.send(DUMP_REQUEST)
            seen.append(asked.recv(65_536))
    for data in seen[:8]:
        message = nfct_msg(data)
        message.decode()
        (change,) = changes(data)
        for name, ends in (("CTA_TUPLE_ORIG", change.original), ("CTA_TUPLE_REPLY", change.reply)):
            tuple_ = message.get_attr(name)
            addresses = dict(tuple_.get_attr("CTA_TUPLE_IP")["attrs"])
            ports = tuple_.get_attr("CTA_TUPLE_PROTO")
            source, destination = addresses.values()
            assert ends == (
                _packed(source),
                ports.get_attr("CTA_PROTO_SRC_PORT"),
                _packed(destination),
                ports.get_attr("CTA_PROTO_DST_PORT"),
            )
    # Of the dump, which is not filtered, the same eight.
    assert sum(1 for _ in changes(seen[8])) == 8


def test_a_pod_that_translates_is_entered_through_its_process(rooms: Rooms, tmp_path: Path) -> None:
    """Here the pod is the namespace with the rules, and the node's is another."""
    (tmp_path / "7" / "ns").mkdir(parents=True)
    (tmp_path / "7" / "ns" / "net").symlink_to(f"/run/netns/{NODE}")
    clock = ManualClock()
    settings = {"host_netns": f"/run/netns/{POD}", "proc_path": str(tmp_path)}
    with contextlib.closing(_conntrack(clock, **settings)) as conntrack:
        nothing = _rows(space=NODE)
        conntrack.follow(nothing)
        with _connected(rooms) as pairs:
            rows = _rows(pairs[0][0], space=NODE, pid=7)
            assert conntrack.peers(rows) == [NOBODY]
            conntrack.follow(rows)
            backend = (_packed(SERVER[0]), 8080)
            assert conntrack.peers(rows) == [backend]
            with _connected(rooms, service="10.99.0.10") as more:  # an event, not the dump
                conntrack.poll()
                assert conntrack.peers(_rows(more[0][0], space=NODE)) == [backend]
            conntrack.forget([7, 8])
            assert conntrack.peers(rows) == [NOBODY]


def test_a_namespace_that_tracks_nothing_is_left_alone_for_a_while(
    rooms: Rooms, tmp_path: Path
) -> None:
    (tmp_path / "7" / "ns").mkdir(parents=True)
    (tmp_path / "7" / "ns" / "net").symlink_to(f"/run/netns/{POD}")
    clock = ManualClock()
    opened: list[str] = []
    real = netlink._open
    with pytest.MonkeyPatch.context() as patch, _connected(rooms) as pairs:
        patch.setattr(
            netlink, "_open", lambda path, groups=0: (opened.append(path), real(path, groups))[1]
        )
        with contextlib.closing(_conntrack(clock, proc_path=str(tmp_path))) as conntrack:
            rows = _rows(pairs[0][1], space=POD, pid=7)
            opened.clear()
            for _ in range(3):
                conntrack.follow(rows)
            assert len(opened) == 2  # events and dump, once
            clock.advance(1.1)
            conntrack.follow(rows)
            assert len(opened) == 4
            clock.advance(1.1)
            conntrack.follow(rows)
            assert len(opened) == 4  # the pause doubles


def test_what_a_full_socket_lost_is_read_again_and_counted(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "_RECEIVE_BYTES", 4096)
    before = _losses("overflow")
    with contextlib.closing(_conntrack()) as conntrack, _connected(rooms, 200) as pairs:
        conntrack.poll()
        assert _losses("overflow") == before + 1
        clients = _rows(*(client for client, _ in pairs), space=NODE)
        assert conntrack.peers(clients) == [(_packed(SERVER[0]), 8080)] * 200


def test_too_many_translations_give_way_to_newer_ones(rooms: Rooms) -> None:
    before = _losses("evicted")
    conntrack = _conntrack(max_translations=1024)
    with contextlib.closing(conntrack), _connected(rooms, 1100) as pairs:
        conntrack.poll()
        assert _losses("evicted") == before + 76
        clients = _rows(*(client for client, _ in pairs), space=NODE)
        peers = conntrack.peers(clients)
        assert peers[:76] == [NOBODY] * 76
        assert NOBODY not in peers[76:]


def test_what_no_event_told_is_read_again_ever_more_rarely(rooms: Rooms, tmp_path: Path) -> None:
    (tmp_path / "7" / "ns").mkdir(parents=True)
    (tmp_path / "7" / "ns" / "net").symlink_to(f"/run/netns/{NODE}")
    clock = ManualClock()
    settings = {"host_netns": f"/run/netns/{POD}", "proc_path": str(tmp_path)}
    backend = (_packed(SERVER[0]), 8080)
    before = _losses("untold")
    with contextlib.closing(_conntrack(clock, **settings)) as conntrack:
        with _connected(rooms) as pairs:
            conntrack.follow(_rows(pairs[0][0], space=NODE, pid=7))
        (space,) = (each for each in conntrack._spaces.values() if each.pid)
        assert space.events is not None
        with _connected(rooms) as pairs:
            rows = _rows(pairs[0][0], space=NODE)
            while select.select([space.events], [], [], 0)[0]:
                space.events.recv(65_536)  # as if it had never come
            conntrack.poll()
            assert conntrack.peers(rows) == [backend]
            assert _losses("untold") == before + 1
        nobody = np.copy(rows)
        nobody["local_port"] += 1
        looks = []
        for _ in range(40):
            clock.advance(0.25)
            due = space.doubt_ns
            assert conntrack.peers(nobody) == [NOBODY]
            looks.append(space.doubt_ns != due)
        assert [place for place, look in enumerate(looks) if look] == [0, 2, 6, 14, 30]
        assert _losses("untold") == before + 1


def test_without_the_right_the_reason_is_told(tmp_path: Path) -> None:
    conntrack = _conntrack(host_netns=str(tmp_path / "gone"))
    assert "No such file" in conntrack.reason
    conntrack.poll()
    assert conntrack.peers(np.zeros(1, ROW)) == [NOBODY]
    off = _conntrack(conntrack="off")
    assert "collector.conntrack" in off.reason


def test_the_entries_of_a_namespace_are_counted(rooms: Rooms) -> None:
    with _connected(rooms, 4):
        assert read_conntrack(f"/run/netns/{NODE}") >= 4


def test_a_namespace_is_entered_by_one_thread_only(rooms: Rooms) -> None:
    here = os.stat("/proc/self/ns/net").st_ino
    seen: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(os.stat("/proc/thread-self/ns/net").st_ino)

    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(20):
        read_conntrack(f"/run/netns/{NODE}")
    stop.set()
    thread.join()
    assert set(seen) == {here}
    assert os.stat("/proc/self/ns/net").st_ino == here
