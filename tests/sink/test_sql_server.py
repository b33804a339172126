"""curl and clickhouse-connect talk to the endpoint as they would to a ClickHouse server."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import urlencode

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from schemas.errors import ConfigError
from sink.batches import block_inserts
from sink.sql_engine import SqlEngine, SqlLimits
from sink.sql_server import SqlServer
from tests.sink.blocks import block, total
from tests.sink.test_sql_guard import BAD

pytestmark = pytest.mark.clickhouse


@pytest.fixture
def server(store, config):
    for insert in block_inserts([block(3)], "epoch"):
        store.insert(insert)
    engine = SqlEngine(config.url.removeprefix("chdb://"), SqlLimits(seconds=2, memory_mb=512))
    server = SqlServer(engine, "127.0.0.1", 0)
    server.start()
    yield server
    server.stop()
    engine.close()


def ask(server, query=None, body=None, headers=None, **parameters):
    if query is not None:
        parameters["query"] = query
    url = f"http://127.0.0.1:{server.port}/?{urlencode(parameters)}"
    request = urllib.request.Request(url, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


def test_curl_gets_an_answer(server):
    def curl(*arguments):
        command = ["curl", "-sS", "--max-time", "20", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    url = f"http://127.0.0.1:{server.port}"
    assert curl(f"{url}/ping") == "Ok.\n"
    assert curl(f"{url}/") == "Ok.\n"
    assert curl(f"{url}/?query=SELECT+40%2B2") == "42\n"
    assert curl(url, "--data-binary", "SELECT 1 AS a FORMAT JSONEachRow") == '{"a":1}\n'
    assert (
        curl(f"{url}/?param_x=it%27s&default_format=CSV", "--data-binary", "SELECT {x:String}")
        == '"it\'s"\n'
    )
    query = "SELECT sum(connect_count) FROM service_relation_metrics"
    assert curl(f"{url}/?database=podwire", "--data-binary", query) == f"{total(block(3))}\n"
    compressed = curl("--compressed", "-D", "-", f"{url}/?enable_http_compression=1&query=SELECT+1")
    assert "Content-Encoding: gzip" in compressed
    assert compressed.endswith("\n1\n")
    assert "HTTP/1.1 200" in curl("-I", f"{url}/?query=SELECT+1")
    assert "404" in curl("-D", "-", f"{url}/elsewhere")


def test_the_headers_are_those_of_clickhouse(server):
    status, body, headers = ask(server, "SELECT 1 FORMAT JSON", query_id="mine")
    assert status == 200
    assert json.loads(body)["data"] == [{"1": 1}]
    assert headers["Content-Type"] == "application/json; charset=UTF-8"
    assert headers["X-ClickHouse-Format"] == "JSON"
    assert headers["X-ClickHouse-Query-Id"] == "mine"
    summary = json.loads(headers["X-ClickHouse-Summary"])
    assert summary["result_rows"] == "1"
    assert int(summary["elapsed_ns"]) > 0
    status, body, headers = ask(server, "SELEC 1")
    assert status in (400, 403)
    status, body, headers = ask(server, "SELECT nothing FROM podwire.service_metrics")
    assert status == 404
    assert headers["X-ClickHouse-Exception-Code"] == "47"
    assert body.startswith(b"Code: 47. DB::Exception: ")
    assert b"(UNKNOWN_IDENTIFIER)" in body


def test_clickhouse_connect_is_a_client(server):
    client = clickhouse_connect.get_client(host="127.0.0.1", port=server.port, database="podwire")
    try:
        result = client.query(
            "SELECT client_service, connect_count, connect_duration, time "
            "FROM service_relation_metrics WHERE role = {role:String} ORDER BY ALL",
            parameters={"role": "client"},
        )
        assert result.column_names == (
            "client_service",
            "connect_count",
            "connect_duration",
            "time",
        )
        assert result.result_rows
        assert all(row[3].minute == 0 and row[3].hour == 0 for row in result.result_rows)
        sums = client.query("SELECT sum(connect_count) AS n FROM service_relation_metrics")
        assert sums.result_rows == [(total(block(3)),)]
        assert client.query("SELECT number FROM numbers(100000)").row_count == 100_000
        assert client.query("SELECT 1 AS a WHERE 0").result_rows == []
        assert client.query("SELECT 1 AS a LIMIT 0").column_names == ("a",)
        assert client.command("SELECT 42") == 42
        assert client.ping()
        assert client.raw_query("SELECT 1", fmt="CSV") == b"1\n"
        with pytest.raises(DatabaseError) as caught:
            client.command("CREATE TABLE t (a Int8) ENGINE = Memory")
        assert caught.value.code == 164
    finally:
        client.close()


ATTACKS = [
    *(query for query in BAD if len(query) < 1000),
    "SELECT 1 SETTINGS readonly = 0",
    "SELECT 1 SETTINGS max_execution_time = 0",
    "CREATE TABLE podwire.x (a Int8) ENGINE = Memory",
    "DROP TABLE podwire_store.ledger",
    "ALTER TABLE podwire_store.ledger DELETE WHERE 1",
    "TRUNCATE TABLE podwire_store.ledger",
    "EXPLAIN SELECT * FROM file('/etc/passwd')",
    "SELECT * FROM default.`/etc/passwd`",
    "SELECT * FROM `/etc/passwd`",
    "WITH 1 AS x INSERT INTO podwire_store.ledger SELECT 1",
    "SELECT * FROM view(SELECT file('/etc/passwd'))",
    "GRANT ALL ON *.* TO default",
    "OPTIMIZE TABLE podwire_store.ledger FINAL",
    "SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "SELECT * FROM sqlite('/tmp/x.db', 'a')",
    "SELECT * FROM executable('id', 'TSV', 'a String')",
]


def test_only_reading_is_possible(server, store, tmp_path):
    def state():
        return store.rows(
            "SELECT name, total_rows FROM system.tables WHERE startsWith(database, 'podwire') "
            "ORDER BY name"
        )

    before = state()
    for query in ATTACKS:
        status, body, _ = ask(server, query.replace("/tmp/x", f"{tmp_path}/out"))
        assert status >= 400, (query, body)
        assert b"root:" not in body, query
        assert not list(tmp_path.glob("out*")), query
    assert state() == before


PARAMETERS = [
    {"readonly": "0"},
    {"max_execution_time": "x'"},
    {"allow_ddl": "1"},
    {"output_format_x') --": "1"},
    {"output_format_pretty_max_rows": "1', readonly = '0"},
    {"database": "podwire; DROP"},
    {"database": "nowhere"},
    {"default_format": "Nonsense"},
    {"output_format_schema": "x.proto"},
    {"max_execution_time": "."},
    {"max_memory_usage": "1.2.3"},
    {"compress": "1"},
]


def test_parameters_open_no_door(server):
    query = "SELECT getSetting('readonly'), getSetting('max_execution_time') <= 2"
    for parameters in PARAMETERS:
        status, body, _ = ask(server, query, **parameters)
        assert status >= 400 or body == b"1\ttrue\n" or body == b"1\t1\n", parameters
    for value in ("100000", "0", "-1", "1e9", "nan"):
        assert ask(server, query, max_execution_time=value)[:2] == (200, b"1\t1\n"), value
    largest = "SELECT getSetting('max_result_bytes') BETWEEN 1 AND 536870912"
    assert ask(server, largest, max_result_bytes="0")[:2] == (200, b"1\n")


def test_an_output_format_writes_no_file(server, tmp_path):
    # Protobuf saves the schema that it makes up where this setting says, over what is there.
    victim = tmp_path / "victim"
    victim.write_text("precious")
    ask(server, "SELECT 1 AS x FORMAT Protobuf", output_format_schema=str(victim))
    ask(server, f"SELECT 1 AS x FORMAT Protobuf SETTINGS output_format_schema = '{victim}'")
    ask(server, f"SELECT 1 AS x SETTINGS output_format_schema = '{victim}' FORMAT Protobuf")
    assert victim.read_text() == "precious"


def test_a_client_that_goes_away_is_no_traceback(server, capfd):
    target = "/?query=SELECT+*+FROM+numbers(5000000)"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        connection.recv(1)
    assert ask(server, "SELECT 1")[1] == b"1\n"
    assert "Traceback" not in capfd.readouterr().err


def test_limits_bound_a_query_and_never_the_inserts(server, store):
    slow = "SELECT sum(sipHash64(number)) FROM numbers_mt(100000000000)"
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(server, slow))) for _ in range(3)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    longest = 0.0
    base = 100
    while any(thread.is_alive() for thread in threads):
        started = time.monotonic()
        for insert in block_inserts([block(base)], "epoch"):
            store.insert(insert)
        longest = max(longest, time.monotonic() - started)
        base += 1
    assert time.monotonic() - begin < 20
    assert [status for status, _, _ in answers] == [408] * 3
    assert longest < 5
    status, body, _ = ask(server, "SELECT groupArray(number) FROM numbers(1000000000)")
    assert status >= 400
    assert b"MEMORY_LIMIT" in body or b"TIMEOUT" in body


def test_bodies_of_every_kind(server):
    assert ask(server, body=b"SELECT 1")[1] == b"1\n"
    packed = gzip.compress(b"SELECT 2")
    assert ask(server, body=packed, headers={"Content-Encoding": "gzip"})[1] == b"2\n"
    assert ask(server, body=b"junk", headers={"Content-Encoding": "gzip"})[0] == 400
    bomb = gzip.compress(b" " * 50_000_000)
    assert ask(server, body=bomb, headers={"Content-Encoding": "gzip"})[0] == 400
    damaged = packed[:10] + b"\xff" * 8 + packed[18:]
    assert ask(server, body=damaged, headers={"Content-Encoding": "gzip"})[0] == 400
    assert ask(server, body=b"\xff\xfe")[0] == 400
    assert ask(server, body=b"x" * 2_000_000)[0] == 413

    def raw(text):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(text)
            return connection.recv(65536)

    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b"200" in raw(chunked + b"8\r\nSELECT 3\r\n0\r\n\r\n").split(b"\r\n")[0]
    assert b"413" in raw(chunked + b"zz\r\n").split(b"\r\n")[0]
    assert b"413" in raw(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n")


def test_a_taken_port_is_a_clear_error(server):
    with pytest.raises(ConfigError, match=r"sink\.sql_port"):
        SqlServer(None, "127.0.0.1", server.port)
