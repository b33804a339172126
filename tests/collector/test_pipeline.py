from __future__ import annotations

import itertools
import ssl
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collector.abi import (
    ConnectionEvent,
    ConnectionFlag,
    Direction,
    MeasuredFlag,
    PayloadFlag,
    ProcessEvent,
    ReadFigure,
    Role,
)
from collector.batches import Run
from collector.config import CollectorConfig
from collector.connections import GRACE_SWEEPS
from collector.conntrack import NOBODY
from collector.containers import ContainerResolver
from collector.pipeline import Pipeline
from collector.recording import Recorder, read_recording
from schemas.clock import ManualClock
from schemas.columns import UNMEASURED_U32
from schemas.errors import ConfigError
from schemas.events import NetInterface
from schemas.ledger import Ledger
from schemas.telemetry import REGISTRY, Health
from schemas.tls import Unreadable
from tests.collector.fakes import FakeSender, FakeSource
from tests.collector.records import PEER, V4, Talk, comm, connection, drained, transfer
from tests.collector.tls.test_hello import client_hello, server_hello
from tests.tls.servers import make_certificate

E = ConnectionEvent
ID = "ab" * 32
INTERFACES = (NetInterface(1, "lo", 65_536), NetInterface(2, "eth0", 1_500))


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def sender() -> FakeSender:
    return FakeSender()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def _pipeline(
    tmp_path: Path,
    source: FakeSource,
    sender: FakeSender,
    clock: ManualClock,
    recorder: Recorder | None = None,
    conntrack: Any = None,
    resolver: ContainerResolver | None = None,
    **settings: Any,
) -> Pipeline:
    config = CollectorConfig(drain_interval_s=0.001, **settings)
    resolver = resolver or ContainerResolver(tmp_path, None, clock)
    run = Run("node-1", "boot", "run-1", interfaces=INTERFACES)
    return Pipeline(config, run, source, sender, resolver, clock, Health(), recorder, conntrack)


def _process(proc: Path, pid: int, name: str) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "comm").write_text(f"{name}\n")
    (proc / str(pid) / "cgroup").write_text(f"0::/docker/{ID}\n")


def _ledger(sender: FakeSender) -> Ledger:
    ledger = Ledger()
    for batch in sender.batches:
        ledger.add(batch.header.ledger)
    return ledger


def test_events_go_from_the_rings_to_a_batch(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    _process(tmp_path, 7, "nginx")
    source.drains = [
        drained([connection(1, E.ANNOUNCED, pid=7)], [transfer(1, size=5)]),
        drained([connection(1, E.CLOSED, pid=7)], [transfer(1, size=6)]),
    ]
    pipeline = _pipeline(tmp_path, source, sender, clock)
    pipeline.drain()
    pipeline.drain()
    pipeline.publish()
    (batch,) = sender.batches
    assert batch.transfers.size.tolist() == [5, 6]
    assert batch.closes.rows == 1
    assert batch.names[batch.connections.container[0]] == ID
    assert batch.names[batch.connections.process[0]] == "nginx"
    assert batch.header.sequence == 0
    assert batch.header.anchor_unix_ns == clock.unix_ns()
    assert _ledger(sender).open_counts() == {}


def test_a_batch_carries_only_what_the_hooks_of_the_source_measure(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    source.measured = frozenset(("read_packet_count", "read_call_duration"))
    both = MeasuredFlag.MEASURED_COUNTERS | MeasuredFlag.MEASURED_STAGES
    figures = np.arange(17, dtype=np.uint32)
    source.drains = [
        drained([connection(1, E.ANNOUNCED)], [transfer(1, measured=both, figures=figures)])
    ]
    pipeline = _pipeline(tmp_path, source, sender, clock)
    pipeline.drain()
    pipeline.publish()
    (row,) = sender.batches[0].transfers.figures
    measured = np.flatnonzero(row != UNMEASURED_U32)
    assert measured.tolist() == [ReadFigure.READ_PACKET_COUNT, ReadFigure.READ_CALL_DURATION]
    assert row[measured].tolist() == figures[measured].tolist()


def test_an_empty_interval_still_sends_its_watermark(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    pipeline = _pipeline(tmp_path, source, sender, clock, watermark_margin_s=0.25)
    for _ in range(2):
        pipeline.drain()
        pipeline.publish()
        clock.advance(1)
    first, second = (batch.header for batch in sender.batches)
    assert second.watermark_ns - first.watermark_ns == 10**9
    assert second.watermark_ns == clock.unix_ns() - 10**9 - 250_000_000
    assert [first.sequence, second.sequence] == [0, 1]


def test_a_full_queue_costs_events_and_says_so_later(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    source.drains = [drained([connection(1, E.ANNOUNCED)], [transfer(1), transfer(1)])]
    source.ring_full = 5
    pipeline = _pipeline(tmp_path, source, sender, clock)
    sender.full = True
    pipeline.drain()
    pipeline.publish()
    sender.full = False
    pipeline.drain()
    pipeline.publish()
    (batch,) = sender.batches
    assert batch.header.sequence == 0
    found = {
        (entry.stage, entry.kind, entry.reason): (entry.in_count, entry.dropped_count)
        for entry in batch.header.ledger
    }
    assert found["collector", "transfer", ""] == (2, 0)
    assert found["collector", "transfer", "undelivered"] == (0, 2)
    assert found["kernel", "transfer", "ring_full"] == (0, 5)
    assert _ledger(sender).open_counts() == {}


def test_a_batch_that_is_lost_on_the_way_is_told_later(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    source.drains = [drained([connection(1, E.ANNOUNCED)], [transfer(1)]), drained()]
    pipeline = _pipeline(tmp_path, source, sender, clock)
    sender.losing = {0}
    for _ in range(2):
        pipeline.drain()
        pipeline.publish()
    (batch,) = sender.batches
    assert batch.header.sequence == 1
    assert any(entry.reason == "undelivered" for entry in batch.header.ledger)


def test_the_last_batch_of_a_stop_is_final_and_the_books_are_closed(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    source.drains = [
        drained([connection(1, E.ANNOUNCED)], [transfer(1)]),
        drained([], [transfer(1), transfer(99)]),
    ]
    stop = threading.Event()
    stop.set()
    _pipeline(tmp_path, source, sender, clock).run(stop)
    assert source.detached
    assert [batch.header.final for batch in sender.batches] == [False, True]
    assert sum(batch.transfers.rows for batch in sender.batches) == 2
    ledger = _ledger(sender)
    assert ledger.open_counts() == {}
    entries = {(entry.stage, entry.kind, entry.reason): entry for entry in ledger.drain()}
    assert entries["kernel", "transfer", ""].out_count == 3
    assert entries["collector", "transfer", ""].in_count == 3
    assert entries["collector", "transfer", "unknown_connection"].dropped_count == 1


def test_a_stop_without_kafka_ends_and_the_final_batch_tells_of_the_loss(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    source.drains = [drained([connection(1, E.ANNOUNCED)], [transfer(1)])]
    sender.unreachable = True
    pipeline = _pipeline(tmp_path, source, sender, clock, stop_timeout_s=0.0)
    pipeline.drain()
    pipeline.publish()
    pipeline.finish()
    assert sender.undelivered == 3
    lost = [entry for entry in sender.take_failed() if entry.reason == "undelivered"]
    assert [(entry.kind, entry.dropped_count) for entry in lost] == [("transfer", 1)]


def test_ended_connections_leave_the_table(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    source.drains = [
        drained([connection(1, E.ANNOUNCED), connection(1, E.CLOSED)]),
        drained([], [transfer(1)]),  # written before the close, drained after it
    ]
    pipeline = _pipeline(tmp_path, source, sender, clock)
    for expected in (*[1] * GRACE_SWEEPS, 0):
        pipeline.drain()
        pipeline.publish()
        assert len(pipeline.table) == expected
    assert sum(batch.transfers.rows for batch in sender.batches) == 1


def test_a_connection_without_owner_belongs_to_who_uses_it(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    _process(tmp_path, 9, "redis")
    source.drains = [
        drained([connection(1, E.ANNOUNCED, pid=0, cgroup_id=0)]),
        drained([], [transfer(1, pid=9)]),
    ]
    pipeline = _pipeline(tmp_path, source, sender, clock)
    for _ in range(2):
        pipeline.drain()
    pipeline.publish()
    (batch,) = sender.batches
    assert batch.connections.pid.tolist() == [9]
    assert batch.names[batch.connections.process[0]] == "redis"
    assert batch.names[batch.connections.container[0]] == ID


def test_a_cgroup_too_new_for_the_last_walk_is_found_before_the_batch_leaves(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    cgroups = tmp_path / "cgroup"
    (cgroups / "docker" / ID).mkdir(parents=True)
    resolver = ContainerResolver(tmp_path, cgroups, clock)
    pipeline = _pipeline(tmp_path, source, sender, clock, resolver=resolver)
    resolver.learn([1])
    clock.advance(0.05)
    late = cgroups / "docker" / ID.replace("a", "c")
    late.mkdir()
    inode = late.stat().st_ino
    # Its process is gone already: only the cgroup tells.
    source.drains = [
        drained([connection(1, E.CONNECTED, pid=4711, cgroup_id=inode, comm=comm(b"curl"))])
    ]
    pipeline.drain()
    clock.advance(0.06)
    pipeline.publish()
    (batch,) = sender.batches
    assert batch.names[batch.connections.container[0]] == late.name
    assert batch.names[batch.connections.process[0]] == "curl"
    walks = resolver.walks
    for _ in range(5):
        clock.advance(1)
        pipeline.drain()
        pipeline.publish()
    assert resolver.walks == walks


@pytest.mark.parametrize("begun", [{"error": 111}, {"event": E.ANNOUNCED}], ids=["refused", "old"])
def test_nothing_is_told_of_whose_container_a_later_walk_may_find(
    tmp_path: Path,
    source: FakeSource,
    sender: FakeSender,
    clock: ManualClock,
    begun: dict[str, Any],
) -> None:
    cgroups = tmp_path / "cgroup"
    late = cgroups / "docker" / ID
    cgroups.mkdir()
    resolver = ContainerResolver(tmp_path, cgroups, clock)
    pipeline = _pipeline(tmp_path, source, sender, clock, resolver=resolver)
    resolver.learn([1])
    late.mkdir(parents=True)
    record = connection(1, E.CONNECTED, pid=4711, cgroup_id=late.stat().st_ino)
    for name, value in begun.items():
        record[name] = value
    source.drains = [drained([record], [transfer(1)]), drained()]
    for _ in range(2):
        pipeline.drain()
        pipeline.publish()
        clock.advance(1)
    first, second = sender.batches
    assert (first.connections.rows, first.transfers.rows) == (0, 0)
    assert (second.connections.rows, second.transfers.rows) == (1, 1)
    assert second.names[second.connections.container[0]] == ID
    assert _ledger(sender).open_counts() == {}


def test_an_excluded_run_is_counted_and_left_out(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    for pid, environment in ((7, b"A=1\0PODWIRE_RUN=50\0"), (8, b"PODWIRE_RUN=501"), (50, b"")):
        _process(tmp_path, pid, "python")
        (tmp_path / str(pid) / "environ").write_bytes(environment)
    source.drains = [
        drained(
            [
                *(connection(pid, E.CONNECTED, pid=pid) for pid in (7, 8, 9, 50)),
                connection(7, E.CLOSED, pid=7),
                connection(8, E.CLOSED, pid=8),
            ],
            [transfer(7, pid=7), transfer(8, pid=8), transfer(50, pid=50), transfer(50, pid=50)],
        )
    ]
    pipeline = _pipeline(tmp_path, source, sender, clock, excluded_run=50)
    pipeline.drain()
    pipeline.publish()
    (batch,) = sender.batches
    assert sorted(batch.connections.pid.tolist()) == [8, 9]  # 9 is gone, so nobody knows
    assert (batch.opens.rows, batch.closes.rows, batch.transfers.rows) == (2, 1, 1)
    ledger = _ledger(sender)
    assert ledger.open_counts() == {}
    dropped = {e.kind: e.dropped_count for e in ledger.drain() if e.reason == "excluded"}
    assert dropped == {"open": 2, "close": 1, "transfer": 3}


def test_an_exec_makes_the_next_connection_of_the_process_look_again(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    _process(tmp_path, 7, "sh")
    source.drains = [drained([connection(1, E.ANNOUNCED, pid=7)], [transfer(1)])]
    pipeline = _pipeline(tmp_path, source, sender, clock)
    pipeline.drain()
    (tmp_path / "7" / "comm").write_text("curl\n")
    source.drains = [
        drained(
            [connection(2, E.ANNOUNCED, pid=7)],
            [transfer(2)],
            [{"pid": 7, "event": ProcessEvent.EXEC}],
        )
    ]
    pipeline.drain()
    pipeline.publish()
    (batch,) = sender.batches
    names = {
        int(row): batch.names[number]
        for row, number in zip(batch.connections.id, batch.connections.process, strict=True)
    }
    assert names == {1: "sh", 2: "curl"}
    assert _ledger(sender).open_counts() == {}


class _Backends:
    """Stands for conntrack: says who is behind a port of the service."""

    def __init__(self, **backends: tuple[bytes, int]) -> None:
        self.backends = {int(name.removeprefix("port_")): peer for name, peer in backends.items()}
        self.calls: list[str] = []

    def poll(self) -> None:
        self.calls.append("poll")

    def follow(self, rows: np.ndarray[Any, Any]) -> None:
        self.calls.append("follow")

    def forget(self, pids: list[int]) -> None:
        self.calls.append(f"forget {pids}")
        if pids:
            self.backends.clear()

    def peers(self, rows: np.ndarray[Any, Any]) -> list[tuple[bytes, int]]:
        return [self.backends.get(port, NOBODY) for port in rows["remote_port"].tolist()]


def test_translated_connections_keep_their_peer(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    backend = bytes(range(16)), 8080
    conntrack = _Backends(port_80=backend)
    pipeline = _pipeline(tmp_path, source, sender, clock, conntrack=conntrack)
    source.drains = [
        drained(
            [
                connection(1, E.ANNOUNCED, remote_port=80),
                connection(2, E.ANNOUNCED, remote_port=81),
            ],
            [transfer(1), transfer(2)],
            [{"pid": 7, "event": ProcessEvent.EXEC}, {"pid": 8, "event": ProcessEvent.EXIT}],
        ),
        drained([connection(1, E.CLOSED, remote_port=80)], [transfer(1)]),
    ]
    for _ in range(2):
        pipeline.drain()
        pipeline.publish()
    # What a process did at last is translated by the namespace that only it leads to.
    wanted = ["follow", "poll", "forget [8]", "follow", "poll", "forget []"]
    assert conntrack.calls == wanted
    first, second = (batch.connections for batch in sender.batches)
    by_id = dict(zip(first.id.tolist(), range(2), strict=True))
    assert bytes(first.translated_address[by_id[1]]) == backend[0]
    assert first.translated_port[by_id[1]] == 8080
    assert not first.translated_address[by_id[2]].any()
    assert first.translated_port[by_id[2]] == 0
    assert bytes(second.translated_address[0]) == backend[0]


def test_much_is_published_before_its_time(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    pipeline = _pipeline(tmp_path, source, sender, clock, batch_max_events=4)
    stop = threading.Event()
    source.drains = [drained([connection(1, E.ANNOUNCED)], [transfer(1)] * 5)]

    def stop_when_sent() -> None:
        if sender.batches:
            stop.set()

    sender.poll = stop_when_sent  # type: ignore[method-assign]
    pipeline.run(stop)
    # The manual clock stood still: the interval of a second had not passed.
    assert sender.batches[0].transfers.rows + sender.batches[1].transfers.rows == 5


def test_a_set_clock_moves_later_events_but_not_the_watermark_back(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    pipeline = _pipeline(tmp_path, source, sender, clock)
    pipeline.drain()
    pipeline.publish()
    clock.now_unix_ns -= 3600 * 10**9
    pipeline.read_clocks()
    source.drains = [drained([connection(1, E.CONNECTED, end_ns=clock.monotonic_ns())])]
    pipeline.drain()
    pipeline.publish()
    first, second = sender.batches
    assert second.opens.end_ns.tolist() == [clock.unix_ns()]
    assert second.header.watermark_ns == first.header.watermark_ns


def test_a_clock_that_jumps_is_wrong_for_two_seconds_at_most(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    # As after a suspend: the monotonic clock has stood still.
    pipeline = _pipeline(tmp_path, source, sender, clock)
    stop = threading.Event()
    loops = 0

    def turn() -> None:
        nonlocal loops
        loops += 1
        clock.advance(0.25)
        if loops == 8:
            clock.now_unix_ns += 3600 * 10**9
        if loops == 16:
            moment = clock.monotonic_ns()
            source.drains = [drained([connection(1, E.CONNECTED, end_ns=moment)])]
            stop.set()

    sender.poll = turn  # type: ignore[method-assign]
    pipeline.run(stop)
    (opened,) = (batch.opens for batch in sender.batches if batch.opens.rows)
    assert opened.end_ns.tolist() == [clock.unix_ns()]


def test_what_is_sent_is_recorded(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    recorder = Recorder(tmp_path / "file")
    source.drains = [drained([connection(1, E.ANNOUNCED)], [transfer(1)])]
    pipeline = _pipeline(tmp_path, source, sender, clock, recorder)
    pipeline.drain()
    pipeline.finish()
    recorder.close()
    assert list(read_recording(tmp_path / "file")) == sender.messages
    assert len(sender.messages) == 2


def test_a_full_disk_ends_the_recording_and_not_the_watching(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    recorder = Recorder(Path("/dev/full"))
    rows = [transfer(1)] * 5000
    source.drains = [drained([connection(1, E.ANNOUNCED)], rows), drained([], rows)]
    pipeline = _pipeline(tmp_path, source, sender, clock, recorder)
    for _ in range(2):
        pipeline.drain()
        pipeline.publish()
    assert sum(batch.transfers.rows for batch in sender.batches) == 10_000
    with pytest.raises(ConfigError, match="No space left"):
        recorder.close()


def _exported(stage: str, kind: str, outcome: str) -> float:
    labels = {"stage": stage, "kind": kind, "outcome": outcome}
    return REGISTRY.get_sample_value("podwire_ledger_total", labels) or 0.0


def test_what_is_told_again_is_counted_once_in_the_metrics(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    outcomes = ("in", "out", "undelivered")
    before = [_exported("collector", "transfer", outcome) for outcome in outcomes]
    source.drains = [drained([connection(1, E.ANNOUNCED)], [transfer(1)] * 3), drained()]
    pipeline = _pipeline(tmp_path, source, sender, clock)
    sender.losing = {0}
    for _ in range(3):
        pipeline.drain()
        pipeline.publish()
    after = [_exported("collector", "transfer", outcome) for outcome in outcomes]
    # out: handed to Kafka; undelivered: and then lost
    assert [new - old for new, old in zip(after, before, strict=True)] == [3, 3, 3]


GET = b"GET /cart?card=1234 HTTP/1.1\r\nHost: shop\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_messages_become_requests(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    pipeline = _pipeline(tmp_path, source, sender, clock)
    talk = Talk(1)
    source.drains = [
        drained([connection(1, E.ACCEPTED, pid=7, role=Role.SERVER)], payloads=[talk.read(GET)]),
        drained(payloads=[talk.written(OK)]),
    ]
    pipeline.drain()
    pipeline.drain()
    pipeline.publish()
    (batch,) = sender.batches
    names, requests = batch.names, batch.requests
    assert requests.rows == 1
    assert [
        names[int(column[0])] for column in (requests.method, requests.path, requests.host)
    ] == [
        "GET",
        "/cart",
        "shop",
    ]
    assert batch.connections.id[int(requests.connection[0])] == 1
    assert (int(requests.status[0]), int(requests.response_body_size[0])) == (200, 2)
    told = {(entry.stage, entry.kind): entry for entry in batch.header.ledger}
    for key, count in ((("kernel", "payload"), 2), (("collector", "payload"), 2)):
        assert (told[key].in_count, told[key].out_count) == (count, count)
    assert told["collector", "request"].out_count == 1
    assert batch.header.last_event_ns >= int(requests.end_ns[0])
    assert source.verdicts == []


def test_whom_a_client_asks_for_and_the_version_are_in_the_batch(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    """And nothing of a connection that was never announced."""
    source.reasons[7] = Unreadable.JAVA
    pipeline = _pipeline(tmp_path, source, sender, clock)
    pem = make_certificate(tmp_path)
    talk, stranger = Talk(1), Talk(9)
    answer = server_hello(*pem, ssl.TLSVersion.TLSv1_2)
    flags = {"flags": PayloadFlag.HELLO}
    source.drains = [
        drained(
            [
                connection(1, E.ACCEPTED, pid=7, role=Role.SERVER),
                connection(2, E.ACCEPTED, pid=7, role=Role.SERVER),
            ],
            payloads=[
                talk.read(client_hello("shop.example"), **flags),
                stranger.read(client_hello("stranger.example"), **flags),
                talk.written(answer, **flags),
            ],
        ),
    ]
    pipeline.drain()
    pipeline.publish()
    (batch,) = sender.batches
    found = batch.connections
    asked_for = [batch.names[number] for number in found.server_name]
    rows = zip(found.id, found.flags, found.tls_version, asked_for, found.unreadable, strict=True)
    assert sorted(rows) == [
        (1, ConnectionFlag.TLS, 0x0303, "shop.example", Unreadable.JAVA),
        (2, 0, 0, "", 0),
    ]
    assert b"stranger" not in sender.messages[0]
    told = {(entry.stage, entry.kind): entry for entry in batch.header.ledger}
    assert told["collector", "payload"].out_count == 3


@pytest.mark.parametrize(
    ("reason", "answer", "says", "waits"),
    [
        (Unreadable.NOTHING_SEEN, True, True, True),
        (Unreadable.NOTHING_SEEN, True, False, True),
        (Unreadable.UNKNOWN, True, True, True),
        (Unreadable.JAVA, False, False, True),
        (Unreadable.JAVA, True, False, False),
    ],
)
def test_a_batch_does_not_part_a_handshake_from_what_is_said_next(
    tmp_path: Path,
    source: FakeSource,
    sender: FakeSender,
    clock: ManualClock,
    reason: Unreadable,
    answer: bool,
    says: bool,
    waits: bool,
) -> None:
    """It waits once, unless all that can be known of it is; no other connection does."""
    source.reasons = {7: reason} if reason else {}
    pipeline = _pipeline(tmp_path, source, sender, clock)
    talk, is_hello = Talk(1), {"flags": PayloadFlag.HELLO}
    hellos = [
        talk.written(client_hello("shop.example"), **is_hello),
        talk.read(server_hello(*make_certificate(tmp_path), ssl.TLSVersion.TLSv1_2), **is_hello),
    ]
    said = Talk(1, first=0).written(
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", flags=PayloadFlag.CLEAR | PayloadFlag.BEGUN
    )
    source.drains = [
        drained(
            [connection(each, E.CONNECTED, pid=7, role=Role.CLIENT) for each in (1, 2)],
            [transfer(1, size=500, end_ns=2_000), transfer(2, size=1, end_ns=3_000)],
            payloads=hellos[: 1 + answer],
        ),
        drained(
            [connection(1, E.CLOSED, pid=7)],
            [transfer(1, size=60, end_ns=9_000)],
            payloads=[said] if says else [],
        ),
    ]
    for _ in range(3):
        pipeline.drain()
        clock.advance(1)
        pipeline.publish()
    told = [batch.transfers.size.tolist() for batch in sender.batches]
    assert told == ([[1], [500, 60], []] if waits else [[500, 1], [60], []])
    assert sender.batches[0].header.watermark_ns < sender.batches[-1].header.watermark_ns
    if waits:
        first = int(sender.batches[1].transfers.end_ns[0])
        assert sender.batches[0].header.watermark_ns < first
    last = sender.batches[1].connections
    assert bool(last.flags[0] & ConnectionFlag.READABLE) == says
    assert int(last.unreadable[0]) in ((0, 255) if says else (reason,))


def test_a_silent_connection_waits_for_what_it_says_first_and_no_minute_for_it(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    """All of it is told then, as readable."""
    source.reasons = {7: Unreadable.NOTHING_SEEN}
    pipeline = _pipeline(tmp_path, source, sender, clock)
    began_ns = clock.monotonic_ns()
    talk, is_hello = Talk(1), {"flags": PayloadFlag.HELLO}
    hello = talk.written(client_hello("shop.example"), **is_hello)
    said = Talk(1, first=0).written(
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", flags=PayloadFlag.CLEAR | PayloadFlag.BEGUN
    )
    begun = [connection(1, E.CONNECTED, pid=7, role=Role.CLIENT, end_ns=began_ns)]
    first, second = (transfer(1, size=size, end_ns=began_ns + 5) for size in (500, 60))
    source.drains = [drained(begun, [first], payloads=[hello]), *(drained() for _ in range(5))]
    source.drains.append(drained([], [second], payloads=[said]))
    for _ in range(7):
        pipeline.drain()
        clock.advance(1)
        pipeline.publish()
    told = [batch.transfers.size.tolist() for batch in sender.batches]
    assert told == [[]] * 6 + [[500, 60]]
    connections_ = sender.batches[-1].connections
    assert connections_.flags.tolist() == [ConnectionFlag.TLS | ConnectionFlag.READABLE]
    watermarks = [batch.header.watermark_ns for batch in sender.batches]
    assert watermarks[0] < int(sender.batches[-1].transfers.end_ns[0]) < watermarks[5]
    assert all(after > before for before, after in itertools.pairwise(watermarks[2:]))
    assert _ledger(sender).open_counts() == {}


def test_queries_are_kept_only_if_wanted(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    pipeline = _pipeline(tmp_path, source, sender, clock, keep_query=True)
    talk = Talk(1)
    payloads = [talk.read(GET), talk.written(OK)]
    source.drains = [drained([connection(1, E.ACCEPTED, role=Role.SERVER)], payloads=payloads)]
    pipeline.drain()
    pipeline.publish()
    batch = sender.batches[0]
    assert batch.names[int(batch.requests.path[0])] == "/cart?card=1234"
    assert b"1234" in sender.messages[0]


def test_calls_without_an_answer_hold_the_watermark_back_until_they_are_told(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    pipeline = _pipeline(tmp_path, source, sender, clock)
    talk = Talk(1)
    closed = connection(1, E.CLOSED, end_ns=50_000)
    source.drains = [
        drained([connection(1, E.ACCEPTED, role=Role.SERVER)], payloads=[talk.read(GET)]),
        drained([closed]),
    ]
    clock.advance(3600)
    pipeline.drain()
    pipeline.drain()
    pipeline.publish()
    pipeline.drain()
    pipeline.publish()
    first, second = sender.batches
    end_ns = int(second.requests.end_ns[0])
    assert second.requests.outcome.tolist() == [2]
    assert first.requests.rows == 0
    assert first.header.watermark_ns < end_ns <= second.header.watermark_ns
    assert b"card" not in b"".join(sender.messages)


def test_what_the_kernel_should_leave_out_is_told_at_once(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    pipeline = _pipeline(tmp_path, source, sender, clock)
    talk, unknown = Talk(1), Talk(2)
    payloads = [talk.read(b"SSH-2.0-OpenSSH\r\n"), unknown.read(GET)]
    source.drains = [drained([connection(1, E.ACCEPTED, role=Role.SERVER)], payloads=payloads)]
    pipeline.drain()
    assert [verdict.is_unwanted for verdict in source.verdicts] == [True]
    pipeline.publish()
    dropped = {
        (entry.kind, entry.reason): entry.dropped_count
        for entry in sender.batches[0].header.ledger
        if entry.reason
    }
    assert dropped == {("payload", "unknown_connection"): 1}


def test_interfaces_are_told_now_and_then(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    pipeline = _pipeline(tmp_path, source, sender, clock)
    for _ in range(121):
        pipeline.drain()
        pipeline.publish()
    told = [number for number, batch in enumerate(sender.batches) if batch.header.interfaces]
    assert told == [0, 60, 120]
    assert sender.batches[60].header.interfaces == list(INTERFACES)


def test_what_a_fresh_client_does_waits_for_its_server_within_the_node(
    tmp_path: Path, source: FakeSource, sender: FakeSender, clock: ManualClock
) -> None:
    for pid in (7, 8):
        _process(tmp_path, pid, "python")
    server = {"pid": 8, "role": Role.SERVER, "local_address": np.frombuffer(PEER, np.uint8)}
    client = {"remote_address": np.frombuffer(V4, np.uint8), "remote_port": 40_000}
    begun = connection(1, E.CONNECTED, pid=7, role=Role.CLIENT, local_port=40_000, remote_port=8080)
    pipeline = _pipeline(tmp_path, source, sender, clock)
    source.drains = [drained([connection(9, E.ACCEPTED, **server, remote_port=1)]), drained()]
    for _ in range(2):
        pipeline.drain()
        pipeline.publish()
        clock.advance(1)
    begun["end_ns"] = clock.monotonic_ns() - 500_000_000
    wrote = transfer(1, direction=Direction.WRITE, end_ns=begun["end_ns"])
    accepted = connection(2, E.ACCEPTED, **server, **client, end_ns=clock.monotonic_ns())
    source.drains = [drained([begun], [wrote]), drained([accepted]), drained()]
    for _ in range(3):
        pipeline.drain()
        pipeline.publish()
        clock.advance(1)
    first, second, third = sender.batches[2:]
    assert (first.opens.rows, first.transfers.rows) == (0, 0)
    assert (second.opens.rows, second.transfers.rows) == (2, 1)
    assert first.header.watermark_ns < second.header.first_event_ns < third.header.watermark_ns
    assert [second.names[place] for place in second.connections.remote_container] == [ID, ID]
    assert sorted(second.connections.opened_ns) == sorted(second.opens.end_ns)
    assert _ledger(sender).open_counts() == {}
