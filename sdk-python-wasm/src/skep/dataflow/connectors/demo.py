"""A source for examples."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from ..inputs import FixedPartitionedSource, StatefulSourcePartition

__all__ = ["RandomMetricSource"]


class _Metric(StatefulSourcePartition[tuple[str, float], tuple[datetime, int]]):
    def __init__(
        self, name: str, interval: timedelta, count: int, next_random: Callable[[], float], state: tuple[datetime, int] | None
    ) -> None:
        self._name = name
        self._interval = interval
        self._count = count
        self._next_random = next_random
        self._awake, self._given = (datetime.now(timezone.utc), 0) if state is None else state

    def next_batch(self) -> list[tuple[str, float]]:
        if self._given >= self._count:
            raise StopIteration()
        self._awake += self._interval
        self._given += 1
        return [(self._name, self._next_random())]

    def next_awake(self) -> datetime | None:
        return self._awake

    def snapshot(self) -> tuple[datetime, int]:
        return self._awake, self._given


class RandomMetricSource(FixedPartitionedSource[tuple[str, float], tuple[datetime, int]]):
    """``(metric_name, value)`` every ``interval``, ``count`` times, with whole numbers from 0 to 9 unless ``next_random`` gives others.

    >>> from datetime import timedelta
    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import run_main
    >>> flow = Dataflow("eg")
    >>> _ = op.inspect("out", op.input("in", flow, RandomMetricSource("cpu", timedelta(0), 2, lambda: 0.5)))
    >>> run_main(flow)
    eg.out: ('cpu', 0.5)
    eg.out: ('cpu', 0.5)
    """

    def __init__(
        self,
        metric_name: str,
        interval: timedelta = timedelta(seconds=0.7),
        count: int = sys.maxsize,
        next_random: Callable[[], float] = lambda: random.randrange(0, 10),
    ) -> None:
        self._metric_name = metric_name
        self._interval = interval
        self._count = count
        self._next_random = next_random

    def list_parts(self) -> list[str]:
        """The metric."""
        return [self._metric_name]

    def build_part(
        self, step_id: str, for_part: str, resume_state: tuple[datetime, int] | None
    ) -> StatefulSourcePartition[tuple[str, float], tuple[datetime, int]]:
        """Goes on with the count."""
        return _Metric(self._metric_name, self._interval, self._count, self._next_random, resume_state)
