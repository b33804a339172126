"""HTTP/1 of which pieces are lost: whatever a row says is true, or it says that it does not know.

The losses are told as ``bpf/programs/unseen.h`` tells them: how far a direction had come, before
whatever is said next.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest

from collector.abi import ConnectionEvent, Direction, Role
from collector.connections import ConnectionTable
from collector.conversations import Conversations
from collector.protocols.calls import NO_STATUS, Call, Outcome, Settings
from tests.collector.records import Talk, connection, connections, pieces

RUNS = 600
ID = 1
FIRST_STATUS = 201


@dataclass
class Lossy:
    """A connection whose pieces are cut anywhere, shortened and lost."""

    random: random.Random
    talk: Talk
    losses: float
    shortened: float
    told: list[bytes] = field(default_factory=list)
    untold: dict[Direction, bytes] = field(default_factory=dict)

    def say(self, side: Direction, data: bytes) -> None:
        """One side says something."""
        cuts = self.random.choice((0, 0, 0, 1, 2))
        at = sorted({0, len(data), *(self.random.randrange(len(data)) for _ in range(cuts))})
        for start, end in itertools.pairwise(at):
            captured = end - start
            if self.random.random() < self.shortened:
                captured = min(captured, self.random.choice((20, 60)))
            made = self.talk.moved(side, data[start : start + captured], end - start - captured)
            if self.random.random() < self.losses:
                self.untold.pop(side, None)
                self.untold[side] = self.talk.told(side)
            else:
                self.told += [*self.untold.values(), made]
                self.untold.clear()

    def message(self, first_line: bytes, size: int) -> bytes:
        """A message with content, framed in either way."""
        if not size and first_line.startswith(b"GET"):
            return first_line + b"\r\n\r\n"
        if self.random.random() < 0.4:
            chunk = b"%x\r\n%s\r\n" % (size, b"c" * size) if size else b""
            return first_line + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"
        return first_line + b"\r\nContent-Length: %d\r\n\r\n" % size + b"c" * size


def calls_of(seed: int, most_at_once: int) -> tuple[list[Call], int]:
    """What became of a connection, and how many calls it had; call n is answered with 201 + n."""
    chance = random.Random(seed)
    role = chance.choice((Role.SERVER, Role.CLIENT))
    event = ConnectionEvent.ACCEPTED if role == Role.SERVER else ConnectionEvent.CONNECTED
    asking, answering = Direction.READ, Direction.WRITE
    if role == Role.CLIENT:
        asking, answering = answering, asking
    lossy = Lossy(chance, Talk(ID), chance.choice((0.05, 0.2, 0.5)), chance.choice((0, 0.3)))
    count = chance.randrange(1, 14)
    done = 0
    while done < count:
        together = range(done, min(done + chance.randint(1, most_at_once), count))
        for number in together:
            size = chance.choice((0, 0, 10, 300))
            method = b"POST" if size else b"GET"
            lossy.say(asking, lossy.message(b"%s /%d HTTP/1.1" % (method, number), size))
        for number in together:
            line = b"HTTP/1.1 %d Some" % (FIRST_STATUS + number)
            lossy.say(answering, lossy.message(line, chance.choice((0, 10, 300))))
        done = together.stop
    table = ConnectionTable()
    table.apply(connections(connection(ID, event, role=role)))
    conversations = Conversations(table, Settings())
    for piece in (*lossy.told, *lossy.untold.values()):
        conversations.apply(pieces(piece))
    conversations.end([ID], [10**9])
    for _ in range(2):
        conversations.apply(pieces())
    return [call for _, call in conversations.take_calls()], count


@pytest.mark.parametrize(("most_at_once", "least_known"), [(1, 0.75), (3, 0.5)])
def test_no_row_is_wrong(most_at_once: int, least_known: float) -> None:
    """Also of pipelines, of which less is known."""
    rows = known = 0
    for seed in range(RUNS):
        calls, count = calls_of(seed, most_at_once)
        assert len({call.path for call in calls}) == len(calls) <= count
        for call in calls:
            status = FIRST_STATUS + int(call.path[1:])
            assert call.outcome == Outcome.ANSWERED, (seed, call)
            assert call.status in (NO_STATUS, status), (seed, call)
            known += call.status == status
        rows += len(calls)
    assert known > least_known * rows
