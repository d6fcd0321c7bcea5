"""Each operator: what it gives for what."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from flows import collect, flow_of

import skep.dataflow.operators as op
from skep.dataflow import Dataflow, KeyedStream, Stream, operator
from skep.dataflow.local import Runner
from skep.dataflow.operators.helpers import map_dict_value
from skep.dataflow.testing import TestingSink, TestingSource, TimeTestingGetter, run_main

PAUSE = TestingSource.PAUSE
LONG = timedelta(days=1)


def keyed(s: Stream[Any]) -> KeyedStream[Any]:
    return op.key_on("key", s, lambda x: str(x)[0])


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
@pytest.mark.parametrize(
    ("build", "items", "want"),
    [
        (lambda s: op.map("x", s, lambda x: x + 1), [1, 2], [2, 3]),
        (lambda s: op.map_value("x", s, lambda x: x + 1), [("a", 1)], [("a", 2)]),
        (lambda s: op.flat_map("x", s, lambda x: range(x)), [0, 2, 1], [0, 1, 0]),
        (lambda s: op.flat_map_value("x", s, lambda x: "." * x), [("a", 0), ("b", 2)], [("b", "."), ("b", ".")]),
        (lambda s: op.flat_map_batch("x", s, lambda xs: (x for x in xs if x)), [0, 1], [1]),
        (lambda s: op.flatten("x", s), ["ab", (1,), [], {2: 3}], ["a", "b", 1, 2]),
        (lambda s: op.filter("x", s, lambda x: x > 1), [1, 2, 3], [2, 3]),
        (lambda s: op.filter_value("x", s, lambda x: x > 1), [("a", 1), ("b", 2)], [("b", 2)]),
        (lambda s: op.filter_map("x", s, lambda x: x - 1 if x else None), [0, 1, 2], [0, 1]),
        (lambda s: op.filter_map_value("x", s, lambda x: x or None), [("a", 0), ("b", 2)], [("b", 2)]),
        (lambda s: op.key_on("x", s, str), [1, 2], [("1", 1), ("2", 2)]),
        (lambda s: op.key_rm("x", s), [("a", 1)], [1]),
        (lambda s: op.map("x", s, map_dict_value("n", str)), [{"n": 1, "m": 2}], [{"n": "1", "m": 2}]),
        (lambda s: op.redistribute("x", s), [1, 2, 3], [1, 2, 3]),
        (lambda s: op.inspect("x", s, lambda i, x: None), [1], [1]),
        (lambda s: op.inspect_debug("x", s, lambda i, x, e, w: None), [1], [1]),
        (lambda s: op.branch("x", s, lambda x: x > 1).trues, [1, 2], [2]),
        (lambda s: op.branch("x", s, lambda x: x > 1).falses, [1, 2], [1]),
        (lambda s: op.count_final("x", s, lambda x: x), ["a", "b", "a"], [("a", 2), ("b", 1)]),
        (lambda s: op.max_final("x", s), [("a", 1), ("a", 3), ("a", 2)], [("a", 3)]),
        (lambda s: op.min_final("x", s, by=lambda x: -x), [("a", 1), ("a", 3)], [("a", 3)]),
        (lambda s: op.max_final("x", s, by=len), [("a", "one"), ("a", "two")], [("a", "one")]),
        (lambda s: op.min_final("x", s, by=len), [("a", "one"), ("a", "two")], [("a", "one")]),
        (lambda s: op.reduce_final("x", s, lambda x, y: x - y), [("a", 5), ("a", 1), ("a", 2)], [("a", 2)]),
        (lambda s: op.fold_final("x", s, list, lambda a, x: [*a, x]), [("a", 1), ("a", 2)], [("a", [1, 2])]),
        (lambda s: op.stateful_map("x", s, lambda st, x: ((st or 0) + x,) * 2), [("a", 1), ("b", 5), ("a", 2)], [("a", 1), ("b", 5), ("a", 3)]),
        # None drops the state: the next value finds none.
        (lambda s: op.stateful_map("x", s, lambda st, x: (x or None, st)), [("a", 1), ("a", 0), ("a", 2)], [("a", None), ("a", 1), ("a", None)]),
        (lambda s: op.stateful_flat_map("x", s, lambda st, x: (x, [st] * x)), [("a", 1), ("a", 2)], [("a", None), ("a", 1), ("a", 1)]),
        (lambda s: op.collect("x", s, LONG, 2), [("a", 1), ("b", 9), ("a", 2), ("a", 3)], [("a", [1, 2]), ("a", [3]), ("b", [9])]),
    ],
)
def test_an_operator_alone(build: Any, items: list[Any], want: list[Any], batch_size: int) -> None:
    assert sorted(collect(build, items, batch_size=batch_size), key=repr) == sorted(want, key=repr)


def test_merge_takes_from_all_and_from_one_twice() -> None:
    flow, out = Dataflow("f"), []
    a, b = op.input("a", flow, TestingSource([1, 2])), op.input("b", flow, TestingSource([10, 20]))
    op.output("out", op.merge("m", a, b, a), TestingSink(out))
    run_main(flow)
    assert sorted(out) == [1, 1, 2, 2, 10, 20]


def test_a_batch_that_goes_two_ways_is_not_shared() -> None:
    def spoil(xs: list[int]) -> list[int]:
        xs.clear()
        return []

    def build(s: Stream[int]) -> Stream[int]:
        op.flat_map_batch("spoil", s, spoil)
        left = op.map("left", s, lambda x: x)
        op.flat_map_batch("spoil2", s, spoil)
        return left

    assert collect(build, range(5), batch_size=5) == [0, 1, 2, 3, 4]


def test_inspectors_see_step_epoch_and_worker(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    flow, _ = flow_of(lambda s: op.inspect_debug("i", s, lambda *a: seen.append(a)), [5, 6])
    Runner(flow, epoch_interval=timedelta(0)).run()
    assert seen == [("f.i", 5, 1, 0), ("f.i", 6, 2, 0)]
    collect(lambda s: op.inspect("i", s), ["x"])
    assert capsys.readouterr().out == "f.i: 'x'\n"


class Log(op.StatefulBatchLogic[Any, Any, Any]):
    """Emits the name of each call."""

    def __init__(self, state: Any, due: datetime | None = None, discard: str = "") -> None:
        self.due = due
        self.discard = discard

    def on_batch(self, values: list[Any]) -> Any:
        return [("batch", values)], self.discard == "batch"

    def on_notify(self) -> Any:
        self.due = None
        return ["notify"], self.discard == "notify"

    def on_eof(self) -> Any:
        return ["eof"], self.discard == "eof"

    def notify_at(self) -> datetime | None:
        return self.due

    def snapshot(self) -> Any:
        return None


def test_a_logic_gets_all_values_of_a_batch_and_the_end() -> None:
    out = collect(lambda s: op.stateful_batch("x", keyed(s), Log), ["a1", "b1", "a2"], batch_size=3)
    assert out == [("a", ("batch", ["a1", "a2"])), ("b", ("batch", ["b1"])), ("a", "eof"), ("b", "eof")]


def test_a_timer_comes_once_its_time_has_come_and_not_after_the_end() -> None:
    soon = datetime.now(timezone.utc) + timedelta(milliseconds=30)
    items = ["a1", PAUSE(timedelta(milliseconds=60)), "a2"]
    out = collect(lambda s: op.stateful_batch("x", keyed(s), lambda st: Log(st, soon)), items)
    assert [value for _, value in out] == [("batch", ["a1"]), "notify", ("batch", ["a2"]), "eof"]
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    out = collect(lambda s: op.stateful_batch("x", keyed(s), lambda st: Log(st, later)), ["a1"])
    assert [value for _, value in out] == [("batch", ["a1"]), "eof"]


def test_a_timer_for_now_comes_before_the_next_value() -> None:
    class Now(Log):
        def on_batch(self, values: list[Any]) -> Any:
            self.due = datetime.now(timezone.utc)
            return [("batch", values)], False

    out = collect(lambda s: op.stateful_batch("x", keyed(s), Now), ["a1", "a2"])
    assert [value for _, value in out] == [("batch", ["a1"]), "notify", ("batch", ["a2"]), "notify", "eof"]


@pytest.mark.parametrize(
    ("discard", "want"),
    [
        ("batch", [("batch", ["a1"]), ("batch", ["a2"])]),
        ("notify", [("batch", ["a1"]), "notify", ("batch", ["a2"]), "notify"]),
        ("eof", [("batch", ["a1"]), "notify", ("batch", ["a2"]), "eof"]),
    ],
)
def test_what_is_discarded_is_built_anew(discard: str, want: list[Any]) -> None:
    built: list[Any] = []

    def build(state: Any) -> Log:
        built.append(state)
        return Log(state, datetime.now(timezone.utc) - timedelta(seconds=1), discard)

    items = ["a1", PAUSE(timedelta(milliseconds=20)), "a2", PAUSE(timedelta(milliseconds=20))]
    out = collect(lambda s: op.stateful_batch("x", keyed(s), build), items)
    assert [value for _, value in out] == want
    assert len(built) == (1 if discard == "eof" else 2)


def test_stateful_discards_in_the_middle_of_a_batch() -> None:
    class Two(op.StatefulLogic[str, Any, int]):
        def __init__(self, state: int | None) -> None:
            self.n = state or 0

        def on_item(self, value: str) -> Any:
            self.n += 1
            return [(self.n, value)], self.n == 2

        def on_eof(self) -> Any:
            return ["eof"], self.DISCARD

        def snapshot(self) -> int:
            return self.n

    out = collect(lambda s: op.stateful("x", keyed(s), Two), ["a1", "a2", "a3", "a4", "a5"], batch_size=5)
    assert [value for _, value in out] == [(1, "a1"), (2, "a2"), (1, "a3"), (2, "a4"), (1, "a5"), "eof"]


def test_a_stream_ends_when_its_own_sources_do() -> None:
    flow, out = Dataflow("f"), []
    short = op.count_final("count", op.input("short", flow, TestingSource("ab")), lambda x: "n")
    long = op.input("long", flow, TestingSource([1, PAUSE(timedelta(milliseconds=50)), 2]))
    both = op.reduce_final("both", op.key_on("k", op.merge("m", op.key_rm("rm", short), long), lambda x: "n"), lambda x, y: x + y)
    op.output("out", op.merge("all", short, long, both), TestingSink(out))
    run_main(flow)
    # Not before all that it takes from has ended: the sum of everything is last.
    assert out == [1, ("n", 2), 2, ("n", 5)]


def test_collect_waits_from_the_last_value_on() -> None:
    short = PAUSE(timedelta(milliseconds=40))
    items = ["a1", short, "a2", PAUSE(timedelta(milliseconds=200)), "a3"]
    out = collect(lambda s: op.collect("x", keyed(s), timedelta(milliseconds=80), 10), items)
    assert [value for _, value in out] == [["a1", "a2"], ["a3"]]


L1, L2, L4, R3, R6 = ("l", 1), ("l", 2), ("l", 4), ("r", 3), ("r", 6)
#: As Bytewax 0.21.1 gave them for 1, 2 (left), 3 (right), 4 (left), 6, 6 (right).
JOINS = {
    ("first", "complete"): [(L1, R3), (L4, R6)],
    ("first", "final"): [(L1, R3)],
    ("first", "running"): [(L1, None), (L1, None), (L1, R3), (L1, R3), (L1, R3), (L1, R3)],
    ("last", "complete"): [(L2, R3), (L4, R6)],
    ("last", "final"): [(L4, R6)],
    ("last", "running"): [(L1, None), (L2, None), (L2, R3), (L4, R3), (L4, R6), (L4, R6)],
    ("product", "complete"): [(L1, R3), (L2, R3), (L4, R6)],
    ("product", "final"): [(L1, R3), (L1, R6), (L1, R6), (L2, R3), (L2, R6), (L2, R6), (L4, R3), (L4, R6), (L4, R6)],
}


@pytest.mark.parametrize(("insert", "emit"), JOINS)
def test_join(insert: Any, emit: Any) -> None:
    def build(s: Stream[Any]) -> Stream[Any]:
        k = op.key_on("k", s, lambda x: "a")
        sides = op.branch("side", k, lambda kv: kv[1][0] == "l")
        return op.join("j", sides.trues, sides.falses, insert_mode=insert, emit_mode=emit)

    assert collect(build, [L1, L2, R3, L4, R6, R6]) == [("a", row) for row in JOINS[insert, emit]]


def test_join_running_with_product_repeats_all_rows() -> None:
    def build(s: Stream[Any]) -> Stream[Any]:
        k = op.key_on("k", s, lambda x: "a")
        sides = op.branch("side", k, lambda kv: kv[1][0] == "l")
        return op.join("j", sides.trues, sides.falses, insert_mode="product", emit_mode="running")

    out = [row for _, row in collect(build, [L1, L2, R3, R6])]
    assert out == [(L1, None), (L1, None), (L2, None), (L1, R3), (L2, R3), (L1, R3), (L1, R6), (L2, R3), (L2, R6)]


def test_join_of_one_and_of_three_sides() -> None:
    assert collect(lambda s: op.join("j", s), [("a", 1)]) == [("a", (1,))]
    out = collect(lambda s: op.join("j", s, op.map_value("m", s, str), op.map_value("n", s, float)), [("a", 1)])
    assert out == [("a", (1, "1", 1.0))]


def test_enrich_cached_asks_once_until_it_is_too_old() -> None:
    clock = TimeTestingGetter(datetime(2024, 1, 1, tzinfo=timezone.utc))
    asked: list[str] = []

    def ask(key: str) -> str:
        asked.append(key)
        return key.upper()

    def look(cache: op.TTLCache[str, str], item: str) -> str:
        clock.advance(timedelta(seconds=4))
        if item == "forget":
            cache.remove("a")
            cache.remove("never")
            return "-"
        return cache.get(item)

    out = collect(lambda s: op.enrich_cached("x", s, ask, look, timedelta(seconds=10), clock.get), ["a", "a", "b", "a", "forget", "a"])
    assert out == ["A", "A", "B", "A", "-", "A"]
    assert asked == ["a", "b", "a", "a"]


def test_raises_stops_at_the_first_item() -> None:
    assert collect(lambda s: op.raises("x", s), []) == []
    with pytest.raises(RuntimeError, match="step 'f.x' .*lets no item through; got 7"):
        collect(lambda s: op.raises("x", s), [7])


def test_operators_of_ones_own_nest_and_chain() -> None:
    @operator
    def twice(step_id: str, up: Stream[int], n: int = 2) -> Stream[int]:
        assert step_id.endswith(("one", "two"))
        return op.map("times", up, lambda x: x * n)

    @operator
    def four(step_id: str, up: Stream[int]) -> Stream[int]:
        # A stream from outside, which it was not given, is as good as any.
        return up.then(twice, "one").then(twice, "two")

    flow, out = flow_of(lambda s: s.then(four, "x").then(op.filter, "big", lambda x: x > 4), [1, 2, 3])
    run_main(flow)
    assert out == [8, 12]
    assert [leaf.step_id for leaf in flow.leaves()] == [
        "f.in",
        "f.x.one.times.flat_map_batch",
        "f.x.two.times.flat_map_batch",
        "f.big.flat_map_batch",
        "f.out",
    ]


def test_a_long_chain_is_no_deep_stack() -> None:
    def build(s: Stream[int]) -> Stream[int]:
        for i in range(2_000):
            s = op.map(f"m{i}", s, lambda x: x + 1)
        return s

    assert collect(build, [0]) == [2_000]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_workers_order_and_isolation_change_no_result(workers: int, seed: int | None) -> None:
    def build(s: Stream[int]) -> Stream[Any]:
        spread = op.redistribute("r", s)
        k = op.key_on("k", spread, lambda x: str(x % 7))
        counted = op.stateful_map("c", k, lambda st, x: ((st or 0) + x,) * 2)
        high = op.max_final("max", counted)
        return op.merge("m", high, op.count_final("n", s, lambda x: str(x % 3)))

    want = sorted([(str(r), sum(x for x in range(100) if x % 7 == r)) for r in range(7)] + [("0", 34), ("1", 33), ("2", 33)])
    for isolated in (False, True):
        assert sorted(collect(build, range(100), batch_size=9, workers=workers, seed=seed, isolated=isolated)) == want


def test_the_same_seed_gives_the_same_order() -> None:
    def run(seed: int) -> list[Any]:
        return collect(lambda s: op.key_on("k2", op.redistribute("r", s), str), range(50), batch_size=10, workers=4, seed=seed)

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert sorted(run(1)) == sorted(run(2))
