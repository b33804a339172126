"""Which connections of a batch are outside the monitoring scope, with both ends known. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from schemas.events import Role
from schemas.monitoring import EVERYTHING, End, MonitoringScope

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.events import EventBatch
    from schemas.monitoring import ScopeFile
    from streams.identity import Identity, Relation
    from streams.resolver import Resolution

__all__ = ["Watching"]

_REMEMBERED = 100_000


class Watching:
    """Answers batch after batch by the scope that is in force then."""

    def __init__(self, file: ScopeFile | None = None) -> None:
        self._file = file
        self._scope = EVERYTHING
        self._left_out: dict[Relation, NDArray[np.bool_]] = {}

    def excluded(self, batch: EventBatch, resolution: Resolution) -> NDArray[np.bool_] | None:
        """Return which connection rows are not watched, shape (rows,); None if all are."""
        scope = EVERYTHING if self._file is None else self._file.scope
        if scope.is_everything or not resolution.relations:
            return None
        if scope is not self._scope or len(self._left_out) > _REMEMBERED:
            self._scope = scope
            self._left_out.clear()
        # Few answers are different: those of many relations are one and the same array.
        answers: dict[int, int] = {}
        tables: list[NDArray[np.bool_]] = []
        of_relation = []
        for relation in resolution.relations:
            table = self._of(scope, relation)
            place = answers.setdefault(id(table), len(tables))
            if place == len(tables):
                tables.append(table)
            of_relation.append(place)
        is_client = np.array([each.role == Role.CLIENT for each in resolution.relations], bool)
        rows, index = batch.connections, resolution.index
        # Of a service address the client's socket has the service's port; that is what both the
        # collector and this can see of it.
        port = np.where(is_client[index], rows.remote_port, rows.local_port)
        found: NDArray[np.bool_] = np.stack(tables)[np.array(of_relation)[index], port]
        return found if found.any() else None

    def _of(self, scope: MonitoringScope, relation: Relation) -> NDArray[np.bool_]:
        known = self._left_out.get(relation)
        if known is None:
            ends = _end(relation, relation.local), _end(relation, relation.remote)
            client, server = ends if relation.role == Role.CLIENT else ends[::-1]
            known = self._left_out[relation] = scope.left_out(client, server)
        return known


def _end(relation: Relation, identity: Identity) -> End:
    # What is on the loopback is on the node that saw it.
    node = relation.node if identity.kind == "loopback" else identity.node
    return End(identity.namespace, dict(identity.labels), node)
