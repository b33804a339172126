"""Threads that send: each takes the oldest parcel and repeats it until it has left the buffer."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING

from schemas.telemetry import RateLimited, counter
from sink.oap.client import Rotation, SendError

if TYPE_CHECKING:
    from sink.oap.buffer import Buffer, Parcel
    from sink.oap.config import ForwarderConfig

__all__ = ["Senders"]

_IDLE_S = 0.5

log = logging.getLogger(__name__)
_limited = RateLimited(log)


class Senders:
    """The threads, and what they have in common: when an OAP last answered.

    Args:
        config: How many, and how they send.
        buffer: Where parcels come from.
    """

    def __init__(self, config: ForwarderConfig, buffer: Buffer) -> None:
        self._config = config
        self._buffer = buffer
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._last_success = 0.0
        self._failing_since = 0.0
        self._rotations = [
            Rotation(config, time.monotonic, random.Random()) for _ in range(config.streams)
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(rotation,), name=f"oap-{number}")
            for number, rotation in enumerate(self._rotations)
        ]

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End at once; a call that is under way is cancelled."""
        self._stop.set()
        self._buffer.close()
        for rotation in self._rotations:
            rotation.abort()
        for thread in self._threads:
            thread.join()

    def failing_s(self) -> float:
        """Return for how long no stream has got through; 0 if the last one did."""
        with self._lock:
            return time.monotonic() - self._failing_since if self._failing_since else 0.0

    def _run(self, rotation: Rotation) -> None:
        while not self._stop.is_set():
            parcel = self._buffer.take(_IDLE_S)
            if parcel is not None:
                self._deliver(rotation, parcel)
        rotation.close()

    def _deliver(self, rotation: Rotation, parcel: Parcel) -> None:
        parcel.since = time.monotonic()
        tried = False
        while not self._stop.is_set():
            if pause_s := rotation.pause_s():
                self._stop.wait(min(pause_s, _IDLE_S))
                if parcel.gone:
                    return
                continue
            if not self._buffer.begin_call(parcel):
                return
            if tried:
                counter("podwire_forwarder_logs_total").labels("repeated").inc(parcel.stream.logs)
            tried = True
            try:
                rotation.send(parcel.stream.messages)
            except SendError as error:
                if self._stop.is_set():
                    self._buffer.end_call(parcel)
                    return
                self._note(error)
                if self._is_hopeless(parcel, error):
                    self._refuse(parcel, error)
                    return
                self._buffer.end_call(parcel)
                continue
            self._note(None)
            if self._buffer.leave(parcel):
                counter("podwire_forwarder_logs_total").labels("sent").inc(parcel.stream.logs)
                counter("podwire_forwarder_bytes_total").inc(parcel.stream.size)
            return

    def _note(self, error: SendError | None) -> None:
        outcome = "sent" if error is None else error.reason
        counter("podwire_forwarder_streams_total").labels(outcome).inc()
        now = time.monotonic()
        with self._lock:
            if error is None:
                self._last_success, self._failing_since = now, 0.0
            elif not self._failing_since:
                self._failing_since = now
        if error is not None:
            _limited.warning("oap: %s", error)

    def _is_hopeless(self, parcel: Parcel, error: SendError) -> bool:
        # One that fails while others get through would be tried for ever, and hold the offsets.
        if error.again == "never":
            return True
        with self._lock:
            others = self._last_success > parcel.since
        if error.again == "sometimes" or others:
            parcel.failures += 1
        return parcel.failures >= self._config.tries

    def _refuse(self, parcel: Parcel, error: SendError) -> None:
        if self._buffer.leave(parcel):
            counter("podwire_forwarder_logs_total").labels("refused").inc(parcel.stream.logs)
            log.error(
                "oap: %d logs of %s given up: %s", parcel.stream.logs, parcel.stream.node, error
            )
