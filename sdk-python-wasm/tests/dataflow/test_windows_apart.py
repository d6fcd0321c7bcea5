"""Windows where each stage runs apart and a key's state is read and written at each input, as on a platform: the same comes out."""

from __future__ import annotations

from typing import Any

import pytest
from apart import run_apart
from windows import SKEP, WINDOWERS, comparable, event_clock, key_of, run, seconds, stream, time_of

import skep.dataflow.operators as op
import skep.dataflow.operators.windowing as win
from skep.dataflow import Dataflow, interval, rolling
from skep.dataflow.testing import TestingSink, TestingSource, run_main


@pytest.mark.parametrize("windower", WINDOWERS)
def test_windows_apart(monkeypatch: pytest.MonkeyPatch, windower: str) -> None:
    for seed in range(3):
        events = stream(seed)
        builds = {
            "fold": lambda lib, s: lib.win.fold_window(
                "w", s[0], event_clock(lib, 4), WINDOWERS[windower](lib), str, lambda acc, e: f"{acc},{e[2]}", str.__add__
            ),
            "count": lambda lib, s: lib.win.count_window("w", op.key_rm("unkey", s[0]), event_clock(lib, 4), WINDOWERS[windower](lib), key_of),
            "join": lambda lib, s: lib.win.join_window("w", event_clock(lib, 4), WINDOWERS[windower](lib), *s, emit_mode="running"),
        }
        for name, build in builds.items():
            sources = [events, stream(seed + 100)] if name == "join" else [events]
            with_one = comparable(run(SKEP, sources, build, 5))
            with monkeypatch.context() as patch:
                patch.setattr(SKEP.testing, "run_main", lambda flow: run_apart(flow, seed))  # noqa: B023
                apart = comparable(run(SKEP, sources, build, 5))
            assert apart == with_one, (name, seed)
            assert with_one["down"]


def test_nearness_apart() -> None:
    for seed in range(3):
        got: list[dict[str, list[Any]]] = []
        for runner in (run_main, lambda flow: run_apart(flow, seed)):  # noqa: B023
            flow = Dataflow("near")
            sides = [op.key_on(f"key{i}", op.input(f"in{i}", flow, TestingSource(stream(seed + i), 4)), key_of) for i in range(2)]
            clock: Any = win.EventClock(time_of, seconds(8))
            joined = interval.join_interval("near", sides[0], clock, seconds(2), seconds(3), sides[1], insert_mode="product")
            rolled = rolling.rolling_flat_map("roll", sides[0], clock, seconds(5), lambda window: [tuple(e[2] for e in window)])
            outs: dict[str, list[Any]] = {"down": [], "unpaired": [], "late": [], "rolled": []}
            for name, items in (("down", joined.down), ("unpaired", joined.unpaired), ("late", joined.late), ("rolled", rolled.downs)):
                op.output(name, items, TestingSink(outs[name]))
            runner(flow)
            got.append({name: sorted(items, key=repr) for name, items in outs.items()})
        assert got[0] == got[1]
        assert got[0]["down"] and got[0]["rolled"]
