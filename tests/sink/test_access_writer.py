"""Each batch of calls is stored once, whatever comes twice and whatever dies in between."""

from __future__ import annotations

import pytest

from schemas.errors import RetryableError
from sink.access_log import Sampling, batches_insert, read_calls
from sink.access_writer import CallWriter
from sink.writer import Retry
from tests.sink.calls import MILLISECOND, START_NS, calls_batch, plain_calls
from tests.sink.conftest import no_wait

pytestmark = pytest.mark.clickhouse

SAMPLING = Sampling(1.0, 1_000 * MILLISECOND)
DAY_NS = 86_400 * 1_000_000_000


def started(store, wait=no_wait):
    writer = CallWriter(store, Retry(wait, 0.01, 0.01), 8)
    writer.doubt([0])
    return writer


def batch(sequence, *, run="run-1", rows=10):
    calls = plain_calls(rows, first=1_000 * sequence)
    return read_calls(calls_batch(calls, run=run, sequence=sequence), SAMPLING)


def counts(store):
    """Rows, distinct rows, calls that the ledger has as stored, and batches."""
    (rows,) = store.rows("SELECT count(), uniqExact(path) FROM podwire.access_log")
    (ledger,) = store.rows(
        "SELECT sum(out_count) FROM podwire.pipeline_ledger WHERE kind = 'request'"
    )
    (batches,) = store.rows("SELECT count() FROM podwire_store.access_batches")
    return (*rows, *ledger, *batches)


def test_batches_written_together_are_one_part(store):
    started(store).write([(0, batch(i)) for i in range(5)])
    assert counts(store) == (50, 50, 50, 5)
    assert store.rows(
        "SELECT count() FROM system.parts WHERE database = 'podwire_store' AND active "
        "AND table = 'access_log'"
    ) == [(1,)]


def test_the_same_batch_twice_makes_no_second_row(store):
    writer = started(store)
    for group in ([0, 1, 1, 2], [1], [3, 2, 4], [0, 1, 2, 3, 4, 5]):
        writer.write([(0, batch(i)) for i in group])
    assert counts(store) == (60, 60, 60, 6)
    # And again by another process, in other groups; and a run of another collector beside.
    writer = started(store)
    for group in ([0], [2, 1], [5, 6]):
        writer.write([(0, batch(i)) for i in group])
    assert counts(store) == (70, 70, 70, 7)
    other = [(0, read_calls(calls_batch([{"path": "/x"}], run="b", sequence=2), SAMPLING))]
    writer.write(other)
    writer.write(other)
    assert counts(store) == (71, 71, 71, 8)


def test_a_batch_that_was_left_out_is_stored_when_it_comes(store):
    writer = started(store)
    writer.write([(0, batch(5))])
    writer.write([(0, batch(3))])
    writer.write([(0, batch(3)), (0, batch(5))])
    assert counts(store) == (20, 20, 20, 2)


@pytest.mark.parametrize("killed", ["before", "between", "after"])
def test_killed_at_any_point_each_batch_is_there_once(store, killed, monkeypatch):
    class Killed(Exception):
        pass

    done = []
    real = type(store).insert

    def insert(self, one):
        place = ("before", "between", "after").index(killed)
        if len(done) == place:
            raise Killed
        real(self, one)
        done.append(one)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "insert", insert)
        if killed == "after":
            started(store).write([(0, batch(i)) for i in range(3)])
        else:
            with pytest.raises(Killed):
                started(store).write([(0, batch(i)) for i in range(3)])
    # The same messages come again, cut in another way and with what came meanwhile.
    writer = started(store)
    writer.write([(0, batch(i)) for i in range(2)])
    writer.write([(0, batch(i)) for i in range(2, 6)])
    assert counts(store) == (60, 60, 60, 6)


def test_a_batch_over_midnight_is_completed(store):
    night = START_NS + DAY_NS
    calls = [
        {"path": f"/{i}", "start_ns": night - 2, "end_ns": night - 1 + i % 2} for i in range(10)
    ]
    late = read_calls(calls_batch(calls), SAMPLING)
    assert sorted(rows for rows, _ in late.days.values()) == [5, 5]
    writer = started(store)
    days = sorted(late.days)
    writer._insert(days[0], [late])
    started(store).write([(0, late)])
    assert counts(store) == (10, 10, 10, 1)


def test_a_lost_answer_is_no_second_row(store, monkeypatch):
    waits = []
    real = type(store).insert
    lost = [True, False, True, False]

    def insert(self, one):
        real(self, one)
        if lost.pop(0):
            raise RetryableError("the answer was lost")

    monkeypatch.setattr(type(store), "insert", insert)
    started(store, waits.append).write([(0, batch(0)), (0, batch(1))])
    assert counts(store) == (20, 20, 20, 2)
    assert waits


def test_a_token_without_its_rows_does_not_hide_them(store, monkeypatch):
    # As of a server killed between writing the token and the rows.
    real = type(store).insert
    lost = [True]

    def insert(self, one):
        real(self, one)
        if lost and lost.pop():
            self.command(
                "ALTER TABLE podwire_store.access_log DELETE WHERE 1",
                settings={"mutations_sync": 2},
            )
            raise RetryableError("killed")

    monkeypatch.setattr(type(store), "insert", insert)
    started(store, lambda _: None).write([(0, batch(0))])
    assert counts(store) == (10, 10, 10, 1)


def test_what_is_not_stored_at_all_is_known_too(store):
    writer = started(store)
    inside = read_calls(calls_batch([{"internal": True}] * 3, sequence=9), SAMPLING)
    for _ in range(2):
        writer.write([(0, inside)])
    started(store).write([(0, inside)])
    assert counts(store) == (0, 0, 0, 1)
    assert batches_insert([inside]).token == batches_insert([inside]).token


def test_parts_of_a_batch_are_batches_of_their_own(store):
    def part(number):
        calls = plain_calls(5, first=100 * number)
        return 0, read_calls(calls_batch(calls, sequence=4, part=number), SAMPLING)

    writer = started(store)
    writer.write([part(0), part(1)])
    for _ in range(2):
        writer.write([part(1), part(2), (0, batch(5))])
    started(store).write([part(0), part(1), part(2), (0, batch(5))])
    assert counts(store) == (25, 25, 25, 4)
