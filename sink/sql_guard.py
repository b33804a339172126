"""Decides whether a query may run on the read-only endpoint, before the engine sees it. Pure.

The engine's own read-only mode refuses inserts, DDL, settings and most table functions, but not
``INTO OUTFILE``, the ``file`` function, ``DESCRIBE`` of a remote table or ``KILL QUERY``. So the
query is cut into tokens, judged, and put together again from the same tokens without comments:
what was not understood here is refused, not passed on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["ALLOWED_TABLE_FUNCTIONS", "Checked", "Refused", "check_query"]

MAX_QUERY: Final = 256 * 1024

_FIRST_WORDS: Final = {"select", "with", "from", "show", "describe", "desc", "exists", "explain"}

ALLOWED_TABLE_FUNCTIONS: Final = frozenset(
    {
        "format",
        "generate_series",
        "generaterandom",
        "generateseries",
        "merge",
        "null",
        "numbers",
        "numbers_mt",
        "primes",
        "values",
        "view",
        "zeros",
        "zeros_mt",
    }
)
"""Table functions that neither leave the process nor touch its files."""

_REFUSED_FUNCTIONS: Final = frozenset({"file", "hascolumnintable", "catboostevaluate"})
"""Ordinary functions that read files or reach other servers."""

_TOKEN: Final = re.compile(
    r"""
    (?P<space>[\x00\s]+)
  | (?P<comment>--[^\n]*|/\*.*?\*/)
  | (?P<string>'(?:[^'\\]|\\.|'')*')
  | (?P<quoted>`(?:[^`\\]|\\.|``)*`|"(?:[^"\\]|\\.|"")*")
  | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<number>[0-9](?:[0-9A-Za-z_.]|(?<=[eEpP])[+-])*)
  | (?P<sign>[-+*/%=<>!(),.;:?\[\]{}|^@&~])
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)


class Refused(Exception):
    """The query may not run; ``code`` and ``name`` are ClickHouse's."""

    def __init__(self, reason: str, code: int = 164, name: str = "READONLY") -> None:
        super().__init__(f"Code: {code}. DB::Exception: {reason}. ({name})")
        self.code = code


@dataclass(frozen=True, slots=True)
class Checked:
    """A query that may run, and the format that it asks for itself."""

    query: str
    format: str | None


def check_query(query: str, table_functions: frozenset[str]) -> Checked:
    """Return the query without comments and trailing semicolon, if it only reads.

    Args:
        query: One statement.
        table_functions: Names of all table functions of the engine, in lower case.

    Raises:
        Refused: If it does something else, or cannot be judged.
    """
    if len(query) > MAX_QUERY:
        raise Refused(f"Query is longer than {MAX_QUERY} characters", 62, "SYNTAX_ERROR")
    tokens, text = _tokens(query)
    while tokens and tokens[-1] == ("sign", ";"):
        tokens.pop()
        text = text.rstrip("; \t\r\n\x00\f\v")
    if not tokens:
        raise Refused("Empty query", 62, "SYNTAX_ERROR")
    if ("sign", ";") in tokens:
        raise Refused("Multi-statements are not allowed", 62, "SYNTAX_ERROR")
    first = next((word.lower() for _, word in tokens if word != "("), "")
    if first not in _FIRST_WORDS:
        raise Refused("Only SELECT, WITH, SHOW, DESCRIBE, EXISTS and EXPLAIN are allowed here")
    denied = (table_functions - ALLOWED_TABLE_FUNCTIONS) | _REFUSED_FUNCTIONS
    for index, (kind, word) in enumerate(tokens):
        following = tokens[index + 1] if index + 1 < len(tokens) else ("", "")
        if word.lower() == "into" and following[1].lower() == "outfile":
            raise Refused("INTO OUTFILE is not allowed here")
        if following == ("sign", "(") and kind in ("word", "quoted"):
            name = word[1:-1] if kind == "quoted" else word
            if "\\" in name or name.lower() in denied:
                raise Refused(f"Function {name} is not allowed here")
    return Checked(text, _format(tokens))


def _tokens(query: str) -> tuple[list[tuple[str, str]], str]:
    # The tokens that mean something, and the query with every comment blanked.
    tokens: list[tuple[str, str]] = []
    pieces: list[str] = []
    position = 0
    while position < len(query):
        match = _TOKEN.match(query, position)
        if match is None or (query.startswith("/*", match.end() - 1) and match.group() == "/"):
            # Something unknown, or a comment without an end.
            shown = query[position : position + 20]
            raise Refused(f"Cannot understand the query at {shown!r}", 62, "SYNTAX_ERROR")
        position = match.end()
        kind = match.lastgroup or ""
        pieces.append(" " if kind == "comment" else match.group())
        if kind not in ("space", "comment"):
            tokens.append((kind, match.group()))
    return tokens, "".join(pieces)


def _format(tokens: list[tuple[str, str]]) -> str | None:
    # FORMAT ends the statement, except for a SETTINGS clause after it.
    for index in range(len(tokens) - 2, -1, -1):
        if tokens[index][1].lower() == "format" and tokens[index + 1][0] == "word":
            after = tokens[index + 2 : index + 3]
            if not after or after[0][1].lower() == "settings":
                return tokens[index + 1][1]
    return None
