from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_DONE: _ClassVar[Outcome]
    OUTCOME_NOT_DONE: _ClassVar[Outcome]
    OUTCOME_UNKNOWN: _ClassVar[Outcome]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_DONE: Outcome
OUTCOME_NOT_DONE: Outcome
OUTCOME_UNKNOWN: Outcome

class Header(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class RequestCall(_message.Message):
    __slots__ = ("id", "subject", "payload", "headers", "key", "timeout_ms", "idempotency_key", "traceparent")
    ID_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    id: int
    subject: str
    payload: bytes
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    key: str
    timeout_ms: int
    idempotency_key: str
    traceparent: str
    def __init__(self, id: _Optional[int] = ..., subject: _Optional[str] = ..., payload: _Optional[bytes] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., key: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., idempotency_key: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("id", "response", "failure", "hops", "trace_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    response: bytes
    failure: Failure
    hops: _containers.RepeatedCompositeFieldContainer[Hop]
    trace_id: str
    def __init__(self, id: _Optional[int] = ..., response: _Optional[bytes] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., hops: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., trace_id: _Optional[str] = ...) -> None: ...

class StreamPart(_message.Message):
    __slots__ = ("part", "end")
    PART_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    part: bytes
    end: StreamEnd
    def __init__(self, part: _Optional[bytes] = ..., end: _Optional[_Union[StreamEnd, _Mapping]] = ...) -> None: ...

class StreamEnd(_message.Message):
    __slots__ = ("response", "parts", "hops", "trace_id")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    response: bytes
    parts: int
    hops: _containers.RepeatedCompositeFieldContainer[Hop]
    trace_id: str
    def __init__(self, response: _Optional[bytes] = ..., parts: _Optional[int] = ..., hops: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., trace_id: _Optional[str] = ...) -> None: ...

class Hop(_message.Message):
    __slots__ = ("stage", "started_us", "took_us", "batch")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STARTED_US_FIELD_NUMBER: _ClassVar[int]
    TOOK_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    stage: str
    started_us: int
    took_us: int
    batch: int
    def __init__(self, stage: _Optional[str] = ..., started_us: _Optional[int] = ..., took_us: _Optional[int] = ..., batch: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "outcome", "retry_after_ms", "dead_letter", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    DEAD_LETTER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    outcome: Outcome
    retry_after_ms: int
    dead_letter: int
    reason: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., retry_after_ms: _Optional[int] = ..., dead_letter: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class OutMessage(_message.Message):
    __slots__ = ("payload", "headers", "key")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    key: str
    def __init__(self, payload: _Optional[bytes] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., key: _Optional[str] = ...) -> None: ...

class SubmitCall(_message.Message):
    __slots__ = ("subject", "messages", "idempotency_key", "traceparent")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    subject: str
    messages: _containers.RepeatedCompositeFieldContainer[OutMessage]
    idempotency_key: str
    traceparent: str
    def __init__(self, subject: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[OutMessage, _Mapping]]] = ..., idempotency_key: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("accepted", "duplicate")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    duplicate: bool
    def __init__(self, accepted: _Optional[int] = ..., duplicate: bool = ...) -> None: ...

class SubmitFrame(_message.Message):
    __slots__ = ("subject", "session", "first", "messages", "traceparent")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    subject: str
    session: bytes
    first: int
    messages: _containers.RepeatedCompositeFieldContainer[OutMessage]
    traceparent: str
    def __init__(self, subject: _Optional[str] = ..., session: _Optional[bytes] = ..., first: _Optional[int] = ..., messages: _Optional[_Iterable[_Union[OutMessage, _Mapping]]] = ..., traceparent: _Optional[str] = ...) -> None: ...

class SubmitAck(_message.Message):
    __slots__ = ("durable", "failure")
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    durable: int
    failure: Failure
    def __init__(self, durable: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...
