"""The flows that `dataflow_on_node.py` measures: a count by key, and one by key and minute of event time, of numbers from nowhere, to nowhere."""

from datetime import datetime, timedelta, timezone

import skep.dataflow.operators as op
import skep.dataflow.operators.windowing as win
from skep.dataflow import Dataflow
from skep.dataflow.outputs import DynamicSink, StatelessSinkPartition
from skep.dataflow.testing import TestingSource


class Part(StatelessSinkPartition):
    def write_batch(self, items):
        pass


class Nowhere(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        return Part()


def make(keys, items):
    flow = Dataflow("count")
    numbers = op.input("in", flow, TestingSource(range(items), 1000))
    counted = op.stateful_map("count", op.key_on("key", numbers, lambda n: str(n % keys)), lambda n, _: ((n or 0) + 1,) * 2)
    op.output("out", counted, Nowhere())
    return flow


def windows(keys, items):
    """An event each 10 ms."""
    start = datetime(2024, 1, 1, tzinfo=timezone.utc)
    flow = Dataflow("windows")
    numbers = op.input("in", flow, TestingSource(range(items), 1000))
    clock = win.EventClock(lambda n: start + timedelta(milliseconds=10 * n), timedelta(seconds=5))
    counted = win.count_window("count", numbers, clock, win.TumblingWindower(timedelta(minutes=1), start), lambda n: str(n % keys))
    op.output("out", counted.down, Nowhere())
    return flow
