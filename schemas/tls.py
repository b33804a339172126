"""What is told of TLS by number: its versions, and why it cannot be read."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = ["UNREADABLE", "VERSIONS", "Unreadable", "unreadable_name", "version_name"]

VERSIONS: Final = {
    0x0300: "SSL 3.0",
    0x0301: "TLS 1.0",
    0x0302: "TLS 1.1",
    0x0303: "TLS 1.2",
    0x0304: "TLS 1.3",
}
"""RFC 8446 sections 4.2.1 and 5.1 and appendix D; RFC 6101 section 5.6.1.2."""


def version_name(version: int) -> str:
    """Return the usual name of a version, its number in hex if it has none, empty for 0."""
    if not version:
        return ""
    return VERSIONS.get(version, f"{version:#06x}")


class Unreadable(IntEnum):
    """Why what a process says inside TLS is not seen in clear; no number is used again."""

    UNKNOWN = 0
    JAVA = 1
    NO_LIBRARY = 2
    NO_FUNCTIONS = 3
    NOTHING_SEEN = 4
    REFUSED = 5
    TOO_MANY = 6
    OTHER_ARCHITECTURE = 7
    MALFORMED = 8
    TRUNCATED = 9
    TOO_LARGE = 10
    GONE = 11
    FORBIDDEN = 12
    OFF = 13
    TOO_MANY_RETURNS = 14
    UNEXPECTED = 15
    RUSTLS = 16


UNREADABLE: Final = {
    Unreadable.UNKNOWN: "not found out, or not yet",
    Unreadable.JAVA: "a Java virtual machine, whose own TLS is no library's",
    Unreadable.NO_LIBRARY: "no TLS library is known in the process: it has its own, or one without "
    "names in it",
    Unreadable.NO_FUNCTIONS: "it has a TLS library whose functions have lost their names, or are "
    "others",
    Unreadable.NOTHING_SEEN: "its TLS library is read, but on these connections nothing was said "
    "yet, or their sessions are not known",
    Unreadable.REFUSED: "the kernel refused the probes at its TLS library",
    Unreadable.TOO_MANY: "too many other files have probes",
    Unreadable.OTHER_ARCHITECTURE: "a program of 32 bits",
    Unreadable.MALFORMED: "one of its files contradicts itself, or is newer than what is known",
    Unreadable.TRUNCATED: "one of its files is shorter than it says",
    Unreadable.TOO_LARGE: "one of its files has tables that no honest file has",
    Unreadable.GONE: "it had ended, or its files were deleted, before they were looked at",
    Unreadable.FORBIDDEN: "the collector may not see its files, see CAP_SYS_PTRACE",
    Unreadable.OFF: "TLS is not read on this node: switched off, or the kernel does not permit it",
    Unreadable.TOO_MANY_RETURNS: "a Go program whose functions return at more places than may have "
    "probes",
    Unreadable.UNEXPECTED: "an error while its files were looked at",
    Unreadable.RUSTLS: "a program with rustls whose functions have lost their names, or are others",
}
"""What each means; the table ``tls`` has their names in lower case."""


def unreadable_name(number: int) -> str:
    """Return the name of a reason; of a newer one that is not known here its number."""
    try:
        return Unreadable(number).name.lower()
    except ValueError:
        return str(number)
