"""Exact sums of HTTP calls by relation and endpoint, and how long they took.

Pure. The figures of whole relations, instances and services are sums over their endpoints, made
when a minute is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from schemas.catalogue import CALL_DISTRIBUTIONS, FIGURES
from schemas.columns import UNMEASURED_U32
from schemas.events import GRPC_UNKNOWN, RequestOutcome
from schemas.hashing import compact
from schemas.histograms import bucket_of, buckets
from streams.endpoints import UNKNOWN
from streams.exact import exact_sums, measured_sums
from streams.histograms import SpreadCounts, page_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from schemas.columns import U64
    from schemas.events import Requests

__all__ = ["CALL_COLUMNS", "CALL_WIDTH", "CallSums", "Calls", "call_sums"]

CALL_COLUMNS: Final = tuple(
    column
    for figure in FIGURES
    if figure.group in ("http", "grpc")
    for column in (figure.name, figure.measured_name)
)
"""Columns of the sums, in order."""

(_DURATION,) = CALL_DISTRIBUTIONS
CALL_WIDTH: Final = page_width(buckets(_DURATION.bits))
"""Cells of a row's only histogram."""

_AT: Final = {name: place for place, name in enumerate(CALL_COLUMNS)}
_SIZES: Final = tuple(
    (f"http_{name}", name)
    for name in (
        "request_header_size",
        "request_body_size",
        "response_header_size",
        "response_body_size",
    )
)
_CLASSES: Final = 8  # of a status: 0 unknown, 1 to 5, 6 beyond; 7 fills up
_OUTCOMES: Final = 4


@dataclass(slots=True)
class Calls:
    """The calls of some requests, added up. Columns; each relation and endpoint once.

    Attributes:
        relation: Place of its relation.
        endpoint: Place of its endpoint in `names`.
        names: Of endpoints.
        sums: Shape (rows, CALL_COLUMNS).
        spread_row: For each latency that was measured, its row.
        spread_cell: Its bucket.
    """

    relation: NDArray[np.intp]
    endpoint: NDArray[np.intp]
    names: Sequence[str]
    sums: U64
    spread_row: NDArray[np.intp]
    spread_cell: NDArray[np.uint16]

    def within(self, places: NDArray[np.intp]) -> Calls:
        """Return the rows of some relations.

        Args:
            places: By relation, what it is called from now on; below 0 if its rows are left out.
        """
        relation = places[self.relation]
        kept = relation >= 0
        row = np.where(kept, np.cumsum(kept) - 1, -1)[self.spread_row]
        counted = row >= 0
        return Calls(
            relation[kept],
            self.endpoint[kept],
            self.names,
            self.sums[kept],
            row[counted],
            self.spread_cell[counted],
        )


class CallSums:
    """Running sums of calls."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, str], int] = {}
        self._sums = np.zeros((16, len(CALL_COLUMNS)), np.uint64)
        self._spread = SpreadCounts(CALL_WIDTH)

    @property
    def rows(self) -> list[tuple[int, str]]:
        """Relation and endpoint of the rows of `sums`."""
        return list(self._places)

    @property
    def sums(self) -> U64:
        """Shape (rows, CALL_COLUMNS)."""
        return self._sums[: len(self._places)]

    def spread(self) -> tuple[NDArray[np.intp], NDArray[np.intp], U64]:
        """How often each latency occurred: row, bucket and count."""
        return self._spread.counted()

    def add(self, calls: Calls, relations: NDArray[np.intp]) -> None:
        """Add calls.

        Args:
            calls: The calls.
            relations: By relation of the calls, its number here.
        """
        places, names = self._places, calls.names
        index = np.fromiter(
            (
                places.setdefault((relation, names[endpoint]), len(places))
                for relation, endpoint in zip(
                    relations[calls.relation].tolist(), calls.endpoint.tolist(), strict=True
                )
            ),
            np.intp,
            len(calls.relation),
        )
        rows = len(places)
        if rows > len(self._sums):
            grown = np.zeros((max(rows, 2 * len(self._sums)), len(CALL_COLUMNS)), np.uint64)
            grown[: len(self._sums)] = self._sums
            self._sums = grown
        # Each relation and endpoint once, so no place is added to twice.
        self._sums[index] += calls.sums
        self._spread.add(index[calls.spread_row], calls.spread_cell, rows)


def call_sums(
    requests: Requests, relation: NDArray[np.intp], size: int, names: Sequence[str]
) -> Calls:
    """Add up requests by relation and endpoint.

    Args:
        requests: At least one; `endpoint` says which of the names is whose.
        relation: Shape (requests,), the relation of each.
        size: Number of relations.
        names: Dictionary of the batch.
    """
    if (requests.endpoint == UNMEASURED_U32).all():  # nobody named them
        endpoints, endpoint, texts = (
            np.zeros(1, np.intp),
            np.zeros(requests.rows, np.intp),
            [UNKNOWN],
        )
    else:
        endpoints, endpoint = compact(requests.endpoint, len(names))
        texts = [names[place] for place in endpoints.tolist()]
    rows, row = compact(relation * len(endpoints) + endpoint, size * len(endpoints))
    sums = np.zeros((len(rows), len(CALL_COLUMNS)), np.uint64)
    _add_outcomes(sums, requests, row)
    for figure, column in _SIZES:
        values = getattr(requests, column)
        if len(values):
            _put(sums, figure, *measured_sums(row, values, len(rows)))
    spread_row, duration_ns = _durations(requests, row)
    counts = np.bincount(spread_row, minlength=len(rows))
    _put(sums, "http_duration", exact_sums(spread_row, duration_ns, len(rows)), counts)
    found, place = np.divmod(rows, len(endpoints))
    return Calls(found, place, texts, sums, spread_row, bucket_of(duration_ns, _DURATION.bits))


def _add_outcomes(sums: U64, requests: Requests, row: NDArray[np.intp]) -> None:
    size = len(sums)
    status = np.minimum(requests.status // 100, 6)
    kind = (row * _OUTCOMES + requests.outcome) * _CLASSES + status
    counts = np.bincount(kind, minlength=size * _OUTCOMES * _CLASSES)
    by = counts.reshape(size, _OUTCOMES, _CLASSES)
    answered, aborted = by[:, RequestOutcome.ANSWERED], by[:, RequestOutcome.ABORTED]
    total = by.sum(axis=(1, 2))
    # Of HTTP/2 joined in the middle the status may be unknown for a while.
    unknown, begun_unknown = answered[:, 0], answered[:, 0] + aborted[:, 0]
    success = answered[:, 1:5].sum(axis=1)
    grpc = requests.grpc_status
    is_grpc = grpc != UNMEASURED_U32
    grpc_calls = known = errors = np.zeros(size, np.intp)
    if is_grpc.any():
        grpc_calls = np.bincount(row[is_grpc], minlength=size)
        is_known = is_grpc & (grpc != GRPC_UNKNOWN)
        known = np.bincount(row[is_known], minlength=size)
        failed = is_known & (grpc != 0)
        errors = np.bincount(row[failed], minlength=size)
        failed &= (requests.outcome == RequestOutcome.ANSWERED) & (status > 0) & (status < 5)
        success = success - np.bincount(row[failed], minlength=size)
    _put(sums, "http_call_count", total, total)
    _put(sums, "http_success_count", success, total - unknown)
    _put(sums, "http_aborted_count", aborted.sum(axis=1), total)
    _put(sums, "http_unanswered_count", by[:, RequestOutcome.UNANSWERED].sum(axis=1), total)
    for digit in range(1, 6):
        _put(
            sums, f"http_status_{digit}xx_count", by[:, :, digit].sum(axis=1), total - begun_unknown
        )
    _put(sums, "grpc_call_count", grpc_calls, total)
    _put(sums, "grpc_error_count", errors, known)


def _durations(requests: Requests, row: NDArray[np.intp]) -> tuple[NDArray[np.intp], U64]:
    # Of answered calls; one that ends before it begins took no time at all.
    start, end = requests.start_ns, requests.end_ns
    took = (requests.outcome == RequestOutcome.ANSWERED) & (start > 0) & (start <= end)
    if took.all():
        return row, end - start
    return row[took], end[took] - start[took]


def _put(
    sums: U64, figure: str, values: NDArray[np.integer], measured: NDArray[np.integer]
) -> None:
    place = _AT[figure]
    sums[:, place] = values
    sums[:, place + 1] = measured
