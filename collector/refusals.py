"""Why the kernel or libbpf refused, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from collector.btf import VMLINUX
from schemas.errors import BpfError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CAPABILITIES",
    "effective_capabilities",
    "explain",
    "missing_capabilities",
    "reason_of",
]

CAPABILITIES: Final = {"CAP_BPF": 39, "CAP_PERFMON": 38}
"""What loading needs, by bit; CAP_SYS_ADMIN includes both (capabilities(7))."""
_CAP_SYS_ADMIN: Final = 21
_LISTING_END: Final = "-- END PROG LOAD LOG --"


def reason_of(error: BpfError) -> str:
    """Return in one line why the kernel or libbpf refused."""
    lines = error.log_tail.splitlines()
    if _LISTING_END in lines:  # the verifier's: its verdict stands before its statistics
        listing = [line for line in lines[: lines.index(_LISTING_END)] if line.strip()]
        verdict = [line for line in listing if not line.startswith("processed ")]
        if verdict:
            return f"the verifier: {verdict[-1]} (errno {error.errno})"
    # libbpf's lines start with what failed; the verifier's long listing follows in between.
    lines = [line for line in lines if line.startswith("libbpf: ")]
    detail = lines[0].removeprefix("libbpf: ") if lines else error.operation
    return f"{detail} (errno {error.errno})"


def explain(
    error: BpfError,
    effective: Callable[[], int] | None = None,
    btf: Path = VMLINUX,
    lockdown: Path = Path("/sys/kernel/security/lockdown"),
) -> BpfError:
    """Return the error with one sentence about its likely cause and what to do.

    Args:
        error: What libbpf answered.
        effective: Gives the effective capabilities as a bit mask.
        btf: The kernel's own BTF.
        lockdown: The lockdown state.
    """
    missing = missing_capabilities((effective or effective_capabilities)())
    if missing:
        cause = f"run as root or with {' and '.join(missing)}"
    elif not btf.exists():
        cause = f"this kernel has no BTF ({btf}); it needs CONFIG_DEBUG_INFO_BTF"
    elif lockdown.exists() and "[confidentiality]" in lockdown.read_text():
        cause = "kernel lockdown is in confidentiality mode, which forbids reading kernel memory"
    else:
        cause = reason_of(error)
    return BpfError(f"cannot load the eBPF programs: {cause}", error.errno)


def missing_capabilities(held: int) -> list[str]:
    """Return the capabilities that loading needs and a bit mask lacks."""
    if held >> _CAP_SYS_ADMIN & 1:
        return []
    return [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]


def effective_capabilities(status: Path = Path("/proc/self/status")) -> int:
    """Return the effective capabilities of this process as a bit mask."""
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
