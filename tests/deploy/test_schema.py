"""``podwire schema show`` lists what the declarations have."""

from __future__ import annotations

import pytest

from deploy import schema
from deploy.cli import create_parser
from sink.views import VIEWS


def test_every_view_is_listed_with_what_a_row_is() -> None:
    _, rows = schema._tables()
    listed = {row[0]: row for row in rows}
    periods = ("_hourly", "_daily")
    assert set(listed) == {view.name for view in VIEWS if not view.name.endswith(periods)}
    assert all(all(row) for row in rows)
    assert listed["service_latency"][1] == "time, cluster, role, service"
    assert listed["service_latency"][2].endswith("also *_hourly and *_daily")
    assert listed["service_waits"][1].endswith("service, direction, stage")
    assert listed["endpoint_relation"][1] == "cluster, client_service, server_service, endpoint"
    assert "also" not in listed["access_log"][2]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_every_column_of_a_table_is_explained(view) -> None:
    assert create_parser().parse_args(["schema", "show", view.name]).what == view.name
    _, rows = schema._columns(view.name)
    assert [row[0] for row in rows] == [column.name for column in view.columns]
    assert all(all(row) for row in rows)


def test_what_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        create_parser().parse_args(["schema", "show", "nonsense"])
    assert "'nonsense' is none of topics, tables, figures" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["oap", "figures", "tables", "topics"])
def test_nothing_of_a_listing_is_cut_off_where_it_is_not_a_terminal(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert schema._show(what) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    _, rows = schema._LISTINGS[what]()
    for line, row in zip(lines[2:], rows, strict=True):
        assert all(text in line for text in row), row


def test_a_narrow_terminal_shows_every_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert schema._show("oap") == 0
    shown = capsys.readouterr().out
    assert "service_metrics," in shown
    assert "sum(accept_count)" in shown
