"""From the options of ``podwire local`` to the configuration file that its parts read.

The file stays in the data directory, so that anybody can see what the parts were told. A user's
own ``--config`` is its base; what this runner must decide itself (addresses, ports, paths) wins.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from deploy.local.ports import LOOPBACK, free_ports, require_free
from schemas.config import SCOPE
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "CONFIG_NAME",
    "DATABASE_NAME",
    "LOCK_NAME",
    "Layout",
    "LocalOptions",
    "part_environment",
    "sections",
    "write_config",
]

CONFIG_NAME: Final = "podwire.yaml"
DATABASE_NAME: Final = "clickhouse"
LOCK_NAME: Final = "podwire.lock"
DEFAULT_HTTP_PORT: Final = 8123
LOCAL_PARTS: Final = ("collector", "kube", "streams", "sink")

HEADER: Final = """\
# Written by `podwire local` at every start: what each part was told. Edits are lost; give your own
# settings with --config FILE.
"""


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What the user asked for; see ``podwire local --help``."""

    data: Path
    kube: Path | None = None
    duration_s: float | None = None
    record: Path | None = None
    replay: Path | None = None
    replay_pace: str = "recorded"
    http_port: int = DEFAULT_HTTP_PORT
    broker: str | None = None
    node: str = platform.node()
    config: Path | None = None
    base: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Ports and paths of one run.

    Attributes:
        data: Directory of everything that stays.
        broker_port: Of the embedded broker; 0 if another one is used.
        bootstrap_servers: Where the parts find Kafka.
        http_port: Of the SQL endpoint.
        telemetry: Port of each part's ``/metrics``.
    """

    data: Path
    broker_port: int
    bootstrap_servers: str
    http_port: int
    telemetry: dict[str, int]

    @classmethod
    def choose(cls, options: LocalOptions) -> Layout:
        """Find free ports and make the directories.

        Raises:
            ConfigError: If the data directory cannot be written or the HTTP port is taken.
        """
        data = options.data.resolve()
        try:
            (data / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("--data", f"{data} cannot be made: {error.strerror}") from error
        if not os.access(data, os.W_OK):
            raise ConfigError("--data", f"{data} cannot be written")
        http_port = require_free(options.http_port, "--http-port")
        broker_port, *telemetry = free_ports(1 + len(LOCAL_PARTS))
        return cls(
            data=data,
            broker_port=0 if options.broker else broker_port,
            bootstrap_servers=options.broker or f"{LOOPBACK}:{broker_port}",
            http_port=http_port,
            telemetry=dict(zip(LOCAL_PARTS, telemetry, strict=True)),
        )

    def log_file(self, part: str) -> Path:
        """Where a part's output goes."""
        return self.data / "logs" / f"{part}.log"

    @property
    def config_file(self) -> Path:
        """The configuration that all parts read."""
        return self.data / CONFIG_NAME

    @property
    def database(self) -> Path:
        """Directory of the embedded ClickHouse."""
        return self.data / DATABASE_NAME


def sections(options: LocalOptions, layout: Layout, broker_epoch: str) -> dict[str, dict[str, Any]]:
    """Return the configuration of every part.

    Args:
        options: What the user asked for.
        layout: Ports and paths.
        broker_epoch: Name of the embedded broker's life; empty for a durable broker.
    """
    base = {
        name: dict(values or {}) for name, values in (options.base or {}).items() if name != SCOPE
    }
    ours: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap_servers": layout.bootstrap_servers},
        "collector": {"node": options.node},
        "kube": {},
        "streams": {"broker_epoch": broker_epoch},
        "sink": {"url": f"chdb://{layout.database}", "sql_port": layout.http_port},
    }
    if not options.broker:
        # Tansu answers the producer handshake of librdkafka (version 4) but not aiokafka's (0), and
        # one that came back empty refuses the producers of its earlier life for ever.
        ours["collector"]["idempotent_producer"] = False
        ours["streams"]["idempotent_producer"] = False
        ours["kafka"] |= {
            "partitions": 1,
            "replication_factor": 1,
            "security_protocol": "PLAINTEXT",
        }
    # What the parts say to each other is not what anybody wants to see.
    base.setdefault("collector", {}).setdefault("excluded_run", os.getpid())
    if options.kube is None:
        base.setdefault("streams", {}).setdefault("host_processes", "process")
    for part in ("streams", "sink"):
        base.setdefault(part, {}).setdefault("access_log", True)
    if options.config is not None:
        # Where a change of it is made, not in our copy.
        for part in ("collector", "streams"):
            base[part].setdefault("scope_file", str(options.config.resolve()))
    for part, port in layout.telemetry.items():
        ours[part] |= {"telemetry_port": port, "telemetry_host": LOOPBACK}
    return {name: base.get(name, {}) | ours.get(name, {}) for name in dict.fromkeys((*base, *ours))}


def write_config(layout: Layout, content: Mapping[str, Any]) -> None:
    """Write the file that the parts read; secrets of the user's own file are in it, so 0600."""
    path = layout.config_file
    temporary = path.with_suffix(".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(HEADER + yaml.safe_dump(dict(content), sort_keys=False))
    temporary.replace(path)


def part_environment(content: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return our environment without the variables that would override what we decided."""
    decided = {
        f"PODWIRE_{section}_{key}".upper() for section, values in content.items() for key in values
    }
    return {name: value for name, value in os.environ.items() if name not in decided}
