"""A small engine beside the in-process runner: it knows a flow by its plan alone, and stages by :func:`skep.dataflow.stage.process`.

It does what a platform does with them: each input is taken by a stage that holds nothing in memory, state is bytes by stage and key, each key
has one timer, what goes from stage to stage is pickled, and the end of the stream comes to each key that has state.
"""

from __future__ import annotations

import pickle
import random
from collections import deque
from datetime import datetime, timezone
from typing import Any

from skep.dataflow import Dataflow
from skep.dataflow.plan import manifest, plan
from skep.dataflow.stage import Due, End, Input, Items, Outcome, Start, StepError, process

START = datetime(2024, 1, 1, tzinfo=timezone.utc)


class Apart:
    """One run of a flow. ``seed`` chooses which key goes on next, and how many of its inputs come in one batch. ``ends``: whether the end of the
    stream comes to keys."""

    def __init__(self, flow: Dataflow, seed: int, workers: int = 3, *, ends: bool = True) -> None:
        self.ends = ends
        self.stages = {stage.name: stage for stage in plan(flow).stages}
        self.about = {stage["name"]: stage for stage in manifest(flow)["stages"]}
        self.random = random.Random(seed)
        self.workers = workers
        self.now = START
        self.state: dict[tuple[str, str], bytes] = {}
        self.timers: dict[tuple[str, str], datetime] = {}
        self.inbox: dict[tuple[str, str | None], deque[bytes]] = {}
        #: Keys of a source that have not ended.
        self.reading: dict[str, set[str]] = {}

    def run(self) -> None:
        for name, stage in self.about.items():
            if stage["starts"]:
                self.reading[name] = set()
                self.step(name, [Start()])
        ended: set[str] = set()
        while self.inbox or len(ended) < len(self.stages):
            while self.inbox:
                self.one()
            due = sorted(at for (name, _), at in self.timers.items() if self.about[name]["ends"] == "self")
            if due:
                self.now = max(self.now, due[0])
                for (name, key), at in list(self.timers.items()):
                    if at <= self.now:
                        del self.timers[name, key]
                        self.put(name, key, Due(key))
                continue
            for name, stage in self.about.items():
                if name not in ended and ended.issuperset(stage["inputs"]) and not self.reading.get(name):
                    ended.add(name)
                    if stage["wants_end"] and self.ends:
                        for _, key in [place for place in self.state if place[0] == name]:
                            self.put(name, key, End(key))
                    break

    def put(self, name: str, key: str | None, given: Input) -> None:
        self.inbox.setdefault((name, key), deque()).append(pickle.dumps(given))

    def one(self) -> None:
        name, key = place = self.random.choice(list(self.inbox))
        queue = self.inbox[place]
        count = self.random.randint(1, len(queue))
        inputs = [pickle.loads(queue.popleft()) for _ in range(count)]
        if not queue:
            del self.inbox[place]
        self.step(name, inputs)

    def step(self, name: str, inputs: list[Any]) -> None:
        stage = self.stages[name]
        begun: list[int] = []
        outcomes = process(
            stage,
            inputs,
            lambda key: self.state.get((name, key)),
            self.now,
            workers=self.workers,
            begin=begun.append,
            by_name=self.stages,
        )
        assert begun == list(range(len(inputs)))
        for given, outcome in zip(inputs, outcomes):
            if isinstance(outcome, StepError):
                raise outcome
            self.commit(name, given, outcome)

    def commit(self, name: str, given: Input, outcome: Outcome) -> None:
        about = self.about[name]
        key = None if isinstance(given, Start) else given.key
        # An input acts on its own key only.
        assert set(outcome.writes) | set(outcome.timers) <= {key}
        assert about["state"] or not any(outcome.writes.values())
        for changed, state in outcome.writes.items():
            if state is None:
                self.state.pop((name, changed), None)
            else:
                self.state[name, changed] = state
        for changed, at in outcome.timers.items():
            assert about["timers"]
            self.timers.pop((name, changed), None)
            if at is not None:
                self.timers[name, changed] = at
        for send in outcome.sends:
            if send.to == name:
                assert isinstance(given, Start) and send.key is not None
                self.reading[name].add(send.key)
            else:
                assert send.to in [output["to"] for output in about["outputs"]]
            self.put(send.to, send.key, Items(send.key, send.items))
        if outcome.ended and key is not None:
            self.reading[name].discard(key)


def run_apart(flow: Dataflow, seed: int = 0, *, ends: bool = True) -> Apart:
    """Runs a flow, stage by stage."""
    engine = Apart(flow, seed, ends=ends)
    engine.run()
    return engine


