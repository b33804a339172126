from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.ledger import KINDS, REASONS, STAGES, Entry, Ledger


def test_a_stage_closes_when_everything_is_accounted_for() -> None:
    ledger = Ledger()
    ledger.passed("collector", "open", entered=10, left=7)
    ledger.dropped("collector", "open", "excluded", 2)
    assert ledger.open_counts() == {("collector", "open"): 1}
    ledger.dropped("collector", "open", "malformed", 1)
    assert ledger.open_counts() == {}
    ledger.passed("streams", "open", entered=0, left=1)
    assert ledger.open_counts() == {("streams", "open"): -1}


def test_drain_returns_increments_in_order_and_starts_again() -> None:
    ledger = Ledger()
    ledger.dropped("kernel", "transfer", "ring_full", 3)
    ledger.passed("kernel", "transfer", entered=5, left=2)
    ledger.passed("kernel", "transfer", entered=1, left=1)
    assert ledger.drain() == [
        Entry("kernel", "transfer", "", 6, 3, 0),
        Entry("kernel", "transfer", "ring_full", 0, 0, 3),
    ]
    assert ledger.drain() == []


def test_zero_counts_leave_no_entry() -> None:
    ledger = Ledger()
    ledger.passed("sink", "block", entered=0, left=0)
    ledger.dropped("sink", "block", "duplicate", 0)
    assert ledger.drain() == []


_entries = st.lists(
    st.builds(
        Entry,
        stage=st.sampled_from(STAGES),
        kind=st.sampled_from(KINDS),
        reason=st.sampled_from(("", *REASONS)),
        in_count=st.integers(0, 1000),
        out_count=st.integers(0, 1000),
        dropped_count=st.integers(0, 1000),
    ),
    max_size=12,
)


@given(_entries, st.integers(0, 12))
def test_adding_is_independent_of_how_the_increments_are_split(
    entries: list[Entry], cut: int
) -> None:
    whole, parts = Ledger(), Ledger()
    whole.add(entries)
    for share in (entries[cut:], entries[:cut]):
        one = Ledger()
        one.add(share)
        parts.add(one.drain())
    assert whole.open_counts() == parts.open_counts()
    assert whole.drain() == parts.drain()


def test_vocabulary_is_without_doubles() -> None:
    for words in (STAGES, KINDS, REASONS):
        assert len(set(words)) == len(words)
        assert all(word == word.lower() and word for word in words)
