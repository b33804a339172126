"""``podwire sql``: ask what ``podwire local`` or the demo stored, running or not.

The embedded engine lets one process in. While a sink holds the data directory the query goes to
its SQL endpoint, else the directory is opened here.
"""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploy.endpoint import QueryError, ask, first_line
from deploy.local.settings import CONFIG_NAME, DATABASE_NAME, LOCK_NAME
from schemas.config import load_file
from schemas.errors import ConfigError, TransportError

if TYPE_CHECKING:
    import argparse

__all__ = ["HELP", "Database", "add_arguments", "run"]

HELP = "Ask the data that local or demo stored"
EPILOG = """\
examples:
  podwire sql "SHOW TABLES"
  podwire sql "SELECT * FROM service_relation FORMAT JSONEachRow"
  podwire sql --data podwire-demo.data              a prompt; ends with Ctrl-D"""

PROMPT: Final = "podwire> "
TIMEOUT_S: Final = 300.0
LOOPBACK: Final = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--data", type=Path, default=Path("podwire.data"), metavar="DIR",
        help="directory of podwire local or demo [podwire.data]",
    )  # fmt: skip
    parser.add_argument("query", nargs="?", help="one query; without it there is a prompt")


def run(arguments: argparse.Namespace) -> int:
    """Answer one query, or all of a prompt."""
    with Database(arguments.data) as database:
        if arguments.query is not None:
            _print(database.query(arguments.query, _format()))
            return 0
        return _prompt(database)


class Database:
    """The stored data of one directory.

    Args:
        data: Directory of ``podwire local``.

    Raises:
        ConfigError: If there is no such data, it cannot be read, or another query has it open.
    """

    def __init__(self, data: Path) -> None:
        directory = data / DATABASE_NAME
        if not directory.is_dir():
            raise ConfigError("--data", f"{data} holds no data of podwire local")
        self._session: Any = None
        self._port: int | None = None
        try:
            # Shared while we read, so that no `podwire local` starts on an open directory.
            self._lock = (data / LOCK_NAME).open("a")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                self._port = int(load_file(data / CONFIG_NAME)["sink"]["sql_port"])
        except OSError as error:
            raise ConfigError("--data", f"{data} cannot be used: {error.strerror}") from error
        if self._port is None:
            self._session = _open(data, directory)

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            self._session.close()
        self._lock.close()

    def query(self, sql: str, output_format: str = "TabSeparatedWithNames") -> str:
        """Return the answer as text.

        Args:
            sql: One query; its own FORMAT clause wins.
            output_format: ClickHouse's name of the format otherwise.

        Raises:
            QueryError: If ClickHouse refuses it.
            TransportError: If the running sink does not answer.
        """
        if self._session is not None:
            try:
                return str(self._session.query(sql, output_format))
            except RuntimeError as error:
                raise QueryError(first_line(str(error))) from error
        url = f"http://{LOOPBACK}:{self._port}"
        return ask(url, sql, "podwire", output_format=output_format, timeout_s=TIMEOUT_S)


def _open(data: Path, directory: Path) -> Any:
    from chdb import session

    try:
        opened: Any = session.Session(str(directory))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ConfigError(
            "--data", f"{data} cannot be opened; is another `podwire sql` using it?"
        ) from error
    try:
        opened.query("USE podwire")
    except RuntimeError as error:
        opened.close()
        raise ConfigError("--data", f"{data} holds no tables yet") from error
    return opened


def _format() -> str:
    return "PrettyCompactMonoBlock" if sys.stdout.isatty() else "TabSeparatedWithNames"


def _print(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") or not text else text + "\n")
    sys.stdout.flush()


def _prompt(database: Database) -> int:
    if sys.stdin.isatty():
        import readline  # noqa: F401  line editing for input()
    while True:
        try:
            sql = input(PROMPT if sys.stdin.isatty() else "").strip().rstrip(";")
        except EOFError:
            if sys.stdin.isatty():
                sys.stdout.write("\n")
            return 0
        if sql.lower() in ("exit", "quit"):
            return 0
        if not sql:
            continue
        try:
            _print(database.query(sql, _format()))
        except (QueryError, TransportError) as error:
            sys.stderr.write(f"{error}\n")
