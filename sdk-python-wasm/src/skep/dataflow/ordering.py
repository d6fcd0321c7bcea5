"""Streams in the order of event time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from . import KeyedStream
from .graph import operator
from .operators import flat_map_batch, stateful_batch
from .operators.windowing.clocks import Clock
from .operators.windowing.folding import DOWN, LATE, Event
from .operators.windowing.in_order import InOrderLogic, no_tie

V = TypeVar("V")

__all__ = ["OrderOut", "order"]


@dataclass(frozen=True)
class OrderOut(Generic[V]):
    """The streams of :func:`order`."""

    #: Values of each key, in the order of their times.
    down: KeyedStream[V]
    #: Those that came when later ones had been emitted already.
    late: KeyedStream[V]


def payloads(items: list[Any], wanted: int) -> list[Any]:
    """What was emitted of one kind, with its key."""
    return [(key, payload) for key, (_, kind, payload) in items if kind == wanted]


class _OrderLogic(InOrderLogic):
    def __init__(self, clock: Clock[Any, Any], resume_state: Any) -> None:
        self.resume(clock, True, no_tie, resume_state)

    def late(self, ts: datetime, value: Any, out: list[Event]) -> None:
        out.append((0, LATE, value))

    def take(self, ts: datetime, value: Any, out: list[Event]) -> None:
        out.append((0, DOWN, value))

    def advance(self, until: datetime, out: list[Event]) -> None:
        return

    def due(self) -> None:
        return None

    def empty(self) -> bool:
        return True

    def state(self) -> None:
        return None


@operator
def order(step_id: str, up: KeyedStream[V], clock: Clock[V, Any]) -> OrderOut[V]:
    """Puts the values of each key into the order of their times. Each is held until the clock's watermark has reached it.

    >>> from datetime import datetime, timedelta, timezone
    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.operators.windowing import EventClock
    >>> from skep.dataflow.ordering import order
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> day = datetime(2024, 1, 1, tzinfo=timezone.utc)
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 2), ("a", 1), ("a", 30), ("a", 3)]))
    >>> out = order("order", s, EventClock(lambda n: day + timedelta(seconds=n), timedelta(seconds=10)))
    >>> _ = op.inspect("down", out.down)
    >>> _ = op.inspect("late", out.late)
    >>> run_main(flow)
    eg.down: ('a', 1)
    eg.down: ('a', 2)
    eg.late: ('a', 3)
    eg.down: ('a', 30)
    """
    if not isinstance(clock, Clock):
        raise TypeError(f"step {step_id!r}: `clock` must be a Clock; got {clock!r}")
    events = stateful_batch("stateful_batch", up, lambda state: _OrderLogic(clock, state))
    return OrderOut(
        flat_map_batch("down", events, lambda items: payloads(items, DOWN)), flat_map_batch("late", events, lambda items: payloads(items, LATE))
    )
