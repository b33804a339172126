"""The functions of libbpf, typed for ctypes, and its log.

Invariants: every function has its ``restype`` and ``argtypes``; functions returning ``int`` give
``-errno`` and functions returning a pointer give NULL and set ``errno`` (libbpf 1.0 and newer);
callbacks that C may call are kept referenced for as long as the library is loaded.
"""

from __future__ import annotations

import ctypes
import errno
from collections import deque
from functools import cache
from typing import Any, Final

from schemas.errors import BpfError, UnsupportedFeature

__all__ = ["SAMPLE_CALLBACK", "Libbpf", "load_library"]

_POINTER = ctypes.c_void_p
_TEXT = ctypes.c_char_p
_INT = ctypes.c_int
_U32 = ctypes.c_uint32
_SIZE = ctypes.c_size_t
_BOOL = ctypes.c_bool

_PRINT: Final = ctypes.CFUNCTYPE(_INT, _INT, _TEXT, _POINTER)
"""``libbpf_print_fn_t``. A ``va_list`` argument is a pointer on x86-64 (array type) and on arm64
(structure of more than 16 bytes, AAPCS64 6.8.2 rule B.4), so it passes through unread."""

SAMPLE_CALLBACK: Final = ctypes.CFUNCTYPE(_INT, _POINTER, _POINTER, _SIZE)
"""``ring_buffer_sample_fn``."""

_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "libbpf_version_string": (_TEXT, ()),
    "libbpf_set_print": (_POINTER, (_PRINT,)),
    "libbpf_num_possible_cpus": (_INT, ()),
    "bpf_object__open_file": (_POINTER, (_TEXT, _POINTER)),
    "bpf_object__load": (_INT, (_POINTER,)),
    "bpf_object__close": (None, (_POINTER,)),
    "bpf_object__btf": (_POINTER, (_POINTER,)),
    "bpf_object__next_program": (_POINTER, (_POINTER, _POINTER)),
    "bpf_object__next_map": (_POINTER, (_POINTER, _POINTER)),
    "bpf_object__find_map_by_name": (_POINTER, (_POINTER, _TEXT)),
    "bpf_program__name": (_TEXT, (_POINTER,)),
    "bpf_program__section_name": (_TEXT, (_POINTER,)),
    "bpf_program__set_autoload": (_INT, (_POINTER, _BOOL)),
    "bpf_program__set_expected_attach_type": (_INT, (_POINTER, _INT)),
    "bpf_program__fd": (_INT, (_POINTER,)),
    "bpf_program__attach": (_POINTER, (_POINTER,)),
    "bpf_program__attach_uprobe": (_POINTER, (_POINTER, _BOOL, _INT, _TEXT, _SIZE)),
    "bpf_link__fd": (_INT, (_POINTER,)),
    "bpf_link__destroy": (_INT, (_POINTER,)),
    "bpf_iter_create": (_INT, (_INT,)),
    "bpf_map__fd": (_INT, (_POINTER,)),
    "bpf_map__reuse_fd": (_INT, (_POINTER, _INT)),
    "bpf_map__name": (_TEXT, (_POINTER,)),
    "bpf_map__is_internal": (_BOOL, (_POINTER,)),
    "bpf_map__type": (_INT, (_POINTER,)),
    "bpf_map__key_size": (_U32, (_POINTER,)),
    "bpf_map__max_entries": (_U32, (_POINTER,)),
    "bpf_map__set_max_entries": (_INT, (_POINTER, _U32)),
    "bpf_map__value_size": (_U32, (_POINTER,)),
    "bpf_map__initial_value": (_POINTER, (_POINTER, ctypes.POINTER(_SIZE))),
    "bpf_map_lookup_elem": (_INT, (_INT, _POINTER, _POINTER)),
    "bpf_map_delete_elem": (_INT, (_INT, _POINTER)),
    "bpf_map_update_elem": (_INT, (_INT, _POINTER, _POINTER, ctypes.c_uint64)),
    "bpf_obj_get_info_by_fd": (_INT, (_INT, _POINTER, ctypes.POINTER(_U32))),
    "btf__find_by_name_kind": (ctypes.c_int32, (_POINTER, _TEXT, _U32)),
    "btf__type_by_id": (_POINTER, (_POINTER, _U32)),
    "btf__name_by_offset": (_TEXT, (_POINTER, _U32)),
    "ring_buffer__new": (_POINTER, (_INT, SAMPLE_CALLBACK, _POINTER, _POINTER)),
    "ring_buffer__free": (None, (_POINTER,)),
    "ring_buffer__consume": (_INT, (_POINTER,)),
}
"""What Debian 12's libbpf 1.1.2 has."""

_OPTIONAL: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    # libbpf 1.5: bounds one call, so that fast producers cannot keep it for ever.
    "ring_buffer__consume_n": (_INT, (_POINTER, _SIZE)),
}

_LIBRARIES: Final = ("libbpf.so.1", "libbpf.so")
_LOG_BUFFER_BYTES: Final = 1 << 18
_LOG_LINES: Final = 200
_TAIL_LINES: Final = 15
_DEBUG_LEVEL: Final = 2


class Libbpf:
    """The shared library with typed functions, and its own log.

    Raises:
        UnsupportedFeature: If the library is not there or lacks a function.
    """

    def __init__(self) -> None:
        self._library = _open_library()
        self._functions: dict[str, Any] = {}
        for name, (result, arguments) in (_FUNCTIONS | _OPTIONAL).items():
            try:
                function = getattr(self._library, name)
            except AttributeError:
                if name in _OPTIONAL:
                    continue
                raise UnsupportedFeature(
                    "libbpf", f"has no {name}; install libbpf 1.0 or newer"
                ) from None
            function.restype = result
            function.argtypes = arguments
            self._functions[name] = function
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._buffer = ctypes.create_string_buffer(_LOG_BUFFER_BYTES)
        libc = ctypes.CDLL(None)
        self._format = libc.vsnprintf
        self._format.restype = _INT
        self._format.argtypes = (_POINTER, _SIZE, _TEXT, _POINTER)
        self._print = _PRINT(self._on_print)
        self.call("libbpf_set_print", self._print)

    @property
    def version(self) -> str:
        """Such as ``v1.1``."""
        text: bytes = self.call("libbpf_version_string")
        return text.decode()

    def has(self, name: str) -> bool:
        """Whether this version of the library has a function of the optional table."""
        return name in self._functions

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function and return what C returned."""
        return self._functions[name](*arguments)

    def checked(self, operation: str, name: str, *arguments: Any) -> Any:
        """Call a function that returns ``-errno`` or NULL on failure.

        Raises:
            BpfError: With the operation, the errno and the end of libbpf's log.
        """
        ctypes.set_errno(0)
        result = self._functions[name](*arguments)
        if result is None:
            raise self.error(operation, ctypes.get_errno() or errno.EINVAL)
        if isinstance(result, int) and result < 0:
            raise self.error(operation, -result)
        return result

    def error(self, operation: str, code: int) -> BpfError:
        """Make the error for a failed operation, with the last lines that libbpf logged."""
        tail = "\n".join(list(self._log)[-_TAIL_LINES:])
        return BpfError(operation, code, tail)

    def clear_log(self) -> None:
        """Forget what was logged, so that the next error carries its own lines only."""
        self._log.clear()

    def _on_print(self, level: int, format: bytes, arguments: int) -> int:
        if level >= _DEBUG_LEVEL:
            return 0
        length = self._format(self._buffer, _LOG_BUFFER_BYTES, format, arguments)
        text = self._buffer.value.decode(errors="replace").rstrip("\n")
        self._log.extend(text.splitlines())
        return int(length)


def _open_library() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name, use_errno=True)
        except OSError:  # not under this name: try the next, then give up below
            continue
    raise UnsupportedFeature("libbpf", "libbpf.so.1 not found; install the package libbpf1")


@cache
def load_library() -> Libbpf:
    """Return the library, loaded once: its log callback is global to the process."""
    return Libbpf()
