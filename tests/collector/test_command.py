from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from collector.recording import read_recording
from schemas.events import Direction, OpenKind, decode_batch
from schemas.ledger import Ledger
from schemas.topics import EVENTS

if TYPE_CHECKING:
    from schemas.events import EventBatch
    from tests.support.kafka import KafkaBroker

ROOT = Path(__file__).parents[2]
NOBODY = "127.0.0.1:9"


def _start(*arguments: str, without: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deploy.cli", "collector", *arguments]
    if without:
        command = ["capsh", f"--drop={without}", "--", "-c", 'exec "$@"', "sh", *command]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _fails(*arguments: str, without: str = "") -> str:
    process = _start(*arguments, without=without)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    (line,) = errors.strip().splitlines()
    return line


def _until(process: subprocess.Popen[str], said: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if said in line:
            return
    raise AssertionError("the collector ended")


def _until_watching(process: subprocess.Popen[str]) -> None:
    _until(process, "watching as node")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--replay", "/does/not/exist"), "--replay: /does/not/exist"),
        (("--replay", "/etc/hostname"), "no podwire recording"),
        (("--object-file", "/does/not/exist"), "collector.object_file"),
        (("--drain-interval-s", "7"), "collector.drain_interval_s"),
        (("--proc-path", "/does/not/exist"), "collector.proc_path"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: tuple[str, ...], expected: str) -> None:
    assert expected in _fails(*arguments)


@pytest.mark.bpf
def test_a_missing_capability_is_said_in_one_line() -> None:
    line = _fails(without="cap_bpf,cap_perfmon,cap_sys_admin")
    assert "run as root or with CAP_BPF and CAP_PERFMON" in line


def test_a_port_in_use_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in _fails("--telemetry-port", str(port))


@pytest.mark.bpf
def test_without_kafka_it_starts_keeps_on_and_stops_cleanly() -> None:
    process = _start("--bootstrap-servers", NOBODY, "--stop-timeout-s", "0.5")
    _until_watching(process)
    _until(process, "does not answer; batches wait")
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "does not answer" not in errors  # that was once enough
    assert "not taken by kafka" in errors
    assert "Traceback" not in errors


@pytest.mark.bpf
@pytest.mark.slow
def test_traffic_reaches_kafka_exactly_and_can_be_replayed(
    kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    if EVENTS.name in kafka_broker.topics():
        kafka_broker.delete_topics(EVENTS.name)
    kafka_broker.create_topic(EVENTS.name, partitions=1)
    recording = tmp_path / "run.podwire.gz"
    process = _start(
        *("--bootstrap-servers", kafka_broker.bootstrap_servers),
        *("--record", str(recording), "--node", "node-1", "--publish-interval-s", "0.2"),
    )
    _until_watching(process)
    port, sent = _traffic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors

    values = [message.value() for message in kafka_broker.consume_all(EVENTS.name)]
    assert values == list(read_recording(recording))
    batches = [decode_batch(value) for value in values]
    assert [batch.header.sequence for batch in batches] == list(range(len(batches)))
    assert [batch.header.final for batch in batches][-2:] == [False, True]
    ledger = Ledger()
    for batch in batches:
        ledger.add(batch.header.ledger)
    assert ledger.open_counts() == {}
    totals = {(entry.stage, entry.kind): entry for entry in ledger.drain() if not entry.reason}
    for kind in ("open", "close", "transfer", "connection"):
        kernel, collector = totals["kernel", kind], totals["collector", kind]  # type: ignore[index]
        assert kernel.in_count == kernel.out_count == collector.in_count == collector.out_count
    assert _seen(batches, port) == {
        "connect": len(sent),
        "accept": len(sent),
        "close": 2 * len(sent),
        "written": sum(sent),
        "read": sum(sent),
    }
    mine = os.getpid()
    assert any(mine in batch.connections.pid for batch in batches)

    replayed = _start(
        *("--bootstrap-servers", kafka_broker.bootstrap_servers),
        *("--replay", str(recording), "--replay-pace", "fast"),
    )
    _, errors = replayed.communicate(timeout=60)
    assert replayed.returncode == 0, errors
    again = [decode_batch(message.value()) for message in kafka_broker.consume_all(EVENTS.name)]
    again = again[len(batches) :]
    assert _seen(again, port) == _seen(batches, port)
    assert again[0].header.run_id != batches[0].header.run_id
    assert abs(time.time_ns() - again[-1].header.anchor_unix_ns) < 60 * 10**9


def _traffic() -> tuple[int, list[int]]:
    sizes = [1 + number % 700 for number in range(1500)]
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        port = listener.getsockname()[1]
        for size in sizes:
            with socket.create_connection(("127.0.0.1", port)) as client:
                server, _ = listener.accept()
                with server:
                    client.sendall(b"x" * size)
                    client.shutdown(socket.SHUT_WR)
                    while server.recv(256):
                        pass
    return port, sizes


def _seen(batches: list[EventBatch], port: int) -> dict[str, int]:
    seen: Counter[str] = Counter()
    for batch in batches:
        rows = batch.connections
        mine = (rows.local_port == port) | (rows.remote_port == port)
        opens = batch.opens.kind[mine[batch.opens.connection]]
        seen["connect"] += int((opens == OpenKind.CONNECT).sum())
        seen["accept"] += int((opens == OpenKind.ACCEPT).sum())
        seen["close"] += int(mine[batch.closes.connection].sum())
        moved = mine[batch.transfers.connection]
        for name, direction in (("written", Direction.WRITE), ("read", Direction.READ)):
            chosen = moved & (batch.transfers.direction == direction)
            seen[name] += int(batch.transfers.size[chosen].sum())
    return dict(seen)
