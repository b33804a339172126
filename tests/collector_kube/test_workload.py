from __future__ import annotations

import pytest

from collector.kube.workload import Owner, Owners, Workload, controller_of, workload_by_name

_CREATED_MS = 28_576_470 * 60_000 + 3000
_SCOPE = ("replicasets", "")


@pytest.mark.parametrize(
    ("owner", "labels", "expected"),
    [
        (None, {}, ("Pod", "pod-x")),
        (Owner("StatefulSet", "db", "u"), {}, ("StatefulSet", "db")),
        (
            Owner("ReplicaSet", "web-7d4b", "u"),
            {"pod-template-hash": "7d4b"},
            ("Deployment", "web"),
        ),
        (
            Owner("ReplicaSet", "a-b-7d4b", "u"),
            {"rollouts-pod-template-hash": "7d4b"},
            ("Rollout", "a-b"),
        ),
        (Owner("ReplicaSet", "web-7d4b", "u"), {}, ("ReplicaSet", "web-7d4b")),
        (
            Owner("ReplicaSet", "web-other", "u"),
            {"pod-template-hash": "7d4b"},
            ("ReplicaSet", "web-other"),
        ),
        (Owner("ReplicaSet", "-7d4b", "u"), {"pod-template-hash": "7d4b"}, ("ReplicaSet", "-7d4b")),
        (
            Owner("ReplicaSet", "web-", "u"),
            {"pod-template-hash": ""},
            ("ReplicaSet", "web-"),
        ),
        (Owner("Job", "report-28576470", "u"), {}, ("CronJob", "report")),
        (Owner("Job", "report-20240501", "u"), {}, ("Job", "report-20240501")),
        (Owner("Job", "once", "u"), {}, ("Job", "once")),
        (Owner("Node", "node-a", "u"), {}, ("Pod", "pod-x")),
    ],
)
def test_the_pod_alone_tells_its_workload(
    owner: Owner | None, labels: dict[str, str], expected: tuple[str, str]
) -> None:
    assert workload_by_name(owner, "pod-x", "node-a", labels, _CREATED_MS) == expected


def test_a_static_pod_drops_the_name_of_its_node() -> None:
    owner = Owner("Node", "node-a", "u")
    assert workload_by_name(owner, "etcd-node-a", "node-a", {}, 0) == ("Pod", "etcd")


def test_only_the_controller_counts() -> None:
    gateway, replica_set = Owner("Gateway", "g", "1"), Owner("ReplicaSet", "r", "2")
    assert controller_of([(gateway, False), (replica_set, True)]) == replica_set
    assert controller_of([(gateway, False)]) is None
    assert controller_of([(Owner("", "", ""), True)]) is None


def test_pods_that_came_first_learn_their_workload_later() -> None:
    owners = Owners()
    owner = Owner("ReplicaSet", "web-1", "r1")
    assert owners.of(owner, "p1") is None
    assert owners.of(owner, "p2") is None
    owners.stop_waiting(owner, "p2")
    assert owners.learn(_SCOPE, "r1", Workload("Deployment", "web"), 1) == {"p1"}
    assert owners.of(owner, "p3") == ("Deployment", "web")
    assert owners.learn(_SCOPE, "r1", Workload("Deployment", "web"), 1) == set()


def test_forgetting() -> None:
    owners = Owners()
    owners.learn(_SCOPE, "r1", Workload("Deployment", "a"), 1)
    owners.learn(_SCOPE, "r2", Workload("Deployment", "b"), 2)
    owners.learn(("jobs", ""), "j1", Workload("CronJob", "c"), 1)
    owners.listed(_SCOPE, 2)
    assert len(owners) == 2
    owners.forget("r2")
    owners.forget("r2")
    assert len(owners) == 1
    assert owners.of(Owner("Job", "c-1", "j1"), "p") == ("CronJob", "c")


def test_nobody_waits_for_ever() -> None:
    owners = Owners()
    owners.of(Owner("ReplicaSet", "a", "r1"), "p1")
    owners.of(Owner("ReplicaSet", "a", "r1"), "p2")
    owners.of(Owner("ReplicaSet", "b", "r2"), "p3")
    owners.keep_waiting(lambda uid: uid == "p1")
    assert owners.waiting == 1
    owners.stop_waiting(Owner("ReplicaSet", "a", "r1"), "p1")
    assert owners.waiting == 0
