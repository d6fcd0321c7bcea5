"""A stage of a flow as a node runs it: the node's inputs to :func:`~skep.dataflow.stage.process`, and what comes of it to the node's effects.

A message carries items for one address, pickled together: values of a bucket's keys, a sink partition's, or items for any worker. So a crossing
carries many, and what costs a node by the message is paid once a bucket and batch. What a node knows as the key of a keyed stage is a bucket of the
flow's keys (:mod:`.buckets`); that of a source's stage or a sink's is a partition, whose state is a header and what the stage packed; the header
says when the partition's timer is set for, so that it is set only when that changes.

An instance may hold in memory what it kept of a key. It can't know whether another instance worked on the key since, or whether what it wrote
was committed: so each input reads what is kept, and memory counts only if it is that to the byte. It spares building, not reading.

Who may send to a flow's own subjects is not who wrote the flow: what comes from there is never unpickled.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from time import monotonic
from typing import Any, Protocol

from ..errors import Reject
from ..registry import ROOTS
from ..report import Report, report
from .buckets import TOLD, Buckets, Groups, by_bucket, pack_groups, unpack_groups
from .connectors.subject import SubjectSource, desk
from .errors import StepError
from .limits import (
    COMMIT_BYTES_MAX,
    EFFECTS_BYTES_MAX,
    EMITS_MAX,
    END_BATCH,
    HELD_BYTES,
    HELD_KEYS,
    KEY_BYTES_MAX,
    MESSAGE_BYTES,
    NAMES_SHOWN,
    OUTPUT_OVERHEAD_BYTES,
    PAYLOAD_BYTES_MAX,
    READ_ITEMS,
    READ_ITEMS_MAX,
    READ_QUICK,
    READ_SECONDS,
    READ_SLOW,
    STATE_VALUE_BYTES_MAX,
    STATE_VALUES_MAX,
)
from .names import stage_names
from .plan import Kind, Plan, Stage
from .stage import Batch, Due, End, Input, Items, Outcome, Send, Splitter, StageRun, list_parts, process

#: What a message of items begins with, and what a state does. What begins with a later one is refused.
MESSAGE_VERSION = 1
KEPT_VERSION = 1
#: The one timer of a key.
TIMER = "next"
#: The node's own: the timer by which a key is told that nothing more comes for it, and the value by which a partition of a source says that
#: it has ended.
END = "\0end"
#: The value that holds the state, or its beginning.
STATE = "state"

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MS = timedelta(milliseconds=1)
#: Version; whether the partition of a source has ended; values behind the first; when the timer is due, ms since 1970, 0: none.
_HEADER = struct.Struct("<BBBxq")
_MESSAGE_HEAD = bytes((MESSAGE_VERSION,))


class Host(Protocol):
    """The node. ``begin`` says whose state and timers the calls after it are about."""

    def begin(self, index: int, message: Any) -> None: ...
    def abandon(self, index: int) -> None: ...
    def state_get(self, name: str) -> bytes | None: ...
    def state_put(self, name: str, value: bytes) -> None: ...
    def state_delete(self, name: str) -> None: ...
    def timer_set(self, name: str, at_ms: int) -> None: ...
    def timer_cancel(self, name: str) -> None: ...
    def emit(self, payload: Any, data: bytes, to: str | None, key: str | None, headers: Any) -> Any: ...


class Ends(Protocol):
    """How inputs come and end, as :class:`skep.process.Ends`."""

    timer: type[Any]

    def done(self, publish: list[Any], respond: list[Any]) -> Any: ...
    def retry(self, after_ms: int) -> Any: ...
    def reject(self, reason: str) -> Any: ...
    def fail(self, found: Report, error: BaseException | None) -> Any: ...


class TooMuch(StepError):
    """What came of one input is more than a node takes of one."""


def address(key: str) -> str:
    """A key as a node takes it: not empty. ``bytes`` too long for one, or no UTF-8, raise ValueError.

    >>> address("a"), address("")
    ('a', '\\x00')
    """
    if key.isascii() and 0 < len(key) <= KEY_BYTES_MAX and key[0] != "\x00":
        return key
    if not key or key[0] == "\x00":
        key = "\x00" + key
    try:
        size = len(key.encode())
    except UnicodeEncodeError as e:
        raise ValueError(f"a key on a node is UTF-8 text, and {key!r} is not: {e.reason}") from None
    if size > KEY_BYTES_MAX:
        raise ValueError(f"a key on a node has at most {KEY_BYTES_MAX} bytes; {key[:40]!r}… has {size}: take a digest of it in key_on")
    return key


def key_of(address: str) -> str:
    """The key that :func:`address` made this of."""
    return address[1:] if address[:1] == "\x00" else address


def pack_items(items: Batch) -> list[bytes]:
    """Items as payloads, in their order; more than one where they are many bytes. Raises whatever pickling raises, and ValueError where one
    item is too large."""
    data = _MESSAGE_HEAD + pickle.dumps(items, protocol=5)
    if len(data) <= MESSAGE_BYTES or len(items) == 1:
        if len(data) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"an item has {len(data)} bytes, pickled; a message on a node has at most {PAYLOAD_BYTES_MAX}")
        return [data]
    half = len(items) // 2
    return pack_items(items[:half]) + pack_items(items[half:])


def unpack_items(data: bytes) -> Batch:
    """Items of a payload. ValueError: it is of a later version, or was not written by a stage.

    >>> [unpack_items(data) for data in pack_items([1, "b"])]
    [[1, 'b']]
    """
    if data[:1] != _MESSAGE_HEAD:
        found = f"version {data[0]}" if data else "nothing"
        raise ValueError(f"the message is none of a flow's stage: it begins with {found}, and this skep reads {MESSAGE_VERSION}")
    items = pickle.loads(data[1:])
    if type(items) is not list:
        raise ValueError("the message is none of a flow's stage: it holds no list")
    return items


def _behind(first: Groups, then: Groups) -> Groups:
    """Values by key, the former first."""
    for key, values in then.items():
        held = first.get(key)
        if held is None:
            first[key] = values
        else:
            held.extend(values)
    return first


def milliseconds(at: datetime) -> int:
    """A time as nodes have it, not before it was; 1 where it is in 1970 or before."""
    return max(-((_EPOCH - at) // _MS), 1)


def _now() -> datetime:
    return datetime.now(timezone.utc)


class _Addresses(Splitter):
    """By what a node knows as keys."""

    def keyed(self, groups: Groups) -> Iterable[tuple[str, Groups]]:
        """Values by key, by bucket."""
        return by_bucket(groups).items()


class _Kept:
    """What is kept of the partition of the current input."""

    __slots__ = ("data", "due", "ended", "raw", "values")

    def __init__(self, raw: bytes | None = None, data: bytes | None = None, due: int = 0, ended: bool = False, values: int = 0) -> None:
        #: With its header, if it is one value.
        self.raw = raw
        self.data = data
        #: When its timer is set for, ms since 1970; 0: it has none.
        self.due = due
        self.ended = ended
        #: Behind the first.
        self.values = values


_NOTHING = _Kept()


class NodeStage:
    """A stage in an instance of a component."""

    def __init__(
        self,
        stage: Stage,
        plan: Plan,
        host: Host,
        ends: Ends,
        *,
        now: Callable[[], datetime] = _now,
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        self._stage = stage
        self._host = host
        self._ends = ends
        self._now = now
        self._seconds = seconds
        self._by_name = {one.name: one for one in plan.stages}
        self._outputs = stage_names(plan)
        self._run = StageRun(stage)
        self._run.read_seconds = READ_SECONDS
        self._split = _Addresses(self._by_name)
        live = self._run.live
        self._buckets = Buckets(host, lambda key: live.pop(key, None)) if stage.kind is Kind.KEYED else None
        if self._buckets is not None:
            self._run._load = self._buckets.load
        source = stage.entry.args.get("source")
        self._subject = source if isinstance(source, SubjectSource) else None
        self._parts: frozenset[str] | None = None
        #: How many items a timer of a source reads: fewer once that made too much.
        self._read_items = READ_ITEMS
        self._began = 0.0
        #: Bytes that the inputs of the current call made, no more than a node counts.
        self._spent = 0
        # Of the current input.
        self._index = 0
        self._moment = _EPOCH
        self._kept = _NOTHING
        self._wrote = False
        #: The node tells the end of its sink partition's stream.
        self._over = False
        self._answers: list[bytes] = []

    def process(self, inputs: Sequence[Any]) -> list[Any]:
        """One outcome an input, whatever happens."""
        found: list[Any] = [None] * len(inputs)
        self._spent = 0
        first = 0
        while first < len(inputs):
            try:
                self._process(inputs, first, found)
                break
            except BaseException as e:
                # What no step answers for: a message that is none, a source's ABORT, an exit.
                found[self._index] = self._failed(e)
                first = self._index + 1
        desk.answers = None
        if self._buckets is None:
            self._run.rest(HELD_KEYS)
        else:
            self._buckets.slim(HELD_BYTES)
        return found

    def _process(self, inputs: Sequence[Any], first: int, found: list[Any]) -> None:
        def ready() -> Iterator[Input]:
            for self._index in range(first, len(inputs)):
                given = self._begin(inputs[self._index])
                if given is None:
                    found[self._index] = self._ends.done([], [])
                else:
                    yield given

        def settle(_: int, outcome: Outcome | StepError) -> None:
            found[self._index] = self._failed(outcome) if isinstance(outcome, StepError) else self._done(outcome)

        self._moment = self._now()
        if self._buckets is not None:
            for self._index in range(first, len(inputs)):
                if self._spent > COMMIT_BYTES_MAX:
                    # The commit ends before the input that passed the bound. What is behind it comes again at no attempt's cost, whatever its
                    # outcome is; and a call that writes twice as much is ended.
                    found[self._index] = self._ends.retry(0)
                    continue
                try:
                    found[self._index] = self._keyed(inputs[self._index], self._buckets)
                except StepError as e:
                    found[self._index] = self._failed(e)
            return
        process(self._stage, ready(), lambda key: self._kept.data, self._moment, run=self._run, split=self._split, settle=settle)

    # ---------------------------------------------------------------------------------------------------------------------- one input

    def _enter(self, value: Any) -> None:
        """Makes an input the current one."""
        self._wrote = self._over = False
        self._kept = _NOTHING
        self._answers = desk.answers = []
        self._host.begin(self._index, value)

    def _begin(self, given: Any) -> Input | None:
        """Makes an input the current one. None: there is nothing to do."""
        value = given.value
        self._enter(value)
        if self._subject is not None:
            return Items(None, self._subject.items_of(value))
        kind = self._stage.kind
        if kind is Kind.SPREAD:
            return Items(None, unpack_items(value.payload))
        key = key_of(value.key)
        kept = self._kept = self._read(key)
        if type(given) is self._ends.timer:
            if value.name == END:
                # What is left of a key that was discarded meanwhile has no end.
                self._over = kept.data is not None
                return End(key) if self._over else None
            # One that was set anew, or cancelled, by what came before it in the same batch.
            if kept.due != value.at_ms or kept.ended:
                return None
            kept.due = 0
            # Behind a failure by one batch, so that what can be read is.
            self._run.read_items = self._read_items if value.attempt == 1 else 1
            self._began = self._seconds()
            return Due(key)
        if kind is not Kind.SOURCE:
            return Items(key, unpack_items(value.payload))
        self._start(key)
        return None

    def _start(self, part: str) -> None:
        """Whoever may send to a Swarm may start its sources, any number of times: a partition is opened once."""
        if self._parts is None:
            self._parts = frozenset(list_parts(self._stage))
        if part not in self._parts:
            some = ", ".join(sorted(self._parts)[:NAMES_SHOWN])
            raise Reject(f"{self._stage.entry.title()} has no partition {part!r}; it has: {some or 'none'}")
        kept, run = self._kept, self._run
        if kept.ended:
            if self._host.state_get(END) is None:
                # It ended where nobody was told.
                self._wrote = True
                self._host.state_put(END, b"1")
            return
        if kept.data is not None:
            # For when it was: one that became a dead letter is there again.
            self._wrote = True
            self._host.timer_set(TIMER, max(kept.due, 1))
            return
        run.meet(part, None)
        run.open(part)
        at = run.awake.get(part)
        self._keep(part, run.pack(part), milliseconds(at or self._now()), False)

    def _keyed(self, given: Any, buckets: Buckets) -> Any:
        """The outcome of an input of a bucket's keys."""
        value = given.value
        self._enter(value)
        try:
            buckets.begin(value.key)
            fired, now, over = 0, milliseconds(self._moment), False
            due: list[str] = []
            if type(given) is not self._ends.timer:
                groups = unpack_groups(value.payload)
                if buckets.has_rest:
                    groups = _behind(buckets.rest(), groups)
            elif value.name == END:
                groups, over = buckets.rest(), True
            else:
                fired, over = value.at_ms, buckets.ending
                # One that was set anew, or cancelled, by what came before it in the same batch.
                if buckets.timer != fired:
                    return self._ends.done([], [])
                if fired > now:
                    # The clock of the store is ahead of this one, by which the logic goes: it would ask for the same time again, at once, until then.
                    self._set(buckets, fired + fired - now, fired)
                    return self._ends.done([], [])
                groups = buckets.rest()
                due = [] if over else buckets.due(now)
                if groups:
                    due = [key for key in due if key not in groups]
            if over and not groups:
                due = buckets.untold()
            dues = buckets.dues(groups)
            most = buckets.light([*groups, *due])
        except ValueError as e:
            raise self._unkept(buckets, e) from e
        if over:
            # Not the keys of a large bucket all at once: what they do last may be long.
            most = min(most, END_BATCH)
        if most < len(groups) + len(due):
            return self._some(buckets, groups, due, dues, fired, over, most)
        try:
            # Values that waited come before the end, which goes on at once.
            return self._all(buckets, groups, due, dues, {}, fired, over, over and bool(groups))
        except TooMuch:
            if len(groups) + len(due) == 1:
                raise
        self._undo(buckets)
        return self._some(buckets, groups, due, buckets.dues(groups), fired, over, (len(groups) + len(due)) // 2)

    def _some(
        self, buckets: Buckets, groups: Groups, due: list[str], dues: dict[str, int], fired: int, over: bool, most: int
    ) -> Any:
        """Works on the first keys, as many as their effects allow. The others wait: values in the bucket's state, the timer goes on at once."""
        while True:
            now = dict(list(groups.items())[:most])
            rest = {key: values for key, values in groups.items() if key not in now}
            some, set_for = due[: max(most - len(now), 0)], {key: at for key, at in dues.items() if key in now}
            try:
                return self._all(buckets, now, some, set_for, rest, fired, over, over)
            except TooMuch:
                if most == 1:
                    raise
            most //= 2
            self._undo(buckets)

    def _undo(self, buckets: Buckets) -> None:
        """As if nothing had been put into the current bucket."""
        buckets.drop()
        self._answers.clear()
        buckets.begin(buckets.name)

    def _all(
        self, buckets: Buckets, groups: Groups, due: list[str], dues: dict[str, int], rest: Groups, fired: int, over: bool, ending: bool
    ) -> Any:
        """``over``: those that are ``due`` are told their end. ``ending``: then others are still to be told."""
        try:
            timers = {key: _EPOCH + at * _MS for key, at in dues.items()}
            exits, changes = self._run.take_keys(groups, due, timers, self._moment, over=over)
        except BaseException:
            # Those that came further than what is kept, too.
            for key in (*groups, *due):
                self._run.forget(key)
            raise
        publish, sent = self._emits(self._run.sends(exits, self._split) if exits else ())
        try:
            told = over and bool(due)
            for key, state, at in changes:
                # What a key waits for comes no more behind its end.
                buckets.put(key, state, TOLD if told else 0 if at is None else milliseconds(at))
            if rest or buckets.has_rest:
                buckets.put_rest(rest)
            size = sent + buckets.settle()
        except ValueError as e:
            raise self._unkept(buckets, e) from e
        if size > EFFECTS_BYTES_MAX or len(publish) > EMITS_MAX:
            raise self._too_much(size, len(publish))
        buckets.ending = ending
        timer = milliseconds(self._moment) if rest or ending else buckets.first_due()
        if fired and timer:
            # The one that fired was set for this very time, where some of what was due waits.
            timer = max(timer, fired + 1)
        self._spent += sent + self._set(buckets, timer, fired)
        return self._ends.done(publish, self._answers)

    def _set(self, buckets: Buckets, timer: int, fired: int) -> int:
        """Writes the current bucket, and sets its timer. How many bytes were written."""
        self._wrote = True
        before = 0 if fired else buckets.timer
        size = buckets.write(timer)
        if timer != before:
            if timer:
                self._host.timer_set(TIMER, timer)
            else:
                self._host.timer_cancel(TIMER)
        return size

    def _unkept(self, buckets: Buckets, error: ValueError) -> StepError:
        op = self._stage.entry
        return StepError(f"{op.title()}: what is kept, or came, in bucket {buckets.name!r} of its keys: {error}", (op.shown or op).step_id)

    def _emits(self, sends: Iterable[Send]) -> tuple[list[Any], int]:
        """Messages, and how many bytes they have with the answers."""
        publish: list[Any] = []
        size = sum(map(len, self._answers)) if self._answers else 0
        emit, address = self._host.emit, self._address
        for send in sends:
            to, key = self._outputs[send.to], None if send.key is None else address(send.key)
            for data in self._payloads(send):
                publish.append(emit(None, data, to, key, []))
                size += len(data) + OUTPUT_OVERHEAD_BYTES
        return publish, size

    def _done(self, outcome: Outcome) -> Any:
        """Writes what the current input came to, and gives its outcome."""
        publish, size = self._emits(outcome.sends)
        for state in outcome.writes.values():
            if state is not None:
                size += len(state)
        if size > EFFECTS_BYTES_MAX or len(publish) > EMITS_MAX:
            raise self._too_much(size, len(publish))
        if self._stage.kind is Kind.SOURCE and self._run.read_full:
            full = max(size / EFFECTS_BYTES_MAX, len(publish) / EMITS_MAX)
            took = self._seconds() - self._began
            if took > READ_SLOW:
                self._read_items = max(int(self._run.read_items / took * READ_SLOW / 2), 1)
            elif full > 0.9:
                self._read_items = max(self._read_items * 3 // 4, 1)
            elif full < 0.5 and took < READ_QUICK:
                self._read_items = min(self._read_items * 2, READ_ITEMS_MAX)
        for key, state in outcome.writes.items():
            at = outcome.timers.get(key)
            # What a key waits for comes no more behind its end.
            self._keep(key, state, 0 if at is None or self._over else milliseconds(at), outcome.ended)
        if outcome.ended:
            self._host.state_put(END, b"1")
        return self._ends.done(publish, self._answers)

    def _address(self, key: str) -> str:
        try:
            return address(key)
        except ValueError as e:
            op = self._stage.entry
            raise StepError(f"{op.title()}: what it sends on: {e}", (op.shown or op).step_id, key=key) from None

    def _payloads(self, send: Send) -> list[bytes]:
        items = send.items
        try:
            return pack_groups(items, MESSAGE_BYTES, PAYLOAD_BYTES_MAX) if isinstance(items, dict) else pack_items(items)
        except Exception as e:
            op = self._by_name[send.to].entry
            every = [one for values in items.values() for one in values] if isinstance(items, dict) else items
            kinds = ", ".join(sorted({type(item).__name__ for item in every})[:NAMES_SHOWN])
            raise StepError(
                f"{op.title()}: what is sent to it can't be pickled: {type(e).__name__}: {e}; between stages items are plain data; got {kinds}",
                (op.shown or op).step_id,
                key=send.key,
            ) from e

    def _too_much(self, size: int, count: int) -> TooMuch:
        op = self._stage.entry
        remedy = "let its source read fewer items at once" if self._stage.kind is Kind.SOURCE else "let the steps behind it make less of one item"
        return TooMuch(
            f"{op.title()}: what came of one input is {count} messages and, with its state, {size} bytes; a node takes {EMITS_MAX} and "
            f"{EFFECTS_BYTES_MAX}: {remedy}",
            (op.shown or op).step_id,
        )

    def _failed(self, error: BaseException) -> Any:
        """Undoes what the current input wrote, and says what went wrong."""
        if self._buckets is not None:
            self._buckets.drop()
        if self._wrote:
            self._wrote = False
            self._host.abandon(self._index)
        if isinstance(error, Reject):
            return self._ends.reject(error.reason)
        if isinstance(error, TooMuch) and self._run.read_items > 1:
            # The source is read anew from where it was, first by one batch, then by fewer.
            self._read_items = max(self._read_items // 4, 1)
            return self._ends.retry(0)
        if isinstance(error, StepError):
            cause = error.__cause__
            detail = str(error) if cause is None else f"{error}\n{report(cause).detail}"
            for root in ROOTS:
                detail = detail.replace(root, "")
            return self._ends.fail(Report(type(cause or error).__name__, detail), error)
        return self._ends.fail(report(error), error)

    # -------------------------------------------------------------------------------------------------------------------------- state

    def _read(self, key: str) -> _Kept:
        raw = self._host.state_get(STATE)
        if raw is None:
            return _Kept()
        if raw[:1] != bytes((KEPT_VERSION,)) or len(raw) < _HEADER.size:
            op = self._stage.entry
            found = f"has version {raw[0]} and this skep reads {KEPT_VERSION}" if raw else "is empty"
            raise StepError(
                f"{op.title()}: the kept state of {key!r} {found}: it was written by a later one, or by no flow",
                (op.shown or op).step_id,
                key=key,
            )
        _, ended, values, due = _HEADER.unpack_from(raw)
        data = raw[_HEADER.size :]
        if values:
            more = [self._host.state_get(f"{STATE}.{number}") for number in range(1, values + 1)]
            data = b"".join((data, *(part or b"" for part in more)))
        return _Kept(None if values else raw, data, due, bool(ended), values)

    def _keep(self, key: str, state: bytes | None, due: int, ended: bool) -> None:
        kept, host = self._kept, self._host
        self._wrote = True
        if state is None:
            if kept.data is not None:
                host.state_delete(STATE)
            values = 0
        else:
            first = STATE_VALUE_BYTES_MAX - _HEADER.size
            values = 0 if len(state) <= first else -((first - len(state)) // STATE_VALUE_BYTES_MAX)
            if values >= STATE_VALUES_MAX:
                op = self._stage.entry
                most = STATE_VALUES_MAX * STATE_VALUE_BYTES_MAX
                raise StepError(
                    f"{op.title()}: the state of {key!r} has {len(state)} bytes, pickled; a node keeps {most} of one key at most",
                    (op.shown or op).step_id,
                    key=key,
                )
            raw = _HEADER.pack(KEPT_VERSION, ended, values, due) + (state if not values else state[:first])
            if raw != kept.raw:
                host.state_put(STATE, raw)
            for number in range(1, values + 1):
                begin = first + (number - 1) * STATE_VALUE_BYTES_MAX
                host.state_put(f"{STATE}.{number}", state[begin : begin + STATE_VALUE_BYTES_MAX])
        for number in range(values + 1, kept.values + 1):
            host.state_delete(f"{STATE}.{number}")
        if due != kept.due:
            if due:
                host.timer_set(TIMER, due)
            else:
                host.timer_cancel(TIMER)
