"""Sums minutes to hours and hours to days, once each is over.

A run writes the rows of a new version and then says in ``rolled`` how many blocks it holds. A
block that comes later makes that number too small: the views go back to the minutes, and the next
pass writes a new version. So a run may be repeated, interrupted or done twice at the same time.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Final

from schemas.errors import PodwireError
from schemas.telemetry import RateLimited, counter
from sink.tables import BLOCKS, ROLLED, ROLLUPS
from sink.views import rollup_insert

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from schemas.clock import Clock
    from sink.store import Store

__all__ = ["Roller"]

PASS_S: Final = 20.0
_LENGTH_S: Final = {"hourly": 3600, "daily": 86400}
_START: Final = {"hourly": "toStartOfHour", "daily": "toStartOfDay"}
_SETTINGS: Final = {"async_insert": 0, "distributed_foreground_insert": 1, "max_threads": 1}

log = logging.getLogger(__name__)
_limited = RateLimited(log)


class Roller:
    """Rolls up what is due; one instance, with a connection of its own.

    Args:
        store: A connection that nobody else uses.
        clock: Decides what is over.
        delay_s: How long after its end an hour or day is rolled up.
        retention_days: Age at which minutes go; hours near it are left as they are.
    """

    def __init__(self, store: Store, clock: Clock, delay_s: int, retention_days: int) -> None:
        self._store = store
        self._clock = clock
        self._delay_s = delay_s
        self._retention_days = retention_days
        self._seen: dict[tuple[str, int], int] = {}

    def run(self, stop: threading.Event, is_mine: Callable[[], bool]) -> None:
        """Do a pass now and then until the stop event, while this process is the one to do it."""
        while not stop.wait(PASS_S):
            if not is_mine():
                continue
            try:
                self.run_pass()
            except PodwireError as error:
                counter("podwire_errors_total").labels("sink", "rollup").inc()
                _limited.warning("roll-up: %s; trying again", error)

    def run_pass(self) -> int:
        """Roll up every hour and day that is due; return how many were.

        One whose blocks are still arriving is left for the next pass.

        Raises:
            RetryableError: If the database could not do it now.
            FatalError: If it will not.
        """
        done = 0
        for period in _LENGTH_S:
            for start_s, blocks in self._due(period):
                settled = self._seen.get((period, start_s)) == blocks
                self._seen[period, start_s] = blocks
                if settled:
                    self._roll(period, start_s, blocks)
                    done += 1
                    del self._seen[period, start_s]
        return done

    def _due(self, period: str) -> list[tuple[int, int]]:
        now_s = self._clock.unix_ns() // 1_000_000_000
        length_s = _LENGTH_S[period]
        # Minutes that the retention has begun to remove cannot be summed again.
        oldest_s = now_s - (self._retention_days - 1) * 86400 if self._retention_days else 0
        rows = self._store.rows(
            f"SELECT toUnixTimestamp({_START[period]}(minute)) AS start, count() "  # noqa: S608
            f"FROM {self._store.layout.written(BLOCKS)} FINAL "
            "GROUP BY start HAVING start <= {last:UInt32} AND start >= {oldest:UInt32} "
            f"AND start NOT IN (SELECT toUnixTimestamp(time) FROM "
            f"{self._store.layout.database}.pipeline_rollups WHERE period = {{period:String}}) "
            "ORDER BY start",
            {
                "last": max(now_s - length_s - self._delay_s, 0),
                "oldest": max(oldest_s, 0),
                "period": period,
            },
        )
        return [(int(start), int(blocks)) for start, blocks in rows]

    def _roll(self, period: str, start_s: int, blocks: int) -> None:
        layout = self._store.layout
        version = self._next_version(period, start_s)
        parameters = {"start": start_s, "end": start_s + _LENGTH_S[period], "version": version}
        for rollup in ROLLUPS:
            if rollup.period == period:
                statement = rollup_insert(rollup, layout.store, layout.database)
                self._store.command(statement, parameters, _SETTINGS)
        self._store.command(
            f"INSERT INTO {layout.written(ROLLED)} (period, time, version, blocks) "
            "SELECT {period:String}, toDateTime({start:UInt32}, 'UTC'), {version:UInt64}, "
            "{blocks:UInt64}",
            {"period": period, "start": start_s, "version": version, "blocks": blocks},
            _SETTINGS,
        )
        log.info("rolled up %s %d with %d blocks", period, start_s, blocks)

    def _next_version(self, period: str, start_s: int) -> int:
        # Above every earlier one even when the clock was set back, and unlike that of a second
        # process which believes that this is its work.
        rows = self._store.rows(
            f"SELECT max(version) FROM {self._store.layout.written(ROLLED)} "  # noqa: S608
            "WHERE period = {period:String} AND time = toDateTime({start:UInt32}, 'UTC')",
            {"period": period, "start": start_s},
        )
        now = self._clock.unix_ns() // 1_000_000
        return max(now, int(rows[0][0]) // 1000 + 1) * 1000 + random.randrange(1000)
