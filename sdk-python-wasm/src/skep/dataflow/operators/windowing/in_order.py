"""Values of a key in the order of their times.

Each value is taken as if it had come alone, so what comes out does not depend on how values were grouped into batches. With ``ordered``, values
wait until the watermark has reached them and are then taken in order of their times, with what falls due between two of them done between them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from .clocks import Clock, ClockLogic
from .folding import Event
from .moments import UTC_MIN, micros, moment_of, to_utc
from .waking import WokenLogic


class LateByItself(ABC):
    """What a clock logic may be besides: one for which late is something else than "behind the watermark"."""

    @abstractmethod
    def is_late(self) -> bool:
        """Whether the last value was late."""


def no_tie(_value: Any) -> int:
    """Values of one time stay as they came."""
    return 0


class InOrderLogic(WokenLogic[Any, Event]):
    """A clock, a watermark and a queue. What is done with values is said by the methods without underscore, from :meth:`late` on."""

    __slots__ = ("_clock", "_keys", "_late", "_ordered", "_queue", "_tie", "_watermark")

    def resume(self, clock: Clock[Any, Any], ordered: bool, tie: Callable[[Any], int], resume_state: Any) -> Any:
        """Begins, or goes on. Returns the state that :meth:`state` gave, if any."""
        super().__init__()
        held, clock_state, queue, watermark = resume_state or (None, None, (), micros(UTC_MIN))
        self._clock: ClockLogic[Any, Any] = clock.build(clock_state)
        self._late: LateByItself | None = self._clock if isinstance(self._clock, LateByItself) else None
        self._ordered = ordered
        self._tie = tie
        #: Values whose turn has not come, in their order, and what orders them: the time of their turn, and among equal ones the tie.
        self._queue = [value for _, value in queue]
        self._keys = [(moment_of(us), tie(value)) for us, value in queue]
        self._watermark = moment_of(watermark)
        return held

    @abstractmethod
    def late(self, ts: datetime, value: Any, out: list[Event]) -> None:
        """A value came too late."""

    @abstractmethod
    def take(self, ts: datetime, value: Any, out: list[Event]) -> None:
        """A value, in its turn; ``ts`` is that of its turn."""

    @abstractmethod
    def advance(self, until: datetime, out: list[Event]) -> None:
        """Does what is due by then. Called before each value with the time of its turn, and with the watermark."""

    @abstractmethod
    def due(self) -> datetime | None:
        """The watermark at which :meth:`advance` has something to do next."""

    @abstractmethod
    def empty(self) -> bool:
        """Whether there is nothing to remember."""

    @abstractmethod
    def state(self) -> Any:
        """What to remember."""

    def turn(self, ts: datetime, value: Any) -> tuple[datetime, Any]:
        """When a value's turn is, and what is taken then."""
        return ts, value

    def on_batch(self, values: list[Any]) -> tuple[Iterable[Event], bool]:
        self.early = None
        out: list[Event] = []
        clock = self._clock
        clock.before_batch()
        for value in values:
            ts, watermark = clock.on_item(value)
            ts = to_utc(ts, "a value's time")
            self._rise(watermark)
            if self._late.is_late() if self._late is not None else ts < self._watermark:
                self.late(ts, value, out)
            elif self._ordered:
                self._enqueue(*self.turn(ts, value))
            else:
                self.take(*self.turn(ts, value), out)
                self.advance(self._watermark, out)
        self._reach(out)
        return out, self._gone()

    def on_notify(self) -> tuple[Iterable[Event], bool]:
        out: list[Event] = []
        self._rise(self._clock.on_notify())
        waiting = len(self._queue)
        self._reach(out)
        gone = self._gone()
        self.woken(bool(out) or gone or len(self._queue) < waiting)
        return out, gone

    def on_eof(self) -> tuple[Iterable[Event], bool]:
        out: list[Event] = []
        # Not kept as the watermark: a later run may go on with what did not end.
        risen, self._watermark = self._watermark, max(self._watermark, to_utc(self._clock.on_eof(), "a watermark"))
        self._reach(out)
        self._watermark = risen
        return out, self.empty() and not self._queue

    def notify_at(self) -> datetime | None:
        due = self.due()
        if self._keys and (due is None or self._keys[0][0] < due):
            due = self._keys[0][0]
        at = self._clock.keep_until() if due is None else self._clock.to_system_utc(due)
        return None if at is None else self.not_too_early(to_utc(at, "what `to_system_utc` returns"))

    def snapshot(self) -> Any:
        queue = [(micros(ts), value) for (ts, _), value in zip(self._keys, self._queue)]
        return self.state(), self._clock.snapshot(), queue, micros(self._watermark)

    def _rise(self, watermark: datetime) -> None:
        watermark = to_utc(watermark, "a watermark")
        if watermark > self._watermark:
            self._watermark = watermark

    def _enqueue(self, ts: datetime, value: Any) -> None:
        key = (ts, self._tie(value))
        keys = self._keys
        at = len(keys) if not keys or key >= keys[-1] else bisect_right(keys, key)
        keys.insert(at, key)
        self._queue.insert(at, value)

    def _reach(self, out: list[Event]) -> None:
        """Takes from the queue what the watermark has reached, and does what is due."""
        keys = self._keys
        if keys and keys[0][0] <= self._watermark:
            until = bisect_left(keys, True, key=lambda key: key[0] > self._watermark)
            ready = list(zip(keys[:until], self._queue[:until]))
            del keys[:until], self._queue[:until]
            for (ts, _), value in ready:
                self.advance(ts, out)
                self.take(ts, value, out)
        self.advance(self._watermark, out)

    def _gone(self) -> bool:
        return self.empty() and not self._queue and self._clock.keep_until() is None
