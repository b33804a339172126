"""What the ends of each connection say: captured pieces in order, into its parser, calls out.

Pieces of a direction carry TCP's sequence numbers, so whatever was not captured - a call that the
ring had no room for, bytes that need no look - is a gap of known length, and is told to the parser
as such. What a connection says inside TLS is a conversation of its own, with a count of the clear
bytes for sequence numbers. Pure: the parsers come from outside, and what the kernel should leave
out is returned.

Invariant: a close that `end` is told of takes effect at the second `apply` after it, because the
last pieces of a connection can be drained after its close.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from collector.abi import ConnectionFlag, Direction, PayloadFlag, Role
from collector.protocols.calls import Call, Settings, Side
from collector.protocols.detect import Protocol as Spoken
from collector.protocols.exchange import Conversation
from collector.protocols.first_lines import looks_like_request, looks_like_response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.connections import ConnectionTable
    from collector.payload_ring import Pieces

__all__ = ["Conversations", "Found", "Verdict"]

_SKIPPED_AT_LEAST: Final = 65_536
"""A body of which less is left costs less to copy than to tell the kernel about."""
_LONGEST_SKIP: Final = 1 << 30
"""The kernel compares sequence numbers, which say what is before for half of their range only."""
_WORTH_ASKING: Final = 4_096
_LAST: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the kernel should leave out of a connection.

    Attributes:
        connection_id: Of the connection.
        reads: Sequence number before which reads need not be captured, or None.
        writes: The same for writes.
        is_unwanted: Nothing more of it need be captured.
        is_inside_tls: Whether this is about its clear bytes.
    """

    connection_id: int
    reads: int | None = None
    writes: int | None = None
    is_unwanted: bool = False
    is_inside_tls: bool = False


Found = tuple[int, Call]
"""Id of the connection, and a call that came to its end on it."""


@dataclass(slots=True)
class _State:
    # One connection, or what is inside TLS of it. `expected`: sequence number of the next read and
    # write, None before the first; `last_ns`: when the one before it had moved.
    exchange: Conversation | None
    request_direction: int
    is_inside_tls: bool
    is_excluded: bool = False
    expected: list[int | None] = field(default_factory=lambda: [None, None])
    last_ns: list[int] = field(default_factory=lambda: [0, 0])
    skipping: list[int | None] = field(default_factory=lambda: [None, None])


class Conversations:
    """The parsers of all connections.

    Args:
        table: The connections, for roles; rows must be entered before their pieces come.
        settings: For every parser.
        max_conversations: Connections parsed at once; the ones begun the longest ago are given up.
    """

    def __init__(
        self, table: ConnectionTable, settings: Settings, max_conversations: int = 65_536
    ) -> None:
        self._table = table
        self._settings = settings
        self._max = max_conversations
        # By connection id; what is inside TLS by its complement
        self._states: dict[int, _State] = {}
        self._ending: list[dict[int, int]] = [{}, {}]
        self._calls: list[Found] = []
        self._verdicts: list[Verdict] = []
        self.unknown = 0
        """Pieces of connections that were never announced."""
        self.excluded = 0
        """Pieces of connections outside the monitoring scope."""
        self.gaps = 0
        """Times that bytes were missing which no parser had done without."""
        self.given_up = 0
        """Connections given up for newer ones."""
        self.captured_bytes = 0
        """Bytes that parsers were given."""
        self.untold_bytes = 0
        """Bytes that parsers needed and that no piece tells of."""
        self.uncaptured_bytes = 0
        """Bytes that parsers needed and that a piece tells of without having them."""

    def __len__(self) -> int:
        return len(self._states)

    @property
    def held_since_ns(self) -> int | None:
        """End of the earliest close that has not taken effect: no call is older, or None."""
        times = [time for group in self._ending for time in group.values()]
        return min(times) if times else None

    def apply(self, pieces: Pieces) -> None:
        """Feed pieces to their parsers, oldest first."""
        if len(pieces):
            self._feed_all(pieces)
        for connection_id, end_ns in self._ending.pop(0).items():
            self._close(connection_id, end_ns)
        self._ending.append({})

    def end(self, ids: Sequence[int], end_ns: Sequence[int]) -> None:
        """Say that connections were closed or failed, and when."""
        # Also of those without a state: all pieces of a short one come in the same drain.
        self._ending[-1].update(zip(ids, end_ns, strict=True))

    def forget(self, ids: Sequence[int]) -> None:
        """Let go of connections that are not watched any more, without judging their calls."""
        for connection_id in ids:
            self._states.pop(connection_id, None)
            self._states.pop(~connection_id, None)

    def finish(self) -> None:
        """Nothing more comes: let go of what is known, without judging what is under way."""
        while any(self._ending):
            for connection_id, time in self._ending.pop(0).items():
                self._close(connection_id, time)
            self._ending.append({})
        self._states.clear()

    def take_calls(self) -> list[Found]:
        """Return the calls that ended since the last time."""
        calls, self._calls = self._calls, []
        return calls

    def take_verdicts(self) -> list[Verdict]:
        """Return what the kernel should know from now on."""
        verdicts, self._verdicts = self._verdicts, []
        return verdicts

    def _feed_all(self, pieces: Pieces) -> None:
        records = pieces.records
        columns = (
            records[name].tolist()
            for name in (
                *("connection_id", "direction", "position", "size", "captured"),
                *("start_ns", "end_ns", "flags"),
            )
        )
        states = self._states
        for (
            (connection_id, direction, position, size, captured, start_ns, end_ns, flags),
            data,
        ) in zip(zip(*columns, strict=True), pieces.captured(), strict=True):
            is_clear = flags & PayloadFlag.CLEAR
            state = states.get(~connection_id if is_clear else connection_id)
            if state is None:
                state = self._begin(connection_id, direction, data, flags)
            if state is None:
                self.unknown += 1
                continue
            exchange = state.exchange
            if exchange is None:
                self.excluded += state.is_excluded
                continue
            side = Side.REQUEST if direction == state.request_direction else Side.RESPONSE
            place = direction - 1
            start_ns = start_ns or end_ns
            expected = state.expected[place]
            if expected is None and not size:
                # Something was lost, and of this direction nothing came before: how much it said is
                # not known.
                expected = position - 1 & _LAST
            if expected is not None and expected != position:
                gap = position - expected & _LAST
                if gap >> 31:  # moved by two threads at once: which was first is not known
                    overlap = _LAST + 1 - gap
                    self.gaps += 1
                    if overlap >= size:
                        continue
                    data, size, captured = (
                        data[overlap:],
                        size - overlap,
                        max(captured - overlap, 0),
                    )
                    position = expected
                else:
                    unneeded = exchange.unneeded(side)
                    is_end = flags & PayloadFlag.ENDED and state.expected[place] is not None
                    if is_end and gap == unneeded + 1:
                        gap = unneeded  # the number counts the FIN as well
                    if unneeded < gap:
                        self.gaps += 1
                        self.untold_bytes += gap - unneeded
                    exchange.skip(side, gap, state.last_ns[place] if size else end_ns, end_ns)
            state.expected[place] = position + size & _LAST
            state.last_ns[place] = end_ns
            if captured:
                self.captured_bytes += captured
                exchange.feed(side, data, start_ns, end_ns)
            if size > captured:
                missing = size - captured - exchange.unneeded(side)
                if missing > 0 and not exchange.is_guess:
                    self.gaps += 1
                    self.uncaptured_bytes += missing
                exchange.skip(side, size - captured, start_ns, end_ns)
            if exchange.done:
                self._take(connection_id, state)
            if exchange.protocol is Spoken.OTHER:
                state.exchange = None
                self._refuse(connection_id, state)
            elif size >= _WORTH_ASKING or state.skipping[place] is not None:
                self._skip_ahead(connection_id, state, side, place)

    def _skip_ahead(self, connection_id: int, state: _State, side: Side, place: int) -> None:
        # Bodies are not looked at, so the kernel need not copy what is left of a long one.
        exchange, expected = state.exchange, state.expected[place]
        assert exchange is not None
        assert expected is not None
        left = min(exchange.unneeded(side), _LONGEST_SKIP)
        until = expected + left & _LAST if left >= _SKIPPED_AT_LEAST else None
        if until == state.skipping[place]:
            return
        state.skipping[place] = until
        reads, writes = state.skipping
        self._verdicts.append(
            Verdict(connection_id, reads, writes, is_inside_tls=state.is_inside_tls)
        )

    def _refuse(self, connection_id: int, state: _State) -> None:
        self._verdicts.append(
            Verdict(connection_id, is_unwanted=True, is_inside_tls=state.is_inside_tls)
        )

    def _take(self, connection_id: int, state: _State) -> None:
        assert state.exchange is not None
        for call in state.exchange.done:
            call.is_inside_tls = state.is_inside_tls
            self._calls.append((connection_id, call))
        state.exchange.done.clear()

    def _begin(self, connection_id: int, direction: int, data: bytes, flags: int) -> _State | None:
        is_inside_tls = bool(flags & PayloadFlag.CLEAR)
        slot = int(self._table.find(np.array([connection_id], np.uint64))[0])
        if slot < 0:
            return None
        row = self._table.rows[slot]
        if len(self._states) >= self._max:
            self.given_up += 1
            del self._states[next(iter(self._states))]
        if row["excluded"]:
            state = _State(None, Direction.READ, is_inside_tls, is_excluded=True)
            self._refuse(connection_id, state)
        else:
            is_preexisting = bool(row["flags"] & ConnectionFlag.PREEXISTING)
            is_joined = not flags & PayloadFlag.BEGUN if is_inside_tls else is_preexisting
            if is_preexisting:
                self._correct_role(slot, direction, data)
            is_server = self._table.rows["role"][slot] == Role.SERVER
            request = Direction.READ if is_server else Direction.WRITE
            state = _State(Conversation([], self._settings, is_joined), request, is_inside_tls)
        if is_inside_tls:
            self._table.rows["flags"][slot] |= ConnectionFlag.TLS | ConnectionFlag.READABLE
        self._states[~connection_id if is_inside_tls else connection_id] = state
        return state

    def _correct_role(self, slot: int, direction: int, data: bytes) -> None:
        # The role of a connection older than the collector is a guess by its port; what it says is
        # certain.
        if looks_like_response(data):
            role = Role.SERVER if direction == Direction.WRITE else Role.CLIENT
        elif looks_like_request(data):
            role = Role.SERVER if direction == Direction.READ else Role.CLIENT
        else:
            return
        self._table.rows["role"][slot] = role

    def _close(self, connection_id: int, end_ns: int) -> None:
        for key in (connection_id, ~connection_id):
            state = self._states.pop(key, None)
            if state is not None and state.exchange is not None:
                state.exchange.close(end_ns)
                self._take(connection_id, state)
