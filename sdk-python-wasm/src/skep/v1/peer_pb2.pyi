from skep.v1 import beekeeper_pb2 as _beekeeper_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CountsRequest(_message.Message):
    __slots__ = ("swarm",)
    SWARM_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    def __init__(self, swarm: _Optional[str] = ...) -> None: ...

class CountsReply(_message.Message):
    __slots__ = ("stages",)
    STAGES_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedCompositeFieldContainer[StageCounts]
    def __init__(self, stages: _Optional[_Iterable[_Union[StageCounts, _Mapping]]] = ...) -> None: ...

class StageCounts(_message.Message):
    __slots__ = ("stage", "processed", "failed", "batches", "busy_us", "held_up", "state", "troubled", "last_error")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PROCESSED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    BUSY_US_FIELD_NUMBER: _ClassVar[int]
    HELD_UP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TROUBLED_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    stage: str
    processed: int
    failed: int
    batches: int
    busy_us: int
    held_up: int
    state: str
    troubled: bool
    last_error: str
    def __init__(self, stage: _Optional[str] = ..., processed: _Optional[int] = ..., failed: _Optional[int] = ..., batches: _Optional[int] = ..., busy_us: _Optional[int] = ..., held_up: _Optional[int] = ..., state: _Optional[str] = ..., troubled: bool = ..., last_error: _Optional[str] = ...) -> None: ...

class SaidReply(_message.Message):
    __slots__ = ("line", "live")
    class Live(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    LINE_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    line: _beekeeper_pb2.LogEntry
    live: SaidReply.Live
    def __init__(self, line: _Optional[_Union[_beekeeper_pb2.LogEntry, _Mapping]] = ..., live: _Optional[_Union[SaidReply.Live, _Mapping]] = ...) -> None: ...
