from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from collector.kube.resync import Resync


@given(
    st.integers(0, 50),
    st.lists(st.floats(0.01, 40.0, allow_nan=False), min_size=1, max_size=60),
)
def test_every_key_comes_once_per_round(count: int, steps: list[float]) -> None:
    keys = [("pods", f"p{number}") for number in range(count)]
    resync = Resync(lambda: keys, interval_s=100.0)
    now, seen = 0.0, []
    assert resync.due(now) == []
    for step in steps:
        now += step
        seen.extend(resync.due(now))
        if now >= 100.0:
            assert sorted(seen) == sorted(keys)
            return
        assert len(seen) == len(set(seen))
        assert len(seen) <= count * now / 100.0 + 1


def test_no_second_sees_more_than_its_share() -> None:
    keys = [("pods", str(number)) for number in range(1000)]
    resync = Resync(lambda: keys, interval_s=100.0)
    sizes = [len(resync.due(float(second))) for second in range(201)]
    assert sum(sizes) == 2000
    assert max(sizes) <= 11


def test_new_keys_join_the_next_round() -> None:
    keys = [("pods", "a")]
    resync = Resync(lambda: keys, interval_s=10.0)
    resync.due(0.0)
    keys.append(("pods", "b"))
    assert resync.due(10.0) == [("pods", "a")]
    assert sorted(resync.due(20.0)) == [("pods", "a"), ("pods", "b")]


def test_off() -> None:
    assert Resync(lambda: [("pods", "a")], interval_s=0.0).due(1e9) == []
