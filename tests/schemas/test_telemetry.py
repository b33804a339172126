from __future__ import annotations

import logging
import re
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from schemas import telemetry
from schemas.errors import ConfigError
from schemas.telemetry import METRICS, Health, RateLimited, TelemetryServer, counter, gauge, served

ROOT = Path(__file__).parents[2]
COMPONENTS = ("collector", "deploy", "schemas", "sink", "streams")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that telemetry sees."""
    state = SimpleNamespace(value=100.0)
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=lambda: state.value))
    return state


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_names_follow_prometheus() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"podwire_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert metric.help
        assert not metric.help.endswith(".")


def test_the_code_asks_only_for_declared_metrics_of_the_right_type() -> None:
    declared = {metric.name: metric.type for metric in METRICS}
    asked = re.compile(r"""\b(counter|gauge)\(\s*"([^"]+)"\s*\)""")
    for component in COMPONENTS:
        for path in (ROOT / component).rglob("*.py"):
            for type_, name in asked.findall(path.read_text()):
                assert declared.get(name) == type_, f"{path}: {type_} {name}"


def test_undeclared_names_are_an_error() -> None:
    with pytest.raises(KeyError):
        counter("podwire_surprises_total")


def test_asking_twice_gives_the_same_metric() -> None:
    assert counter("podwire_dead_letters_total") is counter("podwire_dead_letters_total")
    assert gauge("podwire_collector_connections") is gauge("podwire_collector_connections")


def test_endpoints_answer_what_probes_and_prometheus_ask() -> None:
    counter("podwire_errors_total").labels("test", "Surprise").inc(3)
    health = Health()
    server = TelemetryServer(health, 0)
    server.start()
    try:
        assert get(server.port, "/healthz") == (200, "ok\n")
        assert get(server.port, "/readyz")[0] == 503
        health.progress()
        assert get(server.port, "/readyz") == (200, "ready\n")
        assert get(server.port, "/nothing")[0] == 404
        status, page = get(server.port, "/metrics?name=x")
    finally:
        server.stop()
    assert status == 200
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["podwire_errors_total", ("test", "Surprise")] == 3


@pytest.mark.parametrize("host", ["::", "::1"])
def test_clusters_without_ipv4_are_served(host: str) -> None:
    server = TelemetryServer(Health(), 0, host)
    server.start()
    try:
        with urllib.request.urlopen(f"http://[::1]:{server.port}/healthz", timeout=5) as page:
            assert page.read() == b"ok\n"
    finally:
        server.stop()


def test_a_port_in_use_is_refused_at_once() -> None:
    first = TelemetryServer(Health(), 0)
    first.start()
    try:
        with pytest.raises(OSError, match="in use"):
            TelemetryServer(Health(), first.port)
        config = SimpleNamespace(
            SECTION="sink", telemetry_port=first.port, telemetry_host="127.0.0.1"
        )
        with (
            pytest.raises(ConfigError, match=r"sink\.telemetry_port: .*in use"),
            served(config, Health()),
        ):
            pass
    finally:
        first.stop()


def test_health_needs_recent_progress(now: SimpleNamespace) -> None:
    health = Health(timeout_s=10)
    assert not health.ready()
    health.progress()
    now.value += 9
    assert health.ready()
    now.value += 2
    assert not health.ready()


def test_repeated_warnings_are_held_back_and_counted(
    now: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    limited = RateLimited(logging.getLogger("podwire.test"), period_s=10)
    for number in range(5):
        limited.warning("lost %s", number)
    limited.warning("something else")
    now.value += 11
    limited.warning("lost %s", 6)
    assert [record.getMessage() for record in caplog.records] == [
        "lost 0",
        "something else",
        "lost 6 (4 more like this held back)",
    ]
