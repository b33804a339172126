"""Files that nobody can trust: each has a named reason, and nothing is left open of any."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import ssl
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from collector.config import CollectorConfig
from collector.tls import probes as module
from collector.tls import watcher as watching
from collector.tls.elf import Elf
from collector.tls.mappings import open_mapped
from collector.tls.probes import LINGER_S
from collector.tls.watcher import start_tls
from schemas.telemetry import REGISTRY
from tests.bpf.harness import Watch
from tests.requirements import unmet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from collector.tls.mappings import Mapping
    from collector.tls.watcher import Watcher

pytestmark = pytest.mark.bpf

MAP: Final = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    code = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
print(flush=True)
input()
"""
"""A process with a file in its memory as code, without the loader's own opinion of it."""
INVALID: Final = b"\x06" * 16
"""No instruction on x86-64; kernels on arm64 look at fewer of them."""


def library() -> Path:
    """OpenSSL as this interpreter has it."""
    assert ssl.OPENSSL_VERSION
    mapped = Path("/proc/self/maps").read_text().splitlines()
    found = [line.split()[-1] for line in mapped if "/libssl" in line]
    if not found:
        unmet("tools", f"{sys.executable} has no libssl of its own")
    return Path(found[0])


def without_sections(image: bytearray) -> None:
    struct.pack_into("<Q", image, 40, 0)
    struct.pack_into("<HH", image, 60, 0, 0)


def without_end(image: bytearray) -> None:
    del image[5_000:]


def with_a_huge_table(image: bytearray) -> None:
    (sections,) = struct.unpack_from("<Q", image, 40)
    (count,) = struct.unpack_from("<H", image, 60)
    for place in range(sections, sections + 64 * count, 64):
        struct.pack_into("<Q", image, place + 32, 1 << 50)


def with_a_link_to_nowhere(image: bytearray) -> None:
    (sections,) = struct.unpack_from("<Q", image, 40)
    (count,) = struct.unpack_from("<H", image, 60)
    for place in range(sections, sections + 64 * count, 64):
        struct.pack_into("<I", image, place + 40, 0xFFFF)


def with_no_instructions(image: bytearray) -> None:
    names = {"SSL_read", "SSL_write"}
    found = Elf(lambda place, size: bytes(image[place : place + size])).functions(names)
    for place in found.values():
        image[place : place + len(INVALID)] = INVALID


class User:
    """A process that has a file mapped."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", MAP, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline()
        self.pid = self._process.pid

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def opened() -> Counter[str]:
    """What this process has open: files, and links, events and programs of the kernel."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of this listing
            path = os.readlink(f"/proc/self/fd/{name}")
            found[path] += not path.startswith("pipe:")
    return found


class Place:
    """Probes that see no process but those of `users`, and how late it is."""

    def __init__(self, folder: Path, watch: Watch, watcher: Watcher) -> None:
        assert watcher.probes is not None
        self.folder = folder
        self.watch = watch
        self.watcher = watcher
        self.probes = watcher.probes
        self.now_s = 0.0
        self.probes._now_s = lambda: self.now_s
        self.users: list[User] = []

    def begin(self, path: Path) -> User:
        user = User(path)
        (self.folder / str(user.pid)).symlink_to(f"/proc/{user.pid}")
        self.users.append(user)
        return user

    def end(self) -> None:
        """All users, and what their files had."""
        for user in self.users:
            user.end()
            (self.folder / str(user.pid)).unlink()
        self.users.clear()
        self.now_s += LINGER_S + 1
        self.probes.look_everywhere()


@pytest.fixture(scope="module")
def _place(best: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("proc")
    watch = Watch(path=best, constants={"podwire_payloads": 1, "podwire_tls": 1})
    watcher = start_tls(CollectorConfig(proc_path=str(folder)), watch.object, {})
    yield Place(folder, watch, watcher)
    watcher.close()
    watch.close()


@pytest.fixture
def place(_place: Place) -> Iterator[Place]:
    yield _place
    _place.end()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_sections, "no_functions"),
        (without_end, "truncated"),
        (with_a_huge_table, "too_large"),
        (with_a_link_to_nowhere, "malformed"),
        pytest.param(
            with_no_instructions,
            "refused",
            marks=pytest.mark.skipif(platform.machine() != "x86_64", reason="see INVALID"),
        ),
    ],
)
def test_a_spoilt_library_has_a_reason_and_nothing_open(
    place: Place, tmp_path: Path, spoil: Callable[[bytearray], None], reason: str
) -> None:
    image = bytearray(library().read_bytes())
    spoil(image)
    path = tmp_path / "libssl.so.3"
    path.write_bytes(image)
    user = place.begin(path)
    before, counted = opened(), place.probes.failed[reason]
    place.probes.look_at(user.pid, {1})
    (file,) = (file for file in place.probes.files if file.path == str(path))
    assert (file.reason, file.functions, file.links) == (reason, 0, [])
    assert place.probes.failed[reason] == counted + 1
    assert opened() <= before
    place.probes.look_at(user.pid, {1})
    place.probes.look_everywhere()
    assert place.probes.failed[reason] == counted + 1


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A library with an inode of its own."""
    path = tmp_path / "libssl.so.3"
    shutil.copy(library(), path)
    return path


def links_of(place: Place, path: Path) -> int:
    return sum(len(file.links) for file in place.probes.files if file.path == str(path))


def test_a_file_that_is_deleted_in_use_is_read(place: Place, sound: Path) -> None:
    before = opened()
    user = place.begin(sound)
    sound.unlink()
    place.probes.look_at(user.pid)
    assert links_of(place, sound)
    assert not opened() <= before
    place.end()
    assert opened() <= before


def test_who_has_a_library_before_its_probes_is_counted(place: Place, sound: Path) -> None:
    """What its first connections said nobody can tell; whoever comes after it is in time."""

    def counted() -> float:
        place.watcher._export()
        name = "podwire_collector_tls_processes_late_total"
        return REGISTRY.get_sample_value(name) or 0.0

    late = counted()
    for _ in range(2):
        place.probes.look_at(place.begin(sound).pid)
        assert counted() == late + 1
    place.probes.look_everywhere()
    assert counted() == late + 1


@pytest.mark.parametrize("is_opened", [False, True])
def test_a_process_that_ends_meanwhile(
    place: Place, sound: Path, monkeypatch: pytest.MonkeyPatch, is_opened: bool
) -> None:
    """Before its file is opened, which is counted; or after that, when the file is known."""
    before, gone = opened(), place.probes.failed["gone"]
    user = place.begin(sound)

    def open_and_end(proc: Path, pid: int, mapping: Mapping) -> int | None:
        is_ours = mapping.path == bytes(sound)
        if is_ours and not is_opened:
            user.end()
        descriptor = open_mapped(proc, pid, mapping)
        if is_ours and is_opened:
            user.end()
        return descriptor

    monkeypatch.setattr(module, "open_mapped", open_and_end)
    place.probes.look_at(user.pid)
    assert place.probes.failed["gone"] > gone or is_opened
    assert bool(links_of(place, sound)) == is_opened
    place.end()
    assert links_of(place, sound) == 0
    assert opened() <= before


def test_the_start_waits_for_no_file_for_long(
    place: Place, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left is looked at beside the drain."""
    monkeypatch.setattr(watching, "_FIRST_LOOK_S", 0.0)
    place.begin(sound)
    config = CollectorConfig(proc_path=str(place.folder))
    watcher = start_tls(config, place.watch.object, {})
    try:
        assert watcher.probes is not None
        assert watcher.probes.files == []
        watcher.start()
        until_s = time.monotonic() + 20
        while not any(file.links for file in watcher.probes.files):
            assert time.monotonic() < until_s
            time.sleep(0.01)
    finally:
        watcher.close()
