from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from collector.kube.convert import KINDS, convert
from collector.kube.feed import Failed, Feed, Found, Gone, Listed
from collector.kube.store import TOPIC_OF
from collector.kube.topics import HeldMessage
from schemas.clock import ManualClock
from schemas.errors import TransportError
from schemas.kubernetes import encode_object
from schemas.telemetry import counter, gauge
from tests.collector_kube import objects
from tests.collector_kube.fakes import FakeBroker, running

if TYPE_CHECKING:
    from collector.kube.feed import Message


class ScriptedSource:
    """Feeds what the test says."""

    def __init__(self, *kinds: str) -> None:
        self.scopes = frozenset((kind, "") for kind in kinds or ("pods",))
        self.is_in_sync = True
        self.feed: Feed | None = None
        self.stopped = False

    def start(self, feed: Feed) -> None:
        self.feed = feed

    def in_sync(self) -> bool:
        return self.is_in_sync

    def stop(self) -> None:
        self.stopped = True

    def send(self, *messages: Message) -> None:
        assert self.feed is not None
        for message in messages:
            self.feed.put(message)

    def list(self, generation: int, *documents: dict[str, Any], kind: str = "pods") -> None:
        converted = [convert(kind, document) for document in documents]
        self.send(Found(kind, generation, converted), Listed(kind, generation))


def started(source: ScriptedSource, broker: FakeBroker) -> None:
    broker.wait_for(lambda: source.feed is not None)


def now_ms(clock: ManualClock) -> int:
    return clock.unix_ns() // 1_000_000


def test_the_first_full_state_is_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source, broker = ScriptedSource(*KINDS), FakeBroker()
    with running(source, broker) as run:
        started(source, broker)
        source.list(1, objects.pod("p1"), objects.pod("p2"))
        source.list(2, objects.service("s1"), kind="services")
        source.list(3, kind="endpointslices")
        broker.wait_for(lambda: len(broker.log) == 3)
        assert not run.pipeline.is_published
        source.list(4, objects.node("n1"), kind="nodes")
        run.wait_published()
        run.advance(2)
        broker.wait_for(lambda: gauge("podwire_kube_objects").labels("pods")._value.get() == 2)
    lines = [r.getMessage() for r in caplog.records if "full state" in r.getMessage()]
    assert lines == ["published the full state: 2 pods, 1 services, 0 endpointslices, 1 nodes"]
    assert source.stopped


def test_what_vanished_while_nobody_looked_is_published_as_deleted() -> None:
    broker, clock = FakeBroker(), ManualClock()
    for uid in ("p1", "p2"):
        record = convert("pods", objects.pod(uid)).record
        assert record is not None
        broker.log.append(HeldMessage(TOPIC_OF["pods"], uid, encode_object(record)))
    source = ScriptedSource()
    with running(source, broker, clock) as run:
        started(source, broker)
        source.list(1, objects.pod("p2"), objects.pod("p3"))
        run.wait_published()
    assert set(broker.alive("pods")) == {"p2", "p3"}
    assert broker.state("pods")["p1"].deleted_ms == now_ms(clock)
    assert len(broker.messages("pods", "p2")) == 1


def test_deleted_objects_become_nulls_after_their_time() -> None:
    source, broker = ScriptedSource(), FakeBroker()
    with running(source, broker, keep_deleted_s=100) as run:
        started(source, broker)
        source.list(1, objects.pod("p1"))
        source.send(Gone("pods", convert("pods", objects.pod("p1"))))
        broker.wait_for(lambda: not broker.alive("pods") and bool(broker.log))
        run.advance(99)
        source.send(Found("pods", 1, [convert("pods", objects.pod("p2"))]))
        broker.wait_for(lambda: "p2" in broker.alive("pods"))
        assert "p1" in broker.state("pods")
        run.advance(2)
        broker.wait_for(lambda: "p1" not in broker.state("pods"))
        assert broker.messages("pods", "p1")[-1] is None
        assert len(broker.messages("pods", "p1")) == 3


def test_an_undecodable_record_is_counted_and_replaced() -> None:
    broker = FakeBroker()
    broker.log += [
        HeldMessage(TOPIC_OF["pods"], "p1", b"\xff\xff"),
        HeldMessage(TOPIC_OF["pods"], "p2", b"\xff\xff"),
    ]
    counted = counter("podwire_errors_total").labels("kube", "undecodable_record")
    before = counted._value.get()
    source = ScriptedSource()
    with running(source, broker) as run:
        started(source, broker)
        source.list(1, objects.pod("p1"))
        run.wait_published()
    assert set(broker.state("pods")) == {"p1"}
    assert broker.messages("pods", "p2") == [b"\xff\xff", None]
    assert counted._value.get() == before + 2


def test_what_kafka_did_not_take_is_sent_again_in_its_latest_state() -> None:
    source, broker = ScriptedSource(), FakeBroker()
    broker.refuse = lambda topic, key: key == "p1"
    with running(source, broker) as run:
        started(source, broker)
        source.list(1, objects.pod("p1", "10.0.0.1"), objects.pod("p2"))
        broker.wait_for(lambda: "p2" in broker.alive("pods"))
        assert not run.pipeline.is_published
        source.send(Found("pods", 1, [convert("pods", objects.pod("p1", "10.0.0.2"))]))
        broker.refuse = lambda topic, key: False
        run.advance(3)
        broker.wait_for(lambda: "p1" in broker.alive("pods"))
        broker.wait_for(lambda: broker.alive("pods")["p1"].pod_ips == ["10.0.0.2"])
        run.wait_published()


def test_a_broker_that_lost_everything_gets_everything_again() -> None:
    source, broker = ScriptedSource(), FakeBroker()
    with running(source, broker) as run:
        started(source, broker)
        source.list(1, *(objects.pod(f"p{number}") for number in range(50)))
        source.send(Gone("pods", convert("pods", objects.pod("p0"))))
        run.wait_published()
        broker.wait_for(lambda: len(broker.alive("pods")) == 49)
        before = broker.state("pods")
        broker.lose_everything()
        run.advance(4)
        broker.wait_for(lambda: len(broker.state("pods")) == 50)
        assert broker.state("pods") == before
        assert broker.renewals == 1


def test_a_lost_broker_that_is_down_is_tried_again() -> None:
    source, broker = ScriptedSource(), FakeBroker()
    with running(source, broker) as run:
        started(source, broker)
        source.list(1, objects.pod("p1"))
        run.wait_published()
        counted = counter("podwire_errors_total").labels("kube", "kafka_unreachable")
        before = counted._value.get()
        broker.is_down = True
        broker.lose_everything()
        run.advance(4)
        broker.wait_for(lambda: counted._value.get() > before)
        assert broker.log == []
        broker.is_down = False
        run.advance(4)
        broker.wait_for(lambda: "p1" in broker.alive("pods"))


def test_everything_is_published_again_within_the_interval_but_only_if_current() -> None:
    source, broker = ScriptedSource(), FakeBroker()
    with running(source, broker, resync_interval_s=100) as run:
        started(source, broker)
        source.list(1, *(objects.pod(f"p{number}") for number in range(20)))
        run.wait_published()
        source.is_in_sync = False
        run.advance(60)
        run.advance(60)
        assert len(broker.log) == 20
        source.is_in_sync = True
        run.advance(60)  # a round begins
        run.advance(50)
        assert len(broker.log) == 30
        run.advance(50)
        assert {len(broker.messages("pods", f"p{number}")) for number in range(20)} == {2}
        assert len(broker.alive("pods")) == 20


def test_another_replicas_time_of_deletion_is_kept() -> None:
    source, broker = ScriptedSource(), FakeBroker()
    with running(source, broker) as run:
        started(source, broker)
        source.list(1, objects.pod("p1"), objects.pod("p2"))
        run.wait_published()
        record = convert("pods", objects.pod("p1")).record
        assert record is not None
        record.deleted_ms = 12345
        broker.log.append(HeldMessage(TOPIC_OF["pods"], "p1", encode_object(record)))
        run.advance(60)
        source.list(2)
        broker.wait_for(lambda: not broker.alive("pods"))
        # p1 ended long ago and is a null by now, p2 ends now.
        assert broker.state("pods")["p2"].deleted_ms == now_ms(run.clock)
        assert all(
            value is None or b"\xb9\x60" in value for value in broker.messages("pods", "p1")[1:]
        )


def test_two_replicas_agree() -> None:
    broker, clock = FakeBroker(), ManualClock()
    one, two = ScriptedSource(), ScriptedSource()
    with running(one, broker, clock) as first:
        started(one, broker)
        one.list(1, objects.pod("p1"), objects.pod("p2"))
        first.wait_published()
        with running(two, broker, clock) as second:
            started(two, broker)
            two.list(1, objects.pod("p1"), objects.pod("p2"))
            second.wait_published()
            assert len(broker.log) == 2
            for source in (one, two):
                source.send(Gone("pods", convert("pods", objects.pod("p1"))))
                source.send(Found("pods", 1, [convert("pods", objects.pod("p3"))]))
            broker.wait_for(lambda: len(broker.messages("pods", "p3")) == 2)
            for uid in ("p1", "p3"):
                assert len(set(broker.messages("pods", uid)[-2:])) == 1


def test_a_failed_source_ends_the_process() -> None:
    source, broker = ScriptedSource(), FakeBroker()

    def attempt() -> None:
        with running(source, broker):
            started(source, broker)
            source.send(Failed(ZeroDivisionError()))
            broker.wait_for(lambda: source.stopped)

    with pytest.raises(ZeroDivisionError):
        attempt()


def test_no_broker_at_start_is_an_error_after_the_time_for_it() -> None:
    source, broker = ScriptedSource(), FakeBroker()
    broker.is_down = True

    class HurryingClock(ManualClock):
        def monotonic_ns(self) -> int:
            self.advance(10)
            return self.now_monotonic_ns

    def attempt() -> None:
        with running(source, broker, HurryingClock(), kafka_timeout_s=30):
            broker.wait_for(lambda: source.stopped)

    with pytest.raises(TransportError, match="no usable Kafka broker"):
        attempt()
    assert source.feed is None
