from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from deploy.local.part import BACKOFF_S, QUICK_DEATHS, Part, PartFailed, PartSpec
from deploy.local.supervisor import Supervisor
from schemas.clock import ManualClock

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("broker", "kube", "sink", "streams", "collector")
WORK = """
trap 'echo "$0" >> "$1"; exit 0' TERM
echo ready
while :; do sleep 0.02; done
"""


@pytest.fixture
def order(tmp_path: Path) -> Path:
    """File to which every part writes its name when it ends in order."""
    return tmp_path / "order"


def create_parts(tmp_path: Path, order: Path, clock: ManualClock) -> list[Part]:
    return [
        Part(PartSpec(name, ["sh", "-c", WORK, name, str(order)], tmp_path / f"{name}.log"), clock)
        for name in NAMES
    ]


def wait_ready(parts: list[Part], times: int = 1) -> None:
    for part in parts:
        script = 'until [ "$(grep -c ready "$0")" -ge "$1" ]; do sleep 0.01; done'
        subprocess.run(
            ["sh", "-c", script, str(part.spec.log_file), str(times)], check=True, timeout=10
        )


def wait_death(part: Part) -> None:
    assert part.pid is not None
    os.waitid(os.P_PID, part.pid, os.WEXITED | os.WNOWAIT)


def kill(part: Part) -> None:
    assert part.pid is not None
    os.kill(part.pid, 9)
    wait_death(part)


def test_parts_end_from_source_to_broker_and_the_drain_comes_after_the_collector(
    tmp_path: Path, order: Path
) -> None:
    parts = create_parts(tmp_path, order, ManualClock())
    supervisor = Supervisor(parts)
    supervisor.start()
    wait_ready(parts)

    def drain() -> bool:
        with order.open("a") as file:
            file.write("drained\n")
        assert supervisor.parts["collector"].state == "stopped"
        assert supervisor.check() == []
        assert supervisor.parts["streams"].state == "running"
        return True

    assert supervisor.stop(drain) == []
    assert order.read_text().split() == [
        "collector", "drained", "streams", "sink", "kube", "broker",
    ]  # fmt: skip


def test_what_could_not_be_stored_is_told(tmp_path: Path, order: Path) -> None:
    parts = create_parts(tmp_path, order, ManualClock())
    supervisor = Supervisor(parts)
    supervisor.start()
    wait_ready(parts)
    assert supervisor.stop(lambda: False) == ["not everything was stored in time"]


def test_only_the_dead_part_is_replaced(tmp_path: Path, order: Path) -> None:
    clock = ManualClock()
    parts = create_parts(tmp_path, order, clock)
    supervisor = Supervisor(parts)
    supervisor.start()
    wait_ready(parts)
    pids = {name: part.pid for name, part in supervisor.parts.items()}
    kill(supervisor.parts["sink"])
    assert supervisor.check() == ["sink"]
    clock.advance(BACKOFF_S[1])
    assert supervisor.check() == []
    now = {name: part.pid for name, part in supervisor.parts.items()}
    assert {name for name in NAMES if now[name] != pids[name]} == {"sink"}
    assert supervisor.restarts == 1
    supervisor.kill()


def test_an_empty_broker_makes_everybody_start_anew(tmp_path: Path, order: Path) -> None:
    clock = ManualClock()
    parts = create_parts(tmp_path, order, clock)
    resets: list[dict[str, int | None]] = []
    supervisor = Supervisor(
        parts, reset=lambda: resets.append({name: p.pid for name, p in supervisor.parts.items()})
    )
    supervisor.start()
    wait_ready(parts)
    before = {name: part.pid for name, part in supervisor.parts.items()}
    kill(supervisor.parts["broker"])
    assert supervisor.check() == ["broker"]
    assert resets == []
    assert [supervisor.parts[name].pid for name in ("kube", "sink", "streams")] == [None] * 3
    clock.advance(BACKOFF_S[1])
    supervisor.check()
    after = {name: part.pid for name, part in supervisor.parts.items()}
    assert len(resets) == 1
    assert resets[0]["broker"] == after["broker"] != before["broker"]
    assert resets[0]["sink"] is None, "the topics come first"
    new = {name for name in NAMES if after[name] not in (None, before[name])}
    assert new == {"broker", "kube", "sink", "streams"}
    assert after["collector"] == before["collector"], "it keeps what it has not delivered"
    supervisor.check()
    assert len(resets) == 1
    supervisor.kill()


def test_repeated_death_ends_the_run(tmp_path: Path) -> None:
    clock = ManualClock()
    argv = ["sh", "-c", "echo 'cannot allocate'; exit 3"]
    part = Part(PartSpec("sink", argv, tmp_path / "sink.log"), clock)
    supervisor = Supervisor([part])
    supervisor.start()
    for _ in range(QUICK_DEATHS - 1):
        wait_death(part)
        assert supervisor.check() == ["sink"]
        clock.advance(BACKOFF_S[-1])
        assert supervisor.check() == []
    wait_death(part)
    with pytest.raises(
        PartFailed, match=r"sink died 5 times in a row \(exit code 3\): cannot alloc"
    ):
        supervisor.check()
    assert part.restarts == QUICK_DEATHS - 1
