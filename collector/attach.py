"""Which programs run here: found by trying, one by one where needed, not by kernel version.

Everything is loaded at once first. If the kernel refuses, each program is loaded alone to learn
which ones it refuses and why, and the others are loaded without them. A hook that is missing
takes away only what it measures, unless the whole collector would be pointless without it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from collector.bpf_object import BpfObject
from collector.btf import unknown_tracepoints
from collector.refusals import explain, reason_of
from schemas.errors import BpfError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from collector.bpf_object import Program

__all__ = [
    "CORE",
    "LISTENERS",
    "NO_TRACEPOINT",
    "Hook",
    "Missing",
    "attach",
    "attach_first",
    "core_of",
    "missing_hooks",
    "preempts_programs",
    "twin_of",
]

CORE: Final[Mapping[str, str]] = {
    "inet_sock_set_state": "opened and closed connections",
    "tcp_destroy_sock": "closed connections",
    "sys_enter": "accepted connections and the duration of calls",
    "sys_exit": "accepted connections and the duration of calls",
    "sock_send_length": "bytes written",
    "sock_recv_length": "bytes read",
}
"""Kernel hooks without which no number would be right, and what they tell."""

BY_DESCRIPTOR: Final = "podwire-fd.bpf.o"
"""The object that learns bytes by file descriptor, so without the hooks of sockets."""
_BYTES: Final = ("sock_send_length", "sock_recv_length")
_ENDS: Final = ("tcp_destroy_sock", "sched_process_exit")
"""Where what is kept of a socket or a task by its address or id is forgotten. A socket that is
gone before its end can be seen leaves its state to the next one of its address."""

_FUNCTION_HOOKS: Final = {
    "fentry": ("fentry", "_enter"),
    "fexit": ("fentry", "_exit"),
    "kprobe": ("kprobe", "_enter"),
    "kretprobe": ("kprobe", "_exit"),
}
"""By the kind of section: which way of hooking functions it is, and which end it hooks."""
NO_TRACEPOINT: Final = "the kernel's BTF has no such tracepoint"
"""Why a program is not tried."""
_TRIAL_RING_BYTES: Final = 65_536
LISTENERS: Final = "find_listeners"
"""The iterator over listening sockets."""
_SPARE: Final = "_spare_"
"""In the names of programs that are of use only where the kernel preempts programs."""
_PREEMPTING_MAJOR: Final = 7


@dataclass(frozen=True, slots=True)
class Hook:
    """What became of one program."""

    program: str
    section: str
    attached: bool
    reason: str = ""
    """Why it is missing."""

    @property
    def target(self) -> str:
        """The kernel's name of what it hooks, such as ``inet_sock_set_state``."""
        return self.section.rpartition("/")[2]

    @property
    def way(self) -> str:
        """How it is hooked, such as ``tp_btf``, ``fentry`` or ``kretprobe``."""
        return self.section.partition("/")[0]

    @property
    def twin(self) -> str:
        """Which of the ways to hook a function it belongs to; empty if it hooks no function."""
        return twin_of(self.section)

    @property
    def point(self) -> str:
        """What it hooks, whichever way: a tracepoint, or a function's ``_enter`` or ``_exit``."""
        _, end = _FUNCTION_HOOKS.get(self.way, ("", ""))
        return self.target + end


@dataclass(frozen=True, slots=True)
class Missing:
    """What could not be hooked, and why: a reason for each way that was tried."""

    target: str
    point: str
    reasons: tuple[str, ...]

    @property
    def reason(self) -> str:
        """All of them in one line."""
        return "; ".join(self.reasons)


def twin_of(section: str) -> str:
    """Return ``fentry`` or ``kprobe`` for a program that hooks a function either way, or empty."""
    return _FUNCTION_HOOKS.get(section.partition("/")[0], ("", ""))[0]


def core_of(path: Path) -> tuple[str, ...]:
    """Return the targets of `CORE` that an object cannot do without."""
    by_descriptor = path.name == BY_DESCRIPTOR
    return tuple(each for each in CORE if not (by_descriptor and each in _BYTES))


def attach_first(
    paths: Sequence[Path],
    constants: Mapping[str, int],
    rings: Mapping[str, int],
    prepare: Callable[[BpfObject], None] | None = None,
) -> tuple[BpfObject, list[Hook], str]:
    """Attach the first object whose core hooks this kernel takes.

    Args:
        paths: The objects in order of preference, at least one.
        constants: As for `attach`.
        rings: As for `attach`.
        prepare: As for `attach`; called again for every object that is tried.

    Returns:
        As `attach`, and why the ones before were passed over, empty for the first.

    Raises:
        BpfError: The first object's, if there is none. One whose records could not be told apart
            here is passed over as well.
    """
    errors: list[BpfError] = []
    for path in paths:
        try:
            _require_nesting(path, os.uname().release)
            opened, hooks = attach(path, constants, rings, core_of(path), prepare)
        except BpfError as error:
            errors.append(error)
        else:
            return opened, hooks, "; ".join(error.operation for error in errors)
    raise errors[0]


def _require_nesting(path: Path, release: str) -> None:
    # Its numbers (take_number in bpf/include/hashes.h) need programs that interrupt each other but
    # are never left for another task: else two connections would have one id.
    if path.name == BY_DESCRIPTOR and preempts_programs(release):
        raise BpfError(
            f"{path.name} cannot number its records where programs are preempted, as in {release}",
            errno.EOPNOTSUPP,
        )


def attach(
    path: Path,
    constants: Mapping[str, int],
    rings: Mapping[str, int],
    core: Collection[str] = tuple(CORE),
    prepare: Callable[[BpfObject], None] | None = None,
) -> tuple[BpfObject, list[Hook]]:
    """Open, load and attach whatever this kernel takes of an object.

    Args:
        path: The object file.
        constants: Values of its ``const volatile`` variables.
        rings: Size in bytes by the name of the ring map.
        core: Targets that must be attached.
        prepare: Called with the loaded object before any of its programs is attached.

    Returns:
        The running object and the state of every program that is of use on this kernel. Iterators
        are attached, not run.

    Raises:
        BpfError: If nothing can be loaded or a core hook is missing; says what to do about it.
    """
    opened, programs, refused = _load(path, constants, rings, core)
    try:
        if prepare is not None:
            prepare(opened)
        found = _find_listeners(opened, programs, refused)
        hooks = [found.get(each.name) or _attach_one(opened, each, refused) for each in programs]
        _require_core(hooks, core)
    except BaseException:
        opened.close()
        raise
    return opened, hooks


def _load(
    path: Path, constants: Mapping[str, int], rings: Mapping[str, int], core: Collection[str]
) -> tuple[BpfObject, list[Program], dict[str, str]]:
    # All but what the kernel refuses, which is named with the reason.
    needs_spares = preempts_programs(os.uname().release)
    opened = _open(path, constants, rings)
    programs = sorted(
        (each for each in opened.programs if needs_spares or _SPARE not in each.name),
        key=lambda each: not each.section.endswith(_ENDS),  # the ends first, else as in the file
    )
    refused = _unknown(programs)
    known = [each for each in programs if each.name not in refused]
    try:
        _require_core([_hook(each, refused) for each in programs], core)
        _choose(opened, known)
    except BaseException:
        opened.close()
        raise
    try:
        opened.load()
    except BpfError as error:
        opened.close()
        refused |= _refused(path, constants, rings, known)
        if len(refused) == len(programs):
            raise explain(error) from error
        opened = _open(path, constants, rings)
        try:
            _choose(opened, [each for each in programs if each.name not in refused])
            opened.load()
        except BpfError as second:
            opened.close()
            raise explain(second) from second
    return opened, programs, refused


def _unknown(programs: Sequence[Program]) -> dict[str, str]:
    # libbpf says so too, but only after the verifier has been through the programs before them.
    targets = {
        each.name: each.section.partition("/")[2]
        for each in programs
        if each.section.startswith("tp_btf/")
    }
    unknown = unknown_tracepoints(set(targets.values()))
    return {name: NO_TRACEPOINT for name, target in targets.items() if target in unknown}


def _find_listeners(
    opened: BpfObject, programs: Sequence[Program], refused: Mapping[str, str]
) -> dict[str, Hook]:
    # Before anything else is attached: the role of a connection that is older than the programs is
    # decided at its first touch, which can come at once.
    hooks = {}
    for program in programs:
        if program.name == LISTENERS:
            hook = _attach_one(opened, program, refused)
            if hook.attached:
                with contextlib.suppress(BpfError):  # it is run again, and its failure told
                    opened.run_iterator(program.name)
            hooks[program.name] = hook
    return hooks


def _require_core(hooks: Sequence[Hook], core: Collection[str]) -> None:
    attached = {hook.target for hook in hooks if hook.attached}
    for target in core:
        if target in attached:
            continue
        reasons = [hook.reason for hook in hooks if hook.target == target]
        reason = reasons[0] if reasons else "the object has no program for it"
        meaning = CORE.get(target, "a core measurement")
        raise BpfError(
            f"the kernel hook {target} ({meaning}) cannot be used: {reason}", errno.EOPNOTSUPP
        )


def preempts_programs(release: str) -> bool:
    """Whether a kernel may preempt a tracepoint's program and run another task.

    Nothing that can be tried tells. Linux kernel commit a46023d5616e ("tracing: Guard
    __DECLARE_TRACE() use of __DO_TRACE_CALL() with SRCU-fast") (in v7.0).

    Args:
        release: As of ``uname -r``. When in doubt, yes: spares only cost time.
    """
    major = release.partition(".")[0]
    return not major.isdecimal() or int(major) >= _PREEMPTING_MAJOR


def _choose(opened: BpfObject, programs: Sequence[Program]) -> None:
    for each in opened.programs:
        opened.set_autoload(each.name, each in programs)


def _open(path: Path, constants: Mapping[str, int], rings: Mapping[str, int]) -> BpfObject:
    opened = BpfObject(path)
    try:
        opened.set_rodata(constants)
        for name, size in rings.items():
            opened.set_max_entries(name, size)
    except BaseException:
        opened.close()
        raise
    return opened


def _refused(
    path: Path,
    constants: Mapping[str, int],
    rings: Mapping[str, int],
    programs: Sequence[Program],
) -> dict[str, str]:
    small = dict.fromkeys(rings, _TRIAL_RING_BYTES)
    reasons: dict[str, str] = {}
    for program in programs:
        trial = _open(path, constants, small)
        try:
            _choose(trial, [program])
            trial.load()
        except BpfError as error:
            reasons[program.name] = reason_of(error)
        finally:
            trial.close()
    return reasons


def _attach_one(opened: BpfObject, program: Program, refused: Mapping[str, str]) -> Hook:
    hook = _hook(program, refused)
    if hook.attached:
        try:
            opened.attach(program.name)
        except BpfError as error:
            return _hook(program, {program.name: reason_of(error)})
    return hook


def _hook(program: Program, refused: Mapping[str, str]) -> Hook:
    reason = refused.get(program.name, "")
    return Hook(program.name, program.section, attached=not reason, reason=reason)


def missing_hooks(hooks: Sequence[Hook]) -> list[Missing]:
    """Return what is hooked in no way at all, an end of a function once for all its ways."""
    attached = {hook.point for hook in hooks if hook.attached and hook.twin}
    tries: dict[str, list[Hook]] = {}
    for hook in hooks:
        if not hook.attached and hook.point not in attached:
            tries.setdefault(hook.point if hook.twin else hook.program, []).append(hook)
    return [Missing(each[0].target, each[0].point, _reasons(each)) for each in tries.values()]


def _reasons(tries: list[Hook]) -> tuple[str, ...]:
    if len(tries) > 1 and len({hook.reason for hook in tries}) == 1:
        return (tries[0].reason,)
    return tuple(f"{hook.twin}: {hook.reason}" if hook.twin else hook.reason for hook in tries)
