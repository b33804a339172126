"""The thread that looks at files: it ends when it is to, and else goes on whatever happens."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from collector.tls import watcher as module
from collector.tls.watcher import Watcher
from schemas.telemetry import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

IN_TIME_S = 20


class FakeProbes:
    """Looks that fail, but each second one, or that go on until they are enough."""

    def __init__(self, *, is_endless: bool = False) -> None:
        self.files: list[Any] = []
        self.failed: dict[str, int] = {}
        self.late = self.looks = 0
        self.is_endless = is_endless
        self.begun = threading.Event()
        self.was_enough = False

    def look_everywhere(self, is_enough: Callable[[], bool]) -> None:
        self.looks += 1
        self.begun.set()
        until_s = time.monotonic() + IN_TIME_S
        while self.is_endless and not self.was_enough and time.monotonic() < until_s:
            self.was_enough = is_enough()
        if self.looks % 2:
            raise MemoryError


def start(folder: Path, probes: FakeProbes) -> Watcher:
    watcher, made = Watcher(folder), probes
    replaced: Any = made
    watcher.probes = replaced
    watcher.start()
    return watcher


def test_an_error_is_counted_and_told_of_once_and_the_next_look_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def counted() -> float:
        labels = {"component": "collector", "error": "tls"}
        return REGISTRY.get_sample_value("podwire_errors_total", labels) or 0.0

    monkeypatch.setattr(module, "_EVERY_S", 0.001)
    before, probes = counted(), FakeProbes()
    watcher = start(tmp_path, probes)
    until_s = time.monotonic() + IN_TIME_S
    while probes.looks < 6 and time.monotonic() < until_s:
        time.sleep(0.001)
    watcher.stop()
    assert probes.looks >= 6
    assert counted() - before == (probes.looks + 1) // 2
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_who_stops_it_waits_for_one_file_and_not_for_all(tmp_path: Path) -> None:
    probes = FakeProbes(is_endless=True)
    watcher = start(tmp_path, probes)
    assert probes.begun.wait(IN_TIME_S)
    watcher.stop()
    assert probes.was_enough
