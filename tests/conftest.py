"""Rules for every test: requirements by marker, no network, no settings from outside."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import settings

from tests.requirements import REQUIREMENTS, require

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["tests.support.fixtures"]

# What is true of an example does not depend on how busy the machine is.
settings.register_profile("patient", settings(), deadline=None)
settings.load_profile("patient")

_FIXTURE_MARKERS: Final = {"kafka_broker": "kafka", "new_kafka_broker": "kafka"}
_LOCAL_NAMES: Final = frozenset({None, "", "localhost", socket.gethostname()})
_ADDRESS_EVENTS: Final = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})


class NetworkGuard:
    """Refuses connections that leave this machine and remembers them.

    Python's audit events reach it whatever library opens the socket. Code that swallows the
    refusal is caught too, because the test fails at its end.
    """

    def __init__(self) -> None:
        self.armed = False
        self.violations: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Look at one audit event."""
        if not self.armed:
            return
        if event in _ADDRESS_EVENTS:
            address = arguments[1]
            if isinstance(address, tuple) and not _is_local(address[0]):
                self._refuse(f"{event} to {address[0]}:{address[1]}")
        elif event == "socket.getaddrinfo" and not _is_local(arguments[0]):
            self._refuse(f"look-up of {arguments[0]!r}")

    def _refuse(self, what: str) -> None:
        self.violations.append(what)
        raise PermissionError(f"{what}: tests stay on this machine")


def _is_local(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in _LOCAL_NAMES:
        return True
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


_guard = NetworkGuard()
sys.addaudithook(_guard)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for the broker is a Kafka test, marked or not."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in _FIXTURE_MARKERS:
                item.add_marker(_FIXTURE_MARKERS[fixture])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check what the test's markers require before any fixture is made."""
    for name in REQUIREMENTS:
        if item.get_closest_marker(name):
            require(name)


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the test on this machine; tests of the kernel use addresses in their namespaces."""
    if request.node.get_closest_marker("bpf") or request.node.get_closest_marker("vm"):
        yield
        return
    _guard.violations.clear()
    _guard.armed = True
    yield
    _guard.armed = False
    if _guard.violations:
        pytest.fail(f"left this machine: {', '.join(_guard.violations)}", pytrace=False)


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """``PODWIRE_*`` variables of the caller change no test."""
    for name in list(os.environ):
        if name.startswith("PODWIRE_") and name != "PODWIRE_REQUIRE":
            monkeypatch.delenv(name)
