"""Keeps freed memory from staying with the process.

The collector makes arrays of megabytes ten times a second and throws them away. glibc raises its
threshold for separate mappings with each of them, then cuts later ones out of a heap that small
blocks keep from shrinking. Fixed thresholds turn that off.
"""

from __future__ import annotations

import ctypes
from typing import Final

__all__ = ["bound_heap", "trim_heap"]

# malloc.h; see mallopt(3)
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_SETTINGS: Final = (
    (_M_MMAP_THRESHOLD, 1 << 18),
    (_M_TRIM_THRESHOLD, 1 << 20),
    (_M_ARENA_MAX, 2),  # librdkafka's threads would have one arena each
)


def bound_heap() -> bool:
    """Set glibc's limits for this process; False where the C library has no ``mallopt``."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl: it returns large blocks by itself
        return False
    mallopt.restype = ctypes.c_int
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    return all(mallopt(name, value) == 1 for name, value in _SETTINGS)


def trim_heap() -> bool:
    """Give free pages inside the heap back to the kernel (malloc_trim(3)); False without glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return False
    trim.restype = ctypes.c_int
    trim.argtypes = (ctypes.c_size_t,)
    return trim(0) in (0, 1)
