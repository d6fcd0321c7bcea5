"""Operators about nearness in time: interval, order, rolling, time-range questions, state that times out, several timers."""

from __future__ import annotations

import pickle
import random
from datetime import datetime, timedelta
from typing import Any

import pytest
from test_windows import Key, Time, clock_of
from windows import NOW, at, seconds, stream, time_of

import skep.dataflow.operators as op
from skep.dataflow import Dataflow, interval, ordering, rolling, select_timerange, stateful_timeout
from skep.dataflow.operators.windowing import EventClock, folding
from skep.dataflow.operators.windowing.joining import SidesClock
from skep.dataflow.testing import TestingSink, TestingSource, run_main
from skep.dataflow.timers import MultiNotifier


def flow_of(*sources: list[Any]) -> tuple[Dataflow, list[Any]]:
    flow = Dataflow("test")
    return flow, [op.key_on(f"key{i}", op.input(f"in{i}", flow, TestingSource(s)), lambda e: e[0]) for i, s in enumerate(sources)]


def results(flow: Dataflow, **streams: Any) -> dict[str, list[Any]]:
    got: dict[str, list[Any]] = {}
    for name, items in streams.items():
        got[name] = []
        op.output(name, op.key_rm(f"unkey_{name}", items), TestingSink(got[name]))
    run_main(flow)
    return got


# ------------------------------------------------------------------------------------------------------------------------------------ order


def test_order_is_by_time_and_late_is_apart() -> None:
    flow, (s,) = flow_of([("k", 0, "a"), ("k", 2, "c"), ("k", 1, "b"), ("k", 14, "d"), ("k", 3, "e")])
    out = ordering.order("order", s, EventClock(time_of, seconds(10), now_getter=lambda: NOW))
    got = results(flow, down=out.down, late=out.late)
    assert [e[2] for e in got["down"]] == ["a", "b", "c", "d"]
    assert [e[2] for e in got["late"]] == ["e"]


def test_order_is_the_sorted_stream_whatever_the_batches() -> None:
    for seed in range(10):
        events = stream(seed, keys=1)
        for size in (1, 5, 100):
            time = Time()
            key = Key(lambda state: ordering._OrderLogic(clock_of(time, 8), state), time, rebuild=True)  # noqa: B023
            for i in range(0, len(events), size):
                key.call("on_batch", events[i : i + size])
            key.call("on_eof")
            late = [payload for _, kind, payload in key.out if kind == folding.LATE]
            down = [payload for _, kind, payload in key.out if kind == folding.DOWN]
            assert down == sorted((e for e in events if e not in late), key=time_of)
            assert key.state is None


# --------------------------------------------------------------------------------------------------------------------------------- interval


class Log(interval.IntervalLogic[Any, Any, Any]):
    def __init__(self, left: Any) -> None:
        self.left = left

    def on_value(self, side: interval.LeftRight, value: Any) -> list[Any]:
        if side == "left":
            self.left = value[2]
            return [("new", value[2])]
        return [("pair", self.left, value[2])]

    def on_close(self) -> list[Any]:
        return [("close", self.left)]

    def snapshot(self) -> Any:
        return self.left


@pytest.mark.parametrize(
    ("rights", "pairs"),
    [
        ([0], [0]),
        ([-3], [0]),
        ([3], [0]),
        ([-5], [0]),
        ([5], [0]),
        ([10], []),
        ([-5.000001], []),
        ([5.000001], []),
        ([5, 3], [1, 0]),
    ],
)
def test_interval_pairs_what_is_within_the_gaps(rights: list[float], pairs: list[int]) -> None:
    flow, sides = flow_of([("k", 0, "l")], [("k", t, i) for i, t in enumerate(rights)])
    clock = EventClock(time_of, seconds(10), now_getter=lambda: NOW)
    out = interval.interval("near", sides[0], clock, seconds(5), seconds(5), Log, sides[1])
    got = results(flow, down=out.down, unpaired=out.unpaired, late=out.late)
    assert got["down"] == [("new", "l"), *(("pair", "l", i) for i in pairs), ("close", "l")]
    assert len(got["unpaired"]) == len(rights) - len(pairs)
    assert got["late"] == []


def test_a_value_of_the_right_may_be_near_several() -> None:
    flow, sides = flow_of([("k", 0, "l1"), ("k", 5, "l2")], [("k", 3, "r")])
    out = interval.interval("near", sides[0], EventClock(time_of, seconds(10)), seconds(5), seconds(5), Log, sides[1])
    assert results(flow, down=out.down)["down"] == [
        ("new", "l1"),
        ("new", "l2"),
        ("pair", "l1", "r"),
        ("pair", "l2", "r"),
        ("close", "l1"),
        ("close", "l2"),
    ]


def test_intervals_are_those_of_a_nested_loop() -> None:
    for seed in range(10):
        chance = random.Random(seed)
        events = [(chance.randint(0, 1), ("k", float(chance.randint(0, 60)), i)) for i in range(40)]
        gap_before, gap_after = chance.randint(0, 9), chance.randint(0, 9)
        expected = sorted(
            (left[2], right[2])
            for i, left in events
            if i == 0
            for j, right in events
            if j == 1 and left[1] - gap_before <= right[1] <= left[1] + gap_after
        )
        for size in (1, 7, 100):
            time = Time()
            plan = interval._Plan(
                SidesClock(clock_of(time, 100), 2), seconds(gap_before), seconds(gap_after), lambda state: interval._Named(Log(state))
            )
            key = Key(lambda state: interval._IntervalDriver(plan, state), time, rebuild=True)  # noqa: B023
            for i in range(0, len(events), size):
                key.call("on_batch", events[i : i + size])
            key.call("on_eof")
            downs = [payload for _, kind, payload in key.out if kind == folding.DOWN]
            assert sorted((d[1], d[2]) for d in downs if d[0] == "pair") == expected
            opened: set[Any] = set()
            for what, left, *_ in downs:
                # Nothing before its beginning or after its end.
                opened.add(left) if what == "new" else None
                assert left in opened
                opened.discard(left) if what == "close" else None
            assert not opened and key.state is None


def test_join_interval_modes() -> None:
    lefts, rights = [("k", 10, "l")], [("k", 8, "r1"), ("k", 12, "r2")]
    rows = {}
    for insert in ("first", "last", "product"):
        for emit in ("final", "complete", "running"):
            flow, sides = flow_of(lefts, rights)
            out = interval.join_interval(
                "near", sides[0], EventClock(time_of, seconds(100)), seconds(5), seconds(5), sides[1], insert_mode=insert, emit_mode=emit
            )
            rows[insert, emit] = [tuple(v and v[2] for v in row) for row in results(flow, down=out.down)["down"]]
    assert rows["first", "final"] == [("l", "r1")]
    assert rows["last", "final"] == [("l", "r2")]
    assert rows["product", "final"] == [("l", "r1"), ("l", "r2")]
    assert rows["last", "complete"] == [("l", "r1")]
    assert rows["last", "running"] == [("l", None), ("l", "r1"), ("l", "r2")]


def test_an_interval_closes_by_the_clock_and_leaves_nothing() -> None:
    time = Time()
    plan = interval._Plan(
        SidesClock(clock_of(time, 1, remember=seconds(30)), 2), seconds(2), seconds(3), lambda state: interval._Named(Log(state))
    )
    key = Key(lambda state: interval._IntervalDriver(plan, state), time, rebuild=True)
    key.call("on_batch", [(0, ("k", 0, "l"))])
    # The watermark is at -1 now, and comes to 3 + 2 after 6 s.
    key.until(NOW + seconds(6))
    assert ("close", "l") not in key.downs()[-1]
    key.until(NOW + seconds(6.000001))
    assert key.downs()[-1][1] == ("close", "l")
    key.until(NOW + seconds(31))
    assert key.state is None
    assert len(key.wakes) <= 4


# ---------------------------------------------------------------------------------------------------------------------------------- rolling

FIVE = [("k", float(t), t - 3) for t in range(4, 9)]


def test_rolling_windows_change_value_by_value() -> None:
    flow, (s,) = flow_of(FIVE)

    def extremes(window: list[Any]) -> list[Any]:
        numbers = [n for _, _, n in window]
        return [(min(numbers, default=None), max(numbers, default=None))]

    out = rolling.rolling_flat_map("roll", s, EventClock(time_of, seconds(0)), seconds(3), extremes)
    assert results(flow, downs=out.downs)["downs"] == [(1, 1), (1, 2), (1, 3), (2, 4), (3, 5), (None, None)]


def test_rolling_deltas_add_up() -> None:
    flow, (s,) = flow_of(FIVE)

    def total(state: int | None, entered: list[Any], left: list[Any]) -> tuple[int, list[int]]:
        state = (state or 0) + sum(e[2] for e in entered) - sum(e[2] for e in left)
        return state, [state]

    out = rolling.rolling_delta_stateful_flat_map("roll", s, EventClock(time_of, seconds(0)), seconds(3), total)
    assert results(flow, downs=out.downs)["downs"] == [1, 3, 6, 9, 12, 0]


def test_rolling_is_the_same_whatever_the_batches() -> None:
    for seed in range(10):
        events = stream(seed, keys=1)
        runs = []
        for size in (1, 6, 100):
            time = Time()

            def mapper(state: Any, entered: list[Any], left: list[Any], window: list[Any]) -> tuple[Any, list[Any]]:
                return None, [([e[2] for e in entered], [e[2] for e in left], [e[2] for e in window])]

            key = Key(lambda state: rolling._RollingLogic(clock_of(time, 4), seconds(5), seconds(0), mapper, state), time, rebuild=True)  # noqa: B023
            for i in range(0, len(events), size):
                key.call("on_batch", events[i : i + size])
            key.call("on_eof")
            runs.append(([p for _, kind, p in key.out if kind == folding.DOWN], [p for _, kind, p in key.out if kind == folding.LATE]))
            assert key.state is None
        assert runs[0] == runs[1] == runs[2]
        inside: list[int] = []
        for entered, left, window in runs[0][0]:
            inside = [n for n in inside if n not in left] + entered
            assert inside == window


def test_rolling_empties_with_time() -> None:
    time = Time()
    key = Key(
        lambda state: rolling._RollingLogic(
            clock_of(time, 1, remember=seconds(20)), seconds(3), seconds(0), lambda s, a, b, w: (s, [len(w)]), state
        ),
        time,
        rebuild=True,
    )
    key.call("on_batch", [("k", 0, 0), ("k", 1, 0)])
    key.until(NOW + seconds(30))
    assert [n for _, n in key.downs()] == [1, 2, 1, 0]
    assert key.state is None


# ------------------------------------------------------------------------------------------------------------------------- time-range questions


def ask(values: list[Any], queries: list[select_timerange.TimeRangeQuery], longest: float) -> list[Any]:
    flow = Dataflow("test")
    v = op.key_on("kv", op.input("v", flow, TestingSource(values)), lambda _: "k")
    q = op.key_on("kq", op.input("q", flow, TestingSource(queries)), lambda _: "k")
    out = select_timerange.select_time_range(
        "select",
        v,
        EventClock(time_of, timedelta.max),
        q,
        EventClock(select_timerange.time_range_ts_getter, timedelta.max),
        max_query_length=seconds(longest),
    )
    return results(flow, results=out.results)["results"]


def test_questions_are_answered_by_their_ends() -> None:
    values = [("k", float(t), t) for t in range(5)]
    x = select_timerange.TimeRangeQuery("x", at(0), at(2))
    y = select_timerange.TimeRangeQuery("y", at(1), at(1))
    assert ask(values, [x, y], 10) == [
        select_timerange.TimeRangeResult(y, values[1:2], False),
        select_timerange.TimeRangeResult(x, values[:3], False),
    ]
    long = select_timerange.TimeRangeQuery("x", at(0), at(30))
    assert ask(values[:1], [long], 10) == [select_timerange.TimeRangeResult(long, values[:1], True)]


def test_values_are_kept_as_long_as_a_question_may_ask() -> None:
    time = Time()
    clocks = (clock_of(time, 0, remember=seconds(60)), EventClock(select_timerange.time_range_ts_getter, seconds(0), now_getter=time))
    key = Key(lambda state: select_timerange._SelectLogic(clocks, seconds(10), state), time, rebuild=True)
    key.call("on_batch", [(0, ("k", float(t), t)) for t in range(100)])
    query = select_timerange.TimeRangeQuery("q", at(40), at(50))
    key.call("on_batch", [(1, query)])
    assert key.downs()[0][1] == select_timerange.TimeRangeResult(query, [("k", float(t), t) for t in range(40, 51)], False)
    assert len(pickle.loads(key.state or b"")[1]) == 60, "questions are at 50 now, so what is before 40 is not asked for any more"
    key.call("on_batch", [(1, select_timerange.TimeRangeQuery("late", at(40), at(49)))])
    assert [kind for _, kind, _ in key.out][-1] == select_timerange.LATE_QUERY
    # Each value goes when the questions' clock is 10 s past it; the key, when the clocks' memory ends.
    key.until(NOW + seconds(4000))
    assert key.state is None


def test_what_is_no_question_is_refused() -> None:
    logic = select_timerange._SelectLogic((clock_of(Time(), 0), clock_of(Time(), 0)), seconds(1), None)
    with pytest.raises(TypeError, match="takes TimeRangeQuery values as queries"):
        logic.on_batch([(1, ("k", 0, 0))])


# ------------------------------------------------------------------------------------------------------------------------ timeouts and timers


def test_state_times_out() -> None:
    time = Time(at(0))
    mapper = lambda total, n: ((total or 0) + n, [(total or 0) + n])  # noqa: E731
    build = lambda state: stateful_timeout._TimeoutLogic("s", mapper, seconds(10), lambda total: [("gone", total)], time, state)  # noqa: E731
    key = Key(build, time, rebuild=True)
    key.call("on_batch", [1, 2])
    key.until(at(9))
    key.call("on_batch", [3])
    assert key.due == at(19)
    key.until(at(18.9))
    assert key.out == [1, 3, 6]
    key.until(at(19))
    assert key.out == [1, 3, 6, ("gone", 6)]
    assert key.state is None
    key.call("on_batch", [5])
    # A value that finds the time over, before the wake-up came, finds no state either.
    time.now = at(100)
    key.call("on_batch", [7])
    assert key.out[4:] == [5, ("gone", 5), 7]


def test_state_without_end() -> None:
    flow = Dataflow("test")
    s = op.key_on("key", op.input("in", flow, TestingSource([2, 5, 8, 1, 3])), lambda _: "k")
    s = stateful_timeout.stateful_map_timeout("last", s, lambda last, n: (n, n if last is None else max(n, last)), timeout=timedelta.max)
    assert results(flow, out=s)["out"] == [2, 5, 8, 8, 3]


def test_mistakes_of_mappers_are_named() -> None:
    for make, returned in ((stateful_timeout.stateful_map_timeout, 3), (stateful_timeout.stateful_flat_map_timeout, None)):
        flow = Dataflow("test")
        s = op.input("in", flow, TestingSource([("k", 1)]))
        op.inspect("out", make("total", s, lambda state, n: returned, seconds(1)))  # noqa: B023
        with pytest.raises(RuntimeError, match="total") as raised:
            run_main(flow)
        assert "must return (state" in str(raised.value) + str(raised.value.__cause__)
    flow = Dataflow("test")
    s = op.input("in", flow, TestingSource([("k", 1)]))
    with pytest.raises(ValueError, match="`timeout` must be positive"):
        stateful_timeout.stateful_map_timeout("t", s, lambda a, b: (a, b), seconds(0))
    with pytest.raises(ValueError, match="at least one stream on the right"):
        interval.join_interval("i", s, EventClock(time_of, seconds(0)), seconds(1), seconds(1))
    with pytest.raises(ValueError, match="`gap_before` must not be negative"):
        interval.join_interval("j", s, EventClock(time_of, seconds(0)), seconds(-1), seconds(1), s)
    with pytest.raises(ValueError, match="`length` must be positive"):
        rolling.rolling_flat_map("r", s, EventClock(time_of, seconds(0)), seconds(0), list)


def test_timers_come_in_order_and_survive_a_pickle() -> None:
    timers: MultiNotifier[str] = MultiNotifier()
    assert timers.next_at() is None and timers.due(at(5)) == []
    for moment, token in ((7, "c"), (6, "a"), (6, "b"), (9, "d")):
        timers.notify_at(at(moment), token)
    timers = pickle.loads(pickle.dumps(timers))
    assert timers.next_at() == at(6)
    assert timers.due(at(5.9)) == []
    assert timers.due(at(7)) == ["a", "b", "c"]
    assert timers.next_at() == at(9) and len(timers) == 1
    with pytest.raises(ValueError, match="must have a time zone"):
        timers.notify_at(datetime(2024, 1, 1), "naive")


def test_a_question_waits_for_values_of_its_very_end() -> None:
    time = Time()
    clocks = (clock_of(time, 0), EventClock(select_timerange.time_range_ts_getter, seconds(0), now_getter=time))
    key = Key(lambda state: select_timerange._SelectLogic(clocks, seconds(10), state), time, rebuild=True)
    first, second = select_timerange.TimeRangeQuery("1", at(0), at(5)), select_timerange.TimeRangeQuery("2", at(90), at(100))
    key.call("on_batch", [(0, ("k", 1.0, 1)), (1, first), (0, ("k", 5.0, 2))])
    assert key.downs() == []
    # The second question lets go of what is before 90, but for the first, which waits.
    key.call("on_batch", [(1, second), (0, ("k", 5.0, 3)), (0, ("k", 5.1, 4))])
    assert [result.values for _, result in key.downs()] == [[("k", 1.0, 1), ("k", 5.0, 2), ("k", 5.0, 3)]]
    assert pickle.loads(key.state or b"")[1] == []
