"""How long to wait before the next try."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

__all__ = ["Backoff"]


@dataclass
class Backoff:
    """Doubling delays with jitter, so that many clients do not come back at once."""

    initial_s: float = 0.5
    maximum_s: float = 30.0
    generator: random.Random = field(default_factory=random.Random, repr=False)
    _tries: int = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        """The delay before the next try: half to all of the doubled one before."""
        ceiling = min(self.maximum_s, self.initial_s * 2.0 ** min(self._tries, 32))
        self._tries += 1
        return max(at_least_s, ceiling * self.generator.uniform(0.5, 1.0))

    def reset(self) -> None:
        """The last try worked."""
        self._tries = 0
