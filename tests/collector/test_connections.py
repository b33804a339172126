from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.abi import ConnectionEvent
from collector.connections import GRACE_SWEEPS, ROW, ConnectionTable
from tests.collector.records import comm, connection, connections

E = ConnectionEvent


def _ids(*values: int) -> Any:
    return np.array(values, np.uint64)


def _row(table: ConnectionTable, connection_id: int) -> Any:
    (slot,) = table.find(_ids(connection_id))
    assert slot >= 0
    return table.rows[slot]


def test_a_row_is_small() -> None:
    assert ROW.itemsize == 99


def test_find_knows_what_was_applied_and_nothing_else() -> None:
    table = ConnectionTable()
    slots, changed = table.apply(connections(connection(5, E.ANNOUNCED), connection(6, E.CLOSED)))
    assert (slots >= 0).all()
    assert sorted(changed) == sorted(slots)
    assert (table.find(_ids(5, 6)) == slots).all()
    assert (table.find(_ids(7, 0, 2**64 - 1)) == -1).all()
    assert len(table) == 2


def test_ids_that_mean_no_connection_are_refused() -> None:
    table = ConnectionTable()
    slots, _ = table.apply(connections(connection(0, E.ANNOUNCED), connection(2**64 - 1, E.CLOSED)))
    assert slots.tolist() == [-1, -1]
    assert len(table) == 0


def test_the_newest_owner_that_is_known_stays() -> None:
    table = ConnectionTable()
    table.apply(
        connections(
            connection(5, E.ANNOUNCED, pid=0, cgroup_id=40, comm=comm(b"")),
            connection(5, E.ACCEPTED, pid=11, cgroup_id=41, comm=comm(b"parent")),
            connection(5, E.ANNOUNCED, pid=12, cgroup_id=42, comm=comm(b"worker")),
            connection(5, E.CLOSED, pid=0, cgroup_id=43),
        )
    )
    row = _row(table, 5)
    assert (row["pid"], row["cgroup_id"], table.comms[row["comm"]]) == (12, 42, b"worker")


def test_the_cgroup_of_the_socket_counts_until_a_process_touches_it() -> None:
    table = ConnectionTable()
    table.apply(connections(connection(5, E.ANNOUNCED, pid=0, cgroup_id=40)))
    assert _row(table, 5)["cgroup_id"] == 40


def test_addresses_of_a_later_record_without_ports_are_ignored() -> None:
    table = ConnectionTable()
    bare = {"local_port": 0, "remote_port": 0, "local_address": 0, "remote_address": 0}
    table.apply(connections(connection(5, E.CONNECTED, role=1), connection(5, E.CLOSED, **bare)))
    row = _row(table, 5)
    assert (row["local_port"], row["remote_port"], row["role"]) == (8080, 40_000, 1)
    assert row["local_address"].any()


def test_a_connection_that_is_only_known_without_ports_keeps_what_there_is() -> None:
    table = ConnectionTable()
    table.apply(connections(connection(5, E.CONNECTED, local_port=0)))
    row = _row(table, 5)
    assert (row["family"], row["remote_port"]) == (4, 40_000)


def test_only_new_owners_are_reported() -> None:
    table = ConnectionTable()
    table.apply(connections(connection(5, E.ANNOUNCED, pid=1)))
    _, same = table.apply(connections(connection(5, E.CLOSED, pid=1)))
    _, other = table.apply(connections(connection(5, E.CLOSED, pid=2)))
    assert len(same) == 0
    assert other.tolist() == table.find(_ids(5)).tolist()


def test_an_ended_row_stays_for_the_grace_and_no_longer() -> None:
    table = ConnectionTable()
    table.apply(connections(connection(5, E.CLOSED), connection(6, E.ANNOUNCED)))
    table.retire(_ids(5))
    for _ in range(GRACE_SWEEPS):
        table.sweep()
        assert (table.find(_ids(5, 6)) >= 0).all()
    table.sweep()
    assert (table.find(_ids(5, 6)) >= 0).tolist() == [False, True]
    assert len(table) == 1
    assert table.evicted == 0


def test_ended_rows_are_few_and_the_oldest_go_first() -> None:
    table = ConnectionTable(max_connections=1024)
    for first in range(1, 1000, 50):  # fifty connections a sweep, and all end
        ids = np.arange(first, first + 50, dtype=np.uint64)
        table.apply(connections(*(connection(int(i), E.CLOSED) for i in ids)))
        table.retire(ids)
        table.sweep()
    assert len(table) == 1024 // 8
    known = table.find(np.arange(1, 1001, dtype=np.uint64)) >= 0
    assert known[-128:].all()
    assert not known[:-128].any()
    assert table.evicted == 0


def test_what_ended_just_now_outlives_a_sweep_however_much_it_is() -> None:
    table = ConnectionTable(max_connections=1024)
    ids = np.arange(1, 1001, dtype=np.uint64)
    table.apply(connections(*(connection(int(i), E.CLOSED) for i in ids)))
    table.retire(ids)
    table.sweep()
    assert (table.find(ids) >= 0).all()
    table.sweep()
    assert np.count_nonzero(table.find(ids) >= 0) == 128


def test_a_full_table_gives_up_ended_rows_before_any_other() -> None:
    table = ConnectionTable(max_connections=1024)
    open_ids, ended = np.arange(1, 901, dtype=np.uint64), np.arange(901, 1025, dtype=np.uint64)
    for ids in (open_ids, ended):
        table.apply(connections(*(connection(int(i), E.ANNOUNCED) for i in ids)))
    table.retire(ended)
    for _ in range(5):
        table.sweep()
    table.retire(open_ids[:1])
    table.sweep()
    for new in range(2000, 2124):
        slots, _ = table.apply(connections(connection(new, E.ANNOUNCED)))
        assert (slots >= 0).all()
        assert table.find(ended[new - 2000 : new - 1999])[0] == -1, "the oldest first"
    assert (table.find(open_ids) >= 0).all()
    assert (len(table), table.evicted) == (1024, 0)
    table.apply(connections(connection(3000, E.ANNOUNCED)))
    assert table.evicted == 64, "none but open ones are left"
    assert len(table) == 1024 - 64 + 1


def test_memory_stays_bounded_however_many_connections_end() -> None:
    table = ConnectionTable(max_connections=4096)
    records = np.repeat(connections(connection(1, E.CLOSED)), 400)
    for first in range(1, 400 * GRACE_SWEEPS * 2, 400):
        records["connection_id"] = ids = np.arange(first, first + 400, dtype=np.uint64)
        table.apply(records)
        table.retire(ids)
        table.sweep()
        assert len(table) <= 4096 // 8 + 400
        assert sum(map(len, table._ended)) == table._ended_count <= 4096 // 8 + 400
        assert len(table._ended) <= GRACE_SWEEPS
    assert table.capacity <= 2048


def test_the_table_stops_growing_at_its_limit() -> None:
    table = ConnectionTable(max_connections=3)
    slots, _ = table.apply(connections(*(connection(i, E.ANNOUNCED) for i in range(1, 6))))
    assert sorted(slots >= 0) == [False, False, True, True, True]
    assert len(table) == 3


def test_fifty_thousand_connections_fit_in_little_memory() -> None:
    table = ConnectionTable()
    ids = np.arange(10**12, 10**12 + 50_000, dtype=np.uint64)
    records = np.repeat(connections(connection(1, E.ANNOUNCED)), len(ids))
    records["connection_id"] = ids
    table.apply(records)
    assert (table.rows["connection_id"][table.find(ids)] == ids).all()
    assert table.capacity * (ROW.itemsize + 8) < 14_000_000


_ID = st.integers(1, 40) | st.sampled_from([2**63, 2**64 - 2, 0x9E3779B97F4A7C15])


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(["apply", "retire", "sweep"]), st.lists(_ID)), max_size=30)
)
def test_the_table_behaves_like_a_dictionary(steps: list[tuple[str, list[int]]]) -> None:
    table = ConnectionTable(grace_sweeps=2)
    table._allocate(3)  # so small that it collides, deletes and grows all the time
    known: dict[int, int] = {}
    retired: list[list[int]] = []
    retiring: list[int] = []
    for number, (step, ids) in enumerate(steps, 1):
        if step == "apply":
            table.apply(connections(*(connection(i, E.ANNOUNCED, pid=number) for i in ids)))
            known.update(dict.fromkeys(ids, number))
        elif step == "retire":
            table.retire(np.array(ids, np.uint64))
            retiring += ids
        else:
            table.sweep()
            retired, retiring = [*retired, retiring], []
            for gone in retired.pop(0) if len(retired) > 2 else ():
                known.pop(gone, None)
        everything = [*range(1, 41), 2**63, 2**64 - 2, 0x9E3779B97F4A7C15]
        slots = table.find(np.array(everything, np.uint64))
        found = {
            i: int(table.rows["pid"][slot])
            for i, slot in zip(everything, slots, strict=True)
            if slot >= 0
        }
        assert found == known
        assert len(table) == len(known)
        assert len(table.live_slots()) == len(known)


def test_lost_closes_do_not_fill_the_table_for_ever() -> None:
    table = ConnectionTable(max_connections=1024)
    table.apply(connections(*(connection(number, E.ANNOUNCED) for number in (1, 2))))
    for start in range(10, 20_000, 500):
        table.use(table.find(_ids(1)))
        batch = connections(*(connection(start + each, E.ANNOUNCED) for each in range(500)))
        slots, created = table.apply(batch)
        assert (slots >= 0).all()
        assert len(created) == 500
        assert (table.rows["connection_id"][slots] == batch["connection_id"]).all()
        for _ in range(2):
            table.sweep()
    assert len(table) <= 1024
    assert table.find(_ids(1))[0] >= 0, "in use all the time"
    assert table.find(_ids(2))[0] == -1
    assert table.evicted >= 18_000


def test_what_was_used_a_moment_ago_is_not_given_up() -> None:
    table = ConnectionTable(max_connections=1024)
    table.apply(connections(*(connection(number + 1, E.ANNOUNCED) for number in range(1024))))
    table.sweep()
    slots, _ = table.apply(connections(connection(5000, E.ANNOUNCED)))
    assert slots.tolist() == [-1]
    assert (len(table), table.evicted) == (1024, 0)
