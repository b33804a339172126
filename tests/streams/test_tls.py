from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.events import ConnectionFlag, Role
from schemas.tls import Unreadable
from streams import tls
from streams.aggregate import contributions
from streams.minutes import MinuteSums
from streams.scopes import minute_tables
from streams.tls import OTHER_NAMES, tls_rows
from tests.streams.build import BatchBuilder
from tests.streams.test_resolver import cluster

if TYPE_CHECKING:
    import pytest

INSIDE = ConnectionFlag.TLS
READABLE = ConnectionFlag.TLS | ConnectionFlag.READABLE


def sums_of(*builders: BatchBuilder) -> MinuteSums:
    _, resolver = cluster()
    sums = MinuteSums()
    for builder in builders:
        batch = builder.batch()
        for part in contributions(batch, resolver.resolve(batch)):
            sums.add(part)
    return sums


def test_bytes_and_closes_by_process_name_version_and_readability() -> None:
    builder = BatchBuilder()
    for process, flags, name, version, why, size in (
        ("curl", READABLE, "api.shop", 0x0304, 0, 100),
        ("curl", READABLE, "api.shop", 0x0304, Unreadable.NOTHING_SEEN, 50),
        ("java", INSIDE, "api.shop", 0x0303, Unreadable.JAVA, 7),
        ("java", INSIDE, "", 0, 0xFF, 3),
        ("new", INSIDE, "", 0, 99, 1),
        ("plain", ConnectionFlag.PREEXISTING, "", 0, 0, 1000),
    ):
        row = builder.connection(
            "10.0.0.3:40000",
            "203.0.113.1:443",
            container="c-api-1",
            process=process,
            flags=flags,
            server_name=name,
            tls_version=version,
            unreadable=why,
        )
        builder.transfer(row, size).transfer(row, size, write=True).close(row)
    sums = sums_of(builder)
    service = sums.relations[0].local.service
    common = "", "node-a", "client", service
    assert tls_rows(sums.protected, sums.relations) == {
        (*common, "curl", "api.shop", "TLS 1.3", "readable", ""): (2, 300),
        (*common, "java", "api.shop", "TLS 1.2", "unreadable", "java"): (1, 14),
        (*common, "java", "", "", "unreadable", "unknown"): (1, 6),
        (*common, "new", "", "", "unreadable", "99"): (1, 2),
    }
    _, tables = minute_tables(sums)
    (table,) = (each for each in tables if each.table == "tls")
    assert int(table.figures["byte_count"].sum()) == 322


def test_batches_that_know_nothing_of_it_add_nothing() -> None:
    builder = BatchBuilder()
    row = builder.connection("10.0.0.3:40000", "203.0.113.1:443", container="c-api-1")
    sums = sums_of(builder.transfer(row, 5))
    assert sums.protected == {}
    _, tables = minute_tables(sums)
    assert "tls" not in {table.table for table in tables}


def test_what_stays_inside_a_pod_is_left_out() -> None:
    builder = BatchBuilder()
    row = builder.connection(
        *("10.0.0.3:8443", "127.0.0.1:9", Role.SERVER), container="c-api-1", flags=INSIDE
    )
    assert sums_of(builder.transfer(row, 5)).protected == {}


def test_clients_that_ask_for_any_name_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_MAX_KEYS", 10)
    builders = []
    for number in range(50):
        builder = BatchBuilder(sequence=number)
        row = builder.connection(
            "10.0.0.3:40000",
            "203.0.113.1:443",
            container="c-api-1",
            flags=INSIDE,
            server_name=f"{number}.example",
        )
        builders.append(builder.transfer(row, 10))
    found = sums_of(*builders).protected
    assert len(found) == 11
    assert sum(moved for _, moved in found.values()) == 500
    (other,) = (moved for key, (_, moved) in found.items() if key[2] == OTHER_NAMES)
    assert other == 400
