"""Settings of the forwarder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final

from schemas.config import Config, setting
from schemas.errors import ConfigError
from sink.oap.choices import Choices
from sink.oap.convert import Limits

__all__ = ["ForwarderConfig"]

_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^][:/\s]+):[0-9]{1,5}")
_PORT_MAX: Final = 65_535


@dataclass(frozen=True, repr=False)
class ForwarderConfig(Config):
    """Where logs go, how they are sent, and what an OAP is told."""

    SECTION: ClassVar[str] = "forwarder"

    addresses: tuple[str, ...] = setting(
        ("127.0.0.1:11800",), "Addresses of SkyWalking OAPs, host:port separated by commas"
    )
    authentication: str = setting(
        "", "What the header Authentication says; an OAP may ask for it", secret=True
    )
    tls: bool = setting(False, "Talk TLS to the OAPs")
    tls_ca_file: str = setting(
        "", "CA certificates (PEM) that signed the OAPs' certificates; else those of the system"
    )
    tls_certificate_file: str = setting("", "Client certificate (PEM)")
    tls_key_file: str = setting("", "Client key (PEM)")
    tls_server_name: str = setting("", "Name in the OAPs' certificates, if it is not the address")
    group: str = setting("podwire-forwarder", "Kafka consumer group")
    period_s: float = setting(5.0, "A stream per node holds the logs of so long", minimum=0.1)
    period_mb: int = setting(32, "A period ends earlier once so much was read", minimum=1)
    streams: int = setting(2, "Streams at the same time", minimum=1, maximum=64)
    deadline_s: float = setting(20.0, "Longest time of one stream, its answer included", minimum=1)
    message_kb: int = setting(1024, "Size of one message of a stream", minimum=16, maximum=49_152)
    stream_mb: int = setting(16, "Size of one stream", minimum=1)
    stream_logs: int = setting(100_000, "Logs of one stream", minimum=100)
    buffer_mb: int = setting(256, "Logs that wait for an OAP", minimum=8)
    patience_s: float = setting(
        30.0,
        "With a full buffer, drop the oldest period once every OAP has failed for so long; "
        "before that, and while an OAP is just slow, stop reading",
        minimum=0,
    )
    retry_min_s: float = setting(0.5, "First pause after a failure", minimum=0.01)
    retry_max_s: float = setting(30.0, "Longest pause after a failure", minimum=0.1)
    tries: int = setting(
        5, "How often a stream is tried that fails while others get through", minimum=1
    )
    rebalance_s: float = setting(
        300.0, "Connect anew, to another OAP if there is one, after so long; 0: never", minimum=0
    )
    keepalive_s: float = setting(30.0, "Ask a silent OAP for a sign of life after", minimum=10)
    stop_grace_s: float = setting(
        10.0, "At the end, how long what was read may still be sent", minimum=0
    )
    sides: str = setting(
        "both",
        "Whose view of a connection is sent",
        choices=("both", "client", "server"),
    )
    same_service: str = setting(
        "drop",
        "Traffic within one service, which an OAP drops: drop it here; send it nevertheless; or "
        "send it with the other end Unknown, so that it counts for the service",
        choices=("drop", "send", "unknown"),
    )
    unresolved: str = setting(
        "address",
        "An end that is no more than an address: send the address, which an OAP that cannot find "
        "it shows as Unknown; or send it as the name of a service",
        choices=("address", "name"),
    )
    paths: str = setting(
        "path",
        "Name of a called endpoint: the path of the call, or podwire's endpoint",
        choices=("path", "endpoint"),
    )
    incomplete_calls: bool = setting(
        False, "Send HTTP calls without a whole response; an OAP takes them for successful"
    )
    minute_of: str = setting(
        "end",
        "What began in one minute and ended in another is counted in the minute of its end, as in "
        "podwire, or its start, as with SkyWalking's own agent",
        choices=("end", "start"),
    )
    exclude_namespaces: tuple[str, ...] = setting(
        (), "Send no connection whose local end is in one of these namespaces"
    )
    max_logs_per_second: float = setting(
        0.0,
        "Of one node; of more, a sample is sent and every error. An OAP then counts too little. "
        "0: no limit",
        minimum=0,
    )
    bad_messages_in_a_row: int = setting(
        100, "Undecodable messages in a row after which the forwarder stops", minimum=1
    )
    telemetry_port: int = setting(0, "Port of /metrics; 0: off", minimum=0, maximum=65535)
    telemetry_host: str = setting("127.0.0.1", "Address of /metrics")

    def check(self) -> None:
        """Check what only several settings together can tell.

        Raises:
            ConfigError: With the key at fault.
        """
        if not self.addresses:
            raise ConfigError("forwarder.addresses", "names no OAP")
        for address in self.addresses:
            if not _ADDRESS.fullmatch(address) or int(address.rpartition(":")[2]) > _PORT_MAX:
                raise ConfigError("forwarder.addresses", f"{address!r} is no host:port")
        if not (self.authentication.isascii() and self.authentication.isprintable()):
            # Such as the line feed at the end of a file that became a secret.
            raise ConfigError("forwarder.authentication", "has characters that no header may have")
        if bool(self.tls_certificate_file) != bool(self.tls_key_file):
            raise ConfigError("forwarder.tls_key_file", "a certificate and its key go together")
        for name in ("tls_ca_file", "tls_certificate_file", "tls_server_name"):
            if getattr(self, name) and not self.tls:
                raise ConfigError(f"forwarder.{name}", "needs forwarder.tls")
        if self.retry_max_s < self.retry_min_s:
            raise ConfigError("forwarder.retry_max_s", "is less than forwarder.retry_min_s")
        if self.stream_mb * 2 > self.buffer_mb:
            raise ConfigError("forwarder.buffer_mb", "must hold two streams (stream_mb)")

    def choices(self) -> Choices:
        """What is told."""
        return Choices(
            sides=self.sides,  # type: ignore[arg-type]
            same_service=self.same_service,  # type: ignore[arg-type]
            unresolved=self.unresolved,  # type: ignore[arg-type]
            paths=self.paths,  # type: ignore[arg-type]
            incomplete=self.incomplete_calls,
            exclude_namespaces=self.exclude_namespaces,
            end_minute=self.minute_of == "end",
            logs_per_second=self.max_logs_per_second,
        )

    def limits(self) -> Limits:
        """How large messages and streams may be."""
        return Limits(self.message_kb << 10, self.stream_mb << 20, self.stream_logs)
