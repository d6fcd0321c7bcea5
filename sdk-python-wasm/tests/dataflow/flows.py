"""What the tests of dataflows share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import skep.dataflow.operators as op
from skep.dataflow import Dataflow, Stream
from skep.dataflow.local import Runner
from skep.dataflow.testing import TestingSink, TestingSource

NO_TIME = timedelta(0)
Build = Callable[[Stream[Any]], Any]


def flow_of(build: Build, items: Iterable[Any], *, batch_size: int = 1, flow_id: str = "f") -> tuple[Dataflow, list[Any]]:
    """A flow from a list to a list, and that list."""
    flow = Dataflow(flow_id)
    out: list[Any] = []
    result = build(op.input("in", flow, TestingSource(items, batch_size)))
    if isinstance(result, Stream):
        op.output("out", result, TestingSink(out))
    return flow, out


def collect(build: Build, items: Iterable[Any], *, batch_size: int = 1, **how: Any) -> list[Any]:
    """What a flow from a list makes of it."""
    flow, out = flow_of(build, items, batch_size=batch_size)
    Runner(flow, **how).run()
    return out


class Later(op.StatefulBatchLogic[Any, Any, datetime]):
    """Says "now" when a time has come, which is its state, and is discarded then."""

    def __init__(self, due: datetime) -> None:
        self.due = due

    def on_batch(self, values: list[Any]) -> Any:
        return (), False

    def on_notify(self) -> Any:
        return ["now"], True

    def notify_at(self) -> datetime:
        return self.due

    def snapshot(self) -> datetime:
        return self.due
