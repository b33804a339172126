"""What comes of a collector's batches in the table ``tls``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from streams.aggregate import contributions
from streams.directory import Directory
from streams.minutes import MinuteSums
from streams.naming import NamingSettings
from streams.resolver import Resolver
from streams.tls import tls_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from schemas.events import EventBatch

__all__ = ["name_of", "table"]


def table(batches: Iterable[EventBatch]) -> dict[tuple[str, ...], tuple[int, int]]:
    """Connections closed and bytes by role, process, server name, version and whether it is
    readable, or why not."""
    resolver, sums = Resolver(Directory(), NamingSettings()), MinuteSums()
    for batch in batches:
        for part in contributions(batch, resolver.resolve(batch)):
            sums.add(part)
    rows = tls_rows(sums.protected, sums.relations)
    return {(role, *rest): figures for (_, _, role, _, *rest), figures in rows.items()}


def name_of(pid: int) -> str:
    """The name that the table has for a process."""
    return Path(f"/proc/{pid}/comm").read_text().strip()
