"""``podwire local`` as a user runs it: every real part, one command, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.local.machine import STREAMS_GROUP
from deploy.sql import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.clickhouse, pytest.mark.slow]
DATA = files("deploy").joinpath("data")
BALANCE = """
SELECT stage, kind, sum(in_count) AS entered, sum(out_count) AS left, sum(dropped_count) AS dropped
FROM pipeline_ledger GROUP BY stage, kind FORMAT JSONEachRow
SETTINGS output_format_json_quote_64bit_integers = 0
"""


class Run:
    """One ``podwire local``."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "deploy.cli", "local", "--data", str(data)),
                *("--http-port", "0", *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.output = ""
        self.errors = ""

    def wait_log(self, part: str, pattern: str, times: int = 1, timeout_s: float = 40.0) -> None:
        log = self.data / "logs" / f"{part}.log"
        deadline = time.monotonic() + timeout_s
        while len(re.findall(pattern, log.read_text() if log.exists() else "")) < times:
            assert self.process.poll() is None, self.finish()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def pid_of(self, *words: str) -> int:
        """The process of ours whose command holds these words."""
        for line in subprocess.run(
            ["ps", "-ww", "-e", "-o", "pid=,args="], capture_output=True, text=True, check=True
        ).stdout.splitlines():
            pid, _, command = line.strip().partition(" ")
            if all(word in command for word in words) and "local" not in command:
                return int(pid)
        raise AssertionError(f"no process {words}")

    def finish(self, number: signal.Signals | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        self.output, self.errors = self.process.communicate(timeout=90)
        return self.process.returncode

    def rows(self, sql: str) -> list[dict[str, Any]]:
        with Database(self.data) as database:
            return [json.loads(line) for line in database.query(sql).splitlines()]

    def left_processes(self) -> list[str]:
        answer = subprocess.run(
            ["ps", "-ww", "-e", "-o", "args="], capture_output=True, text=True, check=True
        )
        return [line for line in answer.stdout.splitlines() if str(self.data) in line]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def create(*arguments: str, data: Path | None = None) -> Run:
        runs.append(Run(data or tmp_path / "data", *arguments))
        return runs[-1]

    yield create
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()


def talk(connections: int) -> None:
    """Connections on loopback, each with one exchange of 3 and 5 bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(connections):
            with socket.create_connection(listener.getsockname()) as client:
                server, _ = listener.accept()
                with server:
                    client.sendall(b"ask")
                    assert server.recv(10) == b"ask"
                    server.sendall(b"reply")
                    assert client.recv(10) == b"reply"


def process_name() -> str:
    """What this process is called where there are no pods to name."""
    return Path("/proc/self/comm").read_text().strip()


def test_the_group_that_the_drain_asks_about_is_the_workers() -> None:
    from streams.app import APP_ID

    assert STREAMS_GROUP == APP_ID


@pytest.mark.bpf
def test_ctrl_c_stores_everything_that_was_seen(start: Callable[..., Run]) -> None:
    run = start()
    begin = time.monotonic()
    run.wait_log("collector", "watching as node")
    assert time.monotonic() - begin < 20
    talk(200)
    assert run.finish(signal.SIGINT) == 0, run.errors
    assert "stored, 0 lost" in run.output
    assert f"sql --data {run.data}" in run.output
    assert run.left_processes() == []
    balance = {(row["stage"], row["kind"]): row for row in run.rows(BALANCE)}
    assert balance["collector", "open"]["entered"] >= 400
    for key in (("collector", "open"), ("collector", "transfer"), ("streams", "transfer")):
        row = balance[key]
        assert row["entered"] == row["left"] + row["dropped"]
    for kind in ("open", "close", "transfer"):
        assert balance["streams", kind]["entered"] == balance["collector", kind]["left"]
    (row,) = run.rows(
        "SELECT sum(connect_success_count) AS connections, sum(write_bytes) AS bytes"
        " FROM service_metrics WHERE role = 'client' AND service = '" + process_name() + "'"
        " FORMAT JSONEachRow SETTINGS output_format_json_quote_64bit_integers = 0"
    )
    assert row["connections"] >= 200
    assert row["bytes"] >= 600


def test_a_replay_ends_by_itself_and_its_sums_are_known(start: Callable[..., Run]) -> None:
    run = start(
        *("--kube", str(DATA.joinpath("demo.kube.json"))),
        *("--replay", str(DATA.joinpath("demo.recording.gz")), "--replay-pace", "fast"),
    )
    assert run.finish() == 0, run.errors
    truth = json.loads(DATA.joinpath("demo.truth.json").read_text())
    (row,) = run.rows(
        "SELECT sum(accept_count) AS connections, sum(read_bytes) AS bytes_received,"
        " sum(write_bytes) AS bytes_sent FROM service_metrics"
        " WHERE service = 'frontend.shop' AND role = 'server'"
        " FORMAT JSONEachRow SETTINGS output_format_json_quote_64bit_integers = 0"
    )
    assert row == {name: truth[name] for name in row}


def test_two_replays_into_one_directory_add_up(start: Callable[..., Run]) -> None:
    arguments = (
        *("--kube", str(DATA.joinpath("demo.kube.json"))),
        *("--replay", str(DATA.joinpath("demo.recording.gz")), "--replay-pace", "fast"),
    )
    for _ in range(2):
        run = start(*arguments)
        assert run.finish() == 0, run.errors
    truth = json.loads(DATA.joinpath("demo.truth.json").read_text())
    (row,) = run.rows(
        "SELECT sum(accept_count) AS connections FROM service_metrics"
        " WHERE service = 'frontend.shop' AND role = 'server' FORMAT JSONEachRow"
        " SETTINGS output_format_json_quote_64bit_integers = 0"
    )
    assert row["connections"] == 2 * truth["connections"]


@pytest.mark.bpf
def test_a_dead_broker_is_replaced_and_its_loss_is_told(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_log("streams", "stream worker runs")
    talk(50)
    port = re.search(r"127\.0\.0\.1:(\d+)", (run.data / "podwire.yaml").read_text())
    assert port is not None
    os.kill(run.pid_of("tansu", f":{port[1]}"), signal.SIGKILL)
    run.wait_log("streams", "stream worker runs", times=2)
    talk(150)
    assert run.finish(signal.SIGINT) == 1
    assert "the broker died and its memory with it" in run.output
    assert "lost: broker_memory" in run.output
    assert "undelivered" not in run.output
    balance = {(row["stage"], row["kind"]): row for row in run.rows(BALANCE)}
    assert balance["streams", "open"]["left"] >= 300
    assert run.left_processes() == []


@pytest.mark.bpf
def test_a_second_run_on_the_same_data_is_refused(start: Callable[..., Run]) -> None:
    first = start()
    first.wait_log("sink", "read-only SQL")
    second = start()
    assert second.finish() == 2
    assert second.errors.count("\n") == 1
    assert "another podwire is running" in second.errors
    with Database(first.data) as database:
        assert database.query("SELECT 40 + 2", "TabSeparated") == "42\n"
    first.finish(signal.SIGINT)


def test_a_taken_port_is_one_line(start: Callable[..., Run]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = start("--http-port", str(port))
        assert run.finish() == 2
    assert run.errors.count("\n") == 1
    assert "--http-port" in run.errors
    assert str(port) in run.errors


@pytest.mark.parametrize("option", ["--kube", "--replay"])
def test_a_file_that_is_not_there_is_one_line(start: Callable[..., Run], option: str) -> None:
    run = start(option, "/nowhere")
    assert run.finish() == 2
    assert run.errors == f"podwire: configuration: {option}: /nowhere is no file\n"


def test_a_broker_that_is_not_there_is_one_line(start: Callable[..., Run]) -> None:
    run = start("--broker", "127.0.0.1:1")
    assert run.finish() == 2
    assert run.errors.count("\n") == 1
    assert "--broker: kafka at 127.0.0.1:1" in run.errors


def test_a_damaged_recording_is_one_line(start: Callable[..., Run], tmp_path: Path) -> None:
    path = tmp_path / "bad.recording"
    path.write_bytes(b"nonsense" * 100)
    run = start("--replay", str(path))
    assert run.finish() == 2
    assert run.errors.count("\n") == 1
    assert "no podwire recording" in run.errors
    assert run.left_processes() == []
