"""Rolling windows: what happened to a key in the time up to now, anew at each change."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from . import KeyedStream
from .graph import f_repr, operator
from .operators import flat_map_batch, stateful_batch
from .operators.windowing.clocks import Clock
from .operators.windowing.folding import DOWN, LATE, Event
from .operators.windowing.in_order import InOrderLogic, no_tie
from .operators.windowing.moments import TICK, UTC_MAX, ZERO_TD, after, check_span, micros, moment_of
from .ordering import payloads

V = TypeVar("V")
W = TypeVar("W")
S = TypeVar("S")

__all__ = ["RollingOut", "rolling_delta_stateful_flat_map", "rolling_flat_map"]


@dataclass(frozen=True)
class RollingOut(Generic[V, W]):
    """The streams of a rolling window."""

    #: What the mapper made at each change.
    downs: KeyedStream[W]
    #: Values that came too late.
    lates: KeyedStream[V]


class _RollingLogic(InOrderLogic):
    """The window of a key. A value enters it ``offset`` after its time, and leaves it ``length`` later.

    All that changes at one moment is one change. So a moment is over, and the mapper called, only when the watermark is behind it.
    """

    __slots__ = ("_entering", "_length", "_mapper", "_now", "_offset", "_state", "_window")

    def __init__(
        self,
        clock: Clock[Any, Any],
        length: timedelta,
        offset: timedelta,
        mapper: Callable[[Any, list[Any], list[Any], list[Any]], tuple[Any, Iterable[Any]]],
        resume_state: Any,
    ) -> None:
        held = self.resume(clock, True, no_tie, resume_state)
        self._length = length
        self._offset = offset
        self._mapper = mapper
        self._state: Any = None
        #: Values in the window, with when they leave; then those that enter at the moment that is not over yet.
        self._window: deque[tuple[datetime, Any]] = deque()
        self._now: datetime | None = None
        self._entering: list[Any] = []
        if held is not None:
            self._state, window, now, self._entering = held
            self._window.extend((moment_of(us), value) for us, value in window)
            self._now = None if now is None else moment_of(now)

    def turn(self, ts: datetime, value: Any) -> tuple[datetime, Any]:
        return after(ts, self._offset), value

    def late(self, ts: datetime, value: Any, out: list[Event]) -> None:
        out.append((0, LATE, value))

    def take(self, ts: datetime, value: Any, out: list[Event]) -> None:
        self._now = ts
        self._entering.append(value)

    def _next(self) -> datetime | None:
        """The next moment at which the window changes."""
        leaves = self._window[0][0] if self._window else None
        if self._now is None or leaves is None:
            return self._now or leaves
        return min(self._now, leaves)

    def advance(self, until: datetime, out: list[Event]) -> None:
        while (moment := self._next()) is not None and moment < until:
            entering: list[Any] = []
            if self._now == moment:
                entering, self._entering, self._now = self._entering, [], None
            # At the end of the stream there are no more moments: what is left leaves at once.
            ends = until == UTC_MAX and not entering
            leaving = []
            while self._window and (ends or self._window[0][0] <= moment):
                leaving.append(self._window.popleft()[1])
            leave_at = after(moment, self._length)
            self._window.extend((leave_at, value) for value in entering)
            self._state, emit = self._mapper(self._state, entering, leaving, [value for _, value in self._window])
            out.extend((0, DOWN, emitted) for emitted in emit)
            if not self._window:
                # What is derived from nothing is nothing: so it makes no difference whether the key is forgotten meanwhile.
                self._state = None

    def due(self) -> datetime | None:
        moment = self._next()
        return None if moment is None else after(moment, TICK)

    def empty(self) -> bool:
        return not self._window and self._now is None

    def on_eof(self) -> tuple[Iterable[Event], bool]:
        out, _ = super().on_eof()
        return out, True

    def state(self) -> Any:
        window = [(micros(leaves), value) for leaves, value in self._window]
        return self._state, window, None if self._now is None else micros(self._now), self._entering


def _rolling(
    step_id: str, up: KeyedStream[Any], clock: Clock[Any, Any], length: timedelta, offset: timedelta, mapper: Any, shim: Any
) -> RollingOut[Any, Any]:
    if not isinstance(clock, Clock):
        raise TypeError(f"step {step_id!r}: `clock` must be a Clock; got {clock!r}")
    if not callable(mapper):
        raise TypeError(f"step {step_id!r}: `mapper` must be a function; got {mapper!r} ({type(mapper).__name__})")
    check_span(length, f"step {step_id!r}: `length`", least=TICK)
    check_span(offset, f"step {step_id!r}: `offset`")
    events = stateful_batch("stateful_batch", up, lambda state: _RollingLogic(clock, length, offset, shim, state))
    return RollingOut(
        flat_map_batch("downs", events, lambda items: payloads(items, DOWN)), flat_map_batch("lates", events, lambda items: payloads(items, LATE))
    )


@operator
def rolling_flat_map(
    step_id: str,
    up: KeyedStream[V],
    clock: Clock[V, Any],
    length: timedelta,
    mapper: Callable[[list[V]], Iterable[W]],
    offset: timedelta = ZERO_TD,
) -> RollingOut[V, W]:
    """Calls ``mapper`` with the values of the last ``length`` whenever these have changed, in the order of their times.

    A value is in the window from its time until ``length`` later, that moment not included; with ``offset`` it enters and leaves so much later.
    What changes at one moment is one change. At the end of the stream the window becomes empty at once.

    >>> from datetime import datetime, timedelta, timezone
    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.operators.windowing import EventClock
    >>> from skep.dataflow.rolling import rolling_flat_map
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> day = datetime(2024, 1, 1, tzinfo=timezone.utc)
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 1), ("a", 2), ("a", 4)]))
    >>> clock = EventClock(lambda n: day + timedelta(seconds=n), timedelta(0))
    >>> _ = op.inspect("sum", rolling_flat_map("roll", s, clock, timedelta(seconds=3), lambda ns: [sum(ns)]).downs)
    >>> run_main(flow)
    eg.sum: ('a', 1)
    eg.sum: ('a', 3)
    eg.sum: ('a', 6)
    eg.sum: ('a', 0)
    """

    def shim(state: None, _entering: list[V], _leaving: list[V], window: list[V]) -> tuple[None, Iterable[W]]:
        return None, mapper(window)

    return _rolling(step_id, up, clock, length, offset, mapper, shim)


@operator
def rolling_delta_stateful_flat_map(
    step_id: str,
    up: KeyedStream[V],
    clock: Clock[V, Any],
    length: timedelta,
    mapper: Callable[[S | None, list[V], list[V]], tuple[S | None, Iterable[W]]],
    offset: timedelta = ZERO_TD,
) -> RollingOut[V, W]:
    """As :func:`rolling_flat_map`, with ``mapper(state, entered, left)``, which returns ``(state, what to emit)``: for what is cheaper to bring up to
    date than to make anew. The state is None at first, and again after the window was empty."""

    def shim(state: S | None, entering: list[V], leaving: list[V], _window: list[V]) -> tuple[S | None, Iterable[W]]:
        got = mapper(state, entering, leaving)
        if not isinstance(got, tuple) or len(got) != 2:
            raise TypeError(f"step {step_id!r}: {f_repr(mapper)} must return (state, what to emit); got {got!r}")
        return got

    return _rolling(step_id, up, clock, length, offset, mapper, shim)
