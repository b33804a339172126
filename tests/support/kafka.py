"""Apache Kafka itself, one broker in KRaft mode, on loopback.

In a test ask for a fixture (it also marks the test ``kafka``)::

    def test_round_trip(kafka_broker: KafkaBroker) -> None:
        name = kafka_broker.create_topic("test.round-trip", partitions=2)
        kafka_broker.produce(name, [b"a", b"b"], partition=1)
        assert [m.value() for m in kafka_broker.consume_all(name)] == [b"a", b"b"]

``kafka_broker`` is shared by the whole run: use topic and group names of your own, and do not stop
it. ``new_kafka_broker`` is a function that starts brokers of the test's own, for tests that kill
them; they are gone after the test. Outside pytest (demos of a test, benchmarks)::

    with KafkaBroker.started(Path("/tmp/data")) as broker: ...

`create_topics` makes the project's topics (``schemas.topics``) as a deployment would. A broker
that was stopped or killed starts again on the same port with the same data by `start`. The jars
come from Maven Central into ``.cache/kafka`` once (about 45 MB).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.topics import TOPICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from confluent_kafka import Message

__all__ = ["LIBRARY", "KafkaBroker", "fetch", "free_port"]

_SUPPORT: Final = Path(__file__).parent
_CACHE: Final = _SUPPORT.parents[1] / ".cache" / "kafka"
LIBRARY: Final = _CACHE / "lib"
"""Where the jars are."""

_POM: Final = _SUPPORT / "pom.xml"
_CLUSTER_ID: Final = "cG9kd2lyZS1pbi10ZXN0cw"  # 16 bytes, URL-safe base64 without padding
_START_TIMEOUT_S: Final = 60.0
_JAVA: Final = (
    # The broker must not outlive the tests, however they end.
    *("setpriv", "--pdeathsig", "KILL"),
    *("java", "-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
    *("-Xshare:auto", "-XX:-UsePerfData", "-Djava.awt.headless=true"),
)
_EPHEMERAL_FROM: Final = 32_768
_PASSING: Final = frozenset(
    {
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
    }
)


def fetch() -> None:
    """Copy the jars into `LIBRARY` unless those of today's pom are there.

    Raises:
        RuntimeError: If Maven cannot get them.
    """
    _CACHE.mkdir(parents=True, exist_ok=True)
    done = LIBRARY / "pom.xml"
    wanted = _POM.read_bytes()
    with (_CACHE / "lock").open("w") as lock:  # two runs at once share one download
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists() and done.read_bytes() == wanted:
            return
        shutil.rmtree(LIBRARY, ignore_errors=True)
        command = [
            *("mvn", "--batch-mode", "--quiet", "--file", str(_POM)),
            *("dependency:copy-dependencies", "-DincludeScope=runtime"),
            f"-DoutputDirectory={LIBRARY}",
        ]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            lines = (answer.stdout + answer.stderr).strip().splitlines()
            raise RuntimeError(f"Maven cannot fetch Apache Kafka: {lines[0] if lines else '?'}")
        done.write_bytes(wanted)


_given: set[int] = set()


def free_port(address: str = "127.0.0.1") -> int:
    """A free TCP port of loopback, below the range the kernel gives to clients; never twice.

    While a killed broker is down, no client's own socket can take its port.
    """
    for _ in range(100):
        port = random.randrange(20_000, _EPHEMERAL_FROM)
        if port in _given:
            continue
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            _given.add(port)
            return port
    raise RuntimeError("no free port on loopback")


class KafkaBroker:
    """One broker that is its own controller; data and ports survive its death."""

    def __init__(self, directory: Path, *, settings: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.port = free_port()
        self.log_file = directory / "broker.log"
        self._controller_port = free_port()
        self._settings = settings or {}
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def started(cls, directory: Path, **options: Any) -> Iterator[KafkaBroker]:
        """A broker for a ``with`` block."""
        fetch()
        broker = cls(directory, **options)
        try:
            broker.start()
            yield broker
        finally:
            broker.stop()

    @property
    def bootstrap_servers(self) -> str:
        """What clients connect to."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running broker."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, or start again after `stop` or `kill`, and wait until it answers.

        Raises:
            RuntimeError: If it ends or stays silent; with the end of its log.
        """
        assert not self.running
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self._write_configuration()
        if not (self.directory / "data" / "meta.properties").exists():
            arguments = ("format", "--cluster-id", _CLUSTER_ID, "--config", str(configuration))
            self._launch("kafka.tools.StorageTool", *arguments).wait()
        self._process = self._launch("kafka.Kafka", str(configuration))
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                tail = self.log_file.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"Kafka did not start:\n{tail}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it in order; nothing to do if it is down already."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """``kill -9``."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Freeze the process: it accepts connections but answers nothing, until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def create_topics(self, partitions: int = 1) -> None:
        """Create every topic of the project; ``partitions`` is that of the events topic."""
        self._create(
            NewTopic(
                topic.name,
                num_partitions=partitions if topic.partitions == "events" else topic.partitions,
                replication_factor=1,
                config=topic.config(),
            )
            for topic in TOPICS
        )

    def create_topic(self, name: str, partitions: int = 1, **config: str) -> str:
        """Create one topic and return its name. Underscores in ``config`` names mean dots."""
        settings = {key.replace("_", "."): value for key, value in config.items()}
        self._create([NewTopic(name, partitions, 1, config=settings)])
        return name

    def delete_topics(self, *names: str) -> None:
        """Delete topics and wait until they are gone."""
        admin = self._admin()  # must live until the answers are there
        for future in admin.delete_topics(list(names), operation_timeout=20).values():
            future.result()
        # Done, but the broker's own list may have them still.
        _await(lambda: not set(names) & set(admin.list_topics(timeout=10).topics))

    def produce(
        self,
        topic: str,
        values: Iterable[bytes | None],
        *,
        key: str | bytes | None = None,
        partition: int = -1,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Send the values and wait until the broker has them all."""
        producer = Producer(
            {"bootstrap.servers": self.bootstrap_servers, "linger.ms": 0, **(settings or {})}
        )
        failures: list[KafkaError] = []
        for value in values:
            producer.produce(
                topic,
                value,
                key,
                partition,
                on_delivery=lambda error, _: failures.append(error) if error else None,
            )
        left = producer.flush(30)
        assert not left, f"{left} messages not sent"
        assert not failures, failures

    def consume_all(self, topic: str, *, timeout_s: float = 30.0) -> list[Message]:
        """Every message the topic holds now, in order within each partition."""
        consumer = self._consumer()
        try:
            partitions = self._partitions(consumer, topic)
            consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
            return _read_to_end(consumer, set(partitions), timeout_s)
        finally:
            consumer.close()

    def topics(self) -> dict[str, int]:
        """Number of partitions of each topic, without Kafka's own topics."""
        found = self._admin().list_topics(timeout=10).topics
        return {n: len(t.partitions) for n, t in found.items() if not n.startswith("__")}

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Offset of the next message of each partition."""
        consumer = self._consumer()
        try:
            return {
                p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1]
                for p in self._partitions(consumer, topic)
            }
        finally:
            consumer.close()

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Committed offset of each partition of the topic; -1001 where there is none."""
        consumer = self._consumer(group)
        try:
            asked = [TopicPartition(topic, p) for p in self._partitions(consumer, topic)]
            found = _retried(lambda: consumer.committed(asked, timeout=10))
            return {tp.partition: tp.offset for tp in found}
        finally:
            consumer.close()

    def _create(self, topics: Iterable[NewTopic]) -> None:
        admin = self._admin()  # must live until the answers are there
        wanted = list(topics)
        for future in admin.create_topics(wanted, operation_timeout=20).values():
            future.result()

        def is_led() -> bool:
            held = admin.list_topics(timeout=10).topics
            return all(
                topic.topic in held
                and len(held[topic.topic].partitions) == topic.num_partitions
                and all(each.leader >= 0 for each in held[topic.topic].partitions.values())
                for topic in wanted
            )

        _await(is_led)

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})

    def _consumer(self, group: str = "podwire-tests") -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.message.max.bytes": 16 * 1024 * 1024,
                "log_level": 0,
            }
        )

    @staticmethod
    def _partitions(consumer: Consumer, topic: str) -> list[int]:
        metadata = _retried(lambda: consumer.list_topics(topic, timeout=10))
        found = metadata.topics[topic]
        assert found.error is None, found.error
        return sorted(found.partitions)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", self.port)):
                return False
        try:
            return bool(self._admin().list_topics(timeout=2).brokers)
        except Exception:  # KafkaException: not ready yet, and the caller's deadline bounds it
            return False

    def _write_configuration(self) -> Path:
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},"
            f"CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.directory / "data"),
            # Topics that nobody declared are a mistake that a test should notice.
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            # A killed broker may register again as soon as its old session is over.
            "broker.heartbeat.interval.ms": "300",
            "broker.session.timeout.ms": "1500",
            # Groups form at once, and short session time-outs are allowed.
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            **self._settings,
        }
        path = self.directory / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return path

    def _launch(self, main: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [
                    *_JAVA,
                    f"-Dlog4j2.configurationFile={_SUPPORT / 'log4j2.properties'}",
                    *("-cp", f"{LIBRARY}/*", main, *arguments),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                # Ctrl-C in the terminal is for pytest, which stops the broker after its tests.
                start_new_session=True,
            )


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the broker does not come to it"
        time.sleep(0.05)


def _retried(ask: Callable[[], Any]) -> Any:
    # A broker that was just started, and its group coordinator, may need a moment.
    deadline = time.monotonic() + 20
    while True:
        try:
            return ask()
        except KafkaException as error:
            if time.monotonic() > deadline or error.args[0].code() not in _PASSING:
                raise
            time.sleep(0.1)


def _read_to_end(consumer: Consumer, open_partitions: set[int], timeout_s: float) -> list[Message]:
    messages: list[Message] = []
    deadline = time.monotonic() + timeout_s
    while open_partitions:
        assert time.monotonic() < deadline, f"partitions {open_partitions} not read to their end"
        message = consumer.poll(0.5)
        if message is None:
            continue
        error = message.error()
        if error is None:
            messages.append(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            open_partitions.discard(message.partition())
        else:
            raise AssertionError(str(error))
    return messages
