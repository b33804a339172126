from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from collector.attach import attach, missing_hooks
from collector.bpf_object import BpfObject, Program
from collector.config import CollectorConfig, object_path, stages_path
from collector.stages import (
    OFF,
    TWINS,
    Stages,
    _hopeless,
    _reason,
    _run,
    _units,
    attach_stages,
    no_kprobes,
    start_stages,
)
from schemas.errors import BpfError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from collector.attach import Hook
    from collector.stages import _Unit

RINGS = {"connections": 1 << 16, "transfers": 1 << 16, "processes": 1 << 16}
FUNCTIONS = ("tcp_sendmsg", "ip_rcv", "tcp_v4_rcv", "ip6_input")


def _programs(*functions: str) -> list[Program]:
    """A tracepoint, then for each function the four programs that an object has."""
    found = [Program("tcp_probe", "tp_btf/tcp_probe")]
    for name in functions:
        found += [
            Program(f"{name}_exit", f"fexit/{name}"),
            Program(f"{name}_exit_probe", f"kretprobe/{name}"),
            Program(f"{name}_enter", f"fentry/{name}"),
            Program(f"{name}_enter_probe", f"kprobe/{name}"),
        ]
    return found


@dataclass
class FakeKernel:
    """Refuses what it is told to, by program or by kind of section; keeps what was done."""

    programs: list[Program]
    no_load: dict[str, int] = field(default_factory=dict)
    no_attach: dict[str, int] = field(default_factory=dict)
    too_many: int = 1000
    loads: list[list[str]] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    open: int = 0

    def open_with(self, units: Collection[_Unit]) -> FakeObject:
        self.open += 1
        return FakeObject(self, [program for unit in units for program in unit.programs])

    def run(self, twins: tuple[str, ...] = TWINS) -> tuple[FakeObject | None, list[Hook]]:
        return _run(self.open_with, _units(self.programs), twins, {})


@dataclass
class FakeObject:
    kernel: FakeKernel
    chosen: list[Program]
    links: list[str] = field(default_factory=list)

    def _refuse(self, refused: dict[str, int], programs: list[Program]) -> None:
        for program in programs:
            code = refused.get(program.name) or refused.get(program.section.partition("/")[0])
            if code:
                log = f"libbpf: prog '{program.name}': refused\nlibbpf: failed"
                raise BpfError("load", code, log)

    def load(self) -> None:
        self.kernel.loads.append([program.name for program in self.chosen])
        self._refuse(self.kernel.no_load, self.chosen)
        if len(self.chosen) > self.kernel.too_many:
            raise BpfError("load", errno.ENOMEM)

    def attach(self, program: str) -> None:
        self._refuse(self.kernel.no_attach, [each for each in self.chosen if each.name == program])
        self.links.append(program)

    def detach(self, *programs: str) -> None:
        self.links = [each for each in self.links if each not in programs]

    def close(self) -> None:
        self.kernel.open -= 1
        self.links = []


def _ways(hooks: list[Hook]) -> dict[str, set[str]]:
    ways: dict[str, set[str]] = {}
    for hook in hooks:
        if hook.attached:
            ways.setdefault(hook.target, set()).add(hook.way)
    return ways


def test_where_all_is_allowed_one_load_is_enough_and_the_twins_stay_away() -> None:
    kernel = FakeKernel(_programs(*FUNCTIONS))
    opened, hooks = kernel.run()
    assert opened is not None
    assert len(kernel.loads) == 1
    assert _ways(hooks) == {name: {"fentry", "fexit"} for name in FUNCTIONS} | {
        "tcp_probe": {"tp_btf"}
    }
    assert opened.links == [hook.program for hook in hooks]
    assert not any("probe" in hook.section for hook in hooks if hook.twin)


def test_one_program_that_does_not_load_sends_its_function_to_the_twins() -> None:
    kernel = FakeKernel(_programs(*FUNCTIONS), no_load={"ip_rcv_exit": errno.EINVAL})
    opened, hooks = kernel.run()
    assert opened is not None
    assert _ways(hooks)["ip_rcv"] == {"kprobe", "kretprobe"}
    assert _ways(hooks)["tcp_v4_rcv"] == {"fentry", "fexit"}
    refused = {hook.program: hook.reason for hook in hooks if not hook.attached}
    assert refused == dict.fromkeys(("ip_rcv_exit", "ip_rcv_enter"), "refused (errno 22)")
    assert missing_hooks(hooks) == []
    assert kernel.open == 1


def test_what_is_not_permitted_is_found_with_one_trial_for_all() -> None:
    kernel = FakeKernel(
        _programs(*FUNCTIONS), no_load={"fentry": errno.EPERM, "fexit": errno.EPERM}
    )
    _, hooks = kernel.run()
    assert _ways(hooks)["tcp_sendmsg"] == {"kprobe", "kretprobe"}
    # All at once, the tracepoint, everything of fentry, and what then runs.
    assert [len(each) for each in kernel.loads] == [9, 1, 8, 9]


def test_few_that_do_not_load_are_found_by_halves() -> None:
    functions = [f"function_{number}" for number in range(16)]
    kernel = FakeKernel(_programs(*functions), no_load={"function_5_enter": errno.EINVAL})
    _, hooks = kernel.run()
    assert _ways(hooks)["function_5"] == {"kprobe", "kretprobe"}
    assert sum("fentry" in each for each in _ways(hooks).values()) == 15
    assert len(kernel.loads) <= 2 + 2 * 5 + 1


def test_what_does_not_attach_goes_to_the_twins_and_leaves_no_half() -> None:
    kernel = FakeKernel(
        _programs("ip_rcv", "tcp_v4_rcv"),
        no_attach={"ip_rcv_enter": 524, "tcp_v4_rcv_enter": 524, "tcp_v4_rcv_enter_probe": 2},
    )
    opened, hooks = kernel.run()
    assert opened is not None
    assert _ways(hooks) == {"tcp_probe": {"tp_btf"}, "ip_rcv": {"kprobe", "kretprobe"}}
    assert opened.links == ["tcp_probe", "ip_rcv_exit_probe", "ip_rcv_enter_probe"]
    assert {each.point: each.reasons for each in missing_hooks(hooks)} == dict.fromkeys(
        ("tcp_v4_rcv_exit", "tcp_v4_rcv_enter"),
        ("fentry: refused (errno 524)", "kprobe: refused (errno 2)"),
    )
    assert len(kernel.loads) == 2
    assert kernel.open == 1


def test_a_tracepoint_that_is_refused_takes_only_itself_away() -> None:
    kernel = FakeKernel(_programs("ip_rcv"), no_load={"tcp_probe": errno.EINVAL})
    _, hooks = kernel.run()
    assert _ways(hooks) == {"ip_rcv": {"fentry", "fexit"}}
    assert [(each.point, each.reason) for each in missing_hooks(hooks)] == [
        ("tcp_probe", "refused (errno 22)")
    ]


@pytest.mark.parametrize("step", ["no_load", "no_attach"])
def test_where_nothing_is_allowed_nothing_stays_open(step: str) -> None:
    kernel = FakeKernel(_programs(*FUNCTIONS))
    kinds = ("tp_btf", "fentry", "fexit", "kprobe", "kretprobe")
    setattr(kernel, step, dict.fromkeys(kinds, errno.EINVAL))
    opened, hooks = kernel.run()
    assert opened is None
    assert kernel.open == 0
    assert {hook.program for hook in hooks} == {program.name for program in kernel.programs}
    assert all(hook.reason for hook in hooks)


def test_what_loads_alone_but_not_together_is_done_without() -> None:
    kernel = FakeKernel(_programs(*FUNCTIONS), too_many=8)
    opened, hooks = kernel.run()
    assert opened is not None
    assert _ways(hooks) == {"tcp_probe": {"tp_btf"}}
    assert {hook.reason for hook in hooks} == {"", "load (errno 12)"}
    kernel.too_many = 0
    assert kernel.run()[0] is None


def test_the_order_of_the_ways_is_the_callers() -> None:
    _, hooks = FakeKernel(_programs("ip_rcv")).run(("kprobe", "fentry"))
    assert _ways(hooks)["ip_rcv"] == {"kprobe", "kretprobe"}


def test_what_may_not_be_used_says_so() -> None:
    units = _units(_programs("tcp_v4_rcv"))
    reasons = {unit.twin: reason for unit, reason in _hopeless(units, ("kprobe",)).items()}
    assert reasons["fentry"] == OFF
    assert reasons.get("kprobe") != OFF


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            "libbpf: prog 'ip_rcv_enter': BPF program load failed: Operation not permitted",
            "BPF program load failed: Operation not permitted (errno 1)",
        ),
        (
            "libbpf: prog 'ip_rcv_enter_probe': failed to create kprobe 'ip_rcv+0x0' perf event:"
            " No such file or directory",
            "failed to create kprobe perf event: No such file or directory (errno 1)",
        ),
        (
            "libbpf: failed to add legacy kprobe event for 'ip_rcv+0x0': Permission denied",
            "failed to add legacy kprobe event: Permission denied (errno 1)",
        ),
    ],
)
def test_a_reason_names_no_function_so_that_it_is_the_same_for_all(log: str, expected: str) -> None:
    assert _reason(BpfError("load", errno.EPERM, log)) == expected


def test_one_file_of_kprobes_is_enough(tmp_path: Path) -> None:
    paths = [str(tmp_path / "type"), str(tmp_path / "kprobe_events")]
    assert "kprobes" in no_kprobes(paths)
    (tmp_path / "kprobe_events").touch()
    assert no_kprobes(paths) == ""


def test_switched_off_nothing_is_opened() -> None:
    core = object.__new__(BpfObject)  # not touched
    assert start_stages(CollectorConfig(stages="off"), core, {}) == Stages(None, reason=OFF)


@pytest.fixture
def core() -> Iterator[BpfObject]:
    opened, _ = attach(object_path(CollectorConfig()), {"podwire_stages": 1}, RINGS, core=())
    yield opened
    opened.close()


@pytest.mark.bpf
def test_here_every_target_is_attached_or_says_why_not(core: BpfObject) -> None:
    opened, hooks = attach_stages(core, stages_path())
    assert opened is not None
    try:
        targets = {program.section.rpartition("/")[2] for program in opened.programs}
        assert {hook.target for hook in hooks} == targets
        assert all(hook.attached is not bool(hook.reason) for hook in hooks)
        # Tracepoints need nothing but what the core needs.
        assert all(hook.attached for hook in hooks if not hook.twin)
        for hook in hooks:
            assert "\n" not in hook.reason
    finally:
        opened.close()


@pytest.mark.bpf
def test_without_twins_only_tracepoints_are_attached(core: BpfObject) -> None:
    opened, hooks = attach_stages(core, stages_path(), twins=())
    assert opened is not None
    opened.close()
    assert {hook.way for hook in hooks if hook.attached} == {"tp_btf"}
    assert {hook.reason for hook in hooks if not hook.attached} == {OFF}


@pytest.mark.bpf
def test_a_tracepoint_that_the_kernel_lacks_costs_only_its_own_program(
    core: BpfObject, tmp_path: Path
) -> None:
    content = stages_path().read_bytes()
    assert b"tp_btf/tcp_probe\0" in content
    path = tmp_path / "other.bpf.o"
    path.write_bytes(content.replace(b"tp_btf/tcp_probe\0", b"tp_btf/tcp_probx\0"))
    opened, hooks = attach_stages(core, path, twins=())
    assert opened is not None
    opened.close()
    missing = [each for each in missing_hooks(hooks) if not each.reason.endswith(OFF)]
    assert [(each.point, each.reason) for each in missing] == [
        ("tcp_probx", "the kernel's BTF has no such tracepoint")
    ]
    assert "tcp_probx" not in {hook.target for hook in hooks if hook.attached}


@pytest.mark.bpf
def test_an_object_that_cannot_be_used_leaves_the_core_alone(
    core: BpfObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "broken.bpf.o"
    path.write_bytes(b"\x7fELF nothing more")
    monkeypatch.setattr("collector.stages.stages_path", lambda: path)
    stages = start_stages(CollectorConfig(), core, {})
    assert (stages.object, stages.hooks) == (None, ())
    assert "broken.bpf.o" in stages.reason
    assert "\n" not in stages.reason
    assert core.map_fd("counts") > 0
