"""Reading BPF ring buffers as arrays: one mapped ring per record kind, no Python per record.

`MappedRing` views ``[consumer, producer)`` of the ring's own memory, checks the busy and discard
bits of all records at once, copies once and then gives the space back. The data is mapped once
(libbpf maps it twice, to read records across the end), which is enough because the stride of every
record kind divides the ring; mapped pages count in the resident memory. `CallbackRing` is libbpf's
own consumer, for machines whose memory ordering this module has no barrier for.

Invariant: nothing is read from a record before its busy bit was seen clear, and no space is given
back before it was copied.
Source: linux kernel/bpf/ringbuf.c (layout, ``BPF_RINGBUF_BUSY_BIT``); libbpf src/ringbuf.c.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import platform
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from collector.libbpf import SAMPLE_CALLBACK, Libbpf
from schemas.errors import LayoutMismatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = [
    "CallbackRing",
    "MappedRing",
    "Ring",
    "RingMemory",
    "SequenceTracker",
    "create_ring",
    "framed",
    "memory_fence",
]

_HEADER_BYTES: Final = 8
_BUSY: Final = np.uint32(1 << 31)
_DISCARD: Final = np.uint32(1 << 30)

_SYS_MEMBARRIER: Final = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_PRIVATE_EXPEDITED: Final = 1 << 3
_MEMBARRIER_REGISTER_PRIVATE_EXPEDITED: Final = 1 << 4


class Ring(Protocol):
    """One ring buffer whose records all have the same layout."""

    name: str
    size: int

    @property
    def used(self) -> int:
        """Bytes that were waiting when `drain` last began."""
        ...

    def drain(self) -> NDArray[Any]:
        """Take every finished record, oldest first, as a structured array of our own memory."""
        ...

    def close(self) -> None:
        """Unmap the ring."""
        ...


def framed(record: np.dtype[Any]) -> np.dtype[Any]:
    """Return the layout of a record with the ring's header before it, as long as its stride."""
    assert record.names is not None
    assert record.fields is not None
    offsets = [record.fields[name][1] + _HEADER_BYTES for name in record.names]
    return np.dtype(
        {
            "names": ["_length", *record.names],
            "formats": ["<u4", *(record.fields[name][0] for name in record.names)],
            "offsets": [0, *offsets],
            "itemsize": (record.itemsize + _HEADER_BYTES + 7) // 8 * 8,
        }
    )


def memory_fence() -> Callable[[], object] | None:
    """Return what orders the reads of a ring on this machine; None if nothing here can.

    x86 keeps loads in order and stores after loads, so nothing is needed (Intel SDM 3A 8.2.2).
    Elsewhere ``membarrier(2)`` is a full barrier for the calling thread; three calls per drain are
    nothing beside the copy.
    """
    machine = platform.machine()
    if machine == "x86_64":
        return lambda: None
    return _membarrier(machine)


def _membarrier(machine: str) -> Callable[[], object] | None:
    if machine not in _SYS_MEMBARRIER:
        return None
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_uint, ctypes.c_int)
    number = _SYS_MEMBARRIER[machine]
    if syscall(number, _MEMBARRIER_REGISTER_PRIVATE_EXPEDITED, 0, 0) != 0:
        return None
    return lambda: syscall(number, _MEMBARRIER_PRIVATE_EXPEDITED, 0, 0)


class RingMemory:
    """The positions and slots of a ring, in whatever memory they lie."""

    def __init__(
        self,
        consumer: NDArray[np.uint64],
        producer: NDArray[np.uint64],
        data: NDArray[np.uint8],
        record: np.dtype[Any],
        fence: Callable[[], object],
    ) -> None:
        layout = framed(record)
        if data.size % layout.itemsize:
            raise LayoutMismatch(
                "ring size", f"a multiple of {layout.itemsize} bytes", f"{data.size} bytes"
            )
        self._consumer = consumer
        self._producer = producer
        self._slots = data.view(layout)
        self._length = record.itemsize
        self._fence = fence
        self.used = 0

    def drain(self) -> NDArray[Any]:
        """Copy ``[consumer, producer)`` up to the first busy record and give its space back.

        Returns:
            Shape (n,), dtype of `framed`; discarded records are left out.

        Raises:
            LayoutMismatch: If a record is not as long as its kind: then nothing after it can be
                trusted.
        """
        slots, stride = self._slots, self._slots.itemsize
        start = int(self._consumer[0])
        end = int(self._producer[0])
        self._fence()  # the headers must not be read before the position that covers them
        self.used = end - start
        count = self.used // stride
        if count == 0:
            return np.empty(0, slots.dtype)
        first = start // stride % len(slots)
        straight = min(count, len(slots) - first)
        parts = [slots[first : first + straight]]
        if count > straight:
            parts.append(slots[: count - straight])
        lengths = np.concatenate([part["_length"] for part in parts])
        self._fence()  # nor the data before the busy bits
        discarded: NDArray[np.bool_] | None = None
        if not (lengths == self._length).all():
            busy = (lengths & _BUSY) != 0
            if busy.any():
                count = int(busy.argmax())
                lengths = lengths[:count]
                parts = [
                    parts[0][:count],
                    *(part[: max(0, count - straight)] for part in parts[1:]),
                ]
            wrong = (lengths & ~_DISCARD) != self._length
            if wrong.any():
                found = int(lengths[int(wrong.argmax())] & ~_DISCARD)
                raise LayoutMismatch("record length", self._length, found)
            discarded = (lengths & _DISCARD) != 0
        records = np.concatenate(parts)
        self._fence()  # the space is given back after it was copied
        self._consumer[0] = start + count * stride
        if discarded is not None and discarded.any():
            return records[~discarded]
        return records


class MappedRing:
    """A ring read through its mapped memory."""

    def __init__(
        self, name: str, fd: int, size: int, record: np.dtype[Any], fence: Callable[[], object]
    ) -> None:
        page = mmap.PAGESIZE
        self.name = name
        self.size = size
        self._positions = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # Producer page and data, read only: the kernel refuses more (ringbuf_map_mmap_kern).
        self._data = mmap.mmap(fd, page + size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._memory: RingMemory | None = RingMemory(
            consumer=np.frombuffer(self._positions, np.uint64, 1),
            producer=np.frombuffer(self._data, np.uint64, 1),
            data=np.frombuffer(self._data, np.uint8, size, page),
            record=record,
            fence=fence,
        )
        self._empty = np.empty(0, framed(record))

    @property
    def used(self) -> int:
        """Bytes that were waiting when `drain` last began."""
        return self._memory.used if self._memory else 0

    def drain(self) -> NDArray[Any]:
        """Take every finished record; see `RingMemory.drain`."""
        return self._memory.drain() if self._memory else self._empty

    def close(self) -> None:
        """Unmap the ring; safe to repeat."""
        self._memory = None  # its arrays hold the mappings
        self._data.close()
        self._positions.close()


class CallbackRing:
    """A ring read by libbpf, one callback per record: slower, but right on every machine."""

    def __init__(
        self, name: str, fd: int, size: int, record: np.dtype[Any], library: Libbpf
    ) -> None:
        layout = framed(record)
        self.name = name
        self.size = size
        self.used = 0
        self._library = library
        self._length = record.itemsize
        self._slab = np.zeros(max(1, size // layout.itemsize), layout)
        self._count = 0
        self._wrong: int | None = None
        self._callback = SAMPLE_CALLBACK(self._on_sample)
        self._ring: int | None = library.checked(
            f"open ring {name}", "ring_buffer__new", fd, self._callback, None, None
        )
        self._address = self._slab.ctypes.data + _HEADER_BYTES
        self._stride = layout.itemsize

    def _on_sample(self, context: int, sample: int, size: int) -> int:
        # An exception would be printed and the record lost, so failures are kept for `drain`.
        if size != self._length:
            self._wrong = size
            return -errno.EPROTO
        ctypes.memmove(self._address + self._count * self._stride, sample, size)
        self._count += 1
        # A negative answer ends this call with the record taken: the slab is full.
        return -errno.ENOBUFS if self._count == len(self._slab) else 0

    def drain(self) -> NDArray[Any]:
        """Take every finished record.

        Raises:
            BpfError: If libbpf fails.
            LayoutMismatch: If a record is not as long as its kind.
        """
        self._count = 0
        if self._ring is None:
            return self._slab[:0].copy()
        result = self._library.call("ring_buffer__consume", self._ring)
        if self._wrong is not None:
            raise LayoutMismatch("record length", self._length, self._wrong)
        if result < 0 and result not in (-errno.ENOBUFS, -errno.EINTR):
            raise self._library.error(f"read ring {self.name}", -result)
        self.used = self._count * self._stride
        records: NDArray[Any] = self._slab[: self._count].copy()
        return records

    def close(self) -> None:
        """Free libbpf's reader, then the callback; safe to repeat."""
        if self._ring is not None:
            self._library.call("ring_buffer__free", self._ring)
            self._ring = None


def create_ring(
    name: str, fd: int, size: int, record: np.dtype[Any], library: Libbpf, mapped: bool = True
) -> Ring:
    """Open a ring: mapped where the machine's memory ordering allows, else through libbpf.

    Raises:
        BpfError: If the ring cannot be mapped.
    """
    fence = memory_fence() if mapped and size % framed(record).itemsize == 0 else None
    if fence is None:
        return CallbackRing(name, fd, size, record, library)
    try:
        return MappedRing(name, fd, size, record, fence)
    except OSError as error:
        raise library.error(f"map ring {name}", error.errno or errno.EIO) from error


class SequenceTracker:
    """Counts records of a ring that were numbered but never arrived.

    Every CPU numbers its records from 0. Records of one CPU can lie in the ring in another order
    than their numbers (an interrupt between numbering and reserving), so numbers are counted, not
    compared one by one: the count is exact whenever no record is in flight.
    """

    def __init__(self) -> None:
        self._next = np.zeros(64, np.int64)
        self._received = 0

    def add(self, cpu: NDArray[np.uint16], sequence: NDArray[np.uint64]) -> None:
        """Take the cpu and sequence columns of drained records, shape (n,) both."""
        if not len(cpu):
            return
        highest = int(cpu.max())
        if highest >= len(self._next):
            self._next = np.concatenate([self._next, np.zeros(highest + 1, np.int64)])
        # For a repeated index numpy keeps the last value, which is the newest record of that CPU.
        self._next[cpu] = sequence.astype(np.int64) + 1
        self._received += len(cpu)

    @property
    def missing(self) -> int:
        """Records numbered so far that did not arrive."""
        return int(self._next.sum()) - self._received
