"""Windows against the same rules, read naively; and against what Rust's keep in state."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone

import pytest

from skep import BeeError, DevSwarm, Message, Reject, register_bee
from skep.window import OPEN_MAX, TIME_MAX, TooManyWindows, Windows

KEY = "k"


def told(windows, events, end_ms):
    """Through the SDK, with every timer that falls due between two values: what was given out, in order, and what was late."""
    closed, late = [], []

    def take(found):
        closed.extend((w.start_ms, w.end_ms, sorted(w.value)) for w in found)

    def close(swarm, timer):
        take(windows.on_timer(swarm, timer))

    @register_bee(name=f"b{len(NAMES)}", timer=close)
    def bee(swarm, payload):
        at, value = payload
        seen = windows.add(swarm, at, lambda held: [*held, value])
        take(seen.closed)
        if seen.late:
            late.append(value)

    NAMES.append(bee)
    dev = DevSwarm()
    for at, clock, value in events:
        dev.fire_until(clock - 1, bee)
        dev.deliver(bee, Message([at, value], key=KEY, accepted_ms=clock))
    dev.fire_until(end_ms, bee)
    return closed, late, dev


NAMES: list = []


@pytest.fixture(autouse=True)
def names(blank_registry):
    NAMES.clear()


def naive(form, wait, events, end_ms):
    """The rules once more, by looking at everything at each millisecond."""
    kind, size, every = form
    closed, late, opened = [], [], {}
    ahead, mark, at = None, 0, 0

    def close():
        for start, end in sorted((w for w in opened if w[1] <= mark), key=lambda w: (w[1], w[0])):
            closed.append((start, end, sorted(opened.pop((start, end)))))

    for clock in range(end_ms + 1):
        while at < len(events) and events[at][1] == clock:
            when, _, value = events[at]
            at += 1
            ahead = when - clock if ahead is None else max(ahead, when - clock)
            mark = max(mark, clock + ahead - wait)
            close()
            counted = False
            if kind == "session":
                own = (when, when + size)
                touched = [w for w in opened if when < w[1] and w[0] < own[1]]
                if touched or own[1] > mark:
                    counted, values = True, [value]
                    for other in touched:
                        own = (min(own[0], other[0]), max(own[1], other[1]))
                        values += opened.pop(other)
                    opened[own] = values
            else:
                for start in range(0, when + 1):
                    if start % every == 0 and start + size > when and start + size > mark:
                        counted = True
                        opened.setdefault((start, start + size), []).append(value)
            if not counted:
                late.append(value)
        if ahead is not None:
            mark = max(mark, clock + ahead - wait)
            close()
    return closed, late


def test_random_streams_give_what_a_naive_reading_gives():
    for seed in range(150):
        chance = random.Random(seed)
        unit = chance.randint(1, 12)
        form = chance.choice([("fixed", 5 * unit, 5 * unit), ("fixed", 6 * unit, 2 * unit), ("session", 4 * unit, 0)])
        wait = chance.randrange(4) * unit
        times = {"of": list, "wait": wait / 1000}
        windows = (
            Windows.session(form[1] / 1000, **times)
            if form[0] == "session"
            else Windows.sliding(form[1] / 1000, form[2] / 1000, **times)
        )
        clock, events = 300, []
        for value in range(25):
            clock += chance.randint(1, 3 * unit)
            away = [-chance.randrange(30 * unit), chance.randrange(2 * unit)] + [-chance.randrange(3 * unit)] * 8
            events.append((max(0, clock + chance.choice(away)), clock, value))
        end = clock + 100 * unit
        closed, late, _ = told(windows, events, end)
        assert (closed, late) == naive(form, wait, events, end), (seed, windows, events)


def test_nothing_is_left_of_a_key_that_falls_silent():
    windows = Windows.session(0.010, of=list, remember=0.5)
    closed, late, dev = told(windows, [(100, 100, 1), (105, 106, 2), (300, 301, 3)], 700)
    assert (closed, late) == ([(100, 115, [1, 2]), (300, 310, [3])], [])
    assert len(dev.pending_timers()) == 1 and dev.stored(KEY, "window/main") is not None
    dev.fire_until(2_000, NAMES[-1])
    assert not dev.pending_timers() and not dev._memory.state[KEY]


def test_state_is_named_and_written_as_rust_does():
    windows = Windows.tumbling(timedelta(milliseconds=10), of=list)
    _, _, dev = told(windows, [(5, 1_000, 1), (15, 1_010, 2), (25, 1_020, 3)], 1_020)
    assert sorted(dev._memory.state[KEY]) == ["window/main", "window/main/20"]
    assert dev._memory.state[KEY]["window/main"] == b'{"ahead":-995,"mark":25,"timer":1025,"open":[[20,30]]}'


def test_numbers_are_summed_and_own_values_merged_as_said():
    @register_bee(name="sum")
    def summed(swarm, at):
        for window in Windows.session(0.010, of=int, wait=0.02).add(swarm, at, lambda n: n + 1).closed:
            swarm.publish(window.value)

    dev = DevSwarm()
    for at in (0, 12, 6, 100):
        dev.deliver(summed, Message(at, key=KEY, accepted_ms=0))
    assert dev.published == [3]

    def count(held):
        held["n"] = held.get("n", 0) + 1

    visits = Windows.session(0.010, of=dict, merge=lambda a, b: {"n": a.get("n", 0) + b["n"]}, wait=0.02, name="visits")
    dev = DevSwarm(key=KEY)
    found = [visits.add(dev, at, count) for at in (0, 12, 6, 100)]
    assert found[-1].closed[0].value == {"n": 3} and not found[-1].late
    with pytest.raises(TypeError, match="how two sessions of dict become one"):
        Windows.session(1, of=dict)
    with pytest.raises(TypeError, match="gave nothing back for 0"):
        Windows.tumbling(1, of=int, name="none").add(dev, 0, lambda n: None)


def test_a_batch_has_a_clock_a_message():
    windows = Windows.tumbling(0.010, of=int)

    @register_bee(name="many")
    def many(swarm, messages: list[Message]):
        for message in messages:
            for window in windows.add(swarm, message.accepted_ms, lambda n: n + 1).closed:
                swarm.publish([window.start_ms, window.value])

    dev = DevSwarm()
    found = dev.outcomes("many", [Message(1, key=KEY, accepted_ms=at) for at in (1, 2, 11, 25)])
    assert [o.ended for o in found] == ["done"] * 4, found
    assert dev.published == [[0, 2], [10, 1]]

    @register_bee(name="early")
    def early(swarm, messages: list[Message]):
        swarm.now_ms

    assert "no message of the batch is the current one" in DevSwarm().outcomes("early", [1, 2])[0].detail


def test_a_wrong_clock_is_rejected_where_that_is_asked_for():
    windows = Windows.tumbling(0.010, of=int, ahead=0.050)
    dev = DevSwarm(key=KEY, now_ms=1_000)
    windows.add(dev, 1_050, lambda n: n + 1)
    with pytest.raises(Reject, match="51 ms ahead of the clock, at most 50 may be"):
        windows.add(dev, 1_051, lambda n: n + 1)
    with pytest.raises(Reject, match="before 1970"):
        windows.add(dev, -1, lambda n: n + 1)
    for wrong in (1.5, "1", True, None):
        with pytest.raises(TypeError, match="whole milliseconds"):
            windows.add(dev, wrong, lambda n: n + 1)
    with pytest.raises(ValueError, match="time zone"):
        windows.add(dev, datetime(2026, 1, 1), lambda n: n + 1)
    late = windows.add(dev, datetime.fromtimestamp(1, timezone.utc), lambda n: n + 1)
    assert late.late and not late.closed


def test_too_many_open_windows_are_a_named_failure_and_absurd_times_no_error():
    windows = Windows.tumbling(0.001, of=int, wait=100)
    dev = DevSwarm(key=KEY, now_ms=20_000)
    for n in range(OPEN_MAX):
        windows.add(dev, 10_000 + n, lambda n: n + 1)
    with pytest.raises(TooManyWindows, match="900 open windows"):
        windows.add(dev, 9_000, lambda n: n + 1)
    assert issubclass(TooManyWindows, BeeError)
    assert len(windows.add(dev, TIME_MAX * 4, lambda n: n + 1).closed) == OPEN_MAX
    assert windows.add(dev, 0, lambda n: n + 1).late


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Windows.tumbling(0, of=int), "a millisecond or more"),
        (lambda: Windows.sliding(1, 2, of=int), "values fall between windows"),
        (lambda: Windows.sliding(9, 0.001, of=int), "at most 900 windows"),
        (lambda: Windows.session(0, of=int), "a millisecond or more"),
        (lambda: Windows.tumbling(1, of=0), "of= makes an empty window's value"),
        (lambda: Windows.tumbling(1, of=int, name=""), "name= is text"),
        (lambda: Windows.tumbling("1", of=int), "a time is seconds or a timedelta"),
    ],
)
def test_windows_that_cannot_be_meant(make, said):
    with pytest.raises((ValueError, TypeError), match=said):
        make()
