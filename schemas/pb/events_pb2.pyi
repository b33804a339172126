from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventBatch(_message.Message):
    __slots__ = ("header", "connections", "opens", "closes", "transfers", "requests", "drops", "parties")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    OPENS_FIELD_NUMBER: _ClassVar[int]
    CLOSES_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DROPS_FIELD_NUMBER: _ClassVar[int]
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    header: BatchHeader
    connections: Connections
    opens: Opens
    closes: Closes
    transfers: Transfers
    requests: Requests
    drops: Drops
    parties: Parties
    def __init__(self, header: _Optional[_Union[BatchHeader, _Mapping]] = ..., connections: _Optional[_Union[Connections, _Mapping]] = ..., opens: _Optional[_Union[Opens, _Mapping]] = ..., closes: _Optional[_Union[Closes, _Mapping]] = ..., transfers: _Optional[_Union[Transfers, _Mapping]] = ..., requests: _Optional[_Union[Requests, _Mapping]] = ..., drops: _Optional[_Union[Drops, _Mapping]] = ..., parties: _Optional[_Union[Parties, _Mapping]] = ...) -> None: ...

class BatchHeader(_message.Message):
    __slots__ = ("layout_version", "cluster", "node", "boot_id", "run_id", "sequence", "first_event_ns", "last_event_ns", "watermark_ns", "anchor_monotonic_ns", "anchor_unix_ns", "final", "part", "ledger", "interfaces")
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FIRST_EVENT_NS_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_NS_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_NS_FIELD_NUMBER: _ClassVar[int]
    ANCHOR_MONOTONIC_NS_FIELD_NUMBER: _ClassVar[int]
    ANCHOR_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    INTERFACES_FIELD_NUMBER: _ClassVar[int]
    layout_version: int
    cluster: str
    node: str
    boot_id: str
    run_id: str
    sequence: int
    first_event_ns: int
    last_event_ns: int
    watermark_ns: int
    anchor_monotonic_ns: int
    anchor_unix_ns: int
    final: bool
    part: int
    ledger: _containers.RepeatedCompositeFieldContainer[LedgerEntry]
    interfaces: _containers.RepeatedCompositeFieldContainer[NetInterface]
    def __init__(self, layout_version: _Optional[int] = ..., cluster: _Optional[str] = ..., node: _Optional[str] = ..., boot_id: _Optional[str] = ..., run_id: _Optional[str] = ..., sequence: _Optional[int] = ..., first_event_ns: _Optional[int] = ..., last_event_ns: _Optional[int] = ..., watermark_ns: _Optional[int] = ..., anchor_monotonic_ns: _Optional[int] = ..., anchor_unix_ns: _Optional[int] = ..., final: _Optional[bool] = ..., part: _Optional[int] = ..., ledger: _Optional[_Iterable[_Union[LedgerEntry, _Mapping]]] = ..., interfaces: _Optional[_Iterable[_Union[NetInterface, _Mapping]]] = ...) -> None: ...

class NetInterface(_message.Message):
    __slots__ = ("index", "name", "mtu")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    index: int
    name: str
    mtu: int
    def __init__(self, index: _Optional[int] = ..., name: _Optional[str] = ..., mtu: _Optional[int] = ...) -> None: ...

class LedgerEntry(_message.Message):
    __slots__ = ("stage", "kind", "reason", "in_count", "out_count", "dropped_count")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    IN_COUNT_FIELD_NUMBER: _ClassVar[int]
    OUT_COUNT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_COUNT_FIELD_NUMBER: _ClassVar[int]
    stage: str
    kind: str
    reason: str
    in_count: int
    out_count: int
    dropped_count: int
    def __init__(self, stage: _Optional[str] = ..., kind: _Optional[str] = ..., reason: _Optional[str] = ..., in_count: _Optional[int] = ..., out_count: _Optional[int] = ..., dropped_count: _Optional[int] = ...) -> None: ...

class Connections(_message.Message):
    __slots__ = ("id", "family", "local_address", "local_port", "remote_address", "remote_port", "translated_address", "translated_port", "role", "netns", "cgroup_id", "pid", "container", "process", "flags", "names", "server_name", "tls_version", "opened_ns", "remote_container", "unreadable")
    ID_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LOCAL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_PORT_FIELD_NUMBER: _ClassVar[int]
    REMOTE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REMOTE_PORT_FIELD_NUMBER: _ClassVar[int]
    TRANSLATED_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TRANSLATED_PORT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NETNS_FIELD_NUMBER: _ClassVar[int]
    CGROUP_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    TLS_VERSION_FIELD_NUMBER: _ClassVar[int]
    OPENED_NS_FIELD_NUMBER: _ClassVar[int]
    REMOTE_CONTAINER_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    id: _containers.RepeatedScalarFieldContainer[int]
    family: bytes
    local_address: bytes
    local_port: _containers.RepeatedScalarFieldContainer[int]
    remote_address: bytes
    remote_port: _containers.RepeatedScalarFieldContainer[int]
    translated_address: bytes
    translated_port: _containers.RepeatedScalarFieldContainer[int]
    role: bytes
    netns: _containers.RepeatedScalarFieldContainer[int]
    cgroup_id: _containers.RepeatedScalarFieldContainer[int]
    pid: _containers.RepeatedScalarFieldContainer[int]
    container: _containers.RepeatedScalarFieldContainer[int]
    process: _containers.RepeatedScalarFieldContainer[int]
    flags: bytes
    names: _containers.RepeatedScalarFieldContainer[str]
    server_name: _containers.RepeatedScalarFieldContainer[int]
    tls_version: _containers.RepeatedScalarFieldContainer[int]
    opened_ns: _containers.RepeatedScalarFieldContainer[int]
    remote_container: _containers.RepeatedScalarFieldContainer[int]
    unreadable: bytes
    def __init__(self, id: _Optional[_Iterable[int]] = ..., family: _Optional[bytes] = ..., local_address: _Optional[bytes] = ..., local_port: _Optional[_Iterable[int]] = ..., remote_address: _Optional[bytes] = ..., remote_port: _Optional[_Iterable[int]] = ..., translated_address: _Optional[bytes] = ..., translated_port: _Optional[_Iterable[int]] = ..., role: _Optional[bytes] = ..., netns: _Optional[_Iterable[int]] = ..., cgroup_id: _Optional[_Iterable[int]] = ..., pid: _Optional[_Iterable[int]] = ..., container: _Optional[_Iterable[int]] = ..., process: _Optional[_Iterable[int]] = ..., flags: _Optional[bytes] = ..., names: _Optional[_Iterable[str]] = ..., server_name: _Optional[_Iterable[int]] = ..., tls_version: _Optional[_Iterable[int]] = ..., opened_ns: _Optional[_Iterable[int]] = ..., remote_container: _Optional[_Iterable[int]] = ..., unreadable: _Optional[bytes] = ...) -> None: ...

class Opens(_message.Message):
    __slots__ = ("connection", "kind", "end_ns", "duration_ns", "error")
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    END_NS_FIELD_NUMBER: _ClassVar[int]
    DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    connection: _containers.RepeatedScalarFieldContainer[int]
    kind: bytes
    end_ns: _containers.RepeatedScalarFieldContainer[int]
    duration_ns: _containers.RepeatedScalarFieldContainer[int]
    error: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, connection: _Optional[_Iterable[int]] = ..., kind: _Optional[bytes] = ..., end_ns: _Optional[_Iterable[int]] = ..., duration_ns: _Optional[_Iterable[int]] = ..., error: _Optional[_Iterable[int]] = ...) -> None: ...

class Closes(_message.Message):
    __slots__ = ("connection", "end_ns", "duration_ns")
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    END_NS_FIELD_NUMBER: _ClassVar[int]
    DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    connection: _containers.RepeatedScalarFieldContainer[int]
    end_ns: _containers.RepeatedScalarFieldContainer[int]
    duration_ns: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, connection: _Optional[_Iterable[int]] = ..., end_ns: _Optional[_Iterable[int]] = ..., duration_ns: _Optional[_Iterable[int]] = ...) -> None: ...

class Transfers(_message.Message):
    __slots__ = ("connection", "direction", "call", "end_ns", "duration_ns", "size", "figures")
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    END_NS_FIELD_NUMBER: _ClassVar[int]
    DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    connection: _containers.RepeatedScalarFieldContainer[int]
    direction: bytes
    call: bytes
    end_ns: _containers.RepeatedScalarFieldContainer[int]
    duration_ns: _containers.RepeatedScalarFieldContainer[int]
    size: _containers.RepeatedScalarFieldContainer[int]
    figures: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, connection: _Optional[_Iterable[int]] = ..., direction: _Optional[bytes] = ..., call: _Optional[bytes] = ..., end_ns: _Optional[_Iterable[int]] = ..., duration_ns: _Optional[_Iterable[int]] = ..., size: _Optional[_Iterable[int]] = ..., figures: _Optional[_Iterable[int]] = ...) -> None: ...

class Requests(_message.Message):
    __slots__ = ("connection", "version", "outcome", "flags", "method", "path", "host", "status", "grpc_status", "start_ns", "first_byte_ns", "end_ns", "request_header_size", "request_body_size", "response_header_size", "response_body_size", "trace_provider", "trace_id", "segment_id", "span_id", "endpoint")
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    GRPC_STATUS_FIELD_NUMBER: _ClassVar[int]
    START_NS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BYTE_NS_FIELD_NUMBER: _ClassVar[int]
    END_NS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_HEADER_SIZE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_BODY_SIZE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_HEADER_SIZE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_BODY_SIZE_FIELD_NUMBER: _ClassVar[int]
    TRACE_PROVIDER_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    connection: _containers.RepeatedScalarFieldContainer[int]
    version: bytes
    outcome: bytes
    flags: bytes
    method: _containers.RepeatedScalarFieldContainer[int]
    path: _containers.RepeatedScalarFieldContainer[int]
    host: _containers.RepeatedScalarFieldContainer[int]
    status: _containers.RepeatedScalarFieldContainer[int]
    grpc_status: _containers.RepeatedScalarFieldContainer[int]
    start_ns: _containers.RepeatedScalarFieldContainer[int]
    first_byte_ns: _containers.RepeatedScalarFieldContainer[int]
    end_ns: _containers.RepeatedScalarFieldContainer[int]
    request_header_size: _containers.RepeatedScalarFieldContainer[int]
    request_body_size: _containers.RepeatedScalarFieldContainer[int]
    response_header_size: _containers.RepeatedScalarFieldContainer[int]
    response_body_size: _containers.RepeatedScalarFieldContainer[int]
    trace_provider: bytes
    trace_id: _containers.RepeatedScalarFieldContainer[int]
    segment_id: _containers.RepeatedScalarFieldContainer[int]
    span_id: _containers.RepeatedScalarFieldContainer[int]
    endpoint: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, connection: _Optional[_Iterable[int]] = ..., version: _Optional[bytes] = ..., outcome: _Optional[bytes] = ..., flags: _Optional[bytes] = ..., method: _Optional[_Iterable[int]] = ..., path: _Optional[_Iterable[int]] = ..., host: _Optional[_Iterable[int]] = ..., status: _Optional[_Iterable[int]] = ..., grpc_status: _Optional[_Iterable[int]] = ..., start_ns: _Optional[_Iterable[int]] = ..., first_byte_ns: _Optional[_Iterable[int]] = ..., end_ns: _Optional[_Iterable[int]] = ..., request_header_size: _Optional[_Iterable[int]] = ..., request_body_size: _Optional[_Iterable[int]] = ..., response_header_size: _Optional[_Iterable[int]] = ..., response_body_size: _Optional[_Iterable[int]] = ..., trace_provider: _Optional[bytes] = ..., trace_id: _Optional[_Iterable[int]] = ..., segment_id: _Optional[_Iterable[int]] = ..., span_id: _Optional[_Iterable[int]] = ..., endpoint: _Optional[_Iterable[int]] = ...) -> None: ...

class Parties(_message.Message):
    __slots__ = ("local_service", "local_instance", "remote_service", "remote_instance", "internal", "local_container")
    LOCAL_SERVICE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    REMOTE_SERVICE_FIELD_NUMBER: _ClassVar[int]
    REMOTE_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    INTERNAL_FIELD_NUMBER: _ClassVar[int]
    LOCAL_CONTAINER_FIELD_NUMBER: _ClassVar[int]
    local_service: _containers.RepeatedScalarFieldContainer[int]
    local_instance: _containers.RepeatedScalarFieldContainer[int]
    remote_service: _containers.RepeatedScalarFieldContainer[int]
    remote_instance: _containers.RepeatedScalarFieldContainer[int]
    internal: bytes
    local_container: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, local_service: _Optional[_Iterable[int]] = ..., local_instance: _Optional[_Iterable[int]] = ..., remote_service: _Optional[_Iterable[int]] = ..., remote_instance: _Optional[_Iterable[int]] = ..., internal: _Optional[bytes] = ..., local_container: _Optional[_Iterable[int]] = ...) -> None: ...

class Drops(_message.Message):
    __slots__ = ("connection", "end_ns", "reason", "packets")
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    END_NS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    connection: _containers.RepeatedScalarFieldContainer[int]
    end_ns: _containers.RepeatedScalarFieldContainer[int]
    reason: _containers.RepeatedScalarFieldContainer[int]
    packets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, connection: _Optional[_Iterable[int]] = ..., end_ns: _Optional[_Iterable[int]] = ..., reason: _Optional[_Iterable[int]] = ..., packets: _Optional[_Iterable[int]] = ...) -> None: ...
