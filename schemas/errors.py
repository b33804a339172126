"""Errors of the project, decided by type and never by message text.

PodwireError
├── ConfigError            a setting is wrong; names the key
├── RetryableError         the same call may work later
│   ├── TransportError     a broker, server or API could not be reached
│   └── SinkBackpressure   the store asks for a pause
├── FatalError             going on would give wrong numbers
│   └── LayoutMismatch     two parts disagree about a binary layout
├── BpfError               libbpf or the kernel refused something
├── UnsupportedFeature     this kernel or machine lacks something
└── DecodeError            bytes that are not what they should be
"""

from __future__ import annotations

__all__ = [
    "BpfError",
    "ConfigError",
    "DecodeError",
    "FatalError",
    "LayoutMismatch",
    "PodwireError",
    "RetryableError",
    "SinkBackpressure",
    "TransportError",
    "UnsupportedFeature",
]


class PodwireError(Exception):
    """Base of every error that the project raises on purpose."""


class ConfigError(PodwireError):
    """A setting is missing, unknown or out of range."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason


class RetryableError(PodwireError):
    """The same call may succeed later."""


class TransportError(RetryableError):
    """A broker, database or API server did not answer."""


class SinkBackpressure(RetryableError):
    """The store cannot take more now."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(f"{reason} (retry after {retry_after_s:g} s)")
        self.retry_after_s = retry_after_s


class FatalError(PodwireError):
    """Going on would give wrong numbers or none at all."""


class LayoutMismatch(FatalError):
    """Two parts of the project disagree about a binary layout."""

    def __init__(self, what: str, expected: object, found: object) -> None:
        super().__init__(f"{what}: expected {expected}, found {found}")
        self.expected = expected
        self.found = found


class BpfError(PodwireError):
    """Libbpf or the kernel refused an operation; `log_tail` is libbpf's own last words."""

    def __init__(self, operation: str, errno: int, log_tail: str = "") -> None:
        import os

        text = f"{operation}: {os.strerror(errno)} (errno {errno})"
        super().__init__(f"{text}\n{log_tail}" if log_tail else text)
        self.operation = operation
        self.errno = errno
        self.log_tail = log_tail


class UnsupportedFeature(PodwireError):
    """This kernel or machine lacks `name`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class DecodeError(PodwireError):
    """Bytes from outside are not what they should be."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
