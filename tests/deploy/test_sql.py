"""``podwire sql`` where the data is not as it should be: one line, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deploy.local.machine import Machine
from deploy.local.settings import LocalOptions
from deploy.sql import Database
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.clickhouse
CREATE = (
    "import sys; from chdb import session; s = session.Session(sys.argv[1]); s.query(sys.argv[2])"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "clickhouse").mkdir()
    command = [sys.executable, "-c", CREATE, str(tmp_path / "clickhouse")]
    subprocess.run([*command, "CREATE DATABASE podwire"], check=True)
    return tmp_path


def ask(data: Path, query: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "deploy.cli", "sql", "--data", str(data), query]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_directory_without_tables_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "clickhouse").mkdir()
    answer = ask(tmp_path, "SELECT 1")
    assert answer.returncode == 2
    assert answer.stderr.splitlines() == [
        f"podwire: configuration: --data: {tmp_path} holds no tables yet"
    ]


def test_an_open_prompt_keeps_a_machine_and_another_prompt_away(data: Path) -> None:
    with Database(data) as database:
        assert database.query("SELECT currentDatabase()", "TSV").strip() == "podwire"
        answer = ask(data, "SELECT 1")
        assert answer.returncode == 2
        assert "another `podwire sql`" in answer.stderr.splitlines()[-1]
        assert "Traceback" not in answer.stderr
        with pytest.raises(ConfigError, match="another podwire is running"):
            Machine(LocalOptions(data, http_port=0))
    assert ask(data, "SELECT 1").stdout.split() == ["1", "1"]
