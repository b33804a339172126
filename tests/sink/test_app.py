"""The whole sink between a real Kafka and a real engine, killed at any moment."""

from __future__ import annotations

import random
import time

import pytest

from schemas.entities import Entity, decode_dead_letter, encode_entity
from schemas.metrics import encode_block
from schemas.topics import DEAD_LETTER, ENTITIES, METRICS
from tests.sink.blocks import MINUTE_S, block, total
from tests.sink.process import SinkProcess

pytestmark = [pytest.mark.kafka, pytest.mark.clickhouse]

SUM = "SELECT sum(connect_count) FROM podwire.service_relation_metrics"
OPEN = "SELECT count() FROM podwire.pipeline_ledger_balance WHERE balance != 0"


@pytest.fixture
def broker(new_kafka_broker):
    broker = new_kafka_broker()
    broker.create_topics(partitions=2)
    return broker


@pytest.fixture
def sink(broker, tmp_path):
    sink = SinkProcess(tmp_path, broker.bootstrap_servers)
    yield sink
    if sink.process is not None and sink.process.poll() is None:
        sink.kill()


def test_a_minute_is_queryable_within_seconds(broker, sink):
    sink.start()
    sink.wait_for("SELECT 1", "1")
    broker.produce(METRICS.name, [encode_block(block(0))], partition=0)
    sink.wait_for(SUM, str(total(block(0))))
    begin = time.monotonic()
    broker.produce(METRICS.name, [encode_block(block(1, partition=1))], partition=1)
    sink.wait_for(SUM, str(total(block(0)) + total(block(1))))
    assert time.monotonic() - begin < 5
    entity = Entity("service", "c", {"service": "a.b"}, {}, 1, 2)
    broker.produce(ENTITIES.name, [encode_entity(entity)], key=entity.key, partition=0)
    sink.wait_for("SELECT name FROM podwire.service_traffic", "a.b")
    assert sink.stop() == 0
    assert "Traceback" not in sink.log.read_text()


@pytest.mark.slow
def test_killed_at_any_moment_the_sums_are_exact(broker, sink):
    chance = random.Random(5)
    messages: dict[int, list[bytes]] = {0: [], 1: []}
    wanted = 0
    for partition in messages:
        for base in range(30):
            change = {"partition": partition, "minute_s": MINUTE_S + 60 * base, "rows": 300}
            if base % 5 == 0:  # a writer that died after its first part
                dead = block(base, part=0, parts=2, attempt="dead", **change)
                messages[partition].append(encode_block(dead))
            parts = 1 + base % 3
            for part in range(parts):
                one = block(base, part=part, parts=parts, seed=partition * 99 + base, **change)
                wanted += total(one)
                messages[partition].append(encode_block(one))
            if base % 4 == 0:  # a copy by another attempt
                for part in range(parts):
                    copy = block(base, part=part, parts=parts, attempt="copy", **change)
                    messages[partition].append(encode_block(copy))
    for partition, values in messages.items():
        broker.produce(METRICS.name, values, partition=partition)
    for _ in range(12):
        sink.start()
        time.sleep(chance.uniform(0.5, 2.2))
        sink.kill()
    sink.start()
    blocks = "SELECT count() FROM podwire.pipeline_blocks"
    sink.wait_for(blocks, "60", 120)
    # One more block behind everything: when it is there, so is the ledger of what came before.
    for partition in messages:
        last = block(1000, partition=partition)
        wanted += total(last)
        broker.produce(METRICS.name, [encode_block(last)], partition=partition)
    sink.wait_for(blocks, "62")
    assert sink.query(SUM) == str(wanted)
    assert sink.query("SELECT sum(read_count) FROM podwire.instance_metrics") == str(
        7 * sum(2 * (1 + base % 3) for base in range(30)) + 14
    )
    assert sink.query(OPEN) == "0"
    ledger = sink.query(
        "SELECT reason, sum(in_count), sum(out_count), sum(dropped_count) "
        "FROM podwire.pipeline_ledger WHERE stage = 'sink' GROUP BY reason ORDER BY reason"
    )
    assert ledger.splitlines() == ["\t62\t62\t0", "abandoned\t12\t0\t12", "duplicate\t16\t0\t16"]
    assert sink.stop() == 0
    assert "Traceback" not in sink.log.read_text()


def test_what_cannot_be_decoded_goes_to_the_dead_letters(broker, sink):
    values = [b"", b"junk", encode_block(block(0)), b"\xff" * 100, encode_block(block(1))]
    values.append(encode_block(block(2, partition=1)))  # in the wrong partition
    broker.produce(METRICS.name, values, partition=0)
    broker.produce(ENTITIES.name, [b"junk"], key="k", partition=0)
    broker.produce(DEAD_LETTER.name, [b"junk"], partition=0)
    sink.start()
    sink.wait_for(SUM, str(total(block(0)) + total(block(1))))
    sink.wait_for("SELECT count() FROM podwire.dead_letters", "5")
    found = []
    for message in broker.consume_all(DEAD_LETTER.name):
        if message.value() != b"junk":
            letter = decode_dead_letter(message.value())
            found.append((letter.topic, letter.offset, letter.payload))
    expected = [(METRICS.name, i, values[i]) for i in (0, 1, 3, 5)]
    assert sorted(found) == sorted([*expected, (ENTITIES.name, 0, b"junk")])
    dropped = sink.query(
        "SELECT sum(in_count), sum(dropped_count) FROM podwire.pipeline_ledger "
        "WHERE reason = 'undecodable'"
    )
    assert dropped == "4\t4"
    sink.kill()
    sink.start()
    sink.wait_for(OPEN, "0")
    assert sink.stop() == 0


def test_a_run_of_failures_stops_the_sink(broker, tmp_path):
    broker.produce(METRICS.name, [b"junk"] * 20, partition=0)
    sink = SinkProcess(tmp_path, broker.bootstrap_servers, "--bad-messages-in-a-row", "10")
    sink.start()
    assert sink.process.wait(60) == 2
    text = sink.log.read_text()
    assert "10 messages in a row cannot be decoded" in text
    assert "Traceback" not in text


def test_a_broker_that_comes_back_is_read_on(broker, sink):
    sink.start()
    broker.produce(METRICS.name, [encode_block(block(0))], partition=0)
    sink.wait_for(SUM, str(total(block(0))))
    broker.kill()
    time.sleep(1)
    broker.start()
    broker.produce(METRICS.name, [encode_block(block(1))], partition=0)
    sink.wait_for(SUM, str(total(block(0)) + total(block(1))))
    assert sink.stop() == 0


@pytest.mark.slow
def test_a_broker_that_is_not_there_is_a_clear_error(tmp_path):
    sink = SinkProcess(tmp_path, "127.0.0.1:9")
    sink.start()
    assert sink.process.wait(90) == 2
    last = sink.log.read_text().strip().splitlines()[-1]
    assert last.startswith("podwire sink: kafka at 127.0.0.1:9: ")
    assert "Traceback" not in sink.log.read_text()


def test_a_taken_sql_port_is_a_clear_error(broker, sink, tmp_path):
    sink.start()
    sink.wait_for("SELECT 1", "1")
    (tmp_path / "other").mkdir()
    other = SinkProcess(tmp_path / "other", broker.bootstrap_servers, "--sql-port", str(sink.port))
    other.start()
    assert other.process.wait(60) == 2
    assert "sink.sql_port: 127.0.0.1" in other.log.read_text()
    assert "Traceback" not in other.log.read_text()


def test_a_group_shares_the_partitions_of_a_server(broker, tmp_path):
    from tests.sink.test_store import Server

    server = Server(f"{tmp_path}/engine")
    members = []
    try:
        for number in range(2):
            directory = tmp_path / str(number)
            directory.mkdir()
            url = ("--url", f"http://127.0.0.1:{server.port}", "--sql-port", "0")
            members.append(SinkProcess(directory, broker.bootstrap_servers, *url))
        wanted = 0
        members[0].start()
        for base in range(12):
            for partition in (0, 1):
                one = block(base, partition=partition, seed=base * 7 + partition)
                wanted += total(one)
                broker.produce(METRICS.name, [encode_block(one)], partition=partition)
            if base == 4:
                members[1].start()
            if base == 8:
                members[0].kill()
            time.sleep(0.5)
        members[0].port = server.port
        members[0].wait_for(SUM, str(wanted), 90)
        members[0].wait_for("SELECT count() FROM podwire.pipeline_blocks", "24")
        assert members[1].stop() == 0
    finally:
        for member in members:
            if member.process is not None and member.process.poll() is None:
                member.kill()
        server.kill()
