"""What the collector leaves out by the monitoring scope, and how it follows a changed file."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from collector.abi import ConnectionEvent, ProcessEvent
from collector.batches import Run
from collector.config import CollectorConfig
from collector.connections import GRACE_SWEEPS
from collector.containers import ContainerResolver
from collector.pipeline import Pipeline
from collector.source import KernelSource
from collector.watching import KernelScope, kernel_table
from schemas.clock import SystemClock
from schemas.events import Role as Told
from schemas.ledger import Ledger
from schemas.monitoring import EVERYTHING, End, MonitoringScope, ScopeFile
from schemas.telemetry import Health
from tests.collector.fakes import FakeSender, FakeSource
from tests.collector.records import connection, drained, transfer

if TYPE_CHECKING:
    from pathlib import Path

E = ConnectionEvent
REQUEST = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def ports_of(table: np.ndarray, name: str) -> list[int]:
    bits = np.unpackbits(table[name].view(np.uint8), bitorder="little")
    return [int(port) for port in np.flatnonzero(bits)]


def test_the_kernel_is_told_what_is_certain() -> None:
    here = End(node="node-1")
    assert kernel_table(EVERYTHING, here) is None
    rules: dict[str, Any] = {
        "exclude": [
            {"ports": ["9100-9101", 65535]},
            {"ports": [80], "nodes": ["node-1"]},
            {"ports": [81], "nodes": ["node-2"]},
            {"ports": [82], "namespaces": ["shop"]},
        ]
    }
    table = kernel_table(MonitoringScope.parse(rules), here)
    assert table is not None
    assert ports_of(table, "of_clients") == [9100, 9101, 65535]
    assert ports_of(table, "of_servers") == [80, 9100, 9101, 65535]


class _Maps:
    # The maps of a kernel, and how often each was written.
    def __init__(self) -> None:
        self.writes: list[str] = []
        self._keys: set[tuple[str, bytes]] = set()

    def update_map(self, map_name: str, key: bytes, value: bytes) -> None:
        self.writes.append(map_name)
        self._keys.add((map_name, key))

    def delete_from_map(self, map_name: str, key: bytes) -> bool:
        found = (map_name, key) in self._keys
        self._keys.discard((map_name, key))
        return found


def test_the_scope_has_another_number_only_when_it_is_another() -> None:
    maps = _Maps()
    scope = KernelScope(maps)
    scope.set(None)
    scope.refuse([])
    scope.admit([7])
    assert maps.writes == []
    scope.refuse([7])
    scope.admit([7, 8])
    scope.set(None)
    numbered = [name for name in maps.writes if name == "scope_number"]
    assert (len(numbered), maps.writes[-1]) == (3, "scope_number")


class _Pods:
    # Pods of this node, known when a test says so.
    def __init__(self) -> None:
        self.known: dict[str, End] = {}
        self.generation = 0
        self.started = False

    def start(self) -> None:
        self.started = True

    def stop(self, timeout_s: float) -> None:
        assert timeout_s == 0  # a look does not wait
        self.started = False

    def end_of(self, container: str) -> End | None:
        return self.known.get(container)

    def learn(self, container: str, namespace: str) -> None:
        self.known[container] = End(namespace, {}, "node-1")
        self.generation += 1


def make_pipeline(
    tmp_path: Path, source: Any, scope: ScopeFile, pods: Any = None, **settings: Any
) -> tuple[Pipeline, FakeSender]:
    config = CollectorConfig(drain_interval_s=0.001, watermark_margin_s=0, **settings)
    clock, sender = SystemClock(), FakeSender()
    resolver = ContainerResolver(tmp_path, None, clock)
    run = Run("node-1", "boot", "run")
    return (
        Pipeline(config, run, source, sender, resolver, clock, Health(), scope=scope, pods=pods),
        sender,
    )


def excluded(sender: FakeSender) -> dict[tuple[str, str], int]:
    ledger = Ledger()
    for batch in sender.batches:
        ledger.add(batch.header.ledger)
    assert ledger.open_counts() == {}
    return {
        (entry.stage, entry.kind): entry.dropped_count
        for entry in ledger.drain()
        if entry.reason == "excluded"
    }


def write(path: Path, rules: str) -> ScopeFile:
    path.write_text(f"scope: {rules}")
    return ScopeFile(path, "collector")


def test_connections_that_the_kernel_leaves_out_are_let_go(tmp_path: Path) -> None:
    path = tmp_path / "scope.yaml"
    source = FakeSource()
    pipeline, _ = make_pipeline(tmp_path, source, write(path, "{}"))
    ports = ((40000, 80, 1), (80, 40000, 2), (40000, 81, 1), (81, 40000, 2), (40000, 82, 1))
    rows = [
        connection(number, E.ANNOUNCED, local_port=local, remote_port=remote, role=role, pid=0)
        for number, (local, remote, role) in enumerate(ports, 1)
    ]
    source.drains = [drained(rows)]
    pipeline.drain()
    retired: list[int] = []
    pipeline.table.retire = lambda ids: retired.extend(ids.tolist())  # type: ignore[method-assign]
    pipeline.publish()
    path.write_text("scope: {exclude: [{ports: 80}, {ports: 81, nodes: node-1}]}")
    pipeline.publish()
    assert not source.scopes
    pipeline.publish()
    (table,) = source.scopes
    assert table is not None
    assert ports_of(table, "of_servers") == [80, 81]
    assert sorted(retired) == [1, 2, 4]


def test_processes_are_watched_until_their_pod_is_known_to_be_excluded(tmp_path: Path) -> None:
    path = tmp_path / "scope.yaml"
    shop, system = "a" * 64, "b" * 64
    for pid, container in ((7, shop), (8, system), (9, system)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"0::/docker/{container}\n")
    source, pods = FakeSource(), _Pods()
    rules = "{exclude: [{namespaces: [kube-*]}, {namespaces: [shop], ports: [80]}]}"
    pipeline, sender = make_pipeline(tmp_path, source, write(path, rules), pods)

    def moved(*pids: int) -> list[int]:
        events = [transfer(pid, size=pid, pid=pid) for pid in pids]
        source.drains = [drained([connection(p, E.ANNOUNCED, pid=p) for p in pids], events)]
        pipeline.drain()
        pipeline.publish()
        return sorted(sender.batches[-1].transfers.size.tolist())

    assert moved(7, 8, 9) == [7, 8, 9]
    assert pods.started
    pods.learn(shop, "shop")  # not excluded with every port, so others decide
    pods.learn(system, "kube-system")
    assert moved(7, 8, 9) == [7]
    assert source.refused == {8, 9}
    source.drains = [drained(process_rows=[{"event": ProcessEvent.EXIT, "pid": 9}])]
    pipeline.drain()
    path.write_text("scope: {exclude: [{namespaces: [kube-public]}]}")
    pipeline.publish()
    pipeline.publish()
    assert source.refused == set()
    assert moved(7, 8) == [7, 8]
    assert excluded(sender) == {("collector", "transfer"): 2}
    assert pods.started
    path.write_text("scope: {}")
    pipeline.publish()
    pipeline.publish()
    assert not pods.started


def test_what_is_left_out_is_so_once_whatever_becomes_of_other_pods(tmp_path: Path) -> None:
    path, system, count = tmp_path / "scope.yaml", "b" * 64, 1000
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "cgroup").write_text(f"0::/docker/{system}\n")
    source, pods = FakeSource(), _Pods()
    rules = "{exclude: [{namespaces: [kube-*]}]}"
    pipeline, _ = make_pipeline(tmp_path, source, write(path, rules), pods)
    source.drains = [drained([connection(n, E.ANNOUNCED, pid=8) for n in range(1, count + 1)])]
    pipeline.drain()
    told: list[set[int]] = []
    source.refuse = lambda pids: told.append(set(pids))  # type: ignore[method-assign]
    pods.learn(system, "kube-system")
    for number in range(50):
        pipeline.publish()
        pods.learn(f"{number}", "shop")
    assert [each for each in told if each] == [{8}]
    assert sorted(source.left) == list(range(1, count + 1))
    assert pipeline.table._ended_count == count


def test_the_id_of_a_process_that_ended_is_not_refused(tmp_path: Path) -> None:
    path = tmp_path / "scope.yaml"
    system, shop = "b" * 64, "a" * 64
    source, pods = FakeSource(), _Pods()
    rules = "{exclude: [{namespaces: [kube-*]}]}"
    pipeline, sender = make_pipeline(tmp_path, source, write(path, rules), pods)

    def run(pid: int, container: str) -> None:
        (tmp_path / str(pid)).mkdir(exist_ok=True)
        (tmp_path / str(pid) / "cgroup").write_text(f"0::/docker/{container}\n")

    def drain(number: int, pid: int, *ended: int, event: ConnectionEvent = E.ANNOUNCED) -> None:
        rows = [connection(number, event, pid=pid)] if number else []
        exits = [{"event": ProcessEvent.EXIT, "pid": each} for each in ended]
        source.drains = [drained(rows, process_rows=exits)]
        pipeline.drain()

    for pid in (7, 8, 9):
        run(pid, system)
    pods.learn(system, "kube-system")
    drain(1, 7, 7)  # connects and ends between two looks
    drain(2, 8)
    assert source.refused == {8}
    pipeline.publish()
    drain(3, 9, 8)  # its connections are known on, and may be another's now
    drain(4, 8, event=E.CLOSED)  # told late
    assert source.refused == {9}
    for number in range(5):
        pods.learn(f"{number}", "shop")
        pipeline.publish()
    assert source.refused == {9}
    run(8, shop)
    pods.learn(shop, "shop")
    source.drains = [drained(process_rows=[{"event": ProcessEvent.EXEC, "pid": 8}])]
    pipeline.drain()
    drain(5, 8)
    pipeline.publish()
    assert source.refused == {9}
    # Ended just before it was refused: the kernel had nothing to forget then.
    source.drains = [drained(process_rows=[{"event": ProcessEvent.EXIT, "pid": 9}])]
    admitted: list[int] = []
    source.admit = admitted.extend  # type: ignore[assignment]
    pipeline.drain()
    assert admitted == [9]
    assert excluded(sender) == {("collector", "close"): 1}


class _Talk:
    # A client and a server with one connection open, and as many calls as asked for.
    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._client = socket.create_connection(("127.0.0.1", self.port))
        self._server, _ = self._listener.accept()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._server.recv(1000):
            self._server.sendall(RESPONSE)

    def calls(self, count: int) -> None:
        for _ in range(count):
            self._client.sendall(REQUEST)
            assert self._client.recv(1000) == RESPONSE

    def close(self) -> None:
        self._client.close()
        self._thread.join()
        self._server.close()
        self._listener.close()


@pytest.mark.bpf
def test_rows_stop_and_begin_with_the_file_while_traffic_runs(tmp_path: Path) -> None:
    path = tmp_path / "podwire.yaml"
    source = KernelSource(CollectorConfig(own_traffic=True))
    pipeline, sender = make_pipeline(tmp_path, source, write(path, "{}"))

    def change(rules: str) -> None:
        path.write_text(f"scope: {rules}")
        for _ in range(3):
            pipeline.drain()
            pipeline.publish()

    talk, idle = _Talk(), _Talk()
    try:
        talk.calls(20)
        idle.calls(2)
        change(f"{{exclude: [{{ports: [{talk.port}, {idle.port}]}}]}}")
        talk.calls(30)
        for _ in range(GRACE_SWEEPS):
            pipeline.table.sweep()
        change("{exclude: [{ports: no}]}")  # wrong: the scope stays
        talk.calls(5)
        change("{exclude: [{ports: 1}]}")
        talk.calls(10)
        idle.calls(3)
        pipeline.drain()
        pipeline.publish()
        talk.close()
        idle.close()
        pipeline.finish()
    finally:
        source.close()
    calls_of_idle = 0
    bytes_moved = {Told.CLIENT: 0, Told.SERVER: 0}
    calls, transfers, closes = 0, 0, 0
    for batch in sender.batches:
        rows = batch.connections
        ours = (rows.local_port == talk.port) | (rows.remote_port == talk.port)
        for role in bytes_moved:
            chosen = (ours & (rows.role == role))[batch.transfers.connection]
            bytes_moved[role] += int(batch.transfers.size[chosen].sum())
        transfers += int((ours[batch.transfers.connection] & (batch.transfers.size > 0)).sum())
        calls += int(ours[batch.requests.connection].sum())
        theirs = (rows.local_port == idle.port) | (rows.remote_port == idle.port)
        calls_of_idle += int(theirs[batch.requests.connection].sum())
        closes += int(ours[batch.closes.connection].sum())
    one = len(REQUEST) + len(RESPONSE)
    assert bytes_moved == {Told.CLIENT: 30 * one, Told.SERVER: 30 * one}
    assert (transfers, calls, closes) == (30 * 4, 30 * 2, 2)
    assert calls_of_idle == (2 + 3) * 2
    assert excluded(sender) == {("kernel", "transfer"): 35 * 4}
