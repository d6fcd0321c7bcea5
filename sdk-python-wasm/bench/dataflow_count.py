"""The flow that `dataflow_on_node.py` measures: a count by key, of numbers from nowhere, to nowhere."""

import skep.dataflow.operators as op
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
