"""Which HTTP/1 response answers which request, also where some of either were not seen.

Responses come in the order of their requests (RFC 9112 section 9.3.2), so without gaps the oldest
open request is answered. A response that began before that request did answers one that was not
seen. After a gap the order alone says nothing, and a response given to the wrong request would be
worse than one that is not known: calls whose response cannot be told are answered without a
status. Order is trusted again from the next request on that began when all before it had their
answers, which without pipelining is every request.

What is lost is known, with its time, before whatever is said next. So a connection pipelines if a
request comes while another is open and no response was lost, if one comes after a lost request
that nothing has answered since, or if two responses come in a row without a request. One that was
seen to wait for every answer so far is taken to go on so: after a gap its last request is the one
that is answered, unless one was lost after a response. Gaps that are noticed late, only by the
next piece of their own side, count as early as they can have been for requests and as late for
responses.
"""

from __future__ import annotations

from typing import Final

from collector.protocols.calls import UNMEASURED, Call, Outcome

__all__ = ["Pairing"]

_NEVER: Final = -1
_PATIENT: Final = 3
"""Answers that were waited for, after which the next is expected to be, too."""


class Pairing:
    """The open requests of a connection (RFC 9112 section 9.3).

    Attributes:
        open: Requests without a final response, oldest first.
        unsure: Open requests of which it cannot be told which responses are theirs.
        is_settled: Whether the order of `open` can be trusted.
        pipelines: Whether a request was seen that did not wait for the answer to the one before.
        waited: Requests answered while no other was open.
    """

    __slots__ = (
        "_answered_ns",
        "_done",
        "_has_answered",
        "_max_open",
        "_passed",
        "_request_gap_ns",
        "_response_gap_ns",
        "is_settled",
        "open",
        "pipelines",
        "unsure",
        "waited",
    )

    def __init__(self, done: list[Call], max_open: int) -> None:
        self.open: list[Call] = []  # mostly one, so that a deque would only be larger
        self.unsure: list[Call] = []  # few connections ever have any
        self.is_settled = True
        self.pipelines = False
        self.waited = 0
        self._done = done
        self._max_open = max_open
        self._request_gap_ns = _NEVER
        self._response_gap_ns = _NEVER
        self._has_answered = False  # whether a response was seen since the last unsure request
        self._answered_ns = _NEVER  # when that began
        self._passed = 0  # responses to come of requests that were given up

    def add(self, call: Call, is_busy: bool) -> None:
        """Take the next request.

        Args:
            call: The request.
            is_busy: Whether a response is under way.
        """
        if self._response_gap_ns == _NEVER and self.open:
            self.pipelines = True
        if self._request_gap_ns == _NEVER and self._response_gap_ns == _NEVER:
            self.open.append(call)
        elif self._response_gap_ns >= call.start_ns:
            self.open.append(call)  # its response, too, may be in the gap
            self._has_answered = False
        elif not self._may_pipeline(is_busy) or (
            self._has_answered
            and not is_busy
            and call.start_ns >= self._answered_ns > self._request_gap_ns
        ):
            self._give_up_all(call.start_ns)
            self._request_gap_ns = self._response_gap_ns = _NEVER
            self.is_settled = not self._passed
            self.open.append(call)
        else:
            self.unsure.append(call)
            self._has_answered = False
        self._bound(call.start_ns)

    def _may_pipeline(self, is_busy: bool) -> bool:
        if self._request_gap_ns > max(self._response_gap_ns, self._answered_ns):
            return True  # what was lost was not answered since
        # Only requests are missing, and the one before is not answered yet.
        waits_not = self._response_gap_ns == _NEVER and (bool(self.open) or is_busy)
        return self.pipelines or (waits_not and self.waited < _PATIENT)

    def _bound(self, now_ns: int) -> None:
        if len(self.open) > self._max_open:
            call = self.open.pop(0)
            call.end_ns = now_ns
            self._done.append(call)
            self._passed += 1
            self.is_settled = False
        if len(self.unsure) > self._max_open:
            self._give_up(self.unsure.pop(0), now_ns)

    def match(self, first_ns: int) -> Call | None:
        """Return the request that a response answers and which is no longer open, if it is known.

        Args:
            first_ns: When the first byte of the response had moved.
        """
        self._answered_ns = first_ns
        if self._passed:
            self._passed -= 1
            self._update()
            return None
        if self.open and self.open[0].start_ns <= first_ns:
            if self._response_gap_ns == _NEVER:
                self.note_wait(first_ns)
                return self.open.pop(0)
            if not self.pipelines and self.waited >= _PATIENT:
                while len(self.open) > 1 and self.open[1].start_ns <= first_ns:
                    self._give_up(self.open.pop(0), first_ns)
                if self._request_gap_ns > self._response_gap_ns >= self.open[0].start_ns:
                    self._give_up_all(first_ns)  # a request was lost after the response to this one
                self._request_gap_ns = self._response_gap_ns = _NEVER
                self._update()
                return self.open.pop(0) if self.open else None
            if len(self.open) == 1 and not self.unsure and self._request_gap_ns == _NEVER:
                # Only one request was open: what was lost cannot have been another's response.
                self._response_gap_ns = _NEVER
                self._update()
                return self.open.pop(0)
        if self._has_answered:
            self.pipelines = True  # two in a row, so that more than one was asked for
        self._has_answered = True
        return None

    def note_wait(self, first_ns: int) -> None:
        """The oldest open request is answered, and no response is known to be missing."""
        self._answered_ns = first_ns
        if len(self.open) > 1:
            self.pipelines = True
        elif self._request_gap_ns == _NEVER:
            self.waited += 1

    def put_back(self, call: Call) -> None:
        """Undo `match`: it was an interim response (RFC 9110 section 15.2)."""
        self.open.insert(0, call)

    def lose_requests(self, since_ns: int) -> None:
        """Take note that requests may have come unseen, the last of them not before then."""
        self._request_gap_ns = since_ns
        self._has_answered = False
        self.is_settled = False

    def lose_more_requests(self, since_ns: int) -> None:
        """Take note that the gap, if there is one, did not end before then."""
        if self._request_gap_ns != _NEVER:
            self.lose_requests(since_ns)

    def lose_responses(self, end_ns: int) -> None:
        """Take note that responses may have come unseen until then."""
        self._response_gap_ns = end_ns
        self._has_answered = False
        self.is_settled = False

    def close(self, end_ns: int) -> None:
        """End what is open: unanswered, unless the answer may not have been seen."""
        if self._response_gap_ns != _NEVER or self.unsure:
            self._give_up_all(end_ns)
        while self.open:
            call = self.open.pop(0)
            call.end_ns = end_ns
            self._done.append(call)

    def _give_up_all(self, now_ns: int) -> None:
        for calls in (self.open, self.unsure):
            for call in calls:
                self._give_up(call, now_ns)
            calls.clear()

    def _give_up(self, call: Call, now_ns: int) -> None:
        # The end is that of the gap, if that is what hides the response.
        call.outcome = Outcome.ANSWERED
        call.response_header_size = call.response_body_size = UNMEASURED
        gap_ns = self._response_gap_ns
        call.end_ns = gap_ns if gap_ns >= call.start_ns else now_ns
        self._done.append(call)

    def _update(self) -> None:
        self.is_settled = (
            not self._passed
            and not self.unsure
            and self._request_gap_ns == _NEVER
            and self._response_gap_ns == _NEVER
        )
