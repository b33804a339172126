"""Two hosts on one machine: network namespaces joined by a virtual cable or over a bridge.

The namespaces have no name and live as long as the descriptors held here, so nothing is left behind
however a test ends. A namespace belongs to a thread, and a socket stays in the one it was made in:
`Host.inside` is enough to have both ends in one process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.requirements import unmet
from tests.support.sockets import State, tcp_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PAYLOAD_FROM", "Host", "Network", "Packets", "cable"]

DEVICE: Final = "veth0"
PAYLOAD_FROM: Final = 120
"""IP length from which the rules of `Host.count_packets` take a segment for one with payload:
headers with time stamps are 52 (IPv4) or 72 (IPv6) bytes, with selective acknowledgements more."""

_NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET
_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_HOOKS: Final = ("prerouting", "input", "output", "postrouting")
_NAME: Final = DEVICE.encode()
_RUNNING_S: Final = 30.0
_SIOCGIFFLAGS: Final = 0x8913
_IFF_RUNNING: Final = 0x40
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GLINK: Final = 0x0A
_SWITCHES: Final = {"checksum": 0x17, "scatter": 0x19, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}
"""``ETHTOOL_S*`` by the name of the offload, in the order of switching on."""

_libc = ctypes.CDLL(None, use_errno=True)


class Packets(NamedTuple):
    """Packets of one port that passed one netfilter hook, by what they carry."""

    handshake: int
    """With SYN or RST: nobody's, or nobody's yet."""
    payload: int
    bare: int
    """Acknowledgements and FIN without payload."""


class Host:
    """One namespace."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._sockets: list[socket.socket] = []
        self.descriptor = _new_namespace()

    def address(self, family: int) -> str:
        """Its address, 4 or 6."""
        return f"10.77.0.{self.number}" if family == 4 else f"fd77::{self.number}"

    @property
    def link_address(self) -> str:
        """The hardware address of its cable's end."""
        return f"02:00:00:00:00:{self.number:02x}"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and the processes it starts, in the namespace."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _enter(self.descriptor)
        try:
            yield
        finally:
            _enter(own)
            os.close(own)

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a tool in the namespace; what it printed.

        Raises:
            RuntimeError: If it fails; says what it printed.
        """
        with self.inside():
            done = subprocess.run(
                command,
                input=text,
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | {"PATH": _PATH},
            )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def batch(self, *lines: str) -> None:
        """Run commands of ``ip`` in one process."""
        self.run("ip", "-batch", "-", text="\n".join(lines) + "\n")

    def set(self, key: str, value: object) -> None:
        """Write a network setting such as ``ipv4/tcp_retries2``."""
        with self.inside():
            Path("/proc/sys/net", key).write_text(str(value))

    def listen(self, family: int, address: str = "") -> socket.socket:
        """Open a listening socket, at the cable if no address is given."""
        sixth = ":" in address or (not address and family == 6)
        with self.inside():
            server = socket.create_server(
                (address or self.address(family), 0),
                family=socket.AF_INET6 if sixth else socket.AF_INET,
            )
        self._sockets.append(server)
        return server

    def connect(self, server: socket.socket) -> tuple[socket.socket, socket.socket]:
        """Connect from here to a listening socket; both ends, without Nagle's delay."""
        with self.inside():
            client = socket.create_connection(server.getsockname()[:2])
        accepted = server.accept()[0]
        self._sockets += [client, accepted]
        for end in (client, accepted):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client, accepted

    def queue(self, *words: str) -> None:
        """Set the queue discipline of what leaves over the cable.

        Skips the test where the kernel does not have it.
        """
        try:
            self.run("tc", "qdisc", "replace", "dev", DEVICE, "root", *words)
        except RuntimeError as error:
            if "unknown" in str(error) or "not found" in str(error).lower():
                unmet(words[0], str(error))
            raise

    def release_queue(self) -> None:
        """Let go what waits in the queue discipline ``plug``, and all that comes later."""
        self.run("tc", "qdisc", "change", "dev", DEVICE, "root", "plug", "release_indefinite")

    def no_queue(self) -> None:
        """Back to no queue discipline, dropping what waits in it."""
        self.run("tc", "qdisc", "del", "dev", DEVICE, "root")

    def queue_counts(self) -> dict[str, int]:
        """``packets``, ``drops``, ``overlimits`` and ``qlen`` of the queue discipline."""
        found: list[dict[str, Any]] = json.loads(
            self.run("tc", "-s", "-j", "qdisc", "show", "dev", DEVICE)
        )
        return {key: int(value) for key, value in found[0].items() if isinstance(value, int)}

    def sent_packets(self) -> int:
        """Packets the device has been given and taken."""
        found = json.loads(self.run("ip", "-s", "-j", "link", "show", DEVICE))
        return int(found[0]["stats64"]["tx"]["packets"])

    def segments(self, name: str) -> int:
        """A counter of ``Tcp:`` in ``/proc/net/snmp``."""
        with self.inside():
            lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("Tcp:"))
        return int(values[names.index(name)])

    def has_open(self, port: int) -> bool:
        """Whether it has a TCP sock of a port that is not only waiting for stray packets."""
        with self.inside():
            return any(
                port in each.ports and each.state != State.TIME_WAIT for each in tcp_sockets()
            )

    def neighbour(self, other: Host, state: str | None) -> None:
        """Set or, with None, forget the hardware address of another host."""
        self.batch(*_neighbour(other, state))

    def offload(self, wanted: bool) -> None:
        """Switch segmentation, checksum and receive offloads, as ethtool does."""
        order = list(_SWITCHES.values())
        with self.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            for command in order if wanted else reversed(order):
                value = ctypes.create_string_buffer(struct.pack("II", command, wanted), 8)
                request = struct.pack("16sQ16x", _NAME, ctypes.addressof(value))
                fcntl.ioctl(any_socket, _SIOCETHTOOL, request)

    def wait_running(self) -> None:
        """Wait until the cable carries packets: a device that is up drops them until it is told.

        Raises:
            TimeoutError: If it does not.
        """
        deadline = time.monotonic() + _RUNNING_S
        with self.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            while True:
                flags = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16s24x", _NAME))
                if struct.unpack_from("<H", flags, 16)[0] & _IFF_RUNNING:
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{DEVICE} is not running after {_RUNNING_S} s")
                time.sleep(0.002)
            # Who sets the flag then replaces the queue discipline that drops, in one hold of the
            # lock that ethtool takes.
            value = ctypes.create_string_buffer(struct.pack("II", _ETHTOOL_GLINK, 0), 8)
            request = struct.pack("16sQ16x", _NAME, ctypes.addressof(value))
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)

    def netfilter(self, commands: str) -> str:
        """Run nft commands; skips the test where its library is not there.

        In this process, because starting another takes seconds under emulation.

        Raises:
            RuntimeError: If one fails; says what nft printed.
        """
        try:
            nft = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            unmet("bpf", f"{error} (Debian: libnftables1)")
        nft.nft_ctx_new.restype = ctypes.c_void_p
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(nft, name).restype = ctypes.c_char_p
        with self.inside():
            context = ctypes.c_void_p(nft.nft_ctx_new(0))
            try:
                nft.nft_ctx_buffer_output(context)
                nft.nft_ctx_buffer_error(context)
                failed = nft.nft_run_cmd_from_buffer(context, commands.encode())
                said: bytes = nft.nft_ctx_get_output_buffer(context)
                complaint: bytes = nft.nft_ctx_get_error_buffer(context)
            finally:
                nft.nft_ctx_free(context)
        if failed:
            raise RuntimeError(f"nft: {complaint.decode()}")
        return said.decode()

    def count_packets(self, port: int, padding: int = 0) -> None:
        """Count from now on what passes the four hooks of this host for a port.

        Args:
            port: Of either end.
            padding: Rules beside these at each hook, to make passing it slow.
        """
        dull = "\n".join(f"ip ttl {ttl % 200 + 1} meta mark 77 drop" for ttl in range(padding))
        of_port = f"meta l4proto tcp th %s {port}"
        rules = "\n".join(
            f'{of_port % side} {match} counter accept comment "{kind}"'
            for side in ("sport", "dport")
            for match, kind in (
                ("tcp flags & (syn | rst) != 0", "handshake"),
                (f"meta length >= {PAYLOAD_FROM}", "payload"),
                ("", "bare"),
            )
        )
        chains = "\n".join(
            f"chain {hook} {{ type filter hook {hook} priority 0;\n{dull}\n{rules}\n}}"
            for hook in _HOOKS
        )
        self.netfilter(f"table inet count {{\n{chains}\n}}\n")

    def packets(self) -> dict[str, Packets]:
        """What `count_packets` has counted by hook."""
        counted = {}
        listing = self.netfilter("list table inet count")
        for chain in listing.split("chain ")[1:]:
            kinds = dict.fromkeys(Packets._fields, 0)
            for number, kind in re.findall(r'packets (\d+) bytes \d+.* comment "(\w+)"', chain):
                kinds[kind] += int(number)
            counted[chain.split()[0]] = Packets(**kinds)
        return counted

    def close(self) -> None:
        """Close its sockets and let go of the namespace; the kernel removes what is in it."""
        for each in self._sockets:
            each.close()
        os.close(self.descriptor)


class Network(NamedTuple):
    """Two hosts that reach each other, and what lies between them."""

    client: Host
    server: Host
    between: tuple[Host, ...] = ()

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All namespaces."""
        return (self.client, self.server, *self.between)

    def expect_losses(self) -> None:
        """Let the connections to come send again what is not acknowledged in time."""
        for host, other in ((self.client, self.server), (self.server, self.client)):
            host.batch(*(f"route del {route}" for route in _routes(other)))


@contextlib.contextmanager
def cable(mtu: int = 1500, bridge: bool = False) -> Iterator[Network]:
    """Join two hosts by a pair of virtual devices, or by two pairs and a bridge between them.

    They know each other's hardware addresses, so that a cable carries what a test sends.
    """
    if shutil.which("ip", path=_PATH) is None or shutil.which("tc", path=_PATH) is None:
        unmet("bpf", "no ip or tc (Debian: iproute2)")
    hosts = [Host(number) for number in range(1, 4 if bridge else 3)]
    network = Network(hosts[0], hosts[1], tuple(hosts[2:]))
    try:
        if bridge:
            middle = hosts[2]
            for host in hosts[:2]:
                _plug(host, middle, f"port{host.number}", mtu)
            ports = (f"link set port{number} master bridge0" for number in (1, 2))
            middle.batch(
                "link add bridge0 type bridge",
                *ports,
                *(f"link set {name} addrgenmode none" for name in ("bridge0", "port1", "port2")),
                *(f"link set {name} up" for name in ("bridge0", "port1", "port2")),
            )
        else:
            _plug(hosts[0], hosts[1], DEVICE, mtu)
        for host in hosts[:2]:
            host.batch(
                f"link set {DEVICE} address {host.link_address} addrgenmode none",
                f"addr add {host.address(4)}/24 dev {DEVICE}",
                f"addr add {host.address(6)}/64 dev {DEVICE} nodad",
                "link set lo up",
                f"link set {DEVICE} up",
                *_neighbour(hosts[2 - host.number], "permanent"),
                # A packet is sent once, however late it is acknowledged. The kernel's own route
                # to ::1 cannot be changed.
                *(f"route add {route} rto_min 5s" for route in _routes(hosts[2 - host.number])),
                "route change local 127.0.0.1 dev lo table local scope host rto_min 5s",
                "route del local ::1 dev lo table local",
                "route add local ::1 dev lo table local rto_min 5s",
            )
            # A write is a packet.
            host.set("ipv4/tcp_autocorking", 0)
            host.set("ipv4/tcp_early_retrans", 0)
        for host in hosts[:2]:
            host.wait_running()
        yield network
    finally:
        for host in hosts:
            host.close()


def _plug(host: Host, other: Host, there: str, mtu: int) -> None:
    namespace = f"/proc/{os.getpid()}/fd/{other.descriptor}"
    host.batch(
        f"link add {DEVICE} mtu {mtu} type veth peer name {there} mtu {mtu} netns {namespace}",
    )


def _routes(other: Host) -> list[str]:
    return [f"{other.address(family)} dev {DEVICE}" for family in (4, 6)]


def _neighbour(other: Host, state: str | None) -> list[str]:
    entries = _routes(other)
    if state is None:
        return [f"neigh del {entry}" for entry in entries]
    known = f"lladdr {other.link_address} nud {state}"
    return [f"neigh replace {entry} {known}" for entry in entries]


def _new_namespace() -> int:
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if _libc.unshare(_NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "unshare")
        made = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _enter(own)
        return made
    finally:
        os.close(own)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "setns")
