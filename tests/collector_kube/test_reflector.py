"""The real client and reflectors against an API server, judged by what reaches the topics."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from collector.kube.api_client import ApiClient
from collector.kube.backoff import Backoff
from collector.kube.convert import KINDS, OWNER_KINDS
from collector.kube.credentials import Credentials
from collector.kube.feed import Failed, Feed, Found, Listed
from collector.kube.reflector import Collection, Reflector
from collector.kube.source_api import ApiSource, collections
from schemas.telemetry import counter
from tests.collector_kube import objects
from tests.collector_kube.fake_api import FakeApi
from tests.collector_kube.fakes import FakeBroker, Running, running

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALL = (*KINDS, *OWNER_KINDS)


def quick() -> Backoff:
    return Backoff(initial_s=0.005, maximum_s=0.02)


def source_of(api: FakeApi, *namespaces: str, page_size: int = 500, token: str = "") -> ApiSource:
    client = ApiClient(Credentials(api.url, token=token))
    return ApiSource(client, namespaces, page_size, quick)


@contextlib.contextmanager
def following(api: FakeApi, **options: Any) -> Iterator[Running]:
    with running(source_of(api, **options), FakeBroker()) as run:
        run.wait_published()
        api.wait_for_watches(*_ALL)
        yield run


def relists(kind: str, reason: str) -> float:
    return counter("podwire_kube_relists_total").labels(kind, reason)._value.get()


def errors(label: str) -> float:
    return counter("podwire_errors_total").labels("kube", label)._value.get()


def test_paths() -> None:
    assert Collection("pods", "v1").path == "/api/v1/pods"
    assert Collection("pods", "v1", "shop").path == "/api/v1/namespaces/shop/pods"
    path = "/apis/discovery.k8s.io/v1/endpointslices"
    assert Collection("endpointslices", "discovery.k8s.io/v1").path == path
    assert [c.kind for c in collections(())] == [
        *("replicasets", "jobs", "nodes", "services", "endpointslices", "pods")
    ]
    by_namespace = [(c.kind, c.namespace) for c in collections(("a", "b"))]
    assert by_namespace.count(("pods", "a")) == by_namespace.count(("pods", "b")) == 1
    assert ("nodes", "") in by_namespace
    assert len(by_namespace) == 11


def test_list_then_watch() -> None:
    with FakeApi() as api:
        api.put(objects.pod("p1"), objects.service("s1"), objects.node("n1"))
        api.put(objects.endpoint_slice("e1"))
        with following(api) as run:
            broker = run.broker
            assert {kind: len(broker.alive(kind)) for kind in KINDS} == dict.fromkeys(KINDS, 1)
            api.put(objects.pod("p2", "10.0.0.2"), objects.pod("p1", "10.0.0.9"))
            broker.wait_for(
                lambda: (
                    "p2" in broker.alive("pods")
                    and broker.alive("pods")["p1"].pod_ips == ["10.0.0.9"]
                )
            )
            run.clock.advance(60)
            api.delete("pods", "p1")
            broker.wait_for(lambda: "p1" not in broker.alive("pods"))
            gone = broker.state("pods")["p1"]
            assert gone.deleted_ms == run.clock.unix_ns() // 1_000_000
            assert gone.pod_ips == ["10.0.0.9"]
            assert len(api.lists("pods")) == 1


def test_the_list_is_read_in_pages_of_one_snapshot() -> None:
    with FakeApi() as api:
        api.put(*(objects.pod(f"p{number}") for number in range(25)))
        with following(api, page_size=10) as run:
            assert len(run.broker.alive("pods")) == 25
        pages = [r for r in api.requests if r.kind == "pods" and not r.is_watch]
        assert len(pages) == 3
        assert all(page.query["limit"] == "10" for page in pages)


def test_owners_are_asked_for_metadata_only() -> None:
    with FakeApi() as api:
        owner = ("ReplicaSet", "odd-name", "r1")
        api.put(objects.pod("p1", owner=owner))
        with following(api) as run:
            assert run.broker.alive("pods")["p1"].workload_name == "odd-name"
            # The owner shows up after its pod.
            api.put(objects.replica_set("r1", "odd-name", "web"))
            run.broker.wait_for(lambda: run.broker.alive("pods")["p1"].workload_name == "web")
            assert run.broker.alive("pods")["p1"].workload_kind == "Deployment"
            api.put(objects.pod("p2", owner=owner))
            run.broker.wait_for(lambda: "p2" in run.broker.alive("pods"))
            assert run.broker.alive("pods")["p2"].workload_name == "web"
            assert len(run.broker.messages("pods", "p2")) == 1
        for request in api.requests:
            is_owner = request.kind in OWNER_KINDS
            assert ("PartialObjectMetadata" in request.headers["accept"]) == is_owner


def test_owners_may_be_forbidden() -> None:
    with FakeApi() as api:
        api.fail(403, kind="replicasets", times=10**6)
        labels = {"pod-template-hash": "5d"}
        api.put(objects.pod("p1", owner=("ReplicaSet", "web-5d", "r1"), labels=labels))
        with running(source_of(api), FakeBroker()) as run:
            run.wait_published()
            assert run.broker.alive("pods")["p1"].workload_name == "web"
            assert run.broker.alive("pods")["p1"].workload_kind == "Deployment"


@pytest.mark.parametrize("mid_line", [False, True])
def test_a_lost_connection_resumes_where_it_was(mid_line: bool) -> None:
    with FakeApi() as api:
        api.put(objects.pod("p1"))
        with following(api) as run:
            api.put(objects.pod("p2"))
            run.broker.wait_for(lambda: "p2" in run.broker.alive("pods"))
            resumed_at = api.version
            if mid_line:
                half = {"type": "ADDED", "object": objects.pod("never")}
                api.inject(json.dumps(half).encode()[:80])
            api.cut("pods")
            api.put(objects.pod("p3"))
            run.broker.wait_for(lambda: "p3" in run.broker.alive("pods"))
            assert set(run.broker.alive("pods")) == {"p1", "p2", "p3"}
            assert len(api.lists("pods")) == 1
            assert api.watches("pods")[1].query["resourceVersion"] == resumed_at


def test_bookmarks_move_the_place_to_resume() -> None:
    with FakeApi() as api:
        with following(api):
            api.put(*(objects.node(f"n{number}") for number in range(5)))
            api.bookmark()
            version = api.version
            # A further event on the same stream proves that the bookmark was read.
            api.inject(b'{"type": "BOOKMARK", "object": {"metadata": {}}}\n')
            before = len(api.watches("services"))
            api.cut("services")
            api.wait_for(lambda: len(api.watches("services")) > before)
            assert api.watches("services")[-1].query["resourceVersion"] == version
        assert len(api.lists("services")) == 1


@pytest.mark.parametrize("in_stream", [True, False])
def test_gone_lists_again_and_finds_what_vanished(in_stream: bool) -> None:
    with FakeApi() as api:
        api.expire_in_stream = in_stream
        api.put(objects.pod("p1"), objects.pod("p2"))
        with following(api) as run:
            before = relists("pods", "expired")
            with api.unreachable_watches("pods"):
                api.delete("pods", "p1")
                api.put(objects.pod("p3"))
                api.compact()
            run.broker.wait_for(lambda: set(run.broker.alive("pods")) == {"p2", "p3"})
            assert run.broker.state("pods")["p1"].deleted_ms
            # What did not change was not published again.
            assert len(run.broker.messages("pods", "p2")) == 1
            assert relists("pods", "expired") == before + 1
            api.put(objects.pod("p4"))
            run.broker.wait_for(lambda: "p4" in run.broker.alive("pods"))


def test_a_page_token_that_expired_starts_the_list_over_with_larger_pages() -> None:
    with FakeApi() as api:
        api.put(*(objects.pod(f"p{number}") for number in range(40)))
        api.fail_tokens(1)
        with following(api, page_size=10) as run:
            assert len(run.broker.alive("pods")) == 40
        assert [r.query["limit"] for r in api.lists("pods")] == ["10", "20"]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502, 503])
def test_refusals_are_survived_and_counted(status: int) -> None:
    with FakeApi() as api:
        api.put(objects.pod("p1"))
        before = errors(f"api_{status}")
        api.fail(status, kind="pods", times=3)
        api.fail(status, kind="services", times=1, watch=True)
        with following(api) as run:
            assert set(run.broker.alive("pods")) == {"p1"}
        assert errors(f"api_{status}") == before + 4


def test_retry_after_is_obeyed() -> None:
    with FakeApi() as api:
        api.fail(429, kind="nodes", retry_after="1")
        times: list[float] = []
        with following(api):
            times = [r.at_s for r in api.lists("nodes")]
        assert len(times) == 2
        assert times[1] - times[0] >= 1.0


def test_the_server_restarts() -> None:
    with FakeApi() as api:
        api.put(objects.pod("p1"))
        with following(api) as run:
            api.stop()
            api.put(objects.pod("p2"))
            api.start()
            run.broker.wait_for(lambda: "p2" in run.broker.alive("pods"))
            api.wait_for_watches(*_ALL)
        assert {kind: len(api.lists(kind)) for kind in _ALL} == dict.fromkeys(_ALL, 1)


def test_a_watch_that_never_gets_anywhere_is_replaced_by_a_list() -> None:
    with FakeApi() as api:
        api.put(objects.pod("p1"))
        with following(api) as run:
            before = relists("pods", "stalled")
            api.fail(504, kind="pods", watch=True, times=5, message="Too large resource version")
            api.cut("pods")
            api.put(objects.pod("p2"))
            run.broker.wait_for(lambda: "p2" in run.broker.alive("pods"))
            api.put(objects.pod("p3"))
            run.broker.wait_for(lambda: "p3" in run.broker.alive("pods"))
            assert relists("pods", "stalled") == before + 1


def test_other_errors_in_the_stream_resume() -> None:
    with FakeApi() as api, following(api) as run:
        status = {"kind": "Status", "code": 500, "message": "etcdserver: request timed out"}
        api.inject(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
        api.wait_for(lambda: len(api.watches("pods")) >= 2)
        api.put(objects.pod("p1"))
        run.broker.wait_for(lambda: "p1" in run.broker.alive("pods"))
        assert len(api.lists("pods")) == 1


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b'{"type": "ERROR", "object": null}\n',
        b'{"type": "ERROR"}\n',
    ],
)
def test_nonsense_in_the_stream_resumes(line: bytes) -> None:
    with FakeApi() as api, following(api) as run:
        api.inject(line)
        api.wait_for(lambda: len(api.watches("pods")) >= 2)
        api.put(objects.pod("p1"))
        run.broker.wait_for(lambda: "p1" in run.broker.alive("pods"))


def test_malformed_objects_are_counted_and_stop_nothing() -> None:
    with FakeApi() as api:
        broken = objects.pod("p1")
        broken["metadata"]["name"] = 5
        api.put(broken, objects.pod("p2"))
        before = errors("malformed_object")
        with following(api) as run:
            assert set(run.broker.alive("pods")) == {"p2"}
            api.inject(b'{"type": "ADDED", "object": 7}\n')
            api.inject(b'{"type": "SOMETHING", "object": {}}\n')
            api.inject(b'{"type": "DELETED"}\n')
            api.put(objects.pod("p3"))
            run.broker.wait_for(lambda: "p3" in run.broker.alive("pods"))
            assert len(api.watches("pods")) == 1
        assert errors("malformed_object") == before + 4


@pytest.mark.parametrize(
    "body",
    [
        b'{"items": {}, "metadata": {"resourceVersion": "1"}}',
        b'{"items": []}',
        b'{"items": [], "metadata": {}}',
        b"<html>",
    ],
)
def test_an_answer_that_is_no_list_is_tried_again(body: bytes) -> None:
    with FakeApi() as api:
        api.put(objects.pod("p1"))
        api.fail(200, kind="pods", watch=False, body=body)
        with following(api) as run:
            assert set(run.broker.alive("pods")) == {"p1"}


def test_namespaces_are_listed_one_by_one() -> None:
    with FakeApi() as api:
        api.put(objects.pod("p1"), objects.pod("p2", namespace="bank"))
        api.put(objects.pod("p3", namespace="other"), objects.node("n1"))
        source = source_of(api, "shop", "bank")
        with running(source, FakeBroker(), namespaces="shop,bank") as run:
            run.wait_published()
            assert set(run.broker.alive("pods")) == {"p1", "p2"}
            assert set(run.broker.alive("nodes")) == {"n1"}
            api.wait_for_watches(*_ALL)
            with api.unreachable_watches("pods"):
                api.delete("pods", "p2")
                api.compact()
            run.broker.wait_for(lambda: set(run.broker.alive("pods")) == {"p1"})


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_in_a_storm_of_changes_and_faults(seed: int) -> None:
    generator = random.Random(seed)
    with FakeApi() as api, following(api, page_size=7) as run:
        alive: dict[str, str] = {}
        for step in range(400):
            if alive and generator.random() < 0.45:
                uid = generator.choice(sorted(alive))
                if generator.random() < 0.5:
                    api.delete("pods", uid)
                    del alive[uid]
                else:
                    alive[uid] = f"10.1.{step // 250}.{step % 250}"
                    api.put(objects.pod(uid, alive[uid]))
            else:
                alive[f"p{step}"] = f"10.0.{step // 250}.{step % 250}"
                api.put(objects.pod(f"p{step}", alive[f"p{step}"]))
            if generator.random() < 0.06:
                fault = generator.choice(
                    [
                        api.cut,
                        api.compact,
                        api.bookmark,
                        lambda: (api.compact(), api.cut("pods")),
                        lambda: api.fail(generator.choice([401, 429, 500, 503]), kind="pods"),
                        lambda: api.inject(b'{"type": "ADDED", "obj'),
                        lambda: (api.stop(), api.start()),
                    ]
                )
                fault()
        api.expire_in_stream = generator.random() < 0.5
        run.broker.wait_for(
            lambda: {uid: pod.pod_ips[0] for uid, pod in run.broker.alive("pods").items()} == alive,
            timeout_s=30,
        )


def test_the_token_is_sent() -> None:
    with FakeApi(token="right") as api:
        api.put(objects.pod("p1"))
        with following(api, token="right") as run:
            assert set(run.broker.alive("pods")) == {"p1"}


def test_not_in_sync_until_every_watch_is_open() -> None:
    with FakeApi() as api:
        source = source_of(api)
        with running(source, FakeBroker()) as run:
            run.wait_published()
            api.wait_for_watches(*_ALL)
            run.broker.wait_for(source.in_sync)
            with api.unreachable_watches("nodes"):
                run.broker.wait_for(lambda: not source.in_sync())
            run.broker.wait_for(source.in_sync)


def test_stop_does_not_wait_for_the_end_of_a_watch() -> None:
    with FakeApi() as api:
        feed = Feed()
        client = ApiClient(Credentials(api.url))
        reflector = Reflector(Collection("pods", "v1"), client, feed, itertools.count(1), quick())
        reflector.start()
        api.wait_for_watches("pods")
        assert feed.get(5) == Listed("pods", 1)
        reflector.stop()
        reflector.join(5)
        assert not reflector.is_alive()


def test_a_bug_is_handed_over_and_not_swallowed() -> None:
    class BrokenClient(ApiClient):
        def page(self, *_: object, **__: object) -> dict[str, Any]:
            raise ZeroDivisionError

    feed = Feed()
    client = BrokenClient(Credentials("http://127.0.0.1:9"))
    reflector = Reflector(Collection("pods", "v1"), client, feed, itertools.count(1), quick())
    reflector.start()
    message = feed.get(5)
    assert isinstance(message, Failed)
    assert isinstance(message.error, ZeroDivisionError)
    reflector.join(5)
    assert not reflector.is_alive()


def test_pages_wait_for_the_consumer() -> None:
    with FakeApi() as api:
        api.put(*(objects.pod(f"p{number}") for number in range(100)))
        feed = Feed()
        client = ApiClient(Credentials(api.url))
        reflector = Reflector(
            Collection("pods", "v1"), client, feed, itertools.count(1), quick(), page_size=1
        )
        reflector.start()
        # 16 pages wait in the feed and one in the hands of the reflector, whatever the size.
        api.wait_for(lambda: len(api.requests) == 17)
        seen = 0
        while True:
            message = feed.get(5)
            if isinstance(message, Listed):
                break
            assert isinstance(message, Found)
            seen += len(message.objects)
            assert len(api.requests) <= seen + 17
        assert seen == 100
        feed.close()
        reflector.stop()
        reflector.join(5)
