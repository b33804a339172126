"""Kernel events to an OAP through real processes: stream worker, Kafka, forwarder."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from schemas.events import decode_batch
from schemas.kubernetes import EndpointSlice, Pod, Service, encode_object
from schemas.topics import ENDPOINTSLICES, EVENTS, PODS, SERVICES
from tests.oap.analysis import Analysis, evaluate
from tests.oap.process import ForwarderProcess, balance
from tests.oap.server import Receiver
from tests.oap.test_oracle import REASONS, kubernetes, traffic

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

ROWS = """
read_cpm | S | * | type==read | cpm()
write_cpm | S | * | type==write | cpm()
http_call_cpm | R | * | type==protocol | cpm()
"""


@pytest.fixture
def worker(new_kafka_broker, tmp_path):
    broker = new_kafka_broker()
    broker.create_topics(partitions=1)
    topics = {Pod: PODS, Service: SERVICES, EndpointSlice: ENDPOINTSLICES}
    for each in kubernetes():
        broker.produce(topics[type(each)].name, [encode_object(each)], key=each.uid)
    with (tmp_path / "streams.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "deploy.cli", "streams", "--access-log", "true"),
                *("--bootstrap-servers", broker.bootstrap_servers),
            ],
            cwd=Path(__file__).parents[2],
            stdout=log,
            stderr=log,
        )
    yield broker
    process.kill()
    process.wait()


def test_what_the_kernel_saw_is_what_the_oap_counts(worker, tmp_path):
    messages = list(traffic(7))
    batches = [decode_batch(message) for message in messages]
    with Receiver() as receiver:
        forwarder = ForwarderProcess(
            tmp_path, worker.bootstrap_servers, "--addresses", receiver.address
        )
        forwarder.start()
        worker.produce(EVENTS.name, messages, key="node-a")
        total = sum(batch.events for batch in batches)
        counts = forwarder.wait_for(
            lambda found: (
                found.get("in") == total and balance(found) == 0 == found.get("waiting_logs")
            ),
            120,
        )
        assert forwarder.stop() == 0
        analysis = Analysis()
        for stream in receiver.streams:
            analysis.stream(stream)
    found = evaluate(ROWS, analysis.sources)
    wanted = Counter()
    for batch in batches:
        calls = batch.transfers.take(batch.transfers.call != 14)
        wanted["read"] += int((calls.direction == 1).sum())
        wanted["write"] += int((calls.direction == 2).sum())
        wanted["http_call"] += batch.requests.rows
    assert counts["added_to_call"] > 0
    assert set(counts) & {"refused", "buffer_full", "no_call", "incomplete", "sampled"} == set()
    assert sum(found["kubernetes_service_read_cpm"].values()) == wanted["read"]
    assert sum(found["kubernetes_service_write_cpm"].values()) == wanted["write"]
    assert sum(found["kubernetes_service_relation_http_call_cpm"].values()) == wanted["http_call"]
    pods = ("web-1", "api-1", "api-2", "db-1")
    assert analysis.containers == {(name, "main") for name in pods}
    lost = {where: 0 for *_, where in analysis.losses}
    for (*_, where), packets in analysis.losses.items():
        lost[where] += packets
    for reason in REASONS:
        packets = [
            batch.drops.packets[[batch.names[one] == reason for one in batch.drops.reason]]
            for batch in batches
        ]
        assert lost[reason] == sum(int(each.sum()) for each in packets) > 0
