"""Which hooks each figure of the catalogue needs, and so what this kernel can give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from schemas.catalogue import FIGURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.attach import Hook

__all__ = ["NEEDED", "Availability", "availability"]

_LIFE: Final = ("inet_sock_set_state", "tcp_destroy_sock")
_CALLS: Final = ("sys_enter", "sys_exit")

NEEDED: Final[dict[str, tuple[str, ...]]] = {
    "connect_count": _LIFE,
    "connect_duration": _LIFE,
    "connect_success_count": _LIFE,
    "accept_count": (*_LIFE, *_CALLS),
    "accept_duration": (*_LIFE, *_CALLS),
    "close_count": _LIFE,
    "close_duration": (*_LIFE, *_CALLS),
    "read_count": ("sock_recv_length",),
    "read_bytes": ("sock_recv_length",),
    "read_duration": ("sock_recv_length", *_CALLS),
    "write_count": ("sock_send_length",),
    "write_bytes": ("sock_send_length",),
    "write_duration": ("sock_send_length", *_CALLS),
}
"""Kernel hooks by figure; a figure that is not here is measured by no program of the object."""

_BY_SOCKET: Final = frozenset({"sock_recv_length", "sock_send_length"})
_BY_DESCRIPTOR: Final = "by file descriptor, without io_uring"


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a figure is measured here: through which hooks, or why not."""

    figure: str
    available: bool
    note: str


def availability(hooks: Sequence[Hook]) -> list[Availability]:
    """Return the state of every figure of the catalogue, in its order."""
    attached = {hook.target for hook in hooks if hook.attached}
    # An object without these programs learns the bytes at the system calls.
    by_descriptor = _BY_SOCKET.isdisjoint(hook.target for hook in hooks)
    reasons = {hook.target: hook.reason for hook in hooks if not hook.attached}
    rows = []
    for figure in FIGURES:
        needed = NEEDED.get(figure.name)
        if needed is None:
            note = (
                "messages are not parsed yet"
                if figure.group in ("http", "grpc")
                else "not on the tracepoint tier"
            )
            rows.append(Availability(figure.name, False, note))
            continue
        through = ", ".join(needed)
        if by_descriptor and not _BY_SOCKET.isdisjoint(needed):
            needed = _CALLS
            through = f"{', '.join(_CALLS)} ({_BY_DESCRIPTOR})"
        missing = [target for target in needed if target not in attached]
        if missing:
            why = [f"{target}: {reasons.get(target, 'not in the object')}" for target in missing]
            rows.append(Availability(figure.name, False, "; ".join(why)))
        else:
            rows.append(Availability(figure.name, True, through))
    return rows
