"""Whose connections are, when it is known at once and when it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collector.abi import ConnectionEvent
from collector.connections import ConnectionTable
from collector.containers import ContainerResolver
from collector.names import NameTable
from collector.owners import Owners
from schemas.clock import SystemClock
from tests.collector.records import connection, connections

if TYPE_CHECKING:
    from pathlib import Path


def test_a_container_that_a_later_owner_told_of_stays(tmp_path: Path) -> None:
    container, table, names = "a" * 64, ConnectionTable(), NameTable()
    (tmp_path / "cgroup").mkdir()
    resolver = ContainerResolver(tmp_path, tmp_path / "cgroup", SystemClock())
    owners = Owners(table, names, resolver, None, 0)
    told = [connection(1, ConnectionEvent.ANNOUNCED, pid=pid, cgroup_id=5) for pid in (0, 7)]

    owners.enter(table.apply(connections(told[0]))[1])
    assert owners.undecided.tolist() == [1]
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(f"0::/docker/{container}\n")
    owners.enter(table.apply(connections(told[1]))[1])
    for _ in range(2):
        row = table.rows[table.live_slots()][0]
        assert names.text(row["container"]) == container
        owners.decide()
    assert owners.undecided.tolist() == []
