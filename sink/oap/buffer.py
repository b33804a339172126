"""What waits for an OAP: bounded, oldest first, and which offsets may be committed.

Shared by the thread that reads and those that send. A parcel leaves in one of four ways: sent,
refused, dropped as the oldest of a full buffer, or given away with its partition.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sink.oap.convert import Stream

__all__ = ["Buffer", "Parcel", "Round"]

Partition = tuple[str, int]


@dataclass(eq=False, slots=True)
class Round:
    """What was read from a partition for one period.

    Attributes:
        partition: Topic and partition.
        next_offset: What to read after it.
        open: How many parcels with logs of it have not left; one more until all are there.
    """

    partition: Partition
    next_offset: int
    open: int = 1


@dataclass(eq=False, slots=True)
class Parcel:
    """A stream on its way.

    Attributes:
        stream: What is sent.
        rounds: Whose logs it has.
        sending: A call is under way, so it cannot be dropped now.
        gone: It left the buffer: nobody sends it any longer.
        failures: How often it failed while trying again could not help, or others got through.
        since: When it was first tried; 0 before.
    """

    stream: Stream
    rounds: tuple[Round, ...]
    sending: bool = False
    gone: bool = False
    failures: int = 0
    since: float = 0.0
    taken: bool = field(default=False)


class Buffer:
    """Parcels in the order they came, up to a number of bytes.

    Args:
        limit: Bytes.
        on_drop: Called with a parcel that leaves as the oldest of a full buffer.
    """

    def __init__(self, limit: int, on_drop: Callable[[Parcel], None]) -> None:
        self._limit = limit
        self._on_drop = on_drop
        self._changed = threading.Condition()
        self._parcels: dict[Parcel, None] = {}
        self._rounds: dict[Partition, list[Round]] = {}
        self._closed = False
        self.size = 0
        self.logs = 0

    def begin(self, partition: Partition, next_offset: int) -> Round:
        """Start a round; `end` it when all its parcels are there."""
        with self._changed:
            found = Round(partition, next_offset)
            self._rounds.setdefault(partition, []).append(found)
            return found

    def end(self, round_: Round) -> None:
        """Say that no further parcel of the round comes."""
        with self._changed:
            round_.open -= 1

    def put(self, stream: Stream, rounds: Iterable[Round]) -> None:
        """Add a stream. The caller looks for `room` before it makes one."""
        with self._changed:
            parcel = Parcel(stream, tuple(rounds))
            for round_ in parcel.rounds:
                round_.open += 1
            self._parcels[parcel] = None
            self.size += stream.size
            self.logs += stream.logs
            self._changed.notify()

    def room(self) -> bool:
        """Whether there is room for another period."""
        with self._changed:
            return self.size < self._limit

    def drop_oldest(self) -> bool:
        """Drop the oldest parcel that is not being sent; false if there is none."""
        with self._changed:
            oldest = next((one for one in self._parcels if not one.sending), None)
            if oldest is None:
                return False
            self._leave(oldest)
        self._on_drop(oldest)
        return True

    def take(self, timeout_s: float) -> Parcel | None:
        """Return the oldest parcel that nobody has; it stays in the buffer until it `leave`s."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._free() is not None, timeout_s)
            parcel = self._free()
            if parcel is not None:
                parcel.taken = True
            return parcel

    def begin_call(self, parcel: Parcel) -> bool:
        """Say that it is being sent now; false if it left meanwhile."""
        with self._changed:
            parcel.sending = not parcel.gone
            return parcel.sending

    def end_call(self, parcel: Parcel) -> None:
        """Say that the call is over without success."""
        with self._changed:
            parcel.sending = False

    def leave(self, parcel: Parcel) -> bool:
        """Take it out, sent or refused; false if it had left already."""
        with self._changed:
            if parcel.gone:
                return False
            self._leave(parcel)
            return True

    def give_away(self, partitions: Iterable[Partition]) -> int:
        """Forget what belongs to these partitions only; return the logs that did not leave."""
        lost = set(partitions)
        count = 0
        with self._changed:
            for partition in lost:
                self._rounds.pop(partition, None)
            for parcel in list(self._parcels):
                if not parcel.sending and all(one.partition in lost for one in parcel.rounds):
                    count += parcel.stream.logs
                    self._leave(parcel)
        return count

    def finished(self) -> dict[Partition, int]:
        """Return, once for each, offsets before which everything has left."""
        found: dict[Partition, int] = {}
        with self._changed:
            for partition, rounds in self._rounds.items():
                while rounds and rounds[0].open == 0:
                    found[partition] = rounds.pop(0).next_offset
        return found

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until everything has left."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._parcels, timeout_s)

    def close(self) -> None:
        """Let nobody wait for a parcel any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _free(self) -> Parcel | None:
        return next((one for one in self._parcels if not one.taken), None)

    def _leave(self, parcel: Parcel) -> None:
        parcel.gone = True
        del self._parcels[parcel]
        self.size -= parcel.stream.size
        self.logs -= parcel.stream.logs
        for round_ in parcel.rounds:
            round_.open -= 1
        self._changed.notify_all()
