"""Streams to a receiver that is killed, slow, refuses, and answers too early or too late."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
import tracemalloc

import grpc
import pytest

from schemas.telemetry import counter
from sink.oap import http2
from sink.oap.buffer import Buffer
from sink.oap.client import PATH, classified
from sink.oap.config import ForwarderConfig
from sink.oap.convert import Stream
from sink.oap.http2 import CODES
from sink.oap.sender import Senders
from tests.oap.server import PATH as SERVED
from tests.oap.server import (
    Receiver,
    early_answer,
    late_answer,
    refuse,
    refuse_after,
    silent,
    slow,
)
from tests.support.kafka import free_port

Code = grpc.StatusCode


class Counters:
    """What the counters of the forwarder gained since the start of the test."""

    def __init__(self):
        self._before = {}
        self._before = self()

    def __call__(self):
        found = {}
        for name in ("podwire_forwarder_logs_total", "podwire_forwarder_streams_total"):
            for family in counter(name).collect():
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        key = sample.labels["outcome"]
                        key = f"streams_{key}" if "streams" in name else key
                        found[key] = found.get(key, 0) + sample.value
        return {
            k: v - self._before.get(k, 0) for k, v in found.items() if v != self._before.get(k, 0)
        }


class Sending:
    """A buffer with its senders."""

    def __init__(self, *addresses, limit=1 << 20, **settings):
        config = {"deadline_s": 10.0, "retry_min_s": 0.02, "retry_max_s": 0.1, "streams": 1}
        self.config = ForwarderConfig(addresses=addresses, **config | settings)
        self.dropped = []
        self.buffer = Buffer(limit, lambda parcel: self.dropped.append(parcel.stream.node))
        self.senders = Senders(self.config, self.buffer)

    def put(self, number=1, *, messages=3, size=12, partition=("t", 0)):
        data = [bytes(size) for _ in range(messages)]
        round_ = self.buffer.begin(partition, number)
        self.buffer.put(Stream(f"node-{number}", data, messages, messages * size), [round_])
        self.buffer.end(round_)

    def __enter__(self):
        self.senders.start()
        return self

    def __exit__(self, *_):
        self.senders.stop()


@pytest.fixture
def counters():
    return Counters()


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


def eventually(condition, timeout_s=15.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_path_is_that_of_an_oap():
    assert PATH == SERVED


def test_streams_arrive_whole_and_in_order(receiver, counters):
    with Sending(receiver.address) as sending:
        for number in range(5):
            sending.put(number, messages=number + 1)
        assert sending.buffer.wait_empty(10)
        assert sending.buffer.finished() == {("t", 0): 4}
    assert [len(stream) for stream in receiver.streams] == [1, 2, 3, 4, 5]
    assert counters() == {"sent": 15, "streams_sent": 5}


@pytest.mark.parametrize(
    "code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.UNAUTHENTICATED]
)
def test_a_refused_stream_is_sent_again_whole(receiver, counters, code):
    receiver.behaviours = [refuse(code), refuse_after(2, code)]
    with Sending(receiver.address) as sending:
        sending.put()
        assert sending.buffer.wait_empty(10)
    assert [len(stream) for stream in receiver.streams] == [3]
    assert counters() == {
        "sent": 3,
        "repeated": 6,
        "streams_sent": 1,
        f"streams_{code.name.lower()}": 2,
    }


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED])
def test_what_an_oap_will_never_take_is_given_up_at_once(receiver, counters, code):
    receiver.behaviours = [refuse(code)]
    with Sending(receiver.address) as sending:
        sending.put(1)
        sending.put(2)
        assert sending.buffer.wait_empty(10)
        assert sending.buffer.finished() == {("t", 0): 2}
    assert len(receiver.streams) == 1
    assert counters()["refused"] == 3
    assert counters()["sent"] == 3


def test_an_error_of_the_oap_itself_is_tried_a_few_times(receiver, counters):
    receiver.always = refuse(Code.INTERNAL)
    with Sending(receiver.address, tries=3) as sending:
        sending.put()
        assert sending.buffer.wait_empty(10)
    assert receiver.started == 3
    assert counters() == {"refused": 3, "repeated": 6, "streams_internal": 3}


def test_a_stream_that_fails_while_others_get_through_does_not_hold_the_offsets(receiver, counters):
    def picky(receiver, messages, context):
        stream = list(messages)
        if len(stream) == 2:
            context.abort(Code.RESOURCE_EXHAUSTED, "this one is too large")
        receiver.streams.append(stream)
        return b""

    receiver.always = picky
    with Sending(receiver.address, streams=2, tries=3) as sending:
        sending.put(1, messages=2)
        for number in range(2, 40):
            sending.put(number)
            time.sleep(0.01)
        assert sending.buffer.wait_empty(10)
        assert sending.buffer.finished() == {("t", 0): 39}
    assert counters()["refused"] == 2
    assert counters()["sent"] == 38 * 3


def test_an_early_answer_is_no_answer(receiver, counters):
    receiver.behaviours = [early_answer, early_answer]
    with Sending(receiver.address, deadline_s=10.0) as sending:
        # More than gRPC takes ahead of its reader.
        sending.put(messages=300, size=100_000)
        assert sending.buffer.wait_empty(20)
    assert [len(stream) for stream in receiver.streams] == [300]
    found = counters()
    assert found["sent"] == 300
    assert found["streams_sent"] == 1
    assert found["repeated"] == 600
    assert found["streams_early_answer"] == 2


def test_an_answer_that_is_too_late_means_again(receiver, counters):
    receiver.behaviours = [late_answer(5)]
    with Sending(receiver.address, deadline_s=1.0) as sending:
        sending.put()
        assert sending.buffer.wait_empty(10)
    assert [len(stream) for stream in receiver.streams] == [3, 3]
    assert counters() == {
        "sent": 3,
        "repeated": 3,
        "streams_deadline_exceeded": 1,
        "streams_sent": 1,
    }


def test_a_silent_oap_is_left_after_the_deadline(receiver, counters):
    receiver.always = silent
    with Sending(receiver.address, deadline_s=1.0) as sending:
        sending.put()
        eventually(lambda: receiver.started >= 2)
        assert sending.senders.failing_s() > 0
        receiver.always = None
        assert sending.buffer.wait_empty(10)
        assert sending.senders.failing_s() == 0
    assert counters()["sent"] == 3


def test_a_slow_oap_gets_everything(receiver, counters):
    receiver.always = slow(0.05)
    with Sending(receiver.address, deadline_s=5.0, streams=4) as sending:
        for number in range(12):
            sending.put(number)
        assert sending.buffer.wait_empty(20)
    assert len(receiver.streams) == 12
    assert counters() == {"sent": 36, "streams_sent": 12}


def test_a_killed_oap_is_waited_for(counters):
    port = free_port()
    first = Receiver(port=port).start()
    with Sending(first.address) as sending:
        sending.put(1)
        assert sending.buffer.wait_empty(10)
        first.stop()
        sending.put(2)
        eventually(lambda: counters().get("streams_unavailable", 0) > 2)
        assert not sending.buffer.wait_empty(0)
        with Receiver(port=port) as second:
            assert sending.buffer.wait_empty(15)
            assert len(second.streams) == 1
    assert counters()["sent"] == 6
    assert "refused" not in counters()


def test_killed_in_mid_stream(counters):
    port = free_port()
    reached = threading.Event()

    def wait(receiver, messages, context):
        next(iter(messages))
        reached.set()
        receiver.wait(30)

    first = Receiver(port=port).start()
    first.always = wait
    with Sending(first.address, deadline_s=10.0) as sending:
        sending.put()
        assert reached.wait(10)
        first.stop()
        with Receiver(port=port) as second:
            assert sending.buffer.wait_empty(15)
            assert [len(stream) for stream in second.streams] == [3]
    assert counters()["sent"] == 3


def test_another_oap_takes_over(receiver, counters):
    dead = f"127.0.0.1:{free_port()}"
    with Sending(dead, receiver.address, retry_min_s=5.0, retry_max_s=5.0, streams=2) as sending:
        for number in range(10):
            sending.put(number)
        assert sending.buffer.wait_empty(10)
    assert len(receiver.streams) == 10
    assert counters().get("streams_unavailable", 0) <= 2


def test_streams_are_spread_over_oaps_in_time(receiver):
    with (
        Receiver() as other,
        Sending(receiver.address, other.address, rebalance_s=0.05, streams=1) as sending,
    ):
        for number in range(60):
            sending.put(number)
            time.sleep(0.02)
        assert sending.buffer.wait_empty(10)
        assert len(receiver.streams) > 5
        assert len(other.streams) > 5
        assert len(receiver.streams) + len(other.streams) == 60


def test_a_full_buffer_drops_the_oldest_and_memory_stays_bounded(counters):
    limit = 8 << 20
    with Sending(f"127.0.0.1:{free_port()}", limit=limit) as sending:
        tracemalloc.start()
        for number in range(200):
            while not sending.buffer.room():
                assert sending.buffer.drop_oldest()
            sending.put(number, messages=1, size=1 << 20)
            assert sending.buffer.size <= limit + (1 << 20)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < limit + (8 << 20)
        # The oldest go first, but for one that is being tried; none holds an offset back.
        assert len(sending.dropped) >= 191
        assert sending.dropped[-1] in ("node-190", "node-191", "node-192")
        eventually(lambda: not sending.buffer.drop_oldest() and sending.buffer.wait_empty(0))
        assert sending.buffer.finished() == {("t", 0): 199}
    assert "sent" not in counters()


def test_stopping_cancels_a_call_that_hangs(receiver):
    receiver.always = silent
    sending = Sending(receiver.address, deadline_s=60.0)
    with sending:
        sending.put()
        eventually(lambda: receiver.started == 1)
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    assert sending.buffer.finished() == {}


def test_no_thread_outlives_a_failed_call(receiver):
    receiver.always = refuse(Code.UNAVAILABLE)
    with Sending(receiver.address) as sending:
        sending.put()
        eventually(lambda: receiver.started > 10)
        names = [thread.name for thread in threading.enumerate()]
        assert len(names) < 30, names
        receiver.always = None
        assert sending.buffer.wait_empty(10)


def test_the_header_says_who_we_are(receiver):
    with Sending(receiver.address, authentication="s3cret") as sending:
        sending.put()
        assert sending.buffer.wait_empty(10)
    assert receiver.metadata[0]["authentication"] == "s3cret"
    assert "s3cret" not in repr(sending.config)


def test_without_a_token_there_is_no_header(receiver):
    with Sending(receiver.address) as sending:
        sending.put()
        assert sending.buffer.wait_empty(10)
    assert "authentication" not in receiver.metadata[0]


def test_every_code_has_its_name_and_class():
    assert list(CODES) == [code.name.lower() for code in sorted(Code, key=lambda c: c.value[0])]
    classes = {name: classified(name) for name in CODES}
    assert classes["unavailable"] == classes["resource_exhausted"] == "always"
    assert classes["internal"] == classes["cancelled"] == classified("early_answer") == "sometimes"
    assert classes["unimplemented"] == classes["invalid_argument"] == "never"


def test_a_connection_that_the_oap_closed_while_idle_is_no_failure(counters):
    port = free_port()
    first = Receiver(port=port).start()
    with Sending(first.address) as sending:
        sending.put(1)
        assert sending.buffer.wait_empty(10)
        first.stop()
        with Receiver(port=port) as second:
            sending.put(2)
            assert sending.buffer.wait_empty(10)
            assert len(second.streams) == 1
    assert counters() == {"sent": 6, "streams_sent": 2}


def test_an_address_that_speaks_no_http2(counters):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    made, _ = server.accept()
                    with made:
                        made.recv(1000)
                        made.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with Sending(f"127.0.0.1:{server.getsockname()[1]}", tries=2) as sending:
            sending.put()
            eventually(lambda: counters().get("streams_unavailable", 0) > 2)
            server.shutdown(socket.SHUT_RDWR)
    assert "sent" not in counters()


def test_a_host_that_does_not_exist_is_unavailable(counters):
    with Sending("localhost:1", "[::1]:1") as sending:
        sending.put()
        eventually(lambda: counters().get("streams_unavailable", 0) > 2)


def test_an_oap_without_a_sign_of_life_is_left_before_the_deadline(counters, monkeypatch):
    monkeypatch.setattr(http2, "_ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with Sending(address, deadline_s=60.0, keepalive_s=0.2) as sending:
            sending.put()
            # The kernel takes the connection and its bytes; nobody ever answers.
            eventually(lambda: counters().get("streams_unavailable", 0) > 1, 10)


def test_an_oap_that_is_just_slow_gives_signs_of_life(receiver, counters, monkeypatch):
    monkeypatch.setattr(http2, "_ANSWER_S", 1.0)
    receiver.behaviours = [late_answer(2)]
    with Sending(receiver.address, deadline_s=20.0, keepalive_s=0.2) as sending:
        sending.put()
        assert sending.buffer.wait_empty(15)
    assert counters() == {"sent": 3, "streams_sent": 1}


def test_an_oap_that_goes_away_in_order_ends_what_it_has_begun(counters):
    port = free_port()
    first = Receiver(port=port).start()
    first.always = late_answer(1.5)
    with Sending(first.address, deadline_s=10.0) as sending:
        sending.put(1)
        eventually(lambda: len(first.streams) == 1)
        first.stop(grace_s=8)
        assert sending.buffer.wait_empty(10)
        assert counters() == {"sent": 3, "streams_sent": 1}
        with Receiver(port=port) as second:
            sending.put(2)
            assert sending.buffer.wait_empty(10)
            assert len(second.streams) == 1
    assert counters() == {"sent": 6, "streams_sent": 2}


def test_one_connection_serves_many_streams(receiver):
    dialled = []
    with Sending(receiver.address) as sending:
        rotation = sending.senders._rotations[0]
        dial = rotation._dial
        rotation._dial = lambda address: dialled.append(address) or dial(address)
        for number in range(50):
            sending.put(number)
        assert sending.buffer.wait_empty(15)
    assert len(receiver.streams) == 50
    assert len(dialled) == 1


def test_more_than_a_window_arrives_byte_by_byte_as_it_was(receiver):
    chance = random.Random(5)
    messages = [chance.randbytes(chance.choice((0, 1, 100, 70_000))) for _ in range(200)]
    with Sending(receiver.address, deadline_s=20.0) as sending:
        sending.buffer.put(Stream("n", messages, 200, sum(map(len, messages))), [])
        assert sending.buffer.wait_empty(20)
    assert receiver.streams == [messages]
