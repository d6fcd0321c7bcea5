"""Standard output."""

from __future__ import annotations

import sys
from typing import Any

from ..outputs import DynamicSink, StatelessSinkPartition

__all__ = ["StdOutSink"]


class _Printed(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[Any]) -> None:
        sys.stdout.write("".join([f"{item}\n" for item in items]))
        sys.stdout.flush()


class StdOutSink(DynamicSink[Any]):
    """Prints each item on a line.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> op.output("out", op.input("in", flow, TestingSource(["one", 2])), StdOutSink())
    >>> run_main(flow)
    one
    2
    """

    def build(self, step_id: str, worker_index: int, worker_count: int) -> StatelessSinkPartition[Any]:
        """A worker's part; all print to the same place."""
        return _Printed()
