"""What of a partition is stored already: learned from the tail of its metrics partition.

The ends of complete blocks never go backwards in a metrics partition (`streams.windows` sees to
it), so reading backwards may stop at the first one that ends at or before the offset from which
events are read again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from schemas.errors import DecodeError, FatalError
from schemas.metrics import decode_block

if TYPE_CHECKING:
    from collections.abc import Iterable

    from schemas.metrics import BlockIdentity

__all__ = ["Log", "complete_blocks", "read_emitted"]

logger = logging.getLogger(__name__)

_FIRST_STEP = 8


class Log(Protocol):
    """One partition of a topic, read without a consumer group."""

    async def bounds(self) -> tuple[int, int]:
        """The first offset there is, and the one after the last."""
        ...

    async def read(self, start: int, stop: int) -> list[bytes]:
        """The values of the messages at [start, stop)."""
        ...


def complete_blocks(identities: Iterable[BlockIdentity]) -> list[BlockIdentity]:
    """Return one identity for each block of which all parts of one attempt are there."""
    attempts: dict[tuple[int, int, str], dict[int, BlockIdentity]] = {}
    for identity in identities:
        attempt = (identity.minute_s, identity.base_offset, identity.attempt)
        attempts.setdefault(attempt, {})[identity.part] = identity
    return [
        next(iter(parts.values()))
        for parts in attempts.values()
        if len(parts) == next(iter(parts.values())).parts
    ]


async def read_emitted(log: Log, topic: str, start_offset: int, events_end: int) -> dict[int, int]:
    """Return for each minute stored in part the events offset up to which it is.

    Args:
        log: The metrics partition.
        topic: Identity of the events topic that blocks must bear.
        start_offset: Where reading of the events begins; blocks that end there do not matter.
        events_end: The offset after the last event message.

    Raises:
        FatalError: If a block holds offsets that the events partition does not have yet: the topic
            was made anew under its old name, and nothing could tell old blocks from new ones.
    """
    first, upper = await log.bounds()
    step = _FIRST_STEP
    identities: list[BlockIdentity] = []
    blocks: list[BlockIdentity] = []
    while upper > first:
        lower = max(first, upper - step)
        for value in await log.read(lower, upper):
            try:
                identity = decode_block(value).identity
            except DecodeError as error:
                logger.warning("a message of the metrics topic is no block: %s", error)
                continue
            if identity.topic == topic:
                identities.append(identity)
        blocks = complete_blocks(identities)
        if any(block.end_offset <= start_offset for block in blocks):
            break
        upper, step = lower, step * 2
    emitted: dict[int, int] = {}
    for block in blocks:
        if block.end_offset > start_offset:
            emitted[block.minute_s] = max(block.end_offset, emitted.get(block.minute_s, 0))
    highest = max(emitted.values(), default=0)
    if highest > events_end:
        raise FatalError(
            f"metrics hold events up to offset {highest}, but {topic} ends at {events_end}: the"
            " topic was made anew; give streams.broker_epoch a new value"
        )
    return emitted
