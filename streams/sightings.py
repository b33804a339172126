"""Which entities and relations were seen, and which of them to tell the entities topic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.entities import Entity
from schemas.events import Role

if TYPE_CHECKING:
    from streams.identity import Identity, Relation
    from streams.minutes import MinuteSums

__all__ = ["Sightings"]

_REMEMBERED = 200_000
_MINUTE_MS = 60_000


@dataclass(slots=True)
class _Sight:
    first_ms: int
    published_ms: int
    attributes: dict[str, str]


class Sightings:
    """Remembers when each entity was first seen by this worker, last published, and as what.

    Args:
        refresh_ms: An entity that is still seen is published again this often.
    """

    def __init__(self, refresh_ms: int = 60_000) -> None:
        self._refresh_ms = refresh_ms
        self._seen: dict[bytes, _Sight] = {}

    def of_minute(self, minute_s: int, sums: MinuteSums) -> list[Entity]:
        """Return the entities of a closed minute that are new, or due to be published again."""
        start_ms = minute_s * 1000
        due = []
        for key, entity in _entities(sums).items():
            sight = self._seen.get(key)
            if sight is None:
                sight = self._seen[key] = _Sight(start_ms, start_ms, {})
            elif sight.first_ms <= start_ms < sight.published_ms + self._refresh_ms:
                continue
            sight.first_ms = min(sight.first_ms, start_ms)
            sight.published_ms = max(sight.published_ms, start_ms)
            # Who is seen behind a virtual address only has fewer attributes than before.
            sight.attributes = entity.attributes = sight.attributes | entity.attributes
            entity.first_seen_ms = sight.first_ms
            entity.last_seen_ms = sight.published_ms + _MINUTE_MS
            due.append(entity)
        if len(self._seen) > _REMEMBERED:
            self._seen.clear()
        return due


def _entities(sums: MinuteSums) -> dict[bytes, Entity]:
    # Each once, with what all of its sights tell.
    found: dict[bytes, Entity] = {}
    ends: dict[tuple[str, Identity], None] = {}
    relations = sums.relations
    for relation in relations:
        ends[relation.cluster, relation.local] = None
        ends[relation.cluster, relation.remote] = None
        for entity in _relation_entities(relation):
            found.setdefault(entity.key, entity)
    for place, endpoint in sums.calls.rows:
        for entity in _endpoint_entities(relations[place], endpoint):
            found.setdefault(entity.key, entity)
    for cluster, end in ends:
        for entity in _end_entities(cluster, end):
            known = found.setdefault(entity.key, entity)
            known.attributes = entity.attributes | known.attributes
    return found


def _end_entities(cluster: str, end: Identity) -> list[Entity]:
    shared = {"layer": end.layer, "namespace": end.namespace, "workload": end.workload}
    found = [Entity("service", cluster, {"service": end.service}, _given(shared))]
    if end.instance:
        names = {"service": end.service, "instance": end.instance}
        attributes = _given(shared | {"node": end.node})
        found.append(Entity("instance", cluster, names, attributes))
    return found


def _relation_entities(relation: Relation) -> list[Entity]:
    client, server = _client_and_server(relation)
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


def _endpoint_entities(relation: Relation, endpoint: str) -> list[Entity]:
    client, server = _client_and_server(relation)
    own = {"service": server.service, "endpoint": endpoint}
    names = {
        "client_service": client.service,
        "server_service": server.service,
        "endpoint": endpoint,
    }
    attributes = _given({"layer": server.layer, "namespace": server.namespace})
    return [
        Entity("endpoint", relation.cluster, own, attributes),
        Entity("endpoint_relation", relation.cluster, names, {"layer": relation.local.layer}),
    ]


def _client_and_server(relation: Relation) -> tuple[Identity, Identity]:
    if relation.role == Role.SERVER:
        return relation.remote, relation.local
    return relation.local, relation.remote


def _given(attributes: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in attributes.items() if text}
