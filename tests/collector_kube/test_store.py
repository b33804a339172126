from __future__ import annotations

from collector.kube.store import TOPIC_OF, Change, Store
from schemas.kubernetes import Node, Pod, decode_object, encode_object

_KEEP_MS = 3_600_000
_NOW = 1_714_557_600_000


def decoded(change: Change | None) -> Pod:
    assert change is not None
    assert change.value is not None
    record = decode_object(TOPIC_OF[change.kind], change.value)
    assert isinstance(record, Pod)
    return record


def pod(uid: str = "p1", **values: object) -> Pod:
    return Pod(uid=uid, **{"namespace": "shop", "name": uid, **values})  # type: ignore[arg-type]


def test_topics_of_the_kinds() -> None:
    assert TOPIC_OF == {
        "pods": "podwire.k8s.pods.v1",
        "services": "podwire.k8s.services.v1",
        "endpointslices": "podwire.k8s.endpointslices.v1",
        "nodes": "podwire.k8s.nodes.v1",
    }


def test_only_what_differs_is_published() -> None:
    store = Store(_KEEP_MS)
    first = store.upsert("pods", pod(labels={"a": "1", "b": "2"}), 1, _NOW)
    assert first is not None
    assert first.change == "added"
    assert store.upsert("pods", pod(labels={"b": "2", "a": "1"}), 1, _NOW) is None
    second = store.upsert("pods", pod(labels={"a": "2"}), 1, _NOW)
    assert second is not None
    assert second.change == "changed"
    assert decoded(second).labels == {"a": "2"}


def test_what_the_topic_holds_is_not_published_again() -> None:
    store = Store(_KEEP_MS)
    assert store.load("pods", "p1", encode_object(pod()))
    assert store.upsert("pods", pod(), 1, _NOW) is None
    assert store.missing("pods", 1) == []


def test_a_deleted_object_stays_with_its_end_and_then_becomes_a_null() -> None:
    store = Store(_KEEP_MS)
    store.upsert("pods", pod(phase="Pending"), 1, _NOW)
    change = store.remove("pods", "p1", _NOW + 5, pod(phase="Running"))
    assert change is not None
    assert change.change == "deleted"
    assert decoded(change).deleted_ms == _NOW + 5
    assert decoded(change).phase == "Running"
    assert store.counts()["pods"] == 0
    assert store.remove("pods", "p1", _NOW + 9) is None
    assert store.expire(_NOW + 5 + _KEEP_MS - 1) == []
    assert store.expire(_NOW + 5 + _KEEP_MS) == [Change("pods", "p1", None, "expired")]
    assert store.expire(_NOW + 10 * _KEEP_MS) == []
    assert list(store.keys()) == []


def test_what_a_list_does_not_name_is_missing() -> None:
    store = Store(_KEEP_MS)
    store.load("pods", "old", encode_object(pod("old")))
    store.load("pods", "gone", encode_object(pod("gone", deleted_ms=_NOW)))
    store.upsert("pods", pod("p1"), 1, _NOW)
    store.upsert("pods", pod("p2", namespace="bank"), 1, _NOW)
    assert store.missing("pods", 1) == ["old"]
    store.upsert("pods", pod("p1"), 2, _NOW)
    assert sorted(store.missing("pods", 2)) == ["old", "p2"]
    assert store.missing("pods", 2, lambda namespace: namespace == "bank") == ["p2"]
    assert decoded(store.remove("pods", "old", _NOW)).deleted_ms == _NOW
    assert store.missing("services", 9) == []


def test_an_object_that_comes_back_is_alive_again() -> None:
    store = Store(_KEEP_MS)
    store.upsert("pods", pod(), 1, _NOW)
    store.remove("pods", "p1", _NOW)
    assert decoded(store.upsert("pods", pod(), 2, _NOW)).deleted_ms == 0
    assert store.expire(_NOW + 2 * _KEEP_MS) == []
    assert store.is_alive("pods", "p1")


def test_finished_pods_are_kept_as_long_as_deleted_ones() -> None:
    store = Store(_KEEP_MS)
    finished = pod(phase="Succeeded", deleted_ms=_NOW)
    change = store.upsert("pods", finished, 1, _NOW + 10)
    assert change is not None
    assert change.change == "deleted"
    # The object still exists; its end stays the first one.
    assert store.remove("pods", "p1", _NOW + 60_000, finished) is None
    assert len(store.expire(_NOW + _KEEP_MS)) == 1
    # Later lists still name it; it is not published any more.
    assert store.upsert("pods", finished, 2, _NOW + _KEEP_MS) is None
    assert store.counts()["pods"] == 0


def test_an_undecodable_record_is_replaced_or_removed() -> None:
    store = Store(_KEEP_MS)
    assert not store.load("pods", "p1", b"\xff\xff")
    assert not store.load("pods", "p2", b"")  # a record without uid
    assert store.current("pods", "p1") is None
    assert store.upsert("pods", pod("p1"), 1, _NOW) is not None
    assert store.missing("pods", 1) == ["p2"]
    assert store.remove("pods", "p2", _NOW) == Change("pods", "p2", None, "expired")
    assert store.counts()["pods"] == 1


def test_workload_is_corrected_once() -> None:
    store = Store(_KEEP_MS)
    store.upsert("pods", pod(workload_kind="ReplicaSet", workload_name="web-1"), 1, _NOW)
    change = store.relabel("p1", "Deployment", "web")
    assert (decoded(change).workload_kind, decoded(change).workload_name) == ("Deployment", "web")
    assert store.relabel("p1", "Deployment", "web") is None
    assert store.relabel("unknown", "Deployment", "web") is None


def test_current_state_for_another_try() -> None:
    store = Store(_KEEP_MS)
    store.upsert("nodes", Node(uid="n1", name="a"), 1, _NOW)
    store.upsert("pods", pod(), 1, _NOW)
    assert list(store.keys()) == [("nodes", "n1"), ("pods", "p1")]
    current = store.current("pods", "p1")
    assert current == Change("pods", "p1", encode_object(pod()), "repeated")
    assert store.current("pods", "unknown") is None
    assert store.remove("pods", "unknown", _NOW) is None
    assert store.counts() == {"pods": 1, "services": 0, "endpointslices": 0, "nodes": 1}
