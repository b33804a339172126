from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from collector.config import CollectorConfig
from collector.doctor import kafka_check, load_check, machine_checks
from schemas.config import KafkaConfig
from schemas.topics import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.kafka import KafkaBroker

ROOT = Path(__file__).parents[2]


def _doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.cli", "doctor", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.bpf
def test_this_machine_is_good_and_every_figure_is_explained() -> None:
    answer = _doctor("--skip-kafka")
    assert answer.returncode == 0, answer.stderr
    assert "tp_btf/sock_recv_length" in answer.stdout
    lines = {line.split()[0]: line for line in answer.stdout.splitlines() if line.strip()}
    assert " ok " in lines["read_bytes"]
    assert "not on the tracepoint tier" in lines["write_l2_duration"]


@pytest.mark.bpf
def test_every_check_has_an_advice_where_it_can_fail() -> None:
    for check in machine_checks():
        assert check.good
        assert check.advice or check.name in ("kernel", "libbpf")


def test_a_missing_object_is_advice_not_a_crash(tmp_path: Path) -> None:
    check, hooks = load_check(CollectorConfig(object_file=str(tmp_path / "none")))
    assert (check.good, hooks) == (False, [])
    assert "none" in check.advice


def test_a_kafka_that_is_away_makes_it_fail() -> None:
    answer = _doctor("--bootstrap-servers", "127.0.0.1:9")
    assert answer.returncode == 1
    assert "--bootstrap-servers" in answer.stdout
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_kafka_needs_the_topic(new_kafka_broker: Callable[..., KafkaBroker]) -> None:
    broker = new_kafka_broker()
    kafka = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
    assert "podwire schema apply" in kafka_check(kafka).advice
    broker.create_topics(partitions=3)
    check = kafka_check(kafka)
    assert check.good
    assert check.found.endswith(f"{EVENTS.name} with 3")
