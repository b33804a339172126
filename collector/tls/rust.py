"""Functions of rustls in Rust programs, by their mangled names. Pure, as `elf`.

Names are mangled in the old way or in that of RFC 2603, and end with what differs from build to
build; so they are looked for by what is in them. Some are there several times, for clients and
servers and by the parts in which a program was compiled.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from collector.abi import TlsFunction

if TYPE_CHECKING:
    from collector.tls.elf import Elf

__all__ = ["CALLS", "RUSTLS", "RustFunctions", "find_rust_functions", "mentions_rustls"]

RUSTLS: Final = "rustls"

RustFunctions = list[tuple[int, TlsFunction]]
"""Offset in the file of a function's first instruction, and what it is."""

_FLUSH: Final = b"14ChunkVecBuffer8write_to"
"""In the name of a function that every program with rustls has, and nothing else."""
_SINK: Final = r"16ConnectionCommon.*13PlaintextSink|ConnectionCommon.*PlaintextSink\$GT\$"
_KINDS: Final = {
    TlsFunction.RUSTLS_FILL: r"8deframer.*(15MessageDeframer|17DeframerVecBuffer)4read(?![a-z_])",
    TlsFunction.RUSTLS_FLUSH: r"6vecbuf.*14ChunkVecBuffer8write_to(?![a-z_])",
    TlsFunction.RUSTLS_WRITE: rf"({_SINK})5write(?![a-z_])",
    TlsFunction.RUSTLS_WRITE_VECTOR: rf"({_SINK})14write_vectored(?![a-z_])",
}
CALLS: Final = frozenset(_KINDS)
"""Functions whose return is of interest as well. Each must be there."""
_RECEIVED: Final = {
    TlsFunction.RUSTLS_RECEIVED: r"11CommonState23take_received_plaintext(?![a-z_])",
    TlsFunction.RUSTLS_MESSAGE: r"ExpectTraffic.*6handle(?![a-z_])",
}
"""One of them is enough. Before 0.23 the first is a part of the others, which are always there."""
_MARKS: Final = (
    b"15MessageDeframer4read",
    b"17DeframerVecBuffer4read",
    _FLUSH,
    b"23take_received_plaintext",
    b"ExpectTraffic",
    b"PlaintextSink",
)
_MENTION: Final = b"/rustls-0."
"""Of where its source was, in what it says when it gives up."""


def find_rust_functions(elf: Elf) -> RustFunctions | None:
    """Find the functions of rustls: None if it is not there, none if one of them is missing."""
    if not elf.symbols_with((_FLUSH,)):
        return None
    names = [name for name in elf.symbols_with(_MARKS) if "rustls" in name]
    kinds = {
        name: kind for kind, pattern in _KINDS.items() for name in names if re.search(pattern, name)
    }
    for kind, pattern in _RECEIVED.items():
        received = {name for name in names if re.search(pattern, name)}
        if received:
            kinds |= dict.fromkeys(received, kind)
            break
    found = {(place, kinds[name]) for name, place in elf.functions(kinds).items()}
    there = {kind for _, kind in found}
    if not there >= CALLS or not _RECEIVED.keys() & there:
        return []
    return sorted(found)


def mentions_rustls(elf: Elf) -> bool:
    """Whether a file has rustls, be it without names."""
    section = elf.section(b".rodata")
    if section is None:
        return False
    return bool(elf.places(section.offset, section.size, (_MENTION,), most=1)[_MENTION])
