"""Streams to OAPs: one connection at a time, another after a failure and every few minutes.

A stream is a call of ``collect`` with all its messages, the half-close, and the empty answer. What
came back before the half-close is no answer to the whole. Nothing here waits without a deadline.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final, Literal

from schemas.errors import ConfigError, PodwireError
from schemas.pb import skywalking_accesslog_pb2 as wire
from sink.oap.http2 import CallFailed, Connection

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from sink.oap.config import ForwarderConfig

__all__ = ["PATH", "Rotation", "SendError", "classified", "tls_context"]

_SERVICE: Final = wire.DESCRIPTOR.services_by_name["EBPFAccessLogService"]
PATH: Final = f"/{_SERVICE.full_name}/{_SERVICE.methods_by_name['collect'].name}"
"""What is called."""

Again = Literal["always", "sometimes", "never"]

_ALWAYS: Final = frozenset(
    {
        "unavailable",
        "resource_exhausted",
        "deadline_exceeded",
        # A token or a permission can be mended while the logs wait.
        "unauthenticated",
        "permission_denied",
    }
)
_NEVER: Final = frozenset({"invalid_argument", "unimplemented"})


class SendError(PodwireError):
    """A stream failed, or it is not known whether it arrived.

    Attributes:
        reason: A word for the counters: the gRPC code, or ``early_answer``.
        again: Whether trying again may help: as often as need be, a few times, or not at all.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.again = classified(reason)


def classified(reason: str) -> Again:
    """Return whether a call that ended so may be tried again."""
    if reason in _ALWAYS:
        return "always"
    return "never" if reason in _NEVER else "sometimes"


def tls_context(config: ForwarderConfig) -> ssl.SSLContext | None:
    """Return what TLS needs; None without TLS.

    Raises:
        ConfigError: If a file cannot be read or is no certificate or key.
    """
    if not config.tls:
        return None
    key = "forwarder.tls_ca_file"
    try:
        context = ssl.create_default_context(cafile=config.tls_ca_file or None)
        if config.tls_certificate_file:
            key = "forwarder.tls_certificate_file"
            context.load_cert_chain(config.tls_certificate_file, config.tls_key_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(key, error.strerror or str(error)) from error
    context.set_alpn_protocols(["h2"])
    return context


class Rotation:
    """One sender's way to the OAPs. For one thread, but for `abort`.

    Args:
        config: Addresses, deadlines and pauses.
        clock: Seconds, monotonic.
        chance: For jitter and order.
    """

    def __init__(
        self, config: ForwarderConfig, clock: Callable[[], float], chance: random.Random
    ) -> None:
        self._config = config
        self._clock = clock
        self._chance = chance
        self._context = tls_context(config)
        self._metadata = (
            (("authentication", config.authentication),) if config.authentication else ()
        )
        self._order = list(config.addresses)
        chance.shuffle(self._order)
        self._failures = dict.fromkeys(self._order, 0)
        self._not_before = dict.fromkeys(self._order, 0.0)
        self._connection: Connection | None = None
        self._address = ""
        self._redial_at = 0.0
        self._closed = False

    def pause_s(self) -> float:
        """Return how long to wait until some OAP may be tried again."""
        return max(min(self._not_before.values()) - self._clock(), 0.0)

    def send(self, messages: Sequence[bytes]) -> None:
        """Send one stream and wait for its answer.

        Raises:
            SendError: If no answer to the whole came in time.
        """
        address = self._choose()
        try:
            connection = self._connection or self._dial(address)
            if self._closed:
                raise CallFailed("cancelled", "stopped")
            connection.call(PATH, messages, self._config.deadline_s, self._metadata)
        except Exception as error:
            # Whatever it is, the sender goes on; SendError is counted by its reason.
            self._hang_up()
            self._failed(address)
            code = error.code if isinstance(error, CallFailed) else "unknown"
            raise SendError(code, f"{address}: {error}"[:300]) from error
        self._failures[address] = 0
        self._not_before[address] = 0.0

    def abort(self) -> None:
        """End a call that is under way, and let none begin; from another thread."""
        self._closed = True
        connection = self._connection
        if connection is not None:
            connection.abort()

    def close(self) -> None:
        """End the connection."""
        self._hang_up()

    def _choose(self) -> str:
        now = self._clock()
        if self._connection is not None:
            if self._config.rebalance_s and now >= self._redial_at:
                self._hang_up()
                self._chance.shuffle(self._order)
                self._address = ""
            elif not self._connection.is_usable():
                self._hang_up()
        ready = [address for address in self._order if self._not_before[address] <= now]
        if self._address in ready:
            return self._address
        address = ready[0] if ready else min(self._order, key=self._not_before.__getitem__)
        self._hang_up()
        self._address = address
        return address

    def _dial(self, address: str) -> Connection:
        config = self._config
        self._connection = Connection(
            address, self._context, config.tls_server_name, config.keepalive_s
        )
        self._redial_at = self._clock() + config.rebalance_s * self._chance.uniform(0.8, 1.2)
        return self._connection

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _failed(self, address: str) -> None:
        config = self._config
        failures = self._failures[address] = min(self._failures[address] + 1, 30)
        pause_s = min(config.retry_min_s * 2.0 ** (failures - 1), config.retry_max_s)
        self._not_before[address] = self._clock() + pause_s * self._chance.uniform(0.5, 1.0)
