from __future__ import annotations

import pytest

from collector.kube.fields import Fields, ip_address, unix_ms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("FD00::000A", "fd00::a"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("10.0.0.256", ""),
        ("10.0.0.1/24", ""),
        ("node-a", ""),
        ("", ""),
    ],
)
def test_addresses_are_normalised(text: str, expected: str) -> None:
    assert ip_address(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1970-01-01T00:00:01Z", 1000),
        ("1970-01-01T01:00:01.5+01:00", 1500),
        ("1970-01-01T00:00:01", 1000),
        ("0001-01-01T00:00:00Z", 0),  # how Go writes no time
        ("0001-01-01T00:00:00+14:00", 0),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999),
        ("yesterday", 0),
        ("", 0),
        (5, 0),
        (None, 0),
    ],
)
def test_times(value: object, expected: int) -> None:
    assert unix_ms(value) == expected


def test_what_is_missing_is_no_problem_and_what_is_wrong_is_one() -> None:
    problems: list[str] = []
    fields = Fields({"null": None, "wrong": 1.5}, problems)
    for key in ("missing", "null"):
        assert fields.text(key) == ""
        assert fields.flag(key) is False
        assert fields.port(key) == 0
        assert fields.time_ms(key) == 0
        assert fields.texts(key) == []
        assert fields.labels(key) == {}
        assert fields.children(key) == []
        assert fields.child(key).text("x") == ""
    assert problems == []
    assert fields.text("wrong") == ""
    assert fields.flag("wrong", default=True) is True
    assert fields.port("wrong") == 0
    assert fields.time_ms("wrong") == 0
    assert fields.texts("wrong") == []
    assert fields.labels("wrong") == {}
    assert fields.child("wrong").text("x") == ""
    assert len(problems) == 7


def test_ports() -> None:
    problems: list[str] = []
    assert Fields({"port": 443}, problems).port("port") == 443
    for wrong in (-1, 65_536, True, "443"):
        assert Fields({"port": wrong}, problems).port("port") == 0
    assert len(problems) == 4


def test_addresses_come_once_and_in_order() -> None:
    problems: list[str] = []
    fields = Fields({"ips": ["10.0.0.2", "10.0.0.1", "10.0.0.2", ""]}, problems)
    assert fields.addresses("ips") == ["10.0.0.2", "10.0.0.1"]
    assert problems == []
