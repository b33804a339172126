"""Which workload a pod belongs to: its top owner, one level above ReplicaSet and Job.

The owners themselves say it best, but reading them is a right that the publisher may not have, and
a file of pods does not hold them. Until the owner is known the names that the controllers build
decide: a ReplicaSet is ``<deployment>-<pod-template-hash>`` and the pods carry that hash as a
label; a Job of a CronJob is ``<cronjob>-<minutes since 1970>``.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Owner", "Owners", "Workload", "controller_of", "workload_by_name"]

_HASH_LABELS: Final = (
    ("pod-template-hash", "Deployment"),
    ("rollouts-pod-template-hash", "Rollout"),
)
_CRON_JOB: Final = re.compile(r"(.+)-(\d{8})")  # minutes since 1970 have 8 digits until 2160
_CRON_SLACK_MINUTES: Final = 7 * 24 * 60
_INTERMEDIATE: Final = frozenset({"ReplicaSet", "Job"})


class Workload(NamedTuple):
    """Kind and name of a top owner."""

    kind: str
    name: str


class Owner(NamedTuple):
    """The controller that an object names as its owner."""

    kind: str
    name: str
    uid: str

    @property
    def is_intermediate(self) -> bool:
        """Whether this kind usually has an owner itself."""
        return self.kind in _INTERMEDIATE and bool(self.uid)


def controller_of(owners: list[tuple[Owner, bool]]) -> Owner | None:
    """The owner that is marked as controller (an object has at most one)."""
    for owner, is_controller in owners:
        if is_controller and owner.kind and owner.name:
            return owner
    return None


def workload_by_name(
    owner: Owner | None, pod_name: str, node: str, labels: Mapping[str, str], created_ms: int
) -> Workload:
    """The workload as far as the pod alone tells.

    Source: kubernetes pkg/controller/deployment/sync.go (ReplicaSet name),
    pkg/controller/cronjob/utils.go getJobName, pkg/kubelet/config/common.go (static pod name).
    """
    if owner is None:
        return Workload("Pod", pod_name)
    if owner.kind == "Node":  # a static pod, which its kubelet calls <name>-<node>
        return Workload("Pod", pod_name.removesuffix(f"-{node}") if node else pod_name)
    if owner.kind == "ReplicaSet":
        for label, kind in _HASH_LABELS:
            suffix = f"-{labels.get(label, '')}"
            if len(suffix) > 1 and owner.name.endswith(suffix) and owner.name != suffix:
                return Workload(kind, owner.name.removesuffix(suffix))
    if owner.kind == "Job":
        match = _CRON_JOB.fullmatch(owner.name)
        # A date such as -20240131 has 8 digits too, but lies decades away in minutes.
        if match and abs(created_ms // 60_000 - int(match[2])) < _CRON_SLACK_MINUTES:
            return Workload("CronJob", match[1])
    return Workload(owner.kind, owner.name)


@dataclass(slots=True)
class _Known:
    workload: Workload
    scope: tuple[str, str]
    generation: int


class Owners:
    """What is known of ReplicaSets and Jobs, and which pods wait to learn more.

    A scope is the (kind, namespace) of the list that named the owner.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._waiting: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._known)

    @property
    def waiting(self) -> int:
        """How many owners pods wait for."""
        return len(self._waiting)

    def of(self, owner: Owner, pod_uid: str) -> Workload | None:
        """The workload behind this owner; None makes the pod wait for `learn`."""
        known = self._known.get(owner.uid)
        if known is None:
            self._waiting.setdefault(owner.uid, set()).add(pod_uid)
            return None
        return known.workload

    def learn(
        self, scope: tuple[str, str], uid: str, workload: Workload, generation: int
    ) -> set[str]:
        """Remember an owner's own owner; returns the uids of the pods that waited for it."""
        # Thousands of old ReplicaSets share the names of a few Deployments.
        shared = Workload(sys.intern(workload.kind), sys.intern(workload.name))
        self._known[uid] = _Known(shared, scope, generation)
        return self._waiting.pop(uid, set())

    def forget(self, uid: str) -> None:
        """The owner is gone; its pods keep what they learnt."""
        self._known.pop(uid, None)

    def listed(self, scope: tuple[str, str], generation: int) -> None:
        """A full list ended: forget what it did not name."""
        gone = [
            uid
            for uid, known in self._known.items()
            if known.scope == scope and known.generation < generation
        ]
        for uid in gone:
            del self._known[uid]

    def stop_waiting(self, owner: Owner, pod_uid: str) -> None:
        """The pod is gone."""
        waiting = self._waiting.get(owner.uid)
        if waiting is not None:
            waiting.discard(pod_uid)
            if not waiting:
                del self._waiting[owner.uid]

    def keep_waiting(self, is_alive: Callable[[str], bool]) -> None:
        """Drop the pods that vanished without a word, after a full list."""
        for uid in list(self._waiting):
            left = {pod for pod in self._waiting[uid] if is_alive(pod)}
            if left:
                self._waiting[uid] = left
            else:
                del self._waiting[uid]
