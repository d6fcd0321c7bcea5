"""What a user can get wrong: each names the step, what was expected, what was got, and the line."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from flows import collect

import skep.dataflow.operators as op
from skep.dataflow import Dataflow, Stream, operator
from skep.dataflow.errors import BytewaxRuntimeError, StepError
from skep.dataflow.inputs import DynamicSource, FixedPartitionedSource, SimplePollingSource, Source, StatefulSourcePartition
from skep.dataflow.local import Runner
from skep.dataflow.outputs import FixedPartitionedSink
from skep.dataflow.testing import TestingSink, TestingSource, run_main


def stream(flow_id: str = "f") -> Stream[Any]:
    return op.input("in", Dataflow(flow_id), TestingSource([1]))


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda: Dataflow("a.b"), ValueError, "'a.b'"),
        (lambda: Dataflow(""), ValueError, "can't be empty"),
        (lambda: Dataflow(3), TypeError, "got 3"),  # type: ignore[arg-type]
        (lambda: op.map("in", stream(), str), ValueError, "has a step 'f.in' already"),
        (lambda: op.map("a.b", stream(), str), ValueError, "period.*'a.b'"),
        (lambda: op.map("", stream(), str), ValueError, "can't be empty"),
        (lambda: op.map(1, stream(), str), TypeError, "`step_id` must be text; got 1"),  # type: ignore[arg-type]
        (lambda: op.map("x", [1], str), TypeError, r"`map`, step 'x': `up` must be a Stream; got \[1\] \(list\)"),  # type: ignore[arg-type]
        (lambda: op.map("x", op.branch("b", stream(), bool), str), TypeError, "take one of its fields"),  # type: ignore[arg-type]
        (lambda: op.map("x", stream()), TypeError, "`map` can't be called like this: missing.*mapper"),  # type: ignore[call-arg]
        (lambda: op.map("x", stream(), 3), TypeError, "step 'f.x': `mapper` must be a function; got 3"),  # type: ignore[arg-type]
        (lambda: op.merge("x"), ValueError, "`merge`, step 'x': it needs at least one upstream"),
        (lambda: op.join("x"), ValueError, "`join`, step 'x': it needs at least one upstream"),
        (lambda: op.merge("x", stream(), 3), TypeError, "`ups` must be a Stream; got 3"),  # type: ignore[arg-type]
        (lambda: op.merge("x", stream("a"), stream("b")), ValueError, "two flows, 'a' and 'b'"),
        (lambda: op.join("x", stream(), insert_mode="all"), ValueError, "`insert_mode` .* 'product'; got 'all'"),  # type: ignore[call-overload]
        (lambda: op.join("x", stream(), emit_mode="all"), ValueError, "`emit_mode` is one of"),  # type: ignore[call-overload]
        (lambda: op.input("x", 3, TestingSource([])), TypeError, "`flow` must be a Dataflow; got 3"),  # type: ignore[arg-type]
        (lambda: op.input("x", Dataflow("f"), [1]), TypeError, r"step 'f.x': `source` must be .*; got \[1\]"),  # type: ignore[arg-type]
        (lambda: op.output("x", stream(), []), TypeError, "step 'f.x': `sink` must be"),  # type: ignore[arg-type]
        (lambda: op.collect("x", stream(), 3, 3), TypeError, "`timeout` must be a timedelta; got 3"),  # type: ignore[arg-type]
        (lambda: op.collect("x", stream(), timedelta(1), 0), ValueError, "`max_size` must be .* at least 1; got 0"),
        (lambda: TestingSource([], batch_size=0), ValueError, "batch_size"),
        (lambda: run_main(Dataflow("f")), RuntimeError, "'f' has no input"),
        (lambda: run_main(stream().flow()), RuntimeError, "'f' has no output"),
        (lambda: run_main(3), TypeError, "a flow is a Dataflow; got 3"),  # type: ignore[arg-type]
        (lambda: run_main(op.inspect("i", stream()).flow(), epoch_interval=timedelta(-1)), ValueError, "epoch_interval"),
        (lambda: Runner(op.inspect("i", stream()).flow(), workers=0), ValueError, "workers: .*; got 0"),
        (lambda: SimplePollingSource.__init__(object.__new__(TestPoll), timedelta(-1)), ValueError, "interval"),
        (lambda: TestPoll(timedelta(1), datetime(2024, 1, 1)), ValueError, "time zone"),
    ],
)
def test_a_flow_that_cannot_be_made(wrong: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        wrong()


class TestPoll(SimplePollingSource[Any, Any]):
    __test__ = False

    def next_item(self) -> Any:
        return None


def test_mistakes_in_an_operator_of_ones_own() -> None:
    with pytest.raises(TypeError, match="first parameter is `step_id`.*without"):

        @operator
        def without(up: Stream[int]) -> Stream[int]:
            return up

    @operator
    def promising(step_id: str, up: Stream[int]) -> Stream[int]:
        return 3  # type: ignore[return-value]

    with pytest.raises(TypeError, match="step 'f.p' .*says that it returns a Stream; got 3"):
        promising("p", stream())


def test_a_step_that_failed_was_never_there() -> None:
    s = stream()
    with pytest.raises(TypeError):
        op.count_final("x", s, 3)  # type: ignore[arg-type]
    assert [step.step_id for step in s.flow().substeps] == ["f.in"]
    op.inspect("x", op.count_final("c", s, str))
    run_main(s.flow())


def boom(*_: Any) -> Any:
    raise KeyError("boom")  # The line that the errors below name.


HERE = re.escape(__file__) + ":" + str(boom.__code__.co_firstlineno + 1) + " in boom"


class Bad(op.StatefulBatchLogic[Any, Any, Any]):
    def __init__(self, where: str) -> None:
        self.where = where

    def on_batch(self, values: Any) -> Any:
        return boom() if self.where == "on_batch" else 5 if self.where == "result" else ((), False)

    def on_eof(self) -> Any:
        return boom() if self.where == "on_eof" else ((), False)

    def notify_at(self) -> Any:
        return boom() if self.where == "notify_at" else datetime(2024, 1, 1) if self.where == "naive" else None

    def snapshot(self) -> Any:
        return boom() if self.where == "snapshot" else (lambda: 1)


def keyed(s: Stream[Any]) -> Stream[Any]:
    return op.key_on("key", s, lambda x: f"k{x}")


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda s: op.map("x", s, boom), f"step 'f.x' .map, .*test_mistakes.py:\\d+. failed: KeyError: 'boom'; raised at {HERE}"),
        (lambda s: op.flat_map_batch("x", s, boom), f"step 'f.x' .*raised at {HERE}"),
        (lambda s: op.branch("x", s, boom).trues, f"step 'f.x' .*raised at {HERE}"),
        (lambda s: op.inspect("x", s, boom), f"step 'f.x' .*raised at {HERE}"),
        (lambda s: op.key_on("x", s, boom), f"step 'f.x' .*raised at {HERE}"),
        (lambda s: op.count_final("x", s, boom), f"step 'f.x' .*raised at {HERE}"),
        (lambda s: op.stateful_map("x", keyed(s), boom), f"step 'f.x' .*failed in on_batch for the key 'k1': .*raised at {HERE}"),
        (lambda s: op.fold_final("x", keyed(s), boom, boom), f"step 'f.x' .*failed in the builder for the key 'k1': .*raised at {HERE}"),
        (lambda s: op.stateful_batch("x", keyed(s), boom), f"step 'f.x' .*failed in the builder for the key 'k1': .*{HERE}"),
        *[
            (lambda s, w=where: op.stateful_batch("x", keyed(s), lambda _: Bad(w)), f"'f.x' .*failed in {where} for the key 'k1': .*{HERE}")
            for where in ("on_batch", "on_eof", "notify_at")
        ],
        (lambda s: op.stateful_batch("x", keyed(s), lambda _: Bad("result")), r"'f.x': on_batch must return \(what to emit.*; got 5"),
        (lambda s: op.stateful_batch("x", keyed(s), lambda _: Bad("naive")), "'f.x' .*notify_at must return a datetime with a time zone"),
        (lambda s: op.stateful_batch("x", keyed(s), lambda _: 3), "'f.x' .*must return a StatefulBatchLogic; got 3"),
        (lambda s: op.filter("x", s, lambda x: 1), "step 'f.x': its predicate .* must return True or False; got 1 .int."),
        (lambda s: op.filter_value("x", keyed(s), lambda x: 1), "step 'f.x': its predicate .* must return True or False; got 1"),
        (lambda s: op.branch("x", s, lambda x: None).trues, "step 'f.x' .*must return True or False; got None"),
        (lambda s: op.key_on("x", s, lambda x: x), "step 'f.x': .* must return text as the key; got 1 .int. for the item 1"),
        (lambda s: op.map_value("x", s, str), "step 'f.x' takes .key, value. tuples from upstream; got 1"),
        (lambda s: op.map_value("x", op.map("t", s, lambda x: "ab"), str), "step 'f.x' takes .* got 'ab'"),
        (lambda s: op.stateful_map("x", s, boom), "step 'f.x' .* takes .key, value. tuples.*got 1"),
        (lambda s: op.stateful_map("x", op.map("t", s, lambda x: (x, x)), boom), "step 'f.x' .* takes text for a key; got 1 .int."),
        (lambda s: op.stateful_map("x", op.map("t", s, lambda x: ([], x)), boom), "step 'f.x' .*unhashable"),
        (lambda s: op.stateful_map("x", op.map("t", s, lambda x: ("a", x, x)), boom), r"step 'f.x' .*got \('a', 1, 1\)"),
        (lambda s: op.stateful_map("x", keyed(s), lambda st, x: 3), "step 'f.x': .*must return .state, value.; got 3"),
        (lambda s: op.flat_map("x", s, lambda x: x), "step 'f.x': .*must return something iterable; got 1"),
        (lambda s: op.flat_map_batch("x", s, lambda x: 7), "step 'f.x' .*must return something iterable; got 7"),
        (lambda s: op.flatten("x", s), "step 'f.x' takes items that are iterable; got 1"),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_flow_that_fails(build: Any, text: str, workers: int) -> None:
    with pytest.raises(BytewaxRuntimeError, match=text) as caught:
        collect(build, [1], workers=workers)
    error = caught.value
    assert isinstance(error, StepError)
    assert error.step_id == "f.x"
    if "boom" in text:
        assert isinstance(error.__cause__, KeyError)
        assert error.where and error.where.endswith("in boom")


class Parts(FixedPartitionedSource[Any, Any]):
    def __init__(self, **what: Any) -> None:
        self.what = what

    def list_parts(self) -> Any:
        return self.what.get("parts", lambda: ["p"])()

    def build_part(self, *_: Any) -> Any:
        outer = self.what

        class Part(StatefulSourcePartition[Any, Any]):
            def next_batch(self) -> Any:
                return outer.get("next_batch", lambda: [1])()

            def next_awake(self) -> Any:
                return outer.get("next_awake", lambda: None)()

            def snapshot(self) -> Any:
                return None

        return self.what.get("build", Part)()


class Files(FixedPartitionedSink[Any, Any]):
    def __init__(self, **what: Any) -> None:
        self.what = what

    def list_parts(self) -> Any:
        return self.what.get("parts", lambda: ["p"])()

    def part_fn(self, item_key: str) -> Any:
        return self.what.get("part_fn", lambda: 0)()

    def build_part(self, *_: Any) -> Any:
        raise OSError("no disk")


class Odd(Source[Any]):
    pass


class Own(DynamicSource[Any]):
    def build(self, *_: Any) -> Any:
        return boom()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Parts(parts=boom), HERE),
        (Parts(parts=lambda: ["p", "p"]), "names partitions twice: p"),
        (Parts(parts=lambda: [1]), "list_parts must return text; got 1"),
        (Parts(build=boom), f"failed in opening for the partition 'p': .*{HERE}"),
        (Parts(next_batch=boom), f"failed in next_batch for the partition 'p': .*{HERE}"),
        (Parts(next_batch=lambda: 3), "failed in next_batch for the partition 'p': TypeError"),
        (Parts(next_awake=boom), f"for the partition 'p': .*{HERE}"),
        (Parts(next_awake=lambda: datetime(2024, 1, 1)), "next_awake must return a datetime with a time zone"),
        (Own(), f"failed in opening for the partition 'worker-0': .*{HERE}"),
        (Odd(), "a source is a FixedPartitionedSource or a DynamicSource; got Odd"),
    ],
)
def test_a_source_that_fails(source: Any, text: str) -> None:
    flow = Dataflow("f")
    op.inspect("i", op.input("x", flow, source), lambda *_: None)
    with pytest.raises(StepError, match=f"step 'f.x' .*{text}"):
        run_main(flow)


@pytest.mark.parametrize(
    ("sink", "text"),
    [
        (Files(), "failed in opening for the partition 'p': OSError: no disk"),
        (Files(parts=lambda: []), "names no partition"),
        (Files(parts=boom), HERE),
    ],
)
def test_a_sink_that_fails(sink: Any, text: str) -> None:
    flow = Dataflow("f")
    op.output("x", op.input("in", flow, TestingSource([("a", 1)])), sink)
    with pytest.raises(StepError, match=f"step 'f.x' .*{text}"):
        run_main(flow)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_partitioned_sink_takes_keyed_items_only(tmp_path: Any, workers: int) -> None:
    from skep.dataflow.connectors.files import FileSink

    for items, text in (([1], "takes .key, value. tuples"), ([(1, "x")], "takes text for a key; got 1"), ([("a", 1)], "takes text; got 1")):
        flow = Dataflow("f")
        op.output("x", op.input("in", flow, TestingSource(items)), FileSink(tmp_path / "out"))
        with pytest.raises(StepError, match=f"step 'f.x' .*{text}"):
            Runner(flow, workers=workers).run()


def test_what_can_not_be_pickled_is_named_where_stages_run_apart() -> None:
    with pytest.raises(RuntimeError, match="what goes to step 'f.r' .*can't be pickled"):
        collect(lambda s: op.redistribute("r", op.map("m", s, lambda x: lambda: x)), [1], isolated=True)


def test_an_error_of_a_step_can_go_to_another_process() -> None:
    import pickle

    with pytest.raises(StepError) as caught:
        collect(lambda s: op.stateful_map("x", keyed(s), boom), [1])
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.step_id, copy.key, copy.where) == (str(caught.value), "f.x", "k1", caught.value.where)


def test_nothing_is_closed_after_an_error() -> None:
    out: list[Any] = []
    flow = Dataflow("f")
    s = op.input("in", flow, TestingSource([1, 0, 2]))
    op.output("out", op.map("x", s, lambda x: 1 / x), TestingSink(out))
    with pytest.raises(StepError, match="ZeroDivisionError"):
        run_main(flow)
    assert out == [1.0]
