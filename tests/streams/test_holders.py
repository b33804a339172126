from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.kubernetes import Pod
from streams.holders import Holders

TIME = st.integers(0, 12)
"""0 is not known."""
PODS = st.lists(st.tuples(TIME, TIME, TIME, TIME), min_size=1, max_size=5)
NEVER = 1 << 62


@settings(max_examples=200)
@given(PODS, st.integers(0, 3))
def test_every_time_has_the_answer_of_the_definition(
    times: list[tuple[int, int, int, int]], tolerance: int
) -> None:
    pods = [
        Pod(
            uid=str(place),
            created_ms=created,
            accepted_ms=accepted,
            running_ms=running,
            deleted_ms=deleted,
        )
        for place, (created, accepted, running, deleted) in enumerate(times)
    ]
    spans = []
    for created, accepted, running, deleted in times:
        start = max(created, accepted) or -NEVER
        end = deleted or NEVER
        if running:
            end = min([end, *(other for _, _, other, _ in times if other > running)])
        spans.append((start, max(start, end)))
    holders = Holders(pods[::-1], tolerance)
    for time in range(-5, 20):
        found, (lower, upper) = holders.at(time)
        assert lower <= time < upper
        assert holders.at(lower)[0] == holders.at(upper - 1)[0] == found
        expected = {place for place, (start, end) in enumerate(spans) if start <= time < end}
        if not expected:
            past = max((end for _, end in spans if end <= time), default=-NEVER)
            coming = min((start for start, _ in spans if start > time), default=NEVER)
            if time < past + tolerance:
                expected |= {place for place, (_, end) in enumerate(spans) if end == past}
            if coming - tolerance <= time:
                expected |= {place for place, (start, _) in enumerate(spans) if start == coming}
        assert {int(pod.uid) for pod in found} == expected
