"""Who talks to whom, scenario by scenario."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from schemas.errors import ConfigError
from schemas.events import ConnectionFlag, Role
from schemas.kubernetes import Container
from streams.directory import Directory
from streams.naming import Naming, NamingSettings
from streams.resolver import Resolver
from tests.streams.build import (
    MINUTE_NS,
    MINUTE_S,
    SECOND_NS,
    BatchBuilder,
    endpoint_slice,
    node,
    pod,
    service,
)

if TYPE_CHECKING:
    from streams.identity import Identity, Relation

NOW_MS = MINUTE_S * 1000


def cluster(**settings: object) -> tuple[Directory, Resolver]:
    directory = Directory()
    web = [pod("web-1", "10.0.0.1", "fd00::1"), pod("web-2", "10.0.0.2")]
    api = pod("api-1", "10.0.0.3")
    job = pod("job-x", "10.0.0.4", workload_name="report")
    agent = pod(
        "agent-1",
        "192.168.0.1",
        host_network=True,
        host_ips=["192.168.0.1"],
        containers=[Container("main", "c-agent", ports=[9100])],
    )
    records = (
        *web,
        api,
        job,
        agent,
        service("web", "10.96.0.1", "fd96::1"),
        service("api", "10.96.0.2", node_port=30080),
        service("agent", "None"),
        endpoint_slice("web", *web),
        endpoint_slice("api", api),
        endpoint_slice("agent", agent),
        node("node-a", "192.168.0.1", pod_cidrs=["10.0.0.0/24"]),
        node("node-b", "192.168.0.2"),
    )
    for record in records:
        directory.apply(record)
    return directory, Resolver(directory, NamingSettings(**settings))  # type: ignore[arg-type]


def one(resolver: Resolver, builder: BatchBuilder, row: int = 0) -> Relation:
    resolution = resolver.resolve(builder.batch())
    return resolution.relations[resolution.index[row]]


def names(end: Identity) -> tuple[str, str]:
    return end.service, end.instance


def remote_of(remote: str, role: Role = Role.CLIENT, **options: object) -> tuple[str, str]:
    _, resolver = cluster()
    builder = BatchBuilder()
    row = builder.connection("10.0.0.3:40000", remote, role, **options)  # type: ignore[arg-type]
    builder.open(row)
    return names(one(resolver, builder).remote)


def test_pod_to_pod() -> None:
    _, resolver = cluster()
    builder = BatchBuilder()
    row = builder.connection("10.0.0.3:40000", "10.0.0.1:80", container="c-api-1")
    builder.open(row)
    relation = one(resolver, builder)
    assert relation.role == 1
    assert names(relation.local) == ("api.shop", "api-1")
    assert names(relation.remote) == ("web.shop", "web-1")
    assert relation.local.layer == "KUBERNETES"


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        ("10.0.0.2:80", ("web.shop", "web-2")),
        ("[fd00::1]:80", ("web.shop", "web-1")),
        ("10.96.0.1:80", ("web.shop", "")),
        ("[fd96::1]:80", ("web.shop", "")),
        ("192.168.0.2:30080", ("api.shop", "")),
        ("192.168.0.1:9100", ("agent.shop", "agent-1")),
        ("192.168.0.1:22", ("node-a", "node-a")),
        ("10.0.0.4:80", ("report.shop", "job-x")),
        ("203.0.113.7:443", ("203.0.113.7", "203.0.113.7")),
        ("[2001:db8::7]:443", ("2001:db8::7", "2001:db8::7")),
    ],
)
def test_remote_ends_of_clients(remote: str, expected: tuple[str, str]) -> None:
    assert remote_of(remote) == expected


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        ("10.0.0.2:45678", ("web.shop", "web-2")),
        # The ports of clients are accidental: neither a host-network pod nor a node port.
        ("192.168.0.1:9100", ("node-a", "node-a")),
        ("192.168.0.2:30080", ("node-b", "node-b")),
    ],
)
def test_remote_ends_of_servers(remote: str, expected: tuple[str, str]) -> None:
    assert remote_of(remote, Role.SERVER) == expected


def test_translation_beats_the_virtual_address() -> None:
    assert remote_of("10.96.0.1:80", translated="10.0.0.2:8080") == ("web.shop", "web-2")
    assert remote_of("192.168.0.2:80", translated="192.168.0.1:9100") == ("agent.shop", "agent-1")


def test_host_network_pods_resolve_by_container_only() -> None:
    _, resolver = cluster()
    builder = BatchBuilder()
    known = builder.connection(
        "192.168.0.1:9100", "10.0.0.1:40000", Role.SERVER, container="c-agent"
    )
    unknown = builder.connection("192.168.0.1:22", "10.0.0.1:40001", Role.SERVER, process="sshd")
    builder.open(known, accept=True).open(unknown, accept=True)
    assert names(one(resolver, builder, known).local) == ("agent.shop", "agent-1")
    assert names(one(resolver, builder, unknown).local) == ("node-a", "sshd")


def test_local_pod_by_address_when_no_container_is_known() -> None:
    _, resolver = cluster()
    builder = BatchBuilder()
    builder.open(builder.connection("10.0.0.2:80", "10.0.0.3:40000", Role.SERVER), accept=True)
    assert names(one(resolver, builder).local) == ("web.shop", "web-2")


def test_a_container_nobody_knows_yet_is_waited_for_though_its_address_is_known() -> None:
    """The address may have been another pod's until just now."""
    directory, resolver = cluster()
    builder = BatchBuilder()
    row = builder.connection("10.0.0.1:40000", "10.0.0.3:80", container="c-next-1")
    builder.open(row)
    resolution = resolver.resolve(builder.batch())
    assert resolution.missing == {"c-next-1"}
    assert names(resolution.relations[0].local) == ("node-a", "node-a")
    directory.apply(pod("next-1", "10.0.0.1"))
    resolution = resolver.resolve(builder.batch())
    assert resolution.missing == set()
    assert names(resolution.relations[0].local) == ("next.shop", "next-1")


def test_cluster_name_goes_in_front() -> None:
    _, resolver = cluster()
    builder = BatchBuilder(cluster="prod")
    builder.open(builder.connection("10.0.0.3:40000", "10.96.0.1:80"))
    relation = one(resolver, builder)
    assert relation.local.service == "prod::api.shop"
    assert relation.remote.service == "prod::web.shop"


def test_a_reused_address_means_the_pod_of_its_time_within_one_batch() -> None:
    directory = Directory(tolerance_ms=0)
    directory.apply(pod("old-1", "10.0.0.9", created_ms=1, deleted_ms=NOW_MS + 500))
    directory.apply(pod("new-1", "10.0.0.9", created_ms=NOW_MS + 500))
    resolver = Resolver(directory, NamingSettings())
    for _ in range(2):  # the second time from the cache
        builder = BatchBuilder()
        before = builder.connection("10.0.0.3:40000", "10.0.0.9:80")
        after = builder.connection("10.0.0.3:40001", "10.0.0.9:80")
        builder.open(after, at=MINUTE_NS + SECOND_NS * 6 // 10)
        builder.open(before, at=MINUTE_NS + SECOND_NS * 4 // 10)
        assert one(resolver, builder, before).remote.instance == "old-1"
        assert one(resolver, builder, after).remote.instance == "new-1"


def test_changes_of_the_directory_are_seen() -> None:
    directory, resolver = cluster()
    builder = BatchBuilder()
    builder.open(builder.connection("10.0.0.88:40000", "10.0.0.77:80", container="c-late"))
    resolution = resolver.resolve(builder.batch())
    assert len(resolution.missing) == 2  # an unknown container and an unknown pod address
    directory.apply(pod("late-1", "10.0.0.77", containers=[Container("main", "c-late")]))
    resolution = resolver.resolve(builder.batch())
    assert not resolution.missing
    assert resolution.relations[0].remote.instance == "late-1"
    assert resolution.relations[0].internal


def test_one_pod_behind_several_ports_and_processes_is_one_relation() -> None:
    _, resolver = cluster()
    builder = BatchBuilder()
    for port in (80, 8080):
        for process in ("worker", "main"):
            builder.open(
                builder.connection(
                    "10.0.0.3:40000", f"10.0.0.1:{port}", container="c-api-1", process=process
                )
            )
    resolution = resolver.resolve(builder.batch())
    assert len(resolution.relations) == 1
    assert resolution.index.tolist() == [0, 0, 0, 0]


def test_inside_one_pod() -> None:
    _, resolver = cluster()
    builder = BatchBuilder()
    own_address = builder.connection("10.0.0.1:40000", "10.0.0.1:80", container="c-web-1")
    loopback = builder.connection("127.0.0.1:40000", "127.0.0.1:80", container="c-web-1")
    other = builder.connection("10.0.0.1:40000", "10.0.0.2:80", container="c-web-1")
    for row in (own_address, loopback, other):
        builder.open(row)
    resolution = resolver.resolve(builder.batch())
    internal = [resolution.relations[place].internal for place in resolution.index]
    assert internal == [True, True, False]


def test_processes_of_one_host_find_each_other() -> None:
    resolver = Resolver(Directory(), NamingSettings(process_services=True))
    builder = BatchBuilder()
    client = builder.connection("127.0.0.1:40000", "127.0.0.1:80", process="curl", netns=7)
    server = builder.connection(
        "127.0.0.1:80", "127.0.0.1:40000", Role.SERVER, process="nginx", netns=7
    )
    stranger = builder.connection("127.0.0.1:41000", "127.0.0.1:80", process="curl", netns=8)
    for row in (client, server, stranger):
        builder.open(row)
    assert names(one(resolver, builder, client).remote) == ("nginx", "node-a")
    assert names(one(resolver, builder, server).remote) == ("curl", "node-a")
    assert names(one(resolver, builder, stranger).remote) == ("127.0.0.1", "127.0.0.1")
    # Later batches: the server's listening end, and the client of a known connection.
    later = BatchBuilder(sequence=1)
    new = later.connection("127.0.0.1:40001", "127.0.0.1:80", process="wget", netns=7)
    old = later.connection("127.0.0.1:80", "127.0.0.1:40000", Role.SERVER, process="nginx", netns=7)
    later.open(new).transfer(old, 5)
    assert names(one(resolver, later, new).remote) == ("nginx", "node-a")
    assert names(one(resolver, later, old).remote) == ("curl", "node-a")
    # The same numbers on another node are other processes.
    elsewhere = BatchBuilder(node="node-b")
    row = elsewhere.connection("127.0.0.1:40001", "127.0.0.1:80", process="wget", netns=7)
    elsewhere.open(row)
    assert names(one(resolver, elsewhere, row).remote) == ("127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize("asked", ["10.0.0.3:8080", "10.96.0.2:80"])
def test_a_pod_learns_which_process_of_its_node_calls(asked: str) -> None:
    """Its own address says no more than the node's, and that of a bridge not even that."""
    _, resolver = cluster()
    for source, seen in (("192.168.0.1", "192.168.0.1"), ("10.0.0.254", "10.0.0.254")):
        builder = BatchBuilder()
        client = builder.connection(
            f"{source}:40000", asked, container="c-agent", translated="10.0.0.3:8080", netns=1
        )
        server = builder.connection(
            "10.0.0.3:8080", f"{seen}:40000", Role.SERVER, container="c-api-1", netns=2
        )
        stranger = builder.connection(
            "10.0.0.3:8080", f"{seen}:40001", Role.SERVER, container="c-api-1", netns=2
        )
        builder.open(client).open(server, accept=True).open(stranger, accept=True)
        assert names(one(resolver, builder, client).remote) == ("api.shop", "api-1")
        assert names(one(resolver, builder, server).remote) == ("agent.shop", "agent-1")
        assert names(one(resolver, builder, stranger).remote) != ("agent.shop", "agent-1")


def test_who_calls_a_service_from_its_own_address_is_not_the_service() -> None:
    """With IPVS the node has that address; the client's own row says whose process it is."""
    _, resolver = cluster()
    builder = BatchBuilder()
    client = builder.connection(
        "10.96.0.2:40000", "10.96.0.2:80", process="kubelet", translated="10.0.0.3:8080", netns=1
    )
    server, stranger = (
        builder.connection(
            *("10.0.0.3:8080", f"192.168.0.1:{port - 39_000}", Role.SERVER),
            container="c-api-1",
            translated=f"10.96.0.2:{port}",
            netns=2,
        )
        for port in (40_000, 40_001)
    )
    builder.open(client).open(server, accept=True).open(stranger, accept=True)
    assert names(one(resolver, builder, client).remote) == ("api.shop", "api-1")
    assert names(one(resolver, builder, client).local) == ("node-a", "kubelet")
    assert names(one(resolver, builder, server).remote) == ("node-a", "kubelet")
    assert one(resolver, builder, stranger).remote.unresolved == "service_address"


def test_a_pod_that_a_translated_source_hides_is_found_behind_it() -> None:
    _, resolver = cluster()
    builder = BatchBuilder()
    row = builder.connection(
        "10.0.0.3:8080",
        "192.168.0.1:1024",
        Role.SERVER,
        container="c-api-1",
        translated="10.0.0.1:40000",
    )
    builder.open(row, accept=True)
    assert names(one(resolver, builder, row).remote) == ("web.shop", "web-1")


def test_of_an_address_that_changed_hands_the_other_ends_container_knows_the_holder() -> None:
    """Both pods are older than the event by their objects, whose times are of seconds."""
    directory, resolver = cluster()
    old = pod("old-1", "10.0.0.9", created_ms=NOW_MS - 9000, deleted_ms=NOW_MS + 900)
    new = pod("new-1", "10.0.0.9", created_ms=NOW_MS - 1000)
    directory.apply(old)
    directory.apply(new)
    builder = BatchBuilder()

    def client(**values: Any) -> int:
        row = builder.connection("10.0.0.3:40000", "10.0.0.9:80", container="c-api-1", **values)
        builder.open(row, at=values.get("opened", MINUTE_NS))
        return row

    known = [client(remote_container=f"c-{name}") for name in ("new-1", "old-1")]
    nameless, far = client(remote_container="c-unknown"), client()
    later = client(opened=MINUTE_NS + SECOND_NS)
    found = [names(one(resolver, builder, row).remote)[1] for row in known]
    assert found == ["new-1", "old-1"]
    # Without the container nobody knows; and one that is no pod's is none of theirs either.
    contested, stranger = (one(resolver, builder, row).remote for row in (far, nameless))
    assert (contested.service, contested.unresolved) == ("10.0.0.9", "contested_address")
    assert (stranger.service, stranger.unresolved) == ("10.0.0.9", "unknown_container")
    # What was made after the end of the old one, to the one that is left.
    assert names(one(resolver, builder, later).remote)[1] == "new-1"
    nobody = builder.connection("10.0.0.9:80", "10.0.0.3:40009", Role.SERVER, process="x")
    builder.open(nobody, accept=True)
    local = one(resolver, builder, nobody).local
    assert (local.kind, local.unresolved) == ("process", "contested_address")


def test_pods_of_one_service_that_follow_each_other_keep_its_name() -> None:
    directory, resolver = cluster()
    for number in (8, 9):
        values = {"created_ms": NOW_MS - 1000, "workload_name": "web"}
        labels = {"app": "web", "number": str(number)}
        directory.apply(pod(f"web-{number}", "10.0.0.9", labels=labels, **values))
    builder = BatchBuilder()
    row = builder.connection("10.0.0.3:40000", "10.0.0.9:80", container="c-api-1")
    builder.open(row)
    found = one(resolver, builder, row).remote
    assert (found.service, found.instance) == ("web.shop", "")
    assert (found.kind, found.unresolved) == ("service", "contested_address")
    # What is true of both is known: the scope may ask for it.
    assert (dict(found.labels), found.node, found.workload) == ({"app": "web"}, "node-a", "web")


def test_an_old_connection_to_outside_asks_nothing_of_the_others() -> None:
    """Names of outside addresses hold for an hour; what began in another one is asked for alone."""
    _, resolver = cluster()
    asked: Counter[int] = Counter()
    remote = resolver._naming.remote

    def counted(*arguments: Any) -> Any:
        asked[arguments[3]] += 1
        return remote(*arguments)

    resolver._naming.remote = counted  # type: ignore[method-assign]
    hour = 3_600 * SECOND_NS
    for old in (0, 0, 5, 5):
        builder = BatchBuilder()
        for place in range(500):
            opened = MINUTE_NS - (hour if place < old else 0)
            peer = f"203.0.{place >> 8}.{place & 255}:443"
            row = builder.connection(f"10.0.0.1:{40_000 + place}", peer, opened=opened)
            builder.transfer(row, 1).transfer(row, 1)
        # The same address, then and now
        row = builder.connection("10.0.0.1:39000", "203.0.0.0:443", opened=MINUTE_NS)
        builder.transfer(row, 1)
        resolution = resolver.resolve(builder.batch())
        remotes = [resolution.relations[place].remote.service for place in resolution.index]
        assert remotes[:2] == ["203.0.0.0", "203.0.0.1"]
        assert remotes[-1] == "203.0.0.0"
    now = MINUTE_NS // 1_000_000
    assert asked[now] <= 500 + 5 * 2
    assert asked[now - 3_600_000] <= 5 * 2


def test_an_address_that_changes_hands_within_a_batch_is_asked_once_for_each() -> None:
    directory, resolver = cluster()
    at = MINUTE_NS // 1_000_000
    directory.apply(pod("old-1", "10.0.0.9", created_ms=at - 50_000, deleted_ms=at + 1_000))
    directory.apply(pod("new-1", "10.0.0.9", created_ms=at + 1_000))
    builder = BatchBuilder()
    expected = []
    for place in range(200):
        second = place * 7 % 3
        opened = MINUTE_NS + second * SECOND_NS
        row = builder.connection(f"10.0.0.3:{40_000 + place}", "10.0.0.9:80", opened=opened)
        builder.transfer(row, 1, at=MINUTE_NS + 5 * SECOND_NS)
        expected.append("new-1" if second else "old-1")
    resolution = resolver.resolve(builder.batch())
    found = [resolution.relations[place].remote.instance for place in resolution.index]
    assert found == expected


def test_a_connection_keeps_the_name_of_its_begin() -> None:
    directory = Directory(tolerance_ms=0)
    directory.apply(pod("old-1", "10.0.0.9", created_ms=1, deleted_ms=NOW_MS - 5000))
    directory.apply(pod("new-1", "10.0.0.9", created_ms=NOW_MS - 4000))
    builder = BatchBuilder()
    opened = MINUTE_NS - 10 * SECOND_NS
    row = builder.connection("10.0.0.3:40000", "10.0.0.9:80", opened=opened)
    builder.close(row)
    found = one(Resolver(directory, NamingSettings()), builder, row).remote
    assert found.instance == "old-1"


def test_what_the_proxy_of_a_node_does_with_a_pods_address_is_the_pods() -> None:
    """Ambient: web-1 and job-x are in the mesh, api-1 is not; the proxy is in everybody's way."""
    directory, resolver = cluster()
    proxy = pod("ztunnel-a", "10.0.0.8", labels={"app": "ztunnel"})
    directory.apply(proxy)
    ztunnel = "c-ztunnel-a"
    builder = BatchBuilder()

    def add(
        local: str, remote: str, role: Role, container: str, other: str, inside: bool = False
    ) -> int:
        row = builder.connection(
            *(local, remote, role),
            container=container,
            remote_container=other,
            flags=ConnectionFlag.INSIDE if inside else ConnectionFlag(0),
        )
        builder.open(row, accept=role == Role.SERVER)
        return row

    client, server = Role.CLIENT, Role.SERVER
    hops = [
        add("10.0.0.1:40000", "127.0.0.1:15001", client, "c-web-1", ztunnel, True),
        add("127.0.0.1:15001", "10.0.0.1:40000", server, ztunnel, "c-web-1", True),
        # As it is where nobody saw that the two are one connection.
        add("127.0.0.1:15001", "10.0.0.1:40009", server, ztunnel, ""),
        # To the application it comes from the client's own address.
        add("10.0.0.1:40002", "10.0.0.4:80", client, ztunnel, "c-job-x", True),
        add("10.0.0.4:80", "10.0.0.1:40002", server, "c-job-x", ztunnel, True),
    ]
    ways = {
        add("10.0.0.1:40001", "10.0.0.4:15008", client, ztunnel, ztunnel): ("web-1", "job-x"),
        add("10.0.0.4:15008", "10.0.0.1:40001", server, ztunnel, ztunnel): ("job-x", "web-1"),
        # Of who is not in the mesh.
        add("10.0.0.3:40003", "10.0.0.4:80", client, "c-api-1", ztunnel): ("api-1", "job-x"),
        add("10.0.0.4:15006", "10.0.0.3:40003", server, ztunnel, "c-api-1"): ("job-x", "api-1"),
        # Its own.
        add("10.0.0.8:40000", "10.0.0.3:80", client, ztunnel, "c-api-1"): ("ztunnel-a", "api-1"),
        add("10.0.0.3:80", "10.0.0.8:40000", server, "c-api-1", ztunnel): ("api-1", "ztunnel-a"),
    }
    resolution = resolver.resolve(builder.batch())
    found = [resolution.relations[place] for place in resolution.index]
    assert [found[row].internal for row in hops] == [True] * len(hops)
    for row, expected in ways.items():
        assert (found[row].local.instance, found[row].remote.instance) == expected
        assert not found[row].internal
    nobody = BatchBuilder()
    row = nobody.connection("10.0.0.99:1", "10.0.0.3:80", container=ztunnel)
    nobody.open(row)
    resolution = resolver.resolve(nobody.batch())
    assert resolution.relations[0].local.instance == "ztunnel-a"
    assert len(resolution.missing) == 1


def test_node_mode_names_the_node() -> None:
    resolver = Resolver(Directory(), NamingSettings())
    builder = BatchBuilder()
    with_name = builder.connection("192.168.0.1:40000", "203.0.113.1:80", process="curl")
    nameless = builder.connection("192.168.0.1:40001", "203.0.113.1:80")
    builder.open(with_name).open(nameless)
    assert names(one(resolver, builder, with_name).local) == ("node-a", "curl")
    assert names(one(resolver, builder, nameless).local) == ("node-a", "node-a")


def test_unknown_role_goes_by_the_lower_port() -> None:
    _, resolver = cluster()
    builder = BatchBuilder()
    server = builder.connection("10.0.0.1:80", "10.0.0.3:40000", Role.UNKNOWN)
    client = builder.connection("10.0.0.3:40000", "10.0.0.1:80", Role.UNKNOWN)
    builder.transfer(server, 1).transfer(client, 1)
    assert one(resolver, builder, server).role == 2
    assert one(resolver, builder, client).role == 1


def test_outside_addresses_are_capped_per_hour_and_ranges_named() -> None:
    _, resolver = cluster(external_names=2, cidr_names={"198.51.100.0/24": "partner"})
    builder = BatchBuilder()
    remotes = ["203.0.113.1", "203.0.113.2", "203.0.113.3", "198.51.100.9", "203.0.113.1"]
    for place, remote in enumerate(remotes):
        builder.open(builder.connection(f"10.0.0.3:{40_000 + place}", f"{remote}:443"))
    resolution = resolver.resolve(builder.batch())
    found = [names(resolution.relations[place].remote) for place in resolution.index]
    assert sum(name == "other-external" for name, _ in found) == 1
    assert found[3][0] == "partner"
    assert found[0] == found[4] == ("203.0.113.1", "203.0.113.1")
    later = BatchBuilder()
    row = later.connection("10.0.0.3:40000", "203.0.113.99:443")
    later.open(row, at=MINUTE_NS + 3600 * SECOND_NS)
    assert names(one(resolver, later).remote) == ("203.0.113.99", "203.0.113.99")


def test_a_clock_far_ahead_does_not_stop_the_naming_of_outside_addresses() -> None:
    naming = Naming(Directory(), NamingSettings(external_names=2))

    def services(hour: int) -> list[str]:
        addresses = [bytes(10) + b"\xff\xff\xcb\x00\x71" + bytes([hour % 100 + n]) for n in (1, 2)]
        return [naming.remote("", a, 0, hour * 3_600_000)[0].service for a in addresses]

    services(10_000_000)  # the year 3110
    for hour in range(480_000, 480_020):
        assert "other-external" not in services(hour)


def test_a_range_that_is_none_names_the_setting() -> None:
    with pytest.raises(ConfigError, match="cidr_names"):
        Naming(Directory(), NamingSettings(cidr_names={"nonsense": "x"}))
