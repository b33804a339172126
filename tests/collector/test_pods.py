"""Which pods the containers of a node are of, from the topic of all pods."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from collector.kube.topics import MetadataTopics
from collector.pods import LocalPods
from schemas.config import KafkaConfig
from schemas.errors import DecodeError
from schemas.kubernetes import Container, Pod, encode_object
from schemas.monitoring import End
from schemas.topics import PODS

if TYPE_CHECKING:
    from tests.support.kafka import KafkaBroker


def pod(name: str, node: str, *containers: str, namespace: str = "shop") -> bytes:
    record = Pod(
        uid=f"uid-{name}",
        namespace=namespace,
        name=name,
        node=node,
        labels={"app": name},
        containers=[Container("main", each) for each in containers],
    )
    return encode_object(record)


def test_the_pods_of_this_node_are_known_by_their_containers() -> None:
    pods = LocalPods(KafkaConfig(), "node-1")
    pods.apply(b"web", pod("web", "node-1", "c1", ""))
    pods.apply(b"api", pod("api", "node-2", "c2"))
    assert pods.end_of("c1") == End("shop", {"app": "web"}, "node-1")
    assert (pods.end_of("c2"), pods.end_of("")) == (None, None)
    pods.apply(b"web", pod("web", "node-1", "c1", ""))  # of another status
    pods.apply(b"job", pod("job", "node-1"))
    assert pods.generation == 1
    pods.apply(b"web", pod("web", "node-1", "c1", "c3"))  # a container was started again
    assert pods.end_of("c3") == pods.end_of("c1") != None  # noqa: E711
    pods.apply(b"web", pod("web", "node-1", "c3"))
    assert pods.end_of("c1") is None
    pods.apply(b"web", None)
    pods.apply(b"api", None)
    assert pods.end_of("c3") is None
    assert pods.generation == 4
    with pytest.raises(DecodeError):
        pods.apply(b"web", b"\xff")


@pytest.mark.kafka
def test_they_are_read_from_the_topic_as_they_change(kafka_broker: KafkaBroker) -> None:
    kafka = KafkaConfig(bootstrap_servers=kafka_broker.bootstrap_servers)
    MetadataTopics(kafka).ensure(20)
    first = pod("first", "node-of-pods", "c-pods-1")
    kafka_broker.produce(PODS.name, [first], key="pods-1")
    pods = LocalPods(kafka, "node-of-pods")
    try:
        pods.start()
        pods.start()
        _wait_for(pods, "c-pods-1")
        later = pod("later", "node-of-pods", "c-pods-2", namespace="bank")
        kafka_broker.produce(PODS.name, [b"\xff", later], key="pods-2")
        _wait_for(pods, "c-pods-2")
        assert pods.end_of("c-pods-2") == End("bank", {"app": "later"}, "node-of-pods")
        pods.stop()
        pods.apply(b"pods-3", pod("gone", "node-of-pods", "c-pods-3"))  # deleted, with its deletion
        pods.start()
        _wait_for(pods, "c-pods-2")
        assert pods.end_of("c-pods-3") is None
    finally:
        pods.stop()
        for key in ("pods-1", "pods-2"):
            kafka_broker.produce(PODS.name, [None], key=key)


def _wait_for(pods: LocalPods, container: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while pods.end_of(container) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
