"""Time as a dependency, and the bridge between the kernel's clock and Unix time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Clock", "ClockAnchor", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """The two clocks of a process, in nanoseconds."""

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC, the clock of ``bpf_ktime_get_ns``."""
        ...

    def unix_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC now."""
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def unix_ns(self) -> int:
        """CLOCK_REALTIME now."""
        return time.time_ns()


@dataclass(slots=True)
class ManualClock:
    """A clock that moves only when told to; for tests and replays."""

    now_unix_ns: int = 1_700_000_000_000_000_000
    now_monotonic_ns: int = 1_000_000_000

    def monotonic_ns(self) -> int:
        """The monotonic time last set."""
        return self.now_monotonic_ns

    def unix_ns(self) -> int:
        """The Unix time last set."""
        return self.now_unix_ns

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        step = int(seconds * 1e9)
        self.now_unix_ns += step
        self.now_monotonic_ns += step


@dataclass(frozen=True, slots=True)
class ClockAnchor:
    """The monotonic and the Unix clock read at the same moment."""

    monotonic_ns: int
    unix_ns: int

    @classmethod
    def sample(cls, clock: Clock) -> ClockAnchor:
        """Read both clocks, the tightest of three tries.

        A preemption between the two reads would shift every event by its length, so the Unix
        clock is read between two monotonic reads and the narrowest bracket wins.
        """
        best: tuple[int, ClockAnchor] | None = None
        for _ in range(3):
            before = clock.monotonic_ns()
            unix = clock.unix_ns()
            after = clock.monotonic_ns()
            anchor = cls(monotonic_ns=(before + after) // 2, unix_ns=unix)
            if best is None or after - before < best[0]:
                best = (after - before, anchor)
        assert best is not None
        return best[1]

    @property
    def offset_ns(self) -> int:
        """What to add to a monotonic time to get Unix time."""
        return self.unix_ns - self.monotonic_ns

    def to_unix_ns(self, ktime_ns: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Convert kernel monotonic stamps to Unix time.

        Args:
            ktime_ns: Shape (n,), ``bpf_ktime_get_ns`` values: nanoseconds, without suspend.

        Returns:
            Shape (n,), nanoseconds since 1970-01-01 UTC. Not monotonic across a re-sync.
        """
        return ktime_ns + np.uint64(self.offset_ns)
