"""Who may have held what pods share one after the other, such as an address, and when. Pure.

Kubernetes tells the moment of a hand-over in whole seconds, and by times of either pod. So of each
pod is asked when it may have held it; where that is true of several, all of them are the answer.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.kubernetes import Pod

__all__ = ["ALWAYS", "Holders", "Span"]

Span: TypeAlias = tuple[int, int]
"""From (included) and to (excluded), Unix milliseconds: how long an answer holds."""

ALWAYS: Final[Span] = (-(1 << 62), 1 << 62)


class Holders:
    """The answers for all times.

    Args:
        pods: At least one.
        tolerance_ms: How much earlier than its creation and later than its end (clocks differ, and
            packets are late) a pod is meant, unless another may hold it then. Where both are
            meant, both are the answer.
    """

    def __init__(self, pods: Sequence[Pod], tolerance_ms: int) -> None:
        self._tolerance_ms = tolerance_ms
        self._starts: list[int] = []
        self._pods: list[Sequence[Pod]] = []
        ordered = sorted(pods, key=lambda pod: pod.uid)  # in one order, however they are kept
        spans = list(zip(_possible(ordered), ordered, strict=True))
        edges = sorted({edge for span, _ in spans for edge in span})
        begins: dict[int, list[Pod]] = {}
        ends: dict[int, list[Pod]] = {}
        for (start, end), pod in spans:
            begins.setdefault(start, []).append(pod)
            ends.setdefault(end, []).append(pod)
        holding: dict[str, Pod] = {}
        first = edges[0]
        self._add(ALWAYS[0], ())
        self._add(first - tolerance_ms, begins[first])
        last: list[Pod] = []
        for edge, following in zip(edges, [*edges[1:], ALWAYS[1]], strict=True):
            # One that ended before it began holds nothing.
            holding |= {pod.uid: pod for pod in begins.get(edge, ())}
            for pod in ends.get(edge, ()):
                holding.pop(pod.uid, None)
            last = ends.get(edge, last)
            if holding:
                self._add(edge, sorted(holding.values(), key=lambda pod: pod.uid))
                continue
            self._fill(edge, last, following, begins.get(following, ()))

    def _fill(self, start: int, last: Sequence[Pod], end: int, coming: Sequence[Pod]) -> None:
        # Nobody has it: it means whom it meant last for a while, and who comes for a while before.
        until, since = start + self._tolerance_ms, end - self._tolerance_ms
        self._add(start, last)
        if coming and since < until:
            self._add(max(start, since), sorted((*last, *coming), key=lambda pod: pod.uid))
        elif until < end:
            self._add(until, ())
        if coming and max(since, until) < end:
            self._add(max(since, until), coming)

    def _add(self, start: int, pods: Sequence[Pod]) -> None:
        # What begins at the same moment, or before there is time, replaces what was added before.
        while self._starts and self._starts[-1] >= start:
            self._starts.pop()
            self._pods.pop()
        self._starts.append(max(start, ALWAYS[0]))
        self._pods.append(pods)

    def at(self, time_ms: int) -> tuple[Sequence[Pod], Span]:
        """Return who may have held it at the time, and for how long that answer holds."""
        place = bisect_right(self._starts, time_ms) - 1
        upper = self._starts[place + 1] if place + 1 < len(self._starts) else ALWAYS[1]
        return self._pods[place], (self._starts[place], upper)


def _possible(pods: Sequence[Pod]) -> list[Span]:
    # A pod had it at the moment that its containers of now began, so of two such moments the later
    # one ends what the other pod had. They are known to the second: in one, neither ends the other.
    moments = sorted({pod.running_ms for pod in pods if pod.running_ms})
    spans = []
    for pod in pods:
        start = max(pod.created_ms, pod.accepted_ms) or ALWAYS[0]
        end = pod.deleted_ms or ALWAYS[1]
        later = bisect_right(moments, pod.running_ms)
        if pod.running_ms and later < len(moments):
            end = min(end, moments[later])
        spans.append((start, max(start, end)))
    return spans
