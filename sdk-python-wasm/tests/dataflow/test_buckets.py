"""Keys that share a bucket: each has what it would have alone, whatever is lost, however large it is, whoever else is there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import count, islice
from typing import Any

import pytest
from kept import Values, all_keys
from small_node import START, Call, Ends, SmallNode, Timer, wire

import skep.dataflow.operators as op
from skep.dataflow import Dataflow
from skep.dataflow.buckets import TOLD, Buckets, bucket_of, by_bucket, pack_groups, unpack_groups
from skep.dataflow.connectors.stdio import StdOutSink
from skep.dataflow.limits import BUCKETS, PAGE_BYTES, PAGES_MAX
from skep.dataflow.node import END, NodeStage, unpack_items
from skep.dataflow.plan import plan
from skep.dataflow.stage import group, pack
from skep.dataflow.testing import TestingSource

#: Keys of one bucket.
KEYS = list(islice((key for key in map(str, range(10**9)) if bucket_of(key) == "5"), 300))


def out(s: Any) -> None:
    op.output("out", op.redistribute("results", s), StdOutSink())


def counts(items: list[tuple[str, Any]]) -> Counter[tuple[str, int]]:
    return Counter((key, n + 1) for key, many in Counter(key for key, _ in items).items() for n in range(many))


def run(flow: Dataflow, seed: int, **how: Any) -> SmallNode:
    node = SmallNode(flow, seed, results="results", **how)
    node.start()
    node.run()
    assert not node.failed, node.failed[0]
    return node


def test_a_bucket_is_for_ever() -> None:
    assert [bucket_of(key) for key in ("", "a", "ü", "\ud800", "k" * 5000)] == ["0", "579", "469", "296", "200"]
    many = Counter(bucket_of(f"user-{n}") for n in range(BUCKETS * 20))
    assert len(many) == BUCKETS and max(many.values()) < 80


@pytest.mark.parametrize("seed", range(12))
def test_counts_of_keys_that_share_a_bucket_are_exact(seed: int) -> None:
    chance = random.Random(seed)
    keys = [*KEYS[: chance.choice([2, 30, 300])], "", "\x00", "\ud800", "k" * 3000]
    items = [(chance.choice(keys), n) for n in range(1500)]
    flow = Dataflow("f")
    out(op.stateful_map("count", op.input("in", flow, TestingSource(items, 50)), lambda n, _: ((n or 0) + 1, (n or 0) + 1)))
    node = run(flow, seed, losses=0.4, instances=1 + seed % 3)
    assert Counter(node.out) == counts(items)
    assert all_keys(node.state["count"]) == Counter(key for key, _ in items)


@pytest.mark.parametrize("seed", range(8))
def test_values_of_a_key_keep_their_order(seed: int) -> None:
    chance = random.Random(seed)
    items = [(key, n) for n in range(40) for key in chance.sample(KEYS[:60], 30)]
    flow = Dataflow("f")
    s = op.input("in", flow, TestingSource(items, 70))
    out(op.stateful_map("held", s, lambda held, n: ([*(held or []), n],) * 2))
    node = run(flow, seed, losses=0.4)
    want: dict[str, list[int]] = {}
    for key, n in items:
        want.setdefault(key, []).append(n)
    assert all_keys(node.state["held"]) == want


@pytest.mark.parametrize("seed", range(8))
def test_a_key_that_is_discarded_leaves_nothing_and_its_neighbours_stay(seed: int) -> None:
    chance = random.Random(seed)
    keys = KEYS[: 3 if seed % 2 else 300]
    # At the third value a key is gone.
    items = [(key, n) for n in range(3) for key in chance.sample(keys, len(keys))]
    flow = Dataflow("f")

    def three(n: int | None, _: int) -> Any:
        n = (n or 0) + 1
        return (None if n == 3 else "s" * 100 + str(n)) if n > 2 else n, n

    s = op.input("in", flow, TestingSource(items, 7))
    out(op.stateful_map("three", s, three))
    node = run(flow, seed, losses=0.3)
    assert Counter(node.out) == counts(items)
    assert node.state["three"] == {} and node.timers["three"] == {}


@pytest.mark.parametrize("seed", range(8))
def test_each_key_has_its_own_time(seed: int) -> None:
    """A bucket has one timer: that of its first key."""

    class Late(op.StatefulLogic[int, str, Any]):
        def __init__(self, state: Any) -> None:
            self.due: datetime | None = state

        def on_item(self, value: int) -> Any:
            if value < 0:
                self.due = None
                return ["cancelled"], False
            self.due = START + timedelta(seconds=value)
            return [], False

        def on_notify(self) -> Any:
            assert self.due is not None
            rang.append((self.due, node.now))
            return [f"rang {(self.due - START).seconds}"], True

        def notify_at(self) -> datetime | None:
            return self.due

        def snapshot(self) -> Any:
            return self.due

    chance = random.Random(seed)
    keys = KEYS[:200]
    first = {key: chance.randint(1, 50) for key in keys}
    moved = {key: chance.choice([-1, chance.randint(1, 50)]) for key in chance.sample(keys, 60)}
    rang: list[tuple[datetime, datetime]] = []
    flow = Dataflow("f")
    out(op.stateful("late", op.input("in", flow, TestingSource([*first.items(), *moved.items()], 300)), Late))
    node = SmallNode(flow, seed, results="results", losses=0.4, instances=2, ends=False)
    node.start()
    node.run()
    assert not node.failed
    assert Counter(node.out) == Counter((key, "cancelled" if at < 0 else f"rang {at}") for key, at in (first | moved).items())
    assert all(now >= at for at, now in rang)
    assert set(all_keys(node.state["late"])) == {key for key, at in moved.items() if at < 0} and not node.timers["late"]


@pytest.mark.parametrize("seed", range(6))
def test_state_of_many_large_keys_is_written_in_parts(seed: int) -> None:
    """All that one message changes is more than one input may write: values wait, those of a key in their order."""
    chance = random.Random(seed)
    keys = KEYS[: chance.choice([14, 100])]
    each = 3_600_000 // len(keys)
    items = [(key, n) for n in range(4) for key in keys]
    flow = Dataflow("f")

    def mapper(state: Any, n: int) -> Any:
        assert state is None or (state[0] == n - 1 and state[1] == bytes([n - 1]) * (each - (n - 1) % 2 * each // 2))
        return (n, bytes([n]) * (each - n % 2 * each // 2)), n

    out(op.stateful_map("large", op.input("in", flow, TestingSource(items, 1000)), mapper))
    node = run(flow, seed, losses=0.3)
    assert Counter(node.out) == Counter(items)
    assert {key: state[0] for key, state in all_keys(node.state["large"]).items()} == dict.fromkeys(keys, 3)
    assert not any("rest" in name for _, name in node.state["large"]) and node.timers["large"] == {}


@pytest.mark.parametrize("seed", range(4))
def test_a_call_works_on_no_more_than_a_commit_takes(seed: int) -> None:
    items = [(str(key), n) for n in range(3) for key in range(300)]
    flow = Dataflow("f")
    out(op.stateful_map("large", op.input("in", flow, TestingSource(items, 100)), lambda state, n: ((n, bytes([n]) * 50_000), n)))
    node = run(flow, seed, losses=0.2)
    assert Counter(node.out) == Counter(items)
    assert node.cut > 3 and node.retried["large"] == 0


def one_stage(mapper: Any, **more: Any) -> tuple[NodeStage, Call]:
    flow = Dataflow("f")
    out(op.stateful_flat_map("s", op.input("in", flow, TestingSource([])), mapper))
    whole, call = plan(flow), Call()
    return NodeStage(whole.stages[1], whole, call, Ends(), **more), call


def message(groups: dict[str, list[Any]]) -> Any:
    (data,) = pack_groups(groups, 1 << 20, 1 << 20)
    return wire(data, "5")


def test_what_many_keys_emit_at_once_goes_in_parts() -> None:
    now = [START]
    stage, call = one_stage(lambda state, value: (value, ["x" * 20_000, "y" * 20_000]), now=lambda: now[0])
    call.enter([given := message({key: [1] for key in KEYS[:100]})], {})
    (found,) = stage.process([given])
    got: list[Any] = []
    turns = 0
    while True:
        assert found.how == "done" and sum(len(emit.payload) for emit in found.publish) < 1 << 20
        for emit in found.publish:
            got += [key for key, _ in unpack_items(emit.payload)]
        at = call.steps[0][1].get("next")
        if at is None:
            break
        turns += 1
        now[0] += timedelta(milliseconds=5)
        timer = Timer(wire(b"", "5").value)
        timer.value.name, timer.value.at_ms = "next", at
        call.enter([timer], dict(call.kept))
        (found,) = stage.process([timer])
    assert Counter(got) == Counter(KEYS[:100] * 2) and turns >= 3
    assert all_keys(call.kept) == dict.fromkeys(KEYS[:100], 1)
    # One that does so alone is none to wait for.
    stage, call = one_stage(lambda state, value: (value, [f"{n:03}" * 6_000 for n in range(value)]))
    call.enter([given := message({KEYS[0]: [10], KEYS[1]: [50]})], {})
    (found,) = stage.process([given])
    assert found.how == "done" and "rest.0" in {name for _, name in call.kept}


def test_one_key_that_fails_is_named_and_nothing_of_its_message_is_kept() -> None:
    stage, call = one_stage(lambda state, value: ((state or 0) + 1, [1 // value]))
    inputs = [message({KEYS[0]: [1], KEYS[1]: [1]}), message({KEYS[0]: [1], KEYS[1]: [0], KEYS[2]: [1]}), message({KEYS[0]: [1]})]
    call.enter(inputs, {})
    found = stage.process(inputs)
    assert [one.how for one in found] == ["done", "fail", "done"]
    assert f"for the key {KEYS[1]!r}" in found[1].detail and found[1].reason == "ZeroDivisionError"
    assert call.steps[1] == ({}, {})
    assert all_keys(call.kept) == {KEYS[0]: 2, KEYS[1]: 1}


@pytest.mark.parametrize("payload", [b"", b"\x01\x80\x05]\x94.", b"\x02", b"\x02\x80\x05]\x94.", b"\x03\x80\x05}\x94.", b"\x02\x80\x05"])
def test_a_message_that_is_none(payload: bytes) -> None:
    stage, call = one_stage(lambda state, value: (state, [value]))
    inputs = [wire(payload, "5"), message({KEYS[0]: [1]})]
    call.enter(inputs, {})
    found = stage.process(inputs)
    assert [one.how for one in found] == ["fail", "done"] and call.steps[0] == ({}, {})


def test_state_that_flows_once_kept_by_key_is_refused() -> None:
    stage, call = one_stage(lambda state, value: (state, [value]))
    call.enter([given := message({KEYS[0]: [1]})], {("5", "state"): b"\x01" + bytes(11) + pack(3)})
    (found,) = stage.process([given])
    assert found.how == "fail" and "has version 1 and this skep reads 2" in found.detail and "'f.s'" in found.detail


class Last(op.StatefulLogic[int, Any, Any]):
    """Sums, and says its sum at the end; an even one stays, and so would be told again if anybody did."""

    def __init__(self, state: Any) -> None:
        self.sum, self.ends, self.fill = state or (0, 0, b"")

    def on_item(self, value: Any) -> Any:
        self.sum += value if isinstance(value, int) else len(value)
        self.fill = bytes(1) * value if isinstance(value, int) and value > 1000 else self.fill
        return [], False

    def on_eof(self) -> Any:
        self.ends += 1
        return [(self.sum, self.ends)], bool(self.sum % 2)

    def notify_at(self) -> datetime | None:
        return START + timedelta(days=1000) if self.sum % 3 else None

    def on_notify(self) -> Any:
        return ["rang"], True

    def snapshot(self) -> Any:
        return self.sum, self.ends, self.fill


@pytest.mark.parametrize("seed", range(12))
def test_the_end_of_a_bucket_is_that_of_each_of_its_keys(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skep.dataflow.node.END_BATCH", [1000, 7, 1][seed % 3])
    chance = random.Random(seed)
    keys = KEYS[: chance.choice([2, 40, 300])]
    items = [(chance.choice(keys), n) for n in range(500)]
    flow = Dataflow("f")
    out(op.stateful("last", op.input("in", flow, TestingSource(items, 50)), Last))
    node = run(flow, seed, losses=0.4, instances=1 + seed % 3)
    sums: dict[str, int] = {}
    for key, n in items:
        sums[key] = sums.get(key, 0) + n
    assert Counter(node.out) == Counter((key, (total, 1)) for key, total in sums.items())
    assert all_keys(node.state["last"]) == {key: (total, 1, b"") for key, total in sums.items() if total % 2 == 0}
    assert node.timers["last"] == {} and node.ended == set(node.kinds)


@pytest.mark.parametrize("seed", range(4))
def test_values_that_wait_come_before_the_end_and_large_keys_end_in_parts(seed: int) -> None:
    items = [(key, n) for key in KEYS[:40] for n in (100_000, 2)] + [(key, b"more") for key in KEYS[:40]]
    flow = Dataflow("f")
    out(op.stateful("last", op.input("in", flow, TestingSource(items, 500)), Last))
    node = run(flow, seed, losses=0.3)
    assert Counter(node.out) == Counter((key, (100_006, 1)) for key in KEYS[:40])
    assert {key: ends for key, (_, ends, _) in all_keys(node.state["last"]).items()} == dict.fromkeys(KEYS[:40], 1)
    assert node.timers["last"] == {} and not any("rest" in name for _, name in node.state["last"])


def ending(now: Callable[[], datetime] | None = None) -> tuple[NodeStage, Call]:
    flow = Dataflow("f")
    out(op.stateful("s", op.input("in", flow, TestingSource([])), Last))
    whole, call = plan(flow), Call()
    clock = (START + timedelta(seconds=n) for n in count(1))
    return NodeStage(whole.stages[1], whole, call, Ends(), now=now or (lambda: next(clock))), call


def timer(name: str, at: int = 5) -> Timer:
    due = Timer(wire(b"", "5").value)
    due.value.name, due.value.at_ms = name, at
    return due


def took(stage: NodeStage, call: Call, *inputs: Any) -> list[tuple[str, Any]]:
    """What came out, all of it kept."""
    call.enter(list(inputs), dict(call.kept))
    found = stage.process(list(inputs))
    assert {one.how for one in found} == {"done"}
    return [item for one in found for emit in one.publish for item in unpack_items(emit.payload)]


def test_a_message_makes_its_keys_live_again_and_no_others() -> None:
    stage, call = ending()
    a, b, c = KEYS[:3]
    took(stage, call, message({a: [2], b: [4], c: [6]}))
    assert took(stage, call, timer(END)) == [(key, (n, 1)) for key, n in zip(sorted([a, b, c]), [2, 4, 6])]
    assert call.steps[0][1] == {"next": None}, "they wait for nothing any more"
    # The node keeps it from whoever was told; a bucket that got a message is told once more.
    assert took(stage, call, timer(END)) == []
    assert took(stage, call, message({b: [2]})) == []
    assert took(stage, call, timer(END)) == [(b, (6, 2))]


def test_a_message_stops_an_end_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skep.dataflow.node.END_BATCH", 1)
    stage, call = ending()
    a, b, c = sorted(KEYS[:3])
    took(stage, call, message({a: [2], b: [4], c: [6]}))
    assert took(stage, call, timer(END)) == [(a, (2, 1))]
    at = call.steps[0][1]["next"]
    assert at is not None
    # In one batch with what would have gone on.
    assert took(stage, call, message({a: [4], b: [4]}), timer("next", at)) == []
    assert took(stage, call, timer("next", at)) == []
    told, due = took(stage, call, timer(END)), call.steps[0][1]["next"]
    while due is not None:
        told += took(stage, call, timer("next", due))
        due = call.steps[0][1].get("next")
    assert told == [(a, (6, 2)), (b, (8, 1)), (c, (6, 1))]


def test_a_message_in_an_end_that_goes_on_sets_keys_their_time_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skep.dataflow.node.END_BATCH", 1)
    now = [START + timedelta(seconds=1)]
    stage, call = ending(lambda: now[0])
    a, b = sorted(KEYS[:2])
    took(stage, call, message({a: [2], b: [6]}))
    assert took(stage, call, timer(END)) == [(a, (2, 1))]
    took(stage, call, message({a: [2]}))
    due = call.steps[0][1]["next"]
    assert due is not None
    now[0] = START + timedelta(days=1000)
    assert took(stage, call, timer("next", due)) == [(a, "rang")]
    assert took(stage, call, timer(END)) == [(b, (6, 1))]


def test_a_key_whose_end_fails_is_named_and_all_of_its_bucket_are_told_again() -> None:
    flow = Dataflow("f")
    broken = [True]

    class Broken(Last):
        def on_eof(self) -> Any:
            if broken[0] and self.sum == 4:
                raise OSError("away")
            return super().on_eof()

    out(op.stateful("s", op.input("in", flow, TestingSource([])), Broken))
    whole, call = plan(flow), Call()
    stage = NodeStage(whole.stages[1], whole, call, Ends())
    a, b = sorted(KEYS[:2])
    took(stage, call, message({a: [2], b: [4]}))
    call.enter([due := timer(END)], dict(call.kept))
    (found,) = stage.process([due])
    assert found.how == "fail" and f"on_eof for the key {b!r}" in found.detail and call.steps == [({}, {})]
    broken[0] = False
    assert took(stage, call, timer(END)) == [(a, (2, 1)), (b, (4, 1))]


@pytest.mark.parametrize("seed", range(20))
def test_pages_are_a_dictionary(seed: int) -> None:
    """Against one, with instances whose memory is behind, and writes that are lost."""
    chance = random.Random(seed)
    store: dict[str, dict[str, bytes]] = {}
    truth: dict[str, dict[str, tuple[bytes, int]]] = {}
    values = Values({})
    live: list[dict[str, bytes]] = [{}, {}]
    places = [Buckets(values, lambda key, held=held: held.pop(key, None)) for held in live]  # type: ignore[misc]
    sizes = [3, 100, 5_000, 20_000, 300_000] if seed % 4 == 0 else [3, 60, 2_000]
    grown = 0
    for _ in range(150):
        which = chance.randrange(2)
        place, held, name = places[which], live[which], chance.choice("xy")
        values.values = dict(store.get(name, {}))
        want = dict(truth.get(name, {}))
        place.begin(name)
        assert place.keys() == sorted(want)
        put = size = 0
        for key in chance.sample(KEYS[:150] if name == "x" else KEYS[150:], chance.randint(1, 60)):
            place.dues([key])
            assert place.load(key) == want.get(key, (None,))[0]
            # A logic that is held is what is kept.
            assert key not in held or held[key] == want[key][0]
            length = chance.choice(sizes)
            if size + length > 3_000_000 or chance.random() < 0.3:
                place.put(key, None, 0)
                want.pop(key, None)
                held.pop(key, None)
                continue
            new = (chance.randbytes(length) if chance.random() < 0.8 else want.get(key, (b"same",))[0], chance.choice([0, 5, 7, TOLD]))
            size += len(new[0])
            place.put(key, *new)
            want[key], held[key] = new, new[0]
            put += 1
        if chance.random() < 0.2:
            place.drop()
            continue
        wrote = dict(values.values)
        about = place.settle()
        place.write(place.first_due())
        changed = sum(len(value) for at, value in values.values.items() if wrote.get(at) != value)
        assert changed <= about + 12 * PAGES_MAX + 32
        assert place.first_due() == min((due for _, due in want.values() if due > 0), default=0)
        assert bool(values.values) == bool(want)
        assert place.untold() == sorted(key for key, (_, due) in want.items() if due != TOLD)
        grown = max(grown, len([at for at in values.values if at.startswith("page.")]))
        place.slim(chance.choice([0, 50_000, 1_000_000]))
        assert place._held_keys == sum(len(page.states) for page in place._held.values())
        assert place._held_bytes == sum(len(page.raw) for page in place._held.values())
        if chance.random() < 0.8:
            store[name], truth[name] = values.values, want
    assert grown > 4 or seed % 4 == 0
    for name, want in truth.items():
        values.values = store[name]
        other = Buckets(values, lambda key: None)
        other.begin(name)
        assert {key: other.load(key) for key in other.keys()} == {key: state for key, (state, _) in want.items()}
        assert sorted(other.due(6)) == sorted(key for key, (_, due) in want.items() if 0 < due <= 6)


def test_a_page_is_all_that_a_key_costs() -> None:
    values = Values({})
    place = Buckets(values, lambda key: None)
    for turn in range(6):
        place.begin("5")
        for key in KEYS[turn * 50 : turn * 50 + 50]:
            place.put(key, bytes(1_000), 0)
        place.settle()
        place.write(0)
    before = dict(values.values)
    place.begin("5")
    place.put(KEYS[0], b"new", 0)
    assert place.settle() < 3 * PAGE_BYTES
    place.write(0)
    assert len([name for name, value in values.values.items() if before.get(name) != value]) == 2


def test_payloads_are_cut_and_groups_are_whole() -> None:
    groups = group(plan_entry(), [(key, n) for n in range(200) for key in KEYS])
    parts = by_bucket(groups)
    assert list(parts) == ["5"]
    payloads = pack_groups(parts["5"], 64 << 10, 256 << 10)
    assert len(payloads) > 1 and max(map(len, payloads)) <= 64 << 10
    got: dict[str, list[int]] = {}
    for data in payloads:
        for key, some in unpack_groups(data).items():
            got.setdefault(key, []).extend(some)
    assert got == dict.fromkeys(KEYS, list(range(200)))
    with pytest.raises(ValueError, match="an item has 3000"):
        pack_groups({"a": [bytes(300_000)], "b": [1]}, 64 << 10, 256 << 10)


def plan_entry() -> Any:
    flow = Dataflow("f")
    out(op.stateful_map("s", op.input("in", flow, TestingSource([])), lambda s, v: (s, v)))
    return plan(flow).stages[1].entry
