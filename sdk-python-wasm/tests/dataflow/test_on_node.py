"""Stages as a node runs them, over a small one in memory: what comes out is what comes out in process, whatever is lost on the way."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from apart import run_apart
from kept import all_keys
from programs import Program
from small_node import START, Call, Ends, SmallNode, Timer, results, wire

import skep.dataflow.operators as op
import skep.dataflow.operators.windowing as win
from skep.dataflow import Dataflow
from skep.dataflow.buckets import bucket_of, pack_groups, unpack_groups
from skep.dataflow.connectors.demo import RandomMetricSource
from skep.dataflow.connectors.files import FileSink, FileSource
from skep.dataflow.connectors.stdio import StdOutSink
from skep.dataflow.connectors.subject import RespondSink, SubjectSource
from skep.dataflow.deploy import deployment
from skep.dataflow.errors import DataflowError
from skep.dataflow.inputs import DynamicSource, FixedPartitionedSource, SimplePollingSource, StatefulSourcePartition
from skep.dataflow.limits import MESSAGE_BYTES, READ_ITEMS, READ_ITEMS_MAX
from skep.dataflow.names import stage_names
from skep.dataflow.node import END, NodeStage, address, key_of, milliseconds, pack_items, unpack_items
from skep.dataflow.outputs import FixedPartitionedSink, StatefulSinkPartition
from skep.dataflow.plan import plan
from skep.dataflow.stateful_timeout import stateful_flat_map_timeout, stateful_map_timeout
from skep.dataflow.testing import TestingSink, TestingSource, run_main


def out(s: Any) -> None:
    op.output("out", op.redistribute("results", s), StdOutSink())


@pytest.mark.parametrize("block", range(6))
def test_generated_flows_give_the_same(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        program = Program(seed)
        flow, want = Dataflow("f"), []  # type: ignore[var-annotated]
        op.output("out", program.make(op, flow, TestingSource(program.items, program.batch_size)), TestingSink(want))
        run_apart(flow, seed)
        flow = Dataflow("f")
        out(program.make(op, flow, TestingSource(program.items, program.batch_size)))
        got = results(flow, seed)
        assert Counter(map(repr, got)) == Counter(map(repr, want)), (seed, program.names, program.items, program.batch_size)


class Numbers(FixedPartitionedSource[int, int]):
    """So many numbers a partition; a memory that must never be ahead of, or behind, what is kept."""

    def __init__(self, parts: dict[str, int], batch: int) -> None:
        self.parts = parts
        self.batch = batch

    def list_parts(self) -> list[str]:
        return list(self.parts)

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> StatefulSourcePartition[int, int]:
        source = self

        class Part(StatefulSourcePartition[int, int]):
            at = resume_state or 0

            def next_batch(self) -> list[int]:
                if self.at >= source.parts[for_part]:
                    raise StopIteration()
                found = list(range(self.at, min(self.at + source.batch, source.parts[for_part])))
                self.at += len(found)
                return found

            def snapshot(self) -> int:
                return self.at

        return Part()


@pytest.mark.parametrize("seed", range(30))
def test_counts_are_exact_whatever_is_lost(seed: int) -> None:
    flow = Dataflow("f")
    s = op.key_on("key", op.input("in", flow, Numbers({"a": 300, "b": 70, "": 0, "\x00c": 1}, 7)), lambda n: str(n % 5))
    out(op.stateful_map("count", s, lambda n, _: ((n or 0) + 1, (n or 0) + 1)))
    want = []
    for key in range(5):
        count = sum(len(range(key, many, 5)) for many in (300, 70, 1))
        want += [(str(key), n) for n in range(1, count + 1)]
    node = SmallNode(flow, seed, results="results", losses=0.5, instances=1 + seed % 3)
    for instances in node.instances.values():
        for stage, _ in instances:
            stage._read_items = 20
    # Started again and again, as by a deploy in its middle.
    node.start()
    for _ in range(50):
        if not node.turn():
            break
        if node.random.random() < 0.2:
            node.start()
    node.start()
    node.run()
    assert sorted(node.out) == sorted(want)
    assert not node.failed
    assert not node.timers["in"], "ended partitions are not read again"


@pytest.mark.parametrize("seed", range(6))
def test_windows_close_by_timers_and_values(seed: int) -> None:
    clocks = [lambda: START]

    def build(end: Any) -> Dataflow:
        flow = Dataflow("f")
        events = [("ab"[n % 2], n) for n in range(60)]
        s = op.key_on("key", op.input("in", flow, TestingSource(events, 3)), lambda e: e[0])
        clock = win.EventClock(lambda e: START + timedelta(seconds=e[1]), timedelta(seconds=5), now_getter=lambda: clocks[-1]())
        w = win.count_window("w", op.key_rm("un", s), clock, win.TumblingWindower(timedelta(seconds=10), START), lambda e: e[0])
        end(w.down)
        return flow

    want: list[Any] = []
    run_apart(build(lambda s: op.output("out", s, TestingSink(want))), seed, ends=False)
    node = SmallNode(build(out), seed, results="results")
    clocks.append(lambda: node.now)
    node.start()
    node.run()
    # Those that the last values left open are closed by the clock, which goes on here.
    assert not node.failed and not Counter(want) - Counter(node.out) and want
    assert Counter(node.out) == Counter((key, (number, 5)) for key in "ab" for number in range(6))


def test_a_timer_that_comes_early_by_this_clock_is_put_off_not_asked_again_and_again() -> None:
    flow = Dataflow("f")
    out(op.collect("c", op.key_on("key", op.input("in", flow, TestingSource([])), str), timedelta(seconds=10), 7))
    stage, call = one_stage(flow, 1, now=lambda: START)
    ask(stage, call, [values(a=[1])])
    late = Timer(wire(b"", A).value)
    late.value.name, late.value.at_ms = "next", call.steps[0][1]["next"]
    early = late.value.at_ms - milliseconds(START)
    (found,) = ask(stage, call, [late], dict(call.kept))
    assert found.publish == [] and call.steps == [({"state": call.kept[A, "state"]}, {"next": late.value.at_ms + early})]


@pytest.mark.parametrize("seed", range(6))
def test_timers_fire_once_and_go_with_their_key(seed: int) -> None:
    flow = Dataflow("f")
    s = op.key_on("key", op.input("in", flow, Numbers({"a": 50}, 1)), lambda n: str(n % 3))
    out(op.collect("c", s, timedelta(seconds=10), 7))
    node = SmallNode(flow, seed, results="results", losses=0.4)
    node.start()
    node.run()
    got = Counter(n for _, values in node.out for n in values)
    assert got == Counter(range(50))
    # What was full, and what the timer took: nothing is left of any.
    assert not node.timers["c"] and not node.state["c"]


class Log(FixedPartitionedSink[Any, int]):
    """Remembers how far it wrote, and writes over what came behind."""

    def __init__(self) -> None:
        self.lines: dict[str, list[Any]] = {"p": [], "q": []}

    def list_parts(self) -> list[str]:
        return list(self.lines)

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> StatefulSinkPartition[Any, int]:
        lines = self.lines[for_part]
        del lines[resume_state or 0 :]

        class Part(StatefulSinkPartition[Any, int]):
            def write_batch(self, values: list[Any]) -> None:
                lines.extend(values)

            def snapshot(self) -> int:
                return len(lines)

        return Part()


@pytest.mark.parametrize("seed", range(10))
def test_a_sink_that_can_go_back_has_each_item_once(seed: int) -> None:
    log, flow = Log(), Dataflow("f")
    op.output("out", op.key_on("key", op.input("in", flow, Numbers({"a": 90}, 4)), str), log)
    # One instance: the list is what all would share.
    node = SmallNode(flow, seed, losses=0.5, instances=1)
    node.start()
    node.run()
    assert sorted(n for lines in log.lines.values() for n in lines) == list(range(90))


def test_what_comes_to_a_subject_is_items_and_who_asked_is_answered() -> None:
    flow = Dataflow("f")
    s = op.input("orders", flow, SubjectSource("orders", "list"))
    totals = op.stateful_map("total", op.key_on("who", s, lambda o: o["who"]), lambda t, o: ((t or 0) + o["n"], (t or 0) + o["n"]))
    op.output("answer", op.map("text", totals, lambda kv: {"who": kv[0], "total": kv[1]}), RespondSink())
    assert '{ gateway: "orders" }' in deployment(flow).manifest and deployment(flow).starts == ()
    node = SmallNode(flow, 1, losses=0)
    for n in (1, 2):
        node.send("orders", json.dumps([{"who": "a", "n": n}, {"who": "b", "n": 10}]).encode())
        node.run()
    node.send("orders", b"no json")
    node.send("orders", b'{"a": 1}')
    node.run()
    assert sorted(map(json.loads, node.answers), key=str) == sorted(
        [{"who": "a", "total": 1}, {"who": "b", "total": 10}, {"who": "a", "total": 3}, {"who": "b", "total": 20}], key=str
    )
    assert [(ended.how, ended.reason.split(":")[0]) for _, ended in node.failed] == [
        ("reject", "the payload is not JSON"),
        ("reject", "the payload is no JSON list, and a message to `orders` is a list of items"),
    ]


def one_stage(flow: Dataflow, index: int = 0, **more: Any) -> tuple[NodeStage, Call]:
    whole, call = plan(flow), Call()
    return NodeStage(whole.stages[index], whole, call, Ends(), **more), call


def ask(stage: NodeStage, call: Call, inputs: list[Any], kept: dict[tuple[str, str], bytes] | None = None) -> list[Any]:
    call.enter(inputs, kept or {})
    return stage.process(inputs)


def counting(mapper: Any) -> tuple[NodeStage, Call]:
    flow = Dataflow("f")
    s = op.key_on("key", op.input("in", flow, TestingSource([])), str)
    out(op.stateful_map("count", s, mapper))
    return one_stage(flow, 1)


A = bucket_of("a")


def items(*values: Any) -> Any:
    (data,) = pack_items(list(values))
    return wire(data)


def values(**groups: list[Any]) -> Any:
    """A message to the keys of a bucket; which one, is the first's."""
    (data,) = pack_groups(groups, 1 << 20, 1 << 20)
    return wire(data, bucket_of(next(iter(groups))))


def the_items(data: bytes) -> list[Any]:
    return [(key, value) for key, values in unpack_groups(data).items() for value in values]


def test_one_input_that_fails_costs_only_itself_and_names_the_line() -> None:
    def mapper(state: Any, value: int) -> Any:
        return (state or 0) + 1, 1 // value

    stage, call = counting(mapper)
    found = ask(stage, call, [values(a=[1]), values(a=[1, 0]), values(b=[2]), wire(b"\x07what", A), wire(b"", A), values(a=[1])])
    assert [one.how for one in found] == ["done", "fail", "done", "fail", "fail", "done"]
    assert found[1].reason == "ZeroDivisionError"
    assert "step 'f.count' (stateful_map" in found[1].detail and "the key 'a'" in found[1].detail and "test_on_node.py" in found[1].detail
    assert "begins with version 7" in found[3].detail and "begins with nothing" in found[4].detail
    assert [bool(writes) for writes, _ in call.steps] == [True, False, True, False, False, True]
    # As if the failed one had not been.
    assert unpack_items(found[5].publish[0].payload) == [("a", 1)]
    assert all_keys(call.kept) == {"a": 2, "b": 1}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), RecursionError("deep"), MemoryError(), TestingSource.ABORT])
def test_whatever_is_raised_is_an_outcome(error: Any) -> None:
    def mapper(state: Any, value: int) -> Any:
        if value:
            raise error
        return state, value

    stage, call = counting(mapper)
    found = ask(stage, call, [values(a=[0]), values(b=[1]), values(c=[0])])
    assert [one.how for one in found] == ["done", "fail", "done"]


def test_memory_counts_only_where_it_is_what_is_kept() -> None:
    built: list[Any] = []

    def mapper(state: Any, value: int) -> Any:
        return (state or 0) + value, value

    stage, call = counting(mapper)
    builder = stage._stage.entry.args["builder"]
    stage._stage.entry.args["builder"] = lambda state: built.append(state) or builder(state)
    ask(stage, call, [values(a=[1]), values(a=[2])])
    kept = dict(call.kept)
    ask(stage, call, [values(a=[4])], kept)
    assert built == [None], "what is kept is what memory has"
    # That call's commit is lost: what is kept is as before.
    ask(stage, call, [values(a=[4])], kept)
    assert built == [None, 3]
    # Another instance went on.
    other, another = counting(mapper)
    ask(other, another, [values(a=[100])], dict(call.kept))
    ask(stage, call, [values(a=[1])], dict(another.kept))
    assert built == [None, 3, 107]
    assert all_keys(call.kept) == {"a": 108}
    # It was discarded, or its state deleted by hand.
    ask(stage, call, [values(a=[1])])
    assert built == [None, 3, 107, None]


@pytest.mark.parametrize("held", [True, False])
def test_a_value_behind_the_time_of_a_timer_is_followed_by_it_whoever_has_the_key(held: bool) -> None:
    class Late(op.StatefulLogic[int, str, int]):
        """Tells of a silence of ten seconds."""

        def __init__(self, last: int | None) -> None:
            self.last = last or 0

        def on_item(self, value: int) -> tuple[list[str], bool]:
            self.last = value
            return [f"value {value}"], False

        def on_notify(self) -> tuple[list[str], bool]:
            self.last = 0
            return ["silence"], False

        def notify_at(self) -> datetime | None:
            return START + timedelta(seconds=10) if self.last else None

        def snapshot(self) -> int:
            return self.last

    flow = Dataflow("f")
    out(op.stateful("s", op.key_on("key", op.input("in", flow, TestingSource([])), str), Late))
    now = [START]
    stage, call = one_stage(flow, 1, now=lambda: now[0])
    ask(stage, call, [values(a=[1])])
    now[0] = START + timedelta(seconds=11)
    other, another = (stage, call) if held else one_stage(flow, 1, now=lambda: now[0])
    (found,) = ask(other, another, [values(a=[2])], dict(call.kept))
    assert [item for emit in found.publish for item in unpack_items(emit.payload)] == [("a", "value 2"), ("a", "silence")]
    assert another.steps[0][1] == {"next": None}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (b"", "is empty"),
        (b"\x01", "version 1"),
        (b"\x09" + bytes(20), "version 9 and this skep reads 2"),
        (bytes(30), "version 0"),
        (b"\x02" + bytes(20), "can't be read"),
        (b"\x02\xff" + bytes(20), "can't be read"),
        (b"\x02" + bytes(23) + b"\x01broken", "can't be read"),
        (b"\x02" + bytes(23) + pickle.dumps(({"a": b"\x01broken"}, {}, 0)), "can't be read"),
        (b"\x02" + bytes(23) + pickle.dumps(({"a": b""}, {}, 0)), "can't be read"),
        (b"\x02" + bytes(23) + pickle.dumps(({"a": (300_000, bytes(16))}, {}, 1)), "can't be read"),
        (b"\x02\x00\x02" + bytes(21), "the message is none"),
    ],
)
def test_state_that_is_none(state: bytes, says: str) -> None:
    stage, call = counting(lambda s, v: (s, v))
    (found,) = ask(stage, call, [values(a=[1])], {(A, "state"): state})
    assert found.how == "fail" and says in found.detail
    assert call.steps == [({}, {})]


def test_large_state_lies_in_several_values_and_shrinks() -> None:
    stage, call = counting(lambda s, v: (v, 0))
    sizes = [10, 300_000, 700_000, 300_000, 262_144 - 40, 10]
    for size in sizes:
        (found,) = ask(stage, call, [values(a=["x" * min(size, 100)])], dict(call.kept))
        assert found.how == "done"
    state = {"n": 0}

    def grown(s: Any, v: int) -> Any:
        assert s is None or s == "x" * state["n"]
        state["n"] = v
        return "x" * v, 0

    stage, call = counting(grown)
    other, another = counting(grown)
    kept: dict[tuple[str, str], bytes] = {}
    for turn, size in enumerate(sizes):
        one, its = ((stage, call), (other, another))[turn % 2]
        (found,) = ask(one, its, [values(a=[size])], kept)
        assert found.how == "done", found.detail
        kept = dict(its.kept)
        assert len(kept) == (1 if size < 8000 else 1 - (-(size + 20) // (256 << 10)))
    (found,) = ask(stage, call, [values(a=[900_000])], kept)
    assert found.how == "fail" and "a node keeps 786432 of one key" in found.detail
    assert call.steps == [({}, {})] and call.kept == kept


def test_too_much_of_one_input_is_an_error_that_says_so() -> None:
    flow = Dataflow("f")
    s = op.flat_map("many", op.redistribute("r", op.input("in", flow, TestingSource([]))), lambda n: range(n))
    out(op.key_on("key", s, str).then(op.key_rm, "un"))
    stage, call = one_stage(flow, 1)
    (few, many) = ask(stage, call, [items(100), items(1_000_000)])
    assert few.how == "done" and many.how == "fail" and "and a node takes" not in many.detail
    assert "a node takes 10000 and 1048576" in many.detail
    # Items that can't be sent.
    flow = Dataflow("f")
    out(op.map("f", op.redistribute("r", op.input("in", flow, TestingSource([]))), lambda n: lambda: n))
    stage, call = one_stage(flow, 1)
    (found,) = ask(stage, call, [items(1)])
    assert found.how == "fail" and "can't be pickled" in found.detail and "got function" in found.detail
    flow = Dataflow("f")
    out(op.map("f", op.redistribute("r", op.input("in", flow, TestingSource([]))), lambda n: bytes(300_000)))
    stage, call = one_stage(flow, 1)
    (found,) = ask(stage, call, [items(1)])
    assert found.how == "fail" and "an item has 3000" in found.detail


def test_a_source_that_read_too_much_reads_less() -> None:
    flow = Dataflow("f")
    out(op.map("large", op.input("in", flow, Numbers({"a": 200}, 1)), lambda n: (n, bytes(20_000))))
    got = [n for n, _ in results(flow, 0, losses=0)]
    assert got == list(range(200))
    # One batch that is too much stays so.
    flow = Dataflow("f")
    out(op.map("large", op.input("in", flow, Numbers({"a": 200}, 200)), lambda n: (n, bytes(20_000))))
    node = SmallNode(flow, 0, results="results", losses=0)
    node.start()
    node.run()
    ((_, ended),) = node.failed
    assert "let its source read fewer items at once" in ended.detail and node.out == []


@pytest.mark.parametrize(("each", "most"), [(0.0, READ_ITEMS_MAX), (1e-5, 65_536), (0.002, 1_000), (10.0, 1)])
def test_a_source_reads_as_much_as_a_call_has_time_for(each: float, most: int) -> None:
    clock = [0.0]

    def slow(n: int) -> int:
        clock[0] += each
        return n

    flow = Dataflow("f")
    out(op.map("slow", op.input("in", flow, Numbers({"a": 10**9}, 1)), slow))
    stage, call = one_stage(flow, seconds=lambda: clock[0])
    stage._run.read_seconds = 60
    ask(stage, call, [wire(b"", "a")])
    counts = []
    for _ in range(12):
        due = Timer(wire(b"", "a").value)
        due.value.name, due.value.at_ms = "next", call.steps[-1][1]["next"]
        (found,) = ask(stage, call, [due], dict(call.kept))
        counts.append(sum(len(unpack_items(emit.payload)) for emit in found.publish))
    assert counts[0] == READ_ITEMS and most / 2 <= counts[-1] <= most, counts


def test_what_a_source_read_before_it_failed_is_not_lost() -> None:
    class Ten(SimplePollingSource[int, int]):
        def __init__(self) -> None:
            super().__init__(timedelta(0))
            self.at = 0

        def next_item(self) -> int:
            if self.at == 10:
                raise OSError("gone")
            self.at += 1
            return self.at

        def snapshot(self) -> int:
            return self.at

        def resume(self, state: int) -> None:
            self.at = state

    flow = Dataflow("f")
    out(op.input("in", flow, Numbers({"a": 10}, 1)).then(op.map, "m", lambda n: 1 // (7 - n) and n or n))
    node = SmallNode(flow, 0, results="results", losses=0)
    node.start()
    node.run()
    ((_, ended),) = node.failed
    assert ended.reason == "ZeroDivisionError" and "the partition" not in ended.reason
    assert node.out == list(range(7))


@pytest.mark.parametrize("seed", range(4))
def test_a_source_that_gave_up_goes_on_where_it_was_when_deployed_again(seed: int) -> None:
    broken = [True]

    def work(n: int) -> int:
        if broken[0] and n >= 20:
            raise OSError("away")
        return n

    flow = Dataflow("f")
    out(op.map("work", op.input("in", flow, Numbers({"a": 50}, 5)), work))
    node = SmallNode(flow, seed, results="results")
    node.start()
    node.run()
    assert [ended.reason for _, ended in node.failed] == ["OSError"] and node.out == list(range(20))
    broken[0] = False
    node.start()
    node.start()
    node.run()
    assert node.out == list(range(50)) and len(node.failed) == 1


def test_a_source_is_read_when_it_says() -> None:
    flow = Dataflow("f")
    out(op.input("in", flow, RandomMetricSource("cpu", timedelta(seconds=1), 3, lambda: 0.5)))
    node = SmallNode(flow, 0, results="results", losses=0)
    node.now = datetime.now(timezone.utc)
    began = node.now
    node.start()
    node.run()
    assert node.out == [("cpu", 0.5)] * 3
    assert timedelta(seconds=2) <= node.now - began <= timedelta(seconds=5)


def test_starts_of_others_do_no_harm() -> None:
    flow = Dataflow("f")
    out(op.input("in", flow, Numbers({"a": 5, "b": 5}, 1)))
    stage, call = one_stage(flow)
    evil = b"\x01" + b"cos\nsystem\n(S'false'\ntR."
    found = ask(stage, call, [wire(evil, "a"), wire(b"", "z"), wire(b"", "a")])
    assert [one.how for one in found] == ["done", "reject", "done"]
    assert "has no partition 'z'; it has: a, b" in found[1].reason
    # A timer of a time that is not set any more.
    late = Timer(wire(b"", "a").value)
    late.value.at_ms, late.value.name = 5, "next"
    (nothing,) = ask(stage, call, [late], dict(call.kept))
    assert nothing.how == "done" and nothing.publish == [] and call.steps == [({}, {})]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda flow: op.output("o", op.input("i", flow, FileSource("x")), StdOutSink()), "step 'f.i' (input, "),
        (lambda flow: op.output("o", op.key_on("k", op.input("i", flow, TestingSource([])), str), FileSink(Path("x"))), "FileSink needs files"),
        (lambda flow: op.output("o", op.input("i", flow, TestingSource([])), TestingSink([])), "TestingSink"),
        (lambda flow: op.output("o", op.input("i", flow, Own()), StdOutSink()), "a DynamicSource has its place in memory only"),
    ],
)
def test_what_can_not_run_on_a_node_is_refused_by_its_step(make: Any, says: str) -> None:
    flow = Dataflow("f")
    make(flow)
    with pytest.raises(DataflowError) as error:
        deployment(flow)
    assert says in str(error.value) and "test_on_node.py" in str(error.value)


class Own(DynamicSource[int]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> Any:
        raise NotImplementedError


def test_the_manifest_is_the_plan() -> None:
    flow = Dataflow("My Flow")
    a, b = op.input("a", flow, TestingSource([])), op.input("b.x".replace(".", "_"), flow, SubjectSource("in", keyed=True))
    s = op.stateful_map("n", op.key_on("k", op.merge("m", a, op.key_rm("r", b)), str), lambda st, v: (st, v))
    op.output("o", s, Log())
    op.inspect("x", op.redistribute("N", a))
    made = deployment(flow)
    assert made.name == "my-flow" and made.warnings == ()
    assert len(set(made.stages.values())) == len(made.stages)
    assert made.stages["My Flow.a"] == "a" and made.stages["My Flow.n.stateful_batch"].startswith("n-")
    text = made.manifest
    for line in ('input: [{ gateway: "my-flow-a" }]', 'input: [{ gateway: "in" }]', "input: [{ bee: a, output: o }"):
        assert line in text or line.endswith("o }")
    assert made.starts == (("my-flow-a", "iterable"),)


def test_names_are_labels_and_stay() -> None:
    flow = Dataflow("f")
    s = op.input("in", flow, TestingSource([]))
    for name in ("A b", "a_b", "ä" * 80, "x" * 80, "-"):
        op.inspect(f"{name}i", op.redistribute(name, s), lambda *_: None)
    names = stage_names(plan(flow))
    assert len(set(names.values())) == len(names) == 6
    assert all(0 < len(name) <= 63 and name[0] != "-" != name[-1] for name in names.values())
    assert names["f.in"] == "in" and names["f.A b"] == "a-b-" + names["f.A b"][-8:]


def test_what_is_sent_to_a_subject_has_no_end_and_deploy_says_so() -> None:
    flow = Dataflow("f")
    s = op.merge("m", op.input("in", flow, TestingSource([1])), op.input("sent", flow, SubjectSource("in")))
    counts = op.count_final("c", s, str)
    op.inspect("x", op.max_final("top", op.key_on("k", counts, str), lambda count: count[1]))
    made = deployment(flow)
    (warning,) = made.warnings
    assert "what f.c, f.top would do at the end of the stream is never done" in warning
    assert 'ends: ["iterable"]' in made.manifest and "ends: true" not in made.manifest


def test_the_manifest_says_who_is_told_of_an_end() -> None:
    flow = Dataflow("f")
    a, b = op.input("a", flow, Numbers({"": 1, "x": 1}, 1)), op.input("b", flow, Numbers({}, 1))
    s = op.key_on("k", a, str)
    op.inspect("quiet", op.stateful_map("running", s, lambda n, _: (1, 1)))
    op.inspect("told", op.count_final("final", op.redistribute("spread", a), str))
    op.inspect("timed", stateful_map_timeout("timeout", s, lambda n, _: (1, 1), timedelta(hours=1)))
    op.output("log", s, Log())
    op.inspect("none", op.count_final("never", b, str))
    made = deployment(flow)
    says = {}
    for part in made.manifest.split("\n  - name: ")[1:]:
        name, *lines = part.splitlines()
        says[name] = next((line.strip() for line in lines if line.strip().startswith("ends: ")), None)
    by_step = {step.removeprefix("f."): says[name] for step, name in made.stages.items()}
    # A source without partitions would say at once, and to nobody, that it has ended.
    assert by_step.pop("b") is None and by_step.pop("never.fold_final.stateful.stateful_batch", None) is None
    assert by_step.pop("a") == 'ends: ["\\u0000", "x"]'
    told = {step for step, said in by_step.items() if said == "ends: true"}
    assert {step.split(".")[0] for step in told} == {"final", "timeout", "log"}
    assert {step.split(".")[0] for step, said in by_step.items() if said is None} >= {"running", "spread"}


def test_partitions_of_any_name_end() -> None:
    flow = Dataflow("f")
    out(op.input("in", flow, Numbers({"\U0001f600": 1, "\x85\u2028": 1, 'a"\\': 1}, 1)))
    assert 'ends: ["a\\"\\\\", "\\u0085\\u2028", "\U0001f600"]' in deployment(flow).manifest
    node = SmallNode(flow, 1, results="results")
    node.start()
    node.run()
    assert len(node.out) == 3 and node.ended == set(node.kinds)


def final(flow: Dataflow, source: Any) -> Any:
    """Windows and ends one behind the other: what comes of the first's end goes through the others."""
    at = START
    clock = win.EventClock(lambda n: at + timedelta(seconds=n), timedelta(hours=1), now_getter=lambda: at)
    numbers = op.redistribute("spread", op.input("in", flow, source))
    s = op.key_on("k", numbers, lambda n: str(n % 3))
    windows = win.count_window("w", numbers, clock, win.TumblingWindower(length=timedelta(seconds=10), align_to=at), lambda n: str(n % 3))
    sums = op.fold_final("sum", windows.down, lambda: 0, lambda total, found: total + found[1])
    both = op.merge("both", op.map("s", sums, lambda found: ("all", found[1])), op.map_value("n", op.key_on("one", s, lambda _: "all"), lambda _: 1))
    return op.reduce_final("top", both, lambda a, b: a + b)


@pytest.mark.parametrize("seed", range(40))
def test_ends_go_through_a_flow_once_whatever_is_lost(seed: int) -> None:
    parts = {"a": 57, "b": 0, "c": 20}
    flow, want = Dataflow("f"), []  # type: ignore[var-annotated]
    op.output("out", final(flow, Numbers(parts, 7)), TestingSink(want))
    run_main(flow)
    assert want == [("all", 77 + 77)]
    flow = Dataflow("f")
    out(final(flow, Numbers(parts, 7)))
    node = SmallNode(flow, seed, results="results", losses=0.5 * (seed % 2), instances=1 + seed % 3)
    node.start()
    node.run()
    assert not node.failed and node.out == want
    assert node.ended == set(node.kinds) and not any(node.timers.values())
    # What is left is where the source stands, and that it has ended.
    assert {name for name, state in node.state.items() if state} == {"in"}
    # Deployed again, it is at its end.
    node.start()
    node.run()
    assert node.out == want


def test_a_timer_goes_with_the_end() -> None:
    flow, late = Dataflow("f"), []  # type: ignore[var-annotated]
    s = op.key_on("k", op.input("in", flow, TestingSource([1, 2, 1])), str)
    out(stateful_flat_map_timeout("t", s, lambda n, v: (v, [v]), timedelta(days=1), lambda n: [late.append(n)]))
    node = SmallNode(flow, 0, results="results", losses=0)
    node.now = datetime.now(timezone.utc)
    began = node.now
    node.start()
    node.run()
    assert sorted(node.out) == [("1", 1), ("1", 1), ("2", 2)] and not late
    assert node.now - began < timedelta(hours=1) and node.ended == set(node.kinds)


def test_an_end_that_fails_holds_the_others_behind_it() -> None:
    broken = [True]

    def total(so_far: int, n: int) -> int:
        return so_far + n

    class Final(op.StatefulLogic[int, int, int]):
        def __init__(self, state: int | None) -> None:
            self.sum = state or 0

        def on_item(self, value: int) -> tuple[list[int], bool]:
            self.sum = total(self.sum, value)
            return [], False

        def on_eof(self) -> tuple[list[int], bool]:
            if broken[0] and self.sum == 3:
                raise OSError("away")
            return [self.sum], True

        def snapshot(self) -> int:
            return self.sum

    flow = Dataflow("f")
    s = op.stateful("sum", op.key_on("k", op.input("in", flow, TestingSource([1, 2, 3, 1])), lambda n: str(n)), Final)
    out(op.count_final("count", s, lambda _: "all"))
    node = SmallNode(flow, 1, results="results", losses=0)
    node.start()
    node.run()
    assert [ended.reason for _, ended in node.failed] == ["OSError"] and node.out == []
    assert len(node.ended) == 1, "its source"
    # Somebody tries it again.
    broken[0] = False
    ((name, _),) = node.failed
    node.failed.clear()
    node.timers[name]["3", END] = (node._ms(), 1)
    node.run()
    assert node.out == [("all", 3)]


def test_a_key_without_state_has_no_end_and_a_partition_that_ended_before_says_so() -> None:
    stage, call = counting(lambda s, v: (None, v))
    over = Timer(wire(b"", "a").value)
    over.value.at_ms, over.value.name = 5, END
    (found,) = ask(stage, call, [over])
    assert found.how == "done" and found.publish == [] and call.steps == [({}, {})]
    flow = Dataflow("f")
    out(op.input("in", flow, Numbers({"a": 0}, 1)))
    stage, call = one_stage(flow)
    ask(stage, call, [wire(b"", "a")])
    due = Timer(wire(b"", "a").value)
    due.value.name, due.value.at_ms = "next", call.steps[-1][1]["next"]
    ask(stage, call, [due], dict(call.kept))
    assert call.kept.pop(("a", END)) == b"1"
    # As it was kept where no end was told.
    ask(stage, call, [wire(b"", "a"), wire(b"", "a")], dict(call.kept))
    assert [set(writes) for writes, _ in call.steps] == [{END}, set()]


def test_a_sink_is_closed_once() -> None:
    closed: list[str] = []

    class Closing(FixedPartitionedSink[int, None]):
        def list_parts(self) -> list[str]:
            return ["p", "q"]

        def build_part(self, step_id: str, for_part: str, resume_state: None) -> StatefulSinkPartition[int, None]:
            class Part(StatefulSinkPartition[int, None]):
                def write_batch(self, values: list[int]) -> None:
                    assert for_part not in closed

                def snapshot(self) -> None:
                    return None

                def close(self) -> None:
                    closed.append(for_part)

            return Part()

    flow = Dataflow("f")
    op.output("o", op.key_on("k", op.input("in", flow, TestingSource(range(50))), str), Closing())
    node = SmallNode(flow, 3, losses=0)
    node.start()
    node.run()
    assert sorted(closed) == ["p", "q"] and len(node.ended) == 2


@pytest.mark.parametrize("key", ["a", "", "\x00", "\x00a", "ü" * 512, "x" * 1024])
def test_keys_go_there_and_back(key: str) -> None:
    assert key_of(address(key)) == key and address(key)


def test_items_are_cut_and_times_are_not_early() -> None:
    many = list(range(100_000))
    payloads = list(pack_items(many))
    assert len(payloads) > 1 and max(map(len, payloads)) <= MESSAGE_BYTES
    assert [n for data in payloads for n in unpack_items(data)] == many
    assert milliseconds(START + timedelta(microseconds=1)) == milliseconds(START) + 1
    assert milliseconds(datetime(1960, 1, 1, tzinfo=timezone.utc)) == 1
