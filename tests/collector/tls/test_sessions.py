"""Why connections are not read is asked of their processes, once there is something to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from collector.abi import ConnectionEvent, ConnectionFlag, PayloadFlag
from collector.connections import ConnectionTable
from collector.names import NameTable
from collector.tls import sessions as module
from collector.tls.sessions import Sessions
from schemas.telemetry import counter
from schemas.tls import Unreadable
from tests.collector.fakes import FakeSource
from tests.collector.records import Talk, connection, connections, pieces, transfer, transfers
from tests.collector.tls.test_hello import client_hello

if TYPE_CHECKING:
    from numpy.typing import NDArray

E = ConnectionEvent
JAVA, LATE, NOBODY, PLAIN, OLD = 1, 2, 3, 4, 5
PIDS = {JAVA: 10, LATE: 20, NOBODY: 0, PLAIN: 40, OLD: 50}
NO_RECORDS = connections()


@pytest.fixture
def table() -> ConnectionTable:
    table = ConnectionTable()
    table.apply(connections(*(connection(each, E.ACCEPTED, pid=pid) for each, pid in PIDS.items())))
    return table


@pytest.fixture
def source() -> FakeSource:
    return FakeSource(reasons={10: Unreadable.JAVA, 40: Unreadable.OFF, 50: Unreadable.REFUSED})


@pytest.fixture
def sessions(table: ConnectionTable, source: FakeSource) -> Sessions:
    return Sessions(table, NameTable(), source)


def rows(table: ConnectionTable, *ids: int) -> NDArray[np.void]:
    found: NDArray[np.void] = table.rows[table.find(np.array(ids, np.uint64))]
    return found


def greet(sessions: Sessions, *ids: int) -> None:
    hello = client_hello("shop.example")
    sessions.greet(pieces(*(Talk(each).read(hello, flags=PayloadFlag.HELLO) for each in ids)))


def test_every_connection_inside_tls_has_a_reason_as_soon_as_it_is_known(
    table: ConnectionTable, source: FakeSource, sessions: Sessions
) -> None:
    greet(sessions, JAVA, LATE, NOBODY)
    turned = connections(connection(OLD, E.ANNOUNCED, pid=50, flags=ConnectionFlag.TLS))
    table.apply(turned)
    sessions.explain(turned)
    everyone = [JAVA, LATE, NOBODY, PLAIN, OLD]
    told = [Unreadable.JAVA, 0, 0, 0, Unreadable.REFUSED]
    assert rows(table, *everyone)["unreadable"].tolist() == told
    source.reasons |= {10: Unreadable.GONE, 20: Unreadable.NO_LIBRARY}
    sessions.explain(NO_RECORDS)
    told[1] = Unreadable.NO_LIBRARY  # and what is known stays
    assert rows(table, *everyone)["unreadable"].tolist() == told


def test_who_is_read_or_not_watched_is_not_asked_about(
    table: ConnectionTable, source: FakeSource, sessions: Sessions
) -> None:
    slots = table.find(np.array([JAVA, OLD], np.uint64))
    table.rows["flags"][slots[0]] |= ConnectionFlag.READABLE
    table.rows["excluded"][slots[1]] = 1
    greet(sessions, JAVA, OLD)
    sessions.explain(NO_RECORDS)
    assert source.asked == []
    greet(sessions, PLAIN)
    sessions.explain(NO_RECORDS)
    assert source.asked == [40]


SECOND = 1_000_000_000


def undecided(
    sessions: Sessions, second: int, ended: tuple[int, ...] = (), calls: tuple[int, ...] = ()
) -> list[int]:
    """Who waits after a publish; ``calls`` are of whoever waited before as well."""
    records = transfers(*(transfer(each) for each in calls))
    ids = sessions.undecided(np.array(ended, np.uint64), records, second * SECOND)
    return sorted(ids.tolist())


def set_version(table: ConnectionTable, *ids: int) -> None:
    table.rows["tls_version"][table.find(np.array(ids, np.uint64))] = 0x0304


def test_who_may_change_waits(
    table: ConnectionTable, source: FakeSource, sessions: Sessions
) -> None:
    """Until it is read, its reason is final, or it has ended."""
    greet(sessions, JAVA, LATE, NOBODY, PLAIN, OLD)
    set_version(table, JAVA, OLD)
    sessions.explain(NO_RECORDS)
    table.rows["flags"][table.find(np.array([LATE], np.uint64))] = ConnectionFlag.READABLE
    assert undecided(sessions, 1) == [NOBODY, PLAIN, OLD]
    greet(sessions, LATE, NOBODY)  # the other side's
    sessions.explain(NO_RECORDS)
    set_version(table, PLAIN)
    assert undecided(sessions, 2) == [NOBODY, OLD]
    assert undecided(sessions, 3, ended=(OLD,)) == [NOBODY]
    assert undecided(sessions, 4, ended=(NOBODY, OLD)) == []
    assert undecided(sessions, 5) == []


def test_who_goes_on_unseen_waits_no_longer(
    table: ConnectionTable, source: FakeSource, sessions: Sessions
) -> None:
    """What moves first may be the end of the handshake."""
    source.reasons = {10: Unreadable.NOTHING_SEEN, 20: Unreadable.NOTHING_SEEN}
    greet(sessions, JAVA, LATE)
    set_version(table, JAVA, LATE)
    sessions.explain(NO_RECORDS)
    said = [JAVA, JAVA, LATE]
    assert undecided(sessions, 1, calls=(*said,)) == [JAVA, LATE]
    assert undecided(sessions, 2, calls=(*said, JAVA)) == [JAVA, LATE]
    assert undecided(sessions, 3, calls=(*said, JAVA)) == [JAVA, LATE]
    assert undecided(sessions, 4, calls=(*said, JAVA, JAVA, PLAIN)) == [LATE]


def test_a_reason_is_waited_for_beyond_the_end(
    table: ConnectionTable, source: FakeSource, sessions: Sessions
) -> None:
    """Also of who goes on; not of a connection that no process is known of."""
    source.reasons = {}
    greet(sessions, JAVA, LATE, NOBODY)
    set_version(table, JAVA, LATE, NOBODY)
    everyone = JAVA, LATE, NOBODY
    sessions.explain(NO_RECORDS)
    assert undecided(sessions, 1, ended=everyone) == [JAVA, LATE, NOBODY]
    assert undecided(sessions, 2, ended=everyone) == [JAVA, LATE]
    source.reasons = {10: Unreadable.JAVA}
    sessions.explain(NO_RECORDS)
    assert undecided(sessions, 3, ended=everyone) == [LATE]
    assert rows(table, JAVA)["unreadable"].tolist() == [Unreadable.JAVA]


def given_up(reason: str) -> float:
    value: float = counter("podwire_collector_tls_undecided_total").labels(reason)._value.get()
    return value


def test_waiting_has_an_end_that_is_counted(
    table: ConnectionTable,
    source: FakeSource,
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING", 5)
    source.reasons = dict.fromkeys(PIDS.values(), Unreadable.NOTHING_SEEN)
    late, crowded = given_up("late"), given_up("crowded")
    for second, each in enumerate((JAVA, PLAIN, OLD)):
        greet(sessions, each)
        sessions.explain(NO_RECORDS)
        expected = [JAVA, PLAIN, OLD][: second + 1]
        assert undecided(sessions, second, calls=(JAVA, PLAIN, OLD)[: second + 1]) == (
            expected if second < 2 else [PLAIN, OLD]
        )
    assert given_up("crowded") == crowded + 1
    assert undecided(sessions, 10, calls=(PLAIN, OLD)) == [PLAIN, OLD]
    assert undecided(sessions, 11, calls=(PLAIN, OLD)) == [OLD]
    assert undecided(sessions, 20, calls=(OLD,)) == []
    assert given_up("late") == late + 2


def test_a_hello_that_is_ahead_of_its_connection_waits_once(
    table: ConnectionTable, sessions: Sessions
) -> None:
    """What is never announced is forgotten."""
    greet(sessions, 6, 7)
    table.apply(connections(connection(6, E.ACCEPTED)))
    greet(sessions, JAVA)
    table.apply(connections(connection(7, E.ACCEPTED)))
    greet(sessions)
    assert (rows(table, 6, JAVA, 7)["server_name"] != 0).tolist() == [True, True, False]
