from __future__ import annotations

import argparse
import importlib
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from deploy import cli
from schemas.errors import BpfError, ConfigError, PodwireError, TransportError, UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def podwire(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "deploy.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SimpleNamespace]]:
    """A subcommand `part` that does what the test says."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def install(run: Callable[[argparse.Namespace], int]) -> SimpleNamespace:
        module = SimpleNamespace(HELP="A part", add_arguments=_one_option, run=run)
        monkeypatch.setitem(sys.modules, "podwire_test_part", module)
        monkeypatch.setitem(cli.COMMANDS, "part", cli.Command("podwire_test_part", "A part"))
        return module

    yield install
    root.handlers[:] = handlers
    root.setLevel(level)


def _one_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=1)


def test_help_names_every_command_and_imports_no_part() -> None:
    code = (
        "import sys\nfrom deploy.cli import create_parser\n"
        "print(create_parser().format_help())\n"
        "heavy = {'numpy', 'faust', 'confluent_kafka', 'chdb', 'rich', 'collector', 'sink'}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    for name, command in cli.COMMANDS.items():
        assert name in answer.stdout
        assert command.help in answer.stdout
    assert "imported: []" in answer.stdout


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_lives_up_to_its_line(name: str) -> None:
    module = importlib.import_module(cli.COMMANDS[name].module)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert callable(module.run)
    assert module.HELP
    assert parser.format_help()


def test_version() -> None:
    answer = podwire("--version")
    assert answer.stdout == "podwire 0.1.0\n"
    assert answer.returncode == 0


def test_no_command_is_an_error_with_usage() -> None:
    answer = podwire()
    assert answer.returncode == 2
    assert "usage: podwire" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_options_stand_before_or_after_the_command(part: Any) -> None:
    seen: list[argparse.Namespace] = []

    def run(arguments: argparse.Namespace) -> int:
        seen.append(arguments)
        return 0

    part(run)
    assert cli.main(["--config", "a.yaml", "part", "--size", "3"]) == 0
    assert cli.main(["part", "--config", "b.yaml", "--log-level", "debug"]) == 0
    assert cli.main(["part"]) == 0
    assert [each.config for each in seen] == [Path("a.yaml"), Path("b.yaml"), None]
    assert [each.log_level for each in seen] == ["info", "debug", "info"]
    assert seen[0].size == 3
    assert seen[0].command == "part"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (TransportError("kafka at x:1: refused"), "podwire: kafka at x:1: refused"),
        (ConfigError("sink.url", "empty"), "podwire: configuration: sink.url: empty"),
        (UnsupportedFeature("BTF", "absent"), "podwire: not supported here: BTF: absent"),
        (
            BpfError("load", 1, "libbpf: first\nlibbpf: second\n"),
            "podwire: load: Operation not permitted (errno 1) | libbpf: first | libbpf: second",
        ),
    ],
)
def test_an_expected_failure_is_one_line_and_code_2(
    part: Any, capsys: pytest.CaptureFixture[str], error: PodwireError, line: str
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise error

    part(run)
    assert cli.main(["part"]) == 2
    assert capsys.readouterr().err == line + "\n"


def test_a_missing_extra_is_named(part: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise ModuleNotFoundError("No module named 'chdb.session'", name="chdb.session")

    part(run)
    assert cli.main(["part"]) == 2
    assert "pip install 'podwire[local]'" in capsys.readouterr().err


def test_a_bug_stays_visible(part: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")

    part(run)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["part"])


def test_interrupt_is_quiet(part: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    part(run)
    assert cli.main(["part"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = """
import sys
from types import SimpleNamespace
from deploy import cli
def run(arguments):
    sys.stdin.read()
    print("too late")
    return 0
sys.modules["part"] = SimpleNamespace(HELP="", add_arguments=lambda parser: None, run=run)
cli.COMMANDS["part"] = cli.Command("part", "")
sys.exit(cli.main(["part"]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_log_lines_have_one_format() -> None:
    record = logging.LogRecord("a.b", logging.WARNING, __file__, 1, "%d left", (3,), None)
    record.created, record.msecs = 1_700_000_000.25, 250.0
    assert cli.LogFormatter().format(record) == "2023-11-14T22:13:20.250Z warning a.b: 3 left"
