"""The same code against a server over HTTP; errors by code; a server that comes and goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

from schemas.errors import ConfigError, FatalError, RetryableError, SinkBackpressure, TransportError
from sink.batches import block_inserts
from sink.config import SinkConfig
from sink.ddl import apply_schema
from sink.store import Store, _translated
from sink.writer import BlockWriter, Retry
from tests.sink.blocks import block, total
from tests.sink.test_writer import attempt, stored_sum


class Server:
    """The stand-in in a process of its own, on one directory and port."""

    def __init__(self, path):
        self.path = path
        self.port = 0
        self.start()

    def start(self):
        command = [sys.executable, "-m", "tests.sink.writable_server", self.path, str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    @property
    def config(self):
        return SinkConfig(url=f"http://user@127.0.0.1:{self.port}", password="secret")


@pytest.fixture
def server(tmp_path):
    server = Server(f"{tmp_path}/engine")
    yield server
    if server.process.poll() is None:
        server.kill()


@pytest.mark.clickhouse
def test_the_http_client_writes_what_the_embedded_one_writes(server, clock):
    store = Store.connect(server.config)
    assert apply_schema(store)
    assert not apply_schema(store)
    writer = BlockWriter(store, Retry(lambda _: pytest.fail("repeated"), 0.1, 0.1), clock, "e")
    writer.assign([0])
    one = block(3, rows=3000)
    assert writer.write(attempt(one)) == "inserted"
    assert stored_sum(store) == total(one)
    for insert in block_inserts([one], "e"):
        store.insert(insert)
    assert stored_sum(store) == total(one)
    with pytest.raises(FatalError, match="UNKNOWN_TABLE"):
        store.insert(replace(insert, table=replace(insert.table, name="missing")))
    store.close()


@pytest.mark.clickhouse
def test_a_server_killed_again_and_again_loses_and_doubles_nothing(server, clock):
    store = Store.connect(server.config)
    apply_schema(store)
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if server.process.poll() is not None:
            server.process.stdout.close()
            server.start()

    writer = BlockWriter(store, Retry(wait, 0.01, 0.05), clock, "e")
    writer.assign([0])
    killed = 0
    for base in range(8):
        # The kill comes at another moment of each block's inserts.
        victim = server.process
        killer = subprocess.Popen(["sh", "-c", f"sleep {0.02 * base:.2f}; kill -9 {victim.pid}"])
        writer.write(attempt(block(base, rows=2000), offset=base))
        killer.wait()
        victim.wait()
        killed += 1
    wait(0)
    assert stored_sum(store) == sum(total(block(base, rows=2000)) for base in range(8))
    assert store.rows("SELECT sum(read_count) FROM podwire.instance_metrics") == [(7 * 8,)]
    assert store.rows("SELECT count() FROM podwire.pipeline_blocks") == [(8,)]
    assert killed == 8
    assert len(waits) > 1
    store.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DatabaseError("x", code=252), SinkBackpressure),
        (DatabaseError("x", code=243), SinkBackpressure),
        (DatabaseError("x", code=745), SinkBackpressure),
        (DatabaseError("x", code=159), RetryableError),
        (DatabaseError("x", code=999), RetryableError),
        (DatabaseError("x", code=60), FatalError),
        (DatabaseError("x", code=62), FatalError),
        (OperationalError("connection refused"), TransportError),
        (OSError("reset"), TransportError),
        (RuntimeError("engine"), FatalError),
    ],
)
def test_errors_are_told_apart_by_code(error, kind):
    assert type(_translated(error, "insert")) is kind


def test_a_server_that_is_not_there_is_a_clear_error():
    with pytest.raises(TransportError) as caught:
        Store.connect(SinkConfig(url="http://me:secret@127.0.0.1:9"))
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.clickhouse
def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"sink\.url"):
        Store.connect(SinkConfig(url=f"chdb://{tmp_path}/file/engine"))


@pytest.mark.clickhouse
def test_a_directory_in_use_is_a_clear_error(server, tmp_path):
    code = (
        "import sys; from sink.store import Store; from sink.config import SinkConfig\n"
        "from schemas.errors import ConfigError\n"
        "try: Store.connect(SinkConfig(url=sys.argv[1]))\n"
        "except ConfigError as error: print(error); sys.exit(3)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, f"chdb://{server.path}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": "."},
        timeout=60,
    )
    assert answer.returncode == 3, answer.stderr
    assert "cannot be opened" in answer.stdout
