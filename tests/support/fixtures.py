"""Fixtures that any test may ask for."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.requirements import require
from tests.support.kafka import KafkaBroker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """One Kafka for the whole run, without topics. Use names of your own; do not stop it."""
    require("kafka")
    with KafkaBroker.started(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def new_kafka_broker(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., KafkaBroker]]:
    """Starts brokers that belong to this test alone and may be killed; takes broker settings."""
    require("kafka")
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> KafkaBroker:
            directory = tmp_path_factory.mktemp("kafka")
            return stack.enter_context(KafkaBroker.started(directory, **options))

        yield start
