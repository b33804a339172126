from __future__ import annotations

import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from deploy.doctor import (
    QUERY,
    TLS_QUERY,
    coverage,
    coverage_table,
    inside_tls,
    scope_text,
    tls_table,
)
from deploy.endpoint import QueryError
from schemas.errors import TransportError
from schemas.monitoring import MonitoringScope
from sink.config import SinkConfig
from tests.support.kafka import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER = """\
{"role":"client","resolution":"instance","reason":"","connections":99,"bytes":5000,\
"connection_share":0.99,"byte_share":0.5}
{"role":"client","resolution":"service","reason":"service_address","connections":1,"bytes":0,\
"connection_share":0.01,"byte_share":null}
"""

TLS_ANSWER = """\
{"service":"shop","process":"java","bytes":2000,"readable_share":0,"versions":["TLS 1.3"],\
"server_names":["cart.shop","pay.shop"],"reasons":["java","no_functions"]}
"""


class _Database(BaseHTTPRequestHandler):
    status = 200
    asked: tuple[str, str, str | None, str | None] = ("", "", None, None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        user, key = (self.headers[f"X-ClickHouse-{name}"] for name in ("User", "Key"))
        type(self).asked = (self.path, body, user, key)
        self.send_response(self.status)
        self.end_headers()
        answer = TLS_ANSWER if body == TLS_QUERY else ANSWER
        self.wfile.write(answer.encode() if self.status == 200 else b"Code: 60. No table\nmore")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Database) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://reader:secret@127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_is_watched_is_shown_for_people() -> None:
    rules = {"include": [{"namespaces": ["shop", "team-*"]}], "exclude": [{"ports": ["80-81", 9]}]}
    assert scope_text(MonitoringScope.parse(rules)).plain == (
        "what is watched\n  include namespaces shop, team-*\n  exclude ports 80-81, 9"
    )
    assert scope_text(MonitoringScope.parse(None)).plain == "what is watched\n  everything"


def test_the_database_is_asked_where_the_sink_writes(url: str) -> None:
    rows = coverage(SinkConfig(url=url, database="pw"))
    assert _Database.asked == (
        "/?database=pw&default_format=JSONEachRow",
        *(QUERY, "reader", "secret"),
    )
    assert [row["connections"] for row in rows] == [99, 1]
    output = io.StringIO()
    Console(file=output, width=120).print(coverage_table(rows))
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert ["client", "instance", "99", "99.00", "%", "5,000", "50.00", "%"] in lines
    assert ["client", "service", "1", "1.00", "%", "0", "service", "address"] in lines


def test_what_is_inside_tls_is_shown(url: str) -> None:
    output = io.StringIO()
    Console(file=output, width=120).print(tls_table(inside_tls(SinkConfig(url=url))))
    lines = [line.split() for line in output.getvalue().splitlines()]
    shown = ["shop", "java", "2,000", "0.00", "%", "TLS", "1.3", "cart.shop,", "pay.shop"]
    shown += ["java,", "no", "functions"]
    assert shown in lines


def test_an_embedded_engine_answers_through_its_endpoint(url: str) -> None:
    port = int(url.rpartition(":")[2])
    config = SinkConfig(url="chdb:///nowhere", sql_port=port)
    assert len(coverage(config)) == 2


def test_refusals_and_silence_are_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Database, "status", 404)
    with pytest.raises(QueryError, match="Code: 60"):
        coverage(SinkConfig(url=url))
    with pytest.raises(TransportError, match="no answer"):
        coverage(SinkConfig(url=f"http://127.0.0.1:{free_port()}"))
