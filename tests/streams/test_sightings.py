"""Entities are told once, with the earliest sight and all that is known."""

from __future__ import annotations

import numpy as np

from streams.identity import Identity, Relation
from streams.minutes import Contribution, MinuteSums
from streams.sightings import Sightings
from streams.transfers import COLUMNS

CLIENT = Identity("pod", "cart.shop", "cart-1", "shop", "cart", "node-a", "uid-cart")
WEB = Identity("pod", "web.shop", "web-1", "shop", "web", "node-b", "uid-web")
VIRTUAL = Identity("service", "web.shop", "", "shop")
BEHIND_SERVICE = Relation("", "node-a", 1, CLIENT, VIRTUAL)
TO_POD = Relation("", "node-b", 2, WEB, CLIENT)


def sums(*relations: Relation) -> MinuteSums:
    found = MinuteSums()
    zeros = np.zeros((len(relations), len(COLUMNS)), np.uint64)
    found.add(Contribution(0, list(relations), zeros))
    return found


def services(sightings: Sightings, minute_s: int, *relations: Relation) -> dict[str, str]:
    return {
        entity.names["service"]: entity.attributes.get("workload", "")
        for entity in sightings.of_minute(minute_s, sums(*relations))
        if entity.kind == "service"
    }


def test_a_sight_through_a_virtual_address_hides_nothing() -> None:
    both = {"cart.shop": "cart", "web.shop": "web"}
    assert services(Sightings(), 600, BEHIND_SERVICE, TO_POD) == both
    assert services(Sightings(), 600, TO_POD, BEHIND_SERVICE) == both
    sightings = Sightings()
    assert services(sightings, 600, TO_POD) == both
    assert services(sightings, 660, BEHIND_SERVICE) == both


def test_an_earlier_minute_of_another_partition_moves_the_first_sight() -> None:
    sightings = Sightings()
    assert len(sightings.of_minute(600, sums(TO_POD))) == 6
    assert not sightings.of_minute(600, sums(TO_POD))
    earlier = sightings.of_minute(540, sums(TO_POD))
    assert {(e.first_seen_ms, e.last_seen_ms) for e in earlier} == {(540_000, 660_000)}
    assert not sightings.of_minute(540, sums(TO_POD))
    later = sightings.of_minute(660, sums(TO_POD))
    assert {(e.first_seen_ms, e.last_seen_ms) for e in later} == {(540_000, 720_000)}
