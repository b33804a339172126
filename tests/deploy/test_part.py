from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from deploy.local.part import (
    BACKOFF_S,
    QUICK_DEATHS,
    SETTLED_S,
    Part,
    PartFailed,
    PartSpec,
    last_lines,
)
from schemas.clock import ManualClock
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def shell(
    script: str, log: Path, *, stop_timeout_s: float = 10.0, finishes: bool = False
) -> PartSpec:
    return PartSpec(
        "part", ["sh", "-c", script], log, stop_timeout_s=stop_timeout_s, finishes=finishes
    )


def wait_death(pid: int | None) -> None:
    """Wait until the child is dead without taking its exit code from the part."""
    assert pid is not None
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def ready(log: Path, word: str = "ready") -> None:
    """Wait until the child has written the word."""
    subprocess.run(
        ["sh", "-c", 'until grep -q "$1" "$0"; do sleep 0.01; done', str(log), word],
        check=True,
        timeout=10,
    )


def wait_gone(pid: int) -> None:
    """Wait until a process that is not our child runs no more."""
    script = 'until ! grep -qs "^State:.[DRS]" /proc/$0/status; do sleep 0.01; done'
    subprocess.run(["sh", "-c", script, str(pid)], check=True, timeout=5)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "part.log"


def test_a_part_stopped_before_it_handles_signals_has_nothing_to_save(log: Path) -> None:
    part = Part(shell("exec sleep 60", log), ManualClock())
    part.start()
    part.terminate()
    assert part.join()
    assert part.state == "stopped"


def test_a_dead_part_starts_again_after_a_growing_pause(log: Path) -> None:
    clock = ManualClock()
    part = Part(shell("echo started; exit 1", log), clock)
    part.start()
    pauses = []
    for deaths in range(1, QUICK_DEATHS):
        wait_death(part.pid)
        assert part.check()
        assert part.state == "restarting"
        assert not part.check()
        assert part.restarts == deaths - 1, "the pause is not over"
        pauses.append(BACKOFF_S[deaths])
        clock.advance(BACKOFF_S[deaths])
        assert not part.check()
        assert part.state == "running"
        assert part.restarts == deaths
    assert pauses == sorted(pauses)
    wait_death(part.pid)
    with pytest.raises(PartFailed, match=r"died 5 times in a row \(exit code 1\): started"):
        part.check()
    assert part.state == "failed"
    assert log.read_text() == "started\n" * QUICK_DEATHS


def test_a_long_life_forgives_earlier_deaths(log: Path) -> None:
    clock = ManualClock()
    part = Part(shell("exit 1", log), clock)
    part.start()
    for _ in range(3 * QUICK_DEATHS):
        wait_death(part.pid)
        clock.advance(SETTLED_S)
        assert part.check()
        clock.advance(BACKOFF_S[0])
        part.check()
    assert part.restarts == 3 * QUICK_DEATHS
    part.kill()


def test_kill_9_is_survived(log: Path) -> None:
    clock = ManualClock()
    part = Part(shell("echo ready; exec sleep 600", log), clock)
    part.start()
    ready(log)
    first = part.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_death(first)
    assert part.check()
    clock.advance(BACKOFF_S[1])
    part.check()
    assert part.pid not in (None, first)
    part.kill()
    assert part.state == "stopped"


def test_an_expected_failure_on_the_first_start_is_told_at_once(log: Path) -> None:
    log.parent.mkdir()
    log.write_text("old words\n")
    part = Part(shell("echo 'podwire: no such right' >&2; exit 2", log), ManualClock())
    part.start()
    wait_death(part.pid)
    with pytest.raises(PartFailed, match="part stopped: no such right") as caught:
        part.check()
    assert "old words" not in str(caught.value)
    assert str(log) in str(caught.value)


def test_a_part_that_finishes_is_done(log: Path) -> None:
    part = Part(shell("exit 0", log, finishes=True), ManualClock())
    part.start()
    wait_death(part.pid)
    assert not part.check()
    assert part.state == "done"
    assert part.join()
    assert part.state == "done"


def test_stop_lets_a_part_finish_its_work(log: Path) -> None:
    script = "trap 'echo flushed; exit 0' TERM; echo ready; while :; do sleep 0.02; done"
    part = Part(shell(script, log), ManualClock())
    part.start()
    ready(log)
    part.terminate()
    assert part.join()
    assert log.read_text().splitlines()[-1] == "flushed"
    assert part.state == "stopped"


def test_a_part_that_does_not_stop_is_killed_with_its_children(log: Path) -> None:
    script = "trap '' TERM; sleep 600 & echo child $!; echo ready; while :; do sleep 0.05; done"
    part = Part(shell(script, log, stop_timeout_s=0.2), ManualClock())
    part.start()
    ready(log)
    child = int(log.read_text().split()[1])
    part.terminate()
    assert not part.join()
    wait_gone(child)


def test_ctrl_c_does_not_reach_a_part(log: Path) -> None:
    part = Part(shell("echo ready; exec sleep 600", log), ManualClock())
    part.start()
    ready(log)
    assert part.pid is not None
    assert os.getpgid(part.pid) != os.getpgid(0)
    assert os.getsid(part.pid) != os.getsid(0)
    part.kill()


def test_a_killed_supervisor_leaves_nothing_behind(log: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from deploy.local.part import Part, PartSpec
from schemas.clock import SystemClock
part = Part(PartSpec("part", ["sleep", "600"], Path({str(log)!r})), SystemClock())
part.start()
print(part.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    child = int(answer.stdout)
    wait_gone(child)


def test_a_command_that_does_not_exist_is_a_clear_error(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.local.part.shutil.which", lambda _: None)
    part = Part(PartSpec("part", ["/nowhere/broker"], log), ManualClock())
    with pytest.raises(ConfigError, match="part: cannot be started"):
        part.start()


def test_last_lines_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n\n two \n\xff three\n")
    assert last_lines(path, 2) == ["two", "� three"]
    assert last_lines(tmp_path / "none", 2) == []


def test_a_part_outlives_the_thread_that_started_it(log: Path) -> None:
    part = Part(shell("echo ready; exec sleep 600", log), ManualClock())
    thread = threading.Thread(target=part.start)
    thread.start()
    thread.join()
    ready(log)
    assert part.pid is not None
    assert os.waitid(os.P_PID, part.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
    part.kill()
