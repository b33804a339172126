"""From a real Kafka to a receiver: nothing lost while it is up, all counted when it is not."""

from __future__ import annotations

import itertools
import time

import grpc
import pytest

from schemas.entities import decode_dead_letter
from schemas.events import NetInterface, encode_batch
from schemas.pb import skywalking_accesslog_pb2 as pb
from schemas.topics import ACCESS_LOG, DEAD_LETTER, TOPICS
from sink.oap.choices import Choices
from sink.oap.convert import Limits, Stream, convert
from tests.oap.batches import random_batch
from tests.oap.process import ForwarderProcess, balance
from tests.oap.server import Receiver, refuse
from tests.oap.test_convert import counted, told
from tests.support.kafka import KafkaBroker, free_port

pytestmark = pytest.mark.kafka
_NUMBERS = itertools.count()
LARGE = {"transfers": 20_000, "requests": 500, "connections": 300}

GROUP = "podwire-forwarder"
INTERFACES = [NetInterface(1, "lo", 65_536), NetInterface(7, "eth0", 1_500)]


@pytest.fixture(scope="module")
def module_broker(tmp_path_factory):
    with KafkaBroker.started(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def broker(module_broker):
    """One broker for all tests, with new topics for each."""
    module_broker.create_topics(partitions=2)
    yield module_broker
    module_broker.delete_topics(*(topic.name for topic in TOPICS))


@pytest.fixture(autouse=True)
def group(monkeypatch):
    global GROUP
    GROUP = f"podwire-forwarder-{next(_NUMBERS)}"


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def start(broker, tmp_path):
    started = []

    def start(address, *options):
        forwarder = ForwarderProcess(
            tmp_path, broker.bootstrap_servers, "--group", GROUP, "--addresses", address, *options
        )
        started.append(forwarder)
        forwarder.start()
        return forwarder

    yield start
    for forwarder in started:
        if forwarder.process.poll() is None:
            forwarder.kill()


def batches(numbers, node="node-a", **shape):
    return [random_batch(seed=n, sequence=n, node=node, **shape) for n in numbers]


def send(broker, some, partition=0):
    some[0].header.interfaces = INTERFACES  # once is enough
    messages = [encode_batch(batch) for batch in some]
    broker.produce(
        ACCESS_LOG.name,
        messages,
        key=some[0].header.node,
        partition=partition,
        settings={"message.max.bytes": 16 << 20},
    )
    return sum(batch.events for batch in some)


def logs(receiver):
    """How many logs arrived, by node."""
    found = {}
    for stream in receiver.streams:
        messages = [pb.EBPFAccessLogMessage.FromString(data) for data in stream]
        node = messages[0].node.name
        interfaces = messages[0].node.netInterfaces
        # A forwarder that begins in the middle does not know them yet.
        assert [NetInterface(it.index, it.name, it.mtu) for it in interfaces] in ([], INTERFACES)
        found[node] = found.get(node, 0) + sum(
            len(message.kernelLogs) + message.HasField("protocolLog") for message in messages
        )
    return found


def done(total):
    # The gauge of what waits follows the counters a moment later, so the balance is asked as well.
    return lambda counts: (
        counts.get("in") == total and counts.get("waiting_logs") == 0 and balance(counts) == 0
    )


def test_everything_arrives_and_is_committed(broker, receiver, start):
    forwarder = start(receiver.address, "--authentication", "s3cret")
    total = send(broker, batches(range(4))) + send(broker, batches(range(3), "node-b"), 1)
    counts = forwarder.wait_for(done(total))
    assert counts["sent"] == sum(logs(receiver).values()) > 1000
    assert set(logs(receiver)) == {"node-a", "node-b"}
    firsts = [pb.EBPFAccessLogMessage.FromString(stream[0]) for stream in receiver.streams]
    assert all(len(first.node.netInterfaces) == len(INTERFACES) for first in firsts)
    assert balance(counts) == 0
    assert forwarder.page("/readyz")[0] == 200
    assert all(each["authentication"] == "s3cret" for each in receiver.metadata)
    assert forwarder.stop() == 0
    assert broker.committed(GROUP, ACCESS_LOG.name) == {0: 4, 1: 3}
    log = forwarder.log.read_text()
    assert "Traceback" not in log
    assert "s3cret" not in log


def test_nothing_is_committed_before_the_oap_answered(broker, start):
    port = free_port()
    forwarder = start(f"127.0.0.1:{port}")
    total = send(broker, batches(range(3)))
    forwarder.wait_for(lambda counts: counts.get("streams_unavailable", 0) > 3)
    assert broker.committed(GROUP, ACCESS_LOG.name)[0] < 0
    with Receiver(port=port) as receiver:
        counts = forwarder.wait_for(done(total))
        assert counts["sent"] == sum(logs(receiver).values())
        assert balance(counts) == 0
        assert forwarder.stop() == 0
    assert broker.committed(GROUP, ACCESS_LOG.name)[0] == 3


def test_killed_forwarders_send_again_what_no_answer_was_committed_for(broker, receiver, start):
    receiver.always = refuse(grpc.StatusCode.UNAVAILABLE)
    total = send(broker, batches(range(5)))
    forwarder = start(receiver.address)
    forwarder.wait_for(lambda counts: counts.get("in") == total)
    forwarder.kill()
    receiver.always = None
    forwarder.start()
    # The group waits for the member that died.
    counts = forwarder.wait_for(done(total), 90)
    assert counts["sent"] == sum(logs(receiver).values())
    assert forwarder.stop() == 0
    assert broker.committed(GROUP, ACCESS_LOG.name)[0] == 5


def test_an_oap_that_stays_away_costs_the_oldest_and_no_memory(broker, start):
    forwarder = start(
        f"127.0.0.1:{free_port()}",
        *("--buffer-mb", "8", "--stream-mb", "1", "--patience-s", "0", "--stop-grace-s", "0"),
        *("--period-mb", "4"),
    )
    total = 0
    for first in range(0, 40, 8):
        total += send(
            broker,
            batches(range(first, first + 8), transfers=20_000, requests=500, connections=300),
        )
    # The gauge of what waits follows the counters a moment later.
    counts = forwarder.wait_for(lambda c: c.get("in") == total and balance(c) == 0, 90)
    assert counts["buffer_full"] > total / 3
    assert counts["waiting_bytes"] < 12 << 20
    # What was dropped and counted is committed.
    deadline = time.monotonic() + 20
    while not 0 < broker.committed(GROUP, ACCESS_LOG.name)[0] < 40:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert forwarder.stop() == 0
    assert "logs left; they are read again" in forwarder.log.read_text()


def test_a_slow_oap_makes_it_slow_and_loses_nothing(broker, receiver, start):
    def slow(receiver, messages, context):
        stream = list(messages)
        receiver.wait(0.3)
        receiver.streams.append(stream)
        return b""

    receiver.always = slow
    total = send(broker, batches(range(12), **LARGE))
    forwarder = start(receiver.address, "--buffer-mb", "8", "--stream-mb", "1", "--patience-s", "0")
    counts = forwarder.wait_for(done(total), 120)
    assert "buffer_full" not in counts
    assert counts["sent"] == sum(logs(receiver).values())
    assert balance(counts) == 0
    assert forwarder.stop() == 0


def test_batches_that_come_again_are_not_sent_again(broker, receiver, start):
    some = batches(range(6))
    total = send(broker, some)
    again = send(broker, some[2:])
    forwarder = start(receiver.address)
    counts = forwarder.wait_for(done(total + again))
    assert counts["duplicate"] == again
    assert counts["sent"] == sum(logs(receiver).values())
    assert balance(counts) == 0
    assert forwarder.stop() == 0


def test_what_cannot_be_decoded_is_a_dead_letter(broker, receiver, start):
    some = batches(range(2))
    broker.produce(ACCESS_LOG.name, [b"junk"], partition=0)
    total = send(broker, some)
    forwarder = start(receiver.address)
    forwarder.wait_for(done(total))
    (letter,) = broker.consume_all(DEAD_LETTER.name)
    found = decode_dead_letter(letter.value())
    assert (found.stage, found.payload) == ("forwarder", b"junk")
    assert forwarder.stop() == 0
    assert broker.committed(GROUP, ACCESS_LOG.name)[0] == 3


def test_too_many_bad_messages_end_it(broker, receiver, start):
    broker.produce(ACCESS_LOG.name, [b"junk"] * 20, partition=0)
    forwarder = start(receiver.address, "--bad-messages-in-a-row", "10")
    assert forwarder.process.wait(60) == 2
    assert "10 messages in a row cannot be decoded" in forwarder.log.read_text()
    assert "Traceback" not in forwarder.log.read_text()


def test_two_share_the_partitions(broker, receiver, start):
    one = start(receiver.address)
    total = send(broker, batches(range(2)))
    one.wait_for(done(total))
    two = start(receiver.address)
    deadline = time.monotonic() + 60
    number, sent = 2, {"node-a": 0, "node-b": 0}
    while two.process.poll() is None:
        for node, partition in (("node-a", 0), ("node-b", 1)):
            sent[node] += send(broker, batches([number], node), partition)
        number += 1
        time.sleep(0.3)
        try:
            if two.counts().get("sent", 0) > 1000 and one.counts()["waiting_logs"] == 0:
                break
        except OSError:
            pass
        assert time.monotonic() < deadline
    time.sleep(1.0)
    counts = [one.counts(), two.counts()]
    assert all(balance(each) == 0 for each in counts)
    # Each log at least once: a partition that moved may have been read twice.
    assert sum(each["in"] for each in counts) >= total + sum(sent.values())
    assert one.stop() == 0
    assert two.stop() == 0


def test_a_stream_is_what_the_conversion_says(broker, receiver, start):
    some = batches([3])
    total = send(broker, some)
    forwarder = start(receiver.address)
    forwarder.wait_for(done(total))
    assert forwarder.stop() == 0
    (wanted,) = convert(some, Choices(), Limits(), 1.0).streams
    (messages,) = receiver.streams
    arrived = Stream("node-a", messages, wanted.logs, sum(map(len, messages)))
    assert counted(told([arrived])) == counted(told([wanted]))
