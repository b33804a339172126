"""What connections inside TLS moved, by who asked for whom, and whether it can be read. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.catalogue import READABILITIES, ROLES
from schemas.events import ConnectionFlag
from schemas.tls import unreadable_name, version_name
from streams.exact import exact_sums

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from schemas.columns import U8, U32
    from schemas.events import Closes, Connections, Transfers
    from streams.identity import Relation

__all__ = ["OTHER_NAMES", "Protected", "TlsKey", "add_protected", "protected_of", "tls_rows"]

TlsKey = tuple[int, str, str, str, str, str]
"""Place of a relation, process, server name, version, one of `READABILITIES`, and why it is the
first of these."""

Protected = dict[TlsKey, tuple[int, int]]
"""Connections closed, and bytes."""

OTHER_NAMES: Final = "{other}"
"""Server names beyond the limit: a client may ask for any."""
_MAX_KEYS: Final = 20_000


def protected_of(
    connections: Connections,
    closes: Closes,
    transfers: Transfers,
    index: NDArray[np.intp],
    names: Sequence[str],
) -> Protected:
    """Add up what connections inside TLS did.

    Args:
        connections: All of a batch.
        closes: Rows of one minute.
        transfers: Likewise.
        index: Shape (connections,), the relation of each.
        names: Dictionary of the batch.
    """
    flags = connections.flags
    inside = flags & ConnectionFlag.TLS != 0
    if not inside.any():
        return {}
    rows = connections.rows
    bytes_ = exact_sums(transfers.connection.astype(np.intp), transfers.size, rows)
    closed = np.bincount(closes.connection, minlength=rows).astype(np.uint64)
    chosen = np.flatnonzero(inside & ((bytes_ > 0) | (closed > 0)))
    readable = flags[chosen] & ConnectionFlag.READABLE != 0
    keys = np.stack(
        [
            index[chosen].astype(np.int64),
            connections.process[chosen],
            _known(connections.server_name, chosen),
            _known(connections.tls_version, chosen),
            readable,
            np.where(readable, 0, _known(connections.unreadable, chosen)),
        ],
        axis=1,
    )
    distinct, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.reshape(-1)
    sums = [
        exact_sums(group, values[chosen], len(distinct)).tolist() for values in (closed, bytes_)
    ]
    return {
        (
            *(place, names[process], names[name], version_name(version), READABILITIES[readable]),
            "" if readable else unreadable_name(reason),
        ): both
        for (place, process, name, version, readable, reason), both in zip(
            distinct.tolist(), zip(*sums, strict=True), strict=True
        )
    }


def _known(column: U8 | U32, chosen: NDArray[np.intp]) -> NDArray[np.int64]:
    if not len(column):
        return np.zeros(len(chosen), np.int64)
    values = column[chosen]
    return np.where(values == np.iinfo(values.dtype).max, 0, values).astype(np.int64)


def add_protected(total: Protected, part: Protected, index: NDArray[np.intp]) -> None:
    """Add one to the other, whose places are looked up in ``index``."""
    for (place, process, name, version, readability, reason), (closed, moved) in part.items():
        key = (int(index[place]), process, name, version, readability, reason)
        if key not in total and len(total) >= _MAX_KEYS:
            other = OTHER_NAMES if name else ""
            key = (key[0], process, other, version, readability, reason)
        before = total.get(key, (0, 0))
        total[key] = before[0] + closed, before[1] + moved


def tls_rows(
    protected: Protected, relations: Sequence[Relation]
) -> Mapping[tuple[str, ...], tuple[int, int]]:
    """Return the rows of `schemas.catalogue.TLS`."""
    found: dict[tuple[str, ...], tuple[int, int]] = {}
    for (place, *rest), (closed, moved) in protected.items():
        relation = relations[place]
        role = ROLES[relation.role - 1]
        key = (relation.cluster, relation.node, role, relation.local.service, *rest)
        before = found.get(key, (0, 0))
        found[key] = before[0] + closed, before[1] + moved
    return found
