"""The plan, and stages that run apart: what the in-process runner gives, a platform that knows only the plan gives too."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from apart import START, run_apart
from programs import Program

import skep.dataflow.operators as op
from skep.dataflow import Dataflow, Stream
from skep.dataflow.connectors.files import DirSink, DirSource, FileSink
from skep.dataflow.errors import StepError
from skep.dataflow.inputs import DynamicSource, StatelessSourcePartition
from skep.dataflow.plan import manifest, plan
from skep.dataflow.stage import Due, End, Items, Outcome, Start, process, unpack
from skep.dataflow.testing import TestingSink, TestingSource, run_main


def flow_with(build: Callable[[Stream[Any]], Any], items: Any = (), batch_size: int = 1) -> tuple[Dataflow, list[Any]]:
    flow, out = Dataflow("f"), []
    s = build(op.input("in", flow, TestingSource(items, batch_size)))
    op.output("out", s, TestingSink(out))
    return flow, out


def test_chains_are_one_stage_and_exchanges_cut() -> None:
    flow, _ = flow_with(
        lambda s: s.then(op.map, "a", str)
        .then(op.filter, "b", bool)
        .then(op.key_on, "k", str)
        .then(op.stateful_map, "c", lambda st, x: (st, x))
        .then(op.map_value, "d", str)
        .then(op.redistribute, "e")
        .then(op.map, "g", str)
    )
    stages = manifest(flow)["stages"]
    assert [(s["name"], s["kind"], len(s["steps"])) for s in stages] == [
        ("f.in", "source", 4),
        ("f.c.stateful_batch", "keyed", 2),
        ("f.e", "spread", 3),
    ]
    assert [(s["inputs"], s["outputs"], s["starts"], s["ends"], s["sinks"]) for s in stages] == [
        ([], [{"to": "f.c.stateful_batch", "by": "key"}], "partitions", "self", []),
        (["f.in"], [{"to": "f.e", "by": "any"}], None, "inputs", []),
        (["f.c.stateful_batch"], [], None, "inputs", ["f.out"]),
    ]
    assert json.loads(json.dumps(manifest(flow))) == manifest(flow)


def test_a_stage_says_whether_the_end_of_a_key_matters() -> None:
    for build, want in (
        (lambda s: op.stateful_map("x", s, lambda st, x: (st, x)), False),
        (lambda s: op.stateful_flat_map("x", s, lambda st, x: (st, [])), False),
        (lambda s: op.join("x", s), False),
        (lambda s: op.join("x", s, emit_mode="running"), False),
        (lambda s: op.join("x", s, emit_mode="final"), True),
        (lambda s: op.max_final("x", s), True),
        (lambda s: op.stateful("x", s, lambda st: None), True),  # type: ignore[arg-type, return-value]
    ):
        flow, _ = flow_with(build)
        assert [stage["wants_end"] for stage in manifest(flow)["stages"]] == [False, want]


def test_what_follows_a_merge_is_in_the_stage_of_each_side(tmp_path: Path) -> None:
    flow = Dataflow("f")
    a, b = op.input("a", flow, TestingSource([])), op.input("b", flow, TestingSource([]))
    op.output("out", op.key_on("k", op.merge("m", a, b), str), FileSink(tmp_path / "x"))
    stages = manifest(flow)["stages"]
    assert [stage["steps"] for stage in stages] == [["f.a", "f.m", "f.k.flat_map_batch"], ["f.b", "f.m", "f.k.flat_map_batch"], ["f.out"]]
    assert stages[2]["kind"] == "sink" and stages[2]["inputs"] == ["f.a", "f.b"]
    assert stages[0]["outputs"] == [{"to": "f.out", "by": "partition"}]


@pytest.mark.parametrize("block", range(6))
def test_generated_flows_give_the_same_apart(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        program = Program(seed)
        results = []
        for runner in (run_main, lambda flow: run_apart(flow, seed)):
            out: list[Any] = []
            flow = Dataflow("f")
            op.output("out", program.make(op, flow, TestingSource(program.items, program.batch_size)), TestingSink(out))
            runner(flow)
            results.append(Counter(map(repr, out)))
        assert results[0] == results[1], (seed, program.names, program.items, program.batch_size)


def test_files_apart(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i}\n" for i in range(25)))
    (tmp_path / "out").mkdir()
    flow = Dataflow("f")
    s = op.key_on("k", op.input("in", flow, DirSource(tmp_path, "*.txt", batch_size=4)), lambda x: x[1:])
    counted = op.stateful_map("n", s, lambda st, x: ((st or 0) + 1, f"{x[1:]} {(st or 0) + 1}"))
    op.output("out", counted, DirSink(tmp_path / "out", 2))
    engine = run_apart(flow, 7)
    got = Counter(line for part in (tmp_path / "out").iterdir() for line in part.read_text().splitlines())
    assert got == Counter(f"{i} {n}" for i in range(25) for n in (1, 2, 3))
    # What is kept of a partition is where it is.
    assert {key: unpack(engine.state["f.in", key]) for name, key in engine.state if name == "f.in"} == {
        f"fs::{name}.txt": (True, (tmp_path / f"{name}.txt").stat().st_size) for name in "abc"
    }


def test_a_source_of_workers_apart() -> None:
    class Own(DynamicSource[Any]):
        def build(self, step_id: str, worker_index: int, worker_count: int) -> StatelessSourcePartition[Any]:
            class Part(StatelessSourcePartition[Any]):
                def next_batch(self) -> list[Any]:
                    raise StopIteration()

            seen.append((step_id, worker_index, worker_count))
            return Part()

    seen: list[Any] = []
    flow = Dataflow("f")
    op.inspect("i", op.input("in", flow, Own()), lambda *_: None)
    run_apart(flow)
    assert len(seen) == 3
    assert manifest(flow)["stages"][0]["starts"] == "workers" and not manifest(flow)["stages"][0]["resumes"]
    seen.clear()
    run_main(flow)
    assert seen == [("f.in", 0, 1)]


def keyed_stage(mapper: Any) -> Any:
    flow, _ = flow_with(lambda s: op.stateful_map("s", s, mapper))
    return plan(flow).stages[1]


def test_an_input_that_fails_costs_only_itself() -> None:
    stage = keyed_stage(lambda st, x: ((st or 0) + 1 // x,) * 2)
    found = process(stage, [Items("a", [1]), Items("a", [1, 0]), Items("b", [1]), Items("a", [1])], lambda key: None, START)
    assert [type(one).__name__ for one in found] == ["Outcome", "StepError", "Outcome", "Outcome"]
    error = found[1]
    assert isinstance(error, StepError) and error.key == "a" and isinstance(error.__cause__, ZeroDivisionError)
    last = found[3]
    # As if the failed one had not been there: its first value counts for nothing.
    assert isinstance(last, Outcome) and unpack(last.writes["a"] or b"") == 2


def test_state_timers_and_discards_are_data() -> None:
    flow, _ = flow_with(lambda s: op.collect("c", s, timedelta(hours=1), 2))
    stage = plan(flow).stages[1]
    held, full = process(stage, [Items("a", [1]), Items("a", [2])], lambda key: None, START)
    assert isinstance(held, Outcome) and isinstance(full, Outcome)
    assert unpack(held.writes["a"] or b"")[0] == [1]
    assert held.timers["a"] is not None
    assert (full.writes, full.timers) == ({"a": None}, {"a": None})
    state = held.writes["a"]
    for given in (Due("a"), End("a")):
        (gone,) = process(stage, [given], lambda key: state, START)
        assert isinstance(gone, Outcome) and (gone.writes, gone.timers) == ({"a": None}, {"a": None})


def test_a_source_names_its_partitions_by_sending_to_itself() -> None:
    flow, out = flow_with(lambda s: s, [1, 2])
    stage = plan(flow).stages[0]
    (started,) = process(stage, [Start()], lambda key: None, START)
    assert isinstance(started, Outcome)
    assert [(send.to, send.key) for send in started.sends] == [("f.in", "iterable")]
    state = None
    for n in range(2):
        (read,) = process(stage, [Items("iterable")], lambda key: state, START)
        assert isinstance(read, Outcome) and not read.ended and read.timers == {"iterable": START}
        state = read.writes["iterable"]
        assert unpack(state or b"") == (False, n + 1)
    (over,) = process(stage, [Due("iterable")], lambda key: state, START)
    assert isinstance(over, Outcome) and over.ended and over.timers == {"iterable": None}
    assert unpack(over.writes["iterable"] or b"") == (True, 2)
    assert out == [1, 2]


@pytest.mark.parametrize("data", [b"", b"\x00abc", b"\xffabc", b"\x01", b"\x01not a pickle"])
def test_state_that_is_none(data: bytes) -> None:
    (found,) = process(keyed_stage(lambda st, x: (st, x)), [Items("a", [1])], lambda key: data, START)
    assert isinstance(found, StepError)
    assert "the kept state of 'a' can't be read" in str(found)


def test_items_that_can_not_be_sent_on_are_an_error_of_their_input() -> None:
    flow, _ = flow_with(lambda s: op.stateful_map("s", op.map("m", op.redistribute("r", s), lambda x: x), lambda st, x: (st, x)))
    stages = {stage.name: stage for stage in plan(flow).stages}
    (found,) = process(stages["f.r"], [Items(None, [5])], lambda key: None, START, by_name=stages)
    assert isinstance(found, StepError) and "takes (key, value) tuples" in str(found) and found.step_id == "f.s"


