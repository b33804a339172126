"""What a source tells the pipeline, and the bounded queue between the two."""

from __future__ import annotations

import itertools
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collector.kube.convert import Converted

__all__ = ["Failed", "Feed", "Found", "Gone", "Listed", "Message", "Source", "generations"]

_DEPTH: Final = 16
_OFFER_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """Objects that exist, from a page of a list or from a watch; `namespace` as in `Listed`."""

    kind: str
    generation: int
    objects: list[Converted]
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Gone:
    """An object was deleted; with its last state."""

    kind: str
    object: Converted


@dataclass(frozen=True, slots=True)
class Listed:
    """A full list ended: what it did not name is gone.

    `namespace` limits the list; empty means all of them.
    """

    kind: str
    generation: int
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The source cannot go on."""

    error: BaseException


Message: TypeAlias = Found | Gone | Listed | Failed


class Feed:
    """A bounded queue that a stopped consumer does not block for ever."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Message] = queue.Queue(_DEPTH)
        self._closed = threading.Event()

    def put(self, message: Message) -> bool:
        """Hand a message over, waiting for room; False if the feed was closed."""
        while not self._closed.is_set():
            try:
                self._queue.put(message, timeout=_OFFER_S)
            except queue.Full:
                continue
            return True
        return False

    def get(self, timeout_s: float) -> Message | None:
        """The next message, or None if there is none in time."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Release everyone who waits in `put`."""
        self._closed.set()


class Source(Protocol):
    """Where the objects come from."""

    @property
    def scopes(self) -> frozenset[tuple[str, str]]:
        """The (kind, namespace) pairs that have to be listed before the state is full."""
        ...

    def start(self, feed: Feed) -> None:
        """Begin to feed from threads of its own."""
        ...

    def in_sync(self) -> bool:
        """Whether what was fed is still current."""
        ...

    def stop(self) -> None:
        """End the threads."""
        ...


def generations() -> Iterator[int]:
    """Numbers for full lists; 0 is what the topics held before."""
    return itertools.count(1)
