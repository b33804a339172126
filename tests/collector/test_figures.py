from __future__ import annotations

from collector.attach import CORE, Hook
from collector.figures import NEEDED, availability
from schemas.catalogue import FIGURE_BY_NAME, FIGURES


def _hooks(*missing: str) -> list[Hook]:
    return [
        Hook(target, f"tp_btf/{target}", target not in missing, "refused" * (target in missing))
        for target in CORE
    ]


def test_every_figure_is_listed_and_only_known_hooks_are_needed() -> None:
    assert [row.figure for row in availability(_hooks())] == [figure.name for figure in FIGURES]
    assert set(NEEDED) <= set(FIGURE_BY_NAME)
    assert {target for needed in NEEDED.values() for target in needed} <= set(CORE)


def test_figures_that_every_row_has_are_measured() -> None:
    always = {figure.name for figure in FIGURES if not figure.optional}
    assert always <= set(NEEDED)
    measured = {row.figure for row in availability(_hooks()) if row.available}
    assert measured == set(NEEDED)


def test_bytes_by_descriptor_need_the_system_calls_and_say_what_they_miss() -> None:
    hooks = [hook for hook in _hooks() if not hook.target.startswith("sock_")]
    rows = {row.figure: row for row in availability(hooks)}
    assert {name for name, row in rows.items() if row.available} == set(NEEDED)
    for figure in ("read_count", "read_bytes", "write_duration"):
        assert rows[figure].note == "sys_enter, sys_exit (by file descriptor, without io_uring)"
    without = [hook for hook in _hooks("sys_exit") if not hook.target.startswith("sock_")]
    rows = {row.figure: row for row in availability(without)}
    assert rows["write_bytes"].note == "sys_exit: refused"


def test_a_missing_hook_takes_its_figures_away_with_the_reason() -> None:
    rows = {row.figure: row for row in availability(_hooks("sock_recv_length"))}
    assert not rows["read_bytes"].available
    assert rows["read_bytes"].note == "sock_recv_length: refused"
    assert rows["write_bytes"].available
    assert rows["http_call_count"].note == "messages are not parsed yet"
