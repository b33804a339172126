"""Writes the calls of batches, each batch once.

Order: the rows of the calls, day by day, then a row per batch in ``access_batches``. Batches of a
run come in order of their sequence, so a greater one than any before is new; one that is not is
looked up. What a killed process had inserted without that row is among the first messages after a
start: of these the rows themselves are looked for.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeVar

from schemas.telemetry import counter
from sink.access_log import DAY_S, batches_insert
from sink.batches import Insert
from sink.tables import ACCESS_BATCHES, ACCESS_LOG
from sink.writer import insert_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sink.access_log import Calls
    from sink.store import Store
    from sink.writer import Retry

__all__ = ["CallWriter"]

T = TypeVar("T")


class CallWriter:
    """Stores the batches of the partitions that this process owns.

    Args:
        store: A connection that nobody else uses.
        retry: How often and how long to try.
        together: Most messages that are ever written together.
    """

    def __init__(self, store: Store, retry: Retry, together: int) -> None:
        self._store = store
        self._retry = retry
        self._together = together
        self._newest: dict[tuple[int, str], tuple[int, int]] = {}
        self._unsure: dict[int, int] = {}

    def doubt(self, partitions: Iterable[int]) -> None:
        """Say that somebody else, or this process, may have stored what comes next already."""
        for partition in partitions:
            self._unsure[partition] = self._together
            for key in [key for key in self._newest if key[0] == partition]:
                del self._newest[key]

    def write(self, batches: Sequence[tuple[int, Calls]]) -> None:
        """Store batches of (partition, calls), in the order of each partition; each only once."""
        fresh = self._fresh(batches)
        calls = [one for _, one in fresh]
        doubtful = [one for partition, one in fresh if self._unsure.get(partition)]
        for day in sorted({day for one in calls for day in one.days}):
            marks = [one.mark for one in doubtful if day in one.days]
            present = self._ask(lambda day=day, marks=marks: self._marks(day, marks))  # type: ignore[misc]
            chosen = [one for one in calls if day in one.days and one.mark not in present]
            if chosen:
                self._insert(day, chosen)
        if calls:
            insert_once(
                self._store,
                self._retry,
                batches_insert(calls),
                lambda: all(self._is_recorded(one) for one in calls),
                unsure=False,
            )
        for partition, _ in batches:
            self._unsure[partition] = max(self._unsure.get(partition, 0) - 1, 0)
        _count(batches, calls)

    def _fresh(self, batches: Sequence[tuple[int, Calls]]) -> list[tuple[int, Calls]]:
        seen: set[int] = set()
        fresh = []
        for partition, one in batches:
            if one.count and one.mark not in seen and self._is_new(partition, one):
                fresh.append((partition, one))
                seen.add(one.mark)
        return fresh

    def _is_new(self, partition: int, calls: Calls) -> bool:
        key = (partition, calls.run)
        if key not in self._newest:
            self._newest[key] = self._ask(lambda: self._last_place(calls.run))
        if calls.place > self._newest[key]:
            self._newest[key] = calls.place
            return True
        return not self._ask(lambda: self._is_recorded(calls))

    def _insert(self, day: int, batches: Sequence[Calls]) -> None:
        # The blocks of Native format one after the other; the server joins them to one. On several
        # shards each has the rows of whole batches, so that all of them tell whether it is done.
        marks = [one.mark for one in batches]
        name = hashlib.blake2b(repr(marks).encode(), digest_size=16).hexdigest()
        insert = Insert(
            table=ACCESS_LOG,
            columns=batches[0].columns,
            rows=sum(one.days[day][0] for one in batches),
            payload=b"".join(one.days[day][1] for one in batches),
            token=f"{ACCESS_LOG.name}/{day}/{name}",
        )
        insert_once(
            self._store,
            self._retry,
            insert,
            lambda: self._marks(day, marks) == set(marks),
            unsure=False,
        )

    def _ask(self, question: Callable[[], T]) -> T:
        answers: list[T] = []
        self._retry(lambda: answers.append(question()))
        return answers[-1]

    def _marks(self, day: int, marks: Sequence[int]) -> set[int]:
        if not marks:
            return set()
        rows = self._store.rows(
            f"SELECT DISTINCT batch FROM {self._store.layout.written(ACCESS_LOG)} "  # noqa: S608
            "WHERE time >= toDateTime({start:UInt32}, 'UTC') "
            "AND time < toDateTime({end:UInt32}, 'UTC') AND batch IN {marks:Array(UInt64)}",
            {"start": day * DAY_S, "end": (day + 1) * DAY_S, "marks": list(marks)},
        )
        return {int(row[0]) for row in rows}

    def _is_recorded(self, calls: Calls) -> bool:
        rows = self._store.rows(
            f"SELECT count() FROM {self._store.layout.written(ACCESS_BATCHES)} "  # noqa: S608
            "WHERE run = {run:String} AND sequence = {sequence:UInt64} AND part = {part:UInt32}",
            {"run": calls.run, "sequence": calls.sequence, "part": calls.part},
        )
        return int(rows[0][0]) > 0

    def _last_place(self, run: str) -> tuple[int, int]:
        rows = self._store.rows(
            f"SELECT sequence, part FROM {self._store.layout.written(ACCESS_BATCHES)} "  # noqa: S608
            "WHERE run = {run:String} ORDER BY sequence DESC, part DESC LIMIT 1",
            {"run": run},
        )
        return (int(rows[0][0]), int(rows[0][1])) if rows else (-1, 0)


def _count(batches: Sequence[tuple[int, Calls]], stored: Sequence[Calls]) -> None:
    outcomes = {
        "stored": sum(one.stored for one in stored),
        "sampled": sum(one.sampled for one in stored),
        "pod_internal": sum(one.internal for one in stored),
        "duplicate": sum(one.count for _, one in batches) - sum(one.count for one in stored),
    }
    for outcome, count in outcomes.items():
        counter("podwire_sink_calls_total").labels(outcome).inc(count)
