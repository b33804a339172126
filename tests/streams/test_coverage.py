from __future__ import annotations

import pytest

from schemas.catalogue import RESOLUTIONS, UNRESOLVED
from schemas.events import Role
from streams.aggregate import contributions
from streams.coverage import coverage_of
from streams.minutes import MinuteSums
from tests.streams.build import BatchBuilder
from tests.streams.test_resolver import cluster


@pytest.mark.parametrize(
    ("remote", "container", "expected"),
    [
        ("10.0.0.1:80", "c-api-1", ("instance", "")),
        ("192.168.0.1:9100", "c-api-1", ("instance", "")),
        ("10.96.0.1:80", "c-api-1", ("service", "service_address")),
        ("192.168.0.1:30080", "c-api-1", ("service", "service_address")),
        ("192.168.0.2:22", "c-api-1", ("node", "node_address")),
        ("10.0.0.77:80", "c-api-1", ("address", "unknown_pod")),
        ("203.0.113.1:80", "c-api-1", ("address", "outside")),
        ("198.51.100.1:80", "c-api-1", ("address", "named_range")),
        ("10.0.0.1:80", "", ("instance", "")),
        ("10.0.0.1:80", "c-new", ("node", "unknown_container")),
        ("203.0.113.1:80", "c-new", ("address", "outside")),
    ],
)
def test_the_worse_end_decides(remote: str, container: str, expected: tuple[str, str]) -> None:
    _, resolver = cluster(cidr_names={"198.51.100.0/24": "office"})
    builder = BatchBuilder()
    row = builder.connection("172.16.0.9:40000", remote, container=container, process="curl")
    builder.open(row).transfer(row, 5)
    sums = MinuteSums()
    batch = builder.batch()
    for part in contributions(batch, resolver.resolve(batch)):
        sums.add(part)
    assert coverage_of(sums) == {("", "node-a", "client", *expected): (1, 5)}
    assert expected[0] in RESOLUTIONS
    assert expected[1] in {"", *UNRESOLVED}


def test_beyond_the_limit_of_names_and_within_a_pod() -> None:
    _, resolver = cluster(external_names=1)
    builder = BatchBuilder()
    rows = [
        builder.connection("10.0.0.3:40000", f"203.0.113.{host}:80", container="c-api-1")
        for host in range(3)
    ]
    inside = builder.connection("10.0.0.3:8080", "127.0.0.1:9", Role.SERVER, container="c-api-1")
    for row in (*rows, inside):
        builder.transfer(row, 5)
    sums = MinuteSums()
    batch = builder.batch()
    for part in contributions(batch, resolver.resolve(batch)):
        sums.add(part)
    assert coverage_of(sums) == {
        ("", "node-a", "client", "address", "outside"): (0, 5),
        ("", "node-a", "client", "address", "too_many_outside"): (0, 10),
    }
