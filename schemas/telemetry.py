"""Prometheus metrics of podwire itself, declared once, and the health endpoint.

Every metric any component exports is a row of `METRICS`; asking for another name is an error at
import. ``/metrics``, ``/healthz`` (the process runs) and ``/readyz`` (it does its work) are served
on loopback unless configured otherwise.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final, Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from schemas.errors import ConfigError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator

__all__ = ["METRICS", "Health", "RateLimited", "TelemetryServer", "counter", "gauge", "served"]

REGISTRY: Final = CollectorRegistry()


@dataclass(frozen=True, slots=True)
class Metric:
    """One exported time series family."""

    name: str
    type: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    help: str


METRICS: Final[tuple[Metric, ...]] = (
    Metric("podwire_ledger_total", "counter", ("stage", "kind", "outcome"), "Events by outcome: in, out, or the reason they were dropped"),
    Metric("podwire_errors_total", "counter", ("component", "error"), "Errors that were survived"),
    # collector
    Metric("podwire_collector_batches_total", "counter", ("outcome",), "Event batches: sent, delivered or failed"),
    Metric("podwire_collector_batch_bytes_total", "counter", (), "Bytes of event batches handed to Kafka"),
    Metric("podwire_collector_connections", "gauge", (), "Connections known now"),
    Metric("podwire_collector_conversations", "gauge", (), "Connections whose messages are parsed now"),
    Metric("podwire_collector_conversation_losses_total", "counter", ("outcome",), "gap: bytes that a parser needed and that were not captured; given_up: connections that gave way to newer ones"),
    Metric("podwire_collector_ring_used_bytes", "gauge", ("ring",), "Bytes found waiting in the ring at the last drain"),
    Metric("podwire_collector_ring_missing_records", "gauge", ("ring",), "Records that the kernel numbered and the ring has not given yet; 0 but for moments"),
    Metric("podwire_collector_clock_step_ns", "gauge", (), "How far the two clocks moved apart at the last re-sync"),
    Metric("podwire_collector_hooks", "gauge", ("state",), "BPF hooks by state: attached or missing"),
    Metric("podwire_collector_program_skipped_total", "counter", ("program",), "Runs of a BPF program that the kernel left out: it was running on that CPU already, or of a kprobe (from 6.7 on), another kprobe was, or more calls were under way than it can see return"),
    Metric("podwire_collector_packets_unseen_in_ip_total", "counter", (), "Packets of which layer 3 has only the time from the device on, or, of received ones, none: the kernel left out the kprobes there, as it does in some interrupts"),
    Metric("podwire_collector_translations", "gauge", (), "Translated connections known from conntrack"),
    Metric("podwire_collector_conntrack_losses_total", "counter", ("reason",), "overflow: times that the kernel had no room for events, and all was read again; untold: times that reading all again found what no event had told; evicted: translations that gave way to newer ones"),
    Metric("podwire_collector_tls_files", "gauge", (), "Files of TLS libraries that have probes"),
    Metric("podwire_collector_tls_files_failed_total", "counter", ("reason",), "Files with code that could not be looked at: gone (with its process, or deleted), forbidden (needs CAP_SYS_PTRACE), refused by the kernel, a TLS library by its name whose functions have none (no_functions), Java (java), one whose probes have no room beside those of others (too_many), a Go program whose functions return at more than 64 places (too_many_returns), an error while it was looked at (unexpected), or no ELF file that can be read"),
    Metric("podwire_collector_tls_processes_late_total", "counter", (), "Processes seen to have a TLS library before it had probes: what their first connections said may be missing"),
    Metric("podwire_collector_tls_hellos_lost_total", "counter", ("reason",), "Hellos of TLS whose server name or version is not known: cut (a part was not captured, see kernel drops of payload), malformed, ended (with its connection, before it was whole), or crowded (gave way to newer ones)"),
    Metric("podwire_collector_tls_undecided_total", "counter", ("reason",), "Connections inside TLS of which the first bytes were told before it was known whether they can be read: late (they were silent, or their process not known, for ten seconds) or crowded (too many at once)"),
    # kube
    Metric("podwire_kube_objects", "gauge", ("kind",), "Kubernetes objects known now"),
    Metric("podwire_kube_published_total", "counter", ("kind", "change"), "Metadata records published"),
    Metric("podwire_kube_relists_total", "counter", ("kind", "reason"), "Full lists read from the API server"),
    # streams
    Metric("podwire_streams_batches_total", "counter", (), "Event batches read"),
    Metric("podwire_streams_blocks_total", "counter", ("outcome",), "Metrics blocks: emitted or late (a further block of a minute)"),
    Metric("podwire_streams_rows_total", "counter", ("table",), "Rows emitted"),
    Metric("podwire_streams_open_minutes", "gauge", (), "Minutes not yet emitted"),
    Metric("podwire_streams_committed_age_seconds", "gauge", ("partition",), "Age of the oldest event behind the committed offset"),
    Metric("podwire_streams_metadata_objects", "gauge", ("kind",), "Kubernetes objects in the cache"),
    Metric("podwire_streams_metadata_waits_total", "counter", ("outcome",), "Batches that waited for metadata: resolved or missed"),
    Metric("podwire_streams_part_exceeds_whole_total", "counter", ("stage",), "Stage values of reads and writes that are in no histogram: a part was greater than its whole"),
    Metric("podwire_streams_endpoints_other_total", "counter", (), "Calls counted under the endpoint {other}: their service, or all of them together, have too many endpoints; see streams.max_endpoints"),
    Metric("podwire_streams_access_log_messages_total", "counter", (), "Messages written to podwire.access-log.v1"),
    # sink
    Metric("podwire_sink_blocks_total", "counter", ("outcome",), "Metrics blocks: inserted, duplicate or abandoned"),
    Metric("podwire_sink_rows_total", "counter", ("table",), "Rows inserted"),
    Metric("podwire_sink_calls_total", "counter", ("outcome",), "HTTP calls of the access log: stored, sampled (left out), pod_internal or duplicate"),
    Metric("podwire_sink_insert_seconds_total", "counter", (), "Time spent in inserts"),
    Metric("podwire_sink_retries_total", "counter", ("reason",), "Inserts tried again"),
    Metric("podwire_sink_queries_total", "counter", ("outcome",), "Queries answered by the SQL endpoint"),
    # forwarder
    Metric("podwire_forwarder_logs_total", "counter", ("outcome",), "Logs: in (read), sent, or why they were not: see README. repeated: sent once more, besides"),
    Metric("podwire_forwarder_waiting_logs", "gauge", (), "Logs that were read and have not left: in less sent and dropped"),
    Metric("podwire_forwarder_waiting_bytes", "gauge", (), "Bytes of streams that wait for an OAP"),
    Metric("podwire_forwarder_streams_total", "counter", ("outcome",), "Streams: sent, or the gRPC code that they ended with"),
    Metric("podwire_forwarder_bytes_total", "counter", (), "Bytes of streams that an OAP answered"),
    Metric("podwire_forwarder_failing_seconds", "gauge", (), "For how long no stream got through; 0 if the last one did"),
    Metric("podwire_dead_letters_total", "counter", ("component", "topic"), "Messages sent to the dead letter topic"),
)  # fmt: skip

_DECLARED = {metric.name: metric for metric in METRICS}
_CREATED: dict[str, Counter | Gauge] = {}


def counter(name: str) -> Counter:
    """Return the counter declared under this name."""
    created = _created(name)
    assert isinstance(created, Counter)
    return created


def gauge(name: str) -> Gauge:
    """Return the gauge declared under this name."""
    created = _created(name)
    assert isinstance(created, Gauge)
    return created


def _created(name: str) -> Counter | Gauge:
    if name not in _CREATED:
        metric = _DECLARED[name]
        kind = Counter if metric.type == "counter" else Gauge
        _CREATED[name] = kind(metric.name, metric.help, metric.labels, registry=REGISTRY)
    return _CREATED[name]


class Health:
    """Whether the component does its work: the last sign of progress is recent enough."""

    def __init__(self, timeout_s: float = 60.0) -> None:
        self._timeout_s = timeout_s
        self._last_progress: float | None = None

    def progress(self) -> None:
        """Say that work was done just now."""
        self._last_progress = time.monotonic()

    def ready(self) -> bool:
        """Whether there was progress within the time-out."""
        last = self._last_progress
        return last is not None and time.monotonic() - last < self._timeout_s


class TelemetryServer:
    """Serves ``/metrics``, ``/healthz`` and ``/readyz`` from a daemon thread.

    Raises:
        OSError: If the address cannot be served, for example because the port is in use. The
            caller knows which setting to name.
    """

    def __init__(self, health: Health, port: int, host: str = "127.0.0.1") -> None:
        def page(path: str) -> tuple[int, bytes]:
            if path == "/metrics":
                return 200, generate_latest(REGISTRY)
            if path == "/healthz":
                return 200, b"ok\n"
            if path == "/readyz":
                return (200, b"ready\n") if health.ready() else (503, b"no recent progress\n")
            return 404, b"try /metrics, /healthz or /readyz\n"

        self._server = _Server((host, port), _handler(page))
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="telemetry", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()


class Address(Protocol):
    """The settings that every component has for its telemetry."""

    @property
    def SECTION(self) -> str:
        """Section of the configuration file."""
        ...

    @property
    def telemetry_port(self) -> int:
        """Port; 0 is off."""
        ...

    @property
    def telemetry_host(self) -> str:
        """Address to listen on."""
        ...


@contextmanager
def served(config: Address, health: Health) -> Iterator[None]:
    """Serve telemetry where the configuration says, for the length of a ``with`` block.

    Raises:
        ConfigError: If the address cannot be served, for example because the port is in use.
    """
    if not config.telemetry_port:
        yield
        return
    try:
        server = TelemetryServer(health, config.telemetry_port, config.telemetry_host)
    except OSError as error:
        address = f"{config.telemetry_host}:{config.telemetry_port}"
        reason = f"{address} cannot be used: {error.strerror}"
        raise ConfigError(f"{config.SECTION}.telemetry_port", reason) from error
    server.start()
    try:
        yield
    finally:
        server.stop()


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        # "::" is every address of both families, unless the machine is set up otherwise.
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that goes away before its answer is its own business; the others are counted.
        error = sys.exception()
        counter("podwire_errors_total").labels("telemetry", type(error).__name__).inc()


def _handler(page: Callable[[str], tuple[int, bytes]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = page(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # quiet by design
            pass

    return Handler


class RateLimited:
    """A logger for errors that repeat: one line per period, with the number held back."""

    def __init__(self, logger: logging.Logger, period_s: float = 10.0) -> None:
        self._logger = logger
        self._period_s = period_s
        self._last: dict[str, float] = {}
        self._held: dict[str, int] = {}

    def warning(self, message: str, *args: object) -> None:
        """Log at most once per period and message."""
        now = time.monotonic()
        if now - self._last.get(message, -self._period_s) < self._period_s:
            self._held[message] = self._held.get(message, 0) + 1
            return
        held = self._held.pop(message, 0)
        self._last[message] = now
        suffix = f" ({held} more like this held back)" if held else ""
        self._logger.warning("%s%s", message % args if args else message, suffix)
