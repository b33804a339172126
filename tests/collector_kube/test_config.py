from __future__ import annotations

import pytest

from collector.kube.config import KubeConfig
from schemas.errors import ConfigError


def test_defaults_are_valid() -> None:
    config = KubeConfig.load(environment={})
    assert config == KubeConfig()
    assert config.source == "auto"
    assert config.resync_interval_s == 300.0
    assert config.keep_deleted_s == 3600.0


def test_sources_of_settings() -> None:
    config = KubeConfig.load(
        {"kube": {"namespaces": ["a", "b"], "page_size": 100}},
        {"PODWIRE_KUBE_PAGE_SIZE": "200"},
        {"from_file": "/tmp/kube.json"},
    )
    assert config.namespaces == ("a", "b")
    assert config.page_size == 200
    assert config.from_file == "/tmp/kube.json"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "etcd"),
        ("page_size", 0),
        ("resync_interval_s", -1),
        ("keep_deleted_s", "long"),
        ("telemetry_port", 70_000),
    ],
)
def test_wrong_values_name_their_key(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^kube.{name}: "):
        KubeConfig.load({"kube": {name: value}}, {})
