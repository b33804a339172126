"""Each way to hook the kernel's functions: what it measures, alone and with functions missing."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest

from collector import stages
from collector.abi import Call, MeasuredFlag, ReadFigure, WriteFigure
from tests.bpf.conftest import CHOSEN
from tests.bpf.harness import BY_TRACEPOINTS, TIERS, Watch, check_each
from tests.bpf.test_stages import End, Talk, check, check_undisturbed
from tests.bpf.topology import cable
from tests.bpf.traffic import in_background, ping_pong, receive, until
from tests.requirements import kernel_version, unmet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.bpf.harness import Figure

pytestmark = pytest.mark.bpf

R, W = ReadFigure, WriteFigure

FIGURES: Final = frozenset(each.name for kind in (ReadFigure, WriteFigure) for each in kind)
TIMES, SIZE = 8, 300

_ARRIVAL: Final = (
    R.READ_L4_DURATION,
    R.READ_L3_DURATION,
    R.READ_L3_RECV_DURATION,
    R.READ_L3_LOCAL_DURATION,
    R.READ_PACKET_TO_QUEUE_DURATION,
    R.READ_NETFILTER_COUNT,
    R.READ_NETFILTER_DURATION,
    R.READ_DEVICE_TO_IP_DURATION,
    R.READ_IP_TO_QUEUE_DURATION,
)
_DEVICE: Final = (
    W.WRITE_L2_DURATION,
    W.WRITE_L2_ENTER_QUEUE_COUNT,
    W.WRITE_L2_READY_SEND_DURATION,
    W.WRITE_L2_NETDEVICE_SEND_DURATION,
)
_NEIGHBOUR: Final = (W.RESOLVE_MAC_COUNT, W.RESOLVE_MAC_DURATION)
_NETFILTER: Final = (W.WRITE_NETFILTER_COUNT, W.WRITE_NETFILTER_DURATION)

TRACEPOINTS: Final[dict[str, tuple[Figure, ...]]] = {
    "netif_receive_skb": _ARRIVAL,
    "tcp_probe": (*_ARRIVAL, R.READ_PACKET_FROM_QUEUE_DURATION),
    "skb_copy_datagram_iovec": (
        R.READ_PACKET_FROM_QUEUE_DURATION,
        R.READ_CALL_DURATION,
        R.READ_UNATTRIBUTED_DURATION,
    ),
    "net_dev_queue": (*_DEVICE, *_NEIGHBOUR, W.WRITE_L3_OUTPUT_DURATION),
    "net_dev_start_xmit": _DEVICE,
    "net_dev_xmit": _DEVICE,
    "kfree_skb": (W.WRITE_LOST_PACKET_COUNT,),
}
FUNCTIONS: Final[dict[str, tuple[Figure, ...]]] = {
    "tcp_sendmsg": (W.WRITE_L4_DURATION, W.WRITE_UNATTRIBUTED_DURATION),
    "__ip_queue_xmit": (
        W.WRITE_L4_DURATION,
        W.WRITE_L3_DURATION,
        W.WRITE_L3_LOCAL_DURATION,
        W.WRITE_L3_OUTPUT_DURATION,
        *_NETFILTER,
        *_NEIGHBOUR,
    ),
    "ip_output": (W.WRITE_L3_LOCAL_DURATION, W.WRITE_L3_OUTPUT_DURATION),
    "nf_hook_slow": (*_NETFILTER, R.READ_NETFILTER_COUNT, R.READ_NETFILTER_DURATION),
    "neigh_resolve_output": _NEIGHBOUR,
    "ip_rcv": (R.READ_L3_DURATION, R.READ_L3_RECV_DURATION, R.READ_DEVICE_TO_IP_DURATION),
    "ip_local_deliver": (R.READ_L3_RECV_DURATION, R.READ_L3_LOCAL_DURATION),
    "tcp_v4_rcv": (
        R.READ_L4_DURATION,
        R.READ_L3_DURATION,
        R.READ_L3_LOCAL_DURATION,
        R.READ_IP_TO_QUEUE_DURATION,
    ),
    "tcp_rcv_state_process": (),
    "tcp_add_backlog": (),
    "tcp_sendpage": (),
    "ip_list_rcv": (),
    "inet6_csk_xmit": (),
    "ip6_output": (),
    "ipv6_rcv": (),
    "ipv6_list_rcv": (),
    "ip6_input": (),
    "tcp_v6_rcv": (),
}
"""By hook: what cannot be measured over IPv4 without it."""

SELDOM: Final = frozenset(
    {"WRITE_RETRANSMIT_PACKET_COUNT", "WRITE_LOST_PACKET_COUNT", *(f.name for f in _NEIGHBOUR)}
)
"""What is 0 where nothing goes wrong."""


def test_every_tier_measures_what_it_can(staged: Watch) -> None:
    expected = BY_TRACEPOINTS if staged.tier == "tracepoint" else FIGURES
    assert staged.measured & FIGURES == expected
    used = {hook.twin for hook in staged.hooks if hook.attached} - {""}
    assert used == set(TIERS[staged.tier])


def test_records_say_what_they_measure(staged: Watch) -> None:
    for end in _talk(staged):
        for found in (end.written, end.read):
            flags = MeasuredFlag.MEASURED_COUNTERS | MeasuredFlag.MEASURED_STAGES
            assert set(found.records["measured"]) == {flags}


def test_beside_every_core(variant: Path) -> None:
    """What is told does not depend on how the bytes of calls are learnt."""
    with _attached(variant, "tracepoint") as watch:
        ends = _talk(watch)
    check(*ends)
    for end in ends:
        check_undisturbed(end)
        assert end.written[W.WRITE_PACKET_COUNT] == end.read[R.READ_PACKET_COUNT] == TIMES
        assert end.written[W.WRITE_PACKET_SIZE] == end.read[R.READ_PACKET_SIZE] == TIMES * SIZE


def test_returns_that_a_kprobe_misses_are_counted(staged: Watch) -> None:
    """More writers wait inside tcp_sendmsg() than the kernel can see return."""
    opened = staged.stages
    assert opened is not None
    if staged.tier != "kprobe":
        assert not opened.probe_misses()
        return
    program = "tcp_sendmsg_exit_probe"
    if kernel_version() < (6, 7):
        pytest.skip("Linux counts them from 6.7 on")
    before = opened.probe_misses()[program]
    cpus = opened.library.call("libbpf_num_possible_cpus")
    writers, size = max(10, 2 * cpus) + 3, 200_000
    with cable() as network, contextlib.ExitStack() as running:
        talk = Talk(staged, network, counted=False)
        talk.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        for _ in range(writers):
            running.enter_context(in_background(lambda: talk.client.sendall(bytes(size))))
        try:
            until(lambda: opened.probe_misses()[program] >= before + 3)
        finally:
            receive(talk.accepted, writers * size)


def test_tiers_agree(best: Path) -> None:
    """The same traffic has the same counts whichever way it is looked at."""
    told: dict[str, list[dict[str, int]]] = {}
    for tier in TIERS:
        with _attached(best, tier) as watch:
            if {hook.twin for hook in watch.hooks if hook.attached} - {""} == set(TIERS[tier]):
                told[tier] = [_counts(end) for end in _talk(watch)]
    if len(told) == 1:
        pytest.skip("no tier here but that of the tracepoints")
    first = told.pop("tracepoint")
    for tier, counts in told.items():
        for mine, others in zip(first, counts, strict=True):
            assert mine == {name: others[name] for name in mine}, tier
    assert len({str(each) for each in told.values()}) == 1


@pytest.mark.parametrize(
    ("tier", "hook"),
    [("tracepoint", each) for each in TRACEPOINTS]
    + [("fentry", each) for each in TRACEPOINTS | FUNCTIONS]
    + [("kprobe", each) for each in FUNCTIONS],
)
def test_a_missing_hook_costs_only_what_it_measures(
    best: Path, tier: str, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tier not in CHOSEN:
        pytest.skip("not among PODWIRE_TIERS")
    hopeless = stages._hopeless

    def lacking(units: Any, *others: Any) -> Any:
        missing = {unit: "not in this kernel" for unit in units if unit.target == hook}
        return hopeless(units, *others) | missing

    monkeypatch.setattr(stages, "_hopeless", lacking)
    with _attached(best, tier) as watch:
        if TIERS[tier] and not any(each.twin and each.attached for each in watch.hooks):
            unmet(tier, next(each.reason for each in watch.hooks if each.twin == tier))
        assert hook not in {each.target for each in watch.hooks if each.attached}
        ends = _talk(watch)
    left = FIGURES if TIERS[tier] else BY_TRACEPOINTS
    lost = {each.name for each in (TRACEPOINTS | FUNCTIONS)[hook]}
    assert watch.measured & FIGURES == left - lost
    check(*ends)
    for end in ends:
        check_undisturbed(end)
        for found in (end.written, end.read):
            check_each(found)
            for figure in WriteFigure if found is end.written else ReadFigure:
                if figure in found and figure.name not in SELDOM:
                    assert found[figure] > 0, figure


@contextlib.contextmanager
def _attached(path: Path, tier: str) -> Iterator[Watch]:
    watch = Watch(path=path, tier=tier)
    try:
        yield watch
    finally:
        watch.close()


def _talk(watch: Watch) -> tuple[End, End]:
    with cable() as network:
        talk = Talk(watch, network)
        ping_pong(talk.client, talk.accepted, TIMES, (SIZE, SIZE))
        return talk.finish()


def _counts(end: End) -> dict[str, int]:
    """Every measured figure that is no duration, and the calls."""
    counts = {
        name: int(np.count_nonzero(found.records["call"] != Call.NONE))
        for name, found in (("writes", end.written), ("reads", end.read))
    }
    for found, kind in ((end.written, WriteFigure), (end.read, ReadFigure)):
        for figure in kind:
            if figure in found and "DURATION" not in figure.name:
                counts[figure.name] = found[figure]
    return counts
