"""Functions of TLS libraries, and what each is to ``bpf/programs/tls.h``.

OpenSSL from 1.0.2 on, LibreSSL and BoringSSL have the same functions, and so has whatever bundles
one of them with its symbols; GnuTLS has others of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from collector.abi import TlsFunction

__all__ = ["FUNCTIONS", "LIBRARIES", "Library"]


@dataclass(frozen=True, slots=True)
class Library:
    """A family of libraries.

    Attributes:
        name: As shown.
        needed: Functions without which a file is none of them.
        calls: What each function is whose return is of interest as well.
        marks: What each function is whose call alone says something.
    """

    name: str
    needed: frozenset[str]
    calls: dict[str, TlsFunction]
    marks: dict[str, TlsFunction]


LIBRARIES: Final = (
    Library(
        "OpenSSL",
        frozenset({"SSL_read", "SSL_write"}),
        {
            "SSL_read": TlsFunction.TLS_READ,
            "SSL_write": TlsFunction.TLS_WRITE,
            "SSL_read_ex": TlsFunction.TLS_READ_EX,
            "SSL_write_ex": TlsFunction.TLS_WRITE_EX,
            "SSL_read_early_data": TlsFunction.TLS_READ_EX,
            "SSL_write_early_data": TlsFunction.TLS_WRITE_EX,
            "SSL_sendfile": TlsFunction.TLS_SENDFILE,
            "SSL_do_handshake": TlsFunction.TLS_HANDSHAKE,
            "SSL_connect": TlsFunction.TLS_CONNECT,
            "SSL_accept": TlsFunction.TLS_ACCEPT,
        },
        {
            "SSL_set_connect_state": TlsFunction.TLS_AS_CLIENT,
            "SSL_set_accept_state": TlsFunction.TLS_AS_SERVER,
            "SSL_free": TlsFunction.TLS_FREE,
        },
    ),
    Library(
        "GnuTLS",
        frozenset({"gnutls_record_recv", "gnutls_record_send"}),
        {
            "gnutls_record_recv": TlsFunction.TLS_READ,
            "gnutls_record_recv_seq": TlsFunction.TLS_READ,
            "gnutls_record_send": TlsFunction.TLS_WRITE,
            "gnutls_record_send2": TlsFunction.TLS_WRITE,
            "gnutls_handshake": TlsFunction.TLS_HANDSHAKE,
        },
        {"gnutls_deinit": TlsFunction.TLS_FREE},
    ),
)

FUNCTIONS: Final = frozenset(
    name for library in LIBRARIES for name in (*library.calls, *library.marks)
)
"""All of them."""
