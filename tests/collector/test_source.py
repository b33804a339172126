from __future__ import annotations

import errno
import logging
import socket
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from collector.abi import COUNTS, Call, ConnectionEvent, Direction, Kind
from collector.bpf_object import BpfObject
from collector.config import RINGS, CollectorConfig, object_path
from collector.figures import measured
from collector.source import KernelSource, require_layout, ring_sizes
from collector.stages import OFF, Stages, start_stages, unseen_in_ip
from schemas.errors import BpfError, ConfigError, LayoutMismatch
from schemas.telemetry import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONNECTIONS = 200
E = ConnectionEvent


def test_rings_are_powers_of_two() -> None:
    assert ring_sizes(CollectorConfig())["transfers"] == 32 << 20
    with pytest.raises(ConfigError, match="process_ring_bytes"):
        ring_sizes(CollectorConfig(process_ring_bytes=100_000))


def test_an_object_with_other_records_is_refused(tmp_path: Path) -> None:
    content = object_path(CollectorConfig()).read_bytes()
    path = tmp_path / "x.bpf.o"
    path.write_bytes(content)
    require_layout(path)
    path.write_bytes(content.replace(b"\0duration_ns\0", b"\0duration_us\0"))
    with pytest.raises(LayoutMismatch, match="record layout"):
        require_layout(path)
    path.write_bytes(b"something else")
    with pytest.raises(LayoutMismatch, match="an object of podwire"):
        require_layout(path)


@pytest.fixture(params=["mapped", "libbpf"])
def source(request: pytest.FixtureRequest) -> Iterator[KernelSource]:
    source = KernelSource(CollectorConfig(own_traffic=True, ring_reader=request.param))
    yield source
    source.close()


@pytest.mark.bpf
def test_both_readers_see_what_the_sockets_did(source: KernelSource) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for size in range(1, CONNECTIONS + 1):
            with socket.create_connection(("127.0.0.1", port)) as client:
                server, _ = listener.accept()
                with server:
                    client.sendall(b"x" * size)
                    assert len(server.recv(4096)) == size
    source.detach()
    drained = source.drain()
    told = drained.connections
    mine = told[(told["local_port"] == port) | (told["remote_port"] == port)]
    assert np.count_nonzero(mine["event"] == E.CONNECTED) == CONNECTIONS
    assert np.count_nonzero(mine["event"] == E.ACCEPTED) == CONNECTIONS
    assert np.count_nonzero(mine["event"] == E.CLOSED) == 2 * CONNECTIONS
    moved = drained.transfers[np.isin(drained.transfers["connection_id"], mine["connection_id"])]
    calls = moved[moved["call"] != Call.NONE]  # those move nothing: what came after the last call
    assert moved["size"].sum() == calls["size"].sum()
    for direction in Direction:
        sizes = calls["size"][calls["direction"] == direction]
        assert sorted(sizes.tolist()) == list(range(1, CONNECTIONS + 1))
    counts = source.counts()
    assert counts[Kind.TRANSFER, 0] == len(drained.transfers)
    assert counts[:, 1:].sum() == 0
    assert {name: item.missing for name, item in source.sequences.items()} == dict.fromkeys(
        RINGS, 0
    )
    assert source.counts().sum() == 0
    labels = {"ring": "transfers"}
    assert REGISTRY.get_sample_value("podwire_collector_ring_missing_records", labels) == 0


@pytest.mark.bpf
def test_what_is_measured_follows_the_hooks_of_both_objects(source: KernelSource) -> None:
    assert source.stages.object is not None
    assert source.measured == measured((*source.hooks, *source.stages.hooks))
    assert {"read_bytes", "write_l2_duration"} <= source.measured
    attached = sum(hook.attached for hook in (*source.hooks, *source.stages.hooks))
    labels = {"state": "attached"}
    assert REGISTRY.get_sample_value("podwire_collector_hooks", labels) == attached
    source.counts()
    for program in ("sys_enter", "net_dev_queue"):  # one of each
        name = "podwire_collector_program_skipped_total"
        assert REGISTRY.get_sample_value(name, {"program": program}) is not None
    source.detach()
    assert not source.stages.object._links


@pytest.mark.bpf
def test_the_stages_are_attached_before_the_core_makes_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    attach = BpfObject.attach

    def noted(opened: BpfObject, program: str) -> None:
        attach(opened, program)
        order.append(opened.path.name)

    monkeypatch.setattr(BpfObject, "attach", noted)
    KernelSource(CollectorConfig()).close()
    assert order[0] == "podwire-stages.bpf.o"
    assert order == sorted(order, key=lambda name: name != "podwire-stages.bpf.o")


@pytest.mark.bpf
def test_an_object_that_is_passed_over_leaves_no_stages_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Stages] = []
    attach = BpfObject.attach

    def refused(opened: BpfObject, program: str) -> None:
        if program == "sock_recv_length":
            raise BpfError(f"attach {program}", errno.EINVAL)
        attach(opened, program)

    monkeypatch.setattr(BpfObject, "attach", refused)

    def start(*arguments: Any) -> Stages:
        started.append(start_stages(*arguments))
        return started[-1]

    monkeypatch.setattr("collector.source.start_stages", start)
    source = KernelSource(CollectorConfig())
    try:
        assert source.stages is started[-1]
        assert [bool(each.object and each.object._links) for each in started] == [False, True]
    finally:
        source.close()
    assert source.stages.object is not None
    assert not source.stages.object._links


@pytest.mark.bpf
def test_unseen_packets_are_exported_once(
    source: KernelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "podwire_collector_packets_unseen_in_ip_total"
    source.counts()
    before = REGISTRY.get_sample_value(name) or 0.0
    assert source.stages.object is not None
    told = unseen_in_ip(source.stages.object)
    for more in (3, 3, 5):
        monkeypatch.setattr("collector.source.unseen_in_ip", lambda _, now=told + more: now)
        source.counts()
        assert REGISTRY.get_sample_value(name) == before + more


@pytest.mark.bpf
def test_skipped_runs_are_exported_once(
    source: KernelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def skipped() -> float:
        name, labels = "podwire_collector_program_skipped_total", {"program": "net_dev_queue"}
        return REGISTRY.get_sample_value(name, labels) or 0.0

    source.counts()
    before = skipped()
    opened = source.stages.object
    assert opened is not None
    told = opened.recursion_misses()
    assert "net_dev_queue" in told
    for more, expected in ((3, 3), (3, 3), (5, 5)):
        now = told | {"net_dev_queue": told["net_dev_queue"] + more}
        monkeypatch.setattr(opened, "recursion_misses", lambda now=now: now)
        source.counts()
        assert skipped() - before == expected
    monkeypatch.setattr(opened, "probe_misses", lambda: {"net_dev_queue": 2})
    source.counts()
    assert skipped() - before == 7
    monkeypatch.undo()  # as when its probes are gone
    source.detach()
    source.counts()
    assert skipped() - before == 7


@pytest.mark.bpf
def test_without_the_stages_the_core_runs_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "broken.bpf.o"
    path.write_bytes(b"\x7fELF nothing more")
    monkeypatch.setattr("collector.stages.stages_path", lambda: path)
    source = KernelSource(CollectorConfig())
    try:
        source.log_missing()
        assert source.drain() is not None
        assert source.counts().shape == (len(Kind), len(COUNTS.names or ()))
    finally:
        source.close()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "figures of layers 2 to 4 are not measured" in record.getMessage()
    assert "broken.bpf.o" in record.getMessage()
    assert "read_packet_count" in source.measured
    assert "write_l2_duration" not in source.measured


@pytest.mark.bpf
@pytest.mark.parametrize("stages", ["tracepoint", "off"])
def test_what_was_switched_off_is_no_warning(stages: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source = KernelSource(CollectorConfig(stages=stages))
    source.log_missing()
    source.close()
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.getMessage().endswith(OFF)


@pytest.mark.bpf
def test_a_busy_ring_is_drained_while_it_fills() -> None:
    """The producer laps the ring many times; nothing may be lost, doubled or torn."""
    source = KernelSource(CollectorConfig(own_traffic=True, transfer_ring_bytes=1 << 18))
    calls = 30_000
    try:
        left, right = _pair()
        with left, right:
            sender = threading.Thread(target=_send, args=(left, right, calls))
            sender.start()
            parts = []
            while sender.is_alive():
                parts.append(source.drain().transfers)
                sender.join(0.001)  # gives up the interpreter lock, which the sender needs
            source.detach()
            parts.append(source.drain().transfers)
        transfers = np.concatenate(parts)
        counts = source.counts()[Kind.TRANSFER]
        assert counts[0] == len(transfers)
        assert counts[1] + counts[0] >= 2 * calls
        for cpu in np.unique(transfers["cpu"]):
            numbers = transfers["sequence"][transfers["cpu"] == cpu]
            assert (np.sort(numbers) == np.arange(len(numbers))).all()
    finally:
        source.close()


@pytest.mark.bpf
def test_connections_older_than_the_collector_are_announced() -> None:
    left, right = _pair()
    with left, right:
        port = right.getsockname()[1]
        source = KernelSource(CollectorConfig(own_traffic=True))
        try:
            source.detach()  # waits for the look at older sockets
            told = source.drain().connections
        finally:
            source.close()
    mine = told[(told["local_port"] == port) | (told["remote_port"] == port)]
    assert mine["event"].tolist() == [E.ANNOUNCED] * 2
    assert (mine["flags"] & 1).all()


@pytest.mark.bpf
def test_the_collectors_own_traffic_is_left_out() -> None:
    source = KernelSource(CollectorConfig())
    try:
        left, right = _pair()
        with left, right:
            port = right.getsockname()[1]
            left.sendall(b"x")
            right.recv(1)
        told = source.drain().connections
        assert not ((told["local_port"] == port) | (told["remote_port"] == port)).any()
    finally:
        source.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    return left, right


def _send(left: socket.socket, right: socket.socket, calls: int) -> None:
    for _ in range(calls):
        left.send(b"0123456789")
        right.recv(10)
