"""Reading the ring of payload records, which are as long as what they captured.

The headers are walked one by one, because each tells where the next begins; the bytes of all
records are copied at once. As in `collector.ringbuf`, which reads the rings of fixed records,
nothing is read from a record before its busy bit was seen clear, and no space is given back before
it was copied.
Source: linux kernel/bpf/ringbuf.c (layout, ``BPF_RINGBUF_BUSY_BIT``).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from collector.abi import PAYLOAD_RECORD
from collector.libbpf import SAMPLE_CALLBACK, Libbpf
from collector.ringbuf import memory_fence
from schemas.errors import LayoutMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

__all__ = [
    "NO_PIECES",
    "CallbackPayloadRing",
    "MappedPayloadRing",
    "PayloadRing",
    "Pieces",
    "create_payload_ring",
    "joined",
]

_HEADER_BYTES: Final = 8
_BUSY: Final = 1 << 31
_DISCARD: Final = 1 << 30
_RECORD_BYTES: Final = PAYLOAD_RECORD.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Payload records and the bytes that follow them.

    Attributes:
        records: Shape (n,), fields of ``struct podwire_payload_record``, oldest first.
        data: All captured bytes, among them what lies between.
        starts: Shape (n,): where in ``data`` the bytes of each record begin.
    """

    records: NDArray[Any]
    data: bytes
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.records)

    def take(self, chosen: NDArray[np.bool_]) -> Pieces:
        """Return some of the records, with the same data behind them."""
        return Pieces(self.records[chosen], self.data, self.starts[chosen])

    def captured(self) -> Iterator[bytes]:
        """Return the bytes of each record."""
        data = self.data
        ends = self.starts + self.records["captured"]
        return (
            data[start:end] for start, end in zip(self.starts.tolist(), ends.tolist(), strict=True)
        )


NO_PIECES: Final = Pieces(np.empty(0, PAYLOAD_RECORD), b"", np.empty(0, np.int64))


def joined(records: list[bytes]) -> Pieces:
    """Return pieces from whole records, each with the bytes that follow it.

    Raises:
        LayoutMismatch: If a record is shorter than it says.
    """
    return _pieces(b"".join(records), np.cumsum([0, *map(len, records)])[:-1])


def _pieces(data: bytes, at: NDArray[np.int64]) -> Pieces:
    # From the places of the records, each followed by its bytes.
    if not len(at):
        return NO_PIECES
    raw = np.frombuffer(data, np.uint8)
    heads = raw[at[:, None] + np.arange(_RECORD_BYTES)]
    records = heads.view(PAYLOAD_RECORD).reshape(-1)
    starts = at + _RECORD_BYTES
    if int((starts + records["captured"]).max()) > len(data):
        raise LayoutMismatch("payload record", f"{len(data)} bytes", "more captured than sent")
    return Pieces(records, data, starts)


class PayloadRing(Protocol):
    """The ring of payload records."""

    name: str
    size: int

    @property
    def used(self) -> int:
        """Bytes that were waiting when `drain` last began."""
        ...

    def drain(self) -> Pieces:
        """Take every finished record, oldest first."""
        ...

    def close(self) -> None:
        """Unmap the ring."""
        ...


class MappedPayloadRing:
    """The ring read through its mapped memory."""

    def __init__(self, name: str, fd: int, size: int, fence: Callable[[], object]) -> None:
        page = mmap.PAGESIZE
        self.name = name
        self.size = size
        self.used = 0
        self._fence = fence
        self._positions = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # Producer page and data, read only: the kernel refuses more (ringbuf_map_mmap_kern).
        self._memory = mmap.mmap(fd, page + size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._views = [memoryview(self._positions), memoryview(self._memory)]
        self._consumer = self._views[0][:8].cast("Q")
        self._producer = self._views[1][:8].cast("Q")
        self._data = self._views[1][page:]
        self._words = self._data.cast("I")
        self._views += [self._consumer, self._producer, self._data, self._words]
        self._closed = False

    def drain(self) -> Pieces:
        """Take every finished record, oldest first.

        Raises:
            LayoutMismatch: If a record is shorter than its header: then nothing after it can be
                trusted.
        """
        if self._closed:
            return NO_PIECES
        start, end = self._consumer[0], self._producer[0]
        self._fence()  # the headers must not be read before the position that covers them
        self.used = end - start
        words, mask = self._words, self.size // 4 - 1
        places: list[int] = []
        at = start
        while at < end:
            length = words[at >> 2 & mask]
            if length & _BUSY:
                break
            if not length & _DISCARD:
                if length < _RECORD_BYTES:
                    raise LayoutMismatch("payload record length", _RECORD_BYTES, length)
                places.append(at - start + _HEADER_BYTES)
            at += (length & ~_DISCARD) + _HEADER_BYTES + 7 & ~7
        if at == start:
            return NO_PIECES
        self._fence()  # nor the data before the busy bits
        first = start & self.size - 1
        straight = min(at - start, self.size - first)
        data = self._data[first : first + straight].tobytes()
        if at - start > straight:
            data += self._data[: at - start - straight].tobytes()
        self._fence()  # the space is given back after it was copied
        self._consumer[0] = at
        return _pieces(data, np.array(places, np.int64))

    def close(self) -> None:
        """Unmap the ring; safe to repeat."""
        if self._closed:
            return
        self._closed = True
        for view in reversed(self._views):
            view.release()
        self._memory.close()
        self._positions.close()


class CallbackPayloadRing:
    """The ring read by libbpf, one callback per record: slower, but right on every machine."""

    def __init__(self, name: str, fd: int, size: int, library: Libbpf) -> None:
        self.name = name
        self.size = size
        self.used = 0
        self._library = library
        self._records: list[bytes] = []
        self._callback = SAMPLE_CALLBACK(self._on_sample)
        self._ring: int | None = library.checked(
            f"open ring {name}", "ring_buffer__new", fd, self._callback, None, None
        )

    def _on_sample(self, context: int, sample: int, size: int) -> int:
        self._records.append(ctypes.string_at(sample, size))
        self.used += size + _HEADER_BYTES
        # A negative answer ends this call with the record taken: a whole ring has been read.
        return -errno.ENOBUFS if self.used >= self.size else 0

    def drain(self) -> Pieces:
        """Take every finished record, oldest first.

        Raises:
            BpfError: If libbpf fails.
            LayoutMismatch: If a record is shorter than it says.
        """
        self._records, self.used = [], 0
        if self._ring is None:
            return NO_PIECES
        result = self._library.call("ring_buffer__consume", self._ring)
        if result < 0 and result not in (-errno.ENOBUFS, -errno.EINTR):
            raise self._library.error(f"read ring {self.name}", -result)
        if any(len(record) < _RECORD_BYTES for record in self._records):
            shortest = min(map(len, self._records))
            raise LayoutMismatch("payload record length", _RECORD_BYTES, shortest)
        return joined(self._records)

    def close(self) -> None:
        """Free libbpf's reader, then the callback; safe to repeat."""
        if self._ring is not None:
            self._library.call("ring_buffer__free", self._ring)
            self._ring = None


def create_payload_ring(
    name: str, fd: int, size: int, library: Libbpf, mapped: bool = True
) -> PayloadRing:
    """Open the ring: mapped where the machine's memory ordering allows, else through libbpf.

    Raises:
        BpfError: If the ring cannot be mapped.
    """
    fence = memory_fence() if mapped else None
    if fence is None:
        return CallbackPayloadRing(name, fd, size, library)
    try:
        return MappedPayloadRing(name, fd, size, fence)
    except OSError as error:
        raise library.error(f"map ring {name}", error.errno or errno.EIO) from error
