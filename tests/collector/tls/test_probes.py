"""Which files get probes, when they go, and what is said of those that get none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final, get_args

import pytest

from collector.tls import probes as module
from collector.tls.attaching import OneByOne
from collector.tls.libraries import FUNCTIONS, LIBRARIES, find_libraries, named_library
from collector.tls.probes import KNOWN_FILES, LINGER_S, Probes, Reason
from schemas.errors import BpfError
from schemas.tls import UNREADABLE, Unreadable, unreadable_name
from tests.requirements import program

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from collector.bpf_object import BpfObject
    from collector.tls.elf import Read
    from collector.tls.libraries import Found, Probe


class FakeObject:
    """Counts what is attached."""

    def __init__(self) -> None:
        self.links: dict[int, tuple[str, int, bool]] = {}
        self.deleted: list[bytes] = []
        self.refuse = ""

    def attach_function(self, program: str, path: str, offset: int, *, at_return: bool) -> int:
        if program == self.refuse:
            raise BpfError(f"attach {program}", 22)
        number = len(self.links) + 1
        self.links[number] = (os.readlink(path), offset, at_return)
        return number

    def release(self, link: int) -> None:
        del self.links[link]

    def delete_from_map(self, map_name: str, key: bytes) -> bool:
        assert map_name == KNOWN_FILES
        self.deleted.append(key)
        return True


class AtOnce(OneByOne):
    """One link for all."""

    def attach(self, path: str, probes: Sequence[Probe]) -> list[int]:
        first, *others = super().attach(path, probes)
        self.release(others)
        return [first]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def create_library(path: Path, functions: Collection[str]) -> Path:
    source = path.with_suffix(".c")
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(functions)))
    subprocess.run([program("gcc"), "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    return path


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library of its own inode that has the functions of OpenSSL."""
    return create_library(tmp_path / "libanything.so", FUNCTIONS)


PROBES: Final = 2 * len(LIBRARIES[0].calls) + len(LIBRARIES[0].marks)
"""Of that library."""


class User:
    """A process that has libraries mapped."""

    def __init__(self, *paths: Path) -> None:
        load = f"[ctypes.CDLL(each) for each in {[str(path) for path in paths]!r}]"
        code = f"import ctypes; {load}; print(flush=True); input()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self.pid = self._process.pid

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def user(library: Path) -> Iterator[User]:
    made = User(library)
    yield made
    made.end()


@pytest.fixture
def proc(tmp_path: Path, user: User) -> Path:
    """A ``/proc`` with that process alone."""
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / str(user.pid)).symlink_to(f"/proc/{user.pid}")
    return folder


def create(
    fake: FakeObject,
    proc: Path,
    clock: Clock,
    room: int = 1_000,
    attacher: type[OneByOne] = OneByOne,
) -> Probes:
    made: Any = fake
    programs: BpfObject = made
    return Probes(programs, attacher(programs), proc, room, clock)


def test_a_library_is_found_by_its_functions_and_once(
    proc: Path, user: User, library: Path
) -> None:
    fake, clock = FakeObject(), Clock()
    probes = create(fake, proc, clock)
    probes.look_everywhere()
    ours = [file for file in probes.files if file.path == str(library)]
    assert [(file.library, file.functions) for file in ours] == [
        ("OpenSSL", len(LIBRARIES[0].calls))
    ]
    count = len(fake.links)
    probes.look_everywhere()
    probes.look_at(user.pid, {7})
    assert len(fake.links) == count
    probes.close()
    assert fake.links == {}


def test_probes_go_some_time_after_the_last_user(proc: Path, user: User) -> None:
    fake, clock = FakeObject(), Clock()
    probes = create(fake, proc, clock)
    probes.look_at(user.pid, {7})
    assert fake.links
    user.end()
    clock.now_s = LINGER_S - 1
    probes.look_everywhere()
    assert fake.links
    clock.now_s = LINGER_S + 1
    probes.look_everywhere()
    assert fake.links == {}
    assert fake.deleted == [(7).to_bytes(8, sys.byteorder)] * len(fake.deleted) != []
    assert probes.files == []


def test_a_deleted_file_is_read_all_the_same(proc: Path, user: User, library: Path) -> None:
    library.unlink()
    fake = FakeObject()
    probes = create(fake, proc, Clock())
    probes.look_at(user.pid)
    if os.geteuid() == 0:
        assert {path for path, _, _ in fake.links.values()} >= {f"{library} (deleted)"}
    else:
        assert probes.failed["gone"] == 1


def test_a_process_that_is_gone_is_counted_and_told_of_again(proc: Path, user: User) -> None:
    user.end()
    fake = FakeObject()
    probes = create(fake, proc, Clock())
    probes.look_at(user.pid, {3, 4})
    assert probes.failed == {"gone": 1}
    assert len(fake.deleted) == 2


@pytest.mark.parametrize("program", ["tls_exit", "tls_write", "tls_free"])
def test_all_or_nothing_of_a_file_is_attached(proc: Path, user: User, program: str) -> None:
    fake = FakeObject()
    fake.refuse = program
    probes = create(fake, proc, Clock())
    probes.look_at(user.pid)
    assert fake.links == {}
    assert probes.failed["refused"] >= 1


def test_a_file_that_is_cut_short_has_a_reason(proc: Path, user: User, library: Path) -> None:
    whole = library.read_bytes()
    os.truncate(library, 5_000)
    fake = FakeObject()
    probes = create(fake, proc, Clock())
    probes.look_at(user.pid)
    os.truncate(library, 0)
    library.write_bytes(whole)  # before the process looks at its pages again
    (file,) = [file for file in probes.files if file.path == str(library)]
    assert (file.reason, file.library, file.functions) == ("truncated", "", 0)


def test_a_file_system_that_gives_little_at_a_time(
    proc: Path, user: User, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 9p does, or FUSE: less than a whole table."""
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, place: pread(file, min(size, 500), place))
    probes = create(FakeObject(), proc, Clock())
    probes.look_at(user.pid)
    assert [file.reason for file in probes.files if file.path == str(library)] == [None]


def test_a_file_that_makes_us_fail_costs_no_other_its_probes(
    proc: Path,
    user: User,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:

    def fail_once(read: Read) -> list[Found]:
        monkeypatch.setattr(module, "find_libraries", find_libraries)
        raise MemoryError

    monkeypatch.setattr(module, "find_libraries", fail_once)
    fake = FakeObject()
    probes = create(fake, proc, Clock())
    probes.look_everywhere()
    probes.look_everywhere()
    assert probes.failed == {"unexpected": 1}
    assert len(caplog.records) == 1
    assert [file.library for file in probes.files if file.path == str(library)] == ["OpenSSL"]


def test_no_file_is_begun_when_it_is_enough(proc: Path, user: User, library: Path) -> None:
    fake, asked = FakeObject(), []

    def is_enough() -> bool:
        asked.append(len(fake.links))
        return True

    probes = create(fake, proc, Clock())
    probes.look_everywhere(is_enough)
    probes.look_at(user.pid, {7}, is_enough)
    assert asked == [0, 0]
    assert probes.files == []
    probes.look_everywhere()
    assert str(library) in [file.path for file in probes.files]


def test_a_process_has_a_reason(proc: Path, user: User, library: Path, tmp_path: Path) -> None:
    """Files that say why come before those that are read, and these before all others."""
    fake = FakeObject()
    probes = create(fake, proc, Clock())
    nothing = Unreadable.NOTHING_SEEN
    source = tmp_path / "other.c"
    source.write_text("int other(void) { return 0; }\n")
    assert probes.unreadable(user.pid) == nothing
    assert fake.links
    for name, reason in (
        ("libssl3.so", Unreadable.NO_FUNCTIONS),
        ("libjvm.so", Unreadable.JAVA),
        ("libother.so", nothing),
    ):
        path = tmp_path / name
        subprocess.run([program("gcc"), "-shared", "-fPIC", "-o", path, source], check=True)
        both = User(library, path)
        (proc / str(both.pid)).symlink_to(f"/proc/{both.pid}")
        assert probes.unreadable(both.pid) == reason
        both.end()
        assert probes.unreadable(both.pid) == Unreadable.GONE
    refused = FakeObject()
    refused.refuse = "tls_free"
    assert create(refused, proc, Clock()).unreadable(user.pid) == Unreadable.REFUSED


def test_a_process_without_a_library_has_that_for_a_reason(tmp_path: Path) -> None:
    sleep = subprocess.Popen(["sleep", "60"])
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / str(sleep.pid)).symlink_to(f"/proc/{sleep.pid}")
    try:
        probes = create(FakeObject(), proc, Clock())
        assert probes.unreadable(sleep.pid) == Unreadable.NO_LIBRARY
    finally:
        sleep.kill()
        sleep.wait()


def test_every_reason_of_a_file_is_one_of_a_process() -> None:
    reasons = {reason for each in get_args(Reason) for reason in (get_args(each) or (each,))}
    assert reasons - {"not_elf", "not_a_file"} <= {unreadable_name(each) for each in UNREADABLE}
    assert list(UNREADABLE) == list(Unreadable)


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("/usr/lib/libssl.so.3", "OpenSSL"),
        ("/x/psycopg2_binary.libs/libssl-6b7b94d5.so.1.1", "OpenSSL"),
        ("/usr/lib/libgnutls.so.30.34.3", "GnuTLS"),
        ("/usr/lib/libgnutls-dane.so.0", ""),
        ("/usr/lib/firefox/libssl3.so", "NSS"),
        ("/x/grpc/_cython/cygrpc.cpython-311-x86_64-linux-gnu.so", "BoringSSL"),
        ("/tmp/libnetty_tcnative_linux_x86_64123.so", "BoringSSL"),
        ("/usr/lib/jvm/java-17/lib/server/libjvm.so", "Java"),
        ("/usr/lib/libsslcommon.so", ""),
        ("/usr/bin/libssl.so.3/python3", ""),
    ],
)
def test_names_tell_of_libraries_that_cannot_be_read(path: str, family: str) -> None:
    assert named_library(path) == family


def test_copies_of_a_library_give_way_to_each_other(
    tmp_path: Path, proc: Path, library: Path
) -> None:
    """Anybody may map any number: what nobody uses goes first, and what is in use stays."""
    fake, clock = FakeObject(), Clock()
    probes = create(fake, proc, clock, room=2 * PROBES - 1)
    users = []

    def attached() -> list[str]:
        return [file.path for file in probes.files if file.links]

    for number in range(3):
        copy = tmp_path / f"{number}.so"
        shutil.copy(library, copy)
        users.append(User(copy))
        (proc / str(users[-1].pid)).symlink_to(f"/proc/{users[-1].pid}")
    probes.look_at(users[0].pid)
    clock.now_s = 1
    probes.look_everywhere()
    assert attached() == [str(tmp_path / "0.so")]
    assert probes.failed["too_many"] >= 1
    users[0].end()
    clock.now_s = 2
    probes.look_everywhere()  # nobody uses it, which is known for the next time
    clock.now_s = 3
    probes.look_everywhere()
    assert len(attached()) == 1
    assert attached() != [str(tmp_path / "0.so")]
    for user in users:
        user.end()
    probes.close()
    assert fake.links == {}


@pytest.mark.parametrize("attacher", [OneByOne, AtOnce])
def test_room_is_for_probes_not_for_links_or_files(
    tmp_path: Path, proc: Path, user: User, attacher: type[OneByOne]
) -> None:
    """What cannot be given room takes none from others, though nobody uses them."""
    small = User(create_library(tmp_path / "small.so", LIBRARIES[0].needed))
    (proc / str(small.pid)).symlink_to(f"/proc/{small.pid}")
    fake, clock = FakeObject(), Clock()
    probes = create(fake, proc, clock, PROBES - 1, attacher)
    probes.look_at(small.pid)
    small.end()
    clock.now_s = 1
    probes.look_everywhere()
    clock.now_s = 2
    probes.look_at(user.pid)
    assert [file.path for file in probes.files if file.links] == [str(tmp_path / "small.so")]
    assert probes.failed["too_many"] == 2
    probes.close()
    assert fake.links == {}
