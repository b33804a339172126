"""The worker as a process on a real broker: killed, doubled, fed nonsense."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from schemas.config import KafkaConfig
from schemas.entities import decode_dead_letter, decode_entity
from schemas.errors import ConfigError
from schemas.events import decode_batch, encode_batch
from schemas.topics import ACCESS_LOG, DEAD_LETTER, ENTITIES, EVENTS, METRICS
from streams.broker import ensure_topics
from tests.streams.build import SECOND_NS, BatchBuilder
from tests.streams.fakes import counted_blocks, totals

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from schemas.events import EventBatch
    from tests.support.kafka import KafkaBroker

pytestmark = pytest.mark.slow

NODES = ("node-a", "node-b", "node-c", "node-d")
PARTITIONS = 2


class Workers:
    """Worker processes; none outlives the test."""

    def __init__(self, broker: KafkaBroker, directory: Path) -> None:
        self._broker = broker
        self._directory = directory
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [
            *(sys.executable, "-m", "deploy.cli", "streams"),
            *("--bootstrap-servers", self._broker.bootstrap_servers),
            *("--session-timeout-s", "3", *options),
        ]
        with (self._directory / f"worker-{len(self._running)}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self._running.append(process)
        return process

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self._directory.glob("*.log")))

    def stop(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


@contextmanager
def workers_of(broker: KafkaBroker, directory: Path) -> Iterator[Workers]:
    workers = Workers(broker, directory)
    try:
        yield workers
    finally:
        workers.stop()


class Traffic:
    """Batches of four nodes on two partitions, ten minutes long, and what they sum up to."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._now = time.time_ns() // (60 * SECOND_NS) * 60 * SECOND_NS - 900 * SECOND_NS
        self._sequence = dict.fromkeys(NODES, 0)
        self.bytes = 0
        self.connects = 0

    def second(self, *, step: int = 5, final: bool = False) -> list[tuple[int, bytes]]:
        """(partition, message) of each node for the next seconds."""
        self._now += step * SECOND_NS
        messages = []
        for place, name in enumerate(NODES):
            builder = BatchBuilder(
                node=name, sequence=self._sequence[name], watermark_ns=self._now, final=final
            )
            self._sequence[name] += 1
            for _ in range(self._chance.randrange(5)):
                row = builder.connection(
                    f"10.0.0.{place}:{self._chance.randrange(40_000, 50_000)}", "10.9.9.9:80"
                )
                at = self._now - self._chance.randrange(8 * SECOND_NS)
                size = self._chance.randrange(1, 10_000)
                builder.open(row, at=at, duration=1000).transfer(row, size, at=at, write=True)
                self.bytes += size
                self.connects += 1
            messages.append((place % PARTITIONS, encode_batch(builder.batch())))
        return messages


def produce(broker: KafkaBroker, messages: list[tuple[int, bytes]]) -> None:
    for partition in range(PARTITIONS):
        broker.produce(EVENTS.name, [m for p, m in messages if p == partition], partition=partition)


def go_on(broker: KafkaBroker, traffic: Traffic, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        produce(broker, traffic.second())
        time.sleep(0.1)


def stored(broker: KafkaBroker) -> Counter[tuple[Any, ...]]:
    blocks = []
    for partition in range(PARTITIONS):
        messages = [m for m in broker.consume_all(METRICS.name) if m.partition() == partition]
        blocks += counted_blocks(m.value() for m in messages)
    return totals(blocks, "service_relation")


def figure(sums: Counter[tuple[Any, ...]], name: str) -> int:
    return sum(value for place, value in sums.items() if place[-1] == name)


def wait_for(condition: Callable[[], bool], timeout_s: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


def all_stored(broker: KafkaBroker) -> bool:
    return broker.committed("podwire-streams", EVENTS.name) == broker.end_offsets(EVENTS.name)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments(
    seed: int, new_kafka_broker: Callable[..., KafkaBroker], tmp_path: Path
) -> None:
    broker = new_kafka_broker()
    broker.create_topics(PARTITIONS)
    chance = random.Random(seed)
    traffic = Traffic(seed)
    with workers_of(broker, tmp_path) as workers:
        worker = workers.start("--instance-id", "w0")
        for _ in range(4):
            deadline = time.monotonic() + 3.0 + chance.random() * 2
            while time.monotonic() < deadline:
                produce(broker, traffic.second())
                time.sleep(chance.random() * 0.2)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            produce(broker, traffic.second())
            worker = workers.start("--instance-id", "w0")
        produce(broker, traffic.second(final=True))
        wait_for(lambda: all_stored(broker), 60, workers.logs)
        sums = stored(broker)
        assert figure(sums, "write_bytes") == traffic.bytes
        assert figure(sums, "connect_success_count") == traffic.connects
        assert figure(sums, "events_seen") == 2 * traffic.connects
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(5) == 0, workers.logs()
        assert "Traceback" not in workers.logs()


def test_two_workers_share_and_take_over(
    new_kafka_broker: Callable[..., KafkaBroker], tmp_path: Path
) -> None:
    broker = new_kafka_broker()
    broker.create_topics(PARTITIONS)
    traffic = Traffic(3)
    with workers_of(broker, tmp_path) as workers:
        first = workers.start()
        go_on(broker, traffic, 5)
        second = workers.start()
        go_on(broker, traffic, 6)
        first.send_signal(signal.SIGTERM)
        go_on(broker, traffic, 2)
        assert first.wait(5) == 0, workers.logs()
        third = workers.start()
        go_on(broker, traffic, 5)
        second.kill()
        go_on(broker, traffic, 5)
        produce(broker, traffic.second(final=True))
        wait_for(lambda: all_stored(broker), 60, workers.logs)
        sums = stored(broker)
        assert figure(sums, "write_bytes") == traffic.bytes
        assert figure(sums, "connect_count") == traffic.connects
        assert third.poll() is None
        assert "Traceback" not in workers.logs()


def test_a_worker_that_was_paused_writes_nothing_beside_its_successor(
    new_kafka_broker: Callable[..., KafkaBroker], tmp_path: Path
) -> None:
    broker = new_kafka_broker()
    broker.create_topics(PARTITIONS)
    traffic = Traffic(5)
    with workers_of(broker, tmp_path) as workers:
        first = workers.start()
        go_on(broker, traffic, 5)
        workers.start()
        go_on(broker, traffic, 5)
        first.send_signal(signal.SIGSTOP)
        go_on(broker, traffic, 9)  # three times its session
        first.send_signal(signal.SIGCONT)
        go_on(broker, traffic, 4)
        produce(broker, traffic.second(final=True))
        wait_for(lambda: all_stored(broker), 60, workers.logs)
        sums = stored(broker)
        assert figure(sums, "write_bytes") == traffic.bytes
        assert figure(sums, "connect_count") == traffic.connects


def test_stops_while_the_broker_is_away(
    new_kafka_broker: Callable[..., KafkaBroker], tmp_path: Path
) -> None:
    broker = new_kafka_broker()
    broker.create_topics(PARTITIONS)
    with workers_of(broker, tmp_path) as workers:
        worker = workers.start()
        wait_for(lambda: "stream worker runs" in workers.logs(), 30, workers.logs)
        broker.kill()
        time.sleep(2)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0, workers.logs()


def test_what_cannot_be_read_is_kept_and_the_rest_counted(
    new_kafka_broker: Callable[..., KafkaBroker], tmp_path: Path
) -> None:
    broker = new_kafka_broker()
    broker.create_topics(PARTITIONS)
    traffic = Traffic(4)
    with workers_of(broker, tmp_path) as workers:
        worker = workers.start("--undecodable-limit", "5")
        produce(broker, traffic.second())
        broker.produce(EVENTS.name, [b"nonsense", b""], partition=1, key="node-x")
        broker.produce("podwire.k8s.pods.v1", [b"\xff\xff"], key="pod-x")
        produce(broker, traffic.second(final=True))
        wait_for(lambda: all_stored(broker), 60, workers.logs)
        assert figure(stored(broker), "write_bytes") == traffic.bytes
        wait_for(lambda: broker.end_offsets(DEAD_LETTER.name)[0] == 3, 10, workers.logs)
        letters = [decode_dead_letter(m.value()) for m in broker.consume_all(DEAD_LETTER.name)]
        found = {(letter.topic, letter.payload, letter.key) for letter in letters}
        assert found == {
            (EVENTS.name, b"nonsense", b"node-x"),
            (EVENTS.name, b"", b"node-x"),
            ("podwire.k8s.pods.v1", b"\xff\xff", b"pod-x"),
        }
        entities = [decode_entity(m.value()) for m in broker.consume_all(ENTITIES.name)]
        assert {"service": "10.9.9.9"} in [entity.names for entity in entities]
        # A run of nonsense means that the producers and this worker do not understand each other.
        broker.produce(EVENTS.name, [b"nonsense"] * 6, partition=0)
        assert worker.wait(20) == 2
        assert "6 undecodable messages in a row" in workers.logs()
        assert "Traceback" not in workers.logs()


def test_the_access_log_survives_kills_and_says_who_called_whom(
    new_kafka_broker: Callable[..., KafkaBroker], tmp_path: Path
) -> None:
    broker = new_kafka_broker()
    broker.create_topics(PARTITIONS)
    now = time.time_ns() // (60 * SECOND_NS) * 60 * SECOND_NS - 900 * SECOND_NS
    sent = 0

    def second(sequence: int, *, final: bool = False) -> None:
        nonlocal sent, now
        now += 5 * SECOND_NS
        for place, name in enumerate(NODES):
            builder = BatchBuilder(node=name, sequence=sequence, watermark_ns=now, final=final)
            row = builder.connection("10.0.0.1:40000", f"10.9.9.{place}:80")
            for number in range(sequence % 3 + 1):
                builder.request(row, f"/cart/{sent}", at=now, trace_id=f"trace-{sent}-{number}")
                sent += 1
            produce(broker, [(place % PARTITIONS, encode_batch(builder.batch()))])

    with workers_of(broker, tmp_path) as workers:
        options = ("--instance-id", "w0", "--access-log", "true")
        worker = workers.start(*options)
        for sequence in range(30):
            second(sequence)
            time.sleep(0.3)
            if sequence in (12, 20):
                worker.send_signal(signal.SIGKILL)
                worker.wait()
                worker = workers.start(*options)
        second(30, final=True)
        wait_for(lambda: all_stored(broker), 60, workers.logs)
        messages = broker.consume_all(ACCESS_LOG.name)
        assert {m.key() for m in messages} == {name.encode() for name in NODES}
        partitions = {(m.key(), m.partition()) for m in messages}
        assert len(partitions) == len(NODES)
        once: dict[tuple[str, str, int, int], EventBatch] = {}
        for message in messages:
            batch = decode_batch(message.value())
            header = batch.header
            identity = (header.node, header.run_id, header.sequence, header.part)
            known = once.setdefault(identity, batch)
            assert known.requests.rows == batch.requests.rows
        traces = [
            batch.names[place] for batch in once.values() for place in batch.requests.trace_id
        ]
        assert len(traces) == len(set(traces)) == sent
        endpoints = {
            (batch.names[batch.parties.remote_service[0]], batch.names[place])
            for batch in once.values()
            for place in batch.requests.endpoint
        }
        assert endpoints == {(f"10.9.9.{place}", "/cart/{id}") for place in range(len(NODES))}
        assert figure(stored(broker), "http_call_count") == sent
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(5) == 0, workers.logs()
        assert "Traceback" not in workers.logs()


def test_topics_that_the_broker_refuses_name_the_setting(
    new_kafka_broker: Callable[..., KafkaBroker],
) -> None:
    servers = new_kafka_broker().bootstrap_servers
    three = KafkaConfig(bootstrap_servers=servers, replication_factor=3)  # of one broker
    with pytest.raises(ConfigError, match=r"replication_factor.*InvalidReplicationFactor"):
        asyncio.run(ensure_topics(three))
    wide = KafkaConfig(bootstrap_servers=servers, partitions=5)
    assert asyncio.run(ensure_topics(wide)) == 5
    assert asyncio.run(ensure_topics(wide)) == 5


def test_no_broker_is_one_line(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "streams", "--bootstrap-servers", "127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": ""},
    )
    assert answer.returncode == 2
    assert "127.0.0.1:1" in answer.stderr.strip().splitlines()[-1]
    assert "Traceback" not in answer.stderr
