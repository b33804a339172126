"""The demo: its parts, its recording, and the whole of it on the live kernel."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from collector.recording import read_recording
from deploy.demo.cluster import NETNS_DIRECTORY, cgroup2_mount
from deploy.demo.command import KUBE_FILE, RECORDING, TRUTH_FILE, _fresh, _why_not_live
from deploy.demo.recording import only_containers
from deploy.demo.shop import WORKLOADS, AccessLog
from deploy.demo.view import Relation, Served, relation_table, served_table, topology, truth_table
from deploy.local.machine import lock_data
from schemas.errors import ConfigError
from schemas.events import EventBatch, decode_batch, encode_batch
from schemas.ledger import Entry

DATA = files("deploy").joinpath("data")


def relation(client: str, server: str, tried: int = 10, succeeded: int = 10) -> Relation:
    return Relation(client, server, tried, succeeded, 2048, 5_000_000, 45_000.0, 20)


def shown(*what: object, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        for each in what:
            console.print(each)
        return console.export_text()


def demo(*arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "deploy.cli", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def leftovers() -> list[str]:
    root = cgroup2_mount() / "podwire-demo.slice"
    return [str(path) for path in NETNS_DIRECTORY.glob("podwire-demo-*")] + (
        [str(root)] if root.exists() else []
    )


def test_the_topology_unfolds_a_service_once() -> None:
    text = shown(
        topology(
            [
                relation("a", "b"),
                relation("b", "c"),
                relation("d", "b", succeeded=9),
                relation("c", "a2"),
            ]
        )
    )
    lines = [line.strip("│├└─ ▶") for line in text.splitlines()]
    assert [line.split()[0] for line in lines if line] == [
        "Topology",
        "a",
        "b",
        "c",
        "a2",
        "d",
        "b",
    ]
    assert text.count("(above)") == 1
    assert "90.0 %" in text
    assert "↑ 2 KiB  ↓ 4.77 MiB" in text


def test_a_circle_of_services_is_drawn_too() -> None:
    text = shown(topology([relation("a", "b"), relation("b", "a")]))
    assert text.count("──▶ b") == 1
    assert text.count("──▶ a") == 1


def test_almost_all_is_not_all() -> None:
    text = shown(relation_table([relation("a", "b", 100_000, 99_999)], 80), width=80)
    assert "99.9 %" in text
    assert "100 %" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_names_are_never_cut(width: int) -> None:
    names = [f"{each.name}.{each.namespace}" for each in WORKLOADS]
    relations = [relation(one, other) for one in names for other in names]
    served = [Served(name, 12_345, 12_345, 10**7, 10**9, 4_000.0, None) for name in names]
    text = shown(relation_table(relations, width), served_table(served), width=width)
    assert "…" not in text
    for name in names:
        assert name in text


def test_the_comparison_shows_what_differs() -> None:
    truth = AccessLog(connections=3, requests=9, bytes_received=100, bytes_sent=1000)
    equal, is_equal = truth_table(truth, Served("frontend.shop", 3, 3, 100, 1000, None, None, 9))
    other, is_other = truth_table(truth, Served("frontend.shop", 2, 3, 100, 1500, None, None, 8))
    assert is_equal
    assert not is_other
    assert shown(equal).count("equal") == 4
    assert shown(other).count("-1 ") == 2
    assert "+500" in shown(other)
    assert not truth_table(truth, None)[1]


def test_an_access_log_is_added_up() -> None:
    log = AccessLog()
    log.add("1 100 1000 200\n1 50 500 200\n2 1 2 404\n")
    log.add("1 1 1 200\n")
    assert log == AccessLog(connections=3, requests=4, bytes_received=152, bytes_sent=1503)


def batches() -> list[EventBatch]:
    with_file = Path(str(DATA.joinpath(RECORDING)))
    return [decode_batch(message) for message in read_recording(with_file)]


def test_the_shipped_recording_holds_only_the_demos_pods() -> None:
    document = json.loads(DATA.joinpath(KUBE_FILE).read_text())
    containers = {
        status["containerID"].removeprefix("containerd://")
        for item in document["items"]
        if item["kind"] == "Pod"
        for status in item["status"]["containerStatuses"]
    }
    assert len(containers) == 9
    seen = set()
    for batch in batches():
        assert batch.header.node == "demo-node"
        seen |= {batch.names[index] for index in batch.connections.container}
    assert seen == containers
    assert batches()[-1].header.final
    assert Path(str(DATA.joinpath(RECORDING))).stat().st_size < 1_000_000


def test_the_ledger_of_the_recording_closes_and_names_its_rows() -> None:
    for batch in batches():
        counts = {(e.stage, e.kind): e for e in batch.header.ledger}
        for kind, table in (
            ("open", batch.opens), ("close", batch.closes), ("transfer", batch.transfers),
            ("request", batch.requests),
        ):  # fmt: skip
            entry = counts.get(("collector", kind), Entry("collector", kind, ""))
            assert entry.in_count == entry.out_count == table.rows
        assert all(e.dropped_count == 0 for e in batch.header.ledger)


def test_reducing_keeps_exactly_the_events_of_the_container() -> None:
    batch = max(batches(), key=lambda each: each.events)
    chosen = batch.names[int(batch.connections.container[batch.transfers.connection[0]])]
    is_chosen = np.array([name == chosen for name in batch.names])[batch.connections.container]
    expected = int(batch.transfers.size[is_chosen[batch.transfers.connection]].sum())
    ports = set(batch.connections.local_port[is_chosen].tolist())
    reduced = decode_batch(encode_batch(only_containers(batch, {chosen})))
    assert 0 < reduced.transfers.rows < batch.transfers.rows
    assert int(reduced.transfers.size.sum()) == expected
    assert set(reduced.connections.local_port.tolist()) == ports
    assert {reduced.names[index] for index in reduced.connections.container} == {chosen}
    calls, rows = batch.requests.take(is_chosen[batch.requests.connection]), reduced.requests.rows
    assert rows == calls.rows
    for column in ("path", "method", "host"):
        told = [reduced.names[number] for number in getattr(reduced.requests, column)]
        assert told == [batch.names[number] for number in getattr(calls, column)]
    assert only_containers(reduced, set()).events == 0


def test_the_truth_of_the_recording_is_an_access_log() -> None:
    truth = AccessLog(**json.loads(DATA.joinpath(TRUTH_FILE).read_text()))
    assert truth.connections > 10
    assert truth.requests > 1000


def test_without_root_it_names_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sudo podwire demo" in str(_why_not_live())


def test_only_data_of_an_earlier_demo_is_removed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="not from an earlier demo"):
        _fresh(mine)
    assert (mine / "thesis.tex").exists()
    # What `podwire local` stored has the same files, but nobody can make it again.
    (mine / "podwire.yaml").write_text("")
    with pytest.raises(ConfigError, match="not from an earlier demo"):
        _fresh(mine)
    earlier = _fresh(tmp_path / "earlier")
    (earlier / "old").write_text("")
    with (
        lock_data(earlier),
        pytest.raises(ConfigError, match="another podwire is running"),
    ):
        _fresh(earlier)
    assert (earlier / "old").exists()
    assert not (_fresh(earlier) / "old").exists()


@pytest.mark.clickhouse
@pytest.mark.slow
def test_the_recording_is_shown_where_ebpf_is_not(tmp_path: Path) -> None:
    process = demo("--replay", "--data", str(tmp_path / "data"))
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert errors == ""
    assert output.count("equal") == 4
    assert "/api/items" in output
    assert "monitor.ops" in output
    assert "sent again" in output
    assert "read_in_queue" in output


@pytest.mark.bpf
@pytest.mark.clickhouse
@pytest.mark.slow
def test_the_live_demo_is_exact_and_leaves_nothing(tmp_path: Path) -> None:
    process = demo("--seconds", "8", "--data", str(tmp_path / "data"))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    assert "Not on the live kernel" not in output
    assert output.count("equal") == 4
    assert "/api/items" in output
    for name in ("shoppers.shop", "frontend.shop", "api.shop", "stock.shop", "payments.bank"):
        assert name in output
    assert "50.0 %" in output, "every second call of the monitor to the api is refused"
    assert re.search(r"\(\d", output)
    assert leftovers() == []


@pytest.mark.bpf
@pytest.mark.clickhouse
@pytest.mark.slow
def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    process = demo("--seconds", "60", "--data", str(tmp_path / "data"))
    deadline = time.monotonic() + 60
    shoppers = tmp_path / "data" / "shop"
    while not list(shoppers.glob("shoppers-*.log")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert leftovers() == []
    answer = subprocess.run(
        ["ps", "-ww", "-e", "-o", "args="], capture_output=True, text=True, check=True
    )
    assert str(tmp_path) not in answer.stdout
