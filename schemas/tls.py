"""Versions of TLS by the number that its records and hellos have."""

from __future__ import annotations

from typing import Final

__all__ = ["VERSIONS", "version_name"]

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
