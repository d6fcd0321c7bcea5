"""Windows in general: any clock, any windower, a logic for each window.

Each value is taken as if it had come alone, so what comes out does not depend on how values were grouped into batches. With ``ordered``, values
wait until the watermark has reached them and are then taken in order of their times, with the windows that close between two of them closed
between them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Generic, TypeVar

from .clocks import Clock, ClockLogic
from .folding import DOWN, LATE, META, Event, Fold
from .moments import UTC_MIN, micros, moment_of, to_utc
from .waking import WokenLogic
from .windowers import Windower, WindowerLogic

V = TypeVar("V")
W = TypeVar("W")
S = TypeVar("S")


class WindowLogic(ABC, Generic[V, W, S]):
    """One window of one key. Each method returns what to emit."""

    @abstractmethod
    def on_value(self, value: V) -> Iterable[W]:
        """A value of the window."""

    @abstractmethod
    def on_merge(self, original: Any) -> Iterable[W]:
        """The window takes in another, whose logic this is; that one is dropped then. Only some windowers merge."""

    @abstractmethod
    def on_close(self) -> Iterable[W]:
        """No more values come. The logic is dropped then."""

    @abstractmethod
    def snapshot(self) -> S:
        """The state, for the builder to go on from. It is pickled before the logic is used again."""


class LateByItself(ABC):
    """What a clock logic may be besides: one for which late is something else than "behind the watermark"."""

    @abstractmethod
    def is_late(self) -> bool:
        """Whether the last value was late."""


def no_tie(_value: Any) -> int:
    """Values of one time stay as they came."""
    return 0


class WindowDriver(WokenLogic[Any, Event]):
    """The windows of one key."""

    __slots__ = ("_builder", "_clock", "_keys", "_late", "_logics", "_ordered", "_queue", "_tie", "_watermark", "_windower")

    def __init__(
        self,
        clock: Clock[Any, Any],
        windower: Windower[Any],
        builder: Callable[[Any], WindowLogic[Any, Any, Any]],
        ordered: bool,
        tie: Callable[[Any], int],
        resume_state: Any,
    ) -> None:
        super().__init__()
        clock_state, windower_state, logics, queue, watermark = resume_state or (None, None, (), (), micros(UTC_MIN))
        self._clock: ClockLogic[Any, Any] = clock.build(clock_state)
        self._late: LateByItself | None = self._clock if isinstance(self._clock, LateByItself) else None
        self._windower: WindowerLogic[Any] = windower.build(windower_state)
        self._builder = builder
        self._ordered = ordered
        self._tie = tie
        self._logics = {window: builder(state) for window, state in logics}
        #: Values that the watermark has not reached, in their order, and what orders them: their time, and among equal ones the tie.
        self._queue = [value for _, value in queue]
        self._keys = [(ts, tie(value)) for ts, value in ((moment_of(us), value) for us, value in queue)]
        self._watermark = moment_of(watermark)

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
                out.extend((window, LATE, value) for window in self._windower.late_for(ts))
            elif self._ordered:
                self._enqueue(ts, value)
            else:
                self._take(ts, value, out)
                self._close(self._watermark, out)
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
        # Not kept as the watermark: a later run may go on, where the windows did not close.
        risen, self._watermark = self._watermark, max(self._watermark, to_utc(self._clock.on_eof(), "a watermark"))
        self._reach(out)
        self._watermark = risen
        return out, self._empty()

    def notify_at(self) -> datetime | None:
        due = self._windower.notify_at()
        if self._keys and (due is None or self._keys[0][0] < due):
            due = self._keys[0][0]
        at = self._clock.keep_until() if due is None else self._clock.to_system_utc(due)
        return None if at is None else self.not_too_early(to_utc(at, "what `to_system_utc` returns"))

    def snapshot(self) -> Any:
        return (
            self._clock.snapshot(),
            self._windower.snapshot(),
            [(window, logic.snapshot()) for window, logic in self._logics.items()],
            [(micros(ts), value) for (ts, _), value in zip(self._keys, self._queue)],
            micros(self._watermark),
        )

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
        """Takes from the queue what the watermark has reached, and closes what is due."""
        keys = self._keys
        if keys and keys[0][0] <= self._watermark:
            until = bisect_left(keys, True, key=lambda key: key[0] > self._watermark)
            ready = list(zip(keys[:until], self._queue[:until]))
            del keys[:until], self._queue[:until]
            for (ts, _), value in ready:
                self._close(ts, out)
                self._take(ts, value, out)
        self._close(self._watermark, out)

    def _take(self, ts: datetime, value: Any, out: list[Event]) -> None:
        logics = self._logics
        for window in self._windower.open_for(ts):
            logic = logics.get(window)
            if logic is None:
                logic = logics[window] = self._builder(None)
            out.extend((window, DOWN, emitted) for emitted in logic.on_value(value))
        for window, into in self._windower.merged():
            original = logics.pop(window, None)
            if original is not None:
                target = logics.get(into)
                if target is None:
                    target = logics[into] = self._builder(None)
                out.extend((into, DOWN, emitted) for emitted in target.on_merge(original))

    def _close(self, watermark: datetime, out: list[Event]) -> None:
        if not self._logics:
            return
        for window, metadata in self._windower.close_for(watermark):
            logic = self._logics.pop(window, None)
            if logic is not None:
                out.extend((window, DOWN, emitted) for emitted in logic.on_close())
            out.append((window, META, (metadata.open_time, metadata.close_time, metadata.merged_ids)))

    def _empty(self) -> bool:
        return not self._logics and not self._queue and self._windower.is_empty()

    def _gone(self) -> bool:
        return self._empty() and self._clock.keep_until() is None


class FoldWindowLogic(WindowLogic[Any, Any, Any]):
    """A fold, for clocks and windowers that the fast path does not know."""

    __slots__ = ("_fold", "acc")

    def __init__(self, fold: Fold, resume_state: tuple[Any] | None) -> None:
        self._fold = fold
        self.acc = fold.start() if resume_state is None else resume_state[0]

    def on_value(self, value: Any) -> Iterable[Any]:
        self.acc = self._fold.one(self.acc, value)
        return ()

    def on_merge(self, original: FoldWindowLogic) -> Iterable[Any]:
        self.acc = self._fold.merge(self.acc, original.acc)
        return ()

    def on_close(self) -> Iterable[Any]:
        return (self.acc,)

    def snapshot(self) -> tuple[Any]:
        return (self.acc,)
