"""What a run counts: the ledger that its batches carry, and the same for ``/metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collector.accounts import as_undelivered
from schemas.ledger import Entry, Ledger
from schemas.telemetry import counter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.conversations import Conversations

__all__ = ["Tally"]


class Tally:
    """The counts of one run."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        """What no batch has said yet."""
        self._counted_pieces = (0, 0, 0, 0, 0)
        self._losses: dict[str, int] = {}
        self._told: list[Entry] = []

    def count_pieces(self, of: Conversations, count: int) -> None:
        """Count pieces of payload that came, and what the conversations made of them."""
        now = (of.unknown, of.excluded, of.captured_bytes, of.untold_bytes, of.uncaptured_bytes)
        if now == self._counted_pieces and not count:
            return
        unknown, excluded, captured, untold, uncaptured = (
            after - before for after, before in zip(now, self._counted_pieces, strict=True)
        )
        self._counted_pieces = now
        ledger = self.ledger
        ledger.passed("collector", "payload", entered=count, left=count - unknown - excluded)
        ledger.dropped("collector", "payload", "unknown_connection", unknown)
        ledger.dropped("collector", "payload", "excluded", excluded)
        needed = captured + untold + uncaptured
        ledger.passed("collector", "payload_byte", entered=needed, left=captured)
        ledger.dropped("collector", "payload_byte", "untold", untold)
        ledger.dropped("collector", "payload_byte", "uncaptured", uncaptured)

    def count_gaps(self, of: Conversations) -> None:
        """Tell ``/metrics`` what conversations have lost."""
        for outcome, count in (
            ("gap", of.gaps),
            ("given_up", of.given_up),
        ):
            total = counter("podwire_collector_conversation_losses_total").labels(outcome)
            total.inc(count - self._losses.get(outcome, 0))
            self._losses[outcome] = count

    def tell_again(self, failed: Sequence[Entry]) -> None:
        """Put into the ledger what batches said that Kafka did not take after all."""
        again = as_undelivered(failed)
        self.ledger.add(again)
        # /metrics has counted all of it before, but for the loss.
        self._told.extend(entry for entry in again if entry.reason != "undelivered")

    def export(self, entries: Sequence[Entry], is_last: bool) -> None:
        """Tell ``/metrics`` what a batch says, the last of a publish or not."""
        fresh = Ledger()
        fresh.add(entries)
        if is_last:  # the last batch of a publish carries what is told again
            told, self._told = self._told, []
            fresh.add(
                Entry(
                    entry.stage,
                    entry.kind,
                    entry.reason,
                    -entry.in_count,
                    -entry.out_count,
                    -entry.dropped_count,
                )
                for entry in told
            )
        total = counter("podwire_ledger_total")
        for entry in fresh.drain():
            for outcome, count in (
                ("in", entry.in_count),
                ("out", entry.out_count),
                (entry.reason, entry.dropped_count),
            ):
                if count > 0:
                    total.labels(entry.stage, entry.kind, outcome).inc(count)
