"""Writes blocks so that each is stored once and whole, whatever dies in between.

Order: the rows of every table, then one row in ``blocks``. A block without that row may be there
in part. Its inserts are repeated: tokens make that harmless, and as the engine does not write
token and rows in one step, the first block after a start is also looked up by its mark.
"""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from schemas.errors import RetryableError, SinkBackpressure
from schemas.telemetry import RateLimited, counter
from sink.batches import LedgerRow, block_inserts, finished_insert, ledger_insert
from sink.blocks import KEPT_S, StoredBlocks
from sink.tables import BLOCKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from schemas.clock import Clock
    from schemas.metrics import BlockIdentity
    from sink.batches import Insert
    from sink.blocks import Assembler, Attempt
    from sink.store import Store

__all__ = ["BlockWriter", "Retry", "insert_once"]

log = logging.getLogger(__name__)
_limited = RateLimited(log)

GROWTH: Final = 2.0


class Retry:
    """Repeats what may succeed later, for as long as it takes.

    Args:
        wait: Called with the seconds to wait; keeps the Kafka membership alive meanwhile, and
            raises to give up.
        minimum_s: First pause.
        maximum_s: Longest pause.
    """

    def __init__(self, wait: Callable[[float], None], minimum_s: float, maximum_s: float) -> None:
        self._wait = wait
        self._minimum_s = minimum_s
        self._maximum_s = maximum_s

    def __call__(self, action: Callable[[], None]) -> None:
        """Run the action until it succeeds; whatever is no `RetryableError` goes up."""
        pause_s = self._minimum_s
        while True:
            try:
                action()
            except RetryableError as error:
                counter("podwire_sink_retries_total").labels(type(error).__name__).inc()
                _limited.warning("clickhouse: %s; trying again", error)
                asked = error.retry_after_s if isinstance(error, SinkBackpressure) else 0.0
                # Jitter: sinks that failed together must not come back together.
                self._wait(max(asked, pause_s) * random.uniform(0.7, 1.3))
                pause_s = min(pause_s * GROWTH, self._maximum_s)
            else:
                return


def insert_once(
    store: Store, retry: Retry, insert: Insert, is_present: Callable[[], bool], *, unsure: bool
) -> None:
    """Store one insert once, however often it has to be tried.

    Args:
        store: Where to.
        retry: How long to wait in between.
        insert: What, with its token.
        is_present: Looks whether its rows are in the table.
        unsure: Whether somebody may have tried before.
    """
    tries = 1 if unsure else 0

    def action() -> None:
        nonlocal tries
        if tries and is_present():
            return
        tries += 1
        store.insert(insert)

    retry(action)
    if tries <= 1:
        return
    found: list[bool] = []
    retry(lambda: found.append(is_present()))
    if not found[-1]:
        # A server killed between writing the token and the rows leaves a token without rows.
        log.warning("%s: rows of a killed insert are missing: again", insert.table.name)
        again = replace(insert, token=f"{insert.token}/again")
        retry(lambda: store.insert(again))


class BlockWriter:
    """Stores the blocks of the partitions that this process owns."""

    def __init__(self, store: Store, retry: Retry, clock: Clock, epoch: str) -> None:
        self._store = store
        self._retry = retry
        self._clock = clock
        self._epoch = epoch
        self._stored: dict[int, StoredBlocks] = {}
        self._unsure: set[int] = set()

    def assign(self, partitions: Iterable[int]) -> None:
        """Learn what is stored of these partitions."""
        for partition in partitions:
            self._retry(lambda partition=partition: self._load(partition))  # type: ignore[misc]

    def revoke(self, partitions: Iterable[int]) -> None:
        """Forget partitions that somebody else writes now."""
        for partition in partitions:
            self._stored.pop(partition, None)
            self._unsure.discard(partition)

    def write(self, attempt: Attempt) -> str:
        """Store a whole block, unless it is there already.

        Returns:
            ``inserted``, or why not: ``replayed``, ``duplicate`` or ``overlapping``.
        """
        identity, offset = attempt.identity, attempt.first_offset
        stored = self._stored[identity.partition]
        verdict = stored.judge(identity, offset)
        if verdict == "new":
            inserts = block_inserts(attempt.ordered(), self._epoch)
            for insert in inserts:
                self._insert(insert, identity.minute_s, unsure=identity.partition in self._unsure)
            rows = sum(insert.rows for insert in inserts)
            now_ms = self._clock.unix_ns() // 1_000_000
            finished = finished_insert(identity, self._epoch, offset, rows, now_ms)
            self._retry(lambda: self._store.insert(finished))
            self._unsure.discard(identity.partition)
            stored.add(
                identity.topic, identity.minute_s, identity.base_offset, identity.end_offset, offset
            )
            verdict_name = "inserted"
        else:
            verdict_name = verdict
            if verdict == "overlapping":
                log.error("block %s covers events that are already stored: refused", identity)
            if verdict != "replayed":
                self.drop(identity.partition, offset, "duplicate", identity.minute_s)
        counter("podwire_sink_blocks_total").labels(verdict_name).inc()
        return verdict_name

    def is_leftover(self, identity: BlockIdentity, assembler: Assembler, offset: int) -> bool:
        """Whether this part belongs to an attempt that was given up for a stored block."""
        if identity.part == 0 or assembler.is_open(identity):
            return False
        return self._stored[identity.partition].judge(identity, offset) != "new"

    def drop(self, partition: int, offset: int, reason: str, minute_s: int) -> None:
        """Say in the ledger that the block whose first message is at this offset was dropped."""
        row = LedgerRow(minute_s, "", reason, 1, 0, 1)
        insert = ledger_insert(row, self._epoch, f"dropped:{reason}:{partition}:{offset}")
        self._insert(insert, minute_s, unsure=True)

    def _load(self, partition: int) -> None:
        now_ms = self._clock.unix_ns() // 1_000_000
        stored = StoredBlocks()
        for topic, minute_s, base, end, offset in self._store.rows(
            "SELECT topic, toUnixTimestamp(minute), base_offset, end_offset, offset "  # noqa: S608
            f"FROM {self._store.layout.written(BLOCKS)} FINAL "
            "WHERE epoch = {epoch:String} AND partition = {partition:UInt32} "
            "AND inserted_at >= fromUnixTimestamp64Milli({oldest:Int64}) ORDER BY inserted_at",
            {
                "epoch": self._epoch,
                "partition": partition,
                "oldest": max(now_ms - KEPT_S * 1000, 0),
            },
        ):
            stored.add(topic, minute_s, base, end, offset)
        self._stored[partition] = stored
        self._unsure.add(partition)

    def _insert(self, insert: Insert, minute_s: int, *, unsure: bool) -> None:
        insert_once(
            self._store, self._retry, insert, lambda: self._present(insert, minute_s), unsure=unsure
        )

    def _present(self, insert: Insert, minute_s: int) -> bool:
        rows = self._store.rows(
            f"SELECT count() FROM {self._store.layout.written(insert.table)} "  # noqa: S608
            "WHERE time = toDateTime({minute:UInt32}, 'UTC') AND block = {mark:UInt64}",
            {"minute": minute_s, "mark": insert.mark},
        )
        return int(rows[0][0]) > 0
