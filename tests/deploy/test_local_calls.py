"""Calls from a recording to SQL, through every real part of ``podwire local``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from collector.recording import Recorder
from schemas.events import Parties, decode_batch, encode_batch
from tests.deploy.test_local import Run, start
from tests.sink.calls import START_NS, calls_batch, plain_calls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["start"]

pytestmark = [pytest.mark.clickhouse, pytest.mark.slow]

BATCHES, CALLS = 5, 400
SECOND = 1_000_000_000
PLAIN = "FORMAT JSONEachRow SETTINGS output_format_json_quote_64bit_integers = 0"


def record_calls(path: Path) -> None:
    """Batches of calls, a second each; every tenth call of a batch failed."""
    recorder = Recorder(path)
    for number in range(BATCHES):
        calls = plain_calls(CALLS, first=number * CALLS)
        for index, call in enumerate(calls):
            call["start_ns"] += number * SECOND
            call["end_ns"] += number * SECOND
            if index % 10 == 0:
                call["status"] = 503
        batch = decode_batch(calls_batch(calls, sequence=number))
        end_ns = START_NS + (number + 1) * SECOND
        header = replace(
            batch.header,
            first_event_ns=int(batch.requests.end_ns.min()),
            last_event_ns=int(batch.requests.end_ns.max()),
            watermark_ns=end_ns,
            anchor_unix_ns=end_ns,
            anchor_monotonic_ns=end_ns - START_NS,
            final=number == BATCHES - 1,
        )
        recorder.write(encode_batch(replace(batch, header=header, parties=Parties())))
    recorder.close()


def test_recorded_calls_are_in_every_table(start: Callable[..., Run], tmp_path: Path) -> None:
    path = tmp_path / "calls.recording"
    record_calls(path)
    run = start("--replay", str(path), "--replay-pace", "fast")
    assert run.finish() == 0, run.errors
    assert "Traceback" not in (run.data / "logs" / "sink.log").read_text()
    every = BATCHES * CALLS
    (row,) = run.rows(
        "SELECT count() AS calls, uniqExact(path) AS paths, countIf(status = 503) AS failed, "
        "groupUniqArray((role, client_service, server_service)) AS ends "
        f"FROM access_log {PLAIN}"
    )
    assert row == {
        "calls": every,
        "paths": every,
        "failed": every // 10,
        "ends": [["client", "curl", "10.96.0.1"]],
    }
    (row,) = run.rows(
        "SELECT sum(http_call_count) AS calls, sum(http_success_count) AS good "
        f"FROM endpoint_relation_metrics WHERE client_service = 'curl' {PLAIN}"
    )
    assert row == {"calls": every, "good": every - every // 10}
    (true,) = run.rows(
        f"SELECT quantilesExactLow(0.5, 0.9, 0.99)(duration_ns) AS ns FROM access_log {PLAIN}"
    )
    (found,) = run.rows(
        "SELECT quantilesExactWeighted(0.5, 0.9, 0.99)(value_ns, count) AS ns "
        f"FROM service_relation_latency_buckets WHERE client_service = 'curl' {PLAIN}"
    )
    assert found["ns"] == pytest.approx(true["ns"], rel=0.05)
    (row,) = run.rows(
        "SELECT sum(in_count) AS entered, sum(out_count) AS stored FROM pipeline_ledger "
        f"WHERE stage = 'sink' AND kind = 'request' {PLAIN}"
    )
    assert row == {"entered": every, "stored": every}
