"""How far names and bytes can be trusted, asked of the database."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.catalogue import COVERAGE, SCOPE_BY_NAME, TLS
from schemas.metrics import MetricsTable, decode_block, encode_block
from tests.sink.blocks import MINUTE_S, service_block
from tests.sink.test_writer import attempt

pytestmark = pytest.mark.clickhouse


def _table(
    name: str, keys: tuple[str, ...], rows: list[tuple[str, ...]], figures: dict[str, list[int]]
) -> tuple[MetricsTable, list[str]]:
    names = ["", *sorted({text for row in rows for text in row} - {""})]
    columns = {
        key: np.array([names.index(row[place]) for row in rows], "<u4")
        for place, key in enumerate(keys)
    }
    values = {figure: np.array(numbers, "<u8") for figure, numbers in figures.items()}
    return MetricsTable(name, len(rows), columns, values), names


def test_shares_are_of_what_a_node_saw_in_a_role(store, writer):
    rows = [
        ("", "node-1", "client", "instance", ""),
        ("", "node-1", "client", "service", "service_address"),
        ("", "node-1", "server", "address", "outside"),
    ]
    for base in range(2):  # two blocks of one minute
        table, names = _table(
            COVERAGE.name,
            COVERAGE.keys,
            rows,
            {"connection_count": [30, 10, 5], "byte_count": [990, 10, 0]},
        )
        block = service_block(base, table, names)
        assert writer.write(attempt(decode_block(encode_block(block)), offset=base)) == "inserted"
    found = store.rows(
        "SELECT node, role, resolution, reason, connection_count, byte_count, connection_share,"
        " byte_share FROM podwire.coverage ORDER BY role, resolution"
    )
    assert found == [
        ("node-1", "client", "instance", "", 60, 1980, 0.75, 0.99),
        ("node-1", "client", "service", "service_address", 20, 20, 0.25, 0.01),
        ("node-1", "server", "address", "outside", 10, 0, 1.0, None),
    ]
    assert store.rows("SELECT toUnixTimestamp(time) FROM podwire.coverage LIMIT 1") == [(MINUTE_S,)]


def test_what_is_inside_tls_adds_up(store, writer):
    rows = [
        ("", "node-1", "client", "shop", "curl", "cart.shop", "TLS 1.3", "readable", ""),
        ("", "node-1", "client", "shop", "java", "", "TLS 1.2", "unreadable", "java"),
    ]
    for base in range(2):
        table, names = _table(
            TLS.name, TLS.keys, rows, {"close_count": [1, 2], "byte_count": [1000, 30]}
        )
        block = service_block(base, table, names)
        assert writer.write(attempt(decode_block(encode_block(block)), offset=base)) == "inserted"
    found = store.rows(
        "SELECT process, server_name, tls_version, readability, unreadable_reason, close_count,"
        " byte_count"
        " FROM podwire.tls ORDER BY process"
    )
    assert found == [
        ("curl", "cart.shop", "TLS 1.3", "readable", "", 2, 2000),
        ("java", "", "TLS 1.2", "unreadable", "java", 4, 60),
    ]


def test_the_bytes_of_relations_are_compared_where_both_ends_were_seen(store, writer):
    scope = SCOPE_BY_NAME["instance_relation"]
    pair = ("shop", "shop-1", "cart", "cart-1")
    rows = [
        ("", "client", *pair),
        ("", "server", *pair),
        ("", "client", "shop", "shop-1", "203.0.113.1", "203.0.113.1"),
    ]
    figures = {"write_bytes": [100, 70, 5], "read_bytes": [70, 90, 5]}
    table, names = _table(scope.name, scope.keys, rows, figures)
    block = service_block(0, table, names)
    assert writer.write(attempt(decode_block(encode_block(block)), offset=0)) == "inserted"
    for suffix in ("", "_hourly", "_daily"):
        found = store.rows(
            "SELECT client_instance, server_instance, client_wrote_bytes, server_read_bytes,"
            " unread_to_server_bytes, unread_to_client_bytes"
            f" FROM podwire.instance_relation_agreement{suffix}"
        )
        assert found == [("shop-1", "cart-1", 100, 90, 10, 0)]
