"""Functions that make functions, for operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

__all__ = ["map_dict_value"]


def map_dict_value(key: K, mapper: Callable[[V], V]) -> Callable[[dict[K, V]], dict[K, V]]:
    """A mapper of dicts that maps the value of one key. The dict is changed in place.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.operators.helpers import map_dict_value
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([{"name": "bee", "n": 1}]))
    >>> _ = op.inspect("out", op.map("upper", s, map_dict_value("name", str.upper)))
    >>> run_main(flow)
    eg.out: {'name': 'BEE', 'n': 1}
    """

    def mapped(item: dict[K, V]) -> dict[K, V]:
        item[key] = mapper(item[key])
        return item

    return mapped
