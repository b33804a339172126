from __future__ import annotations

import pytest

from collector.abi import ReadFigure, WriteFigure
from collector.attach import CORE, Hook
from collector.bpf_object import BpfObject
from collector.config import stages_path
from collector.figures import (
    ALSO,
    IPV6,
    NEEDED,
    POINTS,
    STAGE_FIGURES,
    Availability,
    availability,
    measured,
)
from schemas.catalogue import FIGURE_BY_NAME, FIGURES

COUNTED_BY_THE_SOCK = (
    "read_packet_count",
    "read_packet_size",
    "write_packet_count",
    "write_packet_size",
    "write_retransmit_packet_count",
)
TRACEPOINTS = (
    "netif_receive_skb",
    "tcp_probe",
    "skb_copy_datagram_iovec",
    "net_dev_queue",
    "net_dev_start_xmit",
    "net_dev_xmit",
    "kfree_skb",
)


ARRIVAL = (
    "read_l4_duration",
    "read_l3_duration",
    "read_l3_recv_duration",
    "read_l3_local_duration",
    "read_packet_to_queue_duration",
    "read_netfilter_count",
    "read_netfilter_duration",
    "read_device_to_ip_duration",
    "read_ip_to_queue_duration",
)


def _hooks(*missing: str) -> list[Hook]:
    return [
        Hook(target, f"tp_btf/{target}", target not in missing, "refused" * (target in missing))
        for target in CORE
    ]


def _traced(*missing: str) -> list[Hook]:
    return [
        Hook(name, f"tp_btf/{name}", name not in missing, "refused" * (name in missing))
        for name in TRACEPOINTS
    ]


def _entered(*functions: str, way: str = "fentry") -> list[Hook]:
    return [Hook(f"{name}_enter", f"{way}/{name}", attached=True) for name in functions]


def _whole(*functions: str, way: str = "fentry") -> list[Hook]:
    back = {"fentry": "fexit", "kprobe": "kretprobe"}[way]
    return _entered(*functions, way=way) + [
        Hook(f"{name}_exit", f"{back}/{name}", attached=True) for name in functions
    ]


def _everything() -> list[Hook]:
    names = dict.fromkeys(
        point.removesuffix("_enter").removesuffix("_exit")
        for point in POINTS
        if point not in CORE and point not in TRACEPOINTS
    )
    return _hooks() + _traced() + _whole(*names)


def _rows(hooks: list[Hook]) -> dict[str, Availability]:
    return {row.figure: row for row in availability(hooks)}


def test_every_figure_is_listed_and_only_figures_of_the_catalogue_are_known() -> None:
    assert list(_rows(_hooks())) == [figure.name for figure in FIGURES]
    assert set(NEEDED) <= set(FIGURE_BY_NAME)


def test_every_figure_of_a_record_says_what_it_needs() -> None:
    recorded = {each.name.lower() for each in (*ReadFigure, *WriteFigure)}
    assert recorded <= set(NEEDED)
    assert recorded - set(STAGE_FIGURES) == set(COUNTED_BY_THE_SOCK)
    assert set(STAGE_FIGURES) < recorded


@pytest.mark.bpf
def test_the_objects_have_every_hook_that_a_figure_needs() -> None:
    opened = BpfObject(stages_path())
    points = {Hook(each.name, each.section, attached=True).point for each in opened.programs}
    opened.close()
    others = {f"{other}_enter" for other in ALSO.values()} | {f"{each}_enter" for each in IPV6}
    assert POINTS | others <= points | set(CORE)


def test_figures_that_every_row_has_are_measured_by_the_core() -> None:
    always = {figure.name for figure in FIGURES if not figure.optional}
    assert always <= measured(_hooks())
    assert measured(_hooks()) == set(NEEDED) - set(STAGE_FIGURES)
    assert measured(_everything()) == set(NEEDED)


def test_tracepoints_alone_give_what_passes_between_them() -> None:
    assert set(STAGE_FIGURES) & measured(_hooks() + _traced()) == {
        "read_packet_to_queue_duration",
        "read_packet_from_queue_duration",
        "read_call_duration",
        "read_unattributed_duration",
        "write_lost_packet_count",
        "write_l2_duration",
        "write_l2_enter_queue_count",
        "write_l2_ready_send_duration",
        "write_l2_netdevice_send_duration",
    }


@pytest.mark.parametrize(
    ("point", "lost"),
    [
        ("__ip_queue_xmit_exit", {"write_l3_duration", "write_l4_duration"}),
        ("netif_receive_skb", set(ARRIVAL)),
        (
            "ip_rcv_enter",
            {"read_l3_duration", "read_l3_recv_duration", "read_device_to_ip_duration"},
        ),
        ("neigh_resolve_output_enter", {"resolve_mac_count", "resolve_mac_duration"}),
        ("tcp_sendmsg_exit", {"write_l4_duration", "write_unattributed_duration"}),
        ("ip_output_enter", {"write_l3_local_duration", "write_l3_output_duration"}),
        ("ip6_output_enter", set()),
        ("kfree_skb", {"write_lost_packet_count"}),
    ],
)
def test_a_hook_takes_exactly_its_figures_away(point: str, lost: set[str]) -> None:
    hooks = [hook for hook in _everything() if hook.point != point]
    assert len(hooks) == len(_everything()) - 1
    assert measured(_everything()) - measured(hooks) == lost


def test_what_a_figure_comes_through_names_the_way_of_each_hook() -> None:
    hooks = _hooks() + _traced() + _whole("tcp_v4_rcv") + _whole("tcp_v6_rcv", way="kprobe")
    row = _rows(hooks)["read_l4_duration"]
    assert row.available
    assert row.note == "netif_receive_skb, tcp_probe; fentry: tcp_v4_rcv; kprobe: tcp_v6_rcv"


def test_without_ipv6_a_figure_is_there_and_says_so() -> None:
    hooks = _hooks() + _traced() + _whole("tcp_v4_rcv")
    note = "netif_receive_skb, tcp_probe; fentry: tcp_v4_rcv (IPv4 only)"
    assert _rows(hooks)["read_l4_duration"].note == note
    assert "read_l4_duration" in measured(hooks)
    assert measured(hooks) - measured(hooks, family=6) == {
        "read_l4_duration",
        "read_ip_to_queue_duration",
    }
    assert measured(_everything(), family=6) == measured(_everything())
    assert "IPv4" not in _rows(hooks)["write_l2_duration"].note


def test_a_hook_of_lists_cannot_stand_in_for_that_of_packets() -> None:
    hooks = _hooks() + _traced() + _entered("ip_list_rcv", "ipv6_rcv")
    assert not _rows(hooks)["read_device_to_ip_duration"].available
    hooks += _entered("ip_rcv", "ipv6_list_rcv")
    row = _rows(hooks)["read_device_to_ip_duration"]
    assert row.note.endswith("fentry: ip_rcv, ip_list_rcv, ipv6_rcv, ipv6_list_rcv")


def test_a_hook_beside_another_is_named_but_cannot_stand_in() -> None:
    assert "write_unattributed_duration" not in measured(_hooks() + _whole("tcp_sendpage"))
    row = _rows(_hooks() + _whole("tcp_sendmsg", "tcp_sendpage"))["write_unattributed_duration"]
    assert row.note == "sys_enter, sys_exit; fentry: tcp_sendmsg, tcp_sendpage"


def test_the_reasons_of_every_way_are_told_once_for_all_that_share_them() -> None:
    hooks = [
        Hook(f"{name}_{way}", f"{way}/{name}", attached=False, reason=f"no {way[0]}")
        for name in ("tcp_sendmsg", "__ip_queue_xmit")
        for way in ("fexit", "kretprobe", "fentry", "kprobe")
    ]
    row = _rows(_hooks() + hooks)["write_l4_duration"]
    reasons = ("fentry: no f", "kprobe: no k")
    assert row.lacking == (("tcp_sendmsg, __ip_queue_xmit", reasons),)
    assert row.note == "tcp_sendmsg, __ip_queue_xmit: fentry: no f; kprobe: no k"


def test_without_the_stages_object_each_of_its_figures_says_why() -> None:
    rows = availability(_hooks(), "switched off")
    notes = {row.note.rpartition(": ")[2] for row in rows if row.figure in STAGE_FIGURES}
    assert notes == {"switched off"}


def test_bytes_by_descriptor_need_the_system_calls_and_say_what_they_miss() -> None:
    hooks = [hook for hook in _hooks() if not hook.target.startswith("sock_")]
    rows = _rows(hooks)
    assert measured(hooks) == set(NEEDED) - set(STAGE_FIGURES)
    for figure in ("read_count", "read_bytes", "write_duration", "write_packet_size"):
        assert rows[figure].note == "sys_enter, sys_exit (by file descriptor, without io_uring)"
    without = [hook for hook in _hooks("sys_exit") if not hook.target.startswith("sock_")]
    assert _rows(without)["write_bytes"].note == "sys_exit: refused"


def test_a_missing_hook_takes_its_figures_away_with_the_reason() -> None:
    rows = _rows(_hooks("sock_recv_length"))
    assert not rows["read_bytes"].available
    assert rows["read_bytes"].note == "sock_recv_length: refused"
    assert rows["write_bytes"].available
    assert rows["http_call_count"].note == "sock_recv_length: refused"


def test_messages_need_the_bytes_of_both_directions() -> None:
    rows = {row.figure: row for row in availability(_hooks())}
    assert rows["http_call_count"].available
    assert "sock_send_length" in rows["grpc_error_count"].note
    rows = {row.figure: row for row in availability(_hooks(), without_parsers="switched off")}
    assert rows["http_call_count"].note == rows["grpc_call_count"].note == "switched off"
    assert rows["read_bytes"].available
