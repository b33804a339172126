"""The topics of one events partition in memory, and what the sink would count of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from schemas.entities import decode_entity
from schemas.metrics import MetricsBlock, decode_block
from streams.config import StreamsConfig
from streams.directory import Directory
from streams.pipeline import Pipeline
from streams.recovery import read_emitted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from schemas.clock import ManualClock


class Crash(Exception):
    """The process dies here."""


class Topics:
    """What survives a worker: the events, its output, and the committed offset."""

    def __init__(self, events: Sequence[bytes] = ()) -> None:
        self.events = list(events)
        self.metrics: list[bytes] = []
        self.entities: dict[bytes, bytes] = {}
        self.letters: list[bytes] = []
        self.access_log: list[tuple[bytes, bytes]] = []
        self.logged: list[bytes] = []  # of these, what a test says the broker has taken
        self.committed = 0
        self.fuse: int | None = None  # so many metrics messages until the next crash
        self.taken_over = False
        self.while_sending: Callable[[], None] = lambda: None  # what else the process does then

    async def owns(self, partition: int, floor: int) -> bool:
        return not self.taken_over

    async def send_blocks(self, partition: int, messages: Sequence[bytes]) -> None:
        for message in messages:
            self.while_sending()
            if self.fuse == 0:
                self.fuse = None
                raise Crash
            if self.fuse is not None:
                self.fuse -= 1
            self.metrics.append(message)
        await asyncio.sleep(0)

    async def send_entities(self, messages: Sequence[tuple[bytes, bytes]]) -> None:
        self.entities.update(messages)

    async def begin_access_log(self, key: bytes, messages: Sequence[bytes]) -> Awaitable[None]:
        self.access_log.extend((key, message) for message in messages)
        return self.access_log_taken(messages)

    async def access_log_taken(self, messages: Sequence[bytes]) -> None:
        """When the broker has them."""

    async def send_dead_letter(self, key: bytes, value: bytes) -> None:
        self.letters.append(value)

    async def emitted(self, partition: int, topic: str, start_offset: int) -> dict[int, int]:
        return await read_emitted(self, topic, start_offset, len(self.events))

    async def first_offset(self, partition: int, offset: int) -> int:
        return offset

    async def bounds(self) -> tuple[int, int]:
        return 0, len(self.metrics)

    async def read(self, start: int, stop: int) -> list[bytes]:
        return self.metrics[start:stop]

    def entity_names(self, kind: str) -> list[dict[str, str]]:
        entities = [decode_entity(value) for value in self.entities.values()]
        return [entity.names for entity in entities if entity.kind == kind]


def make_pipeline(
    topics: Topics,
    clock: ManualClock,
    directory: Directory | None = None,
    **settings: Any,
) -> Pipeline:
    settings.setdefault("metadata_wait_s", 0.0)
    settings.setdefault("metadata_delay_s", 0.0)
    return Pipeline(StreamsConfig(**settings), directory or Directory(), topics, topics, clock)


def counted_blocks(messages: Iterable[bytes]) -> list[list[MetricsBlock]]:
    """By the sink's rule: blocks with all parts of one attempt, the first of each token."""
    waiting: dict[tuple[int, int, str], dict[int, MetricsBlock]] = {}
    counted: dict[tuple[str, int, int, int], list[MetricsBlock]] = {}
    for message in messages:
        block = decode_block(message)
        identity = block.identity
        parts = waiting.setdefault((identity.minute_s, identity.base_offset, identity.attempt), {})
        parts[identity.part] = block
        if len(parts) == identity.parts:
            token = (
                identity.topic,
                identity.partition,
                identity.minute_s,
                identity.base_offset,
            )
            counted.setdefault(token, [parts[place] for place in range(identity.parts)])
    return list(counted.values())


def totals(blocks: Iterable[Sequence[MetricsBlock]], table: str) -> Counter[tuple[Any, ...]]:
    """Sum of every figure: (minute, key texts..., figure) to value; zeros left out."""
    sums: Counter[tuple[Any, ...]] = Counter()
    for parts in blocks:
        for block in parts:
            for found in block.tables:
                if found.table != table:
                    continue
                for row in range(found.rows):
                    keys = tuple(block.names[column[row]] for column in found.keys.values())
                    for kind in ("figures", "measured"):
                        for name, values in getattr(found, kind).items():
                            label = name if kind == "figures" else f"{name}_measured_count"
                            place = (block.identity.minute_s, *keys, label)
                            sums[place] += int(values[row])
    return Counter({place: value for place, value in sums.items() if value})


def spreads(blocks: Iterable[Sequence[MetricsBlock]], table: str) -> Counter[tuple[Any, ...]]:
    """Histograms: (minute, key texts..., distribution, bucket) to count."""
    counts: Counter[tuple[Any, ...]] = Counter()
    for parts in blocks:
        for block in parts:
            for found in block.tables:
                if found.table != table:
                    continue
                for name, histogram in found.histograms.items():
                    entries = (histogram.row, histogram.bucket, histogram.count)
                    for row, bucket, count in zip(*map(list, entries), strict=True):
                        keys = tuple(block.names[column[row]] for column in found.keys.values())
                        place = (block.identity.minute_s, *keys, name, int(bucket))
                        counts[place] += int(count)
    return counts
