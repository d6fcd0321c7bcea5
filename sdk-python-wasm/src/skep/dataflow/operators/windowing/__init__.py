"""Windows: what happened to a key within some time.

A *clock* says what time a value is of, and up to which time no more are expected: the watermark. A *windower* says which windows a time is in. An
operator says what becomes of the values of a window. Each key has its own clock and windows. Each operator returns three streams:

* ``down``: ``(key, (window ID, what the operator makes))``,
* ``late``: ``(key, (window ID, value))`` of values that were behind the watermark,
* ``meta``: ``(key, (window ID, WindowMetadata))`` of windows that closed.

Times have a time zone; a naive datetime is refused. What comes out does not depend on how values were grouped into batches.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Generic, Literal, TypeVar, overload

from .. import JoinEmitMode, JoinInsertMode, KeyedStream, flat_map_batch, key_on, map_repr, map_value, merge, stateful_batch
from ...graph import Stream, operator
from . import folding
from .clocks import REMEMBER, Clock, ClockLogic, EventClock, SystemClock
from .driver import FoldWindowLogic, WindowDriver, WindowLogic
from .folding import DOWN, LATE, META, Fold
from .in_order import no_tie
from .joining import AnyClock, JoinWindowLogic, SidesClock, side_of
from .moments import UTC_MAX, UTC_MIN, ZERO_TD
from .windowers import (
    LATE_SESSION_ID,
    SessionWindower,
    SlidingWindower,
    TumblingWindower,
    Windower,
    WindowerLogic,
    WindowMetadata,
)

__all__ = [
    "LATE_SESSION_ID",
    "REMEMBER",
    "UTC_MAX",
    "UTC_MIN",
    "ZERO_TD",
    "Clock",
    "ClockLogic",
    "EventClock",
    "JoinEmitMode",
    "JoinInsertMode",
    "SessionWindower",
    "SlidingWindower",
    "SystemClock",
    "TumblingWindower",
    "WindowLogic",
    "WindowMetadata",
    "WindowOut",
    "Windower",
    "WindowerLogic",
    "collect_window",
    "count_window",
    "fold_window",
    "join_window",
    "max_window",
    "min_window",
    "reduce_window",
    "window",
]

X = TypeVar("X")
U = TypeVar("U")
V = TypeVar("V")
W = TypeVar("W")
S = TypeVar("S")
DK = TypeVar("DK")
DV = TypeVar("DV")
W_co = TypeVar("W_co", covariant=True)

#: An accumulator that has no value yet. Pickled by name, so that it is the same one when it comes back.
_NOTHING = type(None)


@dataclass(frozen=True)
class WindowOut(Generic[V, W_co]):
    """The streams of a window operator."""

    #: What the operator makes of windows, with their IDs.
    down: KeyedStream[tuple[int, W_co]]
    #: Values that came too late, with the IDs of the windows that they would have been in.
    late: KeyedStream[tuple[int, V]]
    #: Windows that closed, with their times.
    meta: KeyedStream[tuple[int, WindowMetadata]]


def _downs(items: list[Any]) -> list[Any]:
    return [(key, (window, payload)) for key, (window, kind, payload) in items if kind == DOWN]


def _lates(items: list[Any]) -> list[Any]:
    return [(key, (window, payload)) for key, (window, kind, payload) in items if kind == LATE]


def _metas(items: list[Any]) -> list[Any]:
    # Made here only, as hardly anybody asks.
    return [
        (key, (window, WindowMetadata(payload[0], payload[1], set(payload[2])))) for key, (window, kind, payload) in items if kind == META
    ]


def _streams(up: KeyedStream[Any], builder: Callable[[Any], Any]) -> WindowOut[Any, Any]:
    """The streams of a logic that emits events."""
    events = stateful_batch("stateful_batch", up, builder)
    return WindowOut(flat_map_batch("down", events, _downs), flat_map_batch("late", events, _lates), flat_map_batch("meta", events, _metas))


def _check(step_id: str, clock: object, windower: object, **functions: object) -> None:
    if not isinstance(clock, Clock):
        raise TypeError(f"step {step_id!r}: `clock` must be a Clock, as EventClock(...) or SystemClock(); got {clock!r}")
    if not isinstance(windower, Windower):
        raise TypeError(f"step {step_id!r}: `windower` must be a Windower, as TumblingWindower(...); got {windower!r}")
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"step {step_id!r}: `{name}` must be a function; got {function!r} ({type(function).__name__})")


def _fold(up: KeyedStream[Any], clock: Clock[Any, Any], windower: Windower[Any], fold: Fold, ordered: bool) -> WindowOut[Any, Any]:
    build = folding.builder(clock, windower, fold, ordered)
    if build is None:
        return _streams(up, lambda state: WindowDriver(clock, windower, lambda held: FoldWindowLogic(fold, held), ordered, no_tie, state))
    return _streams(up, build)


@operator
def window(
    step_id: str,
    up: KeyedStream[V],
    clock: Clock[V, Any],
    windower: Windower[Any],
    builder: Callable[[S | None], WindowLogic[V, W, S]],
    ordered: bool = True,
) -> WindowOut[V, W]:
    """Windows with a logic of your own, which may emit before its window closes.

    ``builder`` makes the :class:`WindowLogic` of a window: from None, or from a state that its ``snapshot`` gave. With ``ordered`` a value
    reaches its window when the watermark has reached the value, in the order of times; without, as it comes.

    >>> from datetime import datetime, timedelta, timezone
    >>> import skep.dataflow.operators as op
    >>> import skep.dataflow.operators.windowing as win
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> class First(win.WindowLogic):
    ...     def __init__(self, seen):
    ...         self.seen = seen or False
    ...     def on_value(self, value):
    ...         new, self.seen = not self.seen, True
    ...         return [value] if new else []
    ...     def on_merge(self, original):
    ...         return []
    ...     def on_close(self):
    ...         return ["closed"]
    ...     def snapshot(self):
    ...         return self.seen
    >>> day = datetime(2024, 1, 1, tzinfo=timezone.utc)
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 3), ("a", 4), ("a", 61)]))
    >>> clock = win.EventClock(lambda s: day + timedelta(seconds=s), timedelta(0))
    >>> out = win.window("first", s, clock, win.TumblingWindower(timedelta(minutes=1), day), First)
    >>> _ = op.inspect("out", out.down)
    >>> run_main(flow)
    eg.out: ('a', (0, 3))
    eg.out: ('a', (0, 'closed'))
    eg.out: ('a', (1, 61))
    eg.out: ('a', (1, 'closed'))
    """
    _check(step_id, clock, windower, builder=builder)
    return _streams(up, lambda state: WindowDriver(clock, windower, builder, ordered, no_tie, state))


@operator
def fold_window(
    step_id: str,
    up: KeyedStream[V],
    clock: Clock[V, Any],
    windower: Windower[Any],
    builder: Callable[[], S],
    folder: Callable[[S, V], S],
    merger: Callable[[S, S], S],
    ordered: bool = True,
) -> WindowOut[V, S]:
    """Folds the values of a window into one: ``folder(acc, value)``, beginning with ``builder()``.

    ``merger`` makes one of the accumulators of two sessions that became one. With ``ordered``, values are folded in the order of their times,
    without, as they come: then sessions may have to be merged, and fewer values are held.

    >>> from datetime import datetime, timedelta, timezone
    >>> import skep.dataflow.operators as op
    >>> import skep.dataflow.operators.windowing as win
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> day = datetime(2024, 1, 1, tzinfo=timezone.utc)
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 3), ("a", 1), ("a", 61)]))
    >>> clock = win.EventClock(lambda s: day + timedelta(seconds=s), timedelta(seconds=10))
    >>> minutes = win.TumblingWindower(timedelta(minutes=1), day)
    >>> out = win.fold_window("path", s, clock, minutes, str, lambda acc, x: f"{acc}/{x}", lambda a, b: a + b)
    >>> _ = op.inspect("out", out.down)
    >>> run_main(flow)
    eg.out: ('a', (0, '/1/3'))
    eg.out: ('a', (1, '/61'))
    """
    _check(step_id, clock, windower, builder=builder, folder=folder, merger=merger)

    def many(acc: S, values: list[V]) -> S:
        return reduce(folder, values, acc)

    return _fold(up, clock, windower, Fold(builder, folder, many, merger), ordered)


def _start_list() -> list[Any]:
    return []


def _append(acc: list[Any], value: Any) -> list[Any]:
    acc.append(value)
    return acc


def _extend(acc: list[Any], values: list[Any]) -> list[Any]:
    acc.extend(values)
    return acc


def _add(acc: set[Any], value: Any) -> set[Any]:
    acc.add(value)
    return acc


def _update(acc: Any, values: Any) -> Any:
    acc.update(values)
    return acc


def _put(acc: dict[Any, Any], pair: Any) -> dict[Any, Any]:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(f"collect_window into a dict takes values that are (key, value) tuples; got {pair!r}")
    acc[pair[0]] = pair[1]
    return acc


def _puts(acc: dict[Any, Any], pairs: list[Any]) -> dict[Any, Any]:
    return reduce(_put, pairs, acc)


_INTO: dict[type, Fold] = {
    list: Fold(_start_list, _append, _extend, _extend),
    set: Fold(set, _add, _update, _update, any_order=True),
    dict: Fold(dict, _put, _puts, _update),
}


@overload
def collect_window(
    step_id: str, up: KeyedStream[V], clock: Clock[V, Any], windower: Windower[Any], into: type[list[Any]] = ..., ordered: bool = True
) -> WindowOut[V, list[V]]: ...
@overload
def collect_window(
    step_id: str, up: KeyedStream[V], clock: Clock[V, Any], windower: Windower[Any], into: type[set[Any]], ordered: bool = True
) -> WindowOut[V, set[V]]: ...
@overload
def collect_window(
    step_id: str,
    up: KeyedStream[tuple[DK, DV]],
    clock: Clock[tuple[DK, DV], Any],
    windower: Windower[Any],
    into: type[dict[Any, Any]],
    ordered: bool = True,
) -> WindowOut[tuple[DK, DV], dict[DK, DV]]: ...
@operator
def collect_window(
    step_id: str, up: KeyedStream[Any], clock: Clock[Any, Any], windower: Windower[Any], into: type[Any] = list, ordered: bool = True
) -> WindowOut[Any, Any]:
    """Collects the values of a window into a list, a set or a dict (of ``(key, value)`` values: the last of a key counts).

    >>> from datetime import datetime, timedelta, timezone
    >>> import skep.dataflow.operators as op
    >>> import skep.dataflow.operators.windowing as win
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> day = datetime(2024, 1, 1, tzinfo=timezone.utc)
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 3), ("a", 1), ("a", 20)]))
    >>> clock = win.EventClock(lambda s: day + timedelta(seconds=s), timedelta(seconds=10))
    >>> _ = op.inspect("out", win.collect_window("visits", s, clock, win.SessionWindower(timedelta(seconds=5))).down)
    >>> run_main(flow)
    eg.out: ('a', (0, [1, 3]))
    eg.out: ('a', (1, [20]))
    """
    _check(step_id, clock, windower)
    fold = _INTO.get(into)
    if fold is None:
        raise TypeError(f"step {step_id!r}: `into` is one of list, set, dict; got {into!r}; for other containers there is fold_window")
    return _fold(up, clock, windower, fold, ordered)


def _count_one(acc: int, _value: Any) -> int:
    return acc + 1


def _count_many(acc: int, values: list[Any]) -> int:
    return acc + len(values)


def _sum(a: int, b: int) -> int:
    return a + b


_COUNT = Fold(int, _count_one, _count_many, _sum, any_order=True)


@operator
def count_window(step_id: str, up: Stream[X], clock: Clock[X, Any], windower: Windower[Any], key: Callable[[X], str]) -> WindowOut[X, int]:
    """Counts the items of each ``key(item)`` in a window.

    >>> from datetime import datetime, timedelta, timezone
    >>> import skep.dataflow.operators as op
    >>> import skep.dataflow.operators.windowing as win
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> day = datetime(2024, 1, 1, tzinfo=timezone.utc)
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource(["a 1", "b 2", "a 59", "a 60"]))
    >>> clock = win.EventClock(lambda line: day + timedelta(seconds=int(line[2:])), timedelta(0))
    >>> out = win.count_window("count", s, clock, win.TumblingWindower(timedelta(minutes=1), day), lambda line: line[0])
    >>> _ = op.inspect("out", out.down)
    >>> run_main(flow)
    eg.out: ('a', (0, 2))
    eg.out: ('a', (1, 1))
    eg.out: ('b', (0, 1))
    """
    _check(step_id, clock, windower, key=key)
    return _fold(key_on("keyed", up, key), clock, windower, _COUNT, False)


class Reducing:
    """A fold without a beginning: the first value is it."""

    def __init__(self, reducer: Callable[[Any, Any], Any]) -> None:
        self.reducer = reducer

    def start(self) -> Any:
        return _NOTHING

    def one(self, acc: Any, value: Any) -> Any:
        return value if acc is _NOTHING else self.reducer(acc, value)

    def many(self, acc: Any, values: list[Any]) -> Any:
        return reduce(self.reducer, values) if acc is _NOTHING else reduce(self.reducer, values, acc)

    def fold(self) -> Fold:
        return Fold(self.start, self.one, self.many, self.reducer)


@operator
def reduce_window(
    step_id: str, up: KeyedStream[V], clock: Clock[V, Any], windower: Windower[Any], reducer: Callable[[V, V], V]
) -> WindowOut[V, V]:
    """Reduces the values of a window to one, as they come: ``reducer(so far, value)``.

    >>> from datetime import datetime, timedelta, timezone
    >>> import skep.dataflow.operators as op
    >>> import skep.dataflow.operators.windowing as win
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> day = datetime(2024, 1, 1, tzinfo=timezone.utc)
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 1), ("a", 3), ("a", 20)]))
    >>> clock = win.EventClock(lambda s: day + timedelta(seconds=s), timedelta(0))
    >>> _ = op.inspect("out", win.reduce_window("sum", s, clock, win.SessionWindower(timedelta(seconds=5)), lambda a, b: a + b).down)
    >>> run_main(flow)
    eg.out: ('a', (0, 4))
    eg.out: ('a', (1, 20))
    """
    _check(step_id, clock, windower, reducer=reducer)
    return _fold(up, clock, windower, Reducing(reducer).fold(), False)


class Extreme:
    """The first of the values that are the greatest, or least, by a function of them."""

    def __init__(self, choose: Callable[..., Any], by: Callable[[Any], Any]) -> None:
        self.choose = choose
        self.by = by

    def start(self) -> Any:
        return _NOTHING

    def one(self, acc: Any, value: Any) -> Any:
        return value if acc is _NOTHING else self.choose(acc, value, key=self.by)

    def many(self, acc: Any, values: list[Any]) -> Any:
        best = self.choose(values, key=self.by)
        return best if acc is _NOTHING else self.choose(acc, best, key=self.by)

    def fold(self) -> Fold:
        return Fold(self.start, self.one, self.many, self.one)


def _itself(value: Any) -> Any:
    return value


@operator
def max_window(
    step_id: str, up: KeyedStream[V], clock: Clock[V, Any], windower: Windower[Any], by: Callable[[V], Any] = _itself
) -> WindowOut[V, V]:
    """The greatest value of a window, by ``by(value)``; of equal ones the first that came.

    >>> from datetime import datetime, timedelta, timezone
    >>> import skep.dataflow.operators as op
    >>> import skep.dataflow.operators.windowing as win
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> day = datetime(2024, 1, 1, tzinfo=timezone.utc)
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 1), ("a", 3), ("a", 2)]))
    >>> clock = win.EventClock(lambda s: day + timedelta(seconds=s), timedelta(seconds=5))
    >>> _ = op.inspect("out", win.max_window("max", s, clock, win.TumblingWindower(timedelta(minutes=1), day)).down)
    >>> run_main(flow)
    eg.out: ('a', (0, 3))
    """
    _check(step_id, clock, windower, by=by)
    return _fold(up, clock, windower, Extreme(max, by).fold(), False)


@operator
def min_window(
    step_id: str, up: KeyedStream[V], clock: Clock[V, Any], windower: Windower[Any], by: Callable[[V], Any] = _itself
) -> WindowOut[V, V]:
    """The least value of a window, by ``by(value)``; of equal ones the first that came. See :func:`max_window`."""
    _check(step_id, clock, windower, by=by)
    return _fold(up, clock, windower, Extreme(min, by).fold(), False)


class Side:
    """Says of which side a value is."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, value: Any) -> tuple[int, Any]:
        return self.side, value


@operator
def join_window(
    step_id: str,
    clock: Clock[Any, Any],
    windower: Windower[Any],
    *sides: KeyedStream[Any],
    insert_mode: JoinInsertMode = "last",
    emit_mode: JoinEmitMode = "final",
    ordered: bool = True,
    watermark: Literal["slowest", "fastest"] = "slowest",
) -> WindowOut[Any, tuple[Any, ...]]:
    """Joins the values that a key has on several streams within a window, into tuples in the order of the streams.

    ``insert_mode``: of several values of a side, the ``first`` counts, the ``last``, or each (``product``). ``emit_mode``: ``final`` emits when
    the window closes, ``complete`` once every side has a value, and forgets them, ``running`` at each value. Where a side has no value, there
    is None. A late value comes as ``(number of its side, value)``.

    With an :class:`EventClock`, the key's watermark is that of its ``slowest`` side, so that it makes no difference which source is read faster;
    a side that has sent nothing for the key is waited for as long as the clock waits. ``fastest`` has one watermark for all sides: of a side that
    is behind, values are late. (In a replay, where a key has values on one side only, its windows then close as it goes, not at the end.)

    >>> from datetime import datetime, timedelta, timezone
    >>> import skep.dataflow.operators as op
    >>> import skep.dataflow.operators.windowing as win
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> day = datetime(2024, 1, 1, tzinfo=timezone.utc)
    >>> flow = Dataflow("eg")
    >>> orders = op.input("orders", flow, TestingSource([("a", 3), ("a", 65)]))
    >>> payments = op.input("payments", flow, TestingSource([("a", 40)]))
    >>> clock = win.EventClock(lambda s: day + timedelta(seconds=s), timedelta(0))
    >>> out = win.join_window("join", clock, win.TumblingWindower(timedelta(minutes=1), day), orders, payments)
    >>> _ = op.inspect("out", out.down)
    >>> run_main(flow)
    eg.out: ('a', (0, (3, 40)))
    eg.out: ('a', (1, (65, None)))
    """
    _check(step_id, clock, windower)
    for name, mode, modes in (
        ("insert_mode", insert_mode, typing.get_args(JoinInsertMode)),
        ("emit_mode", emit_mode, typing.get_args(JoinEmitMode)),
        ("watermark", watermark, ("slowest", "fastest")),
    ):
        if mode not in modes:
            raise ValueError(f"step {step_id!r}: `{name}` is one of {', '.join(map_repr(modes))}; got {mode!r}")
    named = [map_value(f"side_{i}", side, Side(i)) for i, side in enumerate(sides)]
    many = len(sides)
    sided: Clock[Any, Any] = SidesClock(clock, many) if type(clock) is EventClock and watermark == "slowest" else AnyClock(clock)

    def join_logic(state: Any) -> JoinWindowLogic:
        return JoinWindowLogic(many, insert_mode, emit_mode, state)

    return _streams(merge("merge", *named), lambda state: WindowDriver(sided, windower, join_logic, ordered, side_of, state))
