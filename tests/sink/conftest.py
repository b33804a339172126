"""An engine of its own for every test that asks for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from schemas.clock import ManualClock
from sink.config import SinkConfig
from sink.ddl import apply_schema
from sink.store import Store
from sink.writer import BlockWriter, Retry
from tests.requirements import require
from tests.sink.blocks import MINUTE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def config(tmp_path: Path) -> SinkConfig:
    return SinkConfig(url=f"chdb://{tmp_path}/engine")


@pytest.fixture
def empty_store(config: SinkConfig) -> Iterator[Store]:
    require("clickhouse")
    store = Store.connect(config)
    yield store
    store.close()


@pytest.fixture
def store(empty_store: Store) -> Store:
    assert apply_schema(empty_store)
    return empty_store


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now_unix_ns=(MINUTE_S + 300) * 1_000_000_000)


def no_wait(seconds: float) -> None:
    raise AssertionError(f"something had to be repeated after {seconds} s")


@pytest.fixture
def writer(store: Store, clock: ManualClock) -> BlockWriter:
    writer = BlockWriter(store, Retry(no_wait, 0.01, 0.01), clock, "epoch")
    writer.assign([0])
    return writer
