"""What test_deploy puts on a node, and runs in process beside it: two partitions, a count by key, windows by event time, ends behind ends, all kept
in state."""

from datetime import datetime, timedelta, timezone

import skep.dataflow.operators as op
import skep.dataflow.operators.windowing as win
from skep.dataflow import Dataflow
from skep.dataflow.connectors.stdio import StdOutSink
from skep.dataflow.inputs import FixedPartitionedSource, StatefulSourcePartition

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
#: Event time between two items of a partition. It passes so much faster than the clock that only values close windows while they come, however long
#: a node is away.
STEP = timedelta(minutes=1)
LATE = timedelta(minutes=5)
WINDOW = timedelta(minutes=20)


class Part(StatefulSourcePartition):
    def __init__(self, name, at, count, pause):
        self.name, self.at, self.count, self.pause, self.awake = name, at, count, pause, None

    def next_batch(self):
        if self.at >= self.count:
            raise StopIteration()
        found = [(self.name, number) for number in range(self.at, min(self.at + 20, self.count))]
        self.at += len(found)
        self.awake = datetime.now(timezone.utc) + self.pause if self.pause else None
        return found

    def next_awake(self):
        return self.awake

    def snapshot(self):
        return self.at


class Orders(FixedPartitionedSource):
    """``count`` numbers in each of two partitions, twenty every ``pause``."""

    def __init__(self, count, pause):
        self.count, self.pause = count, pause

    def list_parts(self):
        return ["eu", "us"]

    def build_part(self, step_id, for_part, resume_state):
        return Part(for_part, resume_state or 0, self.count, self.pause)


def key_of(order):
    part, number = order
    return f"{part}-{number % 7}"


def held(state, value):
    """All values that came for a key, in their order."""
    state = [*(state or []), value]
    return state, len(state)


def make(count=3000, pause=0.0, windows=None, regions=None, batches=True):
    flow = Dataflow("shop")
    orders = op.key_on("key", op.input("orders", flow, Orders(count, timedelta(seconds=pause))), key_of)
    counts = op.stateful_map("count", orders, lambda n, order: ((n or 0) + 1, (n or 0) + 1))
    clock = win.EventClock(lambda order: START + order[1] * STEP, LATE)
    closed = win.count_window("window", op.key_rm("unkey", orders), clock, win.TumblingWindower(WINDOW, START), key_of)
    each = op.map("each", closed.down, lambda w: (f"{w[0]}/{w[1][0]}", w[1][1]))
    op.output("windows", op.stateful_map("kept", each, held) if windows is None else each, windows or StdOutSink())
    if batches:
        lists = op.collect("batch", op.map_value("number", orders, lambda order: order[1]), timedelta(milliseconds=300), 50)
        op.output("batches", op.stateful_map("lists", lists, held), StdOutSink())
    # What comes at the end, and at the end of that.
    last = op.count_final("last", op.redistribute("any", op.key_rm("unkeyed", orders)), key_of)
    region = op.reduce_final("region", op.map("place", last, lambda c: (c[0][:2], c[1])), lambda a, b: a + b)
    op.output("regions", op.stateful_map("total", region, held) if regions is None else region, regions or StdOutSink())
    every = op.redistribute("spread", op.filter("hundredths", counts, lambda c: c[1] % 100 == 0))
    op.output("printed", every, StdOutSink())
    return flow


flow = make()
