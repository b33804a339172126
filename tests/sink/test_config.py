"""Defaults are valid, mistakes name their key."""

from __future__ import annotations

import pytest

from schemas.errors import ConfigError
from sink.config import SinkConfig


def test_the_defaults_are_valid():
    SinkConfig.load({}, {}).check()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"url": "ftp://x"}, "sink.url"),
        ({"url": "chdb:relative"}, "sink.url"),
        ({"url": "chdb:///x", "cluster": "main"}, "sink.cluster"),
        ({"url": "http://x", "sql_port": 8123}, "sink.sql_port"),
        ({"database": "a b"}, "sink.database"),
        ({"database": ""}, "sink.database"),
        ({"cluster": "a'b"}, "sink.cluster"),
        ({"retention_days": 2}, "sink.retention_days"),
        ({"retention_days": 91}, "sink.retention_hourly_days"),
        ({"retention_days": 0}, "sink.retention_hourly_days"),
        ({"retention_hourly_days": 401}, "sink.retention_daily_days"),
        ({"retention_hourly_days": 0}, "sink.retention_daily_days"),
    ],
)
def test_a_mistake_names_its_key(values, key):
    with pytest.raises(ConfigError) as caught:
        SinkConfig(**values).check()
    assert caught.value.key == key


def test_retention_may_be_off():
    off = dict.fromkeys(("retention_days", "retention_hourly_days", "retention_daily_days"), 0)
    SinkConfig(**off).check()
    SinkConfig(retention_hourly_days=0, retention_daily_days=0).check()


def test_the_password_is_masked():
    assert "hunter2" not in repr(SinkConfig(password="hunter2"))
