from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import EventBatch, Role
from schemas.hashing import compact
from streams.directory import Directory
from streams.endpoints import OTHER, UNKNOWN, EndpointNames, EndpointSettings
from streams.naming import NamingSettings
from streams.resolver import Resolver
from tests.streams.build import MINUTE_NS, SECOND_NS, BatchBuilder

HOUR_NS = 3600 * SECOND_NS


def named(names: EndpointNames, batch: EventBatch) -> list[str]:
    found = names.name(batch, Resolver(Directory(), NamingSettings()).resolve(batch))
    return [found.names[place] for place in found.requests.endpoint.tolist()]


def calls(*paths: str, peer: str = "203.0.113.1", at: int = MINUTE_NS, **values: Any) -> EventBatch:
    builder = BatchBuilder(watermark_ns=at)
    c = builder.connection("10.0.0.1:40000", f"{peer}:80")
    for path in paths:
        builder.request(c, path, at=at, **values)
    return builder.batch()


def test_the_path_is_the_name() -> None:
    names = EndpointNames(EndpointSettings())
    assert named(names, calls("/a/1", "/b", "/a/2", "", "/a")) == [
        "/a/{id}",
        "/b",
        "/a/{id}",
        UNKNOWN,
        "/a",
    ]


def test_the_method_is_part_of_the_name_if_so_configured() -> None:
    names = EndpointNames(EndpointSettings(method_path=True))
    assert named(names, calls("/a", "")) == ["GET:/a", UNKNOWN]
    assert named(names, calls("/a", method="POST")) == ["POST:/a"]
    assert named(names, calls("/a", method="")) == ["/a"]


@pytest.mark.parametrize("method_path", [False, True])
def test_grpc_paths_stay(method_path: bool) -> None:
    names = EndpointNames(EndpointSettings(method_path))
    path = "/shop.v1.Cart20240131/Get123456"
    assert named(names, calls(path, method="POST", grpc=0)) == [path]


def test_connect_is_named_by_its_authority() -> None:
    names = EndpointNames(EndpointSettings())
    assert named(names, calls("db.example.com:443", method="CONNECT")) == ["db.example.com:443"]
    found = calls("", "", method="CONNECT", host="cache:6379")
    assert named(names, found) == ["cache:6379"] * 2
    assert named(names, calls("", method="CONNECT")) == [UNKNOWN]
    mixed = BatchBuilder()
    c = mixed.connection("10.0.0.1:40000", "203.0.113.1:80")
    mixed.request(c, "", method="CONNECT", host="cache:6379").request(c, "", host="cache:6379")
    assert named(names, mixed.batch()) == ["cache:6379", UNKNOWN]


def test_beyond_the_limit_all_share_one_name() -> None:
    names = EndpointNames(EndpointSettings(limit=2))
    assert named(names, calls("/a", "/b", "/c", "/d", "/c")) == ["/a", "/b", *[OTHER] * 3]
    assert names.others == 3
    assert named(names, calls("/e", "/b", "")) == [OTHER, "/b", UNKNOWN]
    assert names.others == 4
    # Another service has endpoints of its own, and so has another hour.
    assert named(names, calls("/e", peer="203.0.113.2")) == ["/e"]
    assert named(names, calls("/e", at=MINUTE_NS + HOUR_NS)) == ["/e"]
    assert named(names, calls("/e")) == [OTHER]


def test_all_services_together_have_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.endpoints._NAMES_PER_HOUR", 2)
    names = EndpointNames(EndpointSettings())
    assert named(names, calls("/a")) == ["/a"]
    assert named(names, calls("/a", peer="203.0.113.2")) == ["/a"]
    assert named(names, calls("/a", peer="203.0.113.3")) == [OTHER]
    assert named(names, calls("/b")) == [OTHER]
    assert named(names, calls("/a")) == ["/a"]


def test_the_limit_is_that_of_the_service_called() -> None:
    names = EndpointNames(EndpointSettings(limit=1))
    builder = BatchBuilder()
    away = builder.connection("10.0.0.1:40000", "203.0.113.1:80", Role.CLIENT)
    also = builder.connection("10.0.0.1:40000", "203.0.113.2:80", Role.CLIENT)
    here = builder.connection("10.0.0.1:80", "203.0.113.1:40000", Role.SERVER)
    there = builder.connection("10.0.0.1:80", "203.0.113.2:40000", Role.SERVER)
    for row in (away, also, here, there):
        builder.request(row, "/a")
    builder.request(here, "/b")
    assert named(names, builder.batch()) == ["/a"] * 4 + [OTHER]


def test_the_batch_itself_stays_as_it_was() -> None:
    batch = calls("/a/1")
    before = list(batch.names)
    named(EndpointNames(EndpointSettings()), batch)
    assert list(batch.names) == before
    assert batch.requests.endpoint.tolist() == [2**32 - 1]
    empty = BatchBuilder().batch()
    resolution = Resolver(Directory(), NamingSettings()).resolve(empty)
    assert EndpointNames(EndpointSettings()).name(empty, resolution) is empty


def test_random_paths_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.endpoints._REMEMBERED_PATHS", 2_000)
    names = EndpointNames(EndpointSettings(limit=100))
    chance = random.Random(1)

    def flood() -> None:
        for _ in range(5):
            named(names, calls(*(f"/{chance.random()}/{word()}" for _ in range(1_000))))

    def word() -> str:
        return "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=12))

    flood()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    flood()
    flood()
    assert tracemalloc.get_traced_memory()[0] - before < 1_000_000
    tracemalloc.stop()
    assert names.others > 3 * 5 * 1_000 - 200


@given(st.lists(st.integers(0, 99)), st.sampled_from([100, 10**9]))
def test_compact_is_what_sets_say(values: list[int], size: int) -> None:
    found, index = compact(np.array(values, np.uint32), size)
    assert found.tolist() == sorted(set(values))
    assert Counter(found[index].tolist()) == Counter(values)
    assert found[index].tolist() == values
