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
