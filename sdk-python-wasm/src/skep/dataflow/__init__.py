"""Dataflows: steps that items flow through, from sources to sinks, with state by key.

>>> import skep.dataflow.operators as op
>>> from skep.dataflow import Dataflow
>>> from skep.dataflow.testing import TestingSource, run_main
>>> flow = Dataflow("simple")
>>> numbers = op.input("numbers", flow, TestingSource(range(3)))
>>> more = op.map("more", numbers, lambda x: x + 1)
>>> _ = op.inspect("out", more)
>>> run_main(flow)
simple.out: 1
simple.out: 2
simple.out: 3

``python -m skep.run simple`` runs such a file. The names are those of Bytewax 0.21: its ``bytewax.dataflow`` is ``skep.dataflow``, and what
else began with ``bytewax.`` begins with ``skep.dataflow.``.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

from .graph import Dataflow, Operator, Stream, f_repr, operator

V = TypeVar("V")

#: A stream of ``(key, value)``.
KeyedStream: TypeAlias = Stream[tuple[str, V]]

__all__ = ["Dataflow", "KeyedStream", "Operator", "Stream", "f_repr", "operator"]
