"""Names of rustls' functions, as compilers have mangled them."""

from __future__ import annotations

from typing import Final

import pytest

from collector.abi import TlsFunction
from collector.tls.elf import Elf
from collector.tls.libraries import find_libraries
from collector.tls.rust import find_rust_functions, mentions_rustls
from tests.collector.tls.test_elf import CODE, made

SINK: Final = (
    b"_ZN87_$LT$rustls..conn..ConnectionCommon$LT$T$GT$$u20$as$u20$rustls..conn..PlaintextSink$GT$"
)
OLD: Final = (
    b"_ZN6rustls4msgs8deframer15MessageDeframer4read17h02a4b32a4bf3aaafE",
    b"_ZN6rustls6vecbuf14ChunkVecBuffer8write_to17h330fa1a024cca079E",
    SINK + b"5write17h492363c836166254E",
    SINK + b"5write17hd517280040087ffdE.llvm.9602166570433015925",
    SINK + b"14write_vectored17h0dd68b568200903eE",
    b"_ZN141_$LT$rustls..client..tls12..ExpectTraffic$u20$as$u20$rustls..common_state..State$LT$"
    b"rustls..client..client_conn..ClientConnectionData$GT$$GT$6handle17h29d91f8f7177daf3E",
)
OLD_KINDS: Final = ["FILL", "FLUSH", "WRITE", "WRITE", "WRITE_VECTOR", "MESSAGE"]
OTHERS: Final = (
    SINK + b"5flush17h50cb809dbd83ada3E",
    b"_ZN6rustls6vecbuf14ChunkVecBuffer8write_to28_$u7b$$u7b$closure$u7d$$u7d$17h330fa1a024cca079E",
    b"_ZN6rustls6server11server_conn14EarlyDataState23take_received_plaintext17hf728da99bff4c9f7E",
)
TAKEN: Final = b"_ZN6rustls12common_state11CommonState23take_received_plaintext17ha035a9133f8e990dE"


def elf(*names: bytes) -> Elf:
    image = made(names, kind=2)
    return Elf(lambda place, size: image[place : place + size])


def test_each_function_is_what_it_is() -> None:
    found = find_rust_functions(elf(*OLD, *OTHERS[:1], *OTHERS[2:]))
    assert found is not None
    assert [(place, kind.name) for place, kind in found] == [
        (CODE + 16 * number, f"RUSTLS_{name}") for number, name in enumerate(OLD_KINDS)
    ]


def test_what_takes_all_that_is_received_stands_for_its_callers() -> None:
    found = find_rust_functions(elf(*OLD, TAKEN))
    assert found is not None
    kinds = {kind for _, kind in found}
    assert TlsFunction.RUSTLS_RECEIVED in kinds
    assert TlsFunction.RUSTLS_MESSAGE not in kinds


@pytest.mark.parametrize("missing", range(len(OLD)))
def test_one_direction_alone_is_not_read(missing: int) -> None:
    names = [name for number, name in enumerate(OLD) if number != missing]
    found = find_rust_functions(elf(*names))
    if OLD_KINDS[missing] == "FLUSH":
        assert found is None  # it may be anything
    elif OLD_KINDS[missing] == "WRITE":
        assert found  # there is another one
    else:
        assert found == []
        image = made(tuple(names), kind=2)
        (library,) = find_libraries(lambda place, size: image[place : place + size])
        assert (library.name, library.probes) == ("rustls", ())


def test_without_its_source_nothing_mentions_it() -> None:
    assert not mentions_rustls(elf(*OLD))
