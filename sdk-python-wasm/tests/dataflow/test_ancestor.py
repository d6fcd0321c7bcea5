"""Flows that chance made, run here and by Bytewax itself: the same results, as multisets."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from programs import Program

import skep.dataflow.operators as skep_op
from skep.dataflow import Dataflow
from skep.dataflow.local import Runner
from skep.dataflow.testing import TestingSink, TestingSource

bytewax_op = pytest.importorskip("bytewax.operators")


@pytest.mark.parametrize("block", range(10))
def test_generated_flows_give_what_bytewax_gives(block: int) -> None:
    from bytewax.dataflow import Dataflow as TheirFlow
    from bytewax.testing import TestingSink as TheirSink
    from bytewax.testing import TestingSource as TheirSource
    from bytewax.testing import run_main as their_run

    used: Counter[str] = Counter()
    for seed in range(block * 30, block * 30 + 30):
        program = Program(seed)
        used.update(program.names)
        theirs: list[Any] = []
        flow = TheirFlow("f")
        bytewax_op.output("out", program.make(bytewax_op, flow, TheirSource(program.items, program.batch_size)), TheirSink(theirs))
        their_run(flow)
        for how in ({}, {"workers": 3, "seed": seed, "isolated": True}):
            ours: list[Any] = []
            own = Dataflow("f")
            skep_op.output("out", program.make(skep_op, own, TestingSource(program.items, program.batch_size)), TestingSink(ours))
            Runner(own, **how).run()  # type: ignore[arg-type]
            assert Counter(map(repr, ours)) == Counter(map(repr, theirs)), (seed, program.names, program.items, program.batch_size, how)
    assert len(used) > 15
