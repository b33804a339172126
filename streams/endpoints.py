"""Names of endpoints: one for each of a service's routes, so many and no more.

Pure. A name is asked for once per batch, service and distinct path, and remembered, so that no
request costs more than its place in an array. Beyond the limit of a service all calls share one
name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.columns import UNMEASURED_U32
from schemas.events import Role
from schemas.hashing import compact
from streams.templates import template

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.events import EventBatch, Requests
    from streams.resolver import Resolution

__all__ = ["OTHER", "UNKNOWN", "EndpointNames", "EndpointSettings"]

OTHER: Final = "{other}"
"""Stands for every endpoint beyond the limit of its service."""
UNKNOWN: Final = "{unknown}"
"""Of a call whose path was not seen."""

_HOUR_NS: Final = 3_600_000_000_000
_REMEMBERED_HOURS: Final = 8
_REMEMBERED_PATHS: Final = 100_000
_NAMES_PER_HOUR: Final = 200_000  # of all services: one that crawls the web meets very many
_PLAIN, _GRPC, _CONNECT = 0, 1, 2

ServiceKey = tuple[str, str]
"""cluster, service."""


@dataclass(slots=True)
class _Hour:
    # Names of each service, and how many they are in all.
    names: dict[ServiceKey, set[str]] = field(default_factory=dict)
    total: int = 0


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """What the configuration says about endpoints.

    Attributes:
        method_path: Whether the method is part of the name.
        limit: Distinct names of one service per hour.
    """

    method_path: bool = False
    limit: int = 1_000


class EndpointNames:
    """Names endpoints batch after batch.

    Attributes:
        others: Calls so far that came under `OTHER`.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._names: dict[tuple[str, str, int], str] = {}
        self._known: dict[int, _Hour] = {}
        self.others = 0

    def name(self, batch: EventBatch, resolution: Resolution) -> EventBatch:
        """Return the batch with ``requests.endpoint``, and ``names`` with what it points at."""
        requests = batch.requests
        if not requests.rows:
            return batch
        services, owner = _servers(resolution, requests)
        paths, path, methods, method, kind = self._columns(batch)
        code = ((owner * len(paths) + path) * len(methods) + method) * 3 + kind
        codes, row = compact(code, len(services) * len(paths) * len(methods) * 3)
        header = batch.header
        now_ns = header.anchor_unix_ns or header.watermark_ns or header.last_event_ns
        known = self._of_hour(now_ns // _HOUR_NS)
        names: dict[str, int] = {}
        texts = batch.names
        endpoints = []
        for found in codes.tolist():
            rest, kind_ = divmod(found, 3)
            rest, method_ = divmod(rest, len(methods))
            service, path_ = divmod(rest, len(paths))
            name = self._name(texts[methods[method_]], texts[paths[path_]], kind_)
            name = self._admitted(known, services[service], name)
            endpoints.append(names.setdefault(name, len(names)))
        place = np.array(endpoints, np.uint32)
        if OTHER in names:
            self.others += int(np.count_nonzero((place == names[OTHER])[row]))
        place += np.uint32(len(texts))
        return replace(
            batch, names=[*texts, *names], requests=replace(requests, endpoint=place[row])
        )

    def _columns(
        self, batch: EventBatch
    ) -> tuple[list[int], NDArray[np.intp], list[int], NDArray[np.intp], NDArray[np.uint8]]:
        # Distinct paths and methods, which of them each request has, and what kind of path it is.
        requests, names = batch.requests, batch.names
        methods, method = compact(requests.method, len(names))
        kind = np.zeros(requests.rows, np.uint8)
        path = requests.path
        if len(requests.grpc_status):
            kind[requests.grpc_status != UNMEASURED_U32] = _GRPC
        is_connect = np.array([names[place] == "CONNECT" for place in methods.tolist()])
        if is_connect.any():
            connect = is_connect[method]
            kind[connect] = _CONNECT
            path = np.where(connect & (path == 0), requests.host, path)
        if not self._settings.method_path:
            methods, method = np.zeros(1, np.intp), np.zeros(requests.rows, np.intp)
        paths, of_row = compact(path, len(names))
        return paths.tolist(), of_row, methods.tolist(), method, kind

    def _name(self, method: str, path: str, kind: int) -> str:
        if not self._settings.method_path:
            method = ""
        key = (method, path, kind)
        name = self._names.get(key)
        if name is None:
            if len(self._names) >= _REMEMBERED_PATHS:
                self._names.clear()
            name = self._names[key] = _name(method, path, kind)
        return name

    def _of_hour(self, hour: int) -> _Hour:
        known = self._known.get(hour)
        if known is None:
            # The one met longest ago goes, not the earliest: a skewed clock may be years ahead.
            if len(self._known) == _REMEMBERED_HOURS:
                del self._known[next(iter(self._known))]
            known = self._known[hour] = _Hour()
        return known

    def _admitted(self, known: _Hour, service: ServiceKey, name: str) -> str:
        names = known.names.get(service, ())
        if name in names or name == UNKNOWN:
            return name
        if len(names) >= self._settings.limit or known.total >= _NAMES_PER_HOUR:
            return OTHER
        known.names.setdefault(service, set()).add(name)
        known.total += 1
        return name


def _servers(
    resolution: Resolution, requests: Requests
) -> tuple[list[ServiceKey], NDArray[np.intp]]:
    # The distinct services that were called, and which of them each request went to.
    services: dict[ServiceKey, int] = {}
    of_relation = np.array(
        [
            services.setdefault(
                (each.cluster, (each.remote if each.role == Role.CLIENT else each.local).service),
                len(services),
            )
            for each in resolution.relations
        ],
        np.intp,
    )
    return list(services), of_relation[resolution.index[requests.connection]]


def _name(method: str, path: str, kind: int) -> str:
    if not path:
        path = UNKNOWN
    elif kind == _PLAIN:
        path = template(path)
    if method and kind != _GRPC and path != UNKNOWN:
        return f"{method}:{path}"
    return path
