"""Who held what when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.kubernetes import Container, Endpoint, EndpointSlice
from streams.addresses import format_address, is_loopback, pack_address, pack_network
from streams.directory import Directory
from tests.streams.build import endpoint_slice, node, pod, service


def address(text: str) -> bytes:
    packed = pack_address(text)
    assert packed is not None
    return packed


@pytest.mark.parametrize(
    ("text", "shown"),
    [("10.1.2.3", "10.1.2.3"), ("::ffff:10.1.2.3", "10.1.2.3"), ("2001:DB8:0::1", "2001:db8::1")],
)
def test_addresses_have_one_form(text: str, shown: str) -> None:
    assert len(address(text)) == 16
    assert format_address(address(text)) == shown


def test_what_is_no_address_is_none() -> None:
    assert pack_address("None") is None
    assert pack_address("") is None
    assert pack_network("10.0.0.0/99") is None
    assert is_loopback(address("127.3.2.1"))
    assert is_loopback(address("::1"))
    assert not is_loopback(address("128.0.0.1"))


def test_an_address_goes_from_pod_to_pod() -> None:
    directory = Directory(tolerance_ms=1_000)
    directory.apply(pod("old-1", "10.0.0.1", created_ms=10_000, deleted_ms=20_000))
    directory.apply(pod("new-1", "10.0.0.1", created_ms=30_000))
    at = address("10.0.0.1")

    def name(time_ms: int) -> str | None:
        found, span = directory.pods_at(at, time_ms)
        assert span[0] <= time_ms < span[1]
        return found[0].name if found else None

    assert name(8_999) is None
    assert name(9_000) == "old-1"  # clocks differ a little
    assert name(20_999) == "old-1"  # late packets of a pod that is gone
    assert name(21_000) is None
    assert name(28_999) is None
    assert name(29_000) == "new-1"
    assert name(30_000) == "new-1"
    assert name(10**15) == "new-1"


S = 1_000


def test_between_two_pods_that_are_closer_than_clocks_either_is_meant() -> None:
    directory = Directory(tolerance_ms=30 * S)
    directory.apply(pod("old-1", "10.0.0.1", created_ms=10 * S, deleted_ms=200 * S))
    directory.apply(pod("new-1", "10.0.0.1", created_ms=205 * S))
    at = address("10.0.0.1")
    for time, meant in (
        (174 * S, {"old-1"}),
        (199_999, {"old-1"}),
        (200 * S, {"old-1", "new-1"}),
        (204_999, {"old-1", "new-1"}),
        (205 * S, {"new-1"}),
    ):
        found, _ = directory.pods_at(at, time)
        assert {each.name for each in found} == meant, time


@pytest.mark.parametrize(
    ("old", "new", "open_from", "open_until"),
    [
        # Made while the old one was there: it got the address at some time before that one's end.
        ({"deleted_ms": 20 * S}, {"created_ms": 15 * S}, 15 * S, 20 * S),
        # Not before its node knew it, and not after its containers began.
        ({"deleted_ms": 25 * S}, {"created_ms": 15 * S, "accepted_ms": 18 * S}, 18 * S, 25 * S),
        (
            {"deleted_ms": 25 * S, "running_ms": 12 * S},
            {"created_ms": 15 * S, "accepted_ms": 18 * S, "running_ms": 20 * S},
            18 * S,
            20 * S,
        ),
        # The end of the old one has not been told yet.
        ({"running_ms": 12 * S}, {"created_ms": 15 * S, "running_ms": 17 * S}, 15 * S, 17 * S),
        # Seconds do not tell which of the two was first; the one that is gone was.
        (
            {"deleted_ms": 11_400, "running_ms": 11 * S},
            {"created_ms": 10 * S, "running_ms": 11 * S},
            10 * S,
            11_400,
        ),
        # One was gone before the other came.
        ({"deleted_ms": 20 * S}, {"created_ms": 20 * S, "running_ms": 22 * S}, 20 * S, 20 * S),
    ],
)
@pytest.mark.parametrize("names", [("a-1", "b-1"), ("b-1", "a-1")])
def test_of_a_hand_over_only_what_is_certain_is_said(
    names: tuple[str, str],
    old: dict[str, int],
    new: dict[str, int],
    open_from: int,
    open_until: int,
) -> None:
    directory = Directory(tolerance_ms=0)
    directory.apply(pod(names[0], "10.0.0.1", **{"created_ms": 10 * S, **old}))
    directory.apply(pod(names[1], "10.0.0.1", **new))

    def at(time_ms: int) -> list[str]:
        found, span = directory.pods_at(address("10.0.0.1"), time_ms)
        assert span[0] <= time_ms < span[1]
        for edge in (span[0], span[1] - 1):  # the answer holds for all of its span
            assert directory.pods_at(address("10.0.0.1"), edge) == (found, span)
        return [each.name for each in found]

    if open_from > 10 * S:
        assert at(open_from - 1) == [names[0]]
    if open_from < open_until:
        assert at(open_from) == at(open_until - 1) == sorted(names)
    assert at(open_until) == [names[1]]


def test_an_address_may_go_on_and_on() -> None:
    directory = Directory()
    for place in range(4):
        start = (10 + 2 * place) * S
        directory.apply(pod(f"p-{place}", "10.0.0.1", created_ms=start, running_ms=start + S))
    found = [directory.pods_at(address("10.0.0.1"), time_ms)[0] for time_ms in (13_500, 17_500)]
    assert [[each.name for each in pods] for pods in found] == [["p-1"], ["p-3"]]


def test_host_network_pods_have_ports_not_addresses() -> None:
    directory = Directory()
    container = Container("main", "c-proxy", ports=[9100])
    directory.apply(
        pod(
            "proxy-1",
            "192.168.0.1",
            host_network=True,
            host_ips=["192.168.0.1"],
            containers=[container],
        )
    )
    at = address("192.168.0.1")
    assert directory.pods_at(at, 0)[0] == ()
    (found,) = directory.host_pods_at(at, 9100, 0)[0]
    assert found.name == "proxy-1"
    assert directory.host_pods_at(at, 9101, 0)[0] == ()
    assert directory.pod_of_container("c-proxy") is found
    assert directory.container_name("c-proxy") == "main"


def test_names_of_containers_go_with_the_pod() -> None:
    directory = Directory()
    directory.apply(pod("web-1", containers=[Container("main", "c-1"), Container("log", "c-2")]))
    assert [directory.container_name(id_) for id_ in ("c-1", "c-2", "c-3", "")] == [
        *("main", "log", "", "")
    ]
    directory.apply(pod("web-1", containers=[Container("main", "c-3"), Container("main", "c-1")]))
    assert [directory.container_name(id_) for id_ in ("c-1", "c-2", "c-3")] == ["main", "", "main"]
    directory.remove("uid-web-1")
    assert directory.container_name("c-1") == ""


def test_service_of_a_pod_is_the_shortest_then_the_first() -> None:
    directory = Directory()
    web = pod("web-1", "10.0.0.1")
    directory.apply(web)
    for name in ("zebra", "beta", "alpha", "longer"):
        directory.apply(service(name, f"10.96.0.{len(name)}"))
        directory.apply(endpoint_slice(name, web))
    assert directory.service_of(web) == "beta"


def test_slices_decide_where_a_service_has_them() -> None:
    directory = Directory()
    chosen = pod("web-1", "10.0.0.1", labels={"app": "web"})
    other = pod("web-2", "10.0.0.2", labels={"app": "web"})
    for record in (chosen, other, service("web", selector={"app": "web"})):
        directory.apply(record)
    assert directory.service_of(chosen) == directory.service_of(other) == "web"  # no slices yet
    directory = Directory()
    for record in (chosen, other, service("web", selector={"app": "web"})):
        directory.apply(record)
    directory.apply(endpoint_slice("web", chosen))
    assert directory.service_of(chosen) == "web"
    assert directory.service_of(other) == ""


def test_slices_may_name_pods_by_name() -> None:
    directory = Directory()
    web = pod("web-1", "10.0.0.1")
    directory.apply(web)
    directory.apply(
        EndpointSlice("uid", "shop", "web-x", "web", endpoints=[Endpoint(pod_name="web-1")])
    )
    assert directory.service_of(web) == "web"


def test_a_pod_that_left_its_slice_keeps_its_service() -> None:
    directory = Directory()
    web = pod("web-1", "10.0.0.1", labels={"app": "web"})
    directory.apply(web)
    directory.apply(service("web", selector={"app": "web"}))
    directory.apply(endpoint_slice("web", web))
    assert directory.service_of(web) == "web"
    directory.apply(endpoint_slice("web"))
    assert directory.service_of(web) == "web"
    # A worker that starts only now knows the pod's end and its labels.
    directory = Directory()
    gone = pod("web-1", "10.0.0.1", labels={"app": "web"}, deleted_ms=5)
    for record in (gone, service("web", selector={"app": "web"}), endpoint_slice("web")):
        directory.apply(record)
    assert directory.service_of(gone) == "web"


def test_shared_external_addresses_differ_by_port() -> None:
    directory = Directory()
    directory.apply(service("one", "10.96.0.1", port=80, load_balancer_ips=["203.0.113.9"]))
    directory.apply(service("two", "10.96.0.2", port=443, load_balancer_ips=["203.0.113.9"]))
    names = [
        found.name if (found := directory.service_at(address(ip), port, 0)[0]) else None
        for ip, port in (
            ("203.0.113.9", 80),
            ("203.0.113.9", 443),
            ("203.0.113.9", 22),
            ("10.96.0.1", 9999),
        )
    ]
    assert names == ["one", "two", None, "one"]


def test_a_node_made_again_keeps_its_address() -> None:
    directory = Directory()
    old = replace(node("node-a", "192.168.0.1"), uid="old")
    directory.apply(old)
    directory.apply(replace(old, uid="new", created_ms=5))
    directory.apply(replace(old, deleted_ms=7))
    found = directory.node_at(address("192.168.0.1"))
    assert found is not None
    assert found.uid == "new"
    directory.remove("old")
    assert directory.node_at(address("192.168.0.1")) == found


def test_records_go_away_without_a_trace() -> None:
    directory = Directory()
    records = [
        pod("web-1", "10.0.0.1"),
        service("web", "10.96.0.1", node_port=30080, external_ips=["203.0.113.1"]),
        endpoint_slice("web", pod("web-1")),
        node("node-a", "192.168.0.1", pod_cidrs=["10.0.0.0/24"]),
    ]
    for record in records:
        directory.apply(record)
    assert directory.counts() == {"pod": 1, "service": 1, "endpointslice": 1, "node": 1}
    assert directory.node_port_at(address("192.168.0.1"), 30080, 0)[0] is not None
    assert directory.is_pod_address(address("10.0.0.77"))
    generation = directory.generation
    directory.apply(records[0])
    assert directory.generation == generation  # nothing changed
    for record in records:
        directory.remove(record.uid)
    assert not any(directory.counts().values())
    indexes = {name: value for name, value in vars(directory).items() if type(value) is dict}
    assert not any(indexes.values()), indexes
