from __future__ import annotations

import json
from typing import Any

from collector.kube.convert import convert, kind_of
from deploy.demo.kubernetes import Workload, kube_list, plan
from schemas.kubernetes import EndpointSlice, Node, Pod, Service

WORKLOADS = (
    Workload("web", "shop", replicas=2, port=80, target_port=8080, container="nginx"),
    Workload("client", "ops"),
)


def objects() -> list[Any]:
    document = json.loads(json.dumps(kube_list(*plan("t", WORKLOADS, "n1"), "n1")))
    assert document["kind"] == "List"
    found = []
    for item in document["items"]:
        converted = convert(kind_of(item), item)
        assert converted.problems == ()
        assert converted.record is not None
        found.append(converted.record)
    return found


def of(kind: type[Any]) -> list[Any]:
    return [each for each in objects() if type(each) is kind]


def test_the_publisher_of_metadata_understands_every_object() -> None:
    assert [len(of(kind)) for kind in (Pod, Service, EndpointSlice, Node)] == [3, 1, 2, 1]


def test_pods_have_containers_addresses_and_workloads() -> None:
    pods, _ = plan("t", WORKLOADS, "n1")
    for planned, pod in zip(pods, of(Pod), strict=True):
        assert pod.name == planned.name
        assert pod.pod_ips == [planned.ipv4, planned.ipv6]
        assert [each.id for each in pod.containers] == [planned.container_id]
        assert len(planned.container_id) == 64
        assert pod.workload_kind == "Deployment"
        assert pod.workload_name == planned.workload.name
        assert pod.node == "n1"
    assert len({pod.uid for pod in pods}) == 3


def test_slices_lead_from_the_service_to_its_pods() -> None:
    (service,) = of(Service)
    pods = [pod for pod in of(Pod) if pod.workload_name == "web"]
    assert (service.namespace, service.name) == ("shop", "web")
    assert len(service.cluster_ips) == 2
    assert service.ports[0].port == 80
    for family, each in enumerate(of(EndpointSlice)):
        assert each.service == "web"
        assert each.ports == [8080]
        assert [one.pod_uid for one in each.endpoints] == [pod.uid for pod in pods]
        assert [one.addresses for one in each.endpoints] == [[pod.pod_ips[family]] for pod in pods]


def test_another_tag_gives_other_identities() -> None:
    first, _ = plan("one", WORKLOADS, "n1")
    second, _ = plan("two", WORKLOADS, "n1")
    assert plan("one", WORKLOADS, "n1")[0] == first
    assert not {pod.uid for pod in first} & {pod.uid for pod in second}
    assert not {pod.container_id for pod in first} & {pod.container_id for pod in second}
