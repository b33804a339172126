"""Functions of TLS libraries, and what each is to ``bpf/programs/tls.h``.

OpenSSL from 1.0.2 on, LibreSSL and BoringSSL have the same functions, and so has whatever bundles
one of them with its symbols; GnuTLS has others of the same shape. Go and rustls have their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from collector.abi import TlsFunction
from collector.tls.elf import Elf, Wrong
from collector.tls.golang import find_go_functions
from collector.tls.rust import CALLS, RUSTLS, find_rust_functions

if TYPE_CHECKING:
    from collector.abi import GoConvention
    from collector.tls.elf import Read

__all__ = [
    "FUNCTIONS",
    "GO",
    "JAVA",
    "LIBRARIES",
    "Found",
    "Library",
    "Probe",
    "find_libraries",
    "named_library",
]


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

_CONN: Final = "crypto/tls.(*Conn)."
GO: Final = Library(
    "Go",
    frozenset({_CONN + "Read", _CONN + "Write"}),
    {
        _CONN + "Read": TlsFunction.TLS_READ,
        _CONN + "Write": TlsFunction.TLS_WRITE,
        _CONN + "handshakeContext": TlsFunction.TLS_HANDSHAKE,
        _CONN + "Handshake": TlsFunction.TLS_HANDSHAKE,  # before 1.17
    },
    {_CONN + "Close": TlsFunction.TLS_FREE},
)
"""``crypto/tls``, of Go programs from 1.2 on."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A place in a file where a program is to run.

    Attributes:
        offset: Of the instruction; of a return that the kernel is to find, of the function's first.
        function: Which function it is of.
        is_return: Whether the function returns there, or else begins.
        convention: How Go calls it; None if it is not Go's.
    """

    offset: int
    function: TlsFunction
    is_return: bool
    convention: GoConvention | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A library in a file.

    Attributes:
        name: Of its family.
        functions: How many of its calls there are.
        probes: Returns first: an entry without them would leave its frame. None are
            there if not all that is needed has a name.
    """

    name: str
    functions: int
    probes: tuple[Probe, ...]


def find_libraries(read: Read) -> list[Found]:
    """Find the TLS libraries in a file: none, one, or a Go or Rust program with one in C as well.

    Args:
        read: Gives the bytes of the file at a place, or as many of them as there are.

    Raises:
        Wrong: If the file is not as it must be.
    """
    elf = Elf(read)
    found = []
    functions = elf.functions(FUNCTIONS)
    for library in LIBRARIES:
        if library.needed <= functions.keys():
            calls = sorted(functions.keys() & library.calls.keys())
            kinds = library.calls | library.marks
            entered = sorted(functions.keys() & kinds.keys())
            returns = [Probe(functions[name], kinds[name], True) for name in calls]
            entries = [Probe(functions[name], kinds[name], False) for name in entered]
            found.append(Found(library.name, len(calls), (*returns, *entries)))
            break
    try:
        return found + _find_go(elf) + _find_rust(elf)
    except Wrong:
        if not found:
            raise
        return found  # which needs nothing of theirs


def _find_go(elf: Elf) -> list[Found]:
    functions = find_go_functions(elf, (*GO.calls, *GO.marks))
    if not GO.needed <= functions.keys():
        return []
    calls = {name: kind for name, kind in GO.calls.items() if name in functions}
    returns = [
        Probe(place, kind, True, functions[name].convention)
        for name, kind in calls.items()
        for place in functions[name].returns
    ]
    entries = [
        Probe(functions[name].entry, kind, False, functions[name].convention)
        for name, kind in (calls | GO.marks).items()
        if name in functions
    ]
    return [Found(GO.name, len(calls), (*returns, *entries))]


def _find_rust(elf: Elf) -> list[Found]:
    functions = find_rust_functions(elf)
    if functions is None:
        return []
    returns = [Probe(place, kind, True) for place, kind in functions if kind in CALLS]
    entries = [Probe(place, kind, False) for place, kind in functions]
    return [Found(RUSTLS, len(functions), (*returns, *entries))]


JAVA: Final = "Java"
"""A virtual machine, which has TLS of its own and no function of it by name."""

_HASH: Final = r"(-[0-9a-f]{8})?"  # of a library inside a Python wheel
_NAMES: Final = {
    rf"libssl{_HASH}\.so": "OpenSSL",
    rf"libgnutls{_HASH}\.so": "GnuTLS",
    r"libssl3\.so": "NSS",
    r"cygrpc\.": "BoringSSL",
    r"libnetty_tcnative": "BoringSSL",
    r"libconscrypt": "BoringSSL",
    r"libjvm\.so": JAVA,
}


def named_library(path: str) -> str:
    """Return the family that a file is of by its name alone; empty if it may be anything."""
    name = path.rpartition("/")[2]
    return next((family for pattern, family in _NAMES.items() if re.match(pattern, name)), "")
