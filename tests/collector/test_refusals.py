from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from collector.refusals import effective_capabilities, explain, missing_capabilities, reason_of
from schemas.errors import BpfError

if TYPE_CHECKING:
    from pathlib import Path

EVERYTHING = (1 << 41) - 1


def test_capabilities_that_suffice() -> None:
    assert missing_capabilities(1 << 21) == []  # CAP_SYS_ADMIN alone
    assert missing_capabilities(1 << 39 | 1 << 38) == []
    assert missing_capabilities(1 << 39) == ["CAP_PERFMON"]
    assert missing_capabilities(0) == ["CAP_BPF", "CAP_PERFMON"]


def test_effective_capabilities_are_read_from_the_status(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapPrm:\t0\nCapEff:\t0000000000200000\n")
    assert effective_capabilities(status) == 1 << 21


@pytest.mark.parametrize(
    ("held", "has_btf", "lockdown", "expected"),
    [
        (0, True, "[none]", "run as root or with CAP_BPF and CAP_PERFMON"),
        (EVERYTHING, False, "[none]", "CONFIG_DEBUG_INFO_BTF"),
        (EVERYTHING, True, "none integrity [confidentiality]", "lockdown"),
        (EVERYTHING, True, "[none]", "prog 'x': failed to load"),
    ],
)
def test_an_error_says_what_to_do(
    tmp_path: Path, held: int, has_btf: bool, lockdown: str, expected: str
) -> None:
    btf, state = tmp_path / "vmlinux", tmp_path / "lockdown"
    if has_btf:
        btf.touch()
    state.write_text(lockdown)
    error = BpfError("load", errno.EPERM, "0: verifier\nlibbpf: prog 'x': failed to load: -1")
    told = explain(error, lambda: held, btf, state)
    assert expected in str(told)
    assert "\n" not in str(told)
    assert told.errno == errno.EPERM


def test_the_verifiers_verdict_is_the_reason_not_its_listing() -> None:
    log = """libbpf: prog 'x': BPF program load failed: Permission denied
libbpf: prog 'x': -- BEGIN PROG LOAD LOG --
0: (79) r1 = *(u64 *)(r1 +0)
R1 invalid mem access 'scalar'
processed 2 insns (limit 1000000) max_states_per_insn 0
-- END PROG LOAD LOG --
libbpf: prog 'x': failed to load: -13"""
    told = reason_of(BpfError("load", errno.EACCES, log))
    assert told == "the verifier: R1 invalid mem access 'scalar' (errno 13)"
    short = log.partition("\n")[0]
    assert reason_of(BpfError("load", errno.EACCES, short)).endswith("denied (errno 13)")
    assert reason_of(BpfError("load", errno.EACCES)) == "load (errno 13)"
