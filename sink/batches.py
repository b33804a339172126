"""From decoded messages to the columns of one insert per table. Pure.

A block is inserted as a whole, whatever number of parts it travelled in: another attempt of the
same block may have been cut differently, so a token per part could let a part of it through.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from schemas.catalogue import (
    BREAKDOWN_SCOPES,
    BREAKDOWNS,
    COUNT_TABLES,
    COVERAGE,
    FIGURES,
    LEDGER,
    PROVENANCE,
    SCOPE_BY_NAME,
    TLS,
    Breakdown,
    Distribution,
    Figure,
    distributions_of,
)
from schemas.errors import DecodeError
from schemas.metrics import MetricsTable
from sink.native import NativeBlock
from sink.tables import (
    BASE_TABLES,
    BLOCKS,
    BREAKDOWN,
    DEAD_LETTERS,
    ENTITY_TABLES,
    HISTOGRAM,
    StoredTable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.catalogue import CountTable
    from schemas.columns import U32
    from schemas.entities import DeadLetter, Entity
    from schemas.metrics import BlockIdentity, MetricsBlock

__all__ = [
    "Insert",
    "LedgerRow",
    "block_hash",
    "block_inserts",
    "check_block",
    "dead_letter_insert",
    "entity_inserts",
    "finished_insert",
    "ledger_insert",
]

MILLISECONDS = "DateTime64(3, 'UTC')"

Move: TypeAlias = "U32 | None"
"""Translates the codes of one part into those of the common dictionary."""

Piece: TypeAlias = "tuple[MetricsTable, Move]"
"""The rows that one part has for a table."""

_FIGURES = {
    **dict.fromkeys(SCOPE_BY_NAME, (*FIGURES, *PROVENANCE)),
    **{table.name: table.figures for table in COUNT_TABLES.values()},
}


@dataclass(frozen=True, slots=True)
class Insert:
    """One insert: where to, what, and the token that makes a repetition harmless.

    ``token`` is empty for tables whose engine makes a repetition harmless by itself; ``mark`` is
    the value of the rows' ``block`` column where there is one.
    """

    table: StoredTable
    columns: tuple[str, ...]
    rows: int
    payload: bytes
    token: str = ""
    mark: int = 0


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What the sink itself did with one block."""

    minute_s: int
    cluster: str
    reason: str
    in_count: int
    out_count: int
    dropped_count: int


def block_hash(epoch: str, identity: BlockIdentity) -> int:
    """Return 64 bits that name the block in its rows; the same for every attempt and copy."""
    return _hash(f"{epoch}/{block_name(identity)}")


def block_name(identity: BlockIdentity) -> str:
    """Return the identity without part and attempt."""
    return f"{identity.topic}:{identity.partition}:{identity.minute_s}:{identity.base_offset}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def check_block(block: MetricsBlock) -> None:
    """Check what decoding alone cannot: every optional figure says how many events measured it.

    Raises:
        DecodeError: If one does not, or if the minute is outside what the tables can hold.
    """
    if not 0 <= block.identity.minute_s < 1 << 32:
        raise DecodeError(f"minute {block.identity.minute_s} is outside 1970 to 2106")
    if not 0 <= block.identity.base_offset < block.identity.end_offset < 1 << 63:
        raise DecodeError(f"bad offset range in {block.identity}")
    for table in block.tables:
        for figure in _FIGURES[table.table]:
            present = figure.name in table.figures and table.rows > 0
            if figure.optional and present and figure.name not in table.measured:
                raise DecodeError(f"{table.table}.{figure.name}: no measured counts")


def block_inserts(parts: Sequence[MetricsBlock], epoch: str) -> list[Insert]:
    """Return one insert per table that has rows; the ledger's also says that the sink stored it.

    Args:
        parts: Every part of one attempt, in order.
        epoch: Identity of the metrics topic.
    """
    identity = parts[0].identity
    mark = block_hash(epoch, identity)
    names, moves = _joined_names(parts)
    inserts = []
    for name in SCOPE_BY_NAME:
        pieces = _pieces(name, parts, moves)
        rows = sum(table.rows for table, _ in pieces)
        if rows:
            block = _started(rows, identity.minute_s)
            for key in SCOPE_BY_NAME[name].keys:
                block.add_names(key, names, _codes(key, pieces))
            for figure in _FIGURES[name]:
                _add_figure(block, figure, pieces)
            for distribution in distributions_of(name):
                _add_histogram(block, distribution, pieces)
            if name in BREAKDOWN_SCOPES:
                for breakdown in BREAKDOWNS:
                    _add_breakdown(block, breakdown, pieces, names)
            inserts.append(_finished(BASE_TABLES[name], block, mark, epoch, block_name(identity)))
    for counts in (COVERAGE, TLS):
        pieces = _pieces(counts.name, parts, moves)
        if pieces:
            name = block_name(identity)
            inserts.append(_counts(counts, pieces, names, identity.minute_s, mark, epoch, name))
    cluster = _cluster(names, inserts_of=parts, moves=moves)
    stored = LedgerRow(identity.minute_s, cluster, "", 1, 1, 0)
    pieces = _pieces(LEDGER.name, parts, moves)
    pieces.append(_own_piece(stored, names := [*names]))
    name = block_name(identity)
    inserts.append(_counts(LEDGER, pieces, names, identity.minute_s, mark, epoch, name))
    return inserts


def ledger_insert(row: LedgerRow, epoch: str, cause: str) -> Insert:
    """Return the insert that says what the sink dropped, once per ``cause``."""
    names: list[str] = []
    pieces = [_own_piece(row, names)]
    mark = _hash(f"{epoch}/{cause}")
    return _counts(LEDGER, pieces, names, row.minute_s, mark, epoch, cause)


def _counts(
    declared: CountTable,
    pieces: list[Piece],
    names: Sequence[str],
    minute_s: int,
    mark: int,
    epoch: str,
    cause: str,
) -> Insert:
    block = _started(sum(table.rows for table, _ in pieces), minute_s)
    for key in declared.keys:
        block.add_names(key, names, _codes(key, pieces))
    for figure in declared.figures:
        _add_figure(block, figure, pieces)
    return _finished(BASE_TABLES[declared.name], block, mark, epoch, cause)


def _own_piece(row: LedgerRow, names: list[str]) -> Piece:
    # One row of the sink's own, as if it had come with the block.
    values = {
        "cluster": row.cluster,
        "node": "",
        "stage": "sink",
        "kind": "block",
        "reason": row.reason,
    }
    first = len(names)
    names.extend(values.values())
    keys = {key: np.array([first + i], "<u4") for i, key in enumerate(values)}
    figures = {
        figure.name: np.array([getattr(row, figure.name)], "<u8") for figure in LEDGER.figures
    }
    return MetricsTable(LEDGER.name, 1, keys, figures), None


def _cluster(
    names: Sequence[str], inserts_of: Sequence[MetricsBlock], moves: Sequence[Move]
) -> str:
    for part, move in zip(inserts_of, moves, strict=True):
        for table in part.tables:
            if table.rows:
                return names[int(_codes("cluster", [(table, move)])[0])]
    return ""


def _pieces(name: str, parts: Sequence[MetricsBlock], moves: Sequence[Move]) -> list[Piece]:
    return [
        (table, move)
        for part, move in zip(parts, moves, strict=True)
        for table in part.tables
        if table.table == name and table.rows
    ]


def _joined_names(parts: Sequence[MetricsBlock]) -> tuple[Sequence[str], list[Move]]:
    # A single part keeps its own dictionary; several get a common one and a translation each.
    if len(parts) == 1:
        return parts[0].names, [None]
    known: dict[str, int] = {}
    moves: list[Move] = [
        np.fromiter(
            (known.setdefault(name, len(known)) for name in part.names), "<u4", len(part.names)
        )
        for part in parts
    ]
    return list(known), moves


def _codes(key: str, pieces: Sequence[Piece]) -> U32:
    columns = [table.keys[key] if move is None else move[table.keys[key]] for table, move in pieces]
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def _started(rows: int, minute_s: int) -> NativeBlock:
    block = NativeBlock(rows)
    block.add_numbers("time", "DateTime('UTC')", np.full(rows, minute_s, "<u4"))
    return block


def _add_figure(block: NativeBlock, figure: Figure, pieces: Sequence[Piece]) -> None:
    # A figure that no part has is left out of the insert; the table's default is 0.
    columns = [(figure.name, [table.figures.get(figure.name) for table, _ in pieces])]
    if figure.optional:
        measured = [table.measured.get(figure.name) for table, _ in pieces]
        columns.append((figure.measured_name, measured))
    for name, values in columns:
        if any(value is not None for value in values):
            filled = [
                np.zeros(table.rows, "<u8") if value is None else value
                for (table, _), value in zip(pieces, values, strict=True)
            ]
            block.add_numbers(name, "UInt64", *filled)


def _add_histogram(block: NativeBlock, distribution: Distribution, pieces: Sequence[Piece]) -> None:
    # One that no part has is left out of the insert; the table's default is the empty map.
    rows, buckets, counts = [], [], []
    first = 0
    for table, _ in pieces:
        histogram = table.histograms.get(distribution.name)
        if histogram is not None:
            rows.append(histogram.row + np.uint32(first))
            buckets.append(histogram.bucket.astype("<u2"))
            counts.append(histogram.count)
        first += table.rows
    if rows:
        entries = [np.concatenate(parts) for parts in (rows, buckets, counts)]
        block.add_maps(distribution.column, HISTOGRAM, *entries)


def _add_breakdown(
    block: NativeBlock, breakdown: Breakdown, pieces: Sequence[Piece], names: Sequence[str]
) -> None:
    # As with histograms; the tables have few entries of these.
    rows, keys, values = [], [], []
    first = 0
    for table, move in pieces:
        counts = table.breakdowns.get(breakdown.name)
        if counts is not None:
            rows.append(counts.row + np.uint32(first))
            keys.append(counts.key if move is None else move[counts.key])
            values.append(counts.count)
        first += table.rows
    if rows:
        texts = [names[key] for key in np.concatenate(keys).tolist()]
        block.add_maps(
            breakdown.name, BREAKDOWN, np.concatenate(rows), texts, np.concatenate(values)
        )


def _finished(table: StoredTable, block: NativeBlock, mark: int, epoch: str, cause: str) -> Insert:
    block.add_numbers("block", "UInt64", np.full(block.rows, mark, "<u8"))
    token = f"{table.name}/{epoch}/{cause}"
    return Insert(table, block.column_names, block.rows, block.to_bytes(), token, mark)


def finished_insert(
    identity: BlockIdentity, epoch: str, offset: int, rows: int, now_ms: int
) -> Insert:
    """Return the insert that says that all rows of a block are stored."""
    block = NativeBlock(1)
    block.add_strings("epoch", [epoch])
    block.add_strings("topic", [identity.topic])
    block.add_numbers("partition", "UInt32", np.array([identity.partition], "<u4"))
    block.add_numbers("minute", "DateTime('UTC')", np.array([identity.minute_s], "<u4"))
    block.add_numbers("base_offset", "Int64", np.array([identity.base_offset], "<i8"))
    block.add_numbers("end_offset", "Int64", np.array([identity.end_offset], "<i8"))
    block.add_strings("attempt", [identity.attempt])
    block.add_numbers("offset", "Int64", np.array([offset], "<i8"))
    block.add_numbers("rows", "UInt64", np.array([rows], "<u8"))
    block.add_numbers("inserted_at", MILLISECONDS, np.array([now_ms], "<i8"))
    return Insert(BLOCKS, block.column_names, 1, block.to_bytes())


def entity_inserts(entities: Sequence[Entity]) -> list[Insert]:
    """Return one insert per entity table. Its merges commute, so it needs no token."""
    inserts = []
    for kind, target in ENTITY_TABLES.items():
        chosen = [entity for entity in entities if entity.kind == kind]
        if not chosen:
            continue
        block = NativeBlock(len(chosen))
        block.add_strings("cluster", [entity.cluster for entity in chosen])
        for name in SCOPE_BY_NAME[kind].name_keys:
            block.add_strings(name, [entity.names[name] for entity in chosen])
        last = np.array([entity.last_seen_ms for entity in chosen], "<i8")
        first = np.array([entity.first_seen_ms for entity in chosen], "<i8")
        block.add_numbers("first_seen", MILLISECONDS, first)
        block.add_numbers("last_seen", MILLISECONDS, last)
        known = [_attributes(entity) for entity in chosen]
        block.add_tuples("known", "Tuple(seen_ms Int64, attributes String)", last, known)
        inserts.append(Insert(target, block.column_names, block.rows, block.to_bytes()))
    return inserts


def _attributes(entity: Entity) -> str:
    # Of two sights at the same time the greater text wins. With the space (it sorts before the
    # comma) that is the one that knows more, not the one that saw a virtual address only.
    text = json.dumps(entity.attributes, sort_keys=True)
    return f"{text[:-1]} }}" if entity.attributes else text


def dead_letter_insert(letters: Sequence[DeadLetter]) -> Insert:
    """Return the insert of dead letters; the same letter twice becomes one row."""
    block = NativeBlock(len(letters))
    block.add_numbers("time", MILLISECONDS, np.array([one.time_ms for one in letters], "<i8"))
    block.add_strings("stage", [one.stage for one in letters])
    block.add_strings("topic", [one.topic for one in letters])
    block.add_numbers("partition", "UInt32", np.array([one.partition for one in letters], "<u4"))
    block.add_numbers("offset", "Int64", np.array([one.offset for one in letters], "<i8"))
    block.add_strings("reason", [one.reason for one in letters])
    block.add_numbers("size", "UInt64", np.array([len(one.payload) for one in letters], "<u8"))
    return Insert(DEAD_LETTERS, block.column_names, block.rows, block.to_bytes())
