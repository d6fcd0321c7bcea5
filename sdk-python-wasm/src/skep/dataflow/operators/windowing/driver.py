"""Windows in general: any clock, any windower, a logic for each window. See ``in_order`` for when values are taken and windows closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Generic, TypeVar

from .clocks import Clock
from .folding import DOWN, LATE, META, Event, Fold
from .in_order import InOrderLogic
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


class WindowDriver(InOrderLogic):
    """The windows of one key."""

    __slots__ = ("_builder", "_logics", "_windower")

    def __init__(
        self,
        clock: Clock[Any, Any],
        windower: Windower[Any],
        builder: Callable[[Any], WindowLogic[Any, Any, Any]],
        ordered: bool,
        tie: Callable[[Any], int],
        resume_state: Any,
    ) -> None:
        held = super().resume(clock, ordered, tie, resume_state)
        windower_state, logics = (None, ()) if held is None else held
        self._windower: WindowerLogic[Any] = windower.build(windower_state)
        self._builder = builder
        self._logics = {window: builder(state) for window, state in logics}

    def late(self, ts: datetime, value: Any, out: list[Event]) -> None:
        out.extend((window, LATE, value) for window in self._windower.late_for(ts))

    def take(self, ts: datetime, value: Any, out: list[Event]) -> None:
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

    def advance(self, until: datetime, out: list[Event]) -> None:
        if not self._logics:
            return
        for window, metadata in self._windower.close_for(until):
            logic = self._logics.pop(window, None)
            if logic is not None:
                out.extend((window, DOWN, emitted) for emitted in logic.on_close())
            out.append((window, META, (metadata.open_time, metadata.close_time, metadata.merged_ids)))

    def due(self) -> datetime | None:
        return self._windower.notify_at()

    def empty(self) -> bool:
        return not self._logics and self._windower.is_empty()

    def state(self) -> Any:
        return self._windower.snapshot(), [(window, logic.snapshot()) for window, logic in self._logics.items()]


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
