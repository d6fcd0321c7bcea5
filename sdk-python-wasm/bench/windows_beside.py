"""Event-time windows beside released Bytewax: the same flow over the same events, both in this Python.

    python windows_beside.py [--quick]

Prints items per second of processor time, medians of five runs, in turns. Needs both packages: pip install skep bytewax==0.21.1. Events are 10 ms
apart and go to keys by chance, the windows are a minute long, the clock waits 5 s, batches have 1,000 items.

Bytewax wakes all keys whose windows it thinks are due at each batch, and in a replay of old events that is every key, so it slows down with the
square of their number. The rows "no waking" let neither wake (``to_system_utc`` gives None); those with many keys have few items else.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
ROUNDS = 1 if "--quick" in sys.argv else 5
#: Operator, keys, items, whether keys are woken.
ROWS = [
    (operator, keys, items, waking)
    for operator in ("fold_window", "count_window")
    for keys, items, waking in ((1, 200_000, True), (100, 200_000, True), (100_000, 10_000, True), (100_000, 100_000, False))
]


def libraries() -> dict[str, SimpleNamespace]:
    import bytewax.operators
    import bytewax.operators.windowing
    import bytewax.outputs
    import bytewax.testing
    from bytewax.dataflow import Dataflow as TheirDataflow

    import skep.dataflow.operators
    import skep.dataflow.operators.windowing
    import skep.dataflow.outputs
    import skep.dataflow.testing
    from skep.dataflow import Dataflow

    ours, theirs = skep.dataflow, bytewax
    return {
        "skep": SimpleNamespace(Dataflow=Dataflow, op=ours.operators, win=ours.operators.windowing, out=ours.outputs, testing=ours.testing),
        "bytewax": SimpleNamespace(
            Dataflow=TheirDataflow, op=theirs.operators, win=theirs.operators.windowing, out=theirs.outputs, testing=theirs.testing
        ),
    }


def null_sink(lib: Any) -> Any:
    class Part(lib.out.StatelessSinkPartition):
        def write_batch(self, items: Any) -> None:
            pass

    class Sink(lib.out.DynamicSink):
        def build(self, *_: Any) -> Part:
            return Part()

    return Sink()


def seconds_of(lib: Any, operator: str, data: list[Any], waking: bool) -> float:
    more = {} if waking else {"to_system_utc": lambda _: None}
    flow = lib.Dataflow("bench")
    up = lib.op.input("in", flow, lib.testing.TestingSource(data, 1_000))
    wait, windower = timedelta(seconds=5), lib.win.TumblingWindower(timedelta(minutes=1), START)
    if operator == "count_window":
        clock = lib.win.EventClock(lambda item: item[1][0], wait, **more)
        out = lib.win.count_window("window", up, clock, windower, lambda item: item[0])
    else:
        clock = lib.win.EventClock(lambda value: value[0], wait, **more)
        out = lib.win.fold_window("window", up, clock, windower, int, lambda acc, value: acc + value[1], lambda a, b: a + b)
    lib.op.output("out", out.down, null_sink(lib))
    begin = time.process_time()
    lib.testing.run_main(flow)
    return time.process_time() - begin


def main() -> None:
    libs = libraries()
    print(f"{'operator':14} {'keys':>7} {'items':>7} {'':9} {'bytewax/s':>10} {'skep/s':>10} {'ratio':>6}")
    for operator, keys, items, waking in ROWS:
        chance = random.Random(1)
        data = [(f"k{chance.randrange(keys)}", (START + timedelta(milliseconds=10 * i), i)) for i in range(items)]
        took: dict[str, list[float]] = {name: [] for name in libs}
        for _ in range(ROUNDS):
            for name, lib in libs.items():
                took[name].append(seconds_of(lib, operator, data, waking))
        theirs, ours = (items / statistics.median(took[name]) for name in ("bytewax", "skep"))
        note = "" if waking else "no waking"
        print(f"{operator:14} {keys:7} {items:7} {note:9} {theirs:10,.0f} {ours:10,.0f} {ours / theirs:6.2f}", flush=True)


if __name__ == "__main__":
    main()
