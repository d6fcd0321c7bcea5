"""Values of one stream with those of others that are near in time."""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from . import KeyedStream
from .graph import operator
from .operators import JoinEmitMode, JoinInsertMode, flat_map_batch, map_value, merge, stateful_batch
from .operators.windowing import Side
from .operators.windowing.clocks import Clock, EventClock
from .operators.windowing.folding import DOWN, LATE, Event
from .operators.windowing.in_order import InOrderLogic
from .operators.windowing.joining import AnyClock, JoinWindowLogic, SidesClock
from .operators.windowing.moments import TICK, after, before, check_span, micros, moment_of
from .ordering import payloads

V = TypeVar("V")
W = TypeVar("W")
S = TypeVar("S")

#: Which stream a value is of.
LeftRight: TypeAlias = Literal["left", "right"]

#: The kind of an event: a value of the right without any on the left.
UNPAIRED = 3

__all__ = ["IntervalLogic", "IntervalOut", "LeftRight", "interval", "join_interval"]


class IntervalLogic(ABC, Generic[V, W, S]):
    """What becomes of one value of the left and those of the right near it. Each method returns what to emit."""

    @abstractmethod
    def on_value(self, side: LeftRight, value: V) -> Iterable[W]:
        """First the value of the left; then, in the order of their times, values of the right."""

    @abstractmethod
    def on_close(self) -> Iterable[W]:
        """No more come."""

    @abstractmethod
    def snapshot(self) -> S:
        """The state, for the builder to go on from. It is pickled before the logic is used again."""


@dataclass(frozen=True)
class IntervalOut(Generic[V, W]):
    """The streams of an interval operator."""

    down: KeyedStream[W]
    #: Values of the right that had none of the left near them.
    unpaired: KeyedStream[V]
    #: Values that came too late, of any side.
    late: KeyedStream[V]


class _Open:
    """A value of the left, whose interval is open."""

    __slots__ = ("first", "logic", "until")

    def __init__(self, ts: datetime, plan: _Plan, logic: Any) -> None:
        #: The first moment of the right that is near it, and the last.
        self.first = before(ts, plan.gap_before)
        self.until = after(ts, plan.gap_after)
        self.logic = logic


@dataclass(frozen=True)
class _Plan:
    clock: Clock[Any, Any]
    gap_before: timedelta
    gap_after: timedelta
    builder: Callable[[Any], Any]


class _IntervalDriver(InOrderLogic):
    """The intervals of a key.

    A value of the right has its turn when all values of the left that can be near it have had theirs: ``gap_before`` later. So nothing
    has to be kept of the right but what is in the queue.
    """

    __slots__ = ("_open", "_plan")

    def __init__(self, plan: _Plan, resume_state: Any) -> None:
        held = self.resume(plan.clock, True, _right_last, resume_state)
        self._plan = plan
        #: In the order of their times, so they close in that order too.
        self._open = [(moment_of(us), _Open(moment_of(us), plan, plan.builder(state))) for us, state in held or ()]

    def turn(self, ts: datetime, value: Any) -> tuple[datetime, Any]:
        side, item = value
        return (ts, (side, ts, item)) if side == 0 else (after(ts, self._plan.gap_before), (side, ts, item))

    def late(self, ts: datetime, value: Any, out: list[Event]) -> None:
        out.append((0, LATE, value[1]))

    def take(self, ts: datetime, value: Any, out: list[Event]) -> None:
        side, own, item = value
        if side == 0:
            opened = _Open(own, self._plan, self._plan.builder(None))
            self._open.append((own, opened))
            out.extend((0, DOWN, emitted) for emitted in opened.logic.on_value((0, item)))
            return
        paired = False
        for _, opened in self._open:
            if opened.first <= own <= opened.until:
                paired = True
                out.extend((0, DOWN, emitted) for emitted in opened.logic.on_value((side, item)))
        if not paired:
            out.append((0, UNPAIRED, item))

    def _closes(self, opened: _Open) -> datetime:
        # A value of the right as late as can be has its turn `gap_before` after the interval's end, and may come up to then.
        return after(opened.until, self._plan.gap_before + TICK)

    def advance(self, until: datetime, out: list[Event]) -> None:
        closed = 0
        for _, opened in self._open:
            if self._closes(opened) > until:
                break
            out.extend((0, DOWN, emitted) for emitted in opened.logic.on_close())
            closed += 1
        del self._open[:closed]

    def due(self) -> datetime | None:
        return self._closes(self._open[0][1]) if self._open else None

    def empty(self) -> bool:
        return not self._open

    def state(self) -> Any:
        return [(micros(ts), opened.logic.snapshot()) for ts, opened in self._open]


def _right_last(value: tuple[int, datetime, Any]) -> int:
    return value[0]


class _Named(Generic[V, W, S]):
    """A user's logic, which is told left and right in words."""

    __slots__ = ("_logic", "on_close", "snapshot")

    def __init__(self, logic: IntervalLogic[V, W, S]) -> None:
        self._logic = logic
        self.on_close = logic.on_close
        self.snapshot = logic.snapshot

    def on_value(self, value: tuple[int, V]) -> Iterable[W]:
        return self._logic.on_value("right" if value[0] else "left", value[1])


def _streams(
    step_id: str,
    left: KeyedStream[Any],
    clock: Clock[Any, Any],
    gap_before: timedelta,
    gap_after: timedelta,
    builder: Callable[[Any], Any],
    rights: tuple[KeyedStream[Any], ...],
) -> IntervalOut[Any, Any]:
    if not isinstance(clock, Clock):
        raise TypeError(f"step {step_id!r}: `clock` must be a Clock; got {clock!r}")
    if not rights:
        raise ValueError(f"step {step_id!r}: it needs at least one stream on the right")
    check_span(gap_before, f"step {step_id!r}: `gap_before`")
    check_span(gap_after, f"step {step_id!r}: `gap_after`")
    sides = [map_value(f"side_{i}", side, Side(i)) for i, side in enumerate((left, *rights))]
    sided: Clock[Any, Any] = SidesClock(clock, len(sides)) if type(clock) is EventClock else AnyClock(clock)
    plan = _Plan(sided, gap_before, gap_after, builder)
    events = stateful_batch("stateful_batch", merge("merge", *sides), lambda state: _IntervalDriver(plan, state))
    return IntervalOut(
        flat_map_batch("down", events, lambda items: payloads(items, DOWN)),
        flat_map_batch("unpaired", events, lambda items: payloads(items, UNPAIRED)),
        flat_map_batch("late", events, lambda items: payloads(items, LATE)),
    )


@operator
def interval(
    step_id: str,
    left: KeyedStream[V],
    clock: Clock[Any, Any],
    gap_before: timedelta,
    gap_after: timedelta,
    builder: Callable[[S | None], IntervalLogic[V, W, S]],
    *rights: KeyedStream[V],
) -> IntervalOut[V, W]:
    """For each value of the left, a logic that sees the values of the right from ``gap_before`` before it to ``gap_after`` after it.

    Both ends are part of the interval. Values are taken in the order of their times, those of the right ``gap_before`` later. ``builder`` makes
    the logic of a value of the left: from None, or from a state that its ``snapshot`` gave. With an event clock, each side has its own watermark,
    and the slowest counts.
    """
    if not callable(builder):
        raise TypeError(f"step {step_id!r}: `builder` must be a function; got {builder!r}")
    return _streams(step_id, left, clock, gap_before, gap_after, lambda state: _Named(builder(state)), rights)


@operator
def join_interval(
    step_id: str,
    left: KeyedStream[Any],
    clock: Clock[Any, Any],
    gap_before: timedelta,
    gap_after: timedelta,
    *rights: KeyedStream[Any],
    insert_mode: JoinInsertMode = "last",
    emit_mode: JoinEmitMode = "final",
) -> IntervalOut[Any, tuple[Any, ...]]:
    """Joins each value of the left with values of the right near it in time. Modes are those of ``join_window``; see :func:`interval`.

    >>> from datetime import datetime, timedelta, timezone
    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.interval import join_interval
    >>> from skep.dataflow.operators.windowing import EventClock
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> day = datetime(2024, 1, 1, tzinfo=timezone.utc)
    >>> flow = Dataflow("eg")
    >>> views = op.input("views", flow, TestingSource([("a", 10), ("a", 20)]))
    >>> clicks = op.input("clicks", flow, TestingSource([("a", 12), ("a", 60)]))
    >>> clock = EventClock(lambda s: day + timedelta(seconds=s), timedelta(seconds=100))
    >>> out = join_interval("near", views, clock, timedelta(0), timedelta(seconds=5), clicks)
    >>> _ = op.inspect("down", out.down)
    >>> _ = op.inspect("unpaired", out.unpaired)
    >>> run_main(flow)
    eg.down: ('a', (10, 12))
    eg.down: ('a', (20, None))
    eg.unpaired: ('a', 60)
    """
    for name, mode, modes in (("insert_mode", insert_mode, JoinInsertMode), ("emit_mode", emit_mode, JoinEmitMode)):
        if mode not in typing.get_args(modes):
            raise ValueError(f"step {step_id!r}: `{name}` is one of {', '.join(map(repr, typing.get_args(modes)))}; got {mode!r}")
    sides = 1 + len(rights)
    return _streams(step_id, left, clock, gap_before, gap_after, lambda state: JoinWindowLogic(sides, insert_mode, emit_mode, state), rights)
