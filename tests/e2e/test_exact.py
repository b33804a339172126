"""Live kernel to SQL, exactly: what ClickHouse answers equals what both ends counted."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import DROPPED_PORT, Scenario, drop_port, in_netns, scenario
from tests.e2e.plans import full

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.bpf,
    pytest.mark.kafka,
    pytest.mark.clickhouse,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

SUMS = (
    "connect_count",
    "connect_success_count",
    "accept_count",
    "close_count",
    "read_count",
    "read_bytes",
    "write_count",
    "write_bytes",
    "read_packet_count",
    "read_packet_size",
    "write_packet_count",
    "write_packet_size",
    "write_retransmit_packet_count",
)
SELECT_SUMS = ", ".join(f"sum({name}) AS {name}" for name in SUMS)
IN_RINGS = 1000
"""Records of a kind that the kernel may have submitted and counted, but nobody has drained yet."""
PAIRS = (("shop", "cart"), ("shop", "stock"))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Scenario]:
    with scenario(tmp_path, "e2e") as prepared:
        (stock,) = prepared.cluster.pods_of("stock")
        drop_port(prepared.cluster, stock, DROPPED_PORT)
        for pod in prepared.cluster.pods_of("shop"):
            in_netns(prepared.cluster, pod, "sysctl", "-qw", "net.ipv4.tcp_syn_retries=1")
        yield prepared


def expected_packets(counts: dict[str, int]) -> dict[str, int]:
    """What the sockets counted; what was received but once is what the application got."""
    return {
        "read_packet_count": counts["segments_in"],
        "read_packet_size": counts["bytes_read"],
        "write_packet_count": counts["segments_out"],
        "write_packet_size": counts["segment_bytes"],
        "write_retransmit_packet_count": counts["retransmits"],
    }


def expected_client(counts: dict[str, int]) -> dict[str, int]:
    return {
        "connect_count": counts["connects"],
        "connect_success_count": counts["successes"],
        "accept_count": 0,
        "close_count": counts["closed"],
        "read_count": counts["reads"],
        "read_bytes": counts["bytes_read"],
        "write_count": counts["writes"],
        "write_bytes": counts["bytes_written"],
        **expected_packets(counts),
    }


def expected_server(counts: list[dict[str, int]]) -> dict[str, int]:
    total = {name: sum(one[name] for one in counts) for name in counts[0]}
    return {
        "connect_count": 0,
        "connect_success_count": 0,
        "accept_count": total["accepted"],
        "close_count": total["closed"],
        "read_count": total["reads"],
        "read_bytes": total["bytes_read"],
        "write_count": total["writes"],
        "write_bytes": total["bytes_written"],
        **expected_packets(total),
    }


def relations(run: Scenario) -> dict[tuple[str, str, str], dict[str, int]]:
    rows = run.query(
        f"SELECT client_service, server_service, role, {SELECT_SUMS} "
        "FROM podwire.service_relation_metrics"
        " WHERE client_service LIKE '%.demo' AND server_service LIKE '%.demo' GROUP BY ALL"
    )
    keys = ("client_service", "server_service", "role")
    return {tuple(row[key] for key in keys): {n: int(row[n] or 0) for n in SUMS} for row in rows}  # type: ignore[misc]


def assert_exact(run: Scenario) -> None:
    """Every pair of services, both roles, then every pair of pods, then each service."""
    truth = run.truth
    found = relations(run)
    for client, server in PAIRS:
        pair = (f"{client}.demo", f"{server}.demo")
        assert found[*pair, "client"] == expected_client(truth.relation(client, server)), pair
        servers = [counts for name, counts in truth.server.items() if name.startswith(server)]
        assert found[*pair, "server"] == expected_server(servers), pair
    rows = run.query(
        f"SELECT client_instance, server_instance, {SELECT_SUMS} "
        "FROM podwire.instance_relation_metrics WHERE role = 'client' GROUP BY ALL"
    )
    by_pods = {(row["client_instance"], row["server_instance"]): row for row in rows}
    for pods, counts in truth.client.items():
        assert {name: int(by_pods[pods][name]) for name in SUMS} == expected_client(counts), pods
    shop = expected_client(truth.relation("shop", ""))
    (row,) = run.query(
        f"SELECT {SELECT_SUMS} FROM podwire.service_metrics WHERE service = 'shop.demo'"
    )
    assert {name: int(row[name]) for name in SUMS} == shop


def assert_ledger_closes(run: Scenario, killed: bool = False) -> None:
    """Every stage and every step between two; a killed collector leaves what was in its rings."""
    rows = run.query(
        "SELECT stage, kind, sum(in_count) AS entered, sum(out_count) AS left,"
        " sum(dropped_count) AS dropped FROM podwire.pipeline_ledger GROUP BY stage, kind"
    )
    stages = {(row["stage"], row["kind"]): row for row in rows}
    for key, row in stages.items():
        assert int(row["entered"]) == int(row["left"]) + int(row["dropped"]), (key, row)
    for kind in ("open", "close", "transfer"):
        for before, after in (("kernel", "collector"), ("collector", "streams")):
            gone = int(stages[before, kind]["left"]) - int(stages[after, kind]["entered"])
            most = IN_RINGS if killed and before == "kernel" else 0
            assert 0 <= gone <= most, (kind, before)


def assert_nothing_lost(run: Scenario) -> None:
    """Nothing between kernel and workers, and so no event of an unknown connection."""
    lost = run.query(
        "SELECT stage, kind, reason, sum(dropped_count) AS n FROM podwire.pipeline_ledger"
        " WHERE dropped_count > 0 AND stage != 'streams' AND reason != 'excluded' GROUP BY ALL"
    )
    assert lost == []


def test_every_count_is_exact(running: Scenario) -> None:
    seconds = running.start()
    assert seconds < 20, "start to first event batch"
    running.traffic(full(running.cluster))
    connects = sum(counts["connects"] for counts in running.truth.client.values())
    moved = sum(
        counts["bytes_read"] + counts["bytes_written"] for counts in running.truth.client.values()
    )
    assert connects >= 20_000
    assert moved >= 1_000_000_000
    assert running.finish() == []
    assert_exact(running)
    assert_ledger_closes(running)
    assert_nothing_lost(running)


def test_kills_change_nothing(running: Scenario) -> None:
    """Workers, sink, kube publisher and broker die during the traffic; the sums stay exact."""
    running.start()
    enough = threading.Event()
    failures: list[BaseException] = []

    def traffic() -> None:
        try:
            while not enough.wait(0.5):
                running.traffic(full(running.cluster, scale=0.1))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        # In this thread: a broker dies with the thread that started it.
        for part in ("streams", "sink", "kube", "broker", "streams", "sink"):
            time.sleep(4.0)
            if part == "broker":
                running.broker.kill()
                running.broker.start()
            else:
                running.kill(part)
    finally:
        enough.set()
        thread.join()
    assert failures == []
    assert running.finish() == []
    assert_exact(running)
    assert_ledger_closes(running)


def test_a_killed_collector_loses_one_interval_and_says_so(running: Scenario) -> None:
    """Only what happened between its last batch and its return is missing, and never twice."""
    running.start()
    pairs = [(f"{client}.demo", f"{server}.demo") for client, server in PAIRS]
    counted: list[tuple[float, list[dict[str, int]]]] = []

    def note() -> None:
        truth = running.truth
        counted.append((time.time(), [expected_client(truth.relation(*pair)) for pair in PAIRS]))

    def rounds(seconds: float) -> None:
        deadline = time.time() + seconds
        while time.time() < deadline:
            running.traffic(full(running.cluster, scale=0.002))
            note()

    running.traffic(full(running.cluster, scale=0.002))
    note()
    rounds(6)
    killed = time.time()
    before = running.machine.figures.batches
    running.kill("collector")
    while running.machine.figures.batches <= before:
        rounds(0.1)
        assert time.time() < killed + 30, "the collector did not come back"
    back = time.time()
    rounds(6)
    assert running.finish() == []
    # What the clients did in rounds that touch [kill - one interval, return] may be missing; the
    # interval is a second, and the broker needs a moment to take the batch.
    sure = [sums for when, sums in counted if when < killed - 2.0][-1]
    again = next(sums for when, sums in counted if when > back)
    found = relations(running)
    for place, pair in enumerate(pairs):
        row = found[*pair, "client"]
        truth = counted[-1][1][place]
        for name in SUMS:
            most = again[place][name] - sure[place][name]
            assert truth[name] - most <= row[name] <= truth[name], (pair, name)
    assert_ledger_closes(running, killed=True)
    rows = running.query(
        "SELECT sum(dropped_count) AS n FROM podwire.pipeline_ledger"
        " WHERE reason = 'unclean_restart'"
    )
    assert int(rows[0]["n"]) == 1


def test_a_minute_is_there_soon_after_its_end(running: Scenario) -> None:
    running.start()
    minute_s = int(time.time()) // 60 * 60
    if time.time() - minute_s > 50:
        time.sleep(minute_s + 60 - time.time())
        minute_s += 60
    running.traffic(full(running.cluster, scale=0.02))
    truth = expected_client(running.truth.relation("shop", "cart"))
    question = (
        f"SELECT {SELECT_SUMS} FROM podwire.service_relation_metrics"
        " WHERE role = 'client' AND client_service = 'shop.demo'"
        " AND server_service = 'cart.demo'"
    )
    deadline = int(time.time()) // 60 * 60 + 60 + 15  # of the minute that the traffic ended in
    while True:
        running.check()
        (row,) = running.query(question)
        if {name: int(row[name] or 0) for name in SUMS} == truth:
            break
        assert time.time() < deadline, row
        time.sleep(0.5)
    assert running.finish() == []
