"""The pipeline's neighbours without Kafka."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from collector.kube.config import KubeConfig
from collector.kube.pipeline import Pipeline
from collector.kube.store import TOPIC_OF
from collector.kube.topics import HeldMessage
from schemas.clock import ManualClock
from schemas.errors import TransportError
from schemas.kubernetes import decode_object
from schemas.telemetry import Health

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from collector.kube.feed import Source
    from schemas.clock import Clock
    from schemas.kubernetes import KubernetesObject


class FakeBroker:
    """Both ends of the metadata topics: what a `Publisher` writes, a `MetadataTopics` reads."""

    def __init__(self) -> None:
        self.log: list[HeldMessage] = []
        self.delivered: dict[tuple[str, int], int] = {}
        self.refuse: Callable[[str, str], bool] = lambda topic, key: False
        self.is_down = False
        self.is_lost = False
        self.renewals = 0
        self.polls = 0
        self._failed: dict[tuple[str, str], None] = {}
        self._changed = threading.Condition()

    # The publisher's side.

    def publish(
        self, topic: str, key: str, value: bytes | None, is_stopping: Callable[[], bool]
    ) -> None:
        with self._changed:
            if self.refuse(topic, key):
                self._failed[topic, key] = None
            else:
                self.log.append(HeldMessage(topic, key, value))
            self._changed.notify_all()

    def poll(self) -> None:
        with self._changed:
            self.polls += 1
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> int:
        return 0

    @property
    def has_failed(self) -> bool:
        return bool(self._failed)

    def take_failed(self) -> list[tuple[str, str]]:
        failed = list(self._failed)
        self._failed.clear()
        return failed

    def renew_if_broken(self) -> bool:
        return False

    def renew(self) -> None:
        self.renewals += 1

    def close(self, timeout_s: float = 0.0) -> int:
        return len(self._failed)

    # The reader's side.

    def ensure(self, timeout_s: float) -> None:
        if self.is_down:
            raise TransportError("no usable Kafka broker at nowhere: down")

    def read(self, timeout_s: float) -> Iterator[HeldMessage]:
        if self.is_down:
            raise TransportError("down")
        with self._changed:
            held = list(self.log)
        yield from held

    def is_reset(self, delivered: Mapping[tuple[str, int], int]) -> bool:
        with self._changed:
            lost, self.is_lost = self.is_lost, False
        return lost

    # The test's side.

    def lose_everything(self) -> None:
        with self._changed:
            self.log.clear()
            self.is_lost = True

    def state(self, kind: str) -> dict[str, KubernetesObject]:
        """What a compacted topic would hold."""
        with self._changed:
            values = {m.key: m.value for m in self.log if m.topic == TOPIC_OF[kind]}
        return {key: decode_object(TOPIC_OF[kind], value) for key, value in values.items() if value}

    def alive(self, kind: str) -> dict[str, Any]:
        """The objects that are not deleted."""
        return {uid: o for uid, o in self.state(kind).items() if not o.deleted_ms}

    def messages(self, kind: str, uid: str) -> list[bytes | None]:
        """Everything that was published for one object."""
        with self._changed:
            return [m.value for m in self.log if (m.topic, m.key) == (TOPIC_OF[kind], uid)]

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
        """Wait until the condition holds."""
        with self._changed:
            deadline = time.monotonic() + timeout_s
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, "it was not published in time"
                self._changed.wait(min(left, 0.2))


class Running:
    """A pipeline in a thread."""

    def __init__(self, pipeline: Pipeline, broker: FakeBroker, clock: ManualClock) -> None:
        self.pipeline = pipeline
        self.broker = broker
        self.clock = clock

    def advance(self, seconds: float) -> None:
        """Move the clock and let the pipeline see it."""
        self.clock.advance(seconds)
        seen = self.broker.polls
        self.broker.wait_for(lambda: self.broker.polls >= seen + 2)

    def wait_published(self) -> None:
        self.broker.wait_for(lambda: self.pipeline.is_published)


@contextlib.contextmanager
def running(
    source: Source,
    broker: FakeBroker | None = None,
    clock: ManualClock | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """Run the pipeline on a broker for a ``with`` block; its errors end the test."""
    broker = broker or FakeBroker()
    manual = clock or ManualClock()
    used: Clock = manual
    settings.setdefault("resync_interval_s", 0)
    pipeline = Pipeline(
        KubeConfig.load(environment={}, options=settings),
        source,
        broker,  # type: ignore[arg-type]
        broker,  # type: ignore[arg-type]
        Health(),
        used,
    )
    failures: list[BaseException] = []

    def run() -> None:
        try:
            pipeline.run()
        except BaseException as error:  # handed to the test below
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield Running(pipeline, broker, manual)
    finally:
        pipeline.stop()
        thread.join(timeout=10)
        assert not thread.is_alive()
        if failures:
            raise failures[0]
