"""What a test may need beyond Python, checked once per run and by trying it.

Mark a test with ``bpf``, ``ipvs``, ``kafka``, ``clickhouse`` or ``vm`` and ``conftest.py`` calls
`require` for it. Where the requirement is missing the test is skipped with the reason; names listed
in ``PODWIRE_REQUIRE`` (``bpf,kafka,clickhouse,tools``) fail instead, so that CI cannot pass by
skipping. ``tools`` are programs and packages that tests ask for by name, see `program`, `module`.
Fixtures that set up something expensive call `require` themselves, before they begin.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import importlib
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["REQUIREMENTS", "kernel_version", "missing", "module", "program", "require", "unmet"]

_BPF_SYSCALL: Final = {"x86_64": 321, "aarch64": 280}
_BPF_MAP_CREATE: Final = 0
_BPF_MAP_TYPE_ARRAY: Final = 2
_CLICKHOUSE_PROBE: Final = "import chdb; print(chdb.query('SELECT 40 + 2'))"


def require(name: str) -> None:
    """Skip the running test unless the requirement is met; fail if the run demands it.

    Raises:
        KeyError: If there is no such requirement.
    """
    reason = missing(name)
    if reason is not None:
        unmet(name, reason)


def unmet(name: str, reason: str) -> NoReturn:
    """Skip the running test because this part of a requirement is missing; fail if demanded."""
    text = f"needs {name}: {reason}"
    demanded = os.environ.get("PODWIRE_REQUIRE", "").replace(",", " ").split()
    if name in demanded:
        pytest.fail(f"{text} (demanded by PODWIRE_REQUIRE)", pytrace=False)
    pytest.skip(text, allow_module_level=True)


def kernel_version() -> tuple[int, int]:
    """Of the kernel that the test runs on, as (6, 1)."""
    major, minor = map(int, platform.release().split(".")[:2])
    return major, minor


def program(name: str) -> str:
    """Path of a program that the running test uses; without it, `unmet`."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        unmet("tools", f"no {name} on PATH")
    return found


def module(name: str) -> ModuleType:
    """A package that a test or a whole file of tests uses; without it, `unmet`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        unmet("tools", str(error))


@functools.cache
def missing(name: str) -> str | None:
    """Why the requirement is not met here, or None. Looked up once per process."""
    return REQUIREMENTS[name]()


def _bpf() -> str | None:
    if sys.platform != "linux":
        return f"runs on {sys.platform}, not Linux"
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        return f"no prebuilt objects for {platform.machine()}"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "the kernel has no BTF (/sys/kernel/btf/vmlinux)"
    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError as error:
        return f"no libbpf ({error})"
    # Creating the smallest map asks for the same right as everything else and costs nothing.
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = ctypes.create_string_buffer(struct.pack("<IIII", _BPF_MAP_TYPE_ARRAY, 4, 8, 1), 72)
    descriptor = libc.syscall(number, _BPF_MAP_CREATE, attributes, len(attributes))
    if descriptor < 0:
        code = ctypes.get_errno()
        hint = "; run as root or with CAP_BPF" if code == errno.EPERM else ""
        return f"bpf(2) refused: {os.strerror(code)}{hint}"
    os.close(descriptor)
    return None


def _ipvs() -> str | None:
    # Nothing loads the module by itself.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    modprobe = shutil.which("modprobe", path=path)
    if modprobe is not None:
        subprocess.run([modprobe, "ip_vs"], capture_output=True, check=False)
    return None if Path("/proc/self/net/ip_vs").exists() else "the kernel has no module ip_vs"


def _kafka() -> str | None:
    from tests.support.kafka import LIBRARY, fetch

    java = shutil.which("java")
    if java is None:
        return "no java on PATH"
    answer = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', answer.stderr)
    if version is None or int(version[1]) < 17:
        return f"Java 17 or newer, found {answer.stderr.strip().splitlines()[:1]}"
    if not any(LIBRARY.glob("kafka_*.jar")) and shutil.which("mvn") is None:
        return "neither the Kafka jars nor mvn to fetch them"
    try:
        fetch()
    except RuntimeError as error:
        return str(error)
    return None


def _clickhouse() -> str | None:
    # In a process of its own: the engine is large, and an unsuitable CPU would end this one.
    answer = subprocess.run(
        [sys.executable, "-c", _CLICKHOUSE_PROBE], capture_output=True, text=True, check=False
    )
    if answer.returncode or answer.stdout.strip() != "42":
        last = (answer.stderr.strip() or answer.stdout.strip() or "no output").splitlines()[-1]
        return f"the embedded ClickHouse engine does not run ({last})"
    return None


def _vm() -> str | None:
    # virtme-ng is installed beside the interpreter.
    path = f"{Path(sys.executable).parent}:/usr/sbin:/sbin:{os.environ.get('PATH', '')}"
    for tool in ("qemu-system-x86_64", "vng", "busybox", "depmod"):
        if shutil.which(tool, path=path) is None:
            return f"no {tool} on PATH (`make test-vm` installs it)"
    return None


REQUIREMENTS: Final[dict[str, Callable[[], str | None]]] = {
    "bpf": _bpf,
    "ipvs": _ipvs,
    "kafka": _kafka,
    "clickhouse": _clickhouse,
    "vm": _vm,
}
"""Marker name to a check that returns why it is missing, or None."""
