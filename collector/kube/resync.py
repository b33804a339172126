"""Publishing everything again, little by little; pure.

A consumer that lost its state, or a broker that lost its log, gets every object within one
interval, and no second sees more than its share of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Resync"]

_Key = tuple[str, str]


class Resync:
    """Walks over the keys of a store, once per interval."""

    def __init__(self, keys: Callable[[], Iterable[_Key]], interval_s: float) -> None:
        self._keys = keys
        self._interval_s = interval_s
        self._round: list[_Key] = []
        self._total = 0
        self._started_s: float | None = None

    def due(self, now_s: float) -> list[_Key]:
        """The keys whose turn has come since the last call.

        Args:
            now_s: Seconds on a clock that does not jump.
        """
        if not self._interval_s:
            return []
        if self._started_s is None:
            self._begin(now_s)
        assert self._started_s is not None
        elapsed = now_s - self._started_s
        share = min(1.0, elapsed / self._interval_s)
        left = self._total - int(self._total * share)
        turn = self._round[left:]
        del self._round[left:]
        if share >= 1.0:
            self._begin(now_s)
        return turn

    def _begin(self, now_s: float) -> None:
        self._started_s = now_s
        self._round = list(self._keys())
        self._total = len(self._round)
