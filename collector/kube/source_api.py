"""Objects from a Kubernetes API server: one `Reflector` per kind and namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from collector.kube.backoff import Backoff
from collector.kube.convert import KINDS
from collector.kube.feed import generations
from collector.kube.reflector import Collection, Reflector

if TYPE_CHECKING:
    from collections.abc import Callable

    from collector.kube.api_client import ApiClient
    from collector.kube.feed import Feed

__all__ = ["ApiSource", "collections"]

# Owners first: pods that come after them need no second look.
_GROUPS: Final = (
    ("replicasets", "apps/v1"),
    ("jobs", "batch/v1"),
    ("nodes", "v1"),
    ("services", "v1"),
    ("endpointslices", "discovery.k8s.io/v1"),
    ("pods", "v1"),
)


def collections(namespaces: tuple[str, ...]) -> list[Collection]:
    """Everything to follow; nodes belong to no namespace."""
    return [
        Collection(kind, group, namespace, metadata_only=kind not in KINDS)
        for kind, group in _GROUPS
        for namespace in ((namespaces or ("",)) if kind != "nodes" else ("",))
    ]


class ApiSource:
    """Feeds what the API server says, for as long as it takes to reach it."""

    def __init__(
        self,
        client: ApiClient,
        namespaces: tuple[str, ...] = (),
        page_size: int = 500,
        create_backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self._client = client
        self._collections = collections(namespaces)
        self._page_size = page_size
        self._create_backoff = create_backoff
        self._reflectors: list[Reflector] = []

    @property
    def scopes(self) -> frozenset[tuple[str, str]]:
        """The collections of published kinds."""
        return frozenset((c.kind, c.namespace) for c in self._collections if c.kind in KINDS)

    def start(self, feed: Feed) -> None:
        """Begin to list and watch."""
        numbers = generations()
        self._reflectors = [
            Reflector(
                collection, self._client, feed, numbers, self._create_backoff(), self._page_size
            )
            for collection in self._collections
        ]
        for reflector in self._reflectors:
            reflector.start()

    def in_sync(self) -> bool:
        """Whether the watch of every published kind is open."""
        return all(r.is_watching for r in self._reflectors if r.collection.kind in KINDS)

    def stop(self) -> None:
        """End every watch."""
        for reflector in self._reflectors:
            reflector.stop()
        for reflector in self._reflectors:
            reflector.join(timeout=2.0)
