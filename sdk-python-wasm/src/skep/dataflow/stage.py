"""Runs one stage: batches in, batches out, with the state of keys and their timers in between.

This is the only place where operators are carried out. The in-process runner (:mod:`.local`) keeps a :class:`StageRun` for each stage and
worker, lets it hold the logic of many keys, and asks for what changed at the end of an epoch. Elsewhere :func:`process` is the way in: a
function of a stage, inputs, the state of their keys and the time, to sends, state, timers and ends. Both come to the same code, so a flow
gives the same results.

State is a version byte and a pickle. What reads it trusts it: a recovery store is as trusted as the flow's own code.
"""

from __future__ import annotations

import heapq
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice, repeat
from pickle import dumps
from time import monotonic
from typing import Any, TypeAlias
from zlib import crc32

from .errors import AbortExecution, DataflowError, StepError, user_frame
from .graph import Operator, f_repr
from .limits import COOLDOWN, END_BATCH, PASS_ITEMS
from .operators import StatefulBatchLogic, ended, pairs
from .plan import Kind, Node, Stage

#: The version that the state of a key begins with. What begins with a later one is refused.
STATE_VERSION = 1
_STATE_HEAD = bytes((STATE_VERSION,))

_TUPLE = frozenset({tuple})
_STR = frozenset({str})

Batch: TypeAlias = list[Any]
#: For each exit of a stage, what goes there, or None.
Exits: TypeAlias = list[Batch | None]
#: Key, state and timer.
Changes: TypeAlias = list[tuple[str, bytes | None, datetime | None]]


def pack(state: object) -> bytes:
    """State as bytes. Raises whatever pickling raises."""
    return _STATE_HEAD + dumps(state, 5)


def unpack(data: bytes) -> Any:
    """State from bytes. ValueError: it is of a later version, or no state.

    >>> unpack(pack({"n": 1}))
    {'n': 1}
    >>> unpack(b"\\x09")
    Traceback (most recent call last):
        ...
    ValueError: the state has version 9 and this skep reads up to 1: it was written by a later one
    """
    if not data:
        raise ValueError("the state is empty: it was not written by skep")
    if data[0] > STATE_VERSION:
        raise ValueError(f"the state has version {data[0]} and this skep reads up to {STATE_VERSION}: it was written by a later one")
    if data[0] == 0:
        raise ValueError("the state was not written by skep")
    return pickle.loads(data[1:])


@dataclass(slots=True)
class Items:
    """What was sent to a stage. Of a keyed stage: a key with its values; of a sink: a partition with its values. To a source: read."""

    key: str | None
    items: Batch = field(default_factory=list)


@dataclass(slots=True)
class Due:
    """The timer of a key came."""

    key: str


@dataclass(slots=True)
class End:
    """No more will come for this key; None where a stage has no keys."""

    key: str | None


@dataclass(frozen=True)
class Start:
    """The first input of a source: it names its partitions by sending to itself."""


Input: TypeAlias = Items | Due | End | Start


@dataclass(slots=True)
class Send:
    """Items for another stage, or a source's own partition."""

    to: str
    #: A key, a partition, or None for any worker.
    key: str | None
    #: Where the address is one of several keys: their values by key.
    items: Batch | dict[str, Batch]


@dataclass(slots=True)
class Outcome:
    """What came of one input."""

    sends: list[Send] = field(default_factory=list)
    #: State by key; None: it goes.
    writes: dict[str, bytes | None] = field(default_factory=dict)
    #: The one timer of a key; None: it has none.
    timers: dict[str, datetime | None] = field(default_factory=dict)
    #: This key of a source has ended.
    ended: bool = False


def process(
    stage: Stage,
    inputs: Iterable[Input],
    load: Callable[[str], bytes | None],
    now: datetime,
    *,
    sink_parts: dict[str, list[str]] | None = None,
    worker: int = 0,
    workers: int = 1,
    epoch: int = 1,
    begin: Callable[[int], None] = lambda index: None,
    by_name: dict[str, Stage] | None = None,
    run: StageRun | None = None,
    split: Splitter | None = None,
    settle: Callable[[int, Outcome | StepError], None] = lambda index, outcome: None,
) -> list[Outcome | StepError]:
    """Runs a stage on some inputs; one that fails leaves nothing but its error, and the others go on.

    ``begin`` is called with the number of each input before it is worked on, and ``settle`` with what came of it before the next is taken. A
    StepError that it raises of an outcome is what came of the input, and it is told so. ``load`` gives the kept state of a key; what a former
    outcome of the same call wrote counts before it. ``by_name``: the stages of the plan that this one sends to, as what is sent is split by
    their kind, or as ``split`` does it. ``sink_parts`` may give the partitions of a sink's stage, which are listed otherwise.

    ``run``: that of a call before, which may still hold in memory what it kept. What it holds of a key counts only where it is, to the byte,
    what ``load`` gives now: whoever else worked on the key meanwhile, and whatever became of what that call wrote.
    """
    written: dict[str, bytes | None] = {}

    def kept(key: str) -> bytes | None:
        return written[key] if key in written else load(key)

    if run is None:
        run = StageRun(stage, load=kept, worker=worker, workers=workers, epoch=lambda: epoch)
    else:
        run._load = kept
    split = split or Splitter(by_name or {}, sink_parts)
    found: list[Outcome | StepError] = []
    for index, given in enumerate(inputs):
        begin(index)
        key = None if isinstance(given, Start) else given.key
        try:
            if key is not None:
                run.meet(key, kept(key))
            outcome = run.take(given, now, split)
            settle(index, outcome)
            written.update(outcome.writes)
            found.append(outcome)
        except StepError as e:
            if key is not None:
                run.forget(key)
            settle(index, e)
            found.append(e)
        except BaseException:
            # Whoever catches it may go on with the run.
            if key is not None:
                run.forget(key)
            raise
    return found


class Splitter:
    """Cuts what goes to a stage into what has one address there."""

    def __init__(self, stages: dict[str, Stage], sink_parts: dict[str, list[str]] | None = None) -> None:
        self._stages = stages
        self._parts: dict[str, list[str]] = dict(sink_parts or {})

    def parts(self, stage: Stage) -> list[str]:
        """The sorted partitions of a sink's stage, listed once."""
        parts = self._parts.get(stage.name)
        if parts is None:
            parts = self._parts[stage.name] = list_parts(stage)
        return parts

    def split(self, to: str, items: Batch) -> Iterator[tuple[str | None, Batch | dict[str, Batch]]]:
        """Address and items (without their keys, where the key is the address)."""
        stage = self._stages[to]
        if stage.kind is Kind.KEYED:
            yield from self.keyed(group(stage.entry, items))
        elif stage.kind is Kind.SINK:
            yield from by_part(stage, self.parts(stage), items).items()
        else:
            yield None, items

    def keyed(self, groups: dict[str, Batch]) -> Iterable[tuple[str, Batch | dict[str, Batch]]]:
        """The same of values by key."""
        return groups.items()

    def gather(self, exits: tuple[str, ...]) -> Gathered:
        """For what goes to these stages bit by bit."""
        return Gathered(self, [self._stages[to] for to in exits])


class Gathered:
    """What goes to the exits of a stage, bit by bit: so that of many items only values are held, by key, and not each with its key."""

    def __init__(self, split: Splitter, stages: list[Stage]) -> None:
        self._split = split
        self._groups: list[tuple[Stage, defaultdict[str, Batch] | None, Batch]] = [
            (stage, defaultdict(list) if stage.kind is Kind.KEYED else None, []) for stage in stages
        ]

    def add(self, exits: Exits | None) -> None:
        """More of it. Raises a StepError as :func:`group` does."""
        if exits is None:
            return
        for (stage, groups, held), items in zip(self._groups, exits):
            if not items:
                continue
            if groups is None:
                held.extend(items)
            else:
                group(stage.entry, items, groups)

    def sends(self) -> list[Send]:
        """All of it, by address."""
        found = []
        for stage, groups, held in self._groups:
            if groups is not None:
                check_keys(stage.entry, groups)
                groups.default_factory = None
                found += [Send(stage.name, address, some) for address, some in self._split.keyed(groups)]
            elif held:
                found += [Send(stage.name, address, some) for address, some in self._split.split(stage.name, held)]
        return found


def group(op: Operator, items: Batch, groups: defaultdict[str, Batch] | None = None) -> dict[str, Batch]:
    """Values by key, in their order; behind those that ``groups`` has. Raises a StepError for what is no ``(key, value)``; and, without
    ``groups``, where a key is no text: else :func:`check_keys` is for later."""
    found = defaultdict(list) if groups is None else groups
    try:
        # Unpacking takes two of anything for a key and a value; of tuples it refuses what is not two.
        if not _TUPLE.issuperset(map(type, items)):
            pairs((op.shown or op).step_id, items)
        for key, value in items:
            found[key].append(value)
    except ValueError:
        wrong = next(item for item in items if len(item) != 2)
        raise StepError(f"{op.title()} takes (key, value) tuples; got {wrong!r}", (op.shown or op).step_id) from None
    except TypeError as e:  # No tuple, or a key that can't be one of a dict.
        raise StepError(f"{op.title()} takes (key, value) tuples with text for a key: {e}", (op.shown or op).step_id) from e
    if groups is None:
        check_keys(op, found)
        # A plain one for whoever asks it for a key.
        found.default_factory = None
    return found


def check_keys(op: Operator, groups: dict[str, Batch]) -> None:
    """Raises a StepError where a key is no text."""
    if not _STR.issuperset(map(type, groups)):
        for key in groups:
            if not isinstance(key, str):
                raise _no_text(op, key)


def _no_text(op: Operator, key: object) -> StepError:
    return StepError(
        f"{op.title()} takes text for a key; got {key!r} ({type(key).__name__}); convert it in key_on", (op.shown or op).step_id
    )


def by_part(stage: Stage, parts: list[str], items: Batch, *, whole: bool = False) -> dict[str, Batch]:
    """Values (or whole items) by the partition of a sink, in their order."""
    op = stage.entry
    part_fn, count = op.args["sink"].part_fn, len(parts)
    chosen: dict[str, Batch] = {}
    found: dict[str, Batch] = {}
    try:
        checked = pairs((op.shown or op).step_id, items)
    except TypeError as e:
        raise StepError(f"{op.title()} writes to partitions, so it takes (key, value) tuples: {e}", (op.shown or op).step_id) from e
    for item in checked:
        key = item[0]
        if not isinstance(key, str):
            raise _no_text(op, key)
        held = chosen.get(key)
        if held is None:
            try:
                part = parts[part_fn(key) % count]
            except Exception as e:
                raise failure(stage.nodes[0], e, key=key, doing="part_fn") from e
            held = chosen[key] = found.setdefault(part, [])
        held.append(item if whole else item[1])
    return found


def list_parts(stage: Stage) -> list[str]:
    """The sorted partitions of a source's or a sink's stage; a StepError where that fails, or there are several of a name, or a sink has none."""
    op = stage.entry
    owner = op.args["source" if stage.kind is Kind.SOURCE else "sink"]
    try:
        parts = list(owner.list_parts())
    except Exception as e:
        raise failure(stage.nodes[0], e) from e
    wrong = [part for part in parts if not isinstance(part, str)]
    if wrong:
        raise StepError(f"{op.title()}: list_parts must return text; got {wrong[0]!r} ({type(wrong[0]).__name__})", op.step_id)
    if len(set(parts)) != len(parts):
        twice = sorted({part for part in parts if parts.count(part) > 1})
        raise StepError(f"{op.title()}: list_parts names partitions twice: {', '.join(twice)}", op.step_id)
    if not parts and stage.kind is Kind.SINK:
        raise StepError(f"{op.title()}: list_parts names no partition, so there is nowhere to write", op.step_id)
    return sorted(parts)


def close_shared(stages: Iterable[Stage], shared: dict[str, Any]) -> None:
    """Closes what a worker's stages share, its sinks without partitions, at the end of a flow. A StepError where one fails."""
    for name, part in shared.items():
        try:
            part.close()
        except Exception as e:
            node = next(node for stage in stages for node in stage.nodes if node.op.step_id == name)
            raise failure(node, e, doing="close") from e


def failure(node: Node, error: BaseException, *, key: str | None = None, part: str | None = None, doing: str | None = None) -> StepError:
    """The error of a step, which names it, the key or partition, and the user's line. Chain it from ``error``."""
    if isinstance(error, StepError):
        return error
    op = node.op
    where = user_frame(error)
    text = f"{op.title()} failed"
    if doing:
        text += f" in {doing}"
    if key is not None:
        text += f" for the key {key!r}"
    if part is not None:
        text += f" for the partition {part!r}"
    text += f": {type(error).__name__}: {error}"
    if where:
        text += f"; raised at {where}"
    return StepError(text, (op.shown or op).step_id, key=key, part=part, where=where)


def worker_of(key: str, workers: int) -> int:
    """The worker that has a key: the same in every run with so many workers, whatever the process."""
    return crc32(key.encode("utf-8", "surrogatepass")) % workers


def _nothing(key: str) -> bytes | None:
    return None


class StageRun:
    """A stage on one worker, with what it holds in memory.

    ``load`` gives the kept state of a key. ``shared`` holds the parts of dynamic sinks, by step: one sink may be reached from several stages
    of a worker. ``keys`` lists the keys with kept state, for the end of the stream. ``fetch`` is called with the keys that ``load`` is about to be
    called with, for whom it costs less to know them at once.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        load: Callable[[str], bytes | None] = _nothing,
        keys: Callable[[], Iterable[str]] = lambda: (),
        fetch: Callable[[list[str]], None] | None = None,
        worker: int = 0,
        workers: int = 1,
        epoch: Callable[[], int] = lambda: 1,
        shared: dict[str, Any] | None = None,
        track: bool = True,
    ) -> None:
        self.stage = stage
        self.worker = worker
        self.workers = workers
        self._load = load
        self._keys = keys
        #: May be set and taken away between two calls.
        self.fetch = fetch
        self._epoch = epoch
        self._track = track
        self._shared: dict[str, Any] = {} if shared is None else shared
        self._size = len(stage.nodes) + len(stage.exits)
        self._first = stage.nodes[0].targets[0] if stage.nodes[0].targets else ()
        self._body = [(index, self._step(node), node.targets) for index, node in enumerate(stage.nodes) if index]
        #: Keys whose state may differ from what is kept.
        self._changed: set[str] = set()
        #: Keyed: the logic of each key that is in memory. Sources and sinks: the open partitions.
        self.live: dict[str, Any] = {}
        self._due: dict[str, datetime] = {}
        self._heap: list[tuple[datetime, str]] = []
        self._untimed: dict[type, bool] = {}
        self._ended: set[str] = set()
        #: The partitions of a sink, once they were asked for.
        self._listed: list[str] | None = None
        #: Sources: when to read a partition again; absent: at once.
        self.awake: dict[str, datetime] = {}
        #: Sources: one :meth:`read` goes on until it has so many items, or so many seconds passed; 1: one batch.
        self.read_items = 1
        self.read_seconds = 0.0
        #: Whether the last one had as many.
        self.read_full = False
        #: What memory has of a key, as it was packed last by :meth:`take`.
        self._packs: dict[str, bytes] = {}

    # ------------------------------------------------------------------------------------------------------------------------ steps

    def _step(self, node: Node) -> Callable[[Batch], Any]:
        """A core operator as a function of a batch; for ``branch`` it gives two batches."""
        op = node.op
        args = op.args
        match op.op_type:
            case "flat_map_batch":
                mapper = args["mapper"]

                def mapped(items: Batch) -> Batch:
                    got = mapper(items)
                    try:
                        found = iter(got)
                    except TypeError:
                        raise TypeError(f"{f_repr(mapper)} must return something iterable; got {got!r} ({type(got).__name__})") from None
                    return list(found)

                return mapped
            case "branch":
                predicate = args["predicate"]

                def branched(items: Batch) -> tuple[Batch, Batch]:
                    trues: Batch = []
                    falses: Batch = []
                    for item in items:
                        found = predicate(item)
                        if found is True:
                            trues.append(item)
                        elif found is False:
                            falses.append(item)
                        else:
                            raise TypeError(
                                f"its predicate {f_repr(predicate)} must return True or False; got {found!r} ({type(found).__name__})"
                            )
                    return trues, falses

                return branched
            case "inspect_debug":
                inspector, step_id, epoch, worker = args["inspector"], op.step_id, self._epoch, self.worker

                def inspected(items: Batch) -> Batch:
                    now = epoch()
                    for item in items:
                        inspector(step_id, item, now, worker)
                    return items

                return inspected
            case "merge":
                return lambda items: items
            case "output":
                name, sink, shared = op.step_id, args["sink"], self._shared

                def written(items: Batch) -> Batch:
                    part = shared.get(name)
                    if part is None:
                        build = getattr(sink, "build", None)
                        if build is None:
                            raise TypeError(f"a sink is a FixedPartitionedSink or a DynamicSink; got {type(sink).__name__}")
                        part = shared[name] = build(name, self.worker, self.workers)
                    part.write_batch(items)
                    return []

                return written
        raise DataflowError(f"{op.title()}: no core operator is called `{op.op_type}`")

    def _pass(self, items: Batch) -> Exits | None:
        """Passes what the entry emitted through the other steps, to the exits."""
        if not items:
            return None
        pending: Exits = [None] * self._size
        _put(pending, self._first, items)
        index = 0
        try:
            for index, step, targets in self._body:
                got = pending[index]
                if got:
                    out = step(got)
                    if len(targets) == 1:
                        if out:
                            _put(pending, targets[0], out)
                    else:
                        for target, one in zip(targets, out):
                            if one:
                                _put(pending, target, one)
        except AbortExecution:
            raise
        except Exception as e:
            raise failure(self.stage.nodes[index], e) from e
        return pending[len(self.stage.nodes) :] if self.stage.exits else None

    # ------------------------------------------------------------------------------------------------------------------------ keyed

    def _build(self, key: str) -> Any:
        state = self._state(key)
        logic = self.stage.entry.args["builder"](state)
        kind = type(logic)
        if kind not in self._untimed:
            for name in ("on_batch", "on_notify", "on_eof", "notify_at", "snapshot"):
                if not callable(getattr(logic, name, None)):
                    raise TypeError(
                        f"{f_repr(self.stage.entry.args['builder'])} must return a StatefulBatchLogic; got {logic!r} ({kind.__name__})"
                    )
            self._untimed[kind] = getattr(kind, "notify_at", None) is StatefulBatchLogic.notify_at
        self.live[key] = logic
        return logic

    def _state(self, key: str) -> Any:
        """The kept state of a key, unless it changed since: then what is kept is out of date, and there is none."""
        if key in self._changed:
            return None
        data = self._load(key)
        if data is None:
            return None
        try:
            return unpack(data)
        except Exception as e:
            op = self.stage.entry
            raise StepError(
                f"{op.title()}: the kept state of {key!r} can't be read: {type(e).__name__}: {e}", (op.shown or op).step_id, key=key
            ) from e

    def _after(self, key: str, logic: Any, got: Any, name: str, out: Batch) -> bool:
        """Takes what a method returned. Whether the logic is retained."""
        if got.__class__ is not tuple or len(got) != 2:
            got = ended((self.stage.entry.shown or self.stage.entry).step_id, name, got)
        emit, discard = got
        out.extend(zip(repeat(key), emit))
        if discard:
            self.live.pop(key, None)
            self._due.pop(key, None)
            return False
        return True

    def _ask(self, key: str, logic: Any) -> None:
        at = logic.notify_at()
        if at is None:
            self._due.pop(key, None)
        elif self._due.get(key) != at:
            if not isinstance(at, datetime) or at.tzinfo is None:
                raise TypeError(f"notify_at must return a datetime with a time zone, or None; got {at!r}")
            self._due[key] = at
            heapq.heappush(self._heap, (at, key))

    def items(self, items: Batch, now: datetime) -> Exits | None:
        """Takes a batch as it is sent to the stage. What goes to each exit."""
        kind = self.stage.kind
        if kind is Kind.KEYED:
            return self.groups(group(self.stage.entry, items), now)
        if kind is Kind.SINK:
            for part, values in by_part(self.stage, self._parts(), items).items():
                self.write(part, values)
            return None
        return self._pass(items)

    def groups(self, groups: dict[str, Batch], now: datetime) -> Exits | None:
        """Keyed: takes values by key."""
        out: Batch = []
        live, due, untimed, extend = self.live, self._due, self._untimed, out.extend
        if self.fetch is not None:
            self._fetch_new(groups, self.fetch)
        key, name = "", "the builder"
        try:
            for key, values in groups.items():
                logic = live.get(key)
                if logic is None:
                    name = "the builder"
                    logic = self._build(key)
                name = "on_batch"
                got = logic.on_batch(values)
                if got.__class__ is not tuple or len(got) != 2:
                    got = ended((self.stage.entry.shown or self.stage.entry).step_id, name, got)
                emit, discard = got
                extend(zip(repeat(key), emit))
                if discard:
                    live.pop(key, None)
                    due.pop(key, None)
                    continue
                if untimed[type(logic)]:
                    continue
                at = due.get(key)
                if at is not None and at <= now:
                    name = "on_notify"
                    del due[key]
                    if not self._after(key, logic, logic.on_notify(), name, out):
                        continue
                name = "notify_at"
                self._ask(key, logic)
        except AbortExecution:
            raise
        except Exception as e:
            raise failure(self.stage.nodes[0], e, key=key, doing=name) from e
        finally:
            if self._track:
                self._changed.update(groups)
        return self._pass(out)

    def next_due(self) -> datetime | None:
        """When the next timer of any key comes."""
        heap, due = self._heap, self._due
        while heap and due.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def set_due(self, key: str, at: datetime) -> None:
        """A timer that was kept."""
        self._due[key] = at
        heapq.heappush(self._heap, (at, key))

    def due(self, now: datetime) -> Exits | None:
        """Keyed: calls those whose time came, each once."""
        keys = []
        while (at := self.next_due()) is not None and at <= now:
            keys.append(heapq.heappop(self._heap)[1])
            del self._due[keys[-1]]
        return self._pass(self._each(keys, "on_notify"))

    def _fetch_new(self, keys: Iterable[str], fetch: Callable[[list[str]], None]) -> None:
        live, changed = self.live, self._changed
        new = [key for key in keys if key not in live and key not in changed]
        if new:
            fetch(new)

    def _each(self, keys: list[str], name: str) -> Batch:
        out: Batch = []
        if self.fetch is not None:
            self._fetch_new(keys, self.fetch)
        key, doing = "", "the builder"
        try:
            for key in keys:
                logic = self.live.get(key)
                if logic is None:
                    doing = "the builder"
                    logic = self._build(key)
                doing = name
                if self._track:
                    self._changed.add(key)
                if self._after(key, logic, getattr(logic, name)(), name, out) and not self._untimed[type(logic)]:
                    doing = "notify_at"
                    self._ask(key, logic)
        except AbortExecution:
            raise
        except Exception as e:
            raise failure(self.stage.nodes[0], e, key=key, doing=doing) from e
        return out

    def end(self) -> Iterator[Exits]:
        """Keyed: the end of the stream for every key, those with kept state too."""
        if self.stage.kind is not Kind.KEYED or getattr(self.stage.entry.args["builder"], "quiet_end", False):
            return
        gone = self._changed - self.live.keys()
        keys = sorted(self.live.keys() | (set(self._keys()) - gone))
        for start in range(0, len(keys), END_BATCH):
            exits = self._pass(self._each(keys[start : start + END_BATCH], "on_eof"))
            if exits is not None:
                yield exits

    # ---------------------------------------------------------------------------------------------------------------------- sources

    def open(self, part: str) -> None:
        """Opens a partition of a source or sink where it was kept, or at its start."""
        op = self.stage.entry
        try:
            if self.stage.kind is Kind.WORKER_SOURCE:
                build = getattr(op.args["source"], "build", None)
                if build is None:
                    raise TypeError(f"a source is a FixedPartitionedSource or a DynamicSource; got {type(op.args['source']).__name__}")
                opened = build(op.step_id, self.worker, self.workers)
            else:
                state = self._state(part)
                # A source's state tells whether it had ended, too.
                if state is not None and self.stage.kind is Kind.SOURCE:
                    state = state[1]
                owner = op.args["source" if self.stage.kind is Kind.SOURCE else "sink"]
                opened = owner.build_part(op.step_id, part, state)
            if self.stage.kind is not Kind.SINK:
                self._wake(part, opened, None)
        except Exception as e:
            raise failure(self.stage.nodes[0], e, part=part, doing="opening") from e
        self.live[part] = opened

    def _wake(self, part: str, opened: Any, otherwise: datetime | None) -> None:
        at = opened.next_awake()
        if at is None:
            at = otherwise
        if at is None:
            self.awake.pop(part, None)
        else:
            if not isinstance(at, datetime) or at.tzinfo is None:
                raise TypeError(f"next_awake must return a datetime with a time zone, or None; got {at!r}")
            self.awake[part] = at

    def poll(self, part: str, now: datetime) -> tuple[Exits | None, bool]:
        """Reads a batch of an open partition. What goes to each exit, and whether the partition has ended."""
        items = self._next(part, now)
        return self._pass(items), part in self._ended

    def read(self, part: str, now: datetime, take: Callable[[Exits | None], None]) -> bool:
        """Reads some batches of an open partition, as :attr:`read_items` and :attr:`read_seconds` say. ``take`` is called with what goes to each
        exit, each time that there are enough items to pass. Whether the partition has ended."""
        items: Batch = []
        count = 0
        until = monotonic() + self.read_seconds if self.read_items > 1 else 0.0
        over = False
        while not over:
            more = self._next(part, now)
            count += len(more)
            over = not more or count >= self.read_items or part in self._ended or part in self.awake or monotonic() >= until
            items = items + more if items else more
            if over or len(items) >= PASS_ITEMS:
                began = monotonic()
                take(self._pass(items))
                until += monotonic() - began
                items = []
        self.read_full = count >= self.read_items
        return part in self._ended

    def _next(self, part: str, now: datetime) -> Batch:
        opened = self.live[part]
        if self._track:
            self._changed.add(part)
        doing = "next_batch"
        try:
            try:
                items = list(opened.next_batch())
            except StopIteration:
                self._ended.add(part)
                return []
            doing = "next_awake"
            self._wake(part, opened, None if items else now + COOLDOWN)
            return items
        except AbortExecution:
            raise
        except Exception as e:
            raise failure(self.stage.nodes[0], e, part=part, doing=doing) from e

    # ------------------------------------------------------------------------------------------------------------------------ sinks

    def _parts(self) -> list[str]:
        if self._listed is None:
            self._listed = list_parts(self.stage)
        return self._listed

    def write(self, part: str, values: Batch) -> None:
        """Writes to a partition of a sink."""
        if part not in self.live:
            self.open(part)
        if self._track:
            self._changed.add(part)
        try:
            self.live[part].write_batch(values)
        except AbortExecution:
            raise
        except Exception as e:
            raise failure(self.stage.nodes[0], e, part=part, doing="write_batch") from e

    def close(self, part: str) -> None:
        """Closes a partition, if it is open. Its state is not asked for again."""
        opened = self.live.pop(part, None)
        if opened is None:
            return
        try:
            opened.close()
        except Exception as e:
            raise failure(self.stage.nodes[0], e, part=part, doing="close") from e

    # ------------------------------------------------------------------------------------------------------------------------ state

    def changes(self) -> Iterator[tuple[str, bytes | None, datetime | None]]:
        """Key, state and timer of all that may have changed since the last call; no state: it was discarded."""
        for key in sorted(self._changed):
            yield key, self._packed(key), self._due.get(key)
        self._changed.clear()

    def pack(self, part: str) -> bytes:
        """The state of a partition that was just opened."""
        state = self._packed(part) or b""
        self._packs[part] = state
        return state

    def _packed(self, key: str) -> bytes | None:
        held = self.live.get(key)
        if held is None or self.stage.kind is Kind.WORKER_SOURCE:
            return None
        keyed = self.stage.kind is Kind.KEYED
        names = {"key": key} if keyed else {"part": key}
        try:
            state = held.snapshot()
        except Exception as e:
            raise failure(self.stage.nodes[0], e, **names, doing="snapshot") from e
        if self.stage.kind is Kind.SOURCE:
            state = (key in self._ended, state)
        try:
            return pack(state)
        except Exception as e:
            op = self.stage.entry
            raise StepError(
                f"{op.title()}: the state of the {'key' if keyed else 'partition'} {key!r} can't be pickled: {type(e).__name__}: {e}; "
                f"let `snapshot` return plain data; got {type(state).__name__}",
                (op.shown or op).step_id,
                **names,
            ) from e

    def slim(self, most: int) -> bool:
        """Lets the longest held logics go beyond ``most``: they are built again from what is kept. To be called right after that was written.
        Whether there were any."""
        if self.stage.kind is not Kind.KEYED or len(self.live) <= most or self._changed:
            return False
        for key in list(self.live)[: len(self.live) - most]:
            del self.live[key]
        return True

    def ended_parts(self) -> set[str]:
        """The open partitions of a source that have ended."""
        return self._ended & self.live.keys()

    def close_ended(self) -> None:
        """Closes the partitions of a source that have ended."""
        for part in self.ended_parts():
            self.close(part)

    def forget(self, key: str) -> None:
        """Drops what memory holds of a key, for an input that failed: what is kept counts."""
        self.live.pop(key, None)
        self._due.pop(key, None)
        self._changed.discard(key)
        self._packs.pop(key, None)
        self._ended.discard(key)
        self.awake.pop(key, None)

    def meet(self, key: str, data: bytes | None) -> None:
        """Drops what memory holds of a key, unless it is what is kept of it."""
        if key in self.live and (data is None or self._packs.get(key) != data):
            self.forget(key)

    def expect(self, key: str, at: datetime | None) -> None:
        """The timer that is set for a key, whatever memory has of it."""
        if at is None:
            self._due.pop(key, None)
        else:
            self._due[key] = at

    def rest(self, most: int) -> None:
        """Between two calls of :func:`process`: holds at most so many keys, of which the longest held go, and no list of timers, which others
        keep here."""
        self._heap.clear()
        if len(self.live) > most:
            for key in list(islice(self.live, len(self.live) - most)):
                self.forget(key)

    # ------------------------------------------------------------------------------------------------------------------- one by one

    def take(self, given: Input, now: datetime, split: Splitter) -> Outcome:
        """Takes one input, and gives all that came of it. Raises a StepError; then :meth:`forget` its key."""
        outcome = Outcome()
        kind = self.stage.kind
        exits: Exits | None = None
        if isinstance(given, Start):
            if kind is Kind.SOURCE:
                outcome.sends = [Send(self.stage.name, part, []) for part in list_parts(self.stage)]
            elif kind is Kind.WORKER_SOURCE:
                outcome.sends = [Send(self.stage.name, f"worker-{index}", []) for index in range(self.workers)]
            return outcome
        key = given.key
        if key is None:
            if isinstance(given, Items):
                exits = self._pass(given.items)
        elif kind is Kind.KEYED:
            if isinstance(given, Items):
                exits = self.groups({key: given.items}, now)
            else:
                self._due.pop(key, None)
                exits = self._pass(self._each([key], "on_notify" if isinstance(given, Due) else "on_eof"))
            outcome.timers[key] = self._due.get(key)
        elif kind is Kind.SINK:
            if isinstance(given, Items):
                self.write(key, given.items)
            elif isinstance(given, End):
                if key not in self.live:
                    self.open(key)
                outcome.writes[key] = self._packed(key)
                self.close(key)
        else:
            if key not in self.live:
                self.open(key)
            self.awake.pop(key, None)
            gathered = split.gather(self.stage.exits)
            outcome.ended = self.read(key, now, gathered.add)
            outcome.sends = gathered.sends()
            outcome.timers[key] = None if outcome.ended else self.awake.get(key, now)
        if self._changed:
            # Of this key alone.
            self._changed.clear()
            state = outcome.writes[key] = self._packed(key)  # type: ignore[index, arg-type]
            if state is None:
                self._packs.pop(key, None)  # type: ignore[arg-type]
            else:
                self._packs[key] = state  # type: ignore[index]
        if exits:
            outcome.sends = self.sends(exits, split)
        return outcome

    def sends(self, exits: Exits, split: Splitter) -> list[Send]:
        """What goes to each exit, by address."""
        return [
            Send(to, address, some) for to, items in zip(self.stage.exits, exits) if items for address, some in split.split(to, items)
        ]

    def take_keys(
        self, groups: dict[str, Batch], due: list[str], dues: dict[str, datetime], now: datetime, *, over: bool = False
    ) -> tuple[Exits | None, Changes]:
        """Keyed: takes values of several keys, and calls those whose timer came, or, ``over``, whose stream ended. ``dues``: the timers that are
        set for the former, whatever memory has of them. What goes to each exit; and of each key its state, None: it goes, and its timer. Raises a
        StepError; then :meth:`forget` all keys.

        A key is in ``groups`` or in ``due``. What ``load`` gave of a key counts as long as memory holds its logic.
        """
        self._changed.clear()
        self._heap.clear()
        self._due = dues
        exits: Exits | None = None
        if groups:
            exits = self.groups(groups, now)
        if due:
            more = self._pass(self._each(due, "on_eof" if over else "on_notify"))
            exits = more if exits is None else exits if more is None else [_both(a, b) for a, b in zip(exits, more)]
        live, get = self.live, self._due.get
        changes: Changes = []
        for key in self._changed:
            logic = live.get(key)
            if logic is None:
                changes.append((key, None, None))
                continue
            try:
                state = _STATE_HEAD + dumps(logic.snapshot(), 5)
            except Exception:
                # It says what is wrong.
                state = self._packed(key) or b""
            changes.append((key, state, get(key)))
        self._changed.clear()
        return exits, changes


def _both(first: Batch | None, second: Batch | None) -> Batch | None:
    return first + second if first and second else first or second


def _put(pending: Exits, targets: tuple[int, ...], items: Batch) -> None:
    """Hands items to each target. Each gets a list that nobody else has: functions of users may change theirs."""
    own = True
    for target in targets:
        held = pending[target]
        if held is not None:
            pending[target] = held + items
        elif own:
            pending[target] = items
            own = False
        else:
            pending[target] = list(items)
