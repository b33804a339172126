"""Which entities and relations were seen, and which of them to tell the entities topic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.entities import Entity

if TYPE_CHECKING:
    from streams.aggregate import MinuteSums
    from streams.identity import Identity, Relation

__all__ = ["Sightings"]

_FORGET_MS = 3_600_000


class Sightings:
    """Remembers when each entity was first seen by this worker, and last published.

    Args:
        refresh_ms: An entity that is still seen is published again this often.
    """

    def __init__(self, refresh_ms: int = 60_000) -> None:
        self._refresh_ms = refresh_ms
        self._seen: dict[bytes, tuple[int, int]] = {}
        self._newest_ms = 0

    def of_minute(self, minute_s: int, sums: MinuteSums) -> list[Entity]:
        """Return the entities of a closed minute that are new, or due to be published again."""
        start_ms, end_ms = minute_s * 1000, (minute_s + 60) * 1000
        entities: dict[bytes, Entity] = {}
        ends: dict[tuple[str, Identity], None] = {}
        for relation in sums.relations:
            ends[relation.cluster, relation.local] = None
            ends[relation.cluster, relation.remote] = None
            for entity in _relation_entities(relation):
                entities.setdefault(entity.key, entity)
        for cluster, end in ends:
            for entity in _end_entities(cluster, end):
                entities.setdefault(entity.key, entity)
        due = []
        for key, entity in entities.items():
            first, published = self._seen.get(key, (start_ms, -1))
            first = min(first, start_ms)
            if published >= 0 and start_ms < published + self._refresh_ms:
                continue
            self._seen[key] = first, max(start_ms, published)
            entity.first_seen_ms, entity.last_seen_ms = first, end_ms
            due.append(entity)
        self._forget(start_ms)
        return due

    def _forget(self, now_ms: int) -> None:
        if now_ms < self._newest_ms + _FORGET_MS // 4:
            return
        self._newest_ms = now_ms
        self._seen = {k: seen for k, seen in self._seen.items() if seen[1] > now_ms - _FORGET_MS}


def _end_entities(cluster: str, end: Identity) -> list[Entity]:
    shared = {"layer": end.layer, "namespace": end.namespace}
    found = [Entity("service", cluster, {"service": end.service}, _given(shared | _workload(end)))]
    if end.instance:
        names = {"service": end.service, "instance": end.instance}
        attributes = _given(shared | _workload(end) | {"node": end.node})
        found.append(Entity("instance", cluster, names, attributes))
    return found


def _relation_entities(relation: Relation) -> list[Entity]:
    client, server = relation.local, relation.remote
    if relation.role == 2:
        client, server = server, client
    layer = {"layer": relation.local.layer}
    services = {"client_service": client.service, "server_service": server.service}
    found = [Entity("service_relation", relation.cluster, services, dict(layer))]
    if client.instance and server.instance:
        names = {
            "client_service": client.service,
            "client_instance": client.instance,
            "server_service": server.service,
            "server_instance": server.instance,
        }
        found.append(Entity("instance_relation", relation.cluster, names, dict(layer)))
    return found


def _workload(end: Identity) -> dict[str, str]:
    return {"workload": end.workload}


def _given(attributes: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in attributes.items() if text}
