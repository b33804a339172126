"""Why connections are not read is asked of their processes, once there is something to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from collector.abi import ConnectionEvent, ConnectionFlag, PayloadFlag
from collector.connections import ConnectionTable
from collector.names import NameTable
from collector.tls.sessions import Sessions
from schemas.tls import Unreadable
from tests.collector.fakes import FakeSource
from tests.collector.records import Talk, connection, connections, pieces
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


def test_who_may_change_waits_once(
    table: ConnectionTable, source: FakeSource, sessions: Sessions
) -> None:
    greet(sessions, JAVA, LATE, NOBODY, PLAIN, OLD)
    table.rows["tls_version"][table.find(np.array([JAVA, OLD], np.uint64))] = 0x0304
    sessions.explain(NO_RECORDS)
    table.rows["flags"][table.find(np.array([LATE], np.uint64))] = ConnectionFlag.READABLE
    assert sessions.undecided().tolist() == [NOBODY, PLAIN, OLD]
    greet(sessions, LATE, NOBODY)  # the other side's
    sessions.explain(NO_RECORDS)
    assert sessions.undecided().tolist() == []


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
