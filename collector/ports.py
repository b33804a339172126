"""What the pipeline needs of the kernel and of Kafka."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from collector.payload_ring import NO_PIECES, Pieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from collector.conversations import Verdict
    from schemas.ledger import Entry
    from schemas.tls import Unreadable

__all__ = ["Drained", "Sender", "Source"]


@dataclass(slots=True)
class Drained:
    """What one look at all rings gave, structured arrays of the record kinds."""

    connections: NDArray[Any]
    transfers: NDArray[Any]
    processes: NDArray[Any]
    drops: NDArray[Any]
    payloads: Pieces = NO_PIECES


class Source(Protocol):
    """Where records come from."""

    def drain(self) -> Drained:
        """Take what is there. What has a connection was announced in this or before."""
        ...

    def counts(self) -> NDArray[np.uint64]:
        """Increments of the kernel's counters since the last call, one row a kind: `COUNTS`."""
        ...

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Say what need not be captured any more."""
        ...

    def unreadable(self, pids: Sequence[int]) -> Mapping[int, Unreadable]:
        """Why what these processes say inside TLS is not seen in clear.

        Of those that are missing it is being found out.
        """
        ...

    def watch(self, scope: NDArray[Any] | None) -> None:
        """Put another monitoring scope in force; see `collector.watching`."""
        ...

    def refuse(self, pids: Iterable[int]) -> None:
        """Leave out what these processes do, until they end."""
        ...

    def admit(self, pids: Iterable[int]) -> None:
        """Watch processes that were refused."""
        ...

    def let_go(self, ids: Iterable[int]) -> None:
        """Take connections that are left out for others once they come back."""
        ...

    @property
    def measured(self) -> frozenset[str]:
        """Names of the figures that its hooks can give."""
        ...

    @property
    def measured_ipv6(self) -> frozenset[str]:
        """The same over IPv6."""
        ...

    @property
    def drop_reasons(self) -> Mapping[int, str]:
        """Names of the kernel's reasons to drop a packet, by number."""
        ...

    @property
    def is_crowded(self) -> bool:
        """Whether a ring was so full at the last drain that the next must not wait."""
        ...

    def detach(self) -> None:
        """Make no new records; what lies in the rings can still be drained."""
        ...


class Sender(Protocol):
    """Where batches go; `collector.publisher.Publisher`."""

    def offer(self, key: str, message: bytes, ledger: Sequence[Entry]) -> bool:
        """Take a message or say at once that there is no room."""
        ...

    def poll(self) -> None:
        """Do what is due; never waits."""
        ...

    def take_failed(self) -> list[Entry]:
        """Ledger entries of batches that were taken and then lost."""
        ...

    def flush(self, timeout_s: float) -> int:
        """Wait until everything is delivered; return what is not."""
        ...

    def abandon(self) -> None:
        """Give up what is not delivered."""
        ...
