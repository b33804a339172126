"""How the programs of ``bpf/programs/tls.h`` get to the functions of a file.

All at once where the kernel can attach one program to many places and tell it which one it is at:
a link or two a file, which the kernel lets go of in a fifth of a second. Else one by one, a link
for each place and a tenth of a second each.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from typing import TYPE_CHECKING, Final, Protocol

from collector.abi import GoConvention
from collector.btf import unknown_names
from schemas.errors import BpfError, UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.bpf_object import BpfObject
    from collector.tls.libraries import Probe

__all__ = ["AllAtOnce", "Attacher", "OneByOne", "descriptors_permitted"]

_ANY: Final = "tls_any"
_ANY_AT_RETURN: Final = "tls_any_exit"
_ANY_OF_GO: Final = "go_any"
_ANY_OF_RUST: Final = "rustls_any"
_ANY_OF_RUST_AT_RETURN: Final = "rustls_any_exit"
_ANYS: Final = (_ANY, _ANY_AT_RETURN, _ANY_OF_GO, _ANY_OF_RUST, _ANY_OF_RUST_AT_RETURN)
_RUST: Final = "rustls_"
_MAX_DESCRIPTORS: Final = 65_536
_DESCRIPTORS_OF_A_LINK: Final = 2
"""At most, of a single place: its own, and that of its event."""


def descriptors_permitted() -> int:
    """Have as many descriptors permitted as there may be; how many the half of them is."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = _MAX_DESCRIPTORS if most == unlimited else min(_MAX_DESCRIPTORS, most)
    if now != unlimited and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return wanted // 2


class Attacher(Protocol):
    """Attaches to files."""

    def room(self) -> int:
        """Return for how many places there is room, all files together."""
        ...

    def attach(self, path: str, probes: Sequence[Probe]) -> list[int]:
        """Attach to places of a file, for all who use the file.

        Args:
            path: Of the file; probes belong to the inode, the path need not stay.
            probes: The places, in the order in which they are attached.

        Returns:
            Links for `release`.

        Raises:
            BpfError: If the kernel refuses one; then none stays.
        """
        ...

    def release(self, links: Sequence[int]) -> None:
        """Detach what `attach` has attached; once."""
        ...


class OneByOne:
    """A link for each place."""

    def __init__(self, programs: BpfObject) -> None:
        self._programs = programs

    @staticmethod
    def prepare(programs: BpfObject) -> None:
        """Choose the programs; between open and load."""
        for name in _ANYS:
            programs.set_autoload(name, False)

    def room(self) -> int:
        """See `Attacher.room`."""
        return descriptors_permitted() // _DESCRIPTORS_OF_A_LINK

    def attach(self, path: str, probes: Sequence[Probe]) -> list[int]:
        """See `Attacher.attach`."""
        links: list[int] = []
        try:
            for probe in probes:
                # The kernel finds the returns of what is not Go's.
                at_return = probe.is_return and probe.convention is None
                attach = self._programs.attach_function
                links.append(attach(_program(probe), path, probe.offset, at_return=at_return))
        except BpfError:
            self.release(links)
            raise
        return links

    def release(self, links: Sequence[int]) -> None:
        """See `Attacher.release`."""
        for link in links:
            self._programs.release(link)


def _is_rust(probe: Probe) -> bool:
    return probe.function.name.lower().startswith(_RUST)


def _program(probe: Probe) -> str:
    name = probe.function.name.lower()
    if probe.is_return:
        name = "rustls_exit" if _is_rust(probe) else "tls_exit"
    if probe.convention is None:
        return name
    suffix = "_by_stack" if probe.convention == GoConvention.GO_STACK else ""
    return name.replace("tls_", "go_") + suffix


# include/uapi/linux/bpf.h, of v6.6
_BPF_LINK_CREATE: Final = 28
_BPF_TRACE_UPROBE_MULTI: Final = 48
_TYPE: Final = "BPF_TRACE_UPROBE_MULTI"
_BPF_F_UPROBE_MULTI_RETURN: Final = 1
_ATTRIBUTES: Final = struct.Struct("=IIIIQQQQIII4x")
"""``union bpf_attr`` of that command: program, target, type and flags; path, offsets, places of
reference counters, cookies; how many, flags, process."""
_SYSCALLS: Final = {"x86_64": 321, "aarch64": 280}
"""Number of bpf(2)."""


class AllAtOnce:
    """A link for all returns, and one for all entries, of a family; of Go, one for both."""

    def __init__(self, programs: BpfObject) -> None:
        self._programs = programs
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long

    @staticmethod
    def prepare(programs: BpfObject) -> None:
        """Choose the programs; between open and load.

        Raises:
            UnsupportedFeature: If the kernel has no such links: nothing need be loaded to try.
        """
        if unknown_names({_TYPE}):
            raise UnsupportedFeature(_TYPE, "links of many functions came with Linux 6.6")
        for program in programs.programs:
            if program.name in _ANYS:
                programs.set_attach_type(program.name, _BPF_TRACE_UPROBE_MULTI)
            else:
                programs.set_autoload(program.name, False)

    def is_supported(self) -> bool:
        """Whether the kernel makes such links: then it says of a directory that it is no file."""
        try:
            self._link(_ANY, "/", [0], [0], at_return=False)
        except BpfError as error:
            return error.errno == errno.EBADF
        return False

    def room(self) -> int:
        """See `Attacher.room`; no link is of less than two places."""
        return 2 * descriptors_permitted()

    def attach(self, path: str, probes: Sequence[Probe]) -> list[int]:
        """See `Attacher.attach`."""
        places: dict[str, list[tuple[int, int]]] = {}
        for probe in probes:
            cookie = int(probe.function)
            if probe.convention is not None:  # see go_any() of bpf/programs/golang.h
                program = _ANY_OF_GO
                cookie |= probe.convention << 8 | probe.is_return << 16
            elif _is_rust(probe):
                program = _ANY_OF_RUST_AT_RETURN if probe.is_return else _ANY_OF_RUST
            else:
                program = _ANY_AT_RETURN if probe.is_return else _ANY
            places.setdefault(program, []).append((probe.offset, cookie))
        links: list[int] = []
        try:
            for program, each in places.items():
                offsets, cookies = zip(*each, strict=True)
                at_return = program in (_ANY_AT_RETURN, _ANY_OF_RUST_AT_RETURN)
                links.append(self._link(program, path, offsets, cookies, at_return=at_return))
        except BpfError:
            self.release(links)
            raise
        return links

    def release(self, links: Sequence[int]) -> None:
        """See `Attacher.release`."""
        for link in links:
            os.close(link)

    def _link(
        self,
        program: str,
        path: str,
        places: Sequence[int],
        cookies: Sequence[int],
        *,
        at_return: bool,
    ) -> int:
        name = ctypes.create_string_buffer(os.fsencode(path))
        array = ctypes.c_uint64 * len(places)
        offsets, numbers = array(*places), array(*cookies)
        attributes = _ATTRIBUTES.pack(
            self._programs.program_fd(program),
            0,
            _BPF_TRACE_UPROBE_MULTI,
            0,
            ctypes.addressof(name),
            ctypes.addressof(offsets),
            0,
            ctypes.addressof(numbers),
            len(places),
            _BPF_F_UPROBE_MULTI_RETURN if at_return else 0,
            0,
        )
        number = _SYSCALLS.get(platform.machine())
        if number is None:
            raise BpfError(f"attach {program}", errno.ENOSYS)
        link = int(self._syscall(number, _BPF_LINK_CREATE, attributes, len(attributes)))
        if link < 0:
            raise BpfError(f"attach {program}", ctypes.get_errno())
        return link
