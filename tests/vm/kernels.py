"""Debian's kernels, fetched as packages and unpacked beside each other.

apt runs with a configuration of its own: it sees one suite, and keeps lists and packages in the
cache, so that the machine's package lists stay as they are. The mirror is the machine's own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["CACHE", "KERNELS", "Kernel", "fetch", "find_mirror", "find_release"]

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".cache" / "vm"
KERNELS: Final = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "sid": "sid"}
"""Debian's suite by the name of the kernel; the newest kernel moves, and so has none."""

_KEYS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_TARGETS: Final = "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(SITE)"
_PARTS: Final = ("linux-image", "linux-binary", "linux-modules")
"""Packages of one kernel; which there are differs by suite."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel: its name here, what ``uname -r`` says, its folder."""

    name: str
    release: str
    folder: Path

    @property
    def image(self) -> Path:
        """The file to boot, beside ``lib/modules``."""
        return self.folder / f"vmlinuz-{self.release}"


def fetch(name: str) -> Kernel:
    """Return a kernel of `KERNELS`, fetched when it is not there yet.

    Raises:
        RuntimeError: If a command fails; says which and what it printed.
    """
    folder = CACHE / name
    images = sorted(folder.glob("vmlinuz-*"))
    if images:
        return Kernel(name, images[0].name.removeprefix("vmlinuz-"), folder)
    apt = _Apt(KERNELS[name])
    apt.run("apt-get", "update", "-qq")
    release = find_release(apt.run("apt-cache", "depends", "linux-image-amd64"))
    known = apt.run("apt-cache", "pkgnames", "linux-").split()
    wanted = [package for part in _PARTS if (package := f"{part}-{release}") in known]
    apt.run("apt-get", "download", "-qq", *wanted)
    _unpack(apt.folder, folder, release)
    shutil.rmtree(apt.folder)
    return Kernel(name, release, folder)


def find_mirror(targets: str) -> str:
    """Return the address of the Debian mirror among the lines of ``apt-get indextargets``.

    Raises:
        RuntimeError: If there is none.
    """
    for line in targets.splitlines():
        kind, origin, label, site = line.split("|")
        if (kind, origin, label) == ("Packages", "Debian", "Debian"):
            return site
    raise RuntimeError("apt has no Debian mirror among its sources")


def find_release(depends: str) -> str:
    """Return the release of the kernel that ``linux-image-amd64`` depends on.

    Raises:
        RuntimeError: If ``apt-cache depends`` names none.
    """
    found = re.search(r"Depends: linux-image-(\d\S+)", depends)
    if found is None:
        raise RuntimeError(f"linux-image-amd64 names no kernel: {depends}")
    return found[1]


def _unpack(packages: Path, folder: Path, release: str) -> None:
    scratch = packages / "unpacked"
    for package in sorted(packages.glob("*.deb")):
        _run("dpkg-deb", "-x", str(package), str(scratch))
    ready = packages / "ready"
    (ready / "lib" / "modules").mkdir(parents=True)
    # Since trixie everything is below /usr, and the newest kernels keep their image there too.
    modules = next(path for path in scratch.rglob(f"lib/modules/{release}") if path.is_dir())
    image = scratch / "boot" / f"vmlinuz-{release}"
    shutil.move(image if image.exists() else modules / "vmlinuz", ready / f"vmlinuz-{release}")
    shutil.move(modules, ready / "lib" / "modules" / release)
    _run("depmod", "-b", str(ready), release)
    shutil.rmtree(folder, ignore_errors=True)
    ready.rename(folder)


class _Apt:
    def __init__(self, suite: str) -> None:
        self.folder = CACHE / f"apt-{suite}"
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True)
        mirror = find_mirror(_run("apt-get", "indextargets", "--format", _TARGETS))
        source = f"deb [signed-by={_KEYS} arch=amd64] {mirror} {suite} main\n"
        (self.folder / "sources.list").write_text(source)
        # How the machine reaches its mirror is kept, its hooks are not.
        acquire = [
            line for line in _run("apt-config", "dump").splitlines() if line.startswith("Acquire::")
        ]
        here = {
            "Dir::State::lists": self.folder / "lists",
            "Dir::Cache": self.folder / "cache",
            "Dir::Etc::SourceList": self.folder / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Main": "/dev/null",
            "Dir::Etc::Parts": "/dev/null",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
            # Without these a mirror that cannot be reached is a list without packages.
            "APT::Update::Error-Mode": "any",
            "Acquire::Retries": "3",
        }
        lines = [*acquire, *(f'{key} "{value}";' for key, value in here.items())]
        (self.folder / "apt.conf").write_text("\n".join(lines) + "\n")

    def run(self, *command: str) -> str:
        return _run(*command, folder=self.folder, APT_CONFIG=str(self.folder / "apt.conf"))


def _run(*command: str, folder: Path | None = None, **variables: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
