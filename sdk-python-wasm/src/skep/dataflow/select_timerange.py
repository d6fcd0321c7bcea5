"""Questions about what happened in a time range, asked by a stream."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from . import KeyedStream
from .graph import operator
from .operators import flat_map_batch, map_value, merge, stateful_batch
from .operators.windowing import Side
from .operators.windowing.clocks import Clock
from .operators.windowing.folding import DOWN, LATE, Event
from .operators.windowing.moments import TICK, UTC_MIN, after, before, check_span, micros, moment_of, to_utc
from .operators.windowing.waking import WokenLogic
from .ordering import payloads

V = TypeVar("V")

#: The kind of an event: a question that came too late.
LATE_QUERY = 3

__all__ = ["SelectTimeRangeOut", "TimeRangeQuery", "TimeRangeResult", "select_time_range", "time_range_ts_getter"]


@dataclass(frozen=True)
class TimeRangeQuery:
    """A question: which values are there from ``start`` to ``end``? Both are part of the range."""

    #: Whatever tells it from others.
    query_id: Any
    start: datetime
    end: datetime


@dataclass(frozen=True)
class TimeRangeResult(Generic[V]):
    """The answer."""

    query: TimeRangeQuery
    #: In the order of their times.
    values: list[V]
    #: Whether the range is longer than what is kept, so that values may be missing.
    incomplete: bool


def time_range_ts_getter(query: TimeRangeQuery) -> datetime:
    """The time of a question, for its clock: the end of its range."""
    return query.end


@dataclass(frozen=True)
class SelectTimeRangeOut(Generic[V]):
    """The streams of :func:`select_time_range`."""

    results: KeyedStream[TimeRangeResult[V]]
    #: Values that came behind their watermark. They are in no answer.
    late_values: KeyedStream[V]
    #: Questions that came behind theirs. They are not answered.
    late_queries: KeyedStream[TimeRangeQuery]


class _SelectLogic(WokenLogic[Any, Event]):
    """A key's values as far back as questions may ask, and questions whose range is not over."""

    __slots__ = ("_clocks", "_longest", "_queries", "_times", "_values", "_watermarks")

    def __init__(self, clocks: tuple[Clock[Any, Any], Clock[Any, Any]], longest: timedelta, resume_state: Any) -> None:
        super().__init__()
        clock_states, values, queries, watermarks = resume_state or ((None, None), (), (), None)
        self._longest = longest
        #: First of values, then of questions.
        self._clocks = [clock.build(state) for clock, state in zip(clocks, clock_states)]
        self._watermarks = [UTC_MIN, UTC_MIN] if watermarks is None else [moment_of(us) for us in watermarks]
        self._times = [moment_of(us) for us, _ in values]
        self._values = [value for _, value in values]
        #: By their ends.
        self._queries: list[TimeRangeQuery] = list(queries)

    def on_batch(self, values: list[Any]) -> tuple[Iterable[Event], bool]:
        self.early = None
        out: list[Event] = []
        for clock in self._clocks:
            clock.before_batch()
        for side, value in values:
            ts, watermark = self._clocks[side].on_item(value)
            ts = to_utc(ts, "a time")
            self._rise(side, watermark)
            if ts < self._watermarks[side]:
                out.append((0, LATE_QUERY if side else LATE, value))
            elif side == 0:
                at = bisect_right(self._times, ts)
                self._times.insert(at, ts)
                self._values.insert(at, value)
            else:
                if not isinstance(value, TimeRangeQuery):
                    raise TypeError(f"select_time_range takes TimeRangeQuery values as queries; got {value!r} ({type(value).__name__})")
                query = TimeRangeQuery(value.query_id, to_utc(value.start, "a query's `start`"), to_utc(value.end, "a query's `end`"))
                self._queries.insert(bisect_right(self._queries, query.end, key=time_range_ts_getter), query)
            self._answer(out)
        self._answer(out)
        return out, self._gone()

    def on_notify(self) -> tuple[Iterable[Event], bool]:
        out: list[Event] = []
        held = len(self._values)
        for side, clock in enumerate(self._clocks):
            self._rise(side, clock.on_notify())
        self._answer(out)
        gone = self._gone()
        self.woken(bool(out) or gone or len(self._values) < held)
        return out, gone

    def on_eof(self) -> tuple[Iterable[Event], bool]:
        out: list[Event] = []
        for side, clock in enumerate(self._clocks):
            self._rise(side, clock.on_eof())
        self._answer(out)
        return out, True

    def notify_at(self) -> datetime | None:
        due: list[datetime | None] = []
        if self._queries:
            due.append(self._clocks[0].to_system_utc(after(self._queries[0].end, TICK)))
        if self._values:
            due.append(self._clocks[1].to_system_utc(after(self._times[0], self._longest + TICK)))
        first = min
        if not due:
            # The key goes when both clocks let it.
            due, first = [clock.keep_until() for clock in self._clocks], max
        moments = [to_utc(at, "what `to_system_utc` returns") for at in due if at is not None]
        return self.not_too_early(first(moments)) if moments else None

    def snapshot(self) -> Any:
        return (
            tuple(clock.snapshot() for clock in self._clocks),
            [(micros(ts), value) for ts, value in zip(self._times, self._values)],
            list(self._queries),
            [micros(watermark) for watermark in self._watermarks],
        )

    def _rise(self, side: int, watermark: datetime) -> None:
        self._watermarks[side] = max(self._watermarks[side], to_utc(watermark, "a watermark"))

    def _answer(self, out: list[Event]) -> None:
        """Answers questions whose range is over, and drops values that no question can ask for any more."""
        done = 0
        for query in self._queries:
            # A value of the very end may still come while the watermark is there.
            if query.end >= self._watermarks[0]:
                break
            values = self._values[bisect_left(self._times, query.start) : bisect_right(self._times, query.end)]
            out.append((0, DOWN, TimeRangeResult(query, values, query.end - query.start > self._longest)))
            done += 1
        del self._queries[:done]
        # The next question ends at the earliest at its watermark, or at the first end of those that wait.
        ends = self._watermarks[1] if not self._queries else min(self._watermarks[1], self._queries[0].end)
        if self._times and self._times[0] < (oldest := before(ends, self._longest)):
            gone = bisect_left(self._times, oldest)
            del self._times[:gone], self._values[:gone]

    def _gone(self) -> bool:
        return not self._values and not self._queries and all(clock.keep_until() is None for clock in self._clocks)


@operator
def select_time_range(
    step_id: str,
    values: KeyedStream[V],
    value_clock: Clock[V, Any],
    queries: KeyedStream[TimeRangeQuery],
    query_clock: Clock[TimeRangeQuery, Any],
    max_query_length: timedelta,
) -> SelectTimeRangeOut[V]:
    """Answers questions about the values of a key in a time range.

    A question is answered when the values' watermark is behind the end of its range. Values are kept as long as a question of
    ``max_query_length`` may still ask for them; the answer to a longer one may be incomplete and says so. Its clock goes by
    :func:`time_range_ts_getter`.

    >>> from datetime import datetime, timedelta, timezone
    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.operators.windowing import EventClock
    >>> from skep.dataflow.select_timerange import TimeRangeQuery, select_time_range, time_range_ts_getter
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> def second(n):
    ...     return datetime(2024, 1, 1, 0, 0, n, tzinfo=timezone.utc)
    >>> flow = Dataflow("eg")
    >>> seen = op.input("seen", flow, TestingSource([("a", 1), ("a", 3), ("a", 5)]))
    >>> asked = op.input("asked", flow, TestingSource([("a", TimeRangeQuery("q", second(2), second(5)))]))
    >>> wait = timedelta(seconds=10)
    >>> out = select_time_range("select", seen, EventClock(second, wait), asked, EventClock(time_range_ts_getter, wait), timedelta(minutes=1))
    >>> _ = op.inspect("out", op.map_value("values", out.results, lambda result: (result.query.query_id, result.values)))
    >>> run_main(flow)
    eg.out: ('a', ('q', [3, 5]))
    """
    for name, clock in (("value_clock", value_clock), ("query_clock", query_clock)):
        if not isinstance(clock, Clock):
            raise TypeError(f"step {step_id!r}: `{name}` must be a Clock; got {clock!r}")
    check_span(max_query_length, f"step {step_id!r}: `max_query_length`")
    both = merge("merge", map_value("values", values, Side(0)), map_value("queries", queries, Side(1)))
    clocks = (value_clock, query_clock)
    events = stateful_batch("stateful_batch", both, lambda state: _SelectLogic(clocks, max_query_length, state))
    return SelectTimeRangeOut(
        flat_map_batch("results", events, lambda items: payloads(items, DOWN)),
        flat_map_batch("late_values", events, lambda items: payloads(items, LATE)),
        flat_map_batch("late_queries", events, lambda items: payloads(items, LATE_QUERY)),
    )
