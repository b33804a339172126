from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from collector.attach import (
    CORE,
    NO_TRACEPOINT,
    Hook,
    Missing,
    attach,
    attach_first,
    missing_hooks,
    preempts_programs,
)
from collector.config import CollectorConfig, object_path, object_paths
from schemas.errors import BpfError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

RINGS = {"connections": 1 << 16, "transfers": 1 << 16, "processes": 1 << 16}


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("5.10.0-32-amd64", False),
        ("6.18.44", False),
        ("7.0.0-rc1", True),
        ("7.2.13+deb14-amd64", True),
        ("10.1.0", True),
        ("what", True),
    ],
)
def test_kernels_that_preempt_programs(release: str, expected: bool) -> None:
    assert preempts_programs(release) is expected


@pytest.mark.bpf
def test_spares_run_only_where_programs_are_preempted(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, found in (("6.18.0", 0), ("7.2.0", 16)):
        uname = os.uname()
        told = os.uname_result((uname.sysname, uname.nodename, release, uname.version, uname[4]))
        monkeypatch.setattr(os, "uname", lambda told=told: told)
        opened, hooks = attach(object_path(CollectorConfig()), {}, RINGS)
        opened.close()
        assert sum("_spare_" in hook.program for hook in hooks) == found
        assert all(hook.attached for hook in hooks)


def test_a_function_has_two_points_whichever_way_it_is_hooked() -> None:
    found = {
        section: (hook.twin, hook.way, hook.point)
        for section in ("fexit/ip_rcv", "kprobe/ip_rcv", "tp_btf/sys_enter", "iter/tcp")
        for hook in [Hook("x", section, attached=True)]
    }
    assert found == {
        "fexit/ip_rcv": ("fentry", "fexit", "ip_rcv_exit"),
        "kprobe/ip_rcv": ("kprobe", "kprobe", "ip_rcv_enter"),
        "tp_btf/sys_enter": ("", "tp_btf", "sys_enter"),
        "iter/tcp": ("", "iter", "tcp"),
    }


def test_what_is_hooked_one_way_is_not_missing() -> None:
    hooks = [
        Hook("a", "fentry/f", attached=False, reason="no"),
        Hook("b", "kprobe/f", attached=True),
        Hook("c", "fentry/g", attached=False, reason="no"),
        Hook("d", "kprobe/g", attached=False, reason="neither"),
        Hook("e", "fexit/h", attached=False, reason="off"),
        Hook("f", "kretprobe/h", attached=False, reason="off"),
        # Two programs of one tracepoint measure two things.
        Hook("i", "tp_btf/t", attached=True),
        Hook("j", "tp_btf/t", attached=False, reason="refused"),
    ]
    assert missing_hooks(hooks) == [
        Missing("g", "g_enter", ("fentry: no", "kprobe: neither")),
        Missing("h", "h_exit", ("off",)),
        Missing("t", "t", ("refused",)),
    ]


@pytest.mark.bpf
def test_everything_attaches_here() -> None:
    opened, hooks = attach(object_path(CollectorConfig()), {}, RINGS)
    try:
        assert [hook for hook in hooks if not hook.attached] == []
        assert set(CORE) <= {hook.target for hook in hooks}
        assert opened.max_entries("transfers") == 1 << 16
    finally:
        opened.close()


@pytest.mark.bpf
def test_a_program_that_the_kernel_refuses_takes_only_itself_away(tmp_path: Path) -> None:
    # The program's own name shares the string.
    assert _missing(_with_refused(tmp_path, "tp_btf/sched_process_exec")) == {
        "sched_process_exex": NO_TRACEPOINT
    }


@pytest.mark.bpf
def test_what_libbpf_or_the_verifier_refuses_is_found_one_by_one(tmp_path: Path) -> None:
    missing = _missing(_with_refused(tmp_path, "iter/task_file"))
    assert list(missing) == ["find_listeners", "find_sockets"]
    assert all("errno" in reason for reason in missing.values())


@pytest.mark.bpf
def test_a_core_hook_that_is_refused_is_fatal_and_named(tmp_path: Path) -> None:
    path = _with_refused(tmp_path, "tp_btf/sock_recv_length")
    with pytest.raises(BpfError, match=r"sock_recv_length \(bytes read\) cannot") as caught:
        attach(path, {}, RINGS)
    assert "\n" not in str(caught.value)


@pytest.mark.bpf
def test_the_next_object_is_taken_where_a_core_hook_is_missing(tmp_path: Path) -> None:
    lacking = _with_refused(tmp_path, "tp_btf/sock_recv_length")
    paths = object_paths(CollectorConfig())
    opened, hooks, passed_over = attach_first([lacking, paths[1]], {}, RINGS)
    opened.close()
    assert opened.path == paths[1]
    assert all(hook.attached for hook in hooks)
    assert not {"sock_send_length", "sock_recv_length"} & {hook.target for hook in hooks}
    assert "sock_recv_length (bytes read) cannot be used" in passed_over
    with pytest.raises(BpfError, match="sock_recv_length"):
        attach_first([lacking, lacking], {}, RINGS)


@pytest.mark.parametrize("release", ["7.0.0-rc1", "7.2.3-amd64", "unknown"])
def test_no_numbers_by_descriptor_where_programs_are_preempted(
    release: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release, machine="x86_64"))
    missing, by_descriptor = tmp_path / "none.bpf.o", tmp_path / "podwire-fd.bpf.o"
    with pytest.raises(BpfError, match="cannot number its records"):
        attach_first([by_descriptor], {}, RINGS)
    with pytest.raises(BpfError, match=r"none\.bpf\.o"):
        attach_first([missing, by_descriptor], {}, RINGS)


@pytest.mark.bpf
def test_the_first_object_is_preferred() -> None:
    paths = object_paths(CollectorConfig())
    opened, _, passed_over = attach_first(paths, {}, RINGS)
    opened.close()
    assert (opened.path, passed_over) == (paths[0], "")


@pytest.mark.bpf
def test_a_constant_that_the_object_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match="podwire_unknown"):
        attach(object_path(CollectorConfig()), {"podwire_unknown": 1}, RINGS)


def _missing(path: Path) -> dict[str, str]:
    """Why programs of an object are not attached."""
    opened, hooks = attach(path, {}, RINGS)
    opened.close()
    return {hook.program: hook.reason for hook in hooks if not hook.attached}


def _with_refused(tmp_path: Path, section: str) -> Path:
    """An object whose section asks for what no kernel has."""
    content = object_path(CollectorConfig()).read_bytes()
    name = f"{section}\0".encode()
    assert name in content
    wrong = section[:-1] + ("x" if section[-1] != "x" else "y")
    path = tmp_path / "refused.bpf.o"
    # The last letter changes, in the section names and in the BTF that refers to them.
    path.write_bytes(content.replace(name, f"{wrong}\0".encode()))
    return path
