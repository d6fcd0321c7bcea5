"""Clocks: what time a value is of, and up to which time no more values are expected (the watermark). Each key has its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from .moments import UTC, UTC_MAX, UTC_MIN, after, before, check_span, micros, moment_of, system_utc, to_utc

V = TypeVar("V")
S = TypeVar("S")

#: How long a silent key's watermark is kept unless the clock says otherwise.
REMEMBER = timedelta(hours=1)

TS_GETTER = "what `ts_getter` returns"
NOW_GETTER = "what `now_getter` returns"


def same(moment: datetime) -> datetime | None:
    """A moment of event time is the same moment of system time."""
    return moment


class ClockLogic(ABC, Generic[V, S]):
    """A clock of one key. Write one, with a :class:`Clock` that builds it, for a sense of time of your own."""

    def before_batch(self) -> None:
        """Called before the values of a batch, which came together: the place to look at a clock once."""
        return

    @abstractmethod
    def on_item(self, value: V) -> tuple[datetime, datetime]:
        """The value's time, and the watermark with it. A watermark that goes back is taken as unchanged."""

    @abstractmethod
    def on_notify(self) -> datetime:
        """The watermark while no value came."""

    @abstractmethod
    def on_eof(self) -> datetime:
        """The watermark at the end of the stream: the last moment, to close what is open. It is not to change the state."""

    @abstractmethod
    def to_system_utc(self, timestamp: datetime) -> datetime | None:
        """When, on the system's clock, the watermark will be there if no value comes. Without an answer nobody wakes for it."""

    def keep_until(self) -> datetime | None:
        """Until when, on the system's clock, the state matters although no window is open. Without an answer it may go now."""
        return None

    @abstractmethod
    def snapshot(self) -> S:
        """The state, for :meth:`Clock.build`. It is pickled before the clock is used again."""


class Clock(ABC, Generic[V, S]):
    """What a key's :class:`ClockLogic` is built from."""

    @abstractmethod
    def build(self, resume_state: S | None) -> ClockLogic[V, S]:
        """The clock of a key: a new one, or as its snapshot was."""


@dataclass
class SystemClock(Clock[Any, Any]):
    """A value's time is when it is processed; the watermark is now. Nothing is late, and nothing can be repeated: use event time for that."""

    #: The time now, with its zone. In a test a function that returns what you like.
    now_getter: Callable[[], datetime] = system_utc

    def build(self, resume_state: int | None) -> ClockLogic[Any, Any]:
        return SystemClockLogic(self.now_getter, resume_state)


class SystemClockLogic(ClockLogic[Any, int]):
    """See :class:`SystemClock`. Its state is where it was last, so that it never goes back when the machine's clock does."""

    def __init__(self, now_getter: Callable[[], datetime], resume_state: int | None) -> None:
        self._getter = now_getter
        self._now = UTC_MIN if resume_state is None else moment_of(resume_state)

    def before_batch(self) -> None:
        self._now = max(self._now, to_utc(self._getter(), NOW_GETTER))

    def on_item(self, value: Any) -> tuple[datetime, datetime]:
        return self._now, self._now

    def on_notify(self) -> datetime:
        self.before_batch()
        return self._now

    def on_eof(self) -> datetime:
        return UTC_MAX

    def to_system_utc(self, timestamp: datetime) -> datetime | None:
        return timestamp

    def snapshot(self) -> int:
        return micros(self._now)


@dataclass
class EventClock(Clock[V, Any]):
    """A value's time is in it.

    The watermark is the latest time seen, less ``wait_for_system_duration``, plus how long ago that was: a value that is out of order by no more
    than the wait counts, and the last window of a key that falls silent closes too. In a replay of old data hardly any system time passes, so
    there the wait says how far values may be out of order; ``timedelta.max`` keeps all windows open until the end.
    """

    #: A value's time. It has a time zone.
    ts_getter: Callable[[V], datetime]
    #: How long to wait for values that are late.
    wait_for_system_duration: timedelta
    #: The time now, with its zone, which moves the watermark on.
    now_getter: Callable[[], datetime] = system_utc
    #: When, on the system's clock, a moment of ``now_getter`` is; the runner wakes then to close a window. ``None`` of it: no waking.
    to_system_utc: Callable[[datetime], datetime | None] = same
    #: How long a key's watermark is kept after the value that moved it last, at least until all windows have closed. Later the key's next value
    #: is taken as its first, and never as late.
    remember: timedelta = REMEMBER

    def __post_init__(self) -> None:
        check_span(self.wait_for_system_duration, "`wait_for_system_duration`")
        check_span(self.remember, "`remember`")

    def build(self, resume_state: Any) -> ClockLogic[V, Any]:
        return EventClockLogic(self, resume_state)


class EventClockLogic(ClockLogic[V, Any]):
    """See :class:`EventClock`. Its state is the watermark when it was last moved by a value, and the system time then."""

    def __init__(self, clock: EventClock[V], resume_state: tuple[int, int] | None) -> None:
        self.clock = clock
        self.base: datetime | None = None
        self.sys = UTC_MIN
        self.now = UTC_MIN
        if resume_state is not None:
            self.base, self.sys = moment_of(resume_state[0]), moment_of(resume_state[1])

    def anchor(self, base: datetime) -> None:
        """Let the watermark run from here as if a value had moved it there now."""
        self.base, self.sys = base, self.now

    def watermark(self) -> datetime:
        """As of the batch."""
        if self.base is None:
            return UTC_MIN
        return after(self.base, self.now - self.sys) if self.now > self.sys else self.base

    def before_batch(self) -> None:
        self.now = to_utc(self.clock.now_getter(), NOW_GETTER)

    def on_item(self, value: V) -> tuple[datetime, datetime]:
        ts = to_utc(self.clock.ts_getter(value), TS_GETTER)
        watermark = self.watermark()
        new = before(ts, self.clock.wait_for_system_duration)
        if self.base is None or new > watermark:
            watermark = self.base = new
            self.sys = self.now
        return ts, watermark

    def on_notify(self) -> datetime:
        self.before_batch()
        return self.watermark()

    def on_eof(self) -> datetime:
        return UTC_MAX

    def to_system_utc(self, timestamp: datetime) -> datetime | None:
        if self.base is None:
            return None
        try:
            return self.clock.to_system_utc(self.sys + (timestamp - self.base))
        except OverflowError:
            return None

    def keep_until(self) -> datetime | None:
        if self.base is None:
            return None
        until = after(self.sys, self.clock.remember)
        return None if self.now >= until else self.clock.to_system_utc(until)

    def snapshot(self) -> tuple[int, int] | None:
        return None if self.base is None else (micros(self.base), micros(self.sys))


__all__ = ["REMEMBER", "UTC", "UTC_MAX", "UTC_MIN", "Clock", "ClockLogic", "EventClock", "EventClockLogic", "SystemClock", "SystemClockLogic"]
