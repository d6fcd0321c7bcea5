"""Joins within windows."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from .. import JoinEmitMode, JoinInsertMode, JoinState
from .clocks import NOW_GETTER, Clock, ClockLogic, EventClock, EventClockLogic
from .driver import WindowLogic
from .in_order import LateByItself
from .moments import UTC_MAX, UTC_MIN, after, before, micros, moment_of, to_utc

#: A value and the number of its side.
Sided = tuple[int, Any]


def side_of(value: Sided) -> int:
    """Values of one time are taken by side, so that the result does not depend on which came first."""
    return value[0]


class JoinWindowLogic(WindowLogic[Sided, tuple[Any, ...], Any]):
    """The sides of a window, and when their rows are emitted."""

    __slots__ = ("_emit", "_insert", "_sides", "_state")

    def __init__(self, sides: int, insert: JoinInsertMode, emit: JoinEmitMode, resume_state: Any) -> None:
        self._sides = sides
        self._insert: JoinInsertMode = insert
        self._emit = emit
        self._state = JoinState.empty(sides) if resume_state is None else JoinState(resume_state)

    def _after_change(self) -> Iterable[tuple[Any, ...]]:
        state = self._state
        if self._emit == "running":
            return list(state.rows())
        if self._emit == "complete" and state.complete():
            self._state = JoinState.empty(self._sides)
            return state.rows()
        return ()

    def on_value(self, value: Sided) -> Iterable[tuple[Any, ...]]:
        self._state.put(self._insert, value[0], value[1])
        return self._after_change()

    def on_merge(self, original: JoinWindowLogic) -> Iterable[tuple[Any, ...]]:
        for side, held in enumerate(original._state.sides):
            for value in held:
                self._state.put(self._insert, side, value)
        return self._after_change()

    def on_close(self) -> Iterable[tuple[Any, ...]]:
        return self._state.rows() if self._emit == "final" else ()

    def snapshot(self) -> Any:
        return self._state.sides


class AnyClock(Clock[Sided, Any]):
    """One clock for all sides, which sees the values as they are."""

    def __init__(self, clock: Clock[Any, Any]) -> None:
        self._clock = clock

    def build(self, resume_state: Any) -> ClockLogic[Sided, Any]:
        return AnyClockLogic(self._clock.build(resume_state))


class AnyClockLogic(ClockLogic[Sided, Any]):
    """See :class:`AnyClock`."""

    def __init__(self, logic: ClockLogic[Any, Any]) -> None:
        self.logic = logic

    def before_batch(self) -> None:
        self.logic.before_batch()

    def keep_until(self) -> datetime | None:
        return self.logic.keep_until()

    def on_item(self, value: Sided) -> tuple[datetime, datetime]:
        return self.logic.on_item(value[1])

    def on_notify(self) -> datetime:
        return self.logic.on_notify()

    def on_eof(self) -> datetime:
        return self.logic.on_eof()

    def to_system_utc(self, timestamp: datetime) -> datetime | None:
        return self.logic.to_system_utc(timestamp)

    def snapshot(self) -> Any:
        return self.logic.snapshot()


class SidesClock(Clock[Sided, Any]):
    """An event clock for each side. The key's watermark is that of the side that is furthest behind.

    With one clock for all, a side that is read faster makes the values of the others late: what is joined depends on how the sources
    were scheduled. Here a value is late only by the values of its own side, or if its window has closed.
    """

    def __init__(self, clock: EventClock[Any], sides: int) -> None:
        self._clock = clock
        self._sides = sides

    def build(self, resume_state: Any) -> ClockLogic[Sided, Any]:
        return SidesClockLogic(self._clock, self._sides, resume_state)


class SidesClockLogic(ClockLogic[Sided, Any], LateByItself):
    """See :class:`SidesClock`. Its state is those of the sides, the first value's time, when it came, and the key's watermark."""

    def __init__(self, clock: EventClock[Any], sides: int, resume_state: Any) -> None:
        states, first, since, reached = resume_state or ([None] * sides, None, None, None)
        self._clock = clock
        self._sides = [EventClockLogic(clock, state) for state in states]
        self._first = None if first is None else moment_of(first)
        self._since = UTC_MIN if since is None else moment_of(since)
        self._now = UTC_MIN
        #: How far the key's watermark got: windows up to here have closed.
        self._reached = UTC_MIN if reached is None else moment_of(reached)
        self._was_late = False

    def before_batch(self) -> None:
        self._now = to_utc(self._clock.now_getter(), NOW_GETTER)
        for side in self._sides:
            side.now = self._now
        self._reached = max(self._reached, self._watermark())

    def _watermark(self) -> datetime:
        return min(side.watermark() if side.base is not None else self._unseen() for side in self._sides)

    def _unseen(self) -> datetime:
        """The watermark of a side that sent nothing: as if a value as early as the key's first had come with it, once the wait has passed."""
        wait = self._clock.wait_for_system_duration
        if self._first is None or self._now < after(self._since, wait):
            return UTC_MIN
        return after(before(self._first, wait), self._now - self._since)

    def on_item(self, value: Sided) -> tuple[datetime, datetime]:
        side, item = value
        ts, own = self._sides[side].on_item(item)
        self._was_late = ts < max(own, self._reached)
        if self._first is None:
            self._first, self._since = ts, self._now
        self._reached = max(self._reached, self._watermark())
        return ts, self._reached

    def is_late(self) -> bool:
        return self._was_late

    def on_notify(self) -> datetime:
        self.before_batch()
        return self._reached

    def on_eof(self) -> datetime:
        return UTC_MAX

    def to_system_utc(self, timestamp: datetime) -> datetime | None:
        if self._first is None:
            return None
        wait = self._clock.wait_for_system_duration
        due = UTC_MIN
        for side in self._sides:
            try:
                if side.base is not None:
                    due = max(due, side.sys + (timestamp - side.base))
                else:
                    due = max(due, self._since + max(wait, timestamp - before(self._first, wait)))
            except OverflowError:
                return None
        return self._clock.to_system_utc(due)

    def keep_until(self) -> datetime | None:
        if self._first is None:
            return None
        until = after(max(self._since, *(side.sys for side in self._sides)), self._clock.remember)
        return None if self._now >= until else self._clock.to_system_utc(until)

    def snapshot(self) -> Any:
        states = [side.snapshot() for side in self._sides]
        return states, None if self._first is None else micros(self._first), micros(self._since), micros(self._reached)
