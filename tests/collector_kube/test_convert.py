from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.kube.convert import KINDS, OWNER_KINDS, convert, kind_of
from collector.kube.store import TOPIC_OF
from collector.kube.workload import Owner
from schemas.kubernetes import (
    Container,
    Endpoint,
    EndpointSlice,
    Node,
    Pod,
    Service,
    ServicePort,
    decode_object,
    encode_object,
)
from tests.collector_kube import objects

_MAY_1_10H_MS = 1_714_557_600_000  # date -u -d 2024-05-01T10:00:00Z +%s
_UID = "0f5e9c3e-6a5c-4d6e-9a57-1c0e8a7f"


def converted_pod(name: str) -> Pod:
    result = convert("pods", objects.item("Pod", name))
    assert result.problems == ()
    assert isinstance(result.record, Pod)
    return result.record


def test_deployment_pod_with_every_kind_of_container() -> None:
    assert converted_pod("web-7d4b9c6f5d-x2k8v") == Pod(
        uid=f"{_UID}1101",
        namespace="shop",
        name="web-7d4b9c6f5d-x2k8v",
        node="node-a",
        host_network=False,
        pod_ips=["10.244.1.17", "fd00:10:244:1::11"],
        host_ips=["192.168.1.10", "fd00:0:0:1::a"],
        containers=[
            Container("nginx", "1" * 64, "container", [8080, 8443]),
            # The instance before the restart: its last events may still be on their way.
            Container("nginx", "10" * 32, "container", [8080, 8443]),
            Container("istio-proxy", "2" * 64, "container", []),
            Container("migrate", "4" * 64, "init", []),
            Container("debugger-4x2", "3" * 64, "ephemeral", []),
        ],
        labels={"app": "web", "pod-template-hash": "7d4b9c6f5d"},
        workload_kind="Deployment",
        workload_name="web",
        phase="Running",
        created_ms=_MAY_1_10H_MS,
        deleted_ms=0,
        accepted_ms=_MAY_1_10H_MS,
        running_ms=_MAY_1_10H_MS + 4_000,
    )


def test_the_replica_set_is_named_for_a_closer_look() -> None:
    result = convert("pods", objects.item("Pod", "web-7d4b9c6f5d-x2k8v"))
    uid = "b1b3a6f2-0d0c-4a39-8a0a-5a3b1f0c9d01"
    assert result.owner == Owner("ReplicaSet", "web-7d4b9c6f5d", uid)


def test_daemon_set_pod_on_the_host_network() -> None:
    pod = converted_pod("node-exporter-9zq2l")
    assert pod.host_network
    assert pod.pod_ips == pod.host_ips == ["192.168.1.11"]
    assert pod.containers == [Container("exporter", "5" * 64, "container", [9100])]
    assert (pod.workload_kind, pod.workload_name) == ("DaemonSet", "node-exporter")
    assert convert("pods", objects.item("Pod", "node-exporter-9zq2l")).owner is None


def test_finished_job_pod_has_left_the_network_although_it_shows_an_ip() -> None:
    pod = converted_pod("report-28576470-7hx9d")
    assert (pod.workload_kind, pod.workload_name) == ("CronJob", "report")
    assert pod.pod_ips == ["10.244.2.40"]
    # 10:31:12 in whole seconds: it ended before 10:31:13.
    assert pod.deleted_ms == _MAY_1_10H_MS + (31 * 60 + 12) * 1000 + 999


def test_stateful_set_pod_of_an_old_server_without_plural_fields() -> None:
    pod = converted_pod("db-0")
    assert pod.pod_ips == ["10.244.1.18"]
    assert pod.host_ips == ["192.168.1.10"]
    assert pod.containers == [Container("postgres", "7" * 64, "container", [5432])]
    assert (pod.workload_kind, pod.workload_name) == ("StatefulSet", "db")


def test_pending_pod_has_no_addresses_yet() -> None:
    pod = converted_pod("web-7d4b9c6f5d-pending")
    assert (pod.node, pod.pod_ips, pod.host_ips) == ("", [], [])
    assert pod.containers == [Container("nginx", "", "container", [8080])]
    assert pod.deleted_ms == 0


def test_static_pod_is_named_without_its_node() -> None:
    pod = converted_pod("kube-apiserver-node-a")
    assert (pod.workload_kind, pod.workload_name) == ("Pod", "kube-apiserver")


def test_evicted_pod_without_statuses_ended_with_its_last_condition() -> None:
    pod = converted_pod("shell")
    assert (pod.workload_kind, pod.workload_name) == ("Pod", "shell")
    assert pod.deleted_ms == _MAY_1_10H_MS - 40 * 60 * 1000


def test_load_balancer_service_with_two_families() -> None:
    result = convert("services", objects.item("Service", "web"))
    assert result.problems == ()
    assert result.record == Service(
        uid=f"{_UID}1201",
        namespace="shop",
        name="web",
        type="LoadBalancer",
        cluster_ips=["10.96.10.20", "fd00:10:96::a14"],
        external_ips=["203.0.113.7"],
        load_balancer_ips=["198.51.100.4"],
        ports=[ServicePort("http", "TCP", 80, 30080), ServicePort("https", "TCP", 443, 30443)],
        selector={"app": "web"},
        created_ms=_MAY_1_10H_MS - 26 * 3_600_000,
    )


def test_headless_service_has_no_address_and_no_problem() -> None:
    result = convert("services", objects.item("Service", "db"))
    assert result.problems == ()
    assert isinstance(result.record, Service)
    assert result.record.cluster_ips == []
    assert result.record.ports == [ServicePort("", "TCP", 5432, 0)]


def test_endpoint_slice() -> None:
    result = convert("endpointslices", objects.item("EndpointSlice", "web-k2m4p"))
    assert result.problems == ()
    assert result.record == EndpointSlice(
        uid=f"{_UID}1301",
        namespace="shop",
        name="web-k2m4p",
        service="web",
        address_type="IPv4",
        endpoints=[
            Endpoint(["10.244.1.17"], f"{_UID}1101", "web-7d4b9c6f5d-x2k8v", "node-a", True),
            Endpoint(["10.244.9.9"], "", "", "", False),
            # Not known to be ready counts as ready; a target that is no pod is none.
            Endpoint(["192.0.2.80"], "", "", "", True),
        ],
        ports=[8080, 8443],
        created_ms=_MAY_1_10H_MS - 26 * 3_600_000 + 1000,
    )


def test_empty_endpoint_slice_with_the_nulls_of_go() -> None:
    result = convert("endpointslices", objects.endpoint_slice("e1"))
    assert result.problems == ()
    assert result.record == EndpointSlice(uid="e1", namespace="shop", name="slice-e1")


def test_node() -> None:
    result = convert("nodes", objects.item("Node", "node-a"))
    assert result.problems == ()
    assert result.record == Node(
        uid=f"{_UID}1401",
        name="node-a",
        addresses=["192.168.1.10", "fd00:0:0:1::a", "198.51.100.10"],
        pod_cidrs=["10.244.1.0/24", "fd00:10:244:1::/64"],
        created_ms=_MAY_1_10H_MS - 27 * 3_600_000 - 60_000,
    )


def test_owner_kinds_give_the_workload_behind_them() -> None:
    owned = convert("replicasets", objects.replica_set("r1", "web-1", "web"))
    assert owned.workload == ("Deployment", "web")
    assert owned.record is None
    alone = convert("jobs", {"metadata": {"uid": "j1", "name": "once"}})
    assert alone.workload == ("Job", "once")
    assert not alone.is_skipped


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "pod",
        7,
        {},
        {"metadata": None},
        {"metadata": {"name": "x"}},
        {"metadata": {"uid": "x"}},
        {"metadata": {"uid": 1, "name": "x"}},
        {"metadata": {"uid": "", "name": "x"}},
    ],
)
@pytest.mark.parametrize("kind", [*KINDS, *OWNER_KINDS])
def test_objects_without_identity_are_skipped_with_a_reason(kind: str, document: Any) -> None:
    result = convert(kind, document)
    assert result.is_skipped
    assert "no uid or no name" in result.problems


def test_broken_fields_are_absent_and_noted_and_the_rest_stays() -> None:
    document = objects.pod("p1")
    document["metadata"]["creationTimestamp"] = "yesterday"
    document["metadata"]["labels"] = {"app": "web", "replicas": 3}
    document["metadata"]["ownerReferences"] = "none"
    document["spec"]["hostNetwork"] = "yes"
    document["spec"]["containers"].append({"name": "b", "ports": [{"containerPort": 70000}]})
    document["status"]["podIPs"] = [{"ip": "10.0.0.1"}, {"ip": "not an address"}, 5]
    document["status"]["containerStatuses"] = {"name": "main"}
    result = convert("pods", document)
    pod = result.record
    assert isinstance(pod, Pod)
    assert pod.uid == "p1"
    assert pod.created_ms == 0
    assert pod.labels == {"app": "web"}
    assert pod.host_network is False
    assert pod.pod_ips == ["10.0.0.1"]
    assert pod.containers == [Container("main"), Container("b")]
    assert pod.workload_kind == "Pod"
    assert len(result.problems) == 8
    assert "containerPort is not a port" in result.problems


def test_text_that_is_not_utf8_survives_encoding() -> None:
    document = objects.pod("p1", labels={"x": "\ud800", "umlaut": "ü"})
    record = convert("pods", document).record
    assert record is not None
    decoded = decode_object(TOPIC_OF["pods"], encode_object(record))
    assert isinstance(decoded, Pod)
    assert decoded.labels == {"x": "?", "umlaut": "ü"}


def test_kind_of() -> None:
    assert kind_of({"kind": "EndpointSlice"}) == "endpointslices"
    assert kind_of({"kind": "Endpoints"}) == ""
    assert kind_of({"kind": ["Pod"]}) == ""
    assert kind_of("Pod") == ""


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(alphabet=st.characters(), max_size=8)
    | st.sampled_from(["10.0.0.1", "::1", "2024-05-01T10:00:00Z", "TCP", "Succeeded", "a://b"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def _mutated(draw: st.DrawFn) -> tuple[str, Any]:
    """A real object with one or two values replaced by anything."""
    document = draw(st.sampled_from(objects.cluster()["items"][:-1]))
    kind = kind_of(document)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = document
        while True:
            if not isinstance(place, dict | list) or not place:
                break
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys))
            if draw(st.integers(0, 3)) == 0 or not isinstance(place[key], dict | list):
                place[key] = draw(_json)
                break
            place = place[key]
    return kind, document


@settings(max_examples=300)
@given(_mutated())
def test_no_mutation_of_a_real_object_raises_or_breaks_the_record(case: tuple[str, Any]) -> None:
    kind, document = case
    result = convert(kind, document)
    assert result.is_skipped == (result.record is None)
    if result.record is not None:
        decoded = decode_object(TOPIC_OF[kind], encode_object(result.record))
        assert dataclasses.asdict(decoded) == dataclasses.asdict(result.record)


@settings(max_examples=200)
@given(
    st.sampled_from([*KINDS, *OWNER_KINDS]),
    st.dictionaries(
        st.sampled_from(["metadata", "spec", "status", "endpoints", "ports", "addressType"]), _json
    ),
)
def test_arbitrary_json_never_raises(kind: str, document: dict[str, Any]) -> None:
    document.setdefault("metadata", {"uid": "u", "name": "n"})
    result = convert(kind, document)
    assert not result.is_skipped or result.problems
