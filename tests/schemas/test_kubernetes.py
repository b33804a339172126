from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import DecodeError
from schemas.kubernetes import (
    Container,
    Endpoint,
    EndpointSlice,
    KubernetesObject,
    Node,
    Pod,
    Service,
    ServicePort,
    decode_object,
    encode_object,
)
from schemas.pb import kubernetes_pb2 as wire
from schemas.topics import ENDPOINTSLICES, KUBERNETES, NODES, PODS, SERVICES
from tests.schemas.strategies import damaged, records

uids = st.text(min_size=1, max_size=12)
OBJECTS: dict[str, st.SearchStrategy[Any]] = {
    PODS.name: records(Pod, uid=uids, containers=st.lists(records(Container), max_size=3)),
    SERVICES.name: records(Service, uid=uids, ports=st.lists(records(ServicePort), max_size=3)),
    ENDPOINTSLICES.name: records(
        EndpointSlice, uid=uids, endpoints=st.lists(records(Endpoint), max_size=3)
    ),
    NODES.name: records(Node, uid=uids),
}
any_object = st.sampled_from(sorted(OBJECTS)).flatmap(
    lambda topic: st.tuples(st.just(topic), OBJECTS[topic])
)


def test_every_metadata_topic_has_a_record() -> None:
    assert set(OBJECTS) == {topic.name for topic in KUBERNETES}


@given(any_object)
def test_objects_survive_the_round_trip(case: tuple[str, KubernetesObject]) -> None:
    topic, record = case
    again = decode_object(topic, encode_object(record))
    assert again == record
    assert encode_object(again) == encode_object(record)


@settings(max_examples=300)
@given(st.sampled_from(sorted(OBJECTS)).flatmap(
    lambda topic: st.tuples(st.just(topic), damaged(OBJECTS[topic].map(encode_object)))
))  # fmt: skip
def test_damaged_objects_raise_decode_error_or_still_make_sense(case: tuple[str, bytes]) -> None:
    topic, data = case
    try:
        record = decode_object(topic, data)
    except DecodeError:
        return
    assert record.uid
    for item in fields(record):
        assert isinstance(getattr(record, item.name), str | int | bool | list | dict)


@pytest.mark.parametrize(
    "kind", [Pod, Container, Service, ServicePort, EndpointSlice, Endpoint, Node]
)
def test_fields_are_those_of_the_public_message(kind: type[Any]) -> None:
    descriptor = getattr(wire, kind.__name__).DESCRIPTOR
    assert [item.name for item in fields(kind)] == [field.name for field in descriptor.fields]


@pytest.mark.parametrize("topic", sorted(OBJECTS))
def test_an_object_without_uid_is_refused(topic: str) -> None:
    with pytest.raises(DecodeError, match="without uid"):
        decode_object(topic, b"")
