"""The demo's tables of packets and waits, from rows that the sink stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from deploy.demo.view import Packets, load_packets, load_waits, packet_table, wait_table
from deploy.sql import Database
from schemas.clock import ManualClock
from sink.config import SinkConfig
from sink.ddl import apply_schema
from sink.store import Store
from sink.writer import BlockWriter, Retry
from tests.sink.blocks import MINUTE_S, histogram, service_block, service_table
from tests.sink.conftest import no_wait
from tests.sink.test_writer import attempt

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.clickhouse


def test_waits_are_shown_longest_first_and_only_those_measured(tmp_path: Path) -> None:
    store = Store.connect(SinkConfig(url=f"chdb://{tmp_path}/clickhouse"))
    apply_schema(store)
    clock = ManualClock(now_unix_ns=(MINUTE_S + 300) * 1_000_000_000)
    writer = BlockWriter(store, Retry(no_wait, 0.1, 0.1), clock, "epoch")
    writer.assign([0])
    names = [""]
    table = service_table(2, names)
    for stage, nanoseconds in (("write_tcp", 5_000), ("read_ip", 900), ("read_in_queue", 40_000)):
        values = np.full(10, nanoseconds, "<u8")
        values[9] *= 100
        table.histograms[stage] = histogram(np.zeros(10), values)
    others = np.full(5, 10**9, "<u8")  # of a service that is not the demo's
    table.histograms["write_device"] = histogram(np.ones(5), others)
    writer.write(attempt(service_block(0, table, names)))
    store.close()
    with Database(tmp_path) as database:
        waits = load_waits(database, ["service-0"])
    assert [each.stage for each in waits] == ["read_in_queue", "read_ip", "write_tcp"]
    assert [each.calls for each in waits] == [10, 10, 10]
    assert waits[0].half_ns == pytest.approx(40_000, rel=0.125)
    assert waits[0].most_ns == waits[0].half_ns
    assert waits[0].nearly_all_ns == pytest.approx(4_000_000, rel=0.125)
    console = Console(width=80)
    with console.capture() as shown:
        console.print(wait_table(waits))
    assert "read_in_queue" in shown.get()
    assert "ms" in shown.get()


def test_packets_are_shown_of_services_that_counted_them(tmp_path: Path) -> None:
    store = Store.connect(SinkConfig(url=f"chdb://{tmp_path}/clickhouse"))
    apply_schema(store)
    clock = ManualClock(now_unix_ns=(MINUTE_S + 300) * 1_000_000_000)
    writer = BlockWriter(store, Retry(no_wait, 0.1, 0.1), clock, "epoch")
    writer.assign([0])
    names = [""]
    table = service_table(3, names)  # the last one counted nothing
    figures = {
        "read_packet_count": (2_000, 5),
        "read_packet_size": (1_000_000, 500),
        "write_packet_count": (1_000, 10),
        "write_packet_size": (500_000, 10_000),
        "write_retransmit_packet_count": (7, 0),
    }
    for name, values in figures.items():
        table.figures[name] = np.array((*values, 0), "<u8")
        table.measured[name] = np.array((9, 9, 0), "<u8")
    writer.write(attempt(service_block(0, table, names)))
    store.close()
    with Database(tmp_path) as database:
        packets = load_packets(database, ["service-0", "service-2"])
    assert packets == [Packets("service-0", 2_000, 1_000, 7, None, 1_500_000)]
    console = Console(width=80)
    with console.capture() as shown:
        console.print(packet_table(packets))
    (row,) = (line for line in shown.get().splitlines() if "service-0" in line)
    assert row.split() == ["service-0", "2,000", "1,000", "7", "-", "500", "B"]
