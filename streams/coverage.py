"""How well the ends of a minute's connections are known. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from schemas.catalogue import RESOLUTIONS, ROLES
from streams.transfers import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.identity import Identity, IdentityKind, Relation
    from streams.minutes import MinuteSums

__all__ = ["Coverage", "coverage_of", "resolution_of"]

Coverage = dict[tuple[str, str, str, str, str], tuple[int, int]]
"""Connections and bytes by cluster, node, role, resolution and reason."""

_RESOLUTION: Final[Mapping[IdentityKind, str]] = {
    "pod": "instance",
    "process": "instance",
    "service": "service",
    "node": "node",
    "address": "address",
    "loopback": "address",
}
_AT: Final = {name: place for place, name in enumerate(COLUMNS)}
_CONNECTIONS: Final = [_AT["connect_count"], _AT["accept_count"]]
_BYTES: Final = [_AT["read_bytes"], _AT["write_bytes"]]


def resolution_of(relation: Relation) -> tuple[str, str]:
    """Return how well the worse end of a relation is known, and why not better."""
    return max(
        (_of_end(relation.local), _of_end(relation.remote)),
        key=lambda found: RESOLUTIONS.index(found[0]),
    )


def _of_end(end: Identity) -> tuple[str, str]:
    # The process of a container whose pod is not known runs on the node, and that is all.
    if end.kind == "process" and end.unresolved:
        return "node", end.unresolved
    return _RESOLUTION[end.kind], end.unresolved


def coverage_of(sums: MinuteSums) -> Coverage:
    """Add up the relations of a minute that are not inside one pod."""
    found: Coverage = {}
    connections = sums.sums[:, _CONNECTIONS].sum(axis=1).tolist()
    moved = sums.sums[:, _BYTES].sum(axis=1).tolist()
    for relation, count, size in zip(sums.relations, connections, moved, strict=True):
        key = (
            *(relation.cluster, relation.node, ROLES[relation.role - 1]),
            *resolution_of(relation),
        )
        before = found.get(key, (0, 0))
        found[key] = before[0] + count, before[1] + size
    return found
