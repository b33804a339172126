from __future__ import annotations

import pytest
from hypothesis import given, settings

from schemas.entities import (
    DeadLetter,
    Entity,
    decode_dead_letter,
    decode_entity,
    encode_dead_letter,
    encode_entity,
)
from schemas.errors import DecodeError
from schemas.pb import entities_pb2
from schemas.topics import MAX_MESSAGE_BYTES
from tests.schemas.strategies import damaged, dead_letters, entities


@given(entities())
def test_entities_survive_the_round_trip(entity: Entity) -> None:
    again = decode_entity(encode_entity(entity))
    assert again == entity
    assert again.key == entity.key


@given(dead_letters)
def test_dead_letters_survive_the_round_trip(letter: DeadLetter) -> None:
    assert decode_dead_letter(encode_dead_letter(letter)) == letter


@settings(max_examples=200)
@given(damaged(entities().map(encode_entity)))
def test_damaged_entities_raise_decode_error_or_still_make_sense(data: bytes) -> None:
    try:
        entity = decode_entity(data)
    except DecodeError:
        return
    assert entity.key


@settings(max_examples=200)
@given(damaged(dead_letters.map(encode_dead_letter)))
def test_damaged_dead_letters_raise_decode_error_or_pass(data: bytes) -> None:
    try:
        letter = decode_dead_letter(data)
    except DecodeError:
        return
    assert isinstance(letter, DeadLetter)


def test_a_dead_letter_fits_the_topic_whatever_it_is_about() -> None:
    room = MAX_MESSAGE_BYTES + 64 * 1024  # what the topics take
    letter = DeadLetter("sink", "t", 0, 1, "\u20ac" * room, b"k" * room, b"p" * room)
    assert len(encode_dead_letter(letter)) < room - 32 * 1024  # the key of the message comes on top
    assert decode_dead_letter(encode_dead_letter(letter)).payload == b"p" * MAX_MESSAGE_BYTES


def test_key_stays_the_same_for_the_same_entity() -> None:
    relation = Entity(
        "service_relation", "", {"client_service": "web.shop", "server_service": "db.shop"}
    )
    seen_again = Entity(
        "service_relation",
        "",
        {"server_service": "db.shop", "client_service": "web.shop"},
        attributes={"protocol": "http"},
        last_seen_ms=5,
    )
    assert relation.key == seen_again.key == b"service_relation\x1f\x1fweb.shop\x1fdb.shop"


def test_unknown_kinds_and_missing_names_are_refused() -> None:
    planet = entities_pb2.Entity(kind="planet", names={"name": "mars"})
    with pytest.raises(DecodeError, match="unknown entity kind 'planet'"):
        decode_entity(planet.SerializeToString())
    half = entities_pb2.Entity(kind="service_relation", names={"client_service": "web"})
    with pytest.raises(DecodeError, match="service_relation: names"):
        decode_entity(half.SerializeToString())
