"""A flow as a type checker sees it: each line is right, or is marked as the mistake that it is. Read by test_types.py; never run."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeGuard

import skep.dataflow.operators as op
from skep.dataflow import Dataflow, KeyedStream, Stream, operator
from skep.dataflow.connectors.files import CSVSource, FileSink, FileSource
from skep.dataflow.connectors.stdio import StdOutSink
from skep.dataflow.inputs import SimplePollingSource
from skep.dataflow.testing import TestingSource


class Polls(SimplePollingSource[int]):
    def next_item(self) -> int:
        return 1


class Resumes(SimplePollingSource[int, str]):
    def next_item(self) -> int:
        return 1

    def snapshot(self) -> str:
        return ""


flow = Dataflow("typed")
polled: Stream[int] = op.merge("polled", op.input("polls", flow, Polls(timedelta(1))), op.input("resumes", flow, Resumes(timedelta(1))))
numbers: Stream[int] = op.input("numbers", flow, TestingSource([1, 2]))
lines: Stream[str] = op.input("lines", flow, FileSource("x"))
rows: Stream[dict[str, str]] = op.input("rows", flow, CSVSource("x"))
texts: Stream[str] = op.map("texts", numbers, str)
wrong_map: Stream[int] = op.map("wrong", numbers, str)  # ERROR
keyed: KeyedStream[int] = op.key_on("key", numbers, str)
wrong_key = op.key_on("wrong_key", numbers, lambda x: x)  # ERROR
doubled: KeyedStream[float] = op.map_value("double", keyed, lambda x: x * 2.0)
plain_as_keyed = op.map_value("plain", numbers, str)  # ERROR
counts: KeyedStream[int] = op.count_final("count", lines, str.lower)
lists: KeyedStream[list[int]] = op.collect("collect", keyed, timedelta(seconds=1), 10)
pairs: KeyedStream[tuple[int, float]] = op.join("join", keyed, doubled)
maybe: KeyedStream[tuple[int | None, float | None]] = op.join("join_final", keyed, doubled, emit_mode="final")
triples: KeyedStream[tuple[int, float, int]] = op.join("three", keyed, doubled, counts)
no_mode = op.join("no_mode", keyed, doubled, emit_mode="never")  # ERROR
highest: KeyedStream[int] = op.max_final("max", keyed)


def summed(state: int | None, value: int) -> tuple[int | None, str]:
    return (state or 0) + value, ""


sums: KeyedStream[str] = op.stateful_map("sum", keyed, summed)
wrong_sums: KeyedStream[int] = op.stateful_map("wrong_sum", keyed, summed)  # ERROR


def is_text(x: int | str) -> TypeGuard[str]:
    return isinstance(x, str)


mixed: Stream[int | str] = op.merge("mixed", numbers, texts)
only: Stream[str] = op.filter("only", mixed, is_text)
parted = op.branch("part", mixed, is_text)
trues: Stream[str] = parted.trues


@operator
def scaled(step_id: str, up: Stream[int], by: int) -> Stream[int]:
    return op.map("times", up, lambda x: x * by)


tens: Stream[int] = scaled("tens", numbers, 10)
chained: Stream[str] = numbers.then(scaled, "chained", by=2).then(op.map, "text", str)
wrong_arg = scaled("wrong_arg", numbers, "10")  # ERROR
wrong_stream = scaled("wrong_stream", texts, 10)  # ERROR
op.output("out", tens, StdOutSink())
op.output("file", op.map_value("line", keyed, str), FileSink("x"))
op.output("wrong_file", numbers, FileSink("x"))  # ERROR
