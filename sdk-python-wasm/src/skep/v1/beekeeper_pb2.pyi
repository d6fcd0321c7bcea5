from skep.v1 import gateway_pb2 as _gateway_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PushModuleRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class PushHeader(_message.Message):
    __slots__ = ("name", "tag", "digest", "size", "signature")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    name: str
    tag: str
    digest: str
    size: int
    signature: str
    def __init__(self, name: _Optional[str] = ..., tag: _Optional[str] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ..., signature: _Optional[str] = ...) -> None: ...

class PushModuleReply(_message.Message):
    __slots__ = ("digest", "bees", "known", "replaced", "compile_ms", "followers", "needs", "new_needs")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BEES_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    COMPILE_MS_FIELD_NUMBER: _ClassVar[int]
    FOLLOWERS_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FIELD_NUMBER: _ClassVar[int]
    NEW_NEEDS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    bees: _containers.RepeatedScalarFieldContainer[str]
    known: bool
    replaced: str
    compile_ms: int
    followers: _containers.RepeatedScalarFieldContainer[str]
    needs: _containers.RepeatedScalarFieldContainer[str]
    new_needs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, digest: _Optional[str] = ..., bees: _Optional[_Iterable[str]] = ..., known: bool = ..., replaced: _Optional[str] = ..., compile_ms: _Optional[int] = ..., followers: _Optional[_Iterable[str]] = ..., needs: _Optional[_Iterable[str]] = ..., new_needs: _Optional[_Iterable[str]] = ...) -> None: ...

class ListModulesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModulesReply(_message.Message):
    __slots__ = ("modules",)
    MODULES_FIELD_NUMBER: _ClassVar[int]
    modules: _containers.RepeatedCompositeFieldContainer[Module]
    def __init__(self, modules: _Optional[_Iterable[_Union[Module, _Mapping]]] = ...) -> None: ...

class Module(_message.Message):
    __slots__ = ("name", "digest", "tags", "bees", "size", "pushed_ms", "used_by", "signed_by")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    BEES_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PUSHED_MS_FIELD_NUMBER: _ClassVar[int]
    USED_BY_FIELD_NUMBER: _ClassVar[int]
    SIGNED_BY_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    bees: _containers.RepeatedScalarFieldContainer[str]
    size: int
    pushed_ms: int
    used_by: _containers.RepeatedScalarFieldContainer[str]
    signed_by: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., bees: _Optional[_Iterable[str]] = ..., size: _Optional[int] = ..., pushed_ms: _Optional[int] = ..., used_by: _Optional[_Iterable[str]] = ..., signed_by: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteModuleRequest(_message.Message):
    __slots__ = ("name", "tag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    tag: str
    def __init__(self, name: _Optional[str] = ..., tag: _Optional[str] = ...) -> None: ...

class DeleteModuleReply(_message.Message):
    __slots__ = ("removed_tags",)
    REMOVED_TAGS_FIELD_NUMBER: _ClassVar[int]
    removed_tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, removed_tags: _Optional[_Iterable[str]] = ...) -> None: ...

class ApplySwarmRequest(_message.Message):
    __slots__ = ("manifest", "dry_run", "expect_revision", "discard_state", "rescale", "grant", "grant_all")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    EXPECT_REVISION_FIELD_NUMBER: _ClassVar[int]
    DISCARD_STATE_FIELD_NUMBER: _ClassVar[int]
    RESCALE_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    GRANT_ALL_FIELD_NUMBER: _ClassVar[int]
    manifest: str
    dry_run: bool
    expect_revision: int
    discard_state: bool
    rescale: bool
    grant: _containers.RepeatedScalarFieldContainer[str]
    grant_all: bool
    def __init__(self, manifest: _Optional[str] = ..., dry_run: bool = ..., expect_revision: _Optional[int] = ..., discard_state: bool = ..., rescale: bool = ..., grant: _Optional[_Iterable[str]] = ..., grant_all: bool = ...) -> None: ...

class ApplySwarmReply(_message.Message):
    __slots__ = ("swarm", "revision", "changes", "dry_run", "lost_state", "gains")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    LOST_STATE_FIELD_NUMBER: _ClassVar[int]
    GAINS_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    revision: int
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    dry_run: bool
    lost_state: _containers.RepeatedCompositeFieldContainer[StateLoss]
    gains: _containers.RepeatedCompositeFieldContainer[Gain]
    def __init__(self, swarm: _Optional[str] = ..., revision: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., dry_run: bool = ..., lost_state: _Optional[_Iterable[_Union[StateLoss, _Mapping]]] = ..., gains: _Optional[_Iterable[_Union[Gain, _Mapping]]] = ...) -> None: ...

class Gain(_message.Message):
    __slots__ = ("stage", "permission")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PERMISSION_FIELD_NUMBER: _ClassVar[int]
    stage: str
    permission: str
    def __init__(self, stage: _Optional[str] = ..., permission: _Optional[str] = ...) -> None: ...

class StateLoss(_message.Message):
    __slots__ = ("stage", "keys", "waiting", "timers")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    TIMERS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    keys: int
    waiting: int
    timers: int
    def __init__(self, stage: _Optional[str] = ..., keys: _Optional[int] = ..., waiting: _Optional[int] = ..., timers: _Optional[int] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("kind", "what", "before", "after")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Change.Kind]
        KIND_ADD: _ClassVar[Change.Kind]
        KIND_REMOVE: _ClassVar[Change.Kind]
        KIND_CHANGE: _ClassVar[Change.Kind]
    KIND_UNSPECIFIED: Change.Kind
    KIND_ADD: Change.Kind
    KIND_REMOVE: Change.Kind
    KIND_CHANGE: Change.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    kind: Change.Kind
    what: str
    before: str
    after: str
    def __init__(self, kind: _Optional[_Union[Change.Kind, str]] = ..., what: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class HoldSwarmRequest(_message.Message):
    __slots__ = ("swarm", "stage", "hold")
    class Hold(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        HOLD_UNSPECIFIED: _ClassVar[HoldSwarmRequest.Hold]
        HOLD_NONE: _ClassVar[HoldSwarmRequest.Hold]
        HOLD_DRAINING: _ClassVar[HoldSwarmRequest.Hold]
        HOLD_PAUSED: _ClassVar[HoldSwarmRequest.Hold]
    HOLD_UNSPECIFIED: HoldSwarmRequest.Hold
    HOLD_NONE: HoldSwarmRequest.Hold
    HOLD_DRAINING: HoldSwarmRequest.Hold
    HOLD_PAUSED: HoldSwarmRequest.Hold
    SWARM_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    stage: str
    hold: HoldSwarmRequest.Hold
    def __init__(self, swarm: _Optional[str] = ..., stage: _Optional[str] = ..., hold: _Optional[_Union[HoldSwarmRequest.Hold, str]] = ...) -> None: ...

class HoldSwarmReply(_message.Message):
    __slots__ = ("already", "paused")
    ALREADY_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    already: bool
    paused: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, already: bool = ..., paused: _Optional[_Iterable[str]] = ...) -> None: ...

class ListSwarmsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSwarmsReply(_message.Message):
    __slots__ = ("swarms",)
    SWARMS_FIELD_NUMBER: _ClassVar[int]
    swarms: _containers.RepeatedCompositeFieldContainer[SwarmSummary]
    def __init__(self, swarms: _Optional[_Iterable[_Union[SwarmSummary, _Mapping]]] = ...) -> None: ...

class SwarmSummary(_message.Message):
    __slots__ = ("name", "revision", "stages", "subjects", "status", "created_ms", "applied_ms", "unread", "dead")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_MS_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: int
    stages: int
    subjects: _containers.RepeatedScalarFieldContainer[str]
    status: str
    created_ms: int
    applied_ms: int
    unread: int
    dead: int
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[int] = ..., stages: _Optional[int] = ..., subjects: _Optional[_Iterable[str]] = ..., status: _Optional[str] = ..., created_ms: _Optional[int] = ..., applied_ms: _Optional[int] = ..., unread: _Optional[int] = ..., dead: _Optional[int] = ...) -> None: ...

class DescribeSwarmRequest(_message.Message):
    __slots__ = ("name", "count_keys")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COUNT_KEYS_FIELD_NUMBER: _ClassVar[int]
    name: str
    count_keys: bool
    def __init__(self, name: _Optional[str] = ..., count_keys: bool = ...) -> None: ...

class DescribeSwarmReply(_message.Message):
    __slots__ = ("summary", "manifest", "stages", "missing")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    summary: SwarmSummary
    manifest: str
    stages: _containers.RepeatedCompositeFieldContainer[StageStatus]
    missing: _containers.RepeatedCompositeFieldContainer[MissingNode]
    def __init__(self, summary: _Optional[_Union[SwarmSummary, _Mapping]] = ..., manifest: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[StageStatus, _Mapping]]] = ..., missing: _Optional[_Iterable[_Union[MissingNode, _Mapping]]] = ...) -> None: ...

class MissingNode(_message.Message):
    __slots__ = ("name", "why")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    name: str
    why: str
    def __init__(self, name: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class StageStatus(_message.Message):
    __slots__ = ("name", "module", "digest", "bee", "inputs", "partitions", "unread", "parked", "timers", "dead", "keys", "processed", "failed", "batches", "busy_us", "status", "last_error", "pure")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BEE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    TIMERS_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PROCESSED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    BUSY_US_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    PURE_FIELD_NUMBER: _ClassVar[int]
    name: str
    module: str
    digest: str
    bee: str
    inputs: _containers.RepeatedScalarFieldContainer[str]
    partitions: int
    unread: int
    parked: int
    timers: int
    dead: int
    keys: int
    processed: int
    failed: int
    batches: int
    busy_us: int
    status: str
    last_error: str
    pure: bool
    def __init__(self, name: _Optional[str] = ..., module: _Optional[str] = ..., digest: _Optional[str] = ..., bee: _Optional[str] = ..., inputs: _Optional[_Iterable[str]] = ..., partitions: _Optional[int] = ..., unread: _Optional[int] = ..., parked: _Optional[int] = ..., timers: _Optional[int] = ..., dead: _Optional[int] = ..., keys: _Optional[int] = ..., processed: _Optional[int] = ..., failed: _Optional[int] = ..., batches: _Optional[int] = ..., busy_us: _Optional[int] = ..., status: _Optional[str] = ..., last_error: _Optional[str] = ..., pure: bool = ...) -> None: ...

class DeleteSwarmRequest(_message.Message):
    __slots__ = ("name", "timeout_ms", "discard")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    name: str
    timeout_ms: int
    discard: bool
    def __init__(self, name: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., discard: bool = ...) -> None: ...

class DeleteSwarmProgress(_message.Message):
    __slots__ = ("remaining", "done", "note")
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    remaining: int
    done: bool
    note: str
    def __init__(self, remaining: _Optional[int] = ..., done: bool = ..., note: _Optional[str] = ...) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("swarm", "stage", "follow", "tail")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    stage: str
    follow: bool
    tail: int
    def __init__(self, swarm: _Optional[str] = ..., stage: _Optional[str] = ..., follow: bool = ..., tail: _Optional[int] = ...) -> None: ...

class LogEntry(_message.Message):
    __slots__ = ("at_ms", "stage", "level", "context", "text", "message", "node")
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    at_ms: int
    stage: str
    level: str
    context: str
    text: str
    message: str
    node: str
    def __init__(self, at_ms: _Optional[int] = ..., stage: _Optional[str] = ..., level: _Optional[str] = ..., context: _Optional[str] = ..., text: _Optional[str] = ..., message: _Optional[str] = ..., node: _Optional[str] = ...) -> None: ...

class ListDeadLettersRequest(_message.Message):
    __slots__ = ("swarm", "stage", "after", "limit", "reason", "key", "module", "since_ms", "until_ms", "brief")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    BRIEF_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    stage: str
    after: int
    limit: int
    reason: str
    key: str
    module: str
    since_ms: int
    until_ms: int
    brief: bool
    def __init__(self, swarm: _Optional[str] = ..., stage: _Optional[str] = ..., after: _Optional[int] = ..., limit: _Optional[int] = ..., reason: _Optional[str] = ..., key: _Optional[str] = ..., module: _Optional[str] = ..., since_ms: _Optional[int] = ..., until_ms: _Optional[int] = ..., brief: bool = ...) -> None: ...

class ListDeadLettersReply(_message.Message):
    __slots__ = ("letters", "next")
    LETTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    letters: _containers.RepeatedCompositeFieldContainer[DeadLetter]
    next: int
    def __init__(self, letters: _Optional[_Iterable[_Union[DeadLetter, _Mapping]]] = ..., next: _Optional[int] = ...) -> None: ...

class DeadLetter(_message.Message):
    __slots__ = ("id", "stage", "reason", "detail", "stderr", "attempts", "at_ms", "message", "key", "payload", "headers", "module", "trace_id", "timer", "timer_at_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    TIMER_FIELD_NUMBER: _ClassVar[int]
    TIMER_AT_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    stage: str
    reason: str
    detail: str
    stderr: str
    attempts: int
    at_ms: int
    message: str
    key: str
    payload: bytes
    headers: _containers.RepeatedCompositeFieldContainer[_gateway_pb2.Header]
    module: str
    trace_id: str
    timer: str
    timer_at_ms: int
    def __init__(self, id: _Optional[int] = ..., stage: _Optional[str] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., stderr: _Optional[str] = ..., attempts: _Optional[int] = ..., at_ms: _Optional[int] = ..., message: _Optional[str] = ..., key: _Optional[str] = ..., payload: _Optional[bytes] = ..., headers: _Optional[_Iterable[_Union[_gateway_pb2.Header, _Mapping]]] = ..., module: _Optional[str] = ..., trace_id: _Optional[str] = ..., timer: _Optional[str] = ..., timer_at_ms: _Optional[int] = ...) -> None: ...

class DiscardDeadLettersRequest(_message.Message):
    __slots__ = ("swarm", "ids")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, swarm: _Optional[str] = ..., ids: _Optional[_Iterable[int]] = ...) -> None: ...

class DiscardDeadLettersReply(_message.Message):
    __slots__ = ("discarded",)
    DISCARDED_FIELD_NUMBER: _ClassVar[int]
    discarded: int
    def __init__(self, discarded: _Optional[int] = ...) -> None: ...

class RedriveDeadLettersRequest(_message.Message):
    __slots__ = ("swarm", "ids")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, swarm: _Optional[str] = ..., ids: _Optional[_Iterable[int]] = ...) -> None: ...

class RedriveDeadLettersReply(_message.Message):
    __slots__ = ("redriven", "gone", "left")
    REDRIVEN_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    redriven: int
    gone: int
    left: _containers.RepeatedCompositeFieldContainer[LetterLeft]
    def __init__(self, redriven: _Optional[int] = ..., gone: _Optional[int] = ..., left: _Optional[_Iterable[_Union[LetterLeft, _Mapping]]] = ...) -> None: ...

class LetterLeft(_message.Message):
    __slots__ = ("id", "why", "later")
    ID_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    LATER_FIELD_NUMBER: _ClassVar[int]
    id: int
    why: str
    later: bool
    def __init__(self, id: _Optional[int] = ..., why: _Optional[str] = ..., later: bool = ...) -> None: ...

class TryDeadLetterRequest(_message.Message):
    __slots__ = ("swarm", "id", "module")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    id: int
    module: str
    def __init__(self, swarm: _Optional[str] = ..., id: _Optional[int] = ..., module: _Optional[str] = ...) -> None: ...

class TryDeadLetterReply(_message.Message):
    __slots__ = ("stage", "module", "digest", "outcome", "detail", "stderr", "publish", "respond", "state", "timers", "log", "took_us")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIELD_NUMBER: _ClassVar[int]
    RESPOND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TIMERS_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    TOOK_US_FIELD_NUMBER: _ClassVar[int]
    stage: str
    module: str
    digest: str
    outcome: str
    detail: str
    stderr: str
    publish: _containers.RepeatedCompositeFieldContainer[TriedEmit]
    respond: _containers.RepeatedScalarFieldContainer[bytes]
    state: _containers.RepeatedCompositeFieldContainer[TriedWrite]
    timers: _containers.RepeatedCompositeFieldContainer[TriedTimer]
    log: _containers.RepeatedCompositeFieldContainer[LogEntry]
    took_us: int
    def __init__(self, stage: _Optional[str] = ..., module: _Optional[str] = ..., digest: _Optional[str] = ..., outcome: _Optional[str] = ..., detail: _Optional[str] = ..., stderr: _Optional[str] = ..., publish: _Optional[_Iterable[_Union[TriedEmit, _Mapping]]] = ..., respond: _Optional[_Iterable[bytes]] = ..., state: _Optional[_Iterable[_Union[TriedWrite, _Mapping]]] = ..., timers: _Optional[_Iterable[_Union[TriedTimer, _Mapping]]] = ..., log: _Optional[_Iterable[_Union[LogEntry, _Mapping]]] = ..., took_us: _Optional[int] = ...) -> None: ...

class TriedEmit(_message.Message):
    __slots__ = ("output", "key", "headers", "payload", "to")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    output: str
    key: str
    headers: _containers.RepeatedCompositeFieldContainer[_gateway_pb2.Header]
    payload: bytes
    to: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, output: _Optional[str] = ..., key: _Optional[str] = ..., headers: _Optional[_Iterable[_Union[_gateway_pb2.Header, _Mapping]]] = ..., payload: _Optional[bytes] = ..., to: _Optional[_Iterable[str]] = ...) -> None: ...

class TriedWrite(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: bytes
    def __init__(self, name: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class TriedTimer(_message.Message):
    __slots__ = ("name", "at_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    at_ms: int
    def __init__(self, name: _Optional[str] = ..., at_ms: _Optional[int] = ...) -> None: ...

class GetStateRequest(_message.Message):
    __slots__ = ("swarm", "stage", "key", "after")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    stage: str
    key: str
    after: str
    def __init__(self, swarm: _Optional[str] = ..., stage: _Optional[str] = ..., key: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class GetStateReply(_message.Message):
    __slots__ = ("values", "more")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[StateValue]
    more: bool
    def __init__(self, values: _Optional[_Iterable[_Union[StateValue, _Mapping]]] = ..., more: bool = ...) -> None: ...

class ListStateRequest(_message.Message):
    __slots__ = ("swarm", "stage", "prefix", "limit", "after")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    stage: str
    prefix: str
    limit: int
    after: str
    def __init__(self, swarm: _Optional[str] = ..., stage: _Optional[str] = ..., prefix: _Optional[str] = ..., limit: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class ListStateReply(_message.Message):
    __slots__ = ("entries", "next")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[StateEntry]
    next: str
    def __init__(self, entries: _Optional[_Iterable[_Union[StateEntry, _Mapping]]] = ..., next: _Optional[str] = ...) -> None: ...

class ImportStateRequest(_message.Message):
    __slots__ = ("swarm", "stage", "entries")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    stage: str
    entries: _containers.RepeatedCompositeFieldContainer[StateEntry]
    def __init__(self, swarm: _Optional[str] = ..., stage: _Optional[str] = ..., entries: _Optional[_Iterable[_Union[StateEntry, _Mapping]]] = ...) -> None: ...

class ImportStateReply(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: int
    def __init__(self, keys: _Optional[int] = ...) -> None: ...

class StateEntry(_message.Message):
    __slots__ = ("key", "values")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    key: str
    values: _containers.RepeatedCompositeFieldContainer[StateValue]
    def __init__(self, key: _Optional[str] = ..., values: _Optional[_Iterable[_Union[StateValue, _Mapping]]] = ...) -> None: ...

class StateValue(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: bytes
    def __init__(self, name: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class NodeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeReply(_message.Message):
    __slots__ = ("version", "started_ms", "data", "backend", "flushes", "commits")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_MS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    FLUSHES_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    version: str
    started_ms: int
    data: str
    backend: str
    flushes: int
    commits: int
    def __init__(self, version: _Optional[str] = ..., started_ms: _Optional[int] = ..., data: _Optional[str] = ..., backend: _Optional[str] = ..., flushes: _Optional[int] = ..., commits: _Optional[int] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNodesReply(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeInfo]
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeInfo, _Mapping]]] = ...) -> None: ...

class NodeInfo(_message.Message):
    __slots__ = ("id", "name", "version", "url", "roles", "state", "started_ms", "silent_ms", "here", "owned", "behind", "labels")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[NodeInfo.State]
        SERVING: _ClassVar[NodeInfo.State]
        DRAINING: _ClassVar[NodeInfo.State]
    UNSPECIFIED: NodeInfo.State
    SERVING: NodeInfo.State
    DRAINING: NodeInfo.State
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STARTED_MS_FIELD_NUMBER: _ClassVar[int]
    SILENT_MS_FIELD_NUMBER: _ClassVar[int]
    HERE_FIELD_NUMBER: _ClassVar[int]
    OWNED_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    version: str
    url: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    state: NodeInfo.State
    started_ms: int
    silent_ms: int
    here: bool
    owned: _containers.RepeatedCompositeFieldContainer[OwnedStage]
    behind: bool
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., url: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[NodeInfo.State, str]] = ..., started_ms: _Optional[int] = ..., silent_ms: _Optional[int] = ..., here: bool = ..., owned: _Optional[_Iterable[_Union[OwnedStage, _Mapping]]] = ..., behind: bool = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class OwnedStage(_message.Message):
    __slots__ = ("swarm", "stage", "partitions", "waiting")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    stage: str
    partitions: _containers.RepeatedScalarFieldContainer[int]
    waiting: int
    def __init__(self, swarm: _Optional[str] = ..., stage: _Optional[str] = ..., partitions: _Optional[_Iterable[int]] = ..., waiting: _Optional[int] = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("node", "undo")
    NODE_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    node: str
    undo: bool
    def __init__(self, node: _Optional[str] = ..., undo: bool = ...) -> None: ...

class DrainNodeReply(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ScaleStageRequest(_message.Message):
    __slots__ = ("swarm", "stage", "partitions", "concurrency", "dry_run")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    swarm: str
    stage: str
    partitions: int
    concurrency: int
    dry_run: bool
    def __init__(self, swarm: _Optional[str] = ..., stage: _Optional[str] = ..., partitions: _Optional[int] = ..., concurrency: _Optional[int] = ..., dry_run: bool = ...) -> None: ...

class BackupRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BackupReply(_message.Message):
    __slots__ = ("chunk", "contents")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    contents: BackupContents
    def __init__(self, chunk: _Optional[bytes] = ..., contents: _Optional[_Union[BackupContents, _Mapping]] = ...) -> None: ...

class RestoreRequest(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...

class BackupContents(_message.Message):
    __slots__ = ("taken_ms", "version", "swarms", "modules", "bytes", "models")
    TAKEN_MS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SWARMS_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    taken_ms: int
    version: str
    swarms: _containers.RepeatedCompositeFieldContainer[BackupSwarm]
    modules: int
    bytes: int
    models: int
    def __init__(self, taken_ms: _Optional[int] = ..., version: _Optional[str] = ..., swarms: _Optional[_Iterable[_Union[BackupSwarm, _Mapping]]] = ..., modules: _Optional[int] = ..., bytes: _Optional[int] = ..., models: _Optional[int] = ...) -> None: ...

class BackupSwarm(_message.Message):
    __slots__ = ("name", "revision", "unread", "parked", "timers", "dead", "keys", "calls")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    TIMERS_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: int
    unread: int
    parked: int
    timers: int
    dead: int
    keys: int
    calls: int
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[int] = ..., unread: _Optional[int] = ..., parked: _Optional[int] = ..., timers: _Optional[int] = ..., dead: _Optional[int] = ..., keys: _Optional[int] = ..., calls: _Optional[int] = ...) -> None: ...
