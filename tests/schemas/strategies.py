"""Generated batches, blocks and Kubernetes objects, valid by construction."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas.catalogue import (
    BREAKDOWN_SCOPES,
    BREAKDOWNS,
    COUNT_TABLES,
    FIGURES,
    PROVENANCE,
    SCOPES,
    distributions_of,
)
from schemas.columns import UNMEASURED_U32
from schemas.entities import DeadLetter, Entity
from schemas.events import (
    BatchHeader,
    Closes,
    Connections,
    Drops,
    EventBatch,
    NetInterface,
    Opens,
    Parties,
    Requests,
    Transfers,
)
from schemas.histograms import buckets
from schemas.ledger import KINDS, REASONS, STAGES, Entry
from schemas.metrics import BlockIdentity, Histogram, MetricsBlock, MetricsTable, NameCounts

if TYPE_CHECKING:
    from schemas.columns import Table

T = TypeVar("T")

U64_MAX = 2**64 - 1
REQUEST_NAMES = ("method", "path", "host", "trace_id", "segment_id", "span_id")
PARTY_NAMES = ("local_service", "local_instance", "remote_service", "remote_instance")
names = st.text(max_size=12)
unix_ns = st.integers(-(2**63), 2**63 - 1)
counts = st.integers(0, U64_MAX)
entries = st.builds(
    Entry,
    stage=st.sampled_from(STAGES),
    kind=st.sampled_from(KINDS),
    reason=st.sampled_from(("", *REASONS)),
    in_count=counts,
    out_count=counts,
    dropped_count=counts,
)
headers = st.builds(
    BatchHeader,
    cluster=names,
    node=st.text(min_size=1, max_size=12),
    boot_id=names,
    run_id=names,
    sequence=counts,
    first_event_ns=unix_ns,
    last_event_ns=unix_ns,
    watermark_ns=unix_ns,
    anchor_monotonic_ns=unix_ns,
    anchor_unix_ns=unix_ns,
    final=st.booleans(),
    part=st.integers(0, 2**32 - 1),
    ledger=st.lists(entries, max_size=3),
    interfaces=st.lists(
        st.builds(
            NetInterface,
            index=st.integers(0, 2**32 - 1),
            name=names,
            mtu=st.integers(0, 2**32 - 1),
        ),
        max_size=3,
    ),
)


@st.composite
def _table(
    draw: st.DrawFn, table: type[Table], rows: int, **limited: st.SearchStrategy[int]
) -> Any:
    """Columns of any values; those in ``limited`` take theirs from the strategy."""
    columns = {}
    for name, dtype, width in table.specs():
        if name in table.measured_columns() and draw(st.booleans()):
            continue
        shape = (rows, width) if width > 1 else rows
        columns[name] = draw(hnp.arrays(dtype, shape, elements=limited.get(name)))
    return table(**columns)


@st.composite
def batches(draw: st.DrawFn) -> EventBatch:
    """Any valid batch, the empty one included."""
    dictionary = ["", *draw(st.lists(names, max_size=3))]
    connections = draw(st.integers(0, 5))
    in_names = st.integers(0, len(dictionary) - 1)
    in_connections = st.integers(0, max(connections - 1, 0))
    ports = st.integers(0, 65_535)
    one_or_two = st.integers(1, 2)
    rows = st.integers(0, 6 if connections else 0)
    return EventBatch(
        header=draw(headers),
        connections=draw(
            _table(
                Connections,
                connections,
                family=st.sampled_from((4, 6)),
                role=st.integers(0, 2),
                local_port=ports,
                remote_port=ports,
                translated_port=ports,
                container=in_names,
                process=in_names,
                server_name=in_names | st.just(int(UNMEASURED_U32)),
                remote_container=in_names | st.just(int(UNMEASURED_U32)),
            )
        ),
        names=dictionary,
        opens=draw(_table(Opens, draw(rows), connection=in_connections, kind=one_or_two)),
        closes=draw(_table(Closes, draw(rows), connection=in_connections)),
        transfers=draw(
            _table(Transfers, draw(rows), connection=in_connections, direction=one_or_two)
        ),
        requests=draw(
            _table(
                Requests,
                draw(rows),
                connection=in_connections,
                outcome=st.integers(0, 2),
                endpoint=in_names | st.just(int(UNMEASURED_U32)),
                **dict.fromkeys(REQUEST_NAMES, in_names),
            )
        ),
        parties=draw(
            _table(
                Parties,
                connections if draw(st.booleans()) else 0,
                local_container=in_names | st.just(int(UNMEASURED_U32)),
                **dict.fromkeys(PARTY_NAMES, in_names),
            )
        ),
        drops=draw(_table(Drops, draw(rows), connection=in_connections, reason=in_names)),
    )


@st.composite
def blocks(draw: st.DrawFn) -> MetricsBlock:
    """Any valid block."""
    dictionary = ["", *draw(st.lists(names, max_size=4))]
    parts = draw(st.integers(1, 3))
    base = draw(st.integers(0, 2**62))
    identity = BlockIdentity(
        topic=draw(st.text(min_size=1, max_size=12)),
        partition=draw(st.integers(0, 2**32 - 1)),
        minute_s=60 * draw(st.integers(0, 2**32 // 60)),
        base_offset=base,
        end_offset=base + draw(st.integers(0, 2**62 - 1)),
        part=draw(st.integers(0, parts - 1)),
        parts=parts,
        attempt=draw(names),
    )
    chosen = draw(
        st.lists(st.sampled_from((*SCOPES, *COUNT_TABLES.values())), max_size=3, unique=True)
    )
    return MetricsBlock(identity, dictionary, [draw(_block_table(c, dictionary)) for c in chosen])


@st.composite
def _block_table(draw: st.DrawFn, scope: Any, dictionary: list[str]) -> MetricsTable:
    rows = draw(st.integers(0, 4))
    is_scope = scope.name not in COUNT_TABLES
    declared = (*FIGURES, *PROVENANCE) if is_scope else scope.figures
    figures = draw(st.lists(st.sampled_from(declared), max_size=4, unique=True))
    table = MetricsTable(scope.name, rows)
    for key in scope.keys:
        index = st.integers(0, len(dictionary) - 1)
        table.keys[key] = draw(hnp.arrays(np.dtype("<u4"), rows, elements=index))
    for figure in figures:
        table.figures[figure.name] = draw(hnp.arrays(np.dtype("<u8"), rows))
        if figure.optional and rows:
            table.measured[figure.name] = draw(hnp.arrays(np.dtype("<u8"), rows))
    if is_scope:
        declared_ = st.sampled_from(distributions_of(scope.name))
        for distribution in draw(st.lists(declared_, max_size=3, unique=True)):
            table.histograms[distribution.name] = draw(_histogram(rows, distribution.bits))
    if table.table in BREAKDOWN_SCOPES:
        for breakdown in draw(st.lists(st.sampled_from(BREAKDOWNS), max_size=1)):
            table.breakdowns[breakdown.name] = draw(_name_counts(rows, len(dictionary)))
    return table


@st.composite
def _histogram(draw: st.DrawFn, rows: int, bits: int) -> Histogram:
    places = st.tuples(st.integers(0, max(rows - 1, 0)), st.integers(0, buckets(bits) - 1))
    chosen = sorted(draw(st.lists(places, max_size=6 if rows else 0, unique=True)))
    return Histogram(
        row=np.array([row for row, _ in chosen], "<u4"),
        bucket=np.array([bucket for _, bucket in chosen], "<u4"),
        count=draw(hnp.arrays(np.dtype("<u8"), len(chosen))),
    )


@st.composite
def _name_counts(draw: st.DrawFn, rows: int, names: int) -> NameCounts:
    places = st.tuples(st.integers(0, max(rows - 1, 0)), st.integers(0, names - 1))
    chosen = sorted(draw(st.lists(places, max_size=6 if rows else 0, unique=True)))
    return NameCounts(
        row=np.array([row for row, _ in chosen], "<u4"),
        key=np.array([key for _, key in chosen], "<u4"),
        count=draw(hnp.arrays(np.dtype("<u8"), len(chosen))),
    )


@st.composite
def entities(draw: st.DrawFn) -> Entity:
    """Any valid entity."""
    scope = draw(st.sampled_from(SCOPES))
    return Entity(
        kind=scope.name,
        cluster=draw(names),
        names={name: draw(names) for name in scope.name_keys},
        attributes=draw(st.dictionaries(names, names, max_size=3)),
        first_seen_ms=draw(unix_ns),
        last_seen_ms=draw(unix_ns),
    )


dead_letters = st.builds(
    DeadLetter,
    stage=names,
    topic=names,
    partition=st.integers(0, 2**32 - 1),
    offset=unix_ns,
    reason=names,
    key=st.binary(max_size=12),
    payload=st.binary(max_size=40),
    time_ms=unix_ns,
)

_BY_ANNOTATION: dict[str, st.SearchStrategy[Any]] = {
    "str": names,
    "bool": st.booleans(),
    "int": st.integers(0, 2**31),
    "list[str]": st.lists(names, max_size=3),
    "list[int]": st.lists(st.integers(0, 65_535), max_size=3),
    "dict[str, str]": st.dictionaries(names, names, max_size=3),
}


def records(kind: type[T], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[T]:
    """Instances of a plain dataclass of texts, numbers, lists and dictionaries."""
    values = {
        item.name: given[item.name] if item.name in given else _BY_ANNOTATION[str(item.type)]
        for item in fields(kind)  # type: ignore[arg-type]
    }
    return st.builds(kind, **values)


@st.composite
def damaged(draw: st.DrawFn, intact: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of a message after bit flips, cuts, repeats or insertions; sometimes plain noise."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(intact))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(("flip", "cut", "repeat", "insert", "drop"))):
            case "flip" if data:
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at:]
            case "repeat":
                data += data[at:]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "drop":
                del data[at : at + draw(st.integers(1, 8))]
    return bytes(data)
