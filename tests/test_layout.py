from __future__ import annotations

import importlib
import socket
from pathlib import Path

import pytest

from tests.conftest import NetworkGuard
from tests.requirements import REQUIREMENTS, missing, require

ROOT = Path(__file__).parents[1]
PACKAGES = ("collector", "streams", "sink", "schemas", "deploy")


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_come_from_the_repository(name: str) -> None:
    """A stray installed copy would be tested instead of the code at hand."""
    path = importlib.import_module(name).__file__
    assert path is not None
    assert Path(path) == ROOT / name / "__init__.py"


@pytest.mark.parametrize("folder", sorted(p.parent for p in (ROOT / "tests").rglob("test_*.py")))
def test_every_test_folder_is_a_package(folder: Path) -> None:
    assert (folder / "__init__.py").exists()


def test_missing_requirement_skips_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REQUIREMENTS, "bpf", lambda: "no kernel today")
    monkeypatch.delenv("PODWIRE_REQUIRE", raising=False)
    missing.cache_clear()
    try:
        with pytest.raises(pytest.skip.Exception, match="needs bpf: no kernel today"):
            require("bpf")
        monkeypatch.setenv("PODWIRE_REQUIRE", "kafka,bpf")
        with pytest.raises(pytest.fail.Exception, match="demanded by PODWIRE_REQUIRE"):
            require("bpf")
    finally:
        missing.cache_clear()


def test_unknown_requirement_is_an_error() -> None:
    with pytest.raises(KeyError):
        require("moon")


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("socket.connect", (None, ("192.0.2.1", 9092))),
        ("socket.connect", (None, ("2001:db8::1", 9092, 0, 0))),
        ("socket.sendto", (None, ("198.51.100.7", 53))),
        ("socket.getaddrinfo", ("kafka.example.org", 9092)),
    ],
)
def test_guard_refuses_what_leaves_the_machine(event: str, arguments: tuple[object, ...]) -> None:
    guard = NetworkGuard()
    guard.armed = True
    with pytest.raises(PermissionError, match="tests stay on this machine"):
        guard(event, arguments)
    assert len(guard.violations) == 1


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("socket.connect", (None, ("127.0.0.9", 9092))),
        ("socket.connect", (None, ("::1", 9092, 0, 0))),
        ("socket.connect", (None, "/run/some.socket")),
        ("socket.getaddrinfo", ("localhost", 80)),
        ("open", ("/etc/hosts",)),
    ],
)
def test_guard_lets_local_traffic_pass(event: str, arguments: tuple[object, ...]) -> None:
    guard = NetworkGuard()
    guard.armed = True
    guard(event, arguments)
    assert guard.violations == []


def test_guard_watches_the_running_test(live_guard: NetworkGuard) -> None:
    with socket.socket() as outgoing, pytest.raises(PermissionError):
        outgoing.connect(("192.0.2.1", 9))
    assert live_guard.violations == ["socket.connect to 192.0.2.1:9"]
    live_guard.violations.clear()  # this one was meant


@pytest.fixture
def live_guard() -> NetworkGuard:
    from tests import conftest

    return conftest._guard
