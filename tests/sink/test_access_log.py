"""Calls become rows of the access log: every column, what is left out, and what cannot be read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import DecodeError
from schemas.events import decode_batch, encode_batch
from sink.access_log import Sampling, read_calls
from sink.access_writer import CallWriter
from sink.native import NativeBlock, Texts, variable_length_strings
from sink.writer import Retry
from tests.sink.calls import MILLISECOND, START_NS, calls_batch, plain_calls, trace_id
from tests.sink.conftest import no_wait

ALL = Sampling(1.0, 1_000 * MILLISECOND)
DAY_NS = 86_400 * 1_000_000_000


@pytest.fixture
def write(store):
    writer = CallWriter(store, Retry(no_wait, 0.01, 0.01), 8)

    def write(*messages, sampling=ALL):
        writer.write([(0, read_calls(message, sampling)) for message in messages])

    return write


@pytest.mark.clickhouse
def test_every_column_of_a_call(store, write):
    full = {
        "client": True,
        "version": 20,
        "tls": True,
        "method": "POST",
        "path": "/Ünicode/" + "x" * 300,
        "endpoint": "/Ünicode/{id}",
        "status": 503,
        "grpc_status": 14,
        "start_ns": START_NS + 123,
        "first_byte_ns": START_NS + 456,
        "end_ns": START_NS + 789,
        "request_header_size": 1,
        "request_body_size": 1 << 40,
        "response_header_size": 0,
        "response_body_size": 4,
        "trace_provider": 3,
        "trace_id": "t",
        "segment_id": "s",
        "span_id": "p",
        "translated_address": "::ffff:10.0.0.2",
        "translated_port": 8080,
    }
    write(calls_batch([full]))
    (row,) = store.rows("SELECT * EXCEPT (time, start) FROM podwire.access_log")
    assert row == (
        666, 333, "test", "node-1", "client", "web.shop", "web-1", "api.shop", "api-1",
        "10.0.0.1", 40_000, "10.0.0.2", 8080, "HTTP/2", "POST", full["path"], full["endpoint"],
        "api.shop", 503, 14, "answered", 1, 1 << 40, 0, 4, True, "skywalking", "t", "s", "p",
        "c1", "app", "curl", 1.0,
    )  # fmt: skip
    assert store.rows(
        "SELECT toUnixTimestamp64Nano(time), toUnixTimestamp64Nano(start) FROM podwire.access_log"
    ) == [(START_NS + 789, START_NS + 123)]


@pytest.mark.clickhouse
def test_what_was_not_measured_is_null_and_ends_are_told_apart(store, write):
    write(
        calls_batch(
            [
                {"outcome": 2, "status": 0},
                {"client": False, "outcome": 1, "grpc_status": 0xFFFF_FFFE, "local_port": 80,
                 "remote_port": 40_000, "local_address": "2001:db8::1", "path": "/2"},
                {"role": 0, "local_port": 8080, "remote_port": 40_001, "path": "/3"},
                {"start_ns": START_NS + 5, "first_byte_ns": START_NS + 4, "end_ns": START_NS,
                 "path": "/4"},
            ]
        )
    )  # fmt: skip
    rows = store.rows(
        "SELECT role, client_service, server_instance, server_address, server_port, status, "
        "grpc_status, outcome, time_to_first_byte_ns, duration_ns, request_header_size, "
        "request_body_size, response_header_size, response_body_size "
        "FROM podwire.access_log ORDER BY path"
    )
    nothing = (None,) * 4
    client = ("client", "web.shop", "api-1", "10.96.0.1", 80)
    server = ("server", "api.shop", "web-1")
    assert rows == [
        (*client, None, None, "unanswered", None, MILLISECOND, *nothing),
        (*server, "2001:db8::1", 80, 200, -1, "aborted", None, MILLISECOND, *nothing),
        (*server, "10.0.0.1", 8080, 200, None, "answered", None, MILLISECOND, *nothing),
        (*client, 200, None, "answered", 0, 0, *nothing),
    ]


@pytest.mark.clickhouse
def test_calls_inside_a_pod_are_left_out_and_counted(store, write):
    write(calls_batch([{"internal": True}, {"path": "/seen"}, {"internal": True, "status": 500}]))
    assert store.rows("SELECT path FROM podwire.access_log") == [("/seen",)]
    assert store.rows(
        "SELECT cluster, node, reason, in_count, out_count, dropped_count "
        "FROM podwire.pipeline_ledger WHERE stage = 'sink' AND kind = 'request' ORDER BY reason"
    ) == [("test", "node-1", "", 3, 1, 0), ("test", "node-1", "pod_internal", 0, 0, 2)]
    assert store.rows("SELECT DISTINCT balance FROM podwire.pipeline_ledger_balance") == [(0,)]


@pytest.mark.clickhouse
def test_sampling_keeps_what_failed_or_was_slow_and_weighs_the_rest(store, write):
    kept = [
        {"status": 500},
        {"grpc_status": 3},
        {"outcome": 1},
        {"outcome": 2, "status": 0},
        {"end_ns": START_NS + 50 * MILLISECOND},
    ]
    calls = plain_calls(20_000) + [{"path": "/kept"} | one for one in kept]
    sampling = Sampling(0.1, 50 * MILLISECOND)
    message = calls_batch(calls)
    assert read_calls(message, sampling) == read_calls(message, sampling)
    write(message, sampling=sampling)
    assert store.rows(
        "SELECT count(), sum(sample_weight) FROM podwire.access_log WHERE path = '/kept'"
    ) == [(len(kept), len(kept))]
    ((count, estimate),) = store.rows(
        "SELECT count(), sum(sample_weight) FROM podwire.access_log WHERE path != '/kept'"
    )
    assert 1_800 < count < 2_200
    assert estimate == pytest.approx(10 * count)
    rows = store.rows(
        "SELECT reason, sum(in_count) - sum(out_count), sum(dropped_count) "
        "FROM podwire.pipeline_ledger WHERE kind = 'request' GROUP BY reason ORDER BY reason"
    )
    dropped = 20_000 - count
    assert rows == [("", dropped, 0), ("sampled", 0, dropped)]


def test_nothing_but_failures_with_a_share_of_nothing():
    calls = read_calls(calls_batch([*plain_calls(100), {"status": 500}]), Sampling(0.0, 10**12))
    assert (calls.count, calls.stored, calls.sampled) == (101, 1, 100)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda b: b"", "layout version"),
        (lambda b: b"\xff" * 40, "no EventBatch"),
        (lambda b: _changed(b, header=dataclasses.replace(b.header, run_id="")), "no run"),
        (lambda b: _changed(b, parties=type(b.parties)()), "without the names"),
        (lambda b: _changed(b, parties=b.parties.take([0])), "1 parties of 3 connections"),
        (lambda b: _end(b, 1 << 63), "ended at"),
        (lambda b: _index(b, "endpoint"), "index"),
        (lambda b: _index(b, "path"), "index"),
    ],
)
def test_what_is_no_batch_of_calls_is_refused(change, reason):
    with pytest.raises(DecodeError, match=reason):
        read_calls(change(decode_batch(calls_batch(plain_calls(3)))), ALL)


def _changed(batch, **changes):
    return encode_batch(dataclasses.replace(batch, **changes))


def _end(batch, end_ns):
    ends = np.full(batch.requests.rows, end_ns, "<u8")
    return _changed(batch, requests=dataclasses.replace(batch.requests, end_ns=ends))


def _index(batch, column):
    codes = np.full(batch.requests.rows, 1000, "<u4")
    return _changed(batch, requests=dataclasses.replace(batch.requests, **{column: codes}))


def test_a_batch_without_calls_makes_nothing():
    calls = read_calls(calls_batch([]), ALL)
    assert (calls.count, calls.days) == (0, {})


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_bytes_are_refused_or_read(data):
    good = bytearray(calls_batch(plain_calls(4)))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        calls = read_calls(bytes(good), ALL)
    except DecodeError:
        return
    assert calls.stored + calls.sampled + calls.internal == calls.count


@given(st.lists(st.text(max_size=200), min_size=1, max_size=20), st.data())
def test_gathered_strings_are_those_of_the_rows(texts, data):
    codes = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=50))
    found = Texts(texts).gather(np.array(codes, np.int64)).tobytes()
    assert found == variable_length_strings(texts[code] for code in codes)


def test_columns_of_another_length_are_refused():
    block = NativeBlock(2)
    one = np.zeros(1, "<u8")
    for add in (
        lambda: block.add_nullable("a", "UInt64", one, one == 0),
        lambda: block.add_bytes("a", np.zeros((1, 16), "u1")),
        lambda: block.add_texts("a", Texts([""]), one),
    ):
        with pytest.raises(ValueError, match="a: "):
            add()


@pytest.mark.clickhouse
def test_traces_are_found_by_their_index(store, write):
    write(*[calls_batch(plain_calls(50, first=i * 50), sequence=i) for i in range(20)])
    (plan,) = store.rows(
        "SELECT arrayStringConcat(groupArray(explain), '\n') FROM (EXPLAIN indexes = 1 "
        f"SELECT * FROM podwire.access_log WHERE trace_id = '{trace_id(7)}')"
    )
    assert "Name: trace" in plan[0]
    assert store.rows(f"SELECT path FROM podwire.access_log WHERE trace_id = '{trace_id(7)}'") == [
        ("/orders/7",)
    ]
