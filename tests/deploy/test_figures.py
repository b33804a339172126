from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from deploy.local.figures import LOSS_REASONS, Figures, Readings, read_metrics
from deploy.local.ports import free_ports
from schemas.ledger import REASONS
from schemas.telemetry import Health, TelemetryServer, counter


def page(**outcomes: float) -> str:
    registry = CollectorRegistry()
    labels = ("stage", "kind", "outcome")
    ledger = Counter("podwire_ledger_total", "", labels, registry=registry)
    for outcome, value in outcomes.items():
        ledger.labels("collector", "open", outcome).inc(value)
        ledger.labels("collector", "close", outcome).inc(1)
    gauge = Gauge("podwire_collector_connections", "", registry=registry)
    gauge.set(7)
    return generate_latest(registry).decode()


def total(readings: Readings) -> int:
    return readings.total("podwire_ledger_total", stage="collector", outcome="out")


def test_counters_are_summed_over_labels() -> None:
    readings = Readings()
    readings.update(page(out=10))
    assert total(readings) == 11
    assert readings.total("podwire_ledger_total", kind="open") == 10
    assert readings.gauge("podwire_collector_connections") == 7


def test_a_restarted_part_counts_on() -> None:
    readings = Readings()
    readings.update(page(out=10))
    readings.update(page(out=15))
    assert total(readings) == 16
    readings.update(page(out=2))
    assert total(readings) == 16 + 3
    readings.update(page(out=4))
    assert total(readings) == 16 + 5


def test_outcomes_by_label() -> None:
    readings = Readings()
    readings.update(page(out=10, ring_full=4))
    sums = readings.by_label("podwire_ledger_total", "outcome", stage="collector")
    assert sums == {"out": 11, "ring_full": 5}


def test_reasons_that_mean_loss_are_reasons_of_the_ledger() -> None:
    assert set(REASONS) >= LOSS_REASONS
    assert "pod_internal" not in LOSS_REASONS


def test_figures_read_the_pages_that_the_parts_serve() -> None:
    server = TelemetryServer(Health(), 0)
    server.start()
    closed = free_ports(1)[0]
    try:
        figures = Figures({"collector": server.port, "streams": closed, "sink": closed})
        before = counter("podwire_ledger_total").labels("collector", "open", "out")
        start = before._value.get()
        figures.refresh()
        seen = figures.events
        before.inc(5)
        counter("podwire_ledger_total").labels("kernel", "open", "ring_full").inc(2)
        figures.refresh()
        assert figures.events == seen + 5
        assert figures.losses["ring_full"] >= 2
        assert start >= 0
    finally:
        server.stop()
    assert read_metrics(closed) is None
