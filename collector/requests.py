"""From calls to the columns of `schemas.events.Requests`. Pure.

Strings are kept once and referred to by number, as everywhere in a batch; a publish has its own
list, because paths and trace ids are without bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from collector.protocols.calls import NOT_GRPC, UNMEASURED
from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.events import GRPC_UNKNOWN, RequestFlag, Requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from collector.conversations import Found
    from collector.protocols.calls import Call
    from schemas.clock import ClockAnchor
    from schemas.columns import U32, U64

__all__ = ["STRINGS", "Strings", "request_columns"]

STRINGS: Final = ("method", "path", "host", "trace_id", "segment_id", "span_id")
"""Columns that hold numbers of strings."""

_LARGEST_U32: Final = int(UNMEASURED_U32) - 1


@dataclass(slots=True)
class Strings:
    """A growing list of distinct strings; number 0 is the empty one."""

    texts: list[str] = field(default_factory=lambda: [""])
    _numbers: dict[str, int] = field(default_factory=lambda: {"": 0})

    def number(self, text: str) -> int:
        """Return the number of a string, entering it if it is new."""
        found = self._numbers.get(text)
        if found is None:
            found = self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return found

    def local(self, table: Requests, first: int) -> tuple[Sequence[str], Requests]:
        """Renumber the string columns of a table for a list that others begin.

        Args:
            table: Whose `STRINGS` are numbers of this list.
            first: How many strings come before; the first of them is the empty one.

        Returns:
            The strings to add, and the table.
        """
        if not table.rows:
            return [], table
        columns = np.stack([getattr(table, name) for name in STRINGS])
        used = np.unique(columns)
        used = used[used != 0]
        index = np.zeros(len(self.texts), np.uint32)
        index[used] = np.arange(first, first + len(used), dtype=np.uint32)
        renumbered = table.take(slice(None))
        for name, column in zip(STRINGS, index[columns], strict=True):
            setattr(renumbered, name, column)
        return [self.texts[number] for number in used.tolist()], renumbered


def request_columns(
    found: Sequence[Found], anchor: ClockAnchor, strings: Strings
) -> tuple[U64, Requests]:
    """Return the id of each call's connection, and the calls as columns.

    Args:
        found: Calls with times of the kernel's clock.
        anchor: Converts these.
        strings: Where texts are entered.
    """
    if not found:
        return np.empty(0, np.uint64), Requests()
    calls = [call for _, call in found]
    count, number = len(calls), strings.number

    def column(name: str, dtype: Any) -> NDArray[Any]:
        return np.fromiter((getattr(call, name) for call in calls), dtype, count)

    def times(name: str) -> U64:
        values = column(name, np.int64)
        known = values != UNMEASURED
        unix = anchor.to_unix_ns(values.astype(np.uint64))
        return np.where(known, unix, UNMEASURED_U64).astype(np.uint64)

    def sizes32(name: str) -> U32:
        values = np.minimum(column(name, np.int64), _LARGEST_U32)
        return np.where(values < 0, UNMEASURED_U32, values).astype(np.uint32)

    def sizes64(name: str) -> U64:
        return column(name, np.int64).astype(np.uint64)  # -1 becomes UNMEASURED_U64

    def texts(name: str) -> U32:
        return np.fromiter((number(getattr(call, name)) for call in calls), np.uint32, count)

    traces = [call.trace for call in calls]

    def trace_texts(name: str) -> U32:
        numbers = (0 if trace is None else number(getattr(trace, name)) for trace in traces)
        return np.fromiter(numbers, np.uint32, count)

    return np.fromiter((one for one, _ in found), np.uint64, count), Requests(
        connection=np.zeros(count, np.uint32),
        version=column("version", np.uint8),
        outcome=column("outcome", np.uint8),
        flags=column("is_inside_tls", np.uint8) * np.uint8(RequestFlag.TLS),
        method=texts("method"),
        path=texts("path"),
        host=texts("host"),
        status=column("status", np.uint32),
        grpc_status=_grpc_statuses(calls),
        start_ns=times("start_ns"),
        first_byte_ns=times("first_byte_ns"),
        end_ns=times("end_ns"),
        request_header_size=sizes32("request_header_size"),
        request_body_size=sizes64("request_body_size"),
        response_header_size=sizes32("response_header_size"),
        response_body_size=sizes64("response_body_size"),
        trace_provider=np.fromiter(
            (0 if trace is None else trace.provider for trace in traces), np.uint8, count
        ),
        trace_id=trace_texts("trace_id"),
        segment_id=trace_texts("segment_id"),
        span_id=trace_texts("span_id"),
    )


def _grpc_statuses(calls: Sequence[Call]) -> U32:
    values = np.fromiter((call.grpc_status for call in calls), np.int64, len(calls))
    values[values > _LARGEST_U32] = UNMEASURED  # no code of gRPC
    statuses = np.where(values == UNMEASURED, GRPC_UNKNOWN, values)
    return np.where(values == NOT_GRPC, UNMEASURED_U32, statuses).astype(np.uint32)
