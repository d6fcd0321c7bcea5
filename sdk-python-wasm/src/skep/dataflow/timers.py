"""Several timers for one logic."""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime
from typing import Generic, TypeVar

from .operators.windowing.moments import to_utc

T = TypeVar("T")


class MultiNotifier(Generic[T]):
    """Timers with tokens, for a :class:`~skep.dataflow.operators.StatefulBatchLogic`, which has one wake-up only.

    Keep it in the state, return :meth:`next_at` from ``notify_at``, and in ``on_notify`` do what the tokens of :meth:`due` say.

    >>> from datetime import datetime, timezone
    >>> timers = MultiNotifier()
    >>> timers.notify_at(datetime(2024, 1, 1, 7, tzinfo=timezone.utc), "breakfast")
    >>> timers.notify_at(datetime(2024, 1, 1, 6, tzinfo=timezone.utc), "alarm")
    >>> timers.next_at().hour, timers.due(datetime(2024, 1, 1, 6, 30, tzinfo=timezone.utc)), len(timers)
    (6, ['alarm'], 1)
    """

    __slots__ = ("_timers",)

    def __init__(self) -> None:
        self._timers: list[tuple[datetime, T]] = []

    def __len__(self) -> int:
        return len(self._timers)

    def notify_at(self, at: datetime, token: T) -> None:
        """Sets a timer. The time has a time zone; tokens of one time come in the order in which they were set."""
        at = to_utc(at, "a timer's time")
        self._timers.insert(bisect_right(self._timers, at, key=lambda timer: timer[0]), (at, token))

    def next_at(self) -> datetime | None:
        """When the first is due."""
        return self._timers[0][0] if self._timers else None

    def due(self, now: datetime) -> list[T]:
        """Tokens whose time has come. They are removed."""
        until = bisect_right(self._timers, to_utc(now, "the time now"), key=lambda timer: timer[0])
        tokens = [token for _, token in self._timers[:until]]
        del self._timers[:until]
        return tokens
