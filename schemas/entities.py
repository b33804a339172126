"""Entities, and dead letters: the two small row-shaped topics after the stream workers."""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf.message import DecodeError as ProtobufDecodeError

from schemas.catalogue import SCOPE_BY_NAME
from schemas.errors import DecodeError
from schemas.pb import dead_letter_pb2, entities_pb2
from schemas.topics import MAX_MESSAGE_BYTES

__all__ = [
    "DeadLetter",
    "Entity",
    "decode_dead_letter",
    "decode_entity",
    "encode_dead_letter",
    "encode_entity",
]


# A letter that the broker refuses would stop the stage that has to send it, again and again.
_LONGEST_REASON = 2_000
_LONGEST_KEY = 8_000
_LONGEST_PAYLOAD = MAX_MESSAGE_BYTES


@dataclass(slots=True)
class Entity:
    """Something that exists: a service, a pod, an endpoint, or a relation of two."""

    kind: str
    cluster: str
    names: dict[str, str]
    attributes: dict[str, str] = field(default_factory=dict)
    first_seen_ms: int = 0
    last_seen_ms: int = 0

    @property
    def key(self) -> bytes:
        """The topic key: stays the same for the same entity."""
        ordered = (self.names.get(name, "") for name in SCOPE_BY_NAME[self.kind].name_keys)
        return "\x1f".join((self.kind, self.cluster, *ordered)).encode()


def encode_entity(entity: Entity) -> bytes:
    """Return the value of a ``podwire.entities.v1`` message."""
    return entities_pb2.Entity(
        kind=entity.kind,
        cluster=entity.cluster,
        names=entity.names,
        attributes=entity.attributes,
        first_seen_ms=entity.first_seen_ms,
        last_seen_ms=entity.last_seen_ms,
    ).SerializeToString()


def decode_entity(data: bytes) -> Entity:
    """Read a value of ``podwire.entities.v1``.

    Raises:
        DecodeError: If the bytes are no entity, or one of an unknown kind.
    """
    try:
        message = entities_pb2.Entity.FromString(data)
    except (ProtobufDecodeError, TypeError) as error:
        raise DecodeError(f"no Entity: {error}") from error
    scope = SCOPE_BY_NAME.get(message.kind)
    if scope is None:
        raise DecodeError(f"unknown entity kind {message.kind!r}")
    if set(message.names) != set(scope.name_keys):
        raise DecodeError(f"{message.kind}: names {sorted(message.names)}")
    return Entity(
        kind=message.kind,
        cluster=message.cluster,
        names=dict(message.names),
        attributes=dict(message.attributes),
        first_seen_ms=message.first_seen_ms,
        last_seen_ms=message.last_seen_ms,
    )


@dataclass(slots=True)
class DeadLetter:
    """A message that could not be decoded, whole as far as it fits a message, and why."""

    stage: str
    topic: str
    partition: int
    offset: int
    reason: str
    key: bytes = b""
    payload: bytes = b""
    time_ms: int = 0


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """Return the value of a ``podwire.dead-letter.v1`` message, cut where it would not fit one."""
    return dead_letter_pb2.DeadLetter(
        stage=letter.stage,
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        reason=letter.reason[:_LONGEST_REASON],
        key=letter.key[:_LONGEST_KEY],
        payload=letter.payload[:_LONGEST_PAYLOAD],
        time_ms=letter.time_ms,
    ).SerializeToString()


def decode_dead_letter(data: bytes) -> DeadLetter:
    """Read a value of ``podwire.dead-letter.v1``.

    Raises:
        DecodeError: If the bytes are no dead letter.
    """
    try:
        message = dead_letter_pb2.DeadLetter.FromString(data)
    except (ProtobufDecodeError, TypeError) as error:
        raise DecodeError(f"no DeadLetter: {error}") from error
    return DeadLetter(
        stage=message.stage,
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        reason=message.reason,
        key=message.key,
        payload=message.payload,
        time_ms=message.time_ms,
    )
