from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from collector.recording import Recorder
from collector.replay import replay, survey
from schemas.clock import ManualClock
from schemas.columns import UNMEASURED_U64
from schemas.errors import DecodeError, TransportError
from schemas.events import (
    FIGURE_WIDTH,
    BatchHeader,
    Closes,
    Connections,
    Drops,
    EventBatch,
    Opens,
    Requests,
    Transfers,
    encode_batch,
)
from tests.collector.fakes import FakeSender

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.columns import U64

START = 1_600_000_000 * 10**9
SECOND = 10**9


def _batch(number: int, run_id: str = "old", final: bool = False) -> EventBatch:
    end = np.array([START + number * SECOND - 5], np.uint64)
    one = np.ones(1, np.uint32)
    nothing = np.zeros(1, np.uint32)
    return EventBatch(
        header=BatchHeader(
            node="node-1",
            run_id=run_id,
            sequence=number,
            first_event_ns=int(end[0]),
            last_event_ns=int(end[0]),
            watermark_ns=int(end[0]) + 1,
            anchor_unix_ns=START + number * SECOND,
            final=final,
        ),
        connections=Connections(
            **{
                name: np.full((1, width) if width > 1 else 1, 4 if name == "family" else 0, dtype)
                for name, dtype, width in Connections.specs()
            }
        ),
        opens=Opens(nothing, one.astype(np.uint8), end, end, nothing),
        closes=Closes(nothing, end, end),
        transfers=Transfers(nothing, one.astype(np.uint8), one.astype(np.uint8), end, end, one),
        requests=_requests(end),
        drops=Drops(nothing, end, nothing, one),
    )


def _requests(end: U64) -> Requests:
    # Two calls: one was answered, one was not.
    columns = {name: np.zeros(2, dtype) for name, dtype, _ in Requests.specs()}
    columns["end_ns"] = np.repeat(end, 2)
    columns["start_ns"] = columns["end_ns"] - np.uint64(3)
    columns["first_byte_ns"] = columns["end_ns"] - np.array([1, 0], np.uint64)
    columns["first_byte_ns"][1] = UNMEASURED_U64
    return Requests(**columns)


def _recording(path: Path, *batches: EventBatch) -> Path:
    recorder = Recorder(path)
    for batch in batches:
        recorder.write(encode_batch(batch))
    recorder.close()
    return path


def _replay(path: Path, sender: FakeSender, clock: ManualClock, **options: Any) -> None:
    options = {"times": "shift", "pace": "fast", "queue_bytes": 1 << 20, "timeout_s": 1.0} | options
    replay(path, sender, clock, threading.Event(), **options)  # type: ignore[arg-type]


def test_shifted_times_end_now(tmp_path: Path) -> None:
    path = _recording(tmp_path / "a", *(_batch(number) for number in range(3)))
    sender, clock = FakeSender(), ManualClock()
    _replay(path, sender, clock)
    now = clock.unix_ns()
    for number, batch in enumerate(sender.batches):
        end = now - (2 - number) * SECOND - 5
        for table in (batch.opens, batch.closes, batch.transfers, batch.drops):
            assert table.end_ns.tolist() == [end]
        assert batch.requests.end_ns.tolist() == [end, end]
        assert batch.requests.start_ns.tolist() == [end - 3, end - 3]
        assert batch.requests.first_byte_ns.tolist() == [end - 1, UNMEASURED_U64]
        assert batch.header.first_event_ns == batch.header.last_event_ns == end
        assert batch.header.watermark_ns == end + 1
        assert batch.header.anchor_unix_ns == end + 5


def test_kept_times_stay(tmp_path: Path) -> None:
    path = _recording(tmp_path / "a", _batch(1))
    sender = FakeSender()
    _replay(path, sender, ManualClock(), times="keep")
    assert sender.batches[0].transfers.end_ns.tolist() == [START + SECOND - 5]


def test_figures_are_replayed_and_those_not_recorded_stay_out(tmp_path: Path) -> None:
    given = _batch(1)
    given.transfers.figures = np.arange(FIGURE_WIDTH, dtype="<u4").reshape(1, -1)
    path = _recording(tmp_path / "a", _batch(0), given)
    sender = FakeSender()
    _replay(path, sender, ManualClock())
    for batch, recorded in zip(sender.batches, (_batch(0), given), strict=True):
        recorded.header = batch.header
        for table in ("opens", "closes", "transfers", "drops"):
            getattr(recorded, table).end_ns = getattr(batch, table).end_ns
        for name in ("start_ns", "first_byte_ns", "end_ns"):
            setattr(recorded.requests, name, getattr(batch.requests, name))
        assert encode_batch(batch) == encode_batch(recorded)
    assert sender.batches[1].transfers.figures.tolist() == [list(range(FIGURE_WIDTH))]


def test_a_replay_is_a_new_run_numbered_from_zero_and_ends_with_a_final_batch(
    tmp_path: Path,
) -> None:
    path = _recording(tmp_path / "a", _batch(7), _batch(9), _batch(4, "other"))
    sender = FakeSender()
    _replay(path, sender, ManualClock())
    headers = [batch.header for batch in sender.batches]
    assert [header.sequence for header in headers] == [0, 1, 0]
    assert headers[0].run_id == headers[1].run_id != headers[2].run_id
    assert "old" not in {header.run_id for header in headers}
    assert [header.final for header in headers] == [False, False, True]


def test_the_recorded_pace_waits_for_each_batch(tmp_path: Path) -> None:
    path = _recording(tmp_path / "a", _batch(0), _batch(1))
    sender, clock = FakeSender(), ManualClock()
    began = clock.unix_ns()
    sent_at: list[int] = []

    def poll() -> None:
        clock.advance(0.25)

    original = sender.offer

    def offer(*arguments: Any) -> bool:
        sent_at.append(clock.unix_ns() - began)
        return original(*arguments)

    sender.poll, sender.offer = poll, offer  # type: ignore[method-assign]
    _replay(path, sender, clock, pace="recorded")
    assert sent_at == [0, SECOND]
    assert sender.batches[0].header.anchor_unix_ns == began


def test_a_damaged_recording_sends_nothing(tmp_path: Path) -> None:
    path = _recording(tmp_path / "a", _batch(0), _batch(1))
    path.write_bytes(path.read_bytes()[:-3])
    sender = FakeSender()
    with pytest.raises(DecodeError, match="ends in the middle of message 2"):
        _replay(path, sender, ManualClock())
    assert sender.batches == []


def test_frames_that_hold_no_batch_and_empty_recordings_are_errors(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a")
    recorder.write(b"\xff\xff")
    recorder.close()
    with pytest.raises(DecodeError, match="no EventBatch"):
        survey(tmp_path / "a")
    Recorder(tmp_path / "b").close()
    with pytest.raises(DecodeError, match="empty"):
        survey(tmp_path / "b")


def test_a_dead_kafka_is_an_error(tmp_path: Path) -> None:
    path = _recording(tmp_path / "a", _batch(0))
    with pytest.raises(TransportError, match="did not take 1 batches"):
        _replay(path, FakeSender(unreachable=True), ManualClock())
