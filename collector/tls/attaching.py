"""How the programs of ``bpf/programs/tls.h`` get to the functions of a file.

All at once where the kernel can attach one program to many places and tell it which one it is at:
two links a file, which the kernel lets go of in a fifth of a second. Else one by one, two links a
function and a tenth of a second each.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import TYPE_CHECKING, Final, Protocol

from schemas.errors import BpfError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.libbpf import BpfObject
    from collector.tls.elf import Functions
    from collector.tls.libraries import Library

__all__ = ["AllAtOnce", "Attacher", "OneByOne"]

_AT_RETURN: Final = "tls_exit"
_ANY: Final = "tls_any"
_ANY_AT_RETURN: Final = "tls_any_exit"


class Attacher(Protocol):
    """Attaches to files."""

    def attach(self, path: str, library: Library, found: Functions) -> list[int]:
        """Attach to every function of a library that a file has, for all who use the file.

        Args:
            path: Of the file; probes belong to the inode, the path need not stay.
            library: Which family it is of.
            found: By name, where its functions are in the file.

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
    """A link for each end of each function."""

    def __init__(self, programs: BpfObject) -> None:
        self._programs = programs

    @staticmethod
    def prepare(programs: BpfObject) -> None:
        """Choose the programs; between open and load."""
        for name in (_ANY, _ANY_AT_RETURN):
            programs.set_autoload(name, False)

    def attach(self, path: str, library: Library, found: Functions) -> list[int]:
        """See `Attacher.attach`."""
        links: list[int] = []
        attach = self._programs.attach_function
        try:
            for name in sorted(found.keys() & library.calls.keys()):
                # The return first: an entry without it would leave its frame.
                links.append(attach(_AT_RETURN, path, found[name], at_return=True))
                program = library.calls[name].name.lower()
                links.append(attach(program, path, found[name], at_return=False))
            for name in sorted(found.keys() & library.marks.keys()):
                program = library.marks[name].name.lower()
                links.append(attach(program, path, found[name], at_return=False))
        except BpfError:
            self.release(links)
            raise
        return links

    def release(self, links: Sequence[int]) -> None:
        """See `Attacher.release`."""
        for link in links:
            self._programs.release(link)


# include/uapi/linux/bpf.h, of v6.6
_BPF_LINK_CREATE: Final = 28
_BPF_TRACE_UPROBE_MULTI: Final = 48
_BPF_F_UPROBE_MULTI_RETURN: Final = 1
_ATTRIBUTES: Final = struct.Struct("=IIIIQQQQIII4x")
"""``union bpf_attr`` of that command: program, target, type and flags; path, offsets, places of
reference counters, cookies; how many, flags, process."""
_SYSCALLS: Final = {"x86_64": 321, "aarch64": 280}
"""Number of bpf(2)."""


class AllAtOnce:
    """A link for all returns, and one for all entries."""

    def __init__(self, programs: BpfObject) -> None:
        self._programs = programs
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long

    @staticmethod
    def prepare(programs: BpfObject) -> None:
        """Choose the programs; between open and load."""
        wanted = {_ANY, _ANY_AT_RETURN}
        for program in programs.programs:
            if program.name in wanted:
                programs.set_attach_type(program.name, _BPF_TRACE_UPROBE_MULTI)
            else:
                programs.set_autoload(program.name, False)

    def is_supported(self) -> bool:
        """Whether the kernel knows such links: then it says of a directory that it is no file."""
        try:
            self._link(_ANY, "/", [0], [0], at_return=False)
        except BpfError as error:
            return error.errno == errno.EBADF
        return False

    def attach(self, path: str, library: Library, found: Functions) -> list[int]:
        """See `Attacher.attach`."""
        calls = sorted(found.keys() & library.calls.keys())
        functions = library.calls | library.marks
        entered = sorted(found.keys() & functions.keys())
        places = [found[name] for name in calls]
        links = [self._link(_ANY_AT_RETURN, path, places, [0] * len(calls), at_return=True)]
        places, kinds = [found[name] for name in entered], [functions[name] for name in entered]
        try:
            links.append(self._link(_ANY, path, places, kinds, at_return=False))
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
