"""The Dockerfile, step by step without Docker: what it copies must make a complete installation."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from deploy.cli import COMMANDS
from tests.deploy.deployment import ROOT, dockerfile

if TYPE_CHECKING:
    from pathlib import Path

SECOND_STAGE = [at for at, (name, _) in enumerate(dockerfile()) if name == "FROM"][1]
PATTERNS = ("**/*.py", "objects/*/*.bpf.o", "objects/MANIFEST.json", "data/*", "py.typed")
COPIED = [
    source
    for name, rest in dockerfile()[:SECOND_STAGE]
    if name == "COPY"
    for source in rest.split()[:-1]
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip builds from the files that the build stage copies, and nothing else."""
    source = tmp_path_factory.mktemp("source")
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    made = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(made), str(source)], check=True, timeout=120)
    (path,) = made.glob("*.whl")
    return path


def test_both_stages_run_the_same_python_as_the_tests_demand() -> None:
    images = [rest.split()[0] for name, rest in dockerfile() if name == "FROM"]
    assert len(images) == 2
    assert len(set(images)) == 1
    assert images[0].startswith("python:3.11-slim-")


def test_everything_that_is_copied_exists_and_passes_the_ignore_file() -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert "*" in rules
    for name in COPIED:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name.removeprefix("./"), rule) for rule in allowed), name


def test_the_collector_s_library_is_installed() -> None:
    packages = " ".join(rest for name, rest in dockerfile()[SECOND_STAGE:] if name == "RUN")
    assert re.search(r"apt-get install [^&]*\blibbpf1\b", packages)


def test_locked_versions_satisfy_what_the_project_asks_for() -> None:
    """The image takes packages from the project's own list and versions from the lock."""
    locked = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line and not line.startswith((" ", "#"))
    }
    for requirement in importlib.metadata.requires("podwire") or ():
        name = re.split(r"[<>=\[; ]", requirement)[0].lower().replace("_", "-")
        assert name in locked, f"{name} is not in requirements.lock"


@pytest.mark.slow
def test_the_wheel_holds_code_generated_files_and_objects(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("bpf", "collector", "deploy", "schemas", "sink", "streams")
        for pattern in PATTERNS
        for path in (ROOT / package).glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert not expected - names
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.slow
def test_every_command_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for command in ("", *COMMANDS):
        code = (
            "import deploy.cli, sys; "
            f"assert deploy.cli.__file__.startswith({str(site)!r}), deploy.cli.__file__; "
            f"sys.exit(deploy.cli.main({[*command.split(), '--help']!r}))"
        )
        answer = subprocess.run(
            [sys.executable, "-P", "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, f"{command}: {answer.stderr}"
        assert answer.stdout.startswith("usage: podwire")
