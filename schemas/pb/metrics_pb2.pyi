from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MetricsBlock(_message.Message):
    __slots__ = ("layout_version", "identity", "names", "tables")
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    layout_version: int
    identity: BlockIdentity
    names: _containers.RepeatedScalarFieldContainer[str]
    tables: _containers.RepeatedCompositeFieldContainer[MetricsTable]
    def __init__(self, layout_version: _Optional[int] = ..., identity: _Optional[_Union[BlockIdentity, _Mapping]] = ..., names: _Optional[_Iterable[str]] = ..., tables: _Optional[_Iterable[_Union[MetricsTable, _Mapping]]] = ...) -> None: ...

class BlockIdentity(_message.Message):
    __slots__ = ("topic", "partition", "minute_s", "base_offset", "end_offset", "part", "parts", "attempt")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    MINUTE_S_FIELD_NUMBER: _ClassVar[int]
    BASE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    minute_s: int
    base_offset: int
    end_offset: int
    part: int
    parts: int
    attempt: str
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., minute_s: _Optional[int] = ..., base_offset: _Optional[int] = ..., end_offset: _Optional[int] = ..., part: _Optional[int] = ..., parts: _Optional[int] = ..., attempt: _Optional[str] = ...) -> None: ...

class MetricsTable(_message.Message):
    __slots__ = ("table", "rows", "keys", "figures", "histograms", "breakdowns")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAMS_FIELD_NUMBER: _ClassVar[int]
    BREAKDOWNS_FIELD_NUMBER: _ClassVar[int]
    table: str
    rows: int
    keys: _containers.RepeatedCompositeFieldContainer[KeyColumn]
    figures: _containers.RepeatedCompositeFieldContainer[FigureColumn]
    histograms: _containers.RepeatedCompositeFieldContainer[Histogram]
    breakdowns: _containers.RepeatedCompositeFieldContainer[NameCounts]
    def __init__(self, table: _Optional[str] = ..., rows: _Optional[int] = ..., keys: _Optional[_Iterable[_Union[KeyColumn, _Mapping]]] = ..., figures: _Optional[_Iterable[_Union[FigureColumn, _Mapping]]] = ..., histograms: _Optional[_Iterable[_Union[Histogram, _Mapping]]] = ..., breakdowns: _Optional[_Iterable[_Union[NameCounts, _Mapping]]] = ...) -> None: ...

class KeyColumn(_message.Message):
    __slots__ = ("name", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[int]] = ...) -> None: ...

class FigureColumn(_message.Message):
    __slots__ = ("name", "values", "measured")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[int]
    measured: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[int]] = ..., measured: _Optional[_Iterable[int]] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("name", "row", "bucket", "count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    row: _containers.RepeatedScalarFieldContainer[int]
    bucket: _containers.RepeatedScalarFieldContainer[int]
    count: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., row: _Optional[_Iterable[int]] = ..., bucket: _Optional[_Iterable[int]] = ..., count: _Optional[_Iterable[int]] = ...) -> None: ...

class NameCounts(_message.Message):
    __slots__ = ("name", "row", "key", "count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    row: _containers.RepeatedScalarFieldContainer[int]
    key: _containers.RepeatedScalarFieldContainer[int]
    count: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., row: _Optional[_Iterable[int]] = ..., key: _Optional[_Iterable[int]] = ..., count: _Optional[_Iterable[int]] = ...) -> None: ...
