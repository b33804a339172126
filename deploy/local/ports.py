"""Loopback ports: find free ones, and say clearly when a wanted one is taken."""

from __future__ import annotations

import socket
import time
from typing import Final

from schemas.errors import ConfigError

__all__ = ["LOOPBACK", "free_ports", "is_open", "require_free", "wait_open"]

LOOPBACK: Final = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on just now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def require_free(port: int, option: str) -> int:
    """Return the port if it can be listened on; 0 gives a free one.

    Raises:
        ConfigError: If it is taken, naming the option that changes it.
    """
    if port == 0:
        return free_ports(1)[0]
    with socket.socket() as probe:
        # As servers do: a connection of an earlier run that lingers in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ConfigError(
                option, f"port {port} cannot be used ({error.strerror}); choose another, 0 for any"
            ) from error
    return port


def is_open(port: int, timeout_s: float = 0.2) -> bool:
    """Whether something listens on this loopback port."""
    try:
        socket.create_connection((LOOPBACK, port), timeout_s).close()
    except OSError:
        return False
    return True


def wait_open(port: int, timeout_s: float) -> bool:
    """Wait until something listens on this loopback port; False when time is over."""
    deadline = time.monotonic() + timeout_s
    while not is_open(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
