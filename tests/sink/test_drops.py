"""Lost packets by reason from the database are those of the blocks, however they are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.metrics import MetricsBlock, NameCounts, decode_block, encode_block
from sink.batches import block_inserts
from sink.rollup import Roller
from tests.sink.blocks import MINUTE_S, service_block, service_table
from tests.sink.test_writer import attempt

pytestmark = pytest.mark.clickhouse

HOUR = 3600
SERVICES = 3


def lossy_block(base: int, minute_s: int, *, part: int = 0, parts: int = 1) -> MetricsBlock:
    """The last service has lost nothing; the parts have dictionaries of their own."""
    names = [f"{part}", "NETFILTER_DROP", ""][: 3 - part] + ["", "QDISC_DROP"][1 - part :]
    names = ["", *sorted({*names} - {""})]
    table = service_table(SERVICES, names)
    reasons = np.array([0, names.index("QDISC_DROP"), names.index("QDISC_DROP")], "<u4")
    packets = np.array([1, 10, 100], "<u8") + np.uint64(base)
    table.breakdowns["write_lost_packet_reasons"] = NameCounts(
        np.array([0, 0, 1], "<u4"), reasons, packets
    )
    totals = np.zeros(SERVICES, "<u8")
    np.add.at(totals, [0, 0, 1], packets)
    table.figures["write_lost_packet_count"] = totals
    table.measured["write_lost_packet_count"] = np.ones(SERVICES, "<u8")
    block = service_block(base, table, names, minute_s=minute_s, part=part, parts=parts)
    return decode_block(encode_block(block))


def test_reasons_add_up_to_what_was_lost(store, writer, clock):
    minutes = (0, 61, 23 * 60)
    for base, minute in enumerate(minutes):
        block = lossy_block(base, MINUTE_S + minute * 60)
        assert writer.write(attempt(block, offset=base)) == "inserted"
        for insert in block_inserts([block], "epoch"):  # again, after a lost answer
            store.insert(insert)
    late = [lossy_block(9, MINUTE_S, part=part, parts=2) for part in range(2)]
    assert writer.write(attempt(*late, offset=9)) == "inserted"
    extra = 2 * 9 + sum(range(len(minutes)))
    wanted = [
        ("service-0", "", 5 + extra),
        ("service-0", "QDISC_DROP", 50 + extra),
        ("service-1", "QDISC_DROP", 500 + extra),
    ]

    def check() -> None:
        for suffix in ("", "_hourly", "_daily"):
            assert (
                store.rows(
                    f"SELECT service, reason, sum(packets) FROM podwire.service_drops{suffix} "
                    "GROUP BY service, reason ORDER BY service, reason"
                )
                == wanted
            )
            assert store.rows(
                "SELECT sum(write_lost_packet_count), "
                "sum(arraySum(mapValues(write_lost_packet_reasons))) "
                f"FROM podwire.service_metrics{suffix}"
            ) == [(555 + 3 * extra,) * 2]

    check()
    clock.now_unix_ns = (MINUTE_S + 30 * HOUR) * 1_000_000_000
    Roller(store, clock, delay_s=300, retention_days=14).run_pass()
    Roller(store, clock, delay_s=300, retention_days=14).run_pass()
    check()
    assert store.rows("SELECT count() FROM podwire.service_relation_drops") == [(0,)]
