"""What the demo shows at its end: services, relations, packets and waits, and a topology tree."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from deploy.local.status import count, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from deploy.demo.shop import AccessLog
    from deploy.sql import Database

__all__ = [
    "Endpoint",
    "Packets",
    "Relation",
    "Served",
    "Wait",
    "endpoint_table",
    "load_endpoints",
    "load_packets",
    "load_relations",
    "load_served",
    "load_waits",
    "packet_table",
    "relation_table",
    "served_table",
    "topology",
    "truth_table",
    "wait_table",
]

RELATIONS: Final = """\
SELECT client_service, server_service,
       sum(connect_count) AS tried, sum(connect_success_count) AS succeeded,
       sum(write_bytes) AS sent, sum(read_bytes) AS received,
       sum(connect_duration) / nullIf(sum(connect_duration_measured_count), 0) AS connect_ns,
       sum(read_count + write_count) AS calls
FROM service_relation_metrics
WHERE role = 'client'
GROUP BY client_service, server_service
ORDER BY sent + received DESC"""

SERVED: Final = """\
SELECT service, sum(accept_count) AS accepted, sum(close_count) AS closed,
       sum(read_bytes) AS received, sum(write_bytes) AS sent,
       sum(read_duration) / nullIf(sum(read_duration_measured_count), 0) AS read_ns,
       sum(write_duration) / nullIf(sum(write_duration_measured_count), 0) AS write_ns,
       sum(http_call_count) AS requests
FROM service_metrics
WHERE role = 'server'
GROUP BY service
ORDER BY received + sent DESC"""

ENDPOINTS: Final = """\
SELECT service, endpoint, calls, judged, succeeded, half_ns, nearly_all_ns, bytes FROM (
    SELECT service, endpoint, sum(http_call_count) AS calls,
           sum(http_success_count_measured_count) AS judged,
           ifNull(sum(http_success_count), 0) AS succeeded,
           ifNull(sum(http_request_body_size), 0)
               + ifNull(sum(http_response_body_size), 0) AS bytes
    FROM endpoint_metrics
    WHERE role = 'server' AND service IN ({services})
    GROUP BY service, endpoint
) AS m LEFT JOIN (
    SELECT service, endpoint,
           quantileExactWeighted(0.5)(value_ns, count) AS half_ns,
           quantileExactWeighted(0.99)(value_ns, count) AS nearly_all_ns
    FROM endpoint_latency_buckets
    WHERE role = 'server' AND service IN ({services})
    GROUP BY service, endpoint
) AS l USING (service, endpoint)
WHERE calls > 0
ORDER BY calls DESC, service, endpoint
LIMIT {most}
SETTINGS join_use_nulls = 1"""

PACKETS: Final = """\
SELECT service, sum(read_packet_count) AS received, sum(write_packet_count) AS sent,
       sum(write_retransmit_packet_count) AS again, sum(write_lost_packet_count) AS lost,
       sum(read_packet_size) + sum(write_packet_size) AS bytes
FROM service_metrics
WHERE role = 'server' AND service IN ({services})
GROUP BY service
HAVING isNotNull(received) AND isNotNull(sent)
ORDER BY received + sent DESC"""

WAITS: Final = """\
SELECT stage, sum(count) AS calls,
       quantileExactWeighted(0.5)(value_ns, count) AS half_ns,
       quantileExactWeighted(0.9)(value_ns, count) AS most_ns,
       quantileExactWeighted(0.99)(value_ns, count) AS nearly_all_ns
FROM service_wait_buckets
WHERE service IN ({services})
GROUP BY direction, stage
ORDER BY direction, half_ns DESC"""

BAR: Final = 16
MOST: Final = 8
WIDE: Final = 96


@dataclass(frozen=True, slots=True)
class Relation:
    """One service calling another, as its clients saw it."""

    client: str
    server: str
    tried: int
    succeeded: int
    sent: int
    received: int
    connect_ns: float | None
    calls: int


@dataclass(frozen=True, slots=True)
class Served:
    """One service, as its own pods saw it."""

    service: str
    accepted: int
    closed: int
    received: int
    sent: int
    read_ns: float | None
    write_ns: float | None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The HTTP calls of one endpoint, as its own pods answered them."""

    service: str
    name: str
    calls: int
    judged: int
    succeeded: int
    half_ns: float | None
    nearly_all_ns: float | None
    bytes_: int


@dataclass(frozen=True, slots=True)
class Packets:
    """The packets of one service's own pods; what was dropped on their node is not always known."""

    service: str
    received: int
    sent: int
    again: int
    lost: int | None
    bytes_: int


@dataclass(frozen=True, slots=True)
class Wait:
    """One stage of the way of the bytes: how many reads or writes, half, 90 % and 99 % of them."""

    stage: str
    calls: int
    half_ns: float
    most_ns: float
    nearly_all_ns: float


def load_relations(database: Database, services: Iterable[str]) -> list[Relation]:
    """Return the relations between these services, most bytes first."""
    wanted = set(services)
    rows = _rows(database, RELATIONS)
    return [
        Relation(
            client=row["client_service"],
            server=row["server_service"],
            tried=int(row["tried"]),
            succeeded=int(row["succeeded"]),
            sent=int(row["sent"]),
            received=int(row["received"]),
            connect_ns=_optional(row["connect_ns"]),
            calls=int(row["calls"]),
        )
        for row in rows
        if row["client_service"] in wanted and row["server_service"] in wanted
    ]


def load_served(database: Database, services: Iterable[str]) -> list[Served]:
    """Return these services in their role as servers, most bytes first."""
    wanted = set(services)
    return [
        Served(
            service=row["service"],
            accepted=int(row["accepted"]),
            closed=int(row["closed"]),
            received=int(row["received"]),
            sent=int(row["sent"]),
            read_ns=_optional(row["read_ns"]),
            write_ns=_optional(row["write_ns"]),
            requests=None if row["requests"] is None else int(row["requests"]),
        )
        for row in _rows(database, SERVED)
        if row["service"] in wanted
    ]


def load_endpoints(database: Database, services: Iterable[str]) -> list[Endpoint]:
    """Return the endpoints of these services that were called most."""
    return [
        Endpoint(
            service=row["service"],
            name=row["endpoint"],
            calls=int(row["calls"]),
            judged=int(row["judged"]),
            succeeded=int(row["succeeded"]),
            half_ns=_optional(row["half_ns"]),
            nearly_all_ns=_optional(row["nearly_all_ns"]),
            bytes_=int(row["bytes"]),
        )
        for row in _rows(database, ENDPOINTS.format(services=_quoted(services), most=MOST))
    ]


def load_packets(database: Database, services: Iterable[str]) -> list[Packets]:
    """Return the packets of these services as servers, most first; none if nobody counted."""
    return [
        Packets(
            service=row["service"],
            received=int(row["received"]),
            sent=int(row["sent"]),
            again=int(row["again"]),
            lost=None if row["lost"] is None else int(row["lost"]),
            bytes_=int(row["bytes"]),
        )
        for row in _rows(database, PACKETS.format(services=_quoted(services)))
    ]


def load_waits(database: Database, services: Iterable[str]) -> list[Wait]:
    """Return the stages that were measured, reads before writes and the longest first."""
    return [
        Wait(
            stage=row["stage"],
            calls=int(row["calls"]),
            half_ns=float(row["half_ns"]),
            most_ns=float(row["most_ns"]),
            nearly_all_ns=float(row["nearly_all_ns"]),
        )
        for row in _rows(database, WAITS.format(services=_quoted(services)))
    ]


def relation_table(relations: Sequence[Relation], width: int) -> Table:
    """Return who called whom, how often, with what success, and how much.

    Args:
        relations: Most bytes first.
        width: Columns of the terminal; a wide one gets bars.
    """
    table = _table("Who calls whom", "seen by the clients' sockets")
    table.add_column("client", style="cyan", no_wrap=True)
    table.add_column("")
    table.add_column("server", style="magenta", no_wrap=True)
    for name in ("tries", "success", "connect", "sent", "received"):
        table.add_column(name, justify="right", no_wrap=True)
    if width >= WIDE:
        table.add_column("", no_wrap=True)
    most = max((each.sent + each.received for each in relations), default=0) or 1
    for each in relations:
        bar = "█" * max(round(BAR * (each.sent + each.received) / most), 1)
        table.add_row(
            each.client,
            "→",
            each.server,
            count(each.tried),
            _success(each),
            _duration(each.connect_ns),
            size(each.sent),
            size(each.received),
            *((Text(bar, style="blue"),) if width >= WIDE else ()),
        )
    return table


def served_table(served: Sequence[Served]) -> Table:
    """Return what each service was asked, seen from its own pods."""
    table = _table("Who is called", "seen by the servers' sockets")
    table.add_column("service", style="magenta", no_wrap=True)
    for name in ("accepted", "closed", "received", "sent", "read", "write"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in served:
        table.add_row(
            each.service,
            count(each.accepted),
            count(each.closed),
            size(each.received),
            size(each.sent),
            _duration(each.read_ns),
            _duration(each.write_ns),
        )
    return table


def endpoint_table(endpoints: Sequence[Endpoint]) -> Table:
    """Return what was called by HTTP, how often, with what success and how fast it was answered."""
    table = _table("What is called", "HTTP and gRPC, at the servers")
    table.add_column("service", style="magenta", no_wrap=True)
    table.add_column("endpoint", no_wrap=True)
    for name in ("calls", "success", "half", "99 %", "content"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in endpoints:
        table.add_row(
            each.service,
            Text(each.name),
            count(each.calls),
            _share(each.succeeded, each.judged),
            _duration(each.half_ns),
            _duration(each.nearly_all_ns),
            size(each.bytes_),
        )
    return table


def packet_table(packets: Sequence[Packets]) -> Table:
    """Return how many packets each service received and sent, and what went wrong with them."""
    table = _table("In packets", "seen by the servers' sockets")
    table.add_column("service", style="magenta", no_wrap=True)
    for name in ("received", "sent", "sent again", "lost here", "payload each"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in packets:
        table.add_row(
            each.service,
            count(each.received),
            count(each.sent),
            count(each.again),
            Text("-", style="dim") if each.lost is None else count(each.lost),
            size(each.bytes_ / max(each.received + each.sent, 1)),
        )
    return table


def wait_table(waits: Sequence[Wait]) -> Table:
    """Return how long reads and writes spend in each stage of the kernel."""
    table = _table("Where they wait", "time in the kernel, per read or write")
    table.add_column("stage", style="magenta", no_wrap=True)
    for name in ("calls", "half", "90 %", "99 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in waits:
        times = (each.half_ns, each.most_ns, each.nearly_all_ns)
        table.add_row(each.stage, count(each.calls), *(_duration(time) for time in times))
    return table


def truth_table(truth: AccessLog, ours: Served | None) -> tuple[Table, bool]:
    """Compare nginx's own access log with what was counted in the kernel.

    Returns:
        The table, and whether every number that both have is the same.
    """
    theirs = (truth.connections, truth.requests, truth.bytes_received, truth.bytes_sent)
    counted = (ours.accepted, ours.requests or 0, ours.received, ours.sent) if ours else (0,) * 4
    table = _table("Is it true?", "frontend.shop, against nginx's own log")
    table.add_column("counted by", no_wrap=True)
    for name in ("connections", "requests", "bytes in", "bytes out"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("nginx", *map(count, theirs))
    table.add_row("podwire", *map(count, counted))
    same = [
        Text("equal", "green") if one == other else Text(f"{other - one:+,}", "bold red")
        for one, other in zip(theirs, counted, strict=True)
    ]
    table.add_row("", *same)
    return table, theirs == counted


def topology(relations: Sequence[Relation]) -> Tree:
    """Draw the relations as a tree from those that nobody calls; a service is unfolded once."""
    servers = {each.server for each in relations}
    by_client: dict[str, list[Relation]] = {}
    for each in relations:
        by_client.setdefault(each.client, []).append(each)
    roots = [client for client in by_client if client not in servers]
    # Should everybody be called by somebody, the busiest caller comes first.
    roots = roots or list(by_client)[:1]
    tree = Tree("[bold]Topology[/]", guide_style="dim")
    unfolded: set[str] = set()
    for root in roots:
        _unfold(tree.add(Text(root, style="bold cyan")), root, by_client, unfolded)
    return tree


def _unfold(
    branch: Tree, client: str, by_client: dict[str, list[Relation]], unfolded: set[str]
) -> None:
    unfolded.add(client)
    for each in by_client.get(client, ()):
        line = Text().append("──▶ ", style="dim")
        line.append(each.server, style="bold magenta")
        line.append(f"  {count(each.tried)}× ", style="default")  # noqa: RUF001
        line.append_text(_success(each))
        line.append(f"  ↑ {size(each.sent)}  ↓ {size(each.received)}", style="default")
        again = each.server in unfolded and each.server in by_client
        if again:
            line.append("  (above)", style="dim")
        below = branch.add(line)
        if not again:
            _unfold(below, each.server, by_client, unfolded)


def _table(title: str, caption: str) -> Table:
    return Table(
        title=f"[bold]{title}[/]  [dim]{caption}[/]",
        title_justify="left",
        title_style="none",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _success(relation: Relation) -> Text:
    return _share(relation.succeeded, relation.tried)


def _share(part: int, whole: int) -> Text:
    if not whole:
        return Text("-", style="dim")
    share = 100 * part / whole
    # 99.99 % is not 100 %.
    text = f"{share:.0f} %" if share in (0, 100) else f"{min(share, 99.9):.1f} %"
    return Text(text, style="green" if share == 100 else "bold red")


def _duration(nanoseconds: float | None) -> Text:
    if nanoseconds is None:
        return Text("-", style="dim")
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= factor:
            return Text(f"{nanoseconds / factor:.3g} {unit}")
    return Text(f"{nanoseconds:.0f} ns")


def _rows(database: Database, sql: str) -> list[dict[str, str]]:
    # Quoted 64-bit integers: JSON readers that know only floats would round them.
    text = database.query(
        f"{sql} SETTINGS output_format_json_quote_64bit_integers = 1 FORMAT JSONEachRow"
    )
    return [json.loads(line) for line in text.splitlines()]


def _quoted(services: Iterable[str]) -> str:
    return ", ".join(f"'{service}'" for service in services)


def _optional(value: object) -> float | None:
    return None if value is None else float(str(value))
