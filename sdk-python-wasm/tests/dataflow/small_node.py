"""What a node is to a flow's stages, in memory: inboxes, state and timers by key, instances that any batch may come to, and commits that happen,
happen in part, or are lost; and the end of streams, which it finds and tells as a node does.

The rules are those of the platform that stages rely on: an input acts on its own key; reads see own writes; what was not committed did not
happen and comes again; a timer of a name is replaced by the next; inputs of a key keep their order.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

from skep.dataflow import Dataflow
from skep.dataflow.deploy import deployment
from skep.dataflow.names import stage_names
from skep.dataflow.node import END, NodeStage, unpack_items
from skep.dataflow.plan import Kind, plan

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass
class One:
    """A message."""

    value: Any


@dataclass
class Timer:
    """One that fired."""

    value: Any


@dataclass
class Ended:
    """An outcome."""

    how: str
    publish: list[Any] = field(default_factory=list)
    respond: list[bytes] = field(default_factory=list)
    #: Of a failure: its reason and detail.
    reason: str = ""
    detail: str = ""


class Ends:
    one = One
    timer = Timer

    def done(self, publish: list[Any], respond: list[Any]) -> Ended:
        return Ended("done", publish, respond)

    def retry(self, after_ms: int) -> Ended:
        return Ended("retry")

    def reject(self, reason: str) -> Ended:
        return Ended("reject", reason=reason)

    def fail(self, found: Any, error: BaseException | None) -> Ended:
        return Ended("fail", reason=found.reason, detail=found.detail)


class Call:
    """The node as one call of an instance sees it. An index that is not the next, or a key that is not the input's, is an error."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.kept: dict[tuple[str, str], bytes] = {}
        self.current: int | None = None
        self.steps: list[tuple[dict[str, bytes | None], dict[str, int | None]]] = []
        self.abandoned: set[int] = set()

    def enter(self, inputs: list[Any], kept: dict[tuple[str, str], bytes]) -> None:
        self.inputs, self.kept, self.current = inputs, dict(kept), None
        self.steps = [({}, {}) for _ in inputs]
        self.before: list[dict[str, bytes | None]] = [{} for _ in inputs]

    @property
    def key(self) -> str:
        assert self.current is not None
        found: str = self.inputs[self.current].value.key
        return found

    def begin(self, index: int, message: Any) -> None:
        assert self.current is None or index > self.current
        assert self.inputs[index].value is message
        self.current = index
        # A call that writes more is ended.
        assert sum(len(value) for writes, _ in self.steps for value in writes.values() if value is not None) <= 4 << 20

    def abandon(self, index: int) -> None:
        assert self.current == index
        for name, value in self.before[index].items():
            if value is None:
                self.kept.pop((self.key, name), None)
            else:
                self.kept[self.key, name] = value
        self.steps[index] = ({}, {})

    def state_get(self, name: str) -> bytes | None:
        return self.kept.get((self.key, name))

    def _write(self, name: str, value: bytes | None) -> None:
        assert self.current is not None
        self.before[self.current].setdefault(name, self.kept.get((self.key, name)))
        self.steps[self.current][0][name] = value
        if value is None:
            self.kept.pop((self.key, name), None)
        else:
            assert len(value) <= 256 << 10
            self.kept[self.key, name] = value

    def state_put(self, name: str, value: bytes) -> None:
        self._write(name, value)

    def state_delete(self, name: str) -> None:
        self._write(name, None)

    def timer_set(self, name: str, at_ms: int) -> None:
        assert self.current is not None and at_ms > 0
        self.steps[self.current][1][name] = at_ms

    def timer_cancel(self, name: str) -> None:
        assert self.current is not None
        self.steps[self.current][1][name] = None

    @staticmethod
    def emit(payload: Any, data: bytes, to: str | None, key: str | None, headers: Any) -> Any:
        return SimpleNamespace(to=to, key=key, payload=data, headers=headers)


class SmallNode:
    """One run of a flow. ``results``: the label of a stage that is not run: what is sent there is what came out. Without ``ends`` no stream is known
    to have ended, as where another partition goes on."""

    def __init__(self, flow: Dataflow, seed: int, *, instances: int = 2, losses: float = 0.2, results: str | None = None, ends: bool = True) -> None:
        self.flow = flow
        self.ends = ends
        self.plan = plan(flow)
        self.names = stage_names(self.plan)
        self.kinds = {self.names[stage.name]: stage.kind for stage in self.plan.stages}
        self.random = random.Random(seed)
        self.losses = losses
        self.results = results
        self.out: list[Any] = []
        self.now = START
        self.inbox: dict[str, list[Any]] = {name: [] for name in self.kinds}
        self.state: dict[str, dict[tuple[str, str], bytes]] = {name: {} for name in self.kinds}
        #: By stage, then key and name: when it is due, and which attempt that is.
        self.timers: dict[str, dict[tuple[str, str], tuple[int, int]]] = {name: {} for name in self.kinds}
        #: What each stage says of its end: the keys that do, or whether its keys are told.
        self.says: dict[str, Any] = {}
        for part in deployment(flow).manifest.split("\n  - name: ")[1:]:
            lines = dict(line.strip().split(": ", 1) for line in part.splitlines()[1:])
            self.says[part.splitlines()[0]] = json.loads(lines["ends"]) if "ends" in lines else None
        self.ended: set[str] = set()
        self.failed: list[tuple[str, Ended]] = []
        self.answers: list[bytes] = []
        self.done: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        #: Commits that did not take all that was worked on.
        self.cut = 0
        self.instances: dict[str, list[tuple[NodeStage, Call]]] = {}
        for stage in self.plan.stages:
            made = self.instances[self.names[stage.name]] = []
            for _ in range(instances):
                call = Call()
                made.append((NodeStage(stage, self.plan, call, Ends(), now=lambda: self.now), call))

    def start(self) -> None:
        """As deploy does."""
        made = deployment(self.flow)
        by_subject = {f"{made.name}-{name}": name for name in self.kinds}
        for subject, key in made.starts:
            self.send(by_subject[subject], b"start", key)

    def send(self, to: str, payload: bytes, key: str | None = None) -> None:
        if to == self.results:
            self.out.extend(unpack_items(payload))
        else:
            self.inbox[to].append(One(SimpleNamespace(key=key, payload=payload, headers=[], uid=bytes(16), accepted_ms=1, attempt=1)))

    def run(self, turns: int = 100_000) -> None:
        """Until nothing is to be done, as long as that takes: time goes on to the next timer where nothing else is left."""
        for _ in range(turns):
            if not self.turn():
                return
        raise AssertionError("it does not end")

    def turn(self) -> bool:
        due = [name for name, timers in self.timers.items() if any(at <= self._ms() for at, _ in timers.values())]
        ready = sorted({name for name, inbox in self.inbox.items() if inbox} | set(due))
        if (not ready or self.random.random() < 0.2) and self.look():
            return True
        if not ready:
            coming = [at for timers in self.timers.values() for at, _ in timers.values()]
            if not coming:
                return False
            self.now = _EPOCH + timedelta(milliseconds=min(coming))
            return True
        self._batch(self.random.choice(ready))
        return True

    def look(self) -> bool:
        """As a node looks for ends. Whether anything was found."""
        found = False
        for stage in self.plan.stages if self.ends else ():
            name = self.names[stage.name]
            says, state, failed = self.says[name], self.state[name], any(at == name for at, _ in self.failed)
            if name in self.ended or self.inbox[name] or failed:
                continue
            if isinstance(says, list):
                over = all((key, END) in state for key in says)
            else:
                above = {self.names[up] for up in self.plan.upstreams(stage.name)}
                over = bool(above) and above <= self.ended
            if not over:
                continue
            keys = {key for key, at in state if (key, END) not in state}
            if says is True and keys:
                # Some of them now: the list is cut into pages, and whoever goes through it may die.
                for key in self.random.sample(sorted(keys), self.random.randint(1, len(keys))):
                    if (key, END) not in self.timers[name]:
                        self.timers[name][key, END] = (self._ms(), 1)
                        found = True
            elif not self.timers[name]:
                self.ended.add(name)
                found = True
        return found

    def _ms(self) -> int:
        return (self.now - _EPOCH) // timedelta(milliseconds=1)

    def _batch(self, name: str) -> None:
        fired: list[Any] = [
            Timer(SimpleNamespace(key=key, name=of, at_ms=at, attempt=attempt, uid=bytes(16)))
            for (key, of), (at, attempt) in self.timers[name].items()
            if at <= self._ms()
        ]
        inputs: list[Any] = [*fired, *self.inbox[name]]
        inputs = inputs[: self.random.randint(1, len(inputs))]
        stage, call = self.random.choice(self.instances[name])
        call.enter(inputs, self.state[name])
        outcomes = stage.process(inputs)
        assert len(outcomes) == len(inputs)
        for outcome, (writes, timers) in zip(outcomes, call.steps):
            assert outcome.how == "done" or not (writes or timers)
        if self.random.random() < self.losses:
            # The node is killed, or another has the partition: nothing of it, or the beginning.
            inputs = inputs[: self.random.randint(0, len(inputs) - 1)]
        held: set[str | None] = set()
        left: list[Any] = []
        size = 0
        for index, (given, outcome, (writes, timers)) in enumerate(zip(inputs, outcomes, call.steps)):
            size += sum(len(emit.payload) + 64 for emit in outcome.publish) + sum(map(len, outcome.respond))
            size += sum(len(value) for value in writes.values() if value is not None)
            if size > 2 << 20 and index:
                # A commit takes no more; what is behind it comes again.
                inputs = inputs[:index]
                self.cut += 1
                break
            self._commit(name, given, outcome, writes, timers, held, left)
        taken = sum(isinstance(given, One) for given in inputs)
        self.inbox[name][:taken] = left

    def _commit(
        self,
        name: str,
        given: Any,
        outcome: Ended,
        writes: dict[str, bytes | None],
        timers: dict[str, int | None],
        held: set[str | None],
        left: list[Any],
    ) -> None:
        value = given.value
        if value.key in held and value.key is not None:
            # Behind one that waits for a retry: discarded, and it comes again.
            if isinstance(given, One):
                left.append(given)
            return
        self.retried[name] += outcome.how == "retry"
        if outcome.how == "retry" or (outcome.how == "fail" and value.attempt < 3):
            held.add(value.key)
            if isinstance(given, One):
                value.attempt += 1
                left.append(given)
            else:
                self.timers[name][value.key, value.name] = (value.at_ms, value.attempt + 1)
            return
        if isinstance(given, Timer) and self.timers[name].get((value.key, value.name), (None,))[0] == value.at_ms:
            del self.timers[name][value.key, value.name]
        if outcome.how != "done":
            self.failed.append((name, outcome))
            return
        self.done[name] += 1
        for at, state in writes.items():
            if state is None:
                self.state[name].pop((value.key, at), None)
            else:
                self.state[name][value.key, at] = state
        for of, due in timers.items():
            self.timers[name].pop((value.key, of), None)
            if due is not None:
                self.timers[name][value.key, of] = (due, 1)
        if self.says[name] is True:
            left = any(key == value.key and at != END for key, at in self.state[name])
            told = isinstance(given, Timer) and value.name == END
            if told and left:
                self.state[name][value.key, END] = b"1"
            elif told or isinstance(given, One):
                self.state[name].pop((value.key, END), None)
        self.answers.extend(outcome.respond)
        for emit in outcome.publish:
            assert (self.kinds[emit.to] is Kind.SPREAD) == (emit.key is None)
            assert len(emit.payload) <= 256 << 10
            self.send(emit.to, emit.payload, emit.key)


def wire(payload: bytes, key: str | None = None) -> One:
    """A message from outside."""
    return One(SimpleNamespace(key=key, payload=payload, headers=[], uid=bytes(16), accepted_ms=1, attempt=1))


def results(flow: Dataflow, seed: int, **how: Any) -> Iterable[Any]:
    """Runs a flow that ends in ``redistribute("results")``, and gives what came there."""
    node = SmallNode(flow, seed, results="results", **how)
    node.start()
    node.run()
    assert not node.failed, node.failed
    return node.out
