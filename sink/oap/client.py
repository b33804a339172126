"""Streams to OAPs: one connection at a time, another after a failure and every few minutes.

A stream is a call of ``collect`` with all its messages, the half-close, and the empty answer. What
came back before the half-close is no answer to the whole. Nothing here waits without a deadline.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import grpc

from schemas.errors import ConfigError, PodwireError
from schemas.pb import skywalking_accesslog_pb2 as wire

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from sink.oap.config import ForwarderConfig

__all__ = ["PATH", "Rotation", "SendError", "classified", "credentials"]

_SERVICE: Final = wire.DESCRIPTOR.services_by_name["EBPFAccessLogService"]
PATH: Final = f"/{_SERVICE.full_name}/{_SERVICE.methods_by_name['collect'].name}"
"""What is called."""

Again = Literal["always", "sometimes", "never"]

_Code = grpc.StatusCode
_ALWAYS: Final = frozenset(
    {
        _Code.UNAVAILABLE,
        _Code.RESOURCE_EXHAUSTED,
        _Code.DEADLINE_EXCEEDED,
        # A token or a permission can be mended while the logs wait.
        _Code.UNAUTHENTICATED,
        _Code.PERMISSION_DENIED,
    }
)
_NEVER: Final = frozenset({_Code.INVALID_ARGUMENT, _Code.UNIMPLEMENTED})


class SendError(PodwireError):
    """A stream failed, or it is not known whether it arrived.

    Attributes:
        reason: A word for the counters: the gRPC code, or ``early_answer``.
        again: Whether trying again may help: as often as need be, a few times, or not at all.
    """

    def __init__(self, reason: str, again: Again, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.again = again


def classified(code: grpc.StatusCode) -> Again:
    """Return whether a call that ended with this code may be tried again."""
    if code in _ALWAYS:
        return "always"
    return "never" if code in _NEVER else "sometimes"


def credentials(config: ForwarderConfig) -> grpc.ChannelCredentials | None:
    """Return what TLS needs; None without TLS.

    Raises:
        ConfigError: If a file cannot be read.
    """
    if not config.tls:
        return None

    def content(name: str) -> bytes | None:
        path = getattr(config, name)
        if not path:
            return None
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"forwarder.{name}", f"{path}: {error.strerror}") from error

    return grpc.ssl_channel_credentials(
        content("tls_ca_file"), content("tls_key_file"), content("tls_certificate_file")
    )


class _Messages:
    # What gRPC's own thread takes from; it never blocks, so that thread ends with its call.
    def __init__(self, messages: Sequence[bytes]) -> None:
        self._messages = iter(messages)
        self.finished = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._messages)
        except StopIteration:
            self.finished = True
            raise


class Rotation:
    """One sender's way to the OAPs. For one thread, but for `close`.

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
        self._credentials = credentials(config)
        self._metadata = (
            (("authentication", config.authentication),) if config.authentication else ()
        )
        self._order = list(config.addresses)
        chance.shuffle(self._order)
        self._failures = dict.fromkeys(self._order, 0)
        self._not_before = dict.fromkeys(self._order, 0.0)
        self._channel: grpc.Channel | None = None
        self._collect: Any = None
        self._address = ""
        self._redial_at = 0.0
        self._closed = False

    @property
    def address(self) -> str:
        """The OAP that was or will be talked to."""
        return self._address or self._order[0]

    def pause_s(self) -> float:
        """Return how long to wait until some OAP may be tried again."""
        return max(min(self._not_before.values()) - self._clock(), 0.0)

    def send(self, messages: Sequence[bytes]) -> None:
        """Send one stream and wait for its answer.

        Raises:
            SendError: If no answer to the whole came in time.
        """
        address = self._choose()
        pending = _Messages(messages)
        try:
            self._collect(pending, timeout=self._config.deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            self._failed(address)
            code = error.code()
            detail = f"{address}: {error.details() or ''}".strip()[:300]
            raise SendError(code.name.lower(), classified(code), detail) from error
        except ValueError as error:  # the channel was closed to end this call
            self._failed(address)
            raise SendError("cancelled", "sometimes", str(error)) from error
        if not pending.finished:
            self._failed(address)
            raise SendError("early_answer", "sometimes", f"{address}: not all had been sent")
        self._failures[address] = 0
        self._not_before[address] = 0.0

    def close(self) -> None:
        """End the connection, and with it a call that is under way."""
        self._closed = True
        channel = self._channel
        if channel is not None:
            channel.close()

    def _choose(self) -> str:
        now = self._clock()
        if self._channel is not None and now >= self._redial_at and self._config.rebalance_s:
            self._hang_up()
            self._chance.shuffle(self._order)
            self._address = ""
        ready = [address for address in self._order if self._not_before[address] <= now]
        if self._address in ready:
            address = self._address
        else:
            address = ready[0] if ready else min(self._order, key=self._not_before.__getitem__)
        if address != self._address or self._channel is None:
            self._hang_up()
            self._dial(address, now)
        return address

    def _dial(self, address: str, now: float) -> None:
        config = self._config
        options: list[tuple[str, Any]] = [
            ("grpc.keepalive_time_ms", round(config.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", 10_000),
            # One name may stand for several OAPs: connections of our own, to all of them.
            ("grpc.lb_policy_name", "round_robin"),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
            # The pauses are ours: a channel that waits longer than its sender fails at once.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_retries", 0),
        ]
        if config.tls_server_name:
            options.append(("grpc.ssl_target_name_override", config.tls_server_name))
        if self._credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, self._credentials, options)
        if self._closed:
            self._channel.close()
        # Bytes in, bytes out: the messages are serialised, the answer is empty.
        self._collect = self._channel.stream_unary(PATH)
        self._address = address
        self._redial_at = now + config.rebalance_s * self._chance.uniform(0.8, 1.2)

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _failed(self, address: str) -> None:
        config = self._config
        failures = self._failures[address] = min(self._failures[address] + 1, 30)
        pause_s = min(config.retry_min_s * 2.0 ** (failures - 1), config.retry_max_s)
        self._not_before[address] = self._clock() + pause_s * self._chance.uniform(0.5, 1.0)
