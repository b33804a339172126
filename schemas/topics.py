"""Kafka topics: name, key, retention. An incompatible change makes a new version of the name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ACCESS_LOG",
    "DEAD_LETTER",
    "ENDPOINTSLICES",
    "ENTITIES",
    "EVENTS",
    "KUBERNETES",
    "METRICS",
    "NODES",
    "PODS",
    "SERVICES",
    "TOPICS",
    "Topic",
]

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Largest message on any topic; producers split before they reach it."""

_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as it should exist on the broker."""

    name: str
    key: str
    partitions: Literal["events", 1]
    """``events``: as many as the events topic, whose number is configured; else fixed."""
    retention_ms: int | None
    """None: compacted, the last record of each key stays."""
    description: str

    def config(self) -> dict[str, str]:
        """Topic configuration for the broker."""
        settings = {"max.message.bytes": str(MAX_MESSAGE_BYTES + 64 * 1024)}
        if self.retention_ms is None:
            settings["cleanup.policy"] = "compact"
        else:
            settings["cleanup.policy"] = "delete"
            settings["retention.ms"] = str(self.retention_ms)
        return settings


EVENTS = Topic("podwire.events.v1", "node name", "events", 6 * _HOUR_MS, "Kernel events, columnar")
PODS = Topic("podwire.k8s.pods.v1", "pod uid", 1, None, "Kubernetes pods")
SERVICES = Topic("podwire.k8s.services.v1", "service uid", 1, None, "Kubernetes services")
ENDPOINTSLICES = Topic(
    "podwire.k8s.endpointslices.v1", "slice uid", 1, None, "Kubernetes EndpointSlices"
)
NODES = Topic("podwire.k8s.nodes.v1", "node uid", 1, None, "Kubernetes nodes")
METRICS = Topic(
    "podwire.metrics.v1",
    "none: block of events partition p goes to partition p",
    "events",
    72 * _HOUR_MS,
    "Minutes of metrics, columnar",
)
ENTITIES = Topic("podwire.entities.v1", "entity", 1, None, "Entities and relations seen")
ACCESS_LOG = Topic(
    "podwire.access-log.v1", "node name", "events", 6 * _HOUR_MS, "Events with resolved addresses"
)
DEAD_LETTER = Topic(
    "podwire.dead-letter.v1", "topic", 1, 168 * _HOUR_MS, "Messages that could not be decoded"
)

KUBERNETES = (PODS, SERVICES, ENDPOINTSLICES, NODES)
TOPICS = (EVENTS, *KUBERNETES, METRICS, ENTITIES, ACCESS_LOG, DEAD_LETTER)
