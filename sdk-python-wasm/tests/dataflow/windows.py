"""Streams, and flows over them that are built with skep's modules or with the ancestor's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import skep.dataflow
import skep.dataflow.operators
import skep.dataflow.operators.windowing
import skep.dataflow.testing

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
#: A system clock that stands: only values move a watermark.
NOW = datetime(2024, 6, 1, tzinfo=timezone.utc)

SKEP = SimpleNamespace(
    Dataflow=skep.dataflow.Dataflow,
    op=skep.dataflow.operators,
    win=skep.dataflow.operators.windowing,
    testing=skep.dataflow.testing,
)


def ancestor() -> SimpleNamespace:
    import bytewax.dataflow
    import bytewax.operators
    import bytewax.operators.windowing
    import bytewax.testing

    return SimpleNamespace(
        Dataflow=bytewax.dataflow.Dataflow, op=bytewax.operators, win=bytewax.operators.windowing, testing=bytewax.testing
    )


def seconds(n: float) -> timedelta:
    return timedelta(seconds=n)


def at(n: float) -> datetime:
    return START + seconds(n)


#: ``(key, time in seconds, number)``
Event = tuple[str, float, int]


def stream(seed: int, *, count: int = 60, keys: int = 3, disorder: float = 8.0, step: float = 2.0) -> list[Event]:
    """Events of several keys. Times grow on average; with ``disorder``, an event may be that much earlier. Many times are equal or round."""
    chance = random.Random(seed)
    now = dict.fromkeys("abcdefgh"[:keys], 0.0)
    events = []
    for number in range(count):
        key = chance.choice(sorted(now))
        now[key] += chance.choice([0, 0.5, 1, step, step, 3 * step, 12 * step] if chance.random() < 0.3 else [0, 1, step])
        events.append((key, now[key] - chance.choice([0, 0, 0, 1, disorder / 2, disorder]), number))
    return events


def key_of(event: Event) -> str:
    return event[0]


def time_of(event: Event) -> datetime:
    return at(event[1])


def number_of(event: Event) -> int:
    return event[2]


def event_clock(lib: Any, wait: float | timedelta) -> Any:
    return lib.win.EventClock(
        time_of,
        wait if isinstance(wait, timedelta) else seconds(wait),
        now_getter=lambda: NOW,
        to_system_utc=lambda _: None,
    )


WINDOWERS: dict[str, Callable[[Any], Any]] = {
    "tumbling": lambda lib: lib.win.TumblingWindower(length=seconds(10), align_to=at(3)),
    "sliding": lambda lib: lib.win.SlidingWindower(length=seconds(10), offset=seconds(4), align_to=START),
    "sliding, nearly tumbling": lambda lib: lib.win.SlidingWindower(length=seconds(5.5), offset=seconds(5), align_to=START),
    "session": lambda lib: lib.win.SessionWindower(gap=seconds(4)),
    "session without gap": lambda lib: lib.win.SessionWindower(gap=seconds(0)),
}


def run(lib: Any, sources: list[list[Event]], build: Callable[[Any, list[Any]], Any], batch_size: int = 1) -> dict[str, list[Any]]:
    """Runs a flow: sources, keyed, into what ``build`` makes, which has `down`, `late` and `meta`."""
    flow = lib.Dataflow("test")
    keyed = [
        lib.op.key_on(f"key{i}", lib.op.input(f"in{i}", flow, lib.testing.TestingSource(events, batch_size)), key_of)
        for i, events in enumerate(sources)
    ]
    out = build(lib, keyed)
    got: dict[str, list[Any]] = {"down": [], "late": [], "meta": []}
    for name, items in got.items():
        lib.op.output(f"out_{name}", getattr(out, name), lib.testing.TestingSink(items))
    lib.testing.run_main(flow)
    return got


def by_key(items: Iterable[tuple[str, tuple[int, Any]]], form: Callable[[Any], Any] = lambda x: x) -> dict[str, list[Any]]:
    """A multiset for each key."""
    grouped: dict[str, list[Any]] = {}
    for key, (window, payload) in items:
        grouped.setdefault(key, []).append((window, form(payload)))
    return {key: sorted(group, key=repr) for key, group in sorted(grouped.items())}


def meta_form(meta: Any) -> Any:
    return meta.open_time, meta.close_time, sorted(meta.merged_ids)


def comparable(got: dict[str, list[Any]], form: Callable[[Any], Any] = lambda x: x) -> dict[str, Any]:
    return {"down": by_key(got["down"], form), "late": by_key(got["late"]), "meta": by_key(got["meta"], meta_form)}
