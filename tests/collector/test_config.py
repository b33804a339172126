from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest

from collector.config import CollectorConfig, object_path
from schemas.errors import ConfigError, UnsupportedFeature

if TYPE_CHECKING:
    from pathlib import Path


def test_the_defaults_are_valid() -> None:
    assert CollectorConfig.load({}, {}, {}) == CollectorConfig()


def test_settings_come_from_the_environment() -> None:
    config = CollectorConfig.load({}, {"PODWIRE_COLLECTOR_NODE": "n1"}, {})
    assert config.node == "n1"


def test_the_object_of_this_machine_exists() -> None:
    assert object_path(CollectorConfig()).is_file()


def test_an_unsupported_machine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UnsupportedFeature, match="architecture riscv64: objects exist for x86_64"):
        object_path(CollectorConfig())


def test_a_missing_object_says_which(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"collector\.object_file"):
        object_path(CollectorConfig(object_file=str(tmp_path / "none.o")))
