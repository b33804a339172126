"""The README's commands, settings, tables and queries exist and work."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deploy.cli import create_parser
from schemas.topics import TOPICS
from sink.config import SinkConfig
from sink.ddl import apply_schema
from sink.store import Store
from sink.views import VIEWS
from tests.deploy.deployment import ROOT, USES

if TYPE_CHECKING:
    from pathlib import Path

README = (ROOT / "README.md").read_text()
CONSOLE = [
    shlex.split(line.removeprefix("$ "), comments=True)
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
QUERIES = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
SETTINGS = re.findall(r"^\| `(\w+)\.(\w+)` \| (?:`(.*?)`)? *\|", README, re.MULTILINE)


def test_there_is_something_to_check() -> None:
    assert len(CONSOLE) >= 7
    assert len(QUERIES) >= 4
    assert len(SETTINGS) >= 10


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [words[1] for words in CONSOLE if words[0] == "make"]
    targets += re.findall(r"`make ([a-z-]+)`", README)
    assert "demo" in targets
    assert "test" in targets
    for target in targets:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


def test_podwire_commands_parse() -> None:
    lines = [words[1:] for words in CONSOLE if words[0].endswith("podwire")]
    lines += [text.split() for text in re.findall(r"`podwire ([a-z][a-z ]*)`", README)]
    assert ["local"] in lines
    for words in lines:
        create_parser().parse_args(words)


@pytest.mark.parametrize(("section", "name", "default"), SETTINGS)
def test_settings_exist_with_that_default(section: str, name: str, default: str) -> None:
    kinds = {kind.SECTION: kind for used in USES.values() for kind in used}
    value = getattr(kinds[section](), name)
    assert str(value or "") == default


def test_topics_and_files_exist() -> None:
    names = {topic.name for topic in TOPICS}
    for mentioned in re.findall(r"podwire\.[a-z0-9-]+\.v\d", README):
        assert mentioned in names
    for path in re.findall(r"deploy/[\w./-]+", README):
        assert (ROOT / path).exists(), path


def test_tables_exist() -> None:
    views = {view.name for view in VIEWS}
    rows = "\n".join(line for line in README.splitlines() if line.startswith("| `"))
    tables = re.findall(
        r"`(\w+(?:_metrics|_overview|_traffic|_relation|_ledger|_waits|_latency|_buckets|_log))`",
        rows,
    )
    assert len(tables) == 26
    assert set(tables) <= views


@pytest.mark.clickhouse
def test_queries_run_on_the_real_schema(tmp_path: Path) -> None:
    """In a process of their own: the embedded engine lives once per process."""
    code = (
        "import sys; from tests.deploy.test_readme import ask; ask(sys.argv[1], sys.stdin.read())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "clickhouse")],
        input="\0".join(QUERIES),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.splitlines()) == len(QUERIES)


def ask(directory: str, queries: str) -> None:
    """Run the queries on an empty database; each prints its number of rows."""
    config = SinkConfig(url=f"chdb://{directory}")
    store = Store.connect(config)
    apply_schema(store)
    public = Store.connect(config, config.database)
    for query in queries.split("\0"):
        print(len(public.rows(query)))
