"""Attaches the hooks of the stages: what a packet passes between the device and the socket.

A kernel function is hooked by all its fentry/fexit programs, else by all their kprobe/kretprobe
twins, else not at all. Which it is, is found by trying, never by kernel version: everything is
loaded at once; only if the kernel refuses, parts are loaded until it is known which functions it
refuses that way. A function or tracepoint that is not there takes away only its own programs, and
nothing here may stop the collector: the core figures need none of it.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import numpy as np

from collector.attach import NO_TRACEPOINT, Hook, twin_of
from collector.bpf_object import BpfObject
from collector.btf import unknown_names, unknown_tracepoints
from collector.config import allowed_twins, stages_path
from collector.refusals import reason_of
from schemas.errors import BpfError, PodwireError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from collector.bpf_object import Program
    from collector.config import CollectorConfig

__all__ = ["OFF", "TWINS", "Stages", "attach_stages", "no_kprobes", "start_stages", "unseen_in_ip"]

TWINS: Final = ("fentry", "kprobe")
"""Ways to hook a kernel function, the better one first."""
OFF: Final = "switched off by collector.stages"

_KPROBE_FILES: Final = (
    "/sys/bus/event_source/devices/kprobe/type",
    "/sys/kernel/tracing/kprobe_events",
    "/sys/kernel/debug/tracing/kprobe_events",
)
"""Any of these is enough for libbpf (``bpf_program__attach_kprobe_opts``)."""

_NAMES: Final = re.compile(r"^prog '[^']*': |( for)? '[^']*\+0x[0-9a-f]+'")


T = TypeVar("T", bound="_Loadable")


@dataclass(frozen=True, slots=True)
class _Unit:
    """Programs that are used together or not at all: those of a function in one of two ways."""

    target: str
    twin: str  # empty: a tracepoint, which has one program and no other way
    programs: tuple[Program, ...]


class _Loadable(Protocol):
    """What is asked of a `BpfObject` here."""

    def load(self) -> None: ...
    def attach(self, program: str) -> None: ...
    def detach(self, *programs: str) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages object that runs, and the state of its hooks."""

    object: BpfObject | None
    hooks: tuple[Hook, ...] = ()
    reason: str = ""
    """Why there is no object."""


def start_stages(config: CollectorConfig, core: BpfObject, constants: Mapping[str, int]) -> Stages:
    """Attach what the settings and this kernel allow; never raises a `PodwireError`."""
    if config.stages == "off":
        return Stages(None, reason=OFF)
    try:
        opened, hooks = attach_stages(core, stages_path(), allowed_twins(config), constants)
    except PodwireError as error:
        return Stages(None, reason=str(error).splitlines()[0])
    return Stages(opened, tuple(hooks), "" if opened else "this kernel takes none of its hooks")


def attach_stages(
    core: BpfObject,
    path: Path,
    twins: Sequence[str] = TWINS,
    constants: Mapping[str, int] | None = None,
) -> tuple[BpfObject | None, list[Hook]]:
    """Open, load and attach whatever this kernel takes of the stages object.

    Args:
        core: The loaded object whose maps it shares.
        path: The object file.
        twins: Ways to hook a kernel function that may be used, the preferred one first.
        constants: Values of ``const volatile`` variables, as far as the object has them.

    Returns:
        The running object, None if nothing could be attached; and every program that was tried,
        with the reason where it was refused. A program that was not needed is not listed.

    Raises:
        BpfError: If the file cannot be opened or no map can be shared.
        LayoutMismatch: If it sees a shared map otherwise than `core`.
    """
    opened = BpfObject(path)
    programs = opened.programs
    known = {each: value for each, value in (constants or {}).items() if each in opened.constants}
    opened.close()

    def open_with(units: Collection[_Unit]) -> BpfObject:
        opened = BpfObject(path)
        try:
            if known:
                opened.set_rodata(known)
            opened.share_maps(core)
            chosen = {program for unit in units for program in unit.programs}
            for program in programs:
                opened.set_autoload(program.name, program in chosen)
        except BaseException:
            opened.close()
            raise
        return opened

    units = _units(programs)
    return _run(open_with, units, twins, _hopeless(units, twins))


def unseen_in_ip(opened: BpfObject) -> int:
    """Return how many packets no hook saw in IP although hooks saw others of their connections.

    The kernel leaves out the programs of kprobes in interrupts that come at certain moments.
    """
    return int(np.frombuffer(opened.read_percpu("unseen_in_ip", 0), np.uint64).sum())


def no_kprobes(paths: Sequence[str] = _KPROBE_FILES) -> str:
    """Return why no kprobe can be attached here, empty if one may be."""
    if any(Path(path).exists() for path in paths):
        return ""
    return "this kernel has no kprobes (CONFIG_KPROBE_EVENTS), or /sys does not show them"


def _units(programs: Sequence[Program]) -> list[_Unit]:
    grouped: dict[tuple[str, str], list[Program]] = {}
    for program in programs:
        key = (program.section.rpartition("/")[2], twin_of(program.section))
        grouped.setdefault(key, []).append(program)
    return [_Unit(*key, tuple(each)) for key, each in grouped.items()]


def _hopeless(units: Sequence[_Unit], twins: Sequence[str]) -> dict[_Unit, str]:
    """What needs no trial, with the reason."""
    reasons: dict[_Unit, str] = {}
    without_kprobes = no_kprobes()
    no_functions = unknown_names({unit.target for unit in units if unit.twin == "fentry"})
    no_tracepoints = unknown_tracepoints({unit.target for unit in units if not unit.twin})
    for unit in units:
        if unit.twin and unit.twin not in twins:
            reasons[unit] = OFF
        elif unit.twin == "kprobe" and without_kprobes:
            reasons[unit] = without_kprobes
        elif unit.twin == "fentry" and unit.target in no_functions:
            reasons[unit] = "the kernel's BTF has no such function"
        elif not unit.twin and unit.target in no_tracepoints:
            reasons[unit] = NO_TRACEPOINT
    return reasons


def _run(
    open_with: Callable[[Collection[_Unit]], T],
    units: Sequence[_Unit],
    twins: Sequence[str],
    refused: Mapping[_Unit, str],
) -> tuple[T | None, list[Hook]]:
    """Load and attach until every target is attached or has no way left."""
    refused = dict(refused)
    while chosen := _choose(units, twins, refused):
        opened = open_with(chosen)
        try:
            opened.load()
        except BpfError as error:
            opened.close()
            found = _find_refused(chosen, open_with)
            if not found:  # each part loads alone, but not all together: do with less
                less = [unit for unit in chosen if unit.twin] or chosen
                found = dict.fromkeys(less, _reason(error))
            refused |= found
            continue
        refused |= _attach_all(opened, chosen)
        attached = [unit for unit in chosen if unit not in refused]
        if attached and attached == _choose(units, twins, refused):
            return opened, _hooks(units, twins, refused)
        opened.close()  # what was refused has another way left, or nothing is attached
    return None, _hooks(units, twins, refused)


def _choose(
    units: Sequence[_Unit], twins: Sequence[str], refused: Mapping[_Unit, str]
) -> list[_Unit]:
    """The first way that is left for every target, in the order of the object."""
    order = ("", *twins)
    best: dict[tuple[str, bool], _Unit] = {}
    for unit in units:
        if unit in refused:
            continue
        key = (unit.target, bool(unit.twin))
        if key not in best or order.index(unit.twin) < order.index(best[key].twin):
            best[key] = unit
    return [unit for unit in units if unit in best.values()]


def _find_refused(
    chosen: Sequence[_Unit], open_with: Callable[[Collection[_Unit]], _Loadable]
) -> dict[_Unit, str]:
    found: dict[_Unit, str] = {}
    for twin in dict.fromkeys(unit.twin for unit in chosen):
        found |= _search([unit for unit in chosen if unit.twin == twin], open_with)
    return found


def _search(
    units: Sequence[_Unit], open_with: Callable[[Collection[_Unit]], _Loadable]
) -> dict[_Unit, str]:
    """Which units of one kind the kernel refuses: by halves, as mostly few are."""
    opened = open_with(units)
    try:
        opened.load()
    except BpfError as error:
        # Not permitted is the kind, whichever its programs: one trial tells for all.
        if len(units) == 1 or error.errno == errno.EPERM:
            return dict.fromkeys(units, _reason(error))
    else:
        return {}
    finally:
        opened.close()
    middle = len(units) // 2
    return _search(units[:middle], open_with) | _search(units[middle:], open_with)


def _attach_all(opened: _Loadable, units: Sequence[_Unit]) -> dict[_Unit, str]:
    """Attach in the order of the object; a unit of which one program fails is detached again."""
    refused: dict[_Unit, str] = {}
    for unit in units:
        try:
            for program in unit.programs:
                opened.attach(program.name)
        except BpfError as error:
            opened.detach(*(program.name for program in unit.programs))
            refused[unit] = _reason(error)
    return refused


def _hooks(
    units: Sequence[_Unit], twins: Sequence[str], refused: Mapping[_Unit, str]
) -> list[Hook]:
    """What was tried for each target, up to what is attached."""
    attached = _choose(units, twins, refused)
    settled = {(unit.target, bool(unit.twin)): unit for unit in attached}
    hooks = []
    for unit in units:
        used = settled.get((unit.target, bool(unit.twin)))
        if unit is used:
            hooks += [Hook(each.name, each.section, attached=True) for each in unit.programs]
        elif used is None or unit.twin in twins[: twins.index(used.twin)]:
            reason = refused[unit]
            hooks += [Hook(each.name, each.section, False, reason) for each in unit.programs]
    return hooks


def _reason(error: BpfError) -> str:
    # Without the names of program and function, which the hook has: one reason stands for many.
    return _NAMES.sub("", reason_of(error))
