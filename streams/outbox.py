"""Sends under way, and the offset below which the broker has taken everything.

Waiting for the broker's answer message by message would make every batch as slow as the network.
Instead offsets wait: none is committed before what was made of its message is taken.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = ["Outbox"]

_LIMIT: Final = 64


class Outbox:
    """The sends of all partitions of a worker."""

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._pending: dict[int, list[tuple[int, asyncio.Future[None]]]] = {}

    async def add(self, partition: int, offset: int, sent: Awaitable[None]) -> None:
        """Remember a send; wait first if there are too many.

        Args:
            partition: Of the message that it was made of.
            offset: Of that message.
            sent: Done when the broker has taken it.

        Raises:
            Exception: Of an earlier send that failed.
        """
        future = asyncio.ensure_future(sent)
        future.add_done_callback(_retrieved)
        self._pending.setdefault(partition, []).append((offset, future))
        self.check()
        while len(pending := self._pending[partition]) > self._limit:
            await pending[0][1]
            self.check()

    def check(self) -> None:
        """Forget the sends that are done.

        Raises:
            Exception: Of the first that failed; its offset stays.
        """
        for partition, pending in self._pending.items():
            for _, future in pending:
                if future.done():
                    future.result()
            self._pending[partition] = [entry for entry in pending if not entry[1].done()]

    def floor(self, partition: int) -> int | None:
        """The least offset whose send is not done, or failed; None if there is none."""
        return min(
            (offset for offset, future in self._pending.get(partition, ()) if not _taken(future)),
            default=None,
        )

    def forget(self, partition: int) -> None:
        """Say that a partition is somebody else's."""
        self._pending.pop(partition, None)


def _taken(future: asyncio.Future[None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _retrieved(future: asyncio.Future[None]) -> None:
    # Of a partition that was forgotten nobody asks for the result.
    if not future.cancelled():
        future.exception()
