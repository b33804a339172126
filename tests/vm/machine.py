"""Boots a kernel under QEMU on this machine's own files, without KVM.

The guest sees the file system as a copy that is thrown away; only its output folder is written for
good. virtme-ng wants a terminal, and gets one whose other end goes to ``console.log``.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.vm.kernels import Kernel

__all__ = ["boot", "end_all"]

ROOT: Final = Path(__file__).resolve().parents[2]
_CPUS: Final = 2
_MEMORY: Final = "3G"
# QEMU 7.2 emulates AVX2 wrongly: numpy then sorts 64-bit numbers into others. No XSAVE, no AVX.
_OPTIONS: Final = "noxsave"
_PATIENCE_S: Final = 5.0

_running: Final[set[subprocess.Popen[bytes]]] = set()


def boot(kernel: Kernel, command: Sequence[str], output: Path, timeout_s: float) -> None:
    """Run a command as root in a virtual machine until it powers off.

    Args:
        kernel: What to boot.
        command: Words of the command, run in the repository.
        output: Folder that the guest may write to, made here.
        timeout_s: After which the machine is stopped.

    Raises:
        RuntimeError: If the machine does not come to its end in time.
    """
    output.mkdir(parents=True, exist_ok=True)
    virtme = [
        *("vng", "--verbose", "--run", str(kernel.image), "--disable-kvm", "--user", "root"),
        *("--cpus", str(_CPUS), "--memory", _MEMORY, "--cwd", str(ROOT)),
        *("--append", _OPTIONS, f"--rwdir={output}", "--", *command),
    ]
    # Where this interpreter is, virtme-ng is installed too.
    path = f"{Path(sys.executable).parent}:/usr/sbin:/sbin:{os.environ.get('PATH', '')}"
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        virtme,
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    _running.add(process)
    try:
        if not _copy(terminal, output / "console.log", time.monotonic() + timeout_s):
            raise RuntimeError(f"{kernel.release}: not done after {timeout_s:.0f} s")
    finally:
        os.close(terminal)
        _end(process)
        _running.discard(process)


def end_all() -> None:
    """End what other threads boot; their machines have then ended early."""
    for process in list(_running):
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the whole group; an emulator that hangs does not listen."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
    process.wait()


def _copy(terminal: int, to: Path, deadline: float) -> bool:
    """Copy until the last writer has gone; False when the time is up first."""
    with to.open("wb") as log:
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([terminal], [], [], left)[0]:
                return False
            try:
                chunk = os.read(terminal, 65536)
            except OSError:  # EIO: nobody has the other end open any more
                return True
            if not chunk:
                return True
            log.write(chunk)
            log.flush()
    return False
