"""Programs stand alone, so that a missing tracepoint costs only what it measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.bpf_object import BpfObject
from collector.btf import parse_btf
from tests.bpf.harness import BY_DESCRIPTOR, OBJECT, SWITCHES, Watch

pytestmark = pytest.mark.bpf


def test_each_program_loads_without_the_others(variant: Path) -> None:
    opened = BpfObject(variant)
    programs = opened.programs
    opened.close()
    assert len(programs) == (29 if variant == OBJECT else 21)
    for program in programs:
        alone = BpfObject(variant)
        try:
            for other in programs:
                alone.set_autoload(other.name, other == program)
            alone.set_max_entries("transfers", 65536)
            alone.set_rodata(dict.fromkeys(SWITCHES, 1))
            alone.load()
        finally:
            alone.close()


def test_all_hooks_are_there(watch: Watch) -> None:
    kernel = parse_btf(Path("/sys/kernel/btf/vmlinux").read_bytes())
    for hook in watch.hooks:
        expected = hook.section.startswith("iter/") or kernel.has_tracepoint(hook.target)
        assert hook.attached is expected, hook


@pytest.mark.parametrize("path", [OBJECT, BY_DESCRIPTOR], ids=["socket", "descriptor"])
def test_a_call_is_left_before_it_is_entered(path: Path) -> None:
    """The order of the object is the order of attaching; see programs/calls.h."""
    opened = BpfObject(path)
    names = [program.name for program in opened.programs]
    opened.close()
    exits = [names.index(name) for name in names if name.startswith("sys_exit")]
    assert max(exits) < names.index("sys_enter")
    assert names.index("find_listeners") < names.index("find_sockets")
