"""Nothing is lost in silence: full rings, and state that goes away with its sockets."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from collector.abi import ConnectionEvent, Kind, Role
from tests.bpf.harness import BY_DESCRIPTOR, Watch, map_values, program_figures
from tests.bpf.test_connections import listening, pair, settle

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.bpf


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("load") / "load"
    source = Path(__file__).with_name("load.c")
    subprocess.run(["cc", "-O2", "-o", str(binary), str(source)], check=True)
    return binary


@contextlib.contextmanager
def draining(watch: Watch) -> Iterator[None]:
    """Drain as the collector does while the body runs."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.01):
            watch.drain()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        watch.drain()


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hold a process until all that it did so far has been drained."""
    process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def occupancy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An iterator that lists the entries of a socket storage map, which no system call does."""
    made = tmp_path_factory.mktemp("occupancy") / "occupancy.o"
    target = {"x86_64": "x86", "aarch64": "arm64"}[os.uname().machine]
    flags = ["-target", "bpf", f"-D__TARGET_ARCH_{target}", "-O2", "-g", "-Werror", "-I."]
    source = str(Path(__file__).with_name("occupancy.bpf.c"))
    subprocess.run(["clang", *flags, "-c", source, "-o", str(made)], check=True)
    return made


def sockets_with_state(watch: Watch, occupancy: Path, port: int) -> int:
    """Entries in the map of socket states that belong to a port."""
    if watch.path == BY_DESCRIPTOR:  # a hash, which begins with the connection's id
        values = map_values(watch.object.map_fd("sockets"))
        kept = [int.from_bytes(value[:8], sys.byteorder) for value in values]
        return int(np.isin(kept, watch.connections(port)["connection_id"]).sum())
    details = Path(f"/proc/self/fdinfo/{watch.object.map_fd('sockets')}").read_text()
    found = re.search(r"^map_id:\s*(\d+)", details, re.MULTILINE)
    assert found
    pin = Path(f"/sys/fs/bpf/podwire_test_{os.getpid()}")
    subprocess.run(
        ["bpftool", "iter", "pin", str(occupancy), str(pin), "map", "id", found.group(1)],
        check=True,
    )
    try:
        return int((np.frombuffer(pin.read_bytes(), np.uint16).reshape(-1, 2) == port).any(1).sum())
    finally:
        pin.unlink()


def kernel_memory() -> int:
    """Bytes of slab that cannot be reclaimed: where socket storage lives."""
    found = re.search(r"^SUnreclaim:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found
    return int(found.group(1)) * 1024


@pytest.mark.parametrize("connections", [20_000, pytest.param(400_000, marks=[pytest.mark.slow])])
@pytest.mark.timeout(600)
def test_short_connections_leave_nothing(
    variant: Path, load: Path, occupancy: Path, connections: int
) -> None:
    watch = Watch(path=variant)
    try:
        memory = kernel_memory()
        with listening() as server:
            left, right = pair(server)
            watch.drain()
            assert sockets_with_state(watch, occupancy, server.getsockname()[1]) == 2
            left.close()
            right.close()
        most, most_waiting = 0, 0
        with (
            draining(watch),
            subprocess.Popen([load, str(connections), "64"], stdout=subprocess.PIPE) as process,
        ):
            assert process.stdout is not None
            port = int(process.stdout.readline())
            while process.poll() is None:
                with stopped(process):
                    most = max(most, sockets_with_state(watch, occupancy, port))
                    most_waiting = max(most_waiting, len(watch.keys("accept_queue")))
                _forget(watch)
                time.sleep(connections / 200_000)  # some ten looks in all
        assert process.returncode == 0
        settle()
        watch.drain()
        after, grown = sockets_with_state(watch, occupancy, port), kernel_memory() - memory
        print(f"\n{connections} connections: sockets with state at most {most}, {after} after;")
        print(f"waiting to be accepted at most {most_waiting}; kernel memory {grown:+d} bytes")
        assert 0 < most <= 20
        assert after == 0
        for kind in Kind:
            counted = watch.counts(kind)
            assert counted["ring_full"] == counted["map_full"] == counted["unannounced"] == 0
        assert watch.counts(Kind.OPEN)["submitted"] >= 2 * connections
        assert watch.counts(Kind.CLOSE)["submitted"] >= 2 * connections
        assert watch.counts(Kind.TRANSFER)["submitted"] >= 2 * connections
        if connections <= 100_000:
            assert watch.count(port, ConnectionEvent.CONNECTED) == connections
            assert watch.count(port, ConnectionEvent.ACCEPTED) == connections
            assert watch.count(port, ConnectionEvent.CLOSED, Role.CLIENT) == connections
            assert watch.count(port, ConnectionEvent.CLOSED, Role.SERVER) == connections
            _check_sequences(watch)
        print({name: each["missed"] for name, each in program_figures(watch).items()})
    finally:
        watch.close()


def _forget(watch: Watch) -> None:
    # The records are counted by the kernel; they need not all be kept here.
    for name, records in watch.seen.items():
        if sum(map(len, records)) > 2_000_000:
            watch.seen[name] = []


def _check_sequences(watch: Watch) -> None:
    """Numbers of each CPU and ring: from 0, without a gap, none twice."""
    for name in watch.rings:
        found = watch.records(name)
        for cpu in np.unique(found["cpu"]):
            numbers = np.sort(found["sequence"][found["cpu"] == cpu])
            assert np.array_equal(numbers, np.arange(len(numbers)))


def test_every_event_is_counted_when_rings_are_full(variant: Path, load: Path) -> None:
    connections = 3000
    ample = Watch(path=variant)  # begins earlier and ends later, and loses nothing
    small = dict.fromkeys(("connections", "transfers", "processes"), 4096)
    watch = Watch(rings=small, path=variant)
    try:
        with draining(ample):
            subprocess.run([load, str(connections), "10"], check=True, stdout=subprocess.DEVNULL)
            settle()
        watch.object.detach()
        outcomes = {kind: watch.counts(kind) for kind in Kind}
        for kind in (Kind.OPEN, Kind.CLOSE, Kind.TRANSFER):
            all_of_them = ample.counts(kind)["submitted"]
            assert 2 * connections <= sum(outcomes[kind].values()) <= all_of_them
        assert outcomes[Kind.OPEN]["ring_full"] > 0
        assert outcomes[Kind.TRANSFER]["unannounced"] > 0
        watch.drain()
        drained = watch.records("connections")
        kinds = {Kind.CONNECTION: {1}, Kind.OPEN: {2, 3}, Kind.CLOSE: {4}}
        for kind, events in kinds.items():
            assert np.isin(drained["event"], list(events)).sum() == outcomes[kind]["submitted"]
        assert len(watch.records("transfers")) == outcomes[Kind.TRANSFER]["submitted"]
        _check_sequences(watch)
    finally:
        watch.close()
        ample.close()


def test_an_announcement_is_repeated_until_it_fits(variant: Path) -> None:
    watch = Watch(rings={"connections": 4096}, path=variant)
    try:
        with listening() as server, contextlib.ExitStack() as held:
            for _ in range(40):  # fills the ring
                for each in pair(server):
                    held.enter_context(each)
            client, accepted = pair(server)
            client.send(b"lost")
            counted = watch.counts(Kind.TRANSFER)
            assert counted["unannounced"] >= 1
            watch.drain()
            client.send(b"told")
            watch.drain()
            mine = client.getsockname()[1]
            told = watch.connections(mine, ConnectionEvent.ANNOUNCED)
            assert len(told) >= 1
            assert set(told["pid"]) == {os.getpid()}
            sizes = watch.records("transfers")
            ids = watch.connections(mine)["connection_id"]
            assert list(sizes[np.isin(sizes["connection_id"], ids)]["size"]) == [4]
            client.close()
            accepted.close()
    finally:
        watch.close()
