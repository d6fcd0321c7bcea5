"""The same flow over the same events, here and in Bytewax 0.21.1: what comes out must be the same multiset for each key."""

from __future__ import annotations

import pytest
from windows import SKEP, WINDOWERS, ancestor, comparable, event_clock, number_of, run, stream, time_of

pytest.importorskip("bytewax", reason="the ancestor is not installed: pip install bytewax==0.21.1")

OPERATORS = {
    "collect list": lambda lib, s, c, w: lib.win.collect_window("w", s, c, w),
    "collect list unordered": lambda lib, s, c, w: lib.win.collect_window("w", s, c, w, ordered=False),
    "collect set": lambda lib, s, c, w: lib.win.collect_window("w", s, c, w, into=set),
    "collect set unordered": lambda lib, s, c, w: lib.win.collect_window("w", s, c, w, into=set, ordered=False),
    "collect dict": lambda lib, s, c, w: lib.win.collect_window(
        "w", lib.op.map_value("pair", s, lambda e: (e[2] % 3, e)), pair_clock(lib, c), w, into=dict
    ),
    "fold": lambda lib, s, c, w: lib.win.fold_window(
        "w", s, c, w, str, lambda acc, e: f"{acc},{e[2]}", lambda a, b: f"({a}+{b})"
    ),
    "fold unordered": lambda lib, s, c, w: lib.win.fold_window(
        "w", s, c, w, str, lambda acc, e: f"{acc},{e[2]}", lambda a, b: f"({a}+{b})", ordered=False
    ),
    "count": lambda lib, s, c, w: lib.win.count_window("w", lib.op.key_rm("unkey", s), c, w, key=lambda e: e[0]),
    "reduce": lambda lib, s, c, w: lib.win.reduce_window("w", s, c, w, lambda a, b: (a[0], a[1], a[2] * 31 + b[2])),
    "max": lambda lib, s, c, w: lib.win.max_window("w", s, c, w, by=lambda e: e[2] % 7),
    "min": lambda lib, s, c, w: lib.win.min_window("w", s, c, w, by=lambda e: e[2] % 7),
    "max itself": lambda lib, s, c, w: lib.win.max_window("w", s, c, w),
    "min itself": lambda lib, s, c, w: lib.win.min_window("w", s, c, w),
    "custom": lambda lib, s, c, w: lib.win.window("w", s, c, w, logic(lib)),
    "custom unordered": lambda lib, s, c, w: lib.win.window("w", s, c, w, logic(lib), ordered=False),
}


def pair_clock(lib, clock):
    return lib.win.EventClock(
        lambda pair: time_of(pair[1]), clock.wait_for_system_duration, now_getter=clock.now_getter, to_system_utc=clock.to_system_utc
    )


def logic(lib):
    class Log(lib.win.WindowLogic):
        def __init__(self, state):
            self.seen = list(state or ())

        def on_value(self, value):
            self.seen.append(number_of(value))
            return [("value", number_of(value), len(self.seen))]

        def on_merge(self, original):
            self.seen += original.seen
            return [("merge", tuple(self.seen))]

        def on_close(self):
            return [("close", tuple(self.seen))]

        def snapshot(self):
            return list(self.seen)

    return Log


@pytest.mark.parametrize("windower", WINDOWERS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators(operator: str, windower: str) -> None:
    for seed, wait in enumerate([0, 1, 4, 8, 20, 1000] * 2):
        events = stream(seed, keys=1 + seed % 3)
        flow = lambda lib, sides: OPERATORS[operator](lib, sides[0], event_clock(lib, wait), WINDOWERS[windower](lib))  # noqa: B023, E731
        # One value a batch there: where sessions merge, its results depend on what came in one batch (docs/dataflow-windows.md).
        theirs = comparable(run(ancestor(), [events], flow, 1))
        for batch_size in (1, 7, 1000):
            ours = comparable(run(SKEP, [events], flow, batch_size))
            assert ours == theirs, f"seed {seed}, wait {wait}, batches of {batch_size}"


@pytest.mark.parametrize("windower", WINDOWERS)
@pytest.mark.parametrize("emit", ["final", "running", "complete"])
@pytest.mark.parametrize("insert", ["first", "last", "product"])
def test_joins(insert: str, emit: str, windower: str) -> None:
    # Where sessions merge, the ancestor's joins keep neither the first nor the last value (docs/dataflow-windows.md). Ordered, none merge.
    orders = [True] if windower.startswith("session") else [True, False]
    for seed, wait in enumerate([0, 4, 8, 1000] * 3):
        # No time is on both sides: there, of equal times the one that came first is taken first, here that of the first side.
        later = [(key, time + 0.25, number) for key, time, number in stream(1000 + seed, count=25, keys=2)]
        sides = [stream(seed, count=25, keys=2), later]
        for ordered in orders:

            def flow(lib, streams, ordered=ordered, wait=wait):
                modes = {"insert_mode": insert, "emit_mode": emit, "ordered": ordered}
                if lib is SKEP:
                    modes["watermark"] = "fastest"
                return lib.win.join_window("w", event_clock(lib, wait), WINDOWERS[windower](lib), *streams, **modes)

            theirs = comparable(run(ancestor(), sides, flow, 1))
            ours = comparable(run(SKEP, sides, flow, 1))
            assert ours == theirs, f"seed {seed}, wait {wait}, ordered {ordered}"
