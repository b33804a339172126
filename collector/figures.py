"""Which hooks each figure of the catalogue needs, and so what this kernel can give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from collector.attach import CORE, missing_hooks
from schemas.catalogue import FIGURES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from collector.attach import Hook

__all__ = [
    "ALSO",
    "IPV6",
    "NEEDED",
    "POINTS",
    "STAGE_FIGURES",
    "Availability",
    "availability",
    "measured",
]

IPV6: Final[Mapping[str, str]] = {
    "__ip_queue_xmit": "inet6_csk_xmit",
    "ip_output": "ip6_output",
    "ip_rcv": "ipv6_rcv",
    "ip_local_deliver": "ip6_input",
    "tcp_v4_rcv": "tcp_v6_rcv",
}
"""What IPv6 has in place of a function of IPv4."""

ALSO: Final[Mapping[str, str]] = {
    "ip_rcv": "ip_list_rcv",  # packets that a driver delivers by lists
    "ipv6_rcv": "ipv6_list_rcv",
    "tcp_sendmsg": "tcp_sendpage",  # sendfile before v6.5
}
"""What is hooked beside a function: some packets or calls pass there instead, never all."""


def _split(point: str) -> tuple[str, str]:
    for end in ("_enter", "_exit"):
        if point.endswith(end) and point not in _CALLS:
            return point.removesuffix(end), end
    return point, ""


def _in_ipv6(point: str) -> str:
    function, end = _split(point)
    return IPV6[function] + end if function in IPV6 else ""


def _function(name: str) -> tuple[str, str]:
    return f"{name}_enter", f"{name}_exit"


_LIFE: Final = ("inet_sock_set_state", "tcp_destroy_sock")
_CALLS: Final = ("sys_enter", "sys_exit")
_READ: Final = ("sock_recv_length",)
_WRITE: Final = ("sock_send_length",)
_ARRIVED: Final = "netif_receive_skb"
_QUEUED: Final = "tcp_probe"
_XMIT: Final = _function("__ip_queue_xmit")
_NETFILTER: Final = _function("nf_hook_slow")
_READ_NETFILTER: Final = (_ARRIVED, *_NETFILTER, _QUEUED)
_NEIGHBOUR: Final = (_XMIT[0], "neigh_resolve_output_enter", "net_dev_queue")
_DEVICE: Final = ("net_dev_queue", "net_dev_start_xmit", "net_dev_xmit")

NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "connect_count": _LIFE,
    "connect_duration": _LIFE,
    "connect_success_count": _LIFE,
    "accept_count": (*_LIFE, *_CALLS),
    "accept_duration": (*_LIFE, *_CALLS),
    "close_count": _LIFE,
    "close_duration": (*_LIFE, *_CALLS),
    "read_count": _READ,
    "read_bytes": _READ,
    "read_duration": (*_READ, *_CALLS),
    # The sock itself counts these; the records of calls carry them.
    "read_packet_count": _READ,
    "read_packet_size": _READ,
    # What is known of a packet is kept from the device on, or from its entry into IP.
    "read_l4_duration": (_ARRIVED, *_function("tcp_v4_rcv"), _QUEUED),
    "read_l3_duration": (_ARRIVED, "ip_rcv_enter", "tcp_v4_rcv_enter", _QUEUED),
    "read_l3_recv_duration": (_ARRIVED, "ip_rcv_enter", "ip_local_deliver_enter", _QUEUED),
    "read_l3_local_duration": (_ARRIVED, "ip_local_deliver_enter", "tcp_v4_rcv_enter", _QUEUED),
    "read_packet_to_queue_duration": (_ARRIVED, _QUEUED),
    "read_packet_from_queue_duration": (_QUEUED, "skb_copy_datagram_iovec"),
    "read_netfilter_count": _READ_NETFILTER,
    "read_netfilter_duration": _READ_NETFILTER,
    "read_device_to_ip_duration": (_ARRIVED, "ip_rcv_enter", _QUEUED),
    "read_ip_to_queue_duration": (_ARRIVED, "tcp_v4_rcv_enter", _QUEUED),
    "read_call_duration": ("skb_copy_datagram_iovec", *_CALLS),
    "read_unattributed_duration": ("skb_copy_datagram_iovec", *_CALLS),
    "write_count": _WRITE,
    "write_bytes": _WRITE,
    "write_duration": (*_WRITE, *_CALLS),
    "write_packet_count": _WRITE,
    "write_packet_size": _WRITE,
    "write_retransmit_packet_count": _WRITE,
    "write_lost_packet_count": ("kfree_skb",),
    "write_l4_duration": (*_function("tcp_sendmsg"), *_XMIT),
    "write_l3_duration": _XMIT,
    "write_l3_local_duration": (_XMIT[0], "ip_output_enter"),
    "write_l3_output_duration": (_XMIT[0], "ip_output_enter", "net_dev_queue"),
    "write_netfilter_count": (_XMIT[0], *_NETFILTER),
    "write_netfilter_duration": (_XMIT[0], *_NETFILTER),
    "resolve_mac_count": _NEIGHBOUR,
    "resolve_mac_duration": _NEIGHBOUR,
    "write_l2_duration": _DEVICE,
    "write_l2_enter_queue_count": _DEVICE,
    "write_l2_ready_send_duration": _DEVICE,
    "write_l2_netdevice_send_duration": _DEVICE,
    "write_unattributed_duration": (*_function("tcp_sendmsg"), *_CALLS),
    # Parsed from the bytes of both directions, which calls lead to.
    **{
        figure.name: (*_READ, *_WRITE, *_CALLS)
        for figure in FIGURES
        if figure.group in ("http", "grpc")
    },
}
"""Points of hooks by figure, in a packet's order; see `Hook.point` and ``bpf/include/events.h``.

A figure that is not here is measured by no program.
"""

STAGE_FIGURES: Final = tuple(
    figure for figure, needed in NEEDED.items() if any(point not in CORE for point in needed)
)
"""Figures that need the hooks of the stages object."""

POINTS: Final = frozenset(
    each
    for needed in NEEDED.values()
    for point in needed
    for each in (point, _in_ipv6(point))
    if each
)
"""All points that some figure needs."""

_BY_SOCKET: Final = frozenset((*_READ, *_WRITE))
_BY_DESCRIPTOR: Final = " (by file descriptor, without io_uring)"
_IPV4_ONLY: Final = " (IPv4 only)"
_NOT_IN_OBJECT: Final = "not in the object"


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a figure is measured here: through which hooks, or why not."""

    figure: str
    available: bool
    through: str = ""
    over_ipv6: bool = True
    """Whether an available one is measured over IPv6 as well."""
    reason: str = ""
    """Why no hook could help."""
    lacking: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Names of what could not be hooked, and why not: what has the same reasons together."""

    @property
    def note(self) -> str:
        """In one line: through what, or why not."""
        lacking = (f"{names}: {'; '.join(reasons)}" for names, reasons in self.lacking)
        return self.through or self.reason or "; ".join(lacking)


def availability(
    hooks: Sequence[Hook], without_stages: str = _NOT_IN_OBJECT, without_parsers: str = ""
) -> list[Availability]:
    """Return the state of every figure of the catalogue, in its order.

    Args:
        hooks: Of all objects that run.
        without_stages: Why there are none of the stages object, if so.
        without_parsers: Why no message is parsed, if so.
    """
    attached = {hook.point: hook for hook in hooks if hook.attached}
    # An object without these programs learns the bytes at the system calls.
    by_descriptor = _BY_SOCKET.isdisjoint(hook.target for hook in hooks)
    reasons = {each.point: each.reasons for each in missing_hooks(hooks)}
    rows = []
    for figure in FIGURES:
        needed = NEEDED.get(figure.name)
        parsed = figure.group in ("http", "grpc")
        if needed is None or (parsed and without_parsers):
            reason = "no program measures it" if needed is None else without_parsers
            rows.append(Availability(figure.name, False, reason=reason))
            continue
        remark = ""
        if by_descriptor and not _BY_SOCKET.isdisjoint(needed):
            needed, remark = _CALLS, _BY_DESCRIPTOR
        missing = [each for each in needed if each not in attached]
        if missing:
            lacking = _grouped(
                (
                    _split(each)[0],
                    reasons.get(each, (_NOT_IN_OBJECT if each in CORE else without_stages,)),
                )
                for each in missing
            )
            rows.append(Availability(figure.name, False, lacking=lacking))
            continue
        over_ipv6 = all(each in attached for each in map(_in_ipv6, needed) if each)
        if not over_ipv6:
            remark = _IPV4_ONLY
        rows.append(Availability(figure.name, True, _through(needed, attached) + remark, over_ipv6))
    return rows


def measured(hooks: Sequence[Hook], family: int = 4) -> frozenset[str]:
    """Return the names of the figures that these hooks measure over IPv4 or 6."""
    return frozenset(
        row.figure
        for row in availability(hooks)
        if row.available and (family == 4 or row.over_ipv6)
    )


def _beside(point: str) -> str:
    function, end = _split(point)
    other = ALSO.get(function, "")
    return other + end if other else ""


def _through(needed: Iterable[str], attached: Mapping[str, Hook]) -> str:
    """Tracepoints by name, then functions by the way they are hooked."""
    tracepoints: dict[str, None] = {}
    functions: dict[str, dict[str, None]] = {}
    for point in needed:
        sixth = _in_ipv6(point)
        for each in (point, _beside(point), sixth, _beside(sixth)):
            hook = attached.get(each)
            if hook is None:
                continue
            (functions.setdefault(hook.twin, {}) if hook.twin else tracepoints)[hook.target] = None
    parts = [", ".join(tracepoints)] if tracepoints else []
    parts += [f"{twin}: {', '.join(names)}" for twin, names in functions.items()]
    return "; ".join(parts)


def _grouped(
    pairs: Iterable[tuple[str, tuple[str, ...]]],
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    names: dict[tuple[str, ...], dict[str, None]] = {}
    for name, reasons in pairs:
        names.setdefault(reasons, {})[name] = None
    return tuple((", ".join(each), reasons) for reasons, each in names.items())
