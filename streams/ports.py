"""What the work of a stream worker needs of the topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

__all__ = ["History", "Output"]


class Output(Protocol):
    """Where results go. Methods return when the broker has taken all of it, but for one."""

    async def owns(self, partition: int, floor: int) -> bool:
        """Commit the floor; whether the group still takes it from this worker."""
        ...

    async def send_blocks(self, partition: int, messages: Sequence[bytes]) -> None:
        """Append to a partition of the metrics topic, in order."""
        ...

    async def send_entities(self, messages: Sequence[tuple[bytes, bytes]]) -> None:
        """Put keys and values on the entities topic."""
        ...

    async def begin_access_log(self, key: bytes, messages: Sequence[bytes]) -> Awaitable[None]:
        """Put messages on the access log topic; what it returns is done when they are taken."""
        ...

    async def send_dead_letter(self, key: bytes, value: bytes) -> None:
        """Put a message on the dead letter topic."""
        ...


class History(Protocol):
    """What the topics say about a partition that this worker takes over."""

    async def emitted(self, partition: int, topic: str, start_offset: int) -> dict[int, int]:
        """For minutes stored in part, the events offset up to which they are."""
        ...

    async def first_offset(self, partition: int, offset: int) -> int:
        """The first offset at or after this one that exists in the events partition."""
        ...
