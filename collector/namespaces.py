"""Enters a network namespace for a moment. ``os.setns`` is there from Python 3.12 on only."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["entered"]

_CLONE_NEWNET: Final = 0x4000_0000
_HERE: Final = "/proc/thread-self/ns/net"


@contextmanager
def entered(path: str) -> Iterator[None]:
    """Be in a network namespace, with this thread alone, as long as the context lasts.

    Args:
        path: Of the namespace. Where we are already needs no right to enter.

    Raises:
        OSError: If it is not there or may not be entered (CAP_SYS_ADMIN).
    """
    there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        here = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.path.sameopenfile(here, there):
                yield
                return
            _enter(there, path)
            try:
                yield
            finally:
                _enter(here, _HERE)
        finally:
            os.close(here)
    finally:
        os.close(there)


def _enter(number: int, path: str) -> None:
    setns = ctypes.CDLL(None, use_errno=True).setns
    setns.argtypes, setns.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    if setns(number, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"not entered: {os.strerror(code)}", path)
