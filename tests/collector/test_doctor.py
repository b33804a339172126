from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from collector.attach import CORE, Hook
from collector.config import CollectorConfig
from collector.doctor import (
    Found,
    Target,
    kafka_check,
    load_check,
    machine_checks,
    report,
    stage_targets,
)
from collector.stages import OFF, Stages
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
    for figure in ("read_bytes", "write_l2_duration"):
        assert " ok " in lines[figure]
    assert "net_dev_queue" in lines["write_l2_duration"]
    assert " ok " in lines["http_call_count"]
    assert lines["net_dev_queue"].split() == ["net_dev_queue", "ok", "tp_btf"]
    shown = [line.split()[0] for line in answer.stdout.splitlines() if line.strip()]
    assert shown.count("tcp_v4_rcv") == 1


@pytest.mark.bpf
def test_messages_may_be_left_alone() -> None:
    answer = _doctor("--skip-kafka", "--protocols", "off", "--stages", "off")
    assert answer.returncode == 0, answer.stderr
    lines = {line.split()[0]: line for line in answer.stdout.splitlines() if line.strip()}
    assert "collector.protocols" in lines["http_call_count"]
    assert " ok " in lines["read_bytes"]


@pytest.mark.bpf
@pytest.mark.parametrize("stages", ["tracepoint", "off"])
def test_missing_stages_are_no_failure_and_say_why(stages: str) -> None:
    answer = _doctor("--skip-kafka", "--stages", stages)
    assert answer.returncode == 0, answer.stderr
    lines = {line.split()[0]: line.rstrip() for line in answer.stdout.splitlines() if line.strip()}
    assert " partly " in lines["stages"]
    assert " - " in lines["write_l4_duration"]
    assert lines["write_l4_duration"].endswith("tcp_sendmsg, __ip_queue_xmit (1)")
    assert OFF in lines["(1)"]
    assert " ok " in lines["read_packet_size"]


@pytest.mark.bpf
def test_every_check_has_an_advice_where_it_can_fail() -> None:
    for check in machine_checks():
        assert check.good
        assert check.advice or check.name in ("kernel", "libbpf")


def test_a_missing_object_is_advice_not_a_crash(tmp_path: Path) -> None:
    checks, found = load_check(CollectorConfig(object_file=str(tmp_path / "none")))
    assert [check.good for check in checks] == [False]
    assert found.all_hooks == ()
    assert "none" in checks[0].advice


HOOKS = (
    Hook("tcp_probe", "tp_btf/tcp_probe", attached=True),
    Hook("tcp_v4_rcv_exit", "fexit/tcp_v4_rcv", attached=False, reason="no room"),
    Hook("tcp_v4_rcv_enter", "fentry/tcp_v4_rcv", attached=False, reason="no room"),
    Hook("tcp_v4_rcv_exit_probe", "kretprobe/tcp_v4_rcv", attached=True),
    Hook("tcp_v4_rcv_enter_probe", "kprobe/tcp_v4_rcv", attached=True),
    Hook("netif_receive_skb", "tp_btf/netif_receive_skb", attached=True),
    Hook("ip_rcv_enter", "fentry/ip_rcv", attached=False, reason="no room"),
    Hook("ip_rcv_enter_probe", "kprobe/ip_rcv", attached=False, reason="[no] such symbol"),
)


def test_hooks_are_grouped_by_what_they_hook() -> None:
    assert stage_targets(HOOKS) == [
        Target("tcp_probe", ("tp_btf",), ()),
        Target("tcp_v4_rcv", ("kprobe", "kretprobe"), ("fentry: no room",)),
        Target("netif_receive_skb", ("tp_btf",), ()),
        Target("ip_rcv", (), ("fentry: no room", "kprobe: [no] such symbol")),
    ]


@pytest.mark.parametrize("width", [80, 140])
def test_every_reason_is_shown_once_and_referred_to(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    core = tuple(Hook(name, f"tp_btf/{name}", attached=True) for name in CORE)
    report(console, [], Found(core, Stages(None, HOOKS)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    lines: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        lines.setdefault(line.split()[0], line.rstrip())  # a wrapped line may begin with a name too
    assert max(map(len, text.splitlines())) <= width
    assert lines["tcp_v4_rcv"].split() == ["tcp_v4_rcv", "ok", "kprobe,", "kretprobe", "(1)"]
    assert lines["ip_rcv"].endswith("(1) (2)")
    assert "netif_receive_skb, tcp_probe;" in lines["read_l4_duration"]
    assert lines["read_l3_duration"].endswith("ip_rcv (1) (2)")
    assert lines["(1)"].split(maxsplit=1)[1] == "fentry: no room"
    assert lines["(2)"].split(maxsplit=1)[1] == "kprobe: [no] such symbol"
    assert text.count("no room") == 1


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
