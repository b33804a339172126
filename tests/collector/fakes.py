"""A kernel and a Kafka that do what a test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from collector.abi import COUNTS, ConnectionEvent, Kind, ProcessEvent
from schemas.events import EventBatch, decode_batch
from tests.collector.records import drained

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from collector.conversations import Verdict
    from collector.ports import Drained
    from schemas.ledger import Entry
    from schemas.tls import Unreadable


@dataclass
class FakeSource:
    """Gives the prepared drains one after the other and counts them as the kernel would."""

    drains: list[Drained] = field(default_factory=list)
    is_crowded: bool = False
    measured: frozenset[str] = frozenset()
    measured_ipv6: frozenset[str] = frozenset()
    drop_reasons: dict[int, str] = field(default_factory=dict)
    detached: bool = False
    ring_full: int = 0
    verdicts: list[Verdict] = field(default_factory=list)
    scopes: list[NDArray[Any] | None] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    left: list[int] = field(default_factory=list)
    reasons: dict[int, Unreadable] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    _counts: NDArray[np.uint64] = field(
        default_factory=lambda: np.zeros((len(Kind), len(COUNTS.names or ())), np.uint64)
    )

    def drain(self) -> Drained:
        if not self.drains:
            return drained()
        given = self.drains.pop(0)
        exited = given.processes["event"] == ProcessEvent.EXIT
        self.refused -= set(given.processes["pid"][exited].tolist())
        for event in given.connections["event"].tolist():
            kind = {ConnectionEvent.ANNOUNCED: Kind.CONNECTION, ConnectionEvent.CLOSED: Kind.CLOSE}
            self._counts[kind.get(event, Kind.OPEN), 0] += 1
        self._counts[Kind.TRANSFER, 0] += len(given.transfers)
        self._counts[Kind.PROCESS, 0] += len(given.processes)
        self._counts[Kind.PAYLOAD, 0] += len(given.payloads)
        self._counts[Kind.DROP, 0] += len(given.drops)
        return given

    def counts(self) -> NDArray[np.uint64]:
        self._counts[Kind.TRANSFER, 1] += self.ring_full
        self.ring_full = 0
        increments, self._counts = self._counts, np.zeros_like(self._counts)
        return increments

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        self.verdicts += verdicts

    def unreadable(self, pids: Sequence[int]) -> dict[int, Unreadable]:
        self.asked += pids
        return {pid: self.reasons[pid] for pid in pids if pid in self.reasons}

    def watch(self, scope: NDArray[Any] | None) -> None:
        self.scopes.append(scope)

    def refuse(self, pids: Iterable[int]) -> None:
        self.refused |= set(pids)

    def admit(self, pids: Iterable[int]) -> None:
        self.refused -= set(pids)

    def let_go(self, ids: Iterable[int]) -> None:
        self.left += ids

    def detach(self) -> None:
        self.detached = True


@dataclass
class FakeSender:
    """Takes messages unless told not to; loses those whose number is in `losing`."""

    full: bool = False
    losing: set[int] = field(default_factory=set)
    unreachable: bool = False
    batches: list[EventBatch] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    undelivered: int = 0
    queued_bytes: int = 0
    _taken: int = 0
    _failed: list[Entry] = field(default_factory=list)
    _queued: list[Sequence[Entry]] = field(default_factory=list)

    def offer(self, key: str, message: bytes, ledger: Sequence[Entry]) -> bool:
        if self.full:
            return False
        number, self._taken = self._taken, self._taken + 1
        if number in self.losing:
            self._failed.extend(ledger)
        elif self.unreachable:
            self._queued.append(ledger)
        else:
            assert key
            self.messages.append(message)
            self.batches.append(decode_batch(message))
        return True

    def poll(self) -> None:
        pass

    def take_failed(self) -> list[Entry]:
        failed, self._failed = self._failed, []
        return failed

    def flush(self, timeout_s: float) -> int:
        return len(self._queued)

    def abandon(self) -> None:
        for ledger in self._queued:
            self._failed.extend(ledger)
        self.undelivered += len(self._queued)
        self._queued.clear()
