"""What runs inside the virtual machine: ``python -m tests.vm.guest OUTPUT COSTS [pytest ...]``.

First every object is loaded, without what is refused, to learn what the verifier says of each
program, if COSTS is ``costs``; then pytest, for which what every kernel tried here has is demanded.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from collector.bpf_object import BpfObject
from collector.config import RINGS
from schemas.errors import BpfError
from tests.bpf.harness import SWITCHES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.bpf_object import Program

__all__ = ["main", "read_cost", "verify"]

_LOG_BYTES: Final = 1 << 18
_STATISTICS_ONLY: Final = 4  # BPF_LOG_STATS
_FILES: Final = 65_536
_DEMANDED: Final = "bpf,fentry,ipvs,kprobe,netem,plug"


def main(arguments: list[str]) -> int:
    """Write ``report.json`` and ``pytest.log``; returns pytest's exit status."""
    output = Path(arguments[0])
    # For programs that tests pin; virtme-ng mounts no such file system.
    subprocess.run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"], check=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
    report: dict[str, Any] = {"release": platform.release()}
    if arguments[1] == "costs":
        objects = sorted(Path("bpf/objects", platform.machine()).glob("*.bpf.o"))
        report["programs"] = {path.name.partition(".")[0]: verify(path) for path in objects}
    (output / "report.json").write_text(json.dumps(report))
    os.environ.setdefault("PODWIRE_REQUIRE", _DEMANDED)
    # Of the machine's files only /tmp can be written here.
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = "/tmp/hypothesis"
    command = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", *arguments[2:]]
    with (output / "pytest.log").open("w") as log:
        report["pytest"] = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    (output / "report.json").write_text(json.dumps(report, indent=1))
    return int(report["pytest"])


def verify(path: Path) -> dict[str, dict[str, Any]]:
    """Return by program whether the kernel takes it and what its check costs, or the refusal."""
    opened = BpfObject(path)
    programs = opened.programs
    opened.close()
    return _verify(path, programs)


def _verify(path: Path, programs: Sequence[Program]) -> dict[str, dict[str, Any]]:
    """Load these programs only; where one is refused, what comes after it once more."""
    opened = BpfObject(path)
    logs = {each.name: ctypes.create_string_buffer(_LOG_BYTES) for each in programs}
    refusal = ""
    try:
        for program in opened.programs:
            opened.set_autoload(program.name, program in programs)
        for ring in opened.maps().keys() & set(RINGS):
            opened.set_max_entries(ring, 65_536)
        if switches := dict.fromkeys(opened.constants & set(SWITCHES), 1):
            opened.set_rodata(switches)
        for name, log in logs.items():
            _log_to(opened, name, log)
        opened.load()
    except BpfError as error:
        refusal = str(error)
    finally:
        opened.close()
    said = {name: log.value.decode(errors="replace") for name, log in logs.items()}
    found: dict[str, dict[str, Any]] = {name: read_cost(text) for name, text in said.items()}
    if not refusal:
        return found
    # libbpf names who is refused; for the verifier, who was loaded last speaks last.
    named = re.findall(r"prog '(\w+)'", refusal) + [name for name in said if said[name]][-1:]
    name = next((name for name in named if name in said), None)
    if name is None:  # it is not for any of them: a kind of map is not known
        return {each: {"refused": refusal.splitlines()[-12:]} for each in said}
    found[name] = {"refused": [*said[name].splitlines(), *refusal.splitlines()][-12:]}
    later = programs[list(said).index(name) + 1 :]
    return found | (_verify(path, later) if later else {})


def read_cost(log: str) -> dict[str, int]:
    """Read the verifier's closing words: instructions processed and bytes of stack.

    The stack of the deepest chain of calls is not said, only each function's; this is their sum.
    """
    processed = re.search(r"processed (\d+) insns", log)
    stack = re.search(r"stack depth ([\d+]+)", log)
    return {
        "instructions": int(processed[1]) if processed else 0,
        "stack": sum(map(int, stack[1].split("+"))) if stack else 0,
    }


def _log_to(opened: BpfObject, program: str, log: ctypes.Array[ctypes.c_char]) -> None:
    library = ctypes.CDLL("libbpf.so.1")
    pointer = ctypes.c_void_p(opened._programs[program][1])
    library.bpf_program__set_log_buf(pointer, log, ctypes.c_size_t(len(log)))
    library.bpf_program__set_log_level(pointer, ctypes.c_uint32(_STATISTICS_ONLY))


if __name__ == "__main__":
    os.environ.setdefault("HOME", "/root")
    sys.exit(main(sys.argv[1:]))
