"""What the parts say about themselves: their ``/metrics`` pages, summed over restarts."""

from __future__ import annotations

import http.client
import threading
import time
from typing import TYPE_CHECKING, Final

from prometheus_client.parser import text_string_to_metric_families

from deploy.local.ports import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LOSS_REASONS", "Figures", "Readings", "read_metrics"]

Sample = tuple[str, tuple[tuple[str, str], ...]]

EVENT_KINDS: Final = ("open", "close", "transfer")
"""Kinds of the ledger that are events on their way to SQL; the others only keep the books."""

LOSS_REASONS: Final = frozenset(
    {
        "ring_full",
        "map_full",
        "unannounced",
        "unpaired",
        "malformed",
        "unknown_connection",
        "undelivered",
        "sequence_gap",
        "abandoned",
        "undecodable",
    }
)
"""Ledger reasons that mean an event never reached SQL although it should have."""

PERIOD_S: Final = 1.0


def read_metrics(port: int, timeout_s: float = 0.5) -> str | None:
    """Return the metrics page on this loopback port, or None while nobody answers."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_s)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body.decode(errors="replace") if response.status == 200 else None


class Readings:
    """Counters and gauges of one part. A counter that went back belongs to a new process."""

    def __init__(self) -> None:
        self._last: dict[Sample, float] = {}
        self._before: dict[Sample, float] = {}
        self._gauges: dict[str, float] = {}

    def update(self, page: str) -> None:
        """Take in a metrics page."""
        seen: dict[Sample, float] = {}
        gauges: dict[str, float] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if family.type == "counter" and sample.name.endswith("_total"):
                    seen[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
                elif family.type == "gauge":
                    gauges[sample.name] = gauges.get(sample.name, 0.0) + sample.value
        if any(seen.get(key, 0.0) < value for key, value in self._last.items()):
            for key, value in self._last.items():
                self._before[key] = self._before.get(key, 0.0) + value
        self._last = seen
        self._gauges = gauges

    def total(self, name: str, **labels: str) -> int:
        """Sum of all samples of a counter that carry these labels."""
        wanted = set(labels.items())
        return int(
            sum(
                value
                for source in (self._before, self._last)
                for (found, pairs), value in source.items()
                if found == name and wanted <= set(pairs)
            )
        )

    def by_label(self, name: str, label: str, **labels: str) -> dict[str, int]:
        """Sums of a counter per value of one label."""
        wanted = set(labels.items())
        sums: dict[str, int] = {}
        for source in (self._before, self._last):
            for (found, pairs), value in source.items():
                if found == name and wanted <= set(pairs):
                    key = dict(pairs).get(label, "")
                    sums[key] = sums.get(key, 0) + int(value)
        return sums

    def gauge(self, name: str) -> int:
        """Last value of a gauge, summed over its labels."""
        return int(self._gauges.get(name, 0.0))


class Figures:
    """The numbers of the status line, read from all parts by a thread of their own."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = dict(ports)
        self._readings = {name: Readings() for name in ports}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="figures", daemon=True)
        # Events seen by the start of each minute, and the start of the first minute not in SQL.
        self._marks: dict[int, int] = {}
        self._unstored_from = 0
        self._last_minutes = 0
        self._own_losses: dict[str, int] = {}

    def start(self) -> None:
        """Begin to read every second."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def refresh(self) -> None:
        """Read every part once, now."""
        for name, port in self._ports.items():
            page = read_metrics(port)
            if page is not None:
                with self._lock:
                    self._readings[name].update(page)
        self._mark(int(time.time()) // 60 * 60)

    def _mark(self, minute: int) -> None:
        # A minute is stored within seconds after its end: what is stored now ended before.
        self._marks.setdefault(minute, self.events)
        if self.minutes > self._last_minutes:
            self._last_minutes = self.minutes
            self._unstored_from = minute

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self.refresh()

    @property
    def events(self) -> int:
        """Event rows that the collector handed to Kafka."""
        with self._lock:
            return sum(
                self._readings["collector"].total(
                    "podwire_ledger_total", stage="collector", kind=kind, outcome="out"
                )
                for kind in EVENT_KINDS
            )

    @property
    def batches(self) -> int:
        """Batches that Kafka took, empty ones included."""
        with self._lock:
            return self._readings["collector"].total(
                "podwire_collector_batches_total", outcome="delivered"
            )

    def lose(self, reason: str, count: int) -> None:
        """Count events that no part could count because they were lost between them."""
        self._own_losses[reason] = self._own_losses.get(reason, 0) + count

    @property
    def counted(self) -> int:
        """Events that reached the workers, each once."""
        with self._lock:
            return sum(
                sign
                * self._readings["streams"].total(
                    "podwire_ledger_total", stage="streams", kind=kind, outcome=outcome
                )
                for kind in EVENT_KINDS
                for outcome, sign in (("in", 1), ("duplicate", -1))
            )

    @property
    def unstored(self) -> int:
        """About how many events are in minutes that have not reached SQL yet."""
        return self.events - self._marks.get(self._unstored_from, 0)

    @property
    def connections(self) -> int:
        """Connections open now, as far as the collector knows."""
        with self._lock:
            return self._readings["collector"].gauge("podwire_collector_connections")

    @property
    def minutes(self) -> int:
        """Blocks, one per minute and late arrival, that are in SQL."""
        with self._lock:
            return self._readings["sink"].total("podwire_sink_blocks_total", outcome="inserted")

    @property
    def losses(self) -> dict[str, int]:
        """Events lost, by reason; what never should have been counted is not among them."""
        sums = dict(self._own_losses)
        with self._lock:
            for readings in self._readings.values():
                counts = readings.by_label("podwire_ledger_total", "outcome")
                for reason, count in counts.items():
                    if reason in LOSS_REASONS and count:
                        sums[reason] = sums.get(reason, 0) + count
        return sums

    @property
    def dead_letters(self) -> int:
        """Messages that could not be decoded."""
        with self._lock:
            return sum(
                readings.total("podwire_dead_letters_total") for readings in self._readings.values()
            )
