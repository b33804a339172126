from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.requirements import module

module("atheris")  # built for x86-64 only

TARGETS = ["exchange", "hello", "http1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_half_a_minute_finds_nothing(name: str, tmp_path: Path) -> None:
    # The kernel counts the memory of who starts a program as the program's own (ru_maxrss), and the
    # fuzzer's limit believes it; a shell in between is small.
    command = ["sh", "-c", '"$@"; exit $?', "sh"]
    command += [sys.executable, "-m", "tests.fuzz", name, "--seconds", "30"]
    command += ["--corpus", str(tmp_path / name)]
    found = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]
