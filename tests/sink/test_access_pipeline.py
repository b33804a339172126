"""Calls between a real Kafka and a real engine: killed, replayed, undecodable, beside metrics."""

from __future__ import annotations

import random
import time

import pytest

from schemas.entities import decode_dead_letter
from schemas.metrics import encode_block
from schemas.topics import ACCESS_LOG, DEAD_LETTER, METRICS
from tests.sink.blocks import block, total
from tests.sink.calls import calls_batch, plain_calls
from tests.sink.process import SinkProcess

pytestmark = [pytest.mark.kafka, pytest.mark.clickhouse]

ROWS = "SELECT count(), uniqExact(path) FROM podwire.access_log"
SUM = "SELECT sum(connect_count) FROM podwire.service_relation_metrics"
OPEN = "SELECT count() FROM podwire.pipeline_ledger_balance WHERE balance != 0"


@pytest.fixture
def broker(new_kafka_broker):
    broker = new_kafka_broker()
    broker.create_topics(partitions=2)
    return broker


@pytest.fixture
def start(broker, tmp_path):
    started = []

    def start(*options):
        sink = SinkProcess(tmp_path, broker.bootstrap_servers, "--access-log", "true", *options)
        started.append(sink)
        sink.start()
        return sink

    yield start
    for sink in started:
        if sink.process.poll() is None:
            sink.kill()


def messages(run, numbers, rows=20):
    """Batches of one run, whose paths are those of no other run or batch."""
    return [
        calls_batch(
            [
                call | {"path": f"/{run}{call['path']}"}
                for call in plain_calls(rows, first=n * 1000)
            ],
            run=run,
            sequence=n,
        )
        for n in numbers
    ]


def test_calls_are_there_within_seconds_and_bad_ones_are_dead_letters(broker, start):
    sink = start()
    good = messages("a", range(2))
    broker.produce(ACCESS_LOG.name, [good[0], b"junk", good[1]], key="node-1", partition=1)
    sink.wait_for(ROWS, "40\t40")
    sink.wait_for(
        "SELECT topic, stage, offset FROM podwire.dead_letters", f"{ACCESS_LOG.name}\tsink\t1"
    )
    (letter,) = broker.consume_all(DEAD_LETTER.name)
    assert decode_dead_letter(letter.value()).payload == b"junk"
    assert sink.query(OPEN) == "0"
    assert sink.stop() == 0
    assert "Traceback" not in sink.log.read_text()


def test_batches_that_come_again_make_no_second_row(broker, start):
    first = messages("a", range(6))
    broker.produce(ACCESS_LOG.name, first, partition=0)
    sink = start()
    sink.wait_for(ROWS, "120\t120")
    # A stream worker died and its successor sends from its floor on; so does this sink's own.
    broker.produce(ACCESS_LOG.name, first[3:] + messages("a", [6]), partition=0)
    sink.wait_for(ROWS, "140\t140")
    sink.kill()
    sink.start()
    broker.produce(ACCESS_LOG.name, first[4:] + messages("a", [6, 7]), partition=0)
    sink.wait_for(ROWS, "160\t160")
    ledger = (
        "SELECT sum(in_count), sum(out_count) FROM podwire.pipeline_ledger WHERE kind = 'request'"
    )
    sink.wait_for(ledger, "160\t160")  # written after the rows
    assert sink.stop() == 0


@pytest.mark.slow
def test_killed_at_any_moment_each_call_is_there_once(broker, start):
    chance = random.Random(3)
    wanted = 0
    for partition, run in enumerate("ab"):
        every = messages(run, range(60), rows=300)
        wanted += 60 * 300
        sent = []
        for number in range(0, 60, 10):
            floor = max(number - chance.randrange(8), 0)
            sent += every[floor : number + 10]
        broker.produce(ACCESS_LOG.name, sent, partition=partition)
    sink = start()
    for _ in range(10):
        time.sleep(chance.uniform(0.8, 3))
        sink.kill()
        sink.start()
    sink.wait_for(ROWS, f"{wanted}\t{wanted}", 120)
    # One more batch behind everything: when it is there, so is what came before.
    broker.produce(ACCESS_LOG.name, messages("c", [0]), partition=0)
    broker.produce(ACCESS_LOG.name, messages("d", [0]), partition=1)
    sink.wait_for(ROWS, f"{wanted + 40}\t{wanted + 40}")
    sink.wait_for(
        "SELECT count(), sum(out_count) FROM podwire_store.access_batches", f"122\t{wanted + 40}"
    )
    assert sink.query(OPEN) == "0"
    assert sink.stop() == 0
    assert "Traceback" not in sink.log.read_text()


def test_an_access_log_that_cannot_go_on_does_not_hold_the_metrics(broker, start):
    broker.produce(ACCESS_LOG.name, [b"junk"] * 20, partition=0)
    sink = start("--bad-messages-in-a-row", "10", "--retry-max-s", "1")
    broker.produce(METRICS.name, [encode_block(block(0))], partition=0)
    sink.wait_for(SUM, str(total(block(0))))
    deadline = time.monotonic() + 30
    while "access log: 10 messages in a row cannot be decoded" not in sink.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    broker.produce(METRICS.name, [encode_block(block(1))], partition=0)
    sink.wait_for(SUM, str(total(block(0)) + total(block(1))))
    assert sink.stop() == 0
    assert "Traceback" not in sink.log.read_text()


def test_without_the_setting_nothing_is_read(broker, tmp_path):
    broker.produce(ACCESS_LOG.name, messages("a", [0]), partition=0)
    broker.produce(METRICS.name, [encode_block(block(0))], partition=0)
    sink = SinkProcess(tmp_path, broker.bootstrap_servers)
    sink.start()
    sink.wait_for(SUM, str(total(block(0))))
    assert sink.query(ROWS) == "0\t0"
    assert sink.stop() == 0


def test_sampling_by_settings(broker, start):
    broker.produce(ACCESS_LOG.name, messages("a", [0], rows=500), partition=0)
    broker.produce(
        ACCESS_LOG.name, [calls_batch([{"status": 500}], run="e", sequence=1)], partition=0
    )
    sink = start("--access-log-sample", "0", "--access-log-slow-ms", "5000")
    sink.wait_for("SELECT path, status FROM podwire.access_log", "/\t500")
    # The ledger is a table of its own, written after the rows it tells of.
    sink.wait_for(
        "SELECT sum(dropped_count) FROM podwire.pipeline_ledger WHERE reason = 'sampled'", "500"
    )
    assert sink.stop() == 0
