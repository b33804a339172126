"""What the metadata topics hold and should hold; pure: every call returns the changes to publish.

An object that vanishes stays for a while as a record with ``deleted_ms``, so that late events still
resolve, and then becomes a null. Values are kept encoded: that is the smallest form, and equal
objects have equal bytes, so a restart or a second replica publishes nothing that is already there.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from collector.kube.convert import KINDS
from schemas.errors import DecodeError
from schemas.kubernetes import KubernetesObject, Node, Pod, decode_object, encode_object
from schemas.topics import KUBERNETES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["TOPIC_OF", "Change", "ChangeKind", "Store"]

TOPIC_OF: Final = dict(zip(KINDS, (topic.name for topic in KUBERNETES), strict=True))
"""Kind to the name of its topic."""

ChangeKind: TypeAlias = Literal["added", "changed", "deleted", "expired", "repeated"]


@dataclass(frozen=True, slots=True)
class Change:
    """One message to publish; ``value`` None is a null."""

    kind: str
    uid: str
    value: bytes | None
    change: ChangeKind


@dataclass(slots=True)
class _Entry:
    value: bytes
    namespace: str
    deleted_ms: int
    generation: int


class Store:
    """Every object of every kind by uid.

    A generation is one full list; the entries that it did not name are gone. Numbers only grow.
    """

    def __init__(self, keep_deleted_ms: int) -> None:
        self._keep_deleted_ms = keep_deleted_ms
        self._entries: dict[str, dict[str, _Entry]] = {kind: {} for kind in KINDS}
        self._deleted: dict[tuple[str, str], int] = {}

    def load(self, kind: str, uid: str, value: bytes) -> bool:
        """Take over what the topic holds; False if it is undecodable.

        An undecodable value is replaced by the object's next record, or by a null if there is no
        such object any longer.
        """
        try:
            record = decode_object(TOPIC_OF[kind], value)
        except DecodeError:
            self._entries[kind][uid] = _Entry(b"", "", 0, 0)
            return False
        self._put(kind, uid, value, record, 0)
        return True

    def upsert(
        self, kind: str, record: KubernetesObject, generation: int, now_ms: int
    ) -> Change | None:
        """An object as the source has it now."""
        entries = self._entries[kind]
        entry = entries.get(record.uid)
        if entry is None and self._is_expired(record.deleted_ms, now_ms):
            return None  # ended long ago, like most finished pods of a list
        value = encode_object(record)
        if entry is not None and entry.value == value:
            entry.generation = generation
            return None
        self._put(kind, record.uid, value, record, generation)
        if record.deleted_ms:
            return Change(kind, record.uid, value, "deleted")
        return Change(kind, record.uid, value, "changed" if entry else "added")

    def remove(
        self, kind: str, uid: str, now_ms: int, last: KubernetesObject | None = None
    ) -> Change | None:
        """An object is gone; ``last`` is its final state if the source still had it.

        Returns None if it is not known or gone already: the first end counts.
        """
        entry = self._entries[kind].get(uid)
        if entry is None or entry.deleted_ms:
            return None
        if last is None:
            if not entry.value:
                del self._entries[kind][uid]
                return Change(kind, uid, None, "expired")
            last = decode_object(TOPIC_OF[kind], entry.value)
        last = dataclasses.replace(last, deleted_ms=last.deleted_ms or now_ms)
        value = encode_object(last)
        self._put(kind, uid, value, last, entry.generation)
        return Change(kind, uid, value, "deleted")

    def missing(
        self, kind: str, generation: int, applies: Callable[[str], bool] | None = None
    ) -> list[str]:
        """Uids of live objects, in the namespaces that apply, that the generation did not name."""
        return [
            uid
            for uid, entry in self._entries[kind].items()
            if entry.generation < generation
            and not entry.deleted_ms
            and (applies is None or applies(entry.namespace))
        ]

    def relabel(self, uid: str, workload_kind: str, workload_name: str) -> Change | None:
        """Correct the workload of a pod."""
        entry = self._entries["pods"].get(uid)
        if entry is None or not entry.value:
            return None
        pod = decode_object(TOPIC_OF["pods"], entry.value)
        assert isinstance(pod, Pod)
        pod.workload_kind, pod.workload_name = workload_kind, workload_name
        value = encode_object(pod)
        if value == entry.value:
            return None
        self._put("pods", uid, value, pod, entry.generation)
        return Change("pods", uid, value, "changed")

    def expire(self, now_ms: int) -> list[Change]:
        """Nulls for what was deleted longer ago than it is kept."""
        due = [key for key, at in self._deleted.items() if self._is_expired(at, now_ms)]
        for kind, uid in due:
            del self._deleted[kind, uid]
            del self._entries[kind][uid]
        return [Change(kind, uid, None, "expired") for kind, uid in due]

    def current(self, kind: str, uid: str) -> Change | None:
        """The message that the topic should hold for this key; None if there is none."""
        entry = self._entries[kind].get(uid)
        if entry is None or not entry.value:
            return None
        return Change(kind, uid, entry.value, "repeated")

    def keys(self) -> Iterator[tuple[str, str]]:
        """Kind and uid of every entry, deleted ones included; nodes first, they are few."""
        for kind in reversed(KINDS):
            for uid in self._entries[kind]:
                yield kind, uid

    def is_alive(self, kind: str, uid: str) -> bool:
        """Whether the object exists."""
        entry = self._entries[kind].get(uid)
        return entry is not None and not entry.deleted_ms

    def counts(self) -> dict[str, int]:
        """Live objects per kind."""
        deleted = dict.fromkeys(KINDS, 0)
        for kind, _ in self._deleted:
            deleted[kind] += 1
        return {kind: len(self._entries[kind]) - deleted[kind] for kind in KINDS}

    def _put(
        self, kind: str, uid: str, value: bytes, record: KubernetesObject, generation: int
    ) -> None:
        namespace = "" if isinstance(record, Node) else sys.intern(record.namespace)
        self._entries[kind][uid] = _Entry(value, namespace, record.deleted_ms, generation)
        if record.deleted_ms:
            self._deleted[kind, uid] = record.deleted_ms
        else:
            self._deleted.pop((kind, uid), None)

    def _is_expired(self, deleted_ms: int, now_ms: int) -> bool:
        return bool(deleted_ms) and now_ms - deleted_ms >= self._keep_deleted_ms
