"""Windows: that results depend on values and times alone, that state is small and goes, that the clock wakes when it must, and mistakes."""

from __future__ import annotations

import pickle
import random
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from windows import NOW, SKEP, START, WINDOWERS, at, by_key, comparable, event_clock, key_of, run, seconds, stream, time_of

import skep.dataflow.operators as op
import skep.dataflow.operators.windowing as win
from skep.dataflow import Dataflow
from skep.dataflow.operators.windowing import folding
from skep.dataflow.operators.windowing.driver import FoldWindowLogic, WindowDriver
from skep.dataflow.operators.windowing.in_order import no_tie
from skep.dataflow.operators.windowing.joining import JoinWindowLogic, SidesClock, side_of
from skep.dataflow.testing import TestingSource, run_main

DOWN, LATE, META = folding.DOWN, folding.LATE, folding.META


class Time:
    """A system clock that moves when told to."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def clock_of(time: Time, wait: float = 0, **more: Any) -> Any:
    return win.EventClock(time_of, seconds(wait), now_getter=time, **more)


NUMBERS = folding.Fold(list, lambda acc, e: [*acc, e[2]], lambda acc, es: acc + [e[2] for e in es], lambda a, b: a + b)


def fast(clock: Any, windower: Any, ordered: bool = True, fold: Any = NUMBERS) -> Any:
    return folding.builder(clock, windower, fold, ordered)


def general(clock: Any, windower: Any, ordered: bool = True) -> Any:
    return lambda state: WindowDriver(clock, windower, lambda held: FoldWindowLogic(NUMBERS, held), ordered, no_tie, state)


class Key:
    """Runs the logic of one key as a runner does: state kept after each call, wake-ups when they are due."""

    def __init__(self, build: Any, time: Time, *, rebuild: bool = False) -> None:
        self.build = build
        self.time = time
        self.rebuild = rebuild
        self.logic: Any = None
        self.state: bytes | None = None
        self.out: list[Any] = []
        self.wakes: list[datetime] = []
        self.due: datetime | None = None

    def call(self, method: str, *args: Any) -> None:
        if self.logic is None or self.rebuild:
            self.logic = self.build(None if self.state is None else pickle.loads(self.state))
        out, discard = getattr(self.logic, method)(*args)
        self.out.extend(out)
        self.due = None if discard else self.logic.notify_at()
        self.state = None if discard else pickle.dumps(self.logic.snapshot())
        if discard:
            self.logic = None

    def until(self, now: datetime) -> None:
        """Lets time pass, with the wake-ups on the way."""
        while self.due is not None and self.due <= now:
            self.time.now = max(self.time.now, self.due)
            self.wakes.append(self.due)
            self.call("on_notify")
            assert len(self.wakes) < 1000, "it wakes and wakes"
        self.time.now = now

    def downs(self) -> list[Any]:
        return [(window, payload) for window, kind, payload in self.out if kind == DOWN]

    def lates(self) -> list[Any]:
        return [(window, payload) for window, kind, payload in self.out if kind == LATE]

    def metas(self) -> list[Any]:
        return [(window, payload[0], payload[1], sorted(payload[2])) for window, kind, payload in self.out if kind == META]


def play(build: Any, time: Time, events: list[Any], batch: Any, *, rebuild: bool = False, pause: float = 0, seed: int = 0) -> Key:
    """Feeds events in batches; with ``pause``, up to so many seconds pass between two."""
    key = Key(build, time, rebuild=rebuild)
    chance = random.Random(seed)
    while events:
        size = batch(chance) if callable(batch) else batch
        head, events = events[:size], events[size:]
        key.call("on_batch", head)
        if pause:
            key.until(time.now + seconds(chance.random() * pause))
    key.call("on_eof")
    return key


def parts(key: Key) -> tuple[Any, ...]:
    return key.downs(), sorted(key.lates()), key.metas()


# ------------------------------------------------------------------------------------------------------- results depend on values and times alone


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("windower", WINDOWERS)
def test_batches_and_resumes_change_nothing(windower: str, ordered: bool) -> None:
    for seed in range(15):
        wait = [0, 1, 4, 8, 1000][seed % 5]
        events = stream(seed, keys=1)
        for ways in (fast, general):

            def one(batch: Any, rebuild: bool, ways: Any = ways) -> tuple[Any, ...]:
                time = Time()
                build = ways(clock_of(time, wait), WINDOWERS[windower](SKEP), ordered)
                return parts(play(build, time, list(events), batch, rebuild=rebuild, seed=seed))

            plain = one(1, False)
            assert plain[0]
            # A resume from the pickled state after every value, and after batches of all sizes.
            for batch, rebuild in ((1, True), (3, True), (lambda c: c.randint(1, 9), True), (1000, False), (7, False)):
                assert one(batch, rebuild) == plain, (seed, ways, rebuild)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("windower", WINDOWERS)
def test_fast_and_general_are_the_same(windower: str, ordered: bool) -> None:
    for seed in range(15):
        wait = [0, 2, 8, 30][seed % 4]
        events = stream(seed, keys=1)
        # With a system clock that moves, values become late by it, and windows close at wake-ups.
        got = []
        for ways in (fast, general):
            time = Time()
            key = play(ways(clock_of(time, wait), WINDOWERS[windower](SKEP), ordered), time, list(events), 4, pause=8, seed=seed)
            got.append((sorted(key.downs(), key=repr), sorted(key.lates()), sorted(key.metas())))
        assert got[0] == got[1], seed


def test_in_order_custom_logic_sees_closings_between_values() -> None:
    class Log(win.WindowLogic[Any, Any, Any]):
        def on_value(self, value: Any) -> list[Any]:
            return [value[2]]

        def on_merge(self, original: Any) -> list[Any]:
            return []

        def on_close(self) -> list[Any]:
            return ["close"]

        def snapshot(self) -> None:
            return None

    events = [("a", 1, 1), ("a", 25, 2), ("a", 11, 3), ("a", 60, 4)]
    for batch in (1, 2, 4):
        time = Time()
        build = lambda state: WindowDriver(clock_of(time, 30), WINDOWERS["session"](SKEP), lambda _: Log(), True, no_tie, state)  # noqa: B023, E731
        key = play(build, time, list(events), batch)
        assert key.downs() == [(0, 1), (0, "close"), (1, 3), (1, "close"), (2, 2), (2, "close"), (3, 4), (3, "close")]


def test_values_between_sessions_make_them_one() -> None:
    events = [("a", t, i) for i, t in enumerate([0, 8, 4, 20, 16])]
    for batch in (1, 5):
        time = Time()
        key = play(fast(clock_of(time, 100), win.SessionWindower(seconds(4)), False), time, list(events), batch)
        assert key.downs() == [(0, [0, 2, 1]), (2, [3, 4])]
        assert key.metas() == [(0, at(0), at(8), [1]), (2, at(16), at(20), [])]


def test_a_value_may_come_as_late_as_the_wait_and_no_later() -> None:
    for t, late in ((10.0, False), (9.999999, True)):
        time = Time()
        key = play(fast(clock_of(time, 10), WINDOWERS["tumbling"](SKEP)), time, [("a", 20, 0), ("a", t, 1)], 1)
        assert bool(key.lates()) == late


def test_joined_sides_may_be_read_in_any_order() -> None:
    """The ancestor's #406: which side comes first in the code, or is read faster, decided what was joined."""
    sides = [sorted(stream(1, keys=1, disorder=0), key=time_of), sorted(stream(2, keys=1, disorder=0), key=time_of)]
    results = []
    for seed in range(20):
        chance = random.Random(seed)
        queues = [list(side) for side in sides]
        events = []
        while any(queues):
            side = chance.choice([i for i, queue in enumerate(queues) if queue])
            # At times one side runs far ahead.
            for _ in range(min(chance.choice([1, 1, 40]), len(queues[side]))):
                events.append((side, queues[side].pop(0)))
        time = Time()
        clock = SidesClock(clock_of(time, 3), 2)
        build = lambda state: WindowDriver(  # noqa: E731
            clock, WINDOWERS["tumbling"](SKEP), lambda held: JoinWindowLogic(2, "product", "running", held), True, side_of, state  # noqa: B023
        )
        key = play(build, time, events, 3, rebuild=seed % 2 == 0)
        assert key.lates() == []
        results.append(key.downs())
    assert all(result == results[0] for result in results)
    assert any(None not in row for _, row in results[0])


def test_a_side_that_sends_nothing_is_waited_for_as_long_as_the_clock_waits() -> None:
    time = Time()
    build = lambda state: WindowDriver(  # noqa: E731
        SidesClock(clock_of(time, 5), 2),
        win.TumblingWindower(seconds(10), START),
        lambda held: JoinWindowLogic(2, "last", "final", held),
        True,
        side_of,
        state,
    )
    key = Key(build, time, rebuild=True)
    key.call("on_batch", [(0, ("a", 1, 0)), (0, ("a", 1000, 1))])
    assert key.downs() == []
    # Window 0 closes when the silent side's watermark, 1 - 5 after the first value, has come to 10: 14 s later.
    key.until(NOW + seconds(13.9))
    assert key.downs() == []
    key.until(NOW + seconds(14))
    assert key.downs() == [(0, (("a", 1, 0), None))]
    assert key.wakes[-1] == NOW + seconds(14)


def test_join_of_two_sources_when_one_is_far_ahead() -> None:
    """As in #406: two inputs, a minute's wait and gap, matching events a second apart; the flow's own order of sides does not matter."""
    first = [("k", float(t), t) for t in range(0, 4000, 100)]
    second = [("k", float(t + 1), t) for t in range(0, 4000, 100)]
    got = []
    for swap in (False, True):
        for batch_size in (1, 40):

            def flow(lib: Any, streams: list[Any]) -> Any:
                clock = lib.win.EventClock(time_of, seconds(60), now_getter=lambda: NOW)
                turned = reversed(streams) if swap else streams  # noqa: B023
                return lib.win.join_window("w", clock, lib.win.SessionWindower(gap=seconds(60)), *turned)

            rows = run(SKEP, [first, second], flow, batch_size)["down"]
            got.append(sorted(row[::-1] if swap else row for _, (_, row) in rows))
    assert all(None not in row for row in got[0]) and len(got[0]) == 40
    assert all(rows == got[0] for rows in got)


# ----------------------------------------------------------------------------------------------------------------------------- time and waking


def test_wakes_when_the_watermark_closes_the_window_and_only_then() -> None:
    """The ancestor's #578: it woke from the close time on, hundreds of times a second, until the wait was over as well."""
    for ways in (fast, general):
        time = Time()
        key = Key(ways(clock_of(time, 7, remember=seconds(100)), win.TumblingWindower(seconds(10), START), ordered=False), time)
        key.call("on_batch", [("a", 4, 0)])
        # The watermark is at 4 - 7 now; it comes to 10 after 13 s.
        assert key.due == NOW + seconds(13)
        key.until(NOW + seconds(12.999999))
        assert key.out == []
        key.until(NOW + seconds(13))
        assert key.downs() == [(0, [0])]
        assert key.wakes == [NOW + seconds(13)]
        assert key.state is not None
        key.until(NOW + seconds(1000))
        # One more, to forget the key.
        assert key.wakes == [NOW + seconds(13), NOW + seconds(100)]
        assert key.state is None


def test_sessions_wake_when_the_gap_has_passed() -> None:
    for ways in (fast, general):
        time = Time()
        key = Key(ways(clock_of(time, 7), win.SessionWindower(seconds(5)), ordered=False), time)
        key.call("on_batch", [("a", 4, 0)])
        key.until(NOW + seconds(12))
        assert key.downs() == []  # A value 5 s later would still be part of it.
        key.until(NOW + seconds(12.000001))
        assert key.downs() == [(0, [0])]
        assert len(key.wakes) == 1


def test_ordered_values_are_woken_for_although_no_window_is_open_yet() -> None:
    time = Time()
    key = Key(fast(clock_of(time, 7), win.TumblingWindower(seconds(10), START)), time, rebuild=True)
    key.call("on_batch", [("a", 4, 0)])
    key.until(NOW + seconds(13))
    assert key.downs() == [(0, [0])]
    assert len(key.wakes) == 1


def test_a_clock_that_stands_is_not_asked_for_ever() -> None:
    for ways in (fast, general):
        time = Time()
        build = ways(clock_of(time, 0), win.TumblingWindower(seconds(10), START))
        logic = build(None)
        logic.on_batch([("a", 4, 0)])
        waits = []
        for _ in range(15):
            before = datetime.now(timezone.utc)
            assert logic.on_notify() == ([], False)
            # The clock of the step stands at a moment long gone for the runner.
            waits.append(max(logic.notify_at(), before) - before)
        if NOW < datetime.now(timezone.utc):
            assert waits[-1] > seconds(0.9)
            assert waits[0] < seconds(0.5)


def test_no_waking_where_the_clock_says_so() -> None:
    time = Time()
    for ways in (fast, general):
        logic = ways(clock_of(time, 0, to_system_utc=lambda _: None), win.TumblingWindower(seconds(10), START))(None)
        logic.on_batch([("a", 4, 0)])
        assert logic.notify_at() is None


def test_to_system_utc_is_asked_for_the_moment_at_which_the_window_closes() -> None:
    time = Time(at(100))
    asked = []

    def to_system(moment: datetime) -> datetime:
        asked.append(moment)
        return moment + timedelta(days=1)

    for ways in (fast, general):
        logic = ways(clock_of(time, 7, to_system_utc=to_system), win.TumblingWindower(seconds(10), START), ordered=False)(None)
        logic.on_batch([("a", 4, 0)])
        assert logic.notify_at() == at(113) + timedelta(days=1)
        assert asked[-1] == at(113)


def test_a_system_clock_that_goes_back_loses_nothing() -> None:
    """The ancestor's #427: values of one moment were late for a watermark that was taken a little later."""
    time = Time(at(5))
    for ways in (fast, general):
        time.now = at(5)
        key = Key(ways(win.SystemClock(now_getter=time), win.SessionWindower(seconds(5)), ordered=True), time, rebuild=True)
        for number in range(10):
            key.call("on_batch", [("a", 0, number)])
            time.now += seconds(-1 if number == 4 else 0.5)
        assert key.due == at(8 + 5) + timedelta(microseconds=1)
        key.until(at(60))
        assert key.lates() == []
        assert key.downs() == [(0, list(range(10)))]
        assert key.state is None


def test_system_clock_windows_close_on_time() -> None:
    time = Time(at(5))
    for ways in (fast, general):
        time.now = at(5)
        key = Key(ways(win.SystemClock(now_getter=time), win.TumblingWindower(seconds(10), START)), time, rebuild=True)
        key.call("on_batch", [("a", 0, 1), ("a", 0, 2)])
        key.until(at(9))
        key.call("on_batch", [("a", 0, 3)])
        key.until(at(10))
        assert key.downs() == [(0, [1, 2, 3])]
        assert key.wakes == [at(10)]
        assert key.state is None, "nothing is left of a key without windows"


def test_system_clock_of_the_machine() -> None:
    flow, out = Dataflow("test"), []
    keyed = op.input("in", flow, TestingSource([("a", n) for n in range(10)]))
    windows = win.collect_window("w", keyed, win.SystemClock(), win.SessionWindower(seconds(60)))
    op.inspect("out", windows.down, lambda _, item: out.append(item))
    op.inspect("late", windows.late, lambda _, item: out.append(item))
    run_main(flow)
    assert out == [("a", (0, list(range(10))))]


# ------------------------------------------------------------------------------------------------------------------------------ state is small


@pytest.mark.parametrize("windower", WINDOWERS)
def test_nothing_is_left_of_keys_that_fell_silent(windower: str) -> None:
    """The ancestor's #577: a key that had a session is kept for ever."""
    for ways in (fast, general):
        for ordered in (True, False):
            time = Time()
            key = Key(ways(clock_of(time, 3, remember=seconds(60)), WINDOWERS[windower](SKEP), ordered), time, rebuild=True)
            key.call("on_batch", [("a", 4, 0), ("a", 2, 1)])
            key.until(NOW + seconds(59))
            assert {number for _, numbers in key.downs() for number in numbers} == {0, 1}
            assert key.state is not None and len(key.state) < 100
            key.call("on_batch", [("a", 1, 2)])
            assert key.lates(), "what is late is known while the key is remembered"
            key.until(NOW + seconds(61))
            assert key.state is None


def test_what_has_closed_is_not_in_the_state() -> None:
    for windower in WINDOWERS.values():
        time = Time()
        key = Key(fast(clock_of(time, 0), windower(SKEP)), time, rebuild=True)
        sizes = []
        for number in range(300):
            key.call("on_batch", [("a", number * 3, number)])
            assert key.state is not None
            sizes.append(len(key.state))
            if number > 20 and "Session" not in repr(windower(SKEP)):
                assert sizes[-1] <= max(sizes[:20]) + 8


def test_an_accumulator_is_all_that_is_kept_of_values() -> None:
    time = Time()
    total = folding.Fold(int, lambda acc, e: acc + 1, lambda acc, es: acc + len(es), lambda a, b: a + b)
    key = Key(fast(clock_of(time, 0), win.TumblingWindower(timedelta(days=1), START), fold=total), time, rebuild=True)
    key.call("on_batch", [("a", n / 10, n) for n in range(1000)])
    assert key.state is not None and len(key.state) < 80


def test_the_end_closes_all_and_leaves_nothing() -> None:
    for ways in (fast, general):
        for windower in WINDOWERS.values():
            time = Time()
            key = Key(ways(win.EventClock(time_of, timedelta.max, now_getter=time), windower(SKEP)), time, rebuild=True)
            key.call("on_batch", [("a", 100, 0), ("a", -1e9, 1), ("a", 1e9, 2)])
            assert key.due is None or key.due.year > 3000
            key.call("on_eof")
            assert sorted({n for _, numbers in key.downs() for n in numbers}) == [0, 1, 2]
            assert key.state is None


def test_times_at_the_ends_of_the_calendar() -> None:
    first, last = datetime.min.replace(tzinfo=timezone.utc), datetime.max.replace(tzinfo=timezone.utc)
    for ways in (fast, general):
        for windower in WINDOWERS.values():
            time = Time()
            clock = win.EventClock(lambda e: e[1], seconds(10), now_getter=time)
            key = Key(ways(clock, windower(SKEP)), time, rebuild=True)
            for moment in (first, last):
                key.call("on_batch", [("a", moment, 0)])
                time.now += seconds(1)
            key.call("on_eof")
            assert len({repr(window) for window in key.downs()}) >= 2


# ---------------------------------------------------------------------------------------------------------------------------- zones of time


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    # 2024-10-27: the clocks went from 3:00 back to 2:00.
    times = [
        datetime(2024, 10, 27, 1, 30, tzinfo=berlin),
        datetime(2024, 10, 27, 2, 30, tzinfo=berlin),
        datetime(2024, 10, 27, 2, 30, tzinfo=berlin, fold=1),
        datetime(2024, 10, 27, 3, 30, tzinfo=berlin),
    ]
    for ways in (fast, general):
        for batch in (1, 4):
            time = Time(datetime(2024, 10, 27, 5, tzinfo=berlin))
            clock = win.EventClock(lambda e: e[1], seconds(0), now_getter=time)
            hours = win.TumblingWindower(timedelta(hours=1), datetime(2024, 10, 27, 0, tzinfo=berlin))
            key = play(ways(clock, hours), time, [("a", moment, i) for i, moment in enumerate(times)], batch)
            assert key.downs() == [(1, [0]), (2, [1]), (3, [2]), (4, [3])]
            assert {closes - opens for _, opens, closes, _ in key.metas()} == {timedelta(hours=1)}
            assert key.lates() == []


def test_zones_may_be_mixed() -> None:
    east, west = timezone(timedelta(hours=9)), ZoneInfo("America/Los_Angeles")
    moments = [at(5), at(6).astimezone(east), at(7).astimezone(west), at(12).astimezone(east)]
    for batch in (1, 4):
        time = Time(NOW.astimezone(west))
        clock = win.EventClock(lambda e: e[1], seconds(0), now_getter=time)
        key = play(fast(clock, win.TumblingWindower(seconds(10), START.astimezone(east))), time, [("a", m, i) for i, m in enumerate(moments)], batch)
        assert key.downs() == [(0, [0, 1, 2]), (1, [3])]


# ---------------------------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("ways", [fast, general])
def test_a_time_without_zone_is_refused(ways: Any, batch: int) -> None:
    clock = win.EventClock(lambda e: datetime(2024, 1, 1), seconds(0))
    with pytest.raises(ValueError, match=r"`ts_getter` returns must have a time zone; got the naive .*replace\(tzinfo=timezone.utc\)"):
        ways(clock, win.TumblingWindower(seconds(1), START))(None).on_batch([("a", 0, 0)] * batch)
    clock = win.EventClock(lambda e: 1704067200.0, seconds(0))
    with pytest.raises(TypeError, match="`ts_getter` returns must be a datetime; got 1704067200.0"):
        ways(clock, win.TumblingWindower(seconds(1), START))(None).on_batch([("a", 0, 0)] * batch)
    clock = win.EventClock(time_of, seconds(0), now_getter=lambda: datetime(2024, 1, 1))
    with pytest.raises(ValueError, match="`now_getter` returns must have a time zone"):
        ways(clock, win.TumblingWindower(seconds(1), START))(None).on_batch([("a", 0, 0)] * batch)


def test_a_mistake_in_a_flow_names_step_and_key() -> None:
    flow = Dataflow("test")
    keyed = op.input("in", flow, TestingSource([("a", 1)]))
    out = win.collect_window("hourly", keyed, win.EventClock(lambda _: datetime(2024, 1, 1), seconds(0)), win.TumblingWindower(seconds(1), START))
    op.inspect("out", out.down)
    with pytest.raises(RuntimeError, match="hourly") as raised:
        run_main(flow)
    assert "'a'" in str(raised.value)


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: win.TumblingWindower(seconds(0), START), ValueError, "`length` must be positive"),
        (lambda: win.TumblingWindower(5, START), TypeError, "`length` must be a timedelta; got 5"),  # type: ignore[arg-type]
        (lambda: win.TumblingWindower(seconds(1), datetime(2024, 1, 1)), ValueError, "`align_to` must have a time zone"),
        (lambda: win.SlidingWindower(seconds(1), seconds(2), START), ValueError, "`offset` can't be longer"),
        (lambda: win.SlidingWindower(seconds(1), seconds(0), START), ValueError, "`offset` must be positive"),
        (lambda: win.SessionWindower(seconds(-1)), ValueError, "`gap` must not be negative"),
        (lambda: win.EventClock(time_of, seconds(-1)), ValueError, "`wait_for_system_duration` must not be negative"),
        (lambda: win.EventClock(time_of, seconds(1), remember=seconds(-1)), ValueError, "`remember` must not be negative"),
    ],
)
def test_settings_that_can_not_be(make: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        make()


def test_arguments_that_can_not_be() -> None:
    flow = Dataflow("test")
    s = op.input("in", flow, TestingSource([("a", 1)]))
    clock, windower = event_clock(SKEP, 0), win.SessionWindower(seconds(1))
    with pytest.raises(TypeError, match="`into` is one of list, set, dict; got <class 'tuple'>"):
        win.collect_window("w", s, clock, windower, into=tuple)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="`clock` must be a Clock"):
        win.collect_window("w", s, windower, clock)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="`windower` must be a Windower"):
        win.max_window("w", s, clock, seconds(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`reducer` must be a function; got 3"):
        win.reduce_window("w", s, clock, windower, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`insert_mode` is one of 'first', 'last', 'product'; got 'all'"):
        win.join_window("w", clock, windower, s, insert_mode="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one upstream"):
        win.join_window("w", clock, windower)


def test_a_value_that_is_no_pair_can_not_go_into_a_dict() -> None:
    time = Time()
    clock = win.EventClock(lambda _: START, seconds(0), now_getter=time)
    logic = fast(clock, win.SessionWindower(seconds(1)), fold=win._INTO[dict])(None)
    with pytest.raises(TypeError, match=r"values that are \(key, value\) tuples; got 'ab'"):
        logic.on_batch(["ab", "cd"])


# ------------------------------------------------------------------------------------------------------------------------- clocks of one's own


class Ticks(win.Clock[Any, int]):
    """A value's time is how many came before it; the watermark follows two behind."""

    def build(self, resume_state: int | None) -> win.ClockLogic[Any, int]:
        return TicksLogic(resume_state or 0)


class TicksLogic(win.ClockLogic[Any, int]):
    def __init__(self, count: int) -> None:
        self.count = count

    def on_item(self, value: Any) -> tuple[datetime, datetime]:
        self.count += 1
        return at(self.count), at(self.count - 2)

    def on_notify(self) -> datetime:
        return at(self.count - 2)

    def on_eof(self) -> datetime:
        return win.UTC_MAX

    def to_system_utc(self, timestamp: datetime) -> None:
        return None

    def snapshot(self) -> int:
        return self.count


class Pairs(win.Windower[Any]):
    """Windows of two seconds, written anew, with what the built-in one does not use: no time to wake."""

    def build(self, resume_state: Any) -> win.WindowerLogic[Any]:
        return PairsLogic(resume_state)


class PairsLogic(win.WindowerLogic[Any]):
    def __init__(self, state: Any) -> None:
        self.open = set(state or ())

    def open_for(self, timestamp: datetime) -> list[int]:
        window = int((timestamp - START).total_seconds()) // 2
        self.open.add(window)
        return [window]

    def late_for(self, timestamp: datetime) -> list[int]:
        return [-7]

    def merged(self) -> list[Any]:
        return []

    def close_for(self, watermark: datetime) -> list[Any]:
        closed = sorted(w for w in self.open if at(2 * w + 2) <= watermark)
        self.open.difference_update(closed)
        return [(w, win.WindowMetadata(at(2 * w), at(2 * w + 2))) for w in closed]

    def notify_at(self) -> None:
        return None

    def is_empty(self) -> bool:
        return not self.open

    def snapshot(self) -> list[int]:
        return sorted(self.open)


def test_clock_and_windower_of_ones_own() -> None:
    for rebuild in (True, False):
        key = play(general(Ticks(), Pairs()), Time(), [("a", 0, n) for n in range(6)], 1, rebuild=rebuild)
        assert key.downs() == [(0, [0]), (1, [1, 2]), (2, [3, 4]), (3, [5])]
        assert key.metas()[0] == (0, at(0), at(2), [])
        assert key.state is None


def test_operators_take_clocks_of_ones_own() -> None:
    def flow(lib: Any, streams: list[Any]) -> Any:
        return lib.win.count_window("w", lib.op.key_rm("unkey", streams[0]), Ticks(), Pairs(), key_of)

    got = run(SKEP, [[("a", 0, n) for n in range(6)]], flow)
    assert by_key(got["down"]) == {"a": [(0, 1), (1, 2), (2, 2), (3, 1)]}

    def joined(lib: Any, streams: list[Any]) -> Any:
        return lib.win.join_window("w", Ticks(), Pairs(), *streams)

    got = run(SKEP, [[("a", 0, 1)], [("a", 0, 2)]], joined)
    assert comparable(got)["down"] == {"a": [(0, (("a", 0, 1), None)), (1, (None, ("a", 0, 2)))]}


def test_a_watermark_that_goes_back_is_taken_as_unchanged() -> None:
    class Shaky(TicksLogic):
        def on_item(self, value: Any) -> tuple[datetime, datetime]:
            return at(value[1]), at(value[1])

    class ShakyClock(Ticks):
        def build(self, resume_state: int | None) -> win.ClockLogic[Any, int]:
            return Shaky(resume_state or 0)

    key = play(general(ShakyClock(), Pairs()), Time(), [("a", 5, 0), ("a", 1, 1), ("a", 6, 2)], 1, rebuild=True)
    assert key.lates() == [(-7, ("a", 1, 1))]


def test_merged_sessions_keep_the_first_or_the_last() -> None:
    for insert, kept in (("first", 1), ("last", 8)):
        for swap in (False, True):
            time = Time()
            build = lambda state: WindowDriver(  # noqa: E731
                SidesClock(clock_of(time, 100), 2),  # noqa: B023
                win.SessionWindower(seconds(4)),
                lambda held: JoinWindowLogic(2, insert, "final", held),  # type: ignore[arg-type]  # noqa: B023
                False,
                side_of,
                state,
            )
            key = Key(build, time, rebuild=True)
            # Two sessions, in any order, and then what makes them one.
            values = [(0, ("a", 1.0, 1)), (0, ("a", 8.0, 8))]
            for value in [*(reversed(values) if swap else values), (1, ("a", 5.0, 5))]:
                key.call("on_batch", [value])
            key.call("on_eof")
            assert [(row[0][2], row[1][2]) for _, row in key.downs()] == [(kept, 5)]


def test_sessions_become_one_step_by_step() -> None:
    events = [("a", t, i) for i, t in enumerate([12, 20, 0, 16, 4, 8])]
    for ways in (fast, general):
        for batch in (1, 6):
            time = Time()
            key = play(ways(clock_of(time, 100), win.SessionWindower(seconds(4)), ordered=False), time, list(events), batch)
            # 12 and 20 and 0 open; 16 joins the first two, into that of 12; 4 goes to 0; 8 is near both: it goes to the lower ID, which is 0,
            # and all of it into the one that begins first.
            assert key.downs() == [(2, [2, 4, 0, 3, 1, 5])]
            assert key.metas() == [(2, at(0), at(20), [0, 1])]


def test_what_is_late_in_a_join_is_so_by_its_own_side() -> None:
    sides = [stream(3, keys=1), stream(4, keys=1)]
    results = []
    for seed in range(20):
        chance = random.Random(seed)
        queues = [list(side) for side in sides]
        events = []
        while any(queues):
            side = chance.choice([i for i, queue in enumerate(queues) if queue])
            for _ in range(min(chance.choice([1, 30]), len(queues[side]))):
                events.append((side, queues[side].pop(0)))
        time = Time()
        build = lambda state: WindowDriver(  # noqa: E731
            SidesClock(clock_of(time, 3), 2),  # noqa: B023
            WINDOWERS["tumbling"](SKEP),
            lambda held: JoinWindowLogic(2, "last", "running", held),
            True,
            side_of,
            state,
        )
        key = play(build, time, events, 4, rebuild=True)
        results.append((key.downs(), sorted(key.lates())))
    assert results[0][1], "some are late"
    assert all(result == results[0] for result in results)


def test_a_side_may_begin_long_before_the_other() -> None:
    time = Time()
    build = lambda state: WindowDriver(  # noqa: E731
        SidesClock(clock_of(time, 5), 2),
        win.TumblingWindower(seconds(10), START),
        lambda held: JoinWindowLogic(2, "last", "final", held),
        True,
        side_of,
        state,
    )
    key = Key(build, time, rebuild=True)
    key.call("on_batch", [(0, ("a", 1000, 0)), (0, ("a", 2000, 1))])
    key.until(NOW + seconds(4.9))
    key.call("on_batch", [(1, ("a", 1, 2))])
    assert key.lates() == []
    key.call("on_eof")
    assert key.downs() == [(0, (None, ("a", 1, 2))), (100, (("a", 1000, 0), None)), (200, (("a", 2000, 1), None))]


def test_the_end_of_a_run_does_not_move_the_watermark() -> None:
    class Open(TicksLogic):
        def on_item(self, value: Any) -> tuple[datetime, datetime]:
            return at(value[1]), at(value[1] - 2)

        def on_eof(self) -> datetime:
            return at(5)

    class OpenClock(Ticks):
        def build(self, resume_state: int | None) -> win.ClockLogic[Any, int]:
            return Open(resume_state or 0)

    key = Key(general(OpenClock(), Pairs()), Time(), rebuild=True)
    key.call("on_batch", [("a", 4, 0)])
    key.call("on_eof")
    assert key.downs() == [] and key.state is not None
    # The watermark is at 2 again: 3 is not late, 1 is.
    key.call("on_batch", [("a", 3, 1), ("a", 1, 2), ("a", 9, 3)])
    assert key.downs() == [(1, [1]), (2, [0])]
    assert key.lates() == [(-7, ("a", 1, 2))]
