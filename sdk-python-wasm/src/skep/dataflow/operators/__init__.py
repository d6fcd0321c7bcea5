"""The operators.

Eight of them are core: :func:`input`, :func:`output`, :func:`branch`, :func:`flat_map_batch`, :func:`merge`, :func:`redistribute`,
:func:`inspect_debug` and :func:`stateful_batch`. All others are made of these.

``step_id`` is unique in its flow (or in the operator that calls), and has no periods. A *keyed* stream is one of ``(key, value)`` tuples
whose key is text; state is kept, and order held, by key.
"""

from __future__ import annotations

import builtins
import itertools
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Generic, Literal, TypeAlias, TypeGuard, TypeVar, overload

from .. import KeyedStream
from ..graph import Dataflow, Stream, f_repr, operator
from ..inputs import Source
from ..outputs import DynamicSink, Sink, StatelessSinkPartition

X = TypeVar("X")
Y = TypeVar("Y")
U = TypeVar("U")
V = TypeVar("V")
W = TypeVar("W")
W_co = TypeVar("W_co", covariant=True)
S = TypeVar("S")
DK = TypeVar("DK")
DV = TypeVar("DV")
F = TypeVar("F", bound=Callable[..., Any])

#: Which values of a side a join keeps: the first, the last, or all.
JoinInsertMode: TypeAlias = Literal["first", "last", "product"]
#: When a join emits: once all sides are there, at the end of the stream, or at each value.
JoinEmitMode: TypeAlias = Literal["complete", "final", "running"]

__all__ = [
    "BranchOut",
    "JoinEmitMode",
    "JoinInsertMode",
    "KeyedStream",
    "StatefulBatchLogic",
    "StatefulLogic",
    "TTLCache",
    "branch",
    "collect",
    "count_final",
    "enrich_cached",
    "filter",
    "filter_map",
    "filter_map_value",
    "filter_value",
    "flat_map",
    "flat_map_batch",
    "flat_map_value",
    "flatten",
    "fold_final",
    "input",
    "inspect",
    "inspect_debug",
    "join",
    "key_on",
    "key_rm",
    "map",
    "map_value",
    "max_final",
    "merge",
    "min_final",
    "output",
    "raises",
    "redistribute",
    "reduce_final",
    "stateful",
    "stateful_batch",
    "stateful_flat_map",
    "stateful_map",
]

_TUPLE = frozenset({tuple})
_TWO = frozenset({2})
_STR = frozenset({str})


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


def _identity(x: X) -> X:
    return x


def pairs(step_id: str, items: list[Any]) -> list[tuple[Any, Any]]:
    """The items, once it is sure that each is a ``(key, value)`` tuple; a TypeError names the step and the item else.

    A tuple it must be, not just two of something: unpacking takes the text "ab" for the key "a" with the value "b".
    """
    if _TUPLE.issuperset(builtins.map(type, items)) and _TWO.issuperset(builtins.map(len, items)):
        return items
    for item in items:
        if not isinstance(item, tuple) or len(item) != 2:
            raise TypeError(f"step {step_id!r} takes (key, value) tuples from upstream; got {_short(item)}; add key_on before it")
    return items


def _short(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def _not_bool(step_id: str, predicate: Any, got: object) -> TypeError:
    return TypeError(f"step {step_id!r}: its predicate {f_repr(predicate)} must return True or False; got {_short(got)}")


def _callable(step_id: str, name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"step {step_id!r}: `{name}` must be a function; got {_short(value)}")


# ---------------------------------------------------------------------------------------------------------------------------------- core


def _down(step_id: str, up: Stream[Any], port: str = "down") -> Stream[Any]:
    return Stream(f"{step_id}.{port}", up.flow())


@dataclass(frozen=True)
class BranchOut(Generic[X, Y]):
    """The two streams of :func:`branch`."""

    #: Items for which the predicate was True.
    trues: Stream[X]
    #: The others.
    falses: Stream[Y]


@overload
def branch(step_id: str, up: Stream[X], predicate: Callable[[X], TypeGuard[Y]]) -> BranchOut[Y, X]: ...
@overload
def branch(step_id: str, up: Stream[X], predicate: Callable[[X], bool]) -> BranchOut[X, X]: ...
@operator(_core=True)
def branch(step_id: str, up: Stream[X], predicate: Callable[[X], Any]) -> BranchOut[Any, X]:
    """Parts a stream in two.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> parted = op.branch("even", op.input("in", flow, TestingSource([1, 2, 3])), lambda x: x % 2 == 0)
    >>> _ = op.inspect("evens", parted.trues)
    >>> _ = op.inspect("odds", parted.falses)
    >>> run_main(flow)
    eg.odds: 1
    eg.evens: 2
    eg.odds: 3
    """
    _callable(step_id, "predicate", predicate)
    return BranchOut(_down(step_id, up, "trues"), _down(step_id, up, "falses"))


@operator(_core=True)
def flat_map_batch(step_id: str, up: Stream[X], mapper: Callable[[list[X]], Iterable[Y]]) -> Stream[Y]:
    """Maps whole batches: one call for the items that happen to be there together. What a batch is, is up to source and runner.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([1, 2, 3], batch_size=2))
    >>> _ = op.inspect("out", op.flat_map_batch("sums", s, lambda xs: [sum(xs)]))
    >>> run_main(flow)
    eg.out: 3
    eg.out: 3
    """
    _callable(step_id, "mapper", mapper)
    return _down(step_id, up)


@operator(_core=True)
def input(step_id: str, flow: Dataflow, source: Source[X]) -> Stream[X]:
    """Brings items into a flow.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> _ = op.inspect("out", op.input("in", flow, TestingSource([10, 20])))
    >>> run_main(flow)
    eg.out: 10
    eg.out: 20
    """
    if not isinstance(source, Source):
        raise TypeError(
            f"step {step_id!r}: `source` must be a FixedPartitionedSource, DynamicSource or SimplePollingSource; got {_short(source)}; "
            "for a list there is TestingSource"
        )
    return Stream(f"{step_id}.down", flow)


def _print_debug(step_id: str, item: object, epoch: int, worker: int) -> None:
    print(f"{step_id} W{worker} @{epoch}: {item!r}", flush=True)


@operator(_core=True)
def inspect_debug(step_id: str, up: Stream[X], inspector: Callable[[str, X, int, int], None] = _print_debug) -> Stream[X]:
    """Shows items with their epoch and worker: ``inspector(step_id, item, epoch, worker)``, which prints them unless given.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> _ = op.inspect_debug("out", op.input("in", flow, TestingSource("ab")))
    >>> run_main(flow)
    eg.out W0 @1: 'a'
    eg.out W0 @1: 'b'
    """
    _callable(step_id, "inspector", inspector)
    return _down(step_id, up)


@overload
def merge(step_id: str, *ups: Stream[X]) -> Stream[X]: ...
@overload
def merge(step_id: str, *ups: Stream[Any]) -> Stream[Any]: ...
@operator(_core=True)
def merge(step_id: str, *ups: Stream[Any]) -> Stream[Any]:
    """Makes one stream of several.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> ones = op.input("ones", flow, TestingSource([1, 2]))
    >>> tens = op.input("tens", flow, TestingSource([10, 20]))
    >>> _ = op.inspect("out", op.merge("both", ones, tens))
    >>> run_main(flow)
    eg.out: 1
    eg.out: 10
    eg.out: 2
    eg.out: 20
    """
    return _down(step_id, ups[0])


@operator(_core=True)
def output(step_id: str, up: Stream[X], sink: Sink[X]) -> None:
    """Writes items to a sink. One with fixed partitions takes ``(key, value)`` items.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSink, TestingSource, run_main
    >>> flow, out = Dataflow("eg"), []
    >>> op.output("out", op.input("in", flow, TestingSource([1, 2])), TestingSink(out))
    >>> run_main(flow)
    >>> out
    [1, 2]
    """
    if not isinstance(sink, Sink):
        raise TypeError(
            f"step {step_id!r}: `sink` must be a FixedPartitionedSink or DynamicSink; got {_short(sink)}; for a list there is TestingSink"
        )


@operator(_core=True)
def redistribute(step_id: str, up: Stream[X]) -> Stream[X]:
    """Spreads items over all workers, for costly steps behind a source with few partitions. The order of items is not kept.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.redistribute("spread", op.input("in", flow, TestingSource([1, 2])))
    >>> _ = op.inspect("out", s)
    >>> run_main(flow)
    eg.out: 1
    eg.out: 2
    """
    return _down(step_id, up)


class StatefulBatchLogic(ABC, Generic[V, W, S]):
    """What :func:`stateful_batch` does for one key, and what it remembers of it.

    Each time that there is something for the key, these are called in this order: ``on_batch`` if values came, ``on_notify`` if its time came,
    ``on_eof`` if no more values will come; then ``notify_at``. Each of the first three returns values to emit, and whether to discard: then
    the logic and its state are dropped, and the key's next value finds a new one, built from None. ``snapshot`` is called after that, when
    state is kept.
    """

    #: For the second thing that is returned: keep the logic.
    RETAIN: bool = False
    #: For the second thing that is returned: drop the logic and its state.
    DISCARD: bool = True

    @abstractmethod
    def on_batch(self, values: list[V]) -> tuple[Iterable[W], bool]:
        """Values of this key, in their order. Returns what to emit, and whether to discard."""

    def on_notify(self) -> tuple[Iterable[W], bool]:
        """The time of ``notify_at`` came. Returns what to emit, and whether to discard."""
        return (), StatefulBatchLogic.RETAIN

    def on_eof(self) -> tuple[Iterable[W], bool]:
        """No more values in this run; a later run may go on with what is retained. Returns what to emit, and whether to discard."""
        return (), StatefulBatchLogic.RETAIN

    def notify_at(self) -> datetime | None:
        """When to call ``on_notify``, with a time zone; None for never. Asked after each call of the others: the last answer counts."""
        return None

    @abstractmethod
    def snapshot(self) -> S:
        """The state, which the builder takes to go on. Must be picklable. It is pickled before anything else is called."""


@operator(_core=True)
def stateful_batch(step_id: str, up: KeyedStream[V], builder: Callable[[S | None], StatefulBatchLogic[V, W, S]]) -> KeyedStream[W]:
    """Works on each key's values with state of its own; all other stateful operators are made of this one.

    ``builder`` makes the logic of a key: from None, or from a state that ``snapshot`` gave.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> class Sum(op.StatefulBatchLogic):
    ...     def __init__(self, state):
    ...         self.sum = state or 0
    ...     def on_batch(self, values):
    ...         self.sum += sum(values)
    ...         return [self.sum], op.StatefulBatchLogic.RETAIN
    ...     def snapshot(self):
    ...         return self.sum
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 1), ("b", 2), ("a", 3)]))
    >>> _ = op.inspect("out", op.stateful_batch("sum", s, Sum))
    >>> run_main(flow)
    eg.out: ('a', 1)
    eg.out: ('b', 2)
    eg.out: ('a', 4)
    """
    _callable(step_id, "builder", builder)
    return _down(step_id, up)


# ------------------------------------------------------------------------------------------------------------------------------- stateful


class StatefulLogic(ABC, Generic[V, W, S]):
    """As :class:`StatefulBatchLogic`, one value at a time. What follows a discard in a batch finds a new logic, built from None."""

    #: For the second thing that is returned: keep the logic.
    RETAIN: bool = False
    #: For the second thing that is returned: drop the logic and its state.
    DISCARD: bool = True

    @abstractmethod
    def on_item(self, value: V) -> tuple[Iterable[W], bool]:
        """A value of this key. Returns what to emit, and whether to discard."""

    def on_notify(self) -> tuple[Iterable[W], bool]:
        """The time of ``notify_at`` came. Returns what to emit, and whether to discard."""
        return (), StatefulLogic.RETAIN

    def on_eof(self) -> tuple[Iterable[W], bool]:
        """No more values in this run. Returns what to emit, and whether to discard."""
        return (), StatefulLogic.RETAIN

    def notify_at(self) -> datetime | None:
        """When to call ``on_notify``, with a time zone; None for never."""
        return None

    @abstractmethod
    def snapshot(self) -> S:
        """The state, which the builder takes to go on. Must be picklable. It is pickled before anything else is called."""


def ended(step_id: str, name: str, got: object) -> tuple[Iterable[Any], bool]:
    """What a method of a logic returned, once it is sure that it is what to emit and whether to discard."""
    if isinstance(got, tuple) and len(got) == 2:
        return got
    raise TypeError(f"step {step_id!r}: {name} must return (what to emit, whether to discard); got {_short(got)}")


def quiet_end(builder: F, *, timed: bool = False) -> F:
    """Marks a builder all of whose logics do nothing at the end of the stream: so that a run which ends need not build those of all keys that
    were ever kept. ``timed``: what they wait for does not come any more then, so where timers outlive the run their keys are told."""
    builder.quiet_end = True  # type: ignore[attr-defined]
    builder.timed = timed  # type: ignore[attr-defined]
    return builder


class _OneByOne(StatefulBatchLogic[V, W, S]):
    __slots__ = ("_builder", "_logic", "_step_id")

    def __init__(self, step_id: str, builder: Callable[[S | None], StatefulLogic[V, W, S]], state: S | None) -> None:
        self._step_id = step_id
        self._builder = builder
        self._logic: StatefulLogic[V, W, S] | None = builder(state)

    def on_batch(self, values: list[V]) -> tuple[Iterable[W], bool]:
        out: list[W] = []
        logic = self._logic
        for value in values:
            if logic is None:
                logic = self._builder(None)
            emit, discard = ended(self._step_id, "on_item", logic.on_item(value))
            out.extend(emit)
            if discard:
                logic = None
        self._logic = logic
        return out, logic is None

    def on_notify(self) -> tuple[Iterable[W], bool]:
        assert self._logic is not None
        return self._logic.on_notify()

    def on_eof(self) -> tuple[Iterable[W], bool]:
        assert self._logic is not None
        return self._logic.on_eof()

    def notify_at(self) -> datetime | None:
        assert self._logic is not None
        return self._logic.notify_at()

    def snapshot(self) -> S:
        assert self._logic is not None
        return self._logic.snapshot()


@operator
def stateful(step_id: str, up: KeyedStream[V], builder: Callable[[S | None], StatefulLogic[V, W, S]]) -> KeyedStream[W]:
    """Works on each key's values, one at a time, with state of its own.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> class UntilThree(op.StatefulLogic):
    ...     def __init__(self, state):
    ...         self.seen = state or 0
    ...     def on_item(self, value):
    ...         self.seen += 1
    ...         return [(self.seen, value)], self.seen == 3
    ...     def snapshot(self):
    ...         return self.seen
    >>> flow = Dataflow("eg")
    >>> s = op.key_on("key", op.input("in", flow, TestingSource("wxyz")), lambda _: "all")
    >>> _ = op.inspect("out", op.stateful("count", s, UntilThree))
    >>> run_main(flow)
    eg.out: ('all', (1, 'w'))
    eg.out: ('all', (2, 'x'))
    eg.out: ('all', (3, 'y'))
    eg.out: ('all', (1, 'z'))
    """
    _callable(step_id, "builder", builder)

    def build(state: S | None) -> _OneByOne[V, W, S]:
        return _OneByOne(step_id, builder, state)

    return stateful_batch("stateful_batch", up, build)


class _Mapped(StatefulBatchLogic[V, W, S]):
    """State that is a value; None is no state."""

    __slots__ = ("_flat", "_mapper", "_state", "_step_id")

    def __init__(self, step_id: str, mapper: Callable[[S | None, V], tuple[S | None, Any]], flat: bool, state: S | None) -> None:
        self._step_id = step_id
        self._mapper = mapper
        self._flat = flat
        self._state = state

    def on_batch(self, values: list[V]) -> tuple[Iterable[W], bool]:
        state, mapper = self._state, self._mapper
        out: list[W] = []
        if self._flat:
            for value in values:
                got = mapper(state, value)
                if got.__class__ is not tuple or len(got) != 2:
                    self._check(got)
                state, emit = got
                out.extend(emit)
        else:
            for value in values:
                got = mapper(state, value)
                # The class alone: a call for each value is a third of what one costs.
                if got.__class__ is not tuple:
                    self._check(got)
                try:
                    state, one = got
                except ValueError:
                    self._check(got)
                    raise
                out.append(one)
        self._state = state
        return out, state is None

    def _check(self, got: Any) -> None:
        if not isinstance(got, tuple) or len(got) != 2:
            raise TypeError(
                f"step {self._step_id!r}: {f_repr(self._mapper)} must return (state, {'values' if self._flat else 'value'}); got {_short(got)}"
            )

    def snapshot(self) -> S:
        return self._state  # type: ignore[return-value]


@operator
def stateful_flat_map(
    step_id: str, up: KeyedStream[V], mapper: Callable[[S | None, V], tuple[S | None, Iterable[W]]]
) -> KeyedStream[W]:
    """Maps each value to many, with state: ``mapper(state or None, value)`` returns the new state and the values. A state of None is dropped.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> def changes(last, value):
    ...     return value, [] if value == last else [value]
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 1), ("a", 1), ("a", 2)]))
    >>> _ = op.inspect("out", op.stateful_flat_map("changes", s, changes))
    >>> run_main(flow)
    eg.out: ('a', 1)
    eg.out: ('a', 2)
    """
    _callable(step_id, "mapper", mapper)

    def build(state: S | None) -> _Mapped[V, W, S]:
        return _Mapped(step_id, mapper, True, state)

    return stateful_batch("stateful_batch", up, quiet_end(build))


@operator
def stateful_map(step_id: str, up: KeyedStream[V], mapper: Callable[[S | None, V], tuple[S | None, W]]) -> KeyedStream[W]:
    """Maps each value with state: ``mapper(state or None, value)`` returns the new state and the value. A state of None is dropped.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 1), ("b", 5), ("a", 2)]))
    >>> _ = op.inspect("out", op.stateful_map("sum", s, lambda sum, x: ((sum or 0) + x,) * 2))
    >>> run_main(flow)
    eg.out: ('a', 1)
    eg.out: ('b', 5)
    eg.out: ('a', 3)
    """
    _callable(step_id, "mapper", mapper)

    def build(state: S | None) -> _Mapped[V, W, S]:
        return _Mapped(step_id, mapper, False, state)

    return stateful_batch("stateful_batch", up, quiet_end(build))


class _Collected(StatefulBatchLogic[V, list[V], tuple[list[V], datetime]]):
    def __init__(self, timeout: timedelta, max_size: int, now: Callable[[], datetime], state: tuple[list[V], datetime] | None) -> None:
        self._timeout = timeout
        self._max_size = max_size
        self._now = now
        self._values: list[V] = []
        self._due: datetime | None = None
        if state is not None:
            self._values, self._due = list(state[0]), state[1]

    def on_batch(self, values: list[V]) -> tuple[Iterable[list[V]], bool]:
        out: list[list[V]] = []
        held, size = self._values, self._max_size
        for value in values:
            held.append(value)
            if len(held) >= size:
                out.append(held)
                held = []
        self._values = held
        if not held:
            return out, True
        # From the last value on: a stream that does not pause fills its lists.
        self._due = self._now() + self._timeout
        return out, False

    def _all(self) -> tuple[Iterable[list[V]], bool]:
        return [self._values], True

    on_notify = on_eof = _all

    def notify_at(self) -> datetime | None:
        return self._due

    def snapshot(self) -> tuple[list[V], datetime]:
        assert self._due is not None
        return self._values, self._due


@operator
def collect(step_id: str, up: KeyedStream[V], timeout: timedelta, max_size: int) -> KeyedStream[list[V]]:
    """Gathers a key's values into lists of ``max_size``; a smaller one once nothing came for ``timeout``, and at the end of the stream.

    >>> from datetime import timedelta
    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.key_on("key", op.input("in", flow, TestingSource([1, 2, 3])), lambda _: "all")
    >>> _ = op.inspect("out", op.collect("two", s, timedelta(seconds=10), 2))
    >>> run_main(flow)
    eg.out: ('all', [1, 2])
    eg.out: ('all', [3])
    """
    if not isinstance(timeout, timedelta):
        raise TypeError(f"step {step_id!r}: `timeout` must be a timedelta; got {_short(timeout)}")
    if not isinstance(max_size, int) or isinstance(max_size, bool) or max_size < 1:
        raise ValueError(f"step {step_id!r}: `max_size` must be a whole number, at least 1; got {_short(max_size)}")
    return stateful_batch("stateful_batch", up, lambda state: _Collected(timeout, max_size, _utc_now, state))


class _Folded(StatefulBatchLogic[V, S, S]):
    """One value at the end. A ``builder`` of None: the first value is the state."""

    __slots__ = ("_empty", "_folder", "_state")

    def __init__(self, builder: Callable[[], S] | None, folder: Callable[[Any, V], Any], state: Any) -> None:
        self._folder = folder
        self._empty = state is None and builder is None
        self._state: Any = builder() if state is None and builder is not None else state

    def on_batch(self, values: list[V]) -> tuple[Iterable[S], bool]:
        state: Any = self._state
        folder = self._folder
        rest: Iterable[V] = values
        if self._empty:
            state, rest = values[0], itertools.islice(values, 1, None)
            self._empty = False
        for value in rest:
            state = folder(state, value)
        self._state = state
        return (), False

    def on_eof(self) -> tuple[Iterable[S], bool]:
        return (self._state,), True

    def snapshot(self) -> S:
        return self._state  # type: ignore[no-any-return]


@operator
def fold_final(step_id: str, up: KeyedStream[V], builder: Callable[[], S], folder: Callable[[S, V], S]) -> KeyedStream[S]:
    """Folds all values of a key; emits at the end of the stream, and then forgets.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 1), ("b", 2), ("a", 3)]))
    >>> _ = op.inspect("out", op.fold_final("lists", s, list, lambda held, x: held + [x]))
    >>> run_main(flow)
    eg.out: ('a', [1, 3])
    eg.out: ('b', [2])
    """
    _callable(step_id, "builder", builder)
    _callable(step_id, "folder", folder)
    return stateful_batch("stateful_batch", up, lambda state: _Folded(builder, folder, state))


@operator
def reduce_final(step_id: str, up: KeyedStream[V], reducer: Callable[[V, V], V]) -> KeyedStream[V]:
    """Reduces all values of a key to one; emits at the end of the stream, and then forgets.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 1), ("b", 2), ("a", 3)]))
    >>> _ = op.inspect("out", op.reduce_final("sums", s, lambda x, y: x + y))
    >>> run_main(flow)
    eg.out: ('a', 4)
    eg.out: ('b', 2)
    """
    _callable(step_id, "reducer", reducer)
    return stateful_batch("stateful_batch", up, lambda state: _Folded(None, reducer, state))


class _Counted(StatefulBatchLogic[Any, int, int]):
    __slots__ = ("_count",)

    def __init__(self, state: int | None) -> None:
        self._count = state or 0

    def on_batch(self, values: list[Any]) -> tuple[Iterable[int], bool]:
        self._count += len(values)
        return (), False

    def on_eof(self) -> tuple[Iterable[int], bool]:
        return (self._count,), True

    def snapshot(self) -> int:
        return self._count


@operator
def count_final(step_id: str, up: Stream[X], key: Callable[[X], str]) -> KeyedStream[int]:
    """Counts items by key; emits at the end of the stream, and then forgets.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource(["a", "b", "a"]))
    >>> _ = op.inspect("out", op.count_final("count", s, lambda x: x))
    >>> run_main(flow)
    eg.out: ('a', 2)
    eg.out: ('b', 1)
    """
    return stateful_batch("count", key_on("key", up, key), _Counted)


@overload
def max_final(step_id: str, up: KeyedStream[V]) -> KeyedStream[V]: ...
@overload
def max_final(step_id: str, up: KeyedStream[V], by: Callable[[V], Any]) -> KeyedStream[V]: ...
@operator
def max_final(step_id: str, up: KeyedStream[V], by: Callable[[V], Any] = _identity) -> KeyedStream[V]:
    """The greatest value of each key (the first of equals), compared by ``by``; emits at the end of the stream.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 1), ("a", 3), ("a", 2)]))
    >>> _ = op.inspect("out", op.max_final("max", s))
    >>> run_main(flow)
    eg.out: ('a', 3)
    """
    _callable(step_id, "by", by)
    return reduce_final("reduce_final", up, lambda x, y: max(x, y, key=by))


@overload
def min_final(step_id: str, up: KeyedStream[V]) -> KeyedStream[V]: ...
@overload
def min_final(step_id: str, up: KeyedStream[V], by: Callable[[V], Any]) -> KeyedStream[V]: ...
@operator
def min_final(step_id: str, up: KeyedStream[V], by: Callable[[V], Any] = _identity) -> KeyedStream[V]:
    """The least value of each key (the first of equals), compared by ``by``; emits at the end of the stream.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 2), ("a", 1), ("a", 3)]))
    >>> _ = op.inspect("out", op.min_final("min", s))
    >>> run_main(flow)
    eg.out: ('a', 1)
    """
    _callable(step_id, "by", by)
    return reduce_final("reduce_final", up, lambda x, y: min(x, y, key=by))


# ------------------------------------------------------------------------------------------------------------------------------------ join


class JoinState:
    """What a join knows of one key: the values of each side.

    >>> state = JoinState.empty(2)
    >>> state.put("last", 0, "l")
    >>> state.complete(), list(state.rows())
    (False, [('l', None)])
    """

    __slots__ = ("sides",)

    def __init__(self, sides: list[list[Any]]) -> None:
        self.sides = sides

    @classmethod
    def empty(cls, sides: int) -> JoinState:
        """Nothing yet, of so many sides."""
        return cls([[] for _ in range(sides)])

    def put(self, mode: JoinInsertMode, side: int, value: Any) -> None:
        """Keeps a value as ``mode`` says."""
        held = self.sides[side]
        if mode == "product" or not held:
            held.append(value)
        elif mode == "last":
            held[:] = [value]

    def complete(self) -> bool:
        """Whether every side has a value."""
        return all(self.sides)

    def rows(self) -> Iterable[tuple[Any, ...]]:
        """Each combination of values; None for a side without."""
        return itertools.product(*(held or (None,) for held in self.sides))


class _Joined(StatefulBatchLogic[tuple[int, Any], tuple[Any, ...], list[list[Any]]]):
    __slots__ = ("_emit", "_insert", "_sides", "_state")

    def __init__(self, sides: int, insert: JoinInsertMode, emit: JoinEmitMode, state: list[list[Any]] | None) -> None:
        self._sides = sides
        self._insert: JoinInsertMode = insert
        self._emit: JoinEmitMode = emit
        self._state = JoinState.empty(sides) if state is None else JoinState(state)

    def on_batch(self, values: list[tuple[int, Any]]) -> tuple[Iterable[tuple[Any, ...]], bool]:
        out: list[tuple[Any, ...]] = []
        state, insert, emit = self._state, self._insert, self._emit
        held = True
        for side, value in values:
            state.put(insert, side, value)
            held = True
            if emit == "running":
                out.extend(state.rows())
            elif emit == "complete" and state.complete():
                out.extend(state.rows())
                self._state = state = JoinState.empty(self._sides)
                held = False
        return out, not held

    def on_eof(self) -> tuple[Iterable[tuple[Any, ...]], bool]:
        return (self._state.rows(), True) if self._emit == "final" else ((), False)

    def snapshot(self) -> list[list[Any]]:
        return self._state.sides


@overload
def join(
    step_id: str,
    side1: KeyedStream[U],
    side2: KeyedStream[V],
    /,
    *,
    insert_mode: JoinInsertMode = "last",
    emit_mode: Literal["complete"] = "complete",
) -> KeyedStream[tuple[U, V]]: ...
@overload
def join(
    step_id: str,
    side1: KeyedStream[U],
    side2: KeyedStream[V],
    side3: KeyedStream[W],
    /,
    *,
    insert_mode: JoinInsertMode = "last",
    emit_mode: Literal["complete"] = "complete",
) -> KeyedStream[tuple[U, V, W]]: ...
@overload
def join(
    step_id: str,
    side1: KeyedStream[U],
    side2: KeyedStream[V],
    /,
    *,
    insert_mode: JoinInsertMode = "last",
    emit_mode: Literal["final", "running"],
) -> KeyedStream[tuple[U | None, V | None]]: ...
@overload
def join(
    step_id: str, *sides: KeyedStream[Any], insert_mode: JoinInsertMode = "last", emit_mode: JoinEmitMode = "complete"
) -> KeyedStream[tuple[Any, ...]]: ...
@operator
def join(
    step_id: str, *sides: KeyedStream[Any], insert_mode: JoinInsertMode = "last", emit_mode: JoinEmitMode = "complete"
) -> KeyedStream[tuple[Any, ...]]:
    """Joins values of the same key from several streams into tuples, in the order of the streams.

    ``insert_mode``: of several values of a side, the ``first`` counts, the ``last``, or each (``product``). ``emit_mode``: ``complete`` emits
    once every side has a value, and forgets them; ``final`` at the end of the stream; ``running`` at each value. In the last two, None
    stands for a side without a value.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> names = op.input("names", flow, TestingSource([("1", "Bee"), ("2", "Hive")]))
    >>> mails = op.input("mails", flow, TestingSource([("1", "bee@example.com")]))
    >>> _ = op.inspect("out", op.join("join", names, mails))
    >>> run_main(flow)
    eg.out: ('1', ('Bee', 'bee@example.com'))
    """
    for name, mode, modes in (("insert_mode", insert_mode, JoinInsertMode), ("emit_mode", emit_mode, JoinEmitMode)):
        if mode not in typing.get_args(modes):
            raise ValueError(f"step {step_id!r}: `{name}` is one of {', '.join(map_repr(typing.get_args(modes)))}; got {mode!r}")
    named = [map_value(f"side_{i}", side, _Side(i)) for i, side in enumerate(sides)]

    def build(state: list[list[Any]] | None) -> _Joined:
        return _Joined(len(sides), insert_mode, emit_mode, state)

    return stateful_batch("stateful_batch", merge("merge", *named), build if emit_mode == "final" else quiet_end(build))


class _Side:
    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, value: Any) -> tuple[int, Any]:
        return self.side, value


def map_repr(values: Iterable[object]) -> list[str]:
    """Each value as Python writes it."""
    return [repr(value) for value in values]


# ------------------------------------------------------------------------------------------------------------------------------- stateless


@operator
def map(step_id: str, up: Stream[X], mapper: Callable[[X], Y]) -> Stream[Y]:
    """Maps each item to one.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([1, 2]))
    >>> _ = op.inspect("out", op.map("double", s, lambda x: x * 2))
    >>> run_main(flow)
    eg.out: 2
    eg.out: 4
    """
    _callable(step_id, "mapper", mapper)

    def each(items: list[X]) -> list[Y]:
        return [mapper(item) for item in items]

    return flat_map_batch("flat_map_batch", up, each)


@operator
def map_value(step_id: str, up: KeyedStream[V], mapper: Callable[[V], W]) -> KeyedStream[W]:
    """Maps each value to one, under its key.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 1)]))
    >>> _ = op.inspect("out", op.map_value("double", s, lambda x: x * 2))
    >>> run_main(flow)
    eg.out: ('a', 2)
    """
    _callable(step_id, "mapper", mapper)

    def each(items: list[tuple[str, V]]) -> list[tuple[str, W]]:
        return [(key, mapper(value)) for key, value in pairs(step_id, items)]

    return flat_map_batch("flat_map_batch", up, each)


@operator
def flat_map(step_id: str, up: Stream[X], mapper: Callable[[X], Iterable[Y]]) -> Stream[Y]:
    """Maps each item to many.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource(["a b", "c"]))
    >>> _ = op.inspect("out", op.flat_map("words", s, str.split))
    >>> run_main(flow)
    eg.out: 'a'
    eg.out: 'b'
    eg.out: 'c'
    """
    _callable(step_id, "mapper", mapper)

    def each(items: list[X]) -> list[Y]:
        out: list[Y] = []
        for item in items:
            got = mapper(item)
            try:
                found = iter(got)
            except TypeError:
                raise TypeError(f"step {step_id!r}: {f_repr(mapper)} must return something iterable; got {_short(got)}") from None
            out.extend(found)
        return out

    return flat_map_batch("flat_map_batch", up, each)


@operator
def flat_map_value(step_id: str, up: KeyedStream[V], mapper: Callable[[V], Iterable[W]]) -> KeyedStream[W]:
    """Maps each value to many, under its key.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", "x y")]))
    >>> _ = op.inspect("out", op.flat_map_value("words", s, str.split))
    >>> run_main(flow)
    eg.out: ('a', 'x')
    eg.out: ('a', 'y')
    """
    _callable(step_id, "mapper", mapper)

    def each(items: list[tuple[str, V]]) -> list[tuple[str, W]]:
        out: list[tuple[str, W]] = []
        for key, value in pairs(step_id, items):
            got = mapper(value)
            try:
                found = iter(got)
            except TypeError:
                raise TypeError(f"step {step_id!r}: {f_repr(mapper)} must return something iterable; got {_short(got)}") from None
            out.extend([(key, one) for one in found])
        return out

    return flat_map_batch("flat_map_batch", up, each)


@operator
def flatten(step_id: str, up: Stream[Iterable[X]]) -> Stream[X]:
    """The members of items that are iterable.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> _ = op.inspect("out", op.flatten("flat", op.input("in", flow, TestingSource([[1, 2], [], [3]]))))
    >>> run_main(flow)
    eg.out: 1
    eg.out: 2
    eg.out: 3
    """

    def each(items: list[Iterable[X]]) -> list[X]:
        out: list[X] = []
        for item in items:
            if not isinstance(item, Iterable):
                raise TypeError(f"step {step_id!r} takes items that are iterable; got {_short(item)}")
            out.extend(item)
        return out

    return flat_map_batch("flat_map_batch", up, each)


@overload
def filter(step_id: str, up: Stream[X], predicate: Callable[[X], TypeGuard[Y]]) -> Stream[Y]: ...
@overload
def filter(step_id: str, up: Stream[X], predicate: Callable[[X], bool]) -> Stream[X]: ...
@operator
def filter(step_id: str, up: Stream[X], predicate: Callable[[X], Any]) -> Stream[Any]:
    """Keeps items for which ``predicate`` returns True; anything but True and False is an error.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource(range(4)))
    >>> _ = op.inspect("out", op.filter("odd", s, lambda x: x % 2 == 1))
    >>> run_main(flow)
    eg.out: 1
    eg.out: 3
    """
    _callable(step_id, "predicate", predicate)

    def each(items: list[X]) -> list[X]:
        out: list[X] = []
        for item in items:
            keep = predicate(item)
            if keep is True:
                out.append(item)
            elif keep is not False:
                raise _not_bool(step_id, predicate, keep)
        return out

    return flat_map_batch("flat_map_batch", up, each)


@overload
def filter_value(step_id: str, up: KeyedStream[V], predicate: Callable[[V], TypeGuard[W]]) -> KeyedStream[W]: ...
@overload
def filter_value(step_id: str, up: KeyedStream[V], predicate: Callable[[V], bool]) -> KeyedStream[V]: ...
@operator
def filter_value(step_id: str, up: KeyedStream[V], predicate: Callable[[V], Any]) -> KeyedStream[Any]:
    """Keeps items for whose value ``predicate`` returns True; anything but True and False is an error.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 1), ("b", 2)]))
    >>> _ = op.inspect("out", op.filter_value("big", s, lambda x: x > 1))
    >>> run_main(flow)
    eg.out: ('b', 2)
    """
    _callable(step_id, "predicate", predicate)

    def each(items: list[tuple[str, V]]) -> list[tuple[str, V]]:
        out: list[tuple[str, V]] = []
        for item in pairs(step_id, items):
            keep = predicate(item[1])
            if keep is True:
                out.append(item)
            elif keep is not False:
                raise _not_bool(step_id, predicate, keep)
        return out

    return flat_map_batch("flat_map_batch", up, each)


@operator
def filter_map(step_id: str, up: Stream[X], mapper: Callable[[X], Y | None]) -> Stream[Y]:
    """Maps each item to one, or to none by returning None.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([{"n": 1}, {}]))
    >>> _ = op.inspect("out", op.filter_map("n", s, lambda x: x.get("n")))
    >>> run_main(flow)
    eg.out: 1
    """
    _callable(step_id, "mapper", mapper)

    def each(items: list[X]) -> list[Y]:
        return [got for item in items if (got := mapper(item)) is not None]

    return flat_map_batch("flat_map_batch", up, each)


@operator
def filter_map_value(step_id: str, up: KeyedStream[V], mapper: Callable[[V], W | None]) -> KeyedStream[W]:
    """Maps each value to one, or to none by returning None, under its key.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", {"n": 1}), ("b", {})]))
    >>> _ = op.inspect("out", op.filter_map_value("n", s, lambda x: x.get("n")))
    >>> run_main(flow)
    eg.out: ('a', 1)
    """
    _callable(step_id, "mapper", mapper)

    def each(items: list[tuple[str, V]]) -> list[tuple[str, W]]:
        return [(key, got) for key, value in pairs(step_id, items) if (got := mapper(value)) is not None]

    return flat_map_batch("flat_map_batch", up, each)


@operator
def key_on(step_id: str, up: Stream[X], key: Callable[[X], str]) -> KeyedStream[X]:
    """Puts a key to each item; it must be text.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([{"user": "a", "n": 1}]))
    >>> _ = op.inspect("out", op.key_on("user", s, lambda x: x["user"]))
    >>> run_main(flow)
    eg.out: ('a', {'user': 'a', 'n': 1})
    """
    _callable(step_id, "key", key)

    def each(items: list[X]) -> list[tuple[str, X]]:
        keys = [key(item) for item in items]
        out = list(zip(keys, items))
        if not _STR.issuperset(builtins.map(type, keys)):
            for one, item in out:
                if not isinstance(one, str):
                    raise TypeError(
                        f"step {step_id!r}: {f_repr(key)} must return text as the key; got {_short(one)} for the item {_short(item)}"
                    )
        return out

    return flat_map_batch("flat_map_batch", up, each)


@operator
def key_rm(step_id: str, up: KeyedStream[X]) -> Stream[X]:
    """Takes the keys away.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> _ = op.inspect("out", op.key_rm("plain", op.input("in", flow, TestingSource([("a", 1)]))))
    >>> run_main(flow)
    eg.out: 1
    """

    def each(items: list[tuple[str, X]]) -> list[X]:
        return [value for _, value in pairs(step_id, items)]

    return flat_map_batch("flat_map_batch", up, each)


def _print(step_id: str, item: object) -> None:
    print(f"{step_id}: {item!r}", flush=True)


@operator
def inspect(step_id: str, up: Stream[X], inspector: Callable[[str, X], None] = _print) -> Stream[X]:
    """Shows items: ``inspector(step_id, item)``, which prints them unless given.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> _ = op.inspect("out", op.input("in", flow, TestingSource("ab")))
    >>> run_main(flow)
    eg.out: 'a'
    eg.out: 'b'
    """
    _callable(step_id, "inspector", inspector)

    def show(_step_id: str, item: X, _epoch: int, _worker: int) -> None:
        inspector(step_id, item)

    return inspect_debug("inspect_debug", up, show)


@dataclass
class TTLCache(Generic[DK, DV]):
    """Values that are asked for once and kept for a time. It grows with the keys that are asked for; :meth:`remove` lets one go.

    >>> from datetime import datetime, timedelta, timezone
    >>> from skep.dataflow.testing import TimeTestingGetter
    >>> clock = TimeTestingGetter(datetime(2024, 1, 1, tzinfo=timezone.utc))
    >>> asked = []
    >>> cache = TTLCache(lambda k: asked.append(k) or k.upper(), clock.get, timedelta(seconds=10))
    >>> cache.get("a"), cache.get("a"), asked
    ('A', 'A', ['a'])
    >>> clock.advance(timedelta(seconds=11))
    >>> cache.get("a"), asked
    ('A', ['a', 'a'])
    """

    v_getter: Callable[[DK], DV]
    now_getter: Callable[[], datetime]
    ttl: timedelta
    _cache: dict[DK, tuple[datetime, DV]] = field(default_factory=dict)

    def get(self, k: DK) -> DV:
        """The value of a key, asked for anew where it is older than its time."""
        now = self.now_getter()
        found = self._cache.get(k)
        if found is not None and now - found[0] <= self.ttl:
            return found[1]
        value = self.v_getter(k)
        self._cache[k] = (now, value)
        return value

    def remove(self, k: DK) -> None:
        """Forgets a key, so that it is asked for anew. One that is not there is no error."""
        self._cache.pop(k, None)


@operator
def enrich_cached(
    step_id: str,
    up: Stream[X],
    getter: Callable[[DK], DV],
    mapper: Callable[[TTLCache[DK, DV], X], Y],
    ttl: timedelta = timedelta.max,
    _now_getter: Callable[[], datetime] = _utc_now,
) -> Stream[Y]:
    """Maps items with the help of values that are looked up elsewhere and kept for ``ttl``. The cache is the process's own; no run keeps it.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource(["a", "b"]))
    >>> _ = op.inspect("out", op.enrich_cached("icons", s, {"a": "A", "b": "B"}.get, lambda cache, x: (x, cache.get(x))))
    >>> run_main(flow)
    eg.out: ('a', 'A')
    eg.out: ('b', 'B')
    """
    _callable(step_id, "getter", getter)
    _callable(step_id, "mapper", mapper)
    cache: TTLCache[DK, DV] = TTLCache(getter, _now_getter, ttl)

    def each(items: list[X]) -> list[Y]:
        return [mapper(cache, item) for item in items]

    return flat_map_batch("flat_map_batch", up, each)


class _Raising(StatelessSinkPartition[Any]):
    def __init__(self, step_id: str) -> None:
        self._step_id = step_id

    def write_batch(self, items: list[Any]) -> None:
        if items:
            raise RuntimeError(f"step {self._step_id!r} lets no item through; got {_short(items[0])}")


class _RaisingSink(DynamicSink[Any]):
    def __init__(self, step_id: str) -> None:
        self._step_id = step_id

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Raising:
        return _Raising(self._step_id)


@operator
def raises(step_id: str, up: Stream[Any]) -> None:
    """Stops the flow with an error if any item comes: for what can't happen, as the errors of a stream that has none.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> op.raises("none", op.input("in", flow, TestingSource([])))
    >>> run_main(flow)
    """
    output("output", up, _RaisingSink(step_id))
