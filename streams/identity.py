"""Who an end of a connection is, and the pair that a metrics row is about.

Both compare by object, not by content: the resolver hands out the same object for the same answer,
so that the aggregation can group by identity without hashing strings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Identity", "IdentityKind", "Relation"]

IdentityKind = Literal["pod", "service", "node", "process", "address", "loopback"]


@dataclass(slots=True, eq=False)
class Identity:
    """One end of connections.

    Attributes:
        instance: Empty when the service is known and the pod behind it is not.
        pod_uid: Empty for everything that is no pod.
        unresolved: Why it is not known to its instance, one of `UNRESOLVED`; empty if it is.
        labels: Of the pod, sorted; of a service those that all of its pods have, its selector.
        shares_host: Whether it lives in the network namespace of its node, where loopback and the
            node's addresses lead to other processes too.
    """

    kind: IdentityKind
    service: str
    instance: str
    namespace: str = ""
    workload: str = ""
    node: str = ""
    pod_uid: str = ""
    shares_host: bool = False
    unresolved: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def layer(self) -> str:
        """SkyWalking's name of the layer it belongs to."""
        return "KUBERNETES" if self.kind in ("pod", "service") else "GENERAL"


@dataclass(slots=True, eq=False)
class Relation:
    """A local end, its peer, and the node that saw them.

    Attributes:
        role: 1 when the local end is the client, 2 when it is the server.
        internal: Both ends are in one pod, so it makes no rows.
    """

    cluster: str
    node: str
    role: int
    local: Identity
    remote: Identity
    internal: bool = False
