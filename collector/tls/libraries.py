"""Functions of TLS libraries, and the program at each: ``bpf/programs/tls.h``.

OpenSSL from 1.0.2 on, LibreSSL and BoringSSL have the same functions, and so has whatever bundles
one of them with its symbols; GnuTLS has others of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["AT_RETURN", "FUNCTIONS", "LIBRARIES", "Library"]

AT_RETURN: Final = "tls_exit"
"""The program at the return of every function of `Library.programs`."""


@dataclass(frozen=True, slots=True)
class Library:
    """A family of libraries.

    Attributes:
        name: As shown.
        needed: Functions without which a file is none of them.
        programs: Program at the entry of each function whose return is of interest as well.
        marks: Program of each function whose call alone says something.
    """

    name: str
    needed: frozenset[str]
    programs: dict[str, str]
    marks: dict[str, str]


LIBRARIES: Final = (
    Library(
        "OpenSSL",
        frozenset({"SSL_read", "SSL_write"}),
        {
            "SSL_read": "tls_read",
            "SSL_write": "tls_write",
            "SSL_read_ex": "tls_read_ex",
            "SSL_write_ex": "tls_write_ex",
            "SSL_read_early_data": "tls_read_ex",
            "SSL_write_early_data": "tls_write_ex",
            "SSL_sendfile": "tls_sendfile",
            "SSL_do_handshake": "tls_handshake",
            "SSL_connect": "tls_connect",
            "SSL_accept": "tls_accept",
        },
        {
            "SSL_set_connect_state": "tls_as_client",
            "SSL_set_accept_state": "tls_as_server",
            "SSL_free": "tls_free",
        },
    ),
    Library(
        "GnuTLS",
        frozenset({"gnutls_record_recv", "gnutls_record_send"}),
        {
            "gnutls_record_recv": "tls_read",
            "gnutls_record_recv_seq": "tls_read",
            "gnutls_record_send": "tls_write",
            "gnutls_record_send2": "tls_write",
            "gnutls_handshake": "tls_handshake",
        },
        {"gnutls_deinit": "tls_free"},
    ),
)

FUNCTIONS: Final = frozenset(
    name for library in LIBRARIES for name in (*library.programs, *library.marks)
)
"""All of them."""
