from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest

from collector.config import CollectorConfig, allowed_twins, object_path, stages_path
from schemas.config import load_file
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
    assert stages_path().is_file()


def test_the_ways_to_hook_functions_are_a_choice() -> None:
    found = {
        choice: allowed_twins(CollectorConfig.load({}, {}, {"stages": choice}))
        for choice in ("auto", "fentry", "kprobe", "tracepoint", "off")
    }
    assert found == {
        "auto": ("fentry", "kprobe"),
        "fentry": ("fentry",),
        "kprobe": ("kprobe",),
        "tracepoint": (),
        "off": (),
    }
    with pytest.raises(ConfigError, match=r"collector\.stages: 'some' is not one of auto"):
        CollectorConfig.load({"collector": {"stages": "some"}}, {}, {})
    assert CollectorConfig.load({}, {"PODWIRE_COLLECTOR_STAGES": "off"}, {}).stages == "off"


def test_off_needs_no_quotes_in_a_file(tmp_path: Path) -> None:
    """YAML reads a bare ``off`` as false."""
    path = tmp_path / "podwire.yaml"
    path.write_text("collector:\n  stages: off\n")
    assert CollectorConfig.load(load_file(path), {}, {}).stages == "off"
    path.write_text("collector:\n  stages: on\n")
    with pytest.raises(ConfigError, match=r"collector\.stages"):
        CollectorConfig.load(load_file(path), {}, {})


def test_an_unsupported_machine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UnsupportedFeature, match="architecture riscv64: objects exist for x86_64"):
        object_path(CollectorConfig())
    with pytest.raises(UnsupportedFeature, match="architecture riscv64"):
        stages_path()


def test_a_missing_object_says_which(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"collector\.object_file"):
        object_path(CollectorConfig(object_file=str(tmp_path / "none.o")))
