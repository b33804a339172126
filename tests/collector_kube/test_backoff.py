from __future__ import annotations

import random

from collector.kube.backoff import Backoff


def test_delays_double_up_to_the_maximum_with_jitter() -> None:
    backoff = Backoff(initial_s=1.0, maximum_s=8.0, generator=random.Random(7))
    delays = [backoff.next_s() for _ in range(200)]
    for number, delay in enumerate(delays):
        ceiling = min(8.0, 2.0**number)
        assert ceiling / 2 <= delay <= ceiling
    assert len(set(delays)) == len(delays)


def test_the_server_may_ask_for_more() -> None:
    backoff = Backoff(initial_s=1.0)
    assert backoff.next_s(at_least_s=17.0) == 17.0


def test_success_starts_over() -> None:
    backoff = Backoff(initial_s=1.0, maximum_s=64.0)
    for _ in range(6):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() <= 1.0
