from __future__ import annotations

import os
from pathlib import Path

import pytest

from collector.containers import (
    ContainerResolver,
    cgroup2_below,
    container_id,
    find_cgroup2_mount,
)
from schemas.clock import ManualClock
from tests.requirements import unmet

ID = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4
POD = "kubepods-burstable-pod0a1b2c3d_0000_1111_2222_333344445555.slice"
POD_PATH = "pod0a1b2c3d-0000-1111-2222-333344445555"


@pytest.mark.parametrize(
    "path",
    [
        f"/kubepods.slice/kubepods-burstable.slice/{POD}/cri-containerd-{ID}.scope",
        f"/kubepods/burstable/{POD_PATH}/{ID}",
        f"/kubepods.slice/{POD}/crio-{ID}.scope",
        f"/kubepods.slice/{POD}/crio-{ID}.scope/container",
        f"/kubepods/besteffort/{POD_PATH}/crio-{ID}",
        f"/kubepods.slice/{POD}/docker-{ID}.scope",
        f"/kubepods/{POD_PATH}/{ID}/some/thing/inside",
        f"/system.slice/docker-{ID}.scope",
        f"/docker/{ID}",
        f"/docker/{ID}/system.slice/nginx.service",
        f"/machine.slice/libpod-{ID}.scope/container",
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope",
        f"/libpod_parent/libpod-{ID}",
        f"/system.slice/containerd.service/kubepods-{POD}:cri-containerd:{ID}",
        f"/../../{POD}/cri-containerd-{ID}.scope",
        f"/default/{ID}",
        f"/system.slice/nerdctl-{ID}.scope",
        # a node that is itself a container, and docker inside a pod
        f"/docker/{OTHER}/kubelet.slice/kubelet-kubepods.slice/x.slice/cri-containerd-{ID}.scope",
        f"/kubepods/{POD_PATH}/{ID}/docker/{OTHER}",
        # docker in docker
        f"/docker/{OTHER}/docker/{ID}",
    ],
)
def test_container_ids_of_every_runtime_and_driver(path: str) -> None:
    assert container_id(path) == ID


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/init.scope",
        "/system.slice/nginx.service",
        f"/kubepods.slice/{POD}",
        f"/kubepods.slice/{POD}/crio-conmon-{ID}.scope",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/docker/{ID[:-1]}",
        f"/docker/{ID}0",
        f"/docker/{ID.upper()}",
    ],
)
def test_paths_of_no_container(path: str) -> None:
    assert container_id(path) == ""


def test_the_cgroup2_mount_is_found_in_hybrid_set_ups() -> None:
    mounts = (
        "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
        "cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n"
    )
    assert find_cgroup2_mount(mounts) == Path("/sys/fs/cgroup/uni fied")
    assert find_cgroup2_mount("proc /proc proc rw 0 0\n") is None


def test_only_cgroup_v2_is_walked(tmp_path: Path) -> None:
    (tmp_path / "memory" / "docker" / ID).mkdir(parents=True)
    assert cgroup2_below(tmp_path) is None
    unified = tmp_path / "unified"
    unified.mkdir()
    (unified / "cgroup.controllers").write_text("")
    assert cgroup2_below(tmp_path) == unified
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    assert cgroup2_below(tmp_path) == tmp_path


def test_the_mount_of_this_machine_is_recognised() -> None:
    mount = find_cgroup2_mount(Path("/proc/self/mounts").read_text())
    if mount is None:
        unmet("bpf", "no cgroup v2 is mounted")
    assert cgroup2_below(mount) == mount


class Machine:
    """A /proc and a cgroup mount made of ordinary files."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.cgroups = root / "cgroup"
        self.proc.mkdir()
        self.cgroups.mkdir()
        self.clock = ManualClock()
        self.resolver = ContainerResolver(self.proc, self.cgroups, self.clock)

    def cgroup(self, path: str) -> int:
        directory = self.cgroups / path
        directory.mkdir(parents=True)
        return os.stat(directory).st_ino

    def process(self, pid: int, cgroup: str, comm: str) -> None:
        directory = self.proc / str(pid)
        directory.mkdir(exist_ok=True)
        (directory / "cgroup").write_text(f"5:memory:{cgroup}\n0::/\n")
        (directory / "comm").write_text(comm + "\n")

    def end(self, pid: int) -> None:
        directory = self.proc / str(pid)
        for item in directory.iterdir():
            item.unlink()
        directory.rmdir()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_cgroup_is_known_by_its_inode_although_the_process_is_gone(machine: Machine) -> None:
    cgroup_id = machine.cgroup(f"kubepods.slice/cri-containerd-{ID}.scope")
    assert machine.resolver.container(4711, cgroup_id) == ID


def test_a_cgroup_that_was_learned_outlives_its_directory(machine: Machine) -> None:
    cgroup_id = machine.cgroup(f"docker/{ID}")
    machine.resolver.learn([cgroup_id])
    (machine.cgroups / "docker" / ID).rmdir()
    assert machine.resolver.container(0, cgroup_id) == ID
    assert machine.resolver.walks == 1


def test_an_unknown_cgroup_does_not_walk_for_ever(machine: Machine) -> None:
    for _ in range(20):
        machine.resolver.learn([12345678])
        machine.clock.advance(0.06)
    assert machine.resolver.walks == 3


def test_cgroup_v1_answers_by_process(machine: Machine) -> None:
    machine.process(7, f"/kubepods/{POD_PATH}/{ID}", "java")
    assert machine.resolver.container(7, 1) == ID


def test_an_answer_is_kept_until_the_process_executes_or_exits(machine: Machine) -> None:
    machine.process(7, f"/docker/{ID}", "sh")
    assert machine.resolver.container(7, 0) == ID
    assert machine.resolver.process(7, b"") == "sh"
    machine.process(7, f"/docker/{OTHER}", "nginx")
    assert machine.resolver.container(7, 0) == ID
    assert machine.resolver.process(7, b"") == "sh"
    machine.resolver.forget([7])
    assert machine.resolver.container(7, 0) == OTHER
    assert machine.resolver.process(7, b"") == "nginx"


def test_nothing_is_remembered_of_a_process_that_is_gone(machine: Machine) -> None:
    assert machine.resolver.container(7, 0) == ""
    machine.process(7, f"/docker/{ID}", "sh")
    assert machine.resolver.container(7, 0) == ID


def test_the_main_thread_names_the_process_and_the_record_does_when_it_is_gone(
    machine: Machine,
) -> None:
    machine.process(7, "/", "java")
    assert machine.resolver.process(7, b"http-nio-8080-e") == "java"
    assert machine.resolver.process(8, b"curl\0\0junk") == "curl"
    assert machine.resolver.process(0, b"\xff\xfe\0") == "\ufffd\ufffd"


def test_a_machine_without_cgroup2_still_answers(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.process(7, f"/docker/{ID}", "sh")
    resolver = ContainerResolver(machine.proc, None, machine.clock)
    assert resolver.container(7, 99) == ID
    assert resolver.walks == 0
