from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from collector.abi import COUNTS, Kind
from collector.bpf_object import BpfObject
from collector.config import CollectorConfig, object_path, object_paths, stages_path
from collector.libbpf import _FUNCTIONS, _OPTIONAL, load_library
from schemas.errors import BpfError, ConfigError, LayoutMismatch

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.bpf


@pytest.fixture
def opened() -> Iterator[BpfObject]:
    opened = BpfObject(object_path(CollectorConfig()))
    yield opened
    opened.close()


def test_every_function_has_its_types() -> None:
    library = load_library()
    for name, (_, arguments) in (_FUNCTIONS | _OPTIONAL).items():
        if library.has(name):
            function: Any = library._functions[name]
            assert function.argtypes == arguments
    assert library.version.startswith("v")


def test_a_file_that_is_no_object_gives_libbpfs_own_words(tmp_path: Path) -> None:
    path = tmp_path / "x.bpf.o"
    path.write_bytes(b"\x7fELF nothing more")
    with pytest.raises(BpfError, match=r"open .*x\.bpf\.o") as caught:
        BpfObject(path)
    assert caught.value.errno != 0
    assert "libbpf: " in caught.value.log_tail


def test_programs_are_listed_with_their_sections(opened: BpfObject) -> None:
    sections = {program.name: program.section for program in opened.programs}
    assert sections["sock_send_length"] == "tp_btf/sock_send_length"
    iterators = [program.name for program in opened.programs if program.is_iterator]
    assert "find_sockets" in iterators


def test_constants_are_set_where_the_kernel_reads_them(opened: BpfObject) -> None:
    variables = opened._rodata_variables()
    assert variables["podwire_own_pid"][1] == 4
    assert variables["podwire_id_base"][1] == 8
    opened.set_rodata({"podwire_own_pid": os.getpid(), "podwire_id_base": 1 << 40})
    with pytest.raises(ConfigError, match="does not fit in 4 bytes"):
        opened.set_rodata({"podwire_own_pid": 1 << 32})


def test_a_missing_map_is_named(opened: BpfObject) -> None:
    with pytest.raises(BpfError, match="find map nothing"):
        opened.map_fd("nothing")


def test_maps_are_readable_after_loading(opened: BpfObject) -> None:
    opened.set_max_entries("transfers", 1 << 16)
    opened.load()
    counts = np.frombuffer(opened.read_percpu("counts", Kind.TRANSFER), COUNTS)
    assert len(counts) >= (os.cpu_count() or 1)
    assert counts["submitted"].sum() == 0


def test_close_may_be_repeated(opened: BpfObject) -> None:
    opened.load()
    opened.close()
    opened.close()


def test_constants_are_named_where_there_are_any(opened: BpfObject) -> None:
    assert {"podwire_own_pid", "podwire_id_base", "podwire_stages"} <= opened.constants
    stages = BpfObject(stages_path())
    assert stages.constants == frozenset()
    stages.close()


def test_shared_maps_are_one(opened: BpfObject) -> None:
    opened.set_max_entries("transfers", 1 << 16)
    opened.load()
    stages = BpfObject(stages_path())
    try:
        assert set(stages.share_maps(opened)) == set(stages.maps()) & set(opened.maps())
        assert set(stages.share_maps(opened)) >= {"flows", "tasks"}
        for program in stages.programs:
            stages.set_autoload(program.name, False)
        stages.load()
        for name in ("flows", "tasks"):
            assert _map_id(stages, name) == _map_id(opened, name)
        own = next(iter(set(stages.maps()) - set(opened.maps())))
        with pytest.raises(BpfError, match=own):
            opened.map_fd(own)
    finally:
        stages.close()
    assert opened.map_fd("flows") > 0  # whose map it is keeps it


def test_maps_of_one_name_that_hold_different_things_are_not_shared(opened: BpfObject) -> None:
    opened.load()
    other = BpfObject(object_paths(CollectorConfig())[1])
    try:
        with pytest.raises(LayoutMismatch, match=r"of podwire-fd\.bpf\.o and podwire\.bpf\.o"):
            other.share_maps(opened)
    finally:
        other.close()


def test_an_object_that_is_not_loaded_has_no_maps_to_share(opened: BpfObject) -> None:
    stages = BpfObject(stages_path())
    try:
        with pytest.raises(BpfError, match=r"use map|share map"):
            stages.share_maps(opened)
    finally:
        stages.close()


def test_one_program_is_detached_without_the_others(opened: BpfObject) -> None:
    opened.load()
    opened.attach("sched_process_exec")
    opened.attach("sched_process_exit")
    opened.detach("sched_process_exec", "sys_exit")  # the second is not attached
    assert list(opened._links) == ["sched_process_exit"]
    opened.detach()
    assert not opened._links


def test_runs_that_the_kernel_skipped_are_counted_by_program(tmp_path: Path) -> None:
    source, made = tmp_path / "again.bpf.c", tmp_path / "again.bpf.o"
    source.write_text(_AGAIN)
    command = ["clang", "-target", "bpf", "-O2", "-g", "-Werror", "-c", str(source)]
    subprocess.run([*command, "-o", str(made)], check=True)
    again = BpfObject(made)
    try:
        again.set_autoload("unused", False)
        again.load()
        again.attach("again")
        again.attach("first")
        before = again.recursion_misses()
        assert set(before) == {"again", "first"}
        for _ in range(3):
            subprocess.run(["true"], check=True)
        after = again.recursion_misses()
    finally:
        again.close()
    assert after["again"] >= before["again"] + 3
    assert after["first"] == 0


_AGAIN = """
typedef unsigned char __u8;
typedef unsigned short __u16, __be16;
typedef unsigned int __u32, __be32, __wsum;
typedef unsigned long long __u64;
typedef int __s32;
typedef long long __s64;
#include <bpf/bpf_helpers.h>

/* What it does makes it run again. */
SEC("tp_btf/bpf_trace_printk")
int again(void *context)
{
    bpf_printk("again");
    return 0;
}

SEC("tp_btf/sched_process_exec")
int first(void *context)
{
    bpf_printk("first");
    return 0;
}

SEC("tp_btf/sched_process_exit")
int unused(void *context)
{
    return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
"""


def _map_id(opened: BpfObject, name: str) -> int:
    lines = Path(f"/proc/self/fdinfo/{opened.map_fd(name)}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("map_id:"))
