"""What of a batch is told to an OAP, and what is left out and counted, by reason.

Pure. An OAP adds up whatever it is sent, so what it would count wrongly is decided here: it has no
word for a call without a response, drops what stays inside a service, and knows no weights.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from schemas.columns import UNMEASURED_U32
from schemas.events import CALL_NONE, GRPC_UNKNOWN, RequestOutcome, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from schemas.events import Connections, EventBatch, Requests

__all__ = ["Choices", "Selection", "is_address", "namespace_of", "select", "server_side"]

_ERROR: Final = 500
_SECOND_NS: Final = np.uint64(1_000_000_000)
_KINDS: Final = ("opens", "closes", "transfers", "requests", "drops")


@dataclass(frozen=True, slots=True)
class Choices:
    """What the configuration says.

    Attributes:
        sides: Which end's view of a connection is told.
        same_service: Traffic within a service: left out, sent as it is (the OAP drops it), or sent
            with "Unknown" as the other end, so that it counts for the service.
        unresolved: An end that is no more than an address: sent as one, for the OAP to look up, or
            as a service of that name.
        paths: The path of an HTTP call, or the name of its endpoint.
        incomplete: Whether calls without a whole response are sent; an OAP takes those without a
            status for successful.
        exclude_namespaces: Connections whose local end is in one of these are left out.
        end_minute: Count what began in one minute and ended in another for the one it ended in.
        logs_per_second: Of one node; beyond, a sample is sent, and all errors. 0 is no limit.
    """

    sides: Literal["both", "client", "server"] = "both"
    same_service: Literal["drop", "send", "unknown"] = "drop"
    unresolved: Literal["address", "name"] = "address"
    paths: Literal["path", "endpoint"] = "path"
    incomplete: bool = False
    exclude_namespaces: tuple[str, ...] = ()
    end_minute: bool = True
    logs_per_second: float = 0.0


@dataclass(slots=True)
class Selection:
    """The events that are told, and why the others are not."""

    batch: EventBatch
    dropped: dict[str, int]


def server_side(connections: Connections) -> NDArray[np.bool_]:
    """Return which connections have the server as their local end."""
    # Where nobody saw the handshake, the lower port is the service's, as in the metrics.
    guessed = connections.local_port < connections.remote_port
    return np.where(connections.role == 0, guessed, connections.role == Role.SERVER)


def is_address(name: str) -> bool:
    """Whether a name is no more than an IP address."""
    if not name or name[0] not in "0123456789abcdefABCDEF:":
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def namespace_of(service: str) -> str:
    """Return the namespace of ``name.namespace``; nothing for another name."""
    if is_address(service):
        return ""
    return service.rpartition("::")[2].partition(".")[2].rpartition(".")[2]


def select(batch: EventBatch, choices: Choices, seconds: float) -> Selection:
    """Return what is told of a batch.

    Args:
        batch: With `parties`.
        choices: The configuration.
        seconds: How long its node took for these events.
    """
    dropped: dict[str, int] = {}
    reason = _reasons(batch, choices)
    kept = {name: np.ones(getattr(batch, name).rows, np.bool_) for name in _KINDS}
    if reason.any():
        for name in _KINDS:
            of_row = reason[getattr(batch, name).connection]
            kept[name] = of_row == 0
            for number in np.unique(of_row[of_row > 0]).tolist():
                key = _REASONS[number]
                dropped[key] = dropped.get(key, 0) + int((of_row == number).sum())
    requests = batch.requests
    if requests.rows and not choices.incomplete:
        whole = (requests.outcome == RequestOutcome.ANSWERED) & (requests.status > 0)
        _leave_out(kept["requests"], ~whole, dropped, "incomplete")
    if choices.logs_per_second:
        _sample(batch, kept, dropped, choices.logs_per_second * max(seconds, 1e-3))
    if not dropped:
        return Selection(batch, dropped)
    tables = {}
    for name in _KINDS:
        table = getattr(batch, name)
        tables[name] = table if kept[name].all() else table.take(kept[name])
    return Selection(replace(batch, **tables), dropped)


_REASONS: Final = ("", "pod_internal", "excluded_namespace", "side", "same_service")


def _reasons(batch: EventBatch, choices: Choices) -> NDArray[np.uint8]:
    # Why a connection is left out, the first reason that holds; 0 if it is told.
    rows, parties, names = batch.connections, batch.parties, batch.names
    reason = np.zeros(rows.rows, np.uint8)
    if choices.same_service == "drop":
        reason[parties.local_service == parties.remote_service] = 4
    if choices.sides != "both":
        is_server = server_side(rows)
        reason[is_server if choices.sides == "client" else ~is_server] = 3
    if choices.exclude_namespaces:
        reason[_in_namespaces(names, parties.local_service, choices.exclude_namespaces)] = 2
    reason[parties.internal != 0] = 1
    return reason


def _in_namespaces(
    names: Sequence[str], service: NDArray[np.uint32], excluded: tuple[str, ...]
) -> NDArray[np.bool_]:
    found = np.unique(service)
    within = np.array([namespace_of(names[place]) in excluded for place in found.tolist()], bool)
    return within[np.searchsorted(found, service)]


def _leave_out(
    kept: NDArray[np.bool_], rows: NDArray[np.bool_], dropped: dict[str, int], reason: str
) -> None:
    out = kept & rows
    count = int(out.sum())
    if count:
        dropped[reason] = dropped.get(reason, 0) + count
        kept &= ~out


def _sample(
    batch: EventBatch,
    kept: dict[str, NDArray[np.bool_]],
    dropped: dict[str, int],
    limit: float,
) -> None:
    total = sum(int(rows.sum()) for rows in kept.values())
    if total <= limit:
        return
    errors = {
        "opens": batch.opens.error != 0,
        "closes": np.zeros(batch.closes.rows, np.bool_),
        # What came after the last call has no log of its own to leave out, nor have lost packets.
        "transfers": batch.transfers.call == CALL_NONE,
        "requests": _failed(batch.requests),
        "drops": np.ones(batch.drops.rows, np.bool_),
    }
    certain = sum(int((kept[name] & errors[name]).sum()) for name in _KINDS)
    share = max(limit - certain, 0.0) / max(total - certain, 1)
    for name in _KINDS:
        table = getattr(batch, name)
        if table.rows:
            # A connection's second at a time, so that a call and its reads stay together.
            key = batch.connections.id[table.connection] ^ (table.end_ns // _SECOND_NS)
            chosen = _uniform(key) < share
            _leave_out(kept[name], ~(chosen | errors[name]), dropped, "sampled")


def _failed(requests: Requests) -> NDArray[np.bool_]:
    failed = (requests.outcome != RequestOutcome.ANSWERED) | (requests.status >= _ERROR)
    grpc = requests.grpc_status
    if len(grpc):
        failed |= (grpc != 0) & (grpc != UNMEASURED_U32) & (grpc != GRPC_UNKNOWN)
    return np.asarray(failed)


def _uniform(value: NDArray[np.uint64]) -> NDArray[np.float64]:
    # The finaliser of SplitMix64, its upper 53 bits as a number from 0 to below 1.
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    value = value ^ (value >> np.uint64(31))
    return np.asarray(value >> np.uint64(11), np.float64) * 2.0**-53
