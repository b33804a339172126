"""Queries that only read pass unchanged; all others are refused before the engine sees them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sink.sql_guard import Refused, check_query

FUNCTIONS = frozenset(
    {"file", "url", "s3", "remote", "numbers", "values", "python", "executable", "view", "input"}
)

GOOD = [
    "SELECT 1",
    "select `a`.\"b\", 'it''s; fi\\'le(' FROM t WHERE x >= 1.5e-3 AND y::UInt8 != 2",
    "WITH x AS (SELECT 1) SELECT * FROM x FORMAT JSON",
    "(SELECT 1) UNION ALL (SELECT 2)",
    "SHOW TABLES FROM podwire",
    "DESCRIBE TABLE podwire.service_metrics",
    "EXPLAIN SELECT 1",
    "EXISTS podwire.t",
    "SELECT {name:String}, [1,2][1], (1,2).1, arrayMap(x -> x + 1, [1])",
    "SELECT * FROM numbers(3)",
    "SELECT 'INTO OUTFILE', \"file\" FROM t",
    "SELECT file FROM t",
    "SELECT 'ünïcödé'",
    "SELECT a || b, c <=> d",
    "FROM t SELECT 1",
]

BAD = [
    "",
    ";",
    "-- nothing",
    "INSERT INTO t VALUES (1)",
    "/* SELECT */ INSERT INTO t VALUES (1)",
    "SELECT 1; DROP TABLE t",
    "SELECT 1 INTO OUTFILE '/tmp/x'",
    "SELECT 1 INTO/**/OUTFILE '/tmp/x'",
    "SELECT 1 into\n--\noutfile '/tmp/x'",
    "SELECT file('/etc/passwd')",
    "SELECT FILE ('/etc/passwd')",
    "SELECT `file`('/etc/passwd')",
    "SELECT \"fi\\x6ce\"('/etc/passwd')",
    "SELECT file/**/('/etc/passwd')",
    "SELECT * FROM url('http://127.0.0.1/')",
    "DESCRIBE s3('http://127.0.0.1/b/c')",
    "DESC TABLE file('/etc/passwd', 'LineAsString')",
    "SELECT * FROM Python(x)",
    "SELECT * FROM remote('127.0.0.1', 'system', 'one')",
    "SELECT hasColumnInTable('127.0.0.1:1', 'a', 'b', 'c')",
    "KILL QUERY WHERE 1",
    "SET readonly = 0",
    "USE system",
    "SYSTEM SHUTDOWN",
    "SELECT $tag$ x $tag$",
    "SELECT 1 # comment",
    "SELECT * FROM \u201cfile\u201d('/etc/passwd')",
    "SELECT 'open",
    "SELECT `open",
    "SELECT /* open",
    "SELECT 1\\G",
    "SELECT " + "1," * 200_000 + "1",
]


@pytest.mark.parametrize("query", GOOD)
def test_reading_passes_unchanged(query):
    assert check_query(query, FUNCTIONS).query == query


@pytest.mark.parametrize("query", BAD, ids=lambda query: query[:40])
def test_everything_else_is_refused(query):
    with pytest.raises(Refused):
        check_query(query, FUNCTIONS)


def test_comments_do_not_reach_the_engine():
    checked = check_query("SELECT 1 -- ' INTO OUTFILE\n + /* ; */ 2;  ;", FUNCTIONS)
    assert checked.query.split() == ["SELECT", "1", "+", "2"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("SELECT 1", None),
        ("SELECT 1 FORMAT JSON", "JSON"),
        ("SELECT 1 format JSONEachRow;", "JSONEachRow"),
        ("SELECT 1 FORMAT CSV SETTINGS x = 1", "CSV"),
        ("SELECT 'FORMAT JSON'", None),
        ("SELECT format('{}', 1)", None),
    ],
)
def test_the_format_is_found(query, found):
    assert check_query(query, FUNCTIONS).format == found


@given(st.text(max_size=200))
def test_any_text_is_judged(query):
    try:
        checked = check_query(query, FUNCTIONS)
    except Refused:
        return
    assert checked.query.strip()
    # What passes once passes again: nothing was uncovered by removing comments.
    assert check_query(checked.query, FUNCTIONS).query == checked.query
