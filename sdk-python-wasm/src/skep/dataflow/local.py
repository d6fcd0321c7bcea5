"""Runs a flow in this process.

The workers are logical ones: they share a thread, so results, order and time can be repeated, and Python's lock costs nothing. Each has a
part of the keys and partitions, as workers elsewhere have. A round reads a batch of every partition that is ready and carries it through to
the sinks before the next is read: so memory holds what one batch made, and a slow sink slows the sources.

Between rounds nothing is under way. There an epoch ends: all state that changed, the place of every source partition and of every sink
partition are kept together, in one transaction. A run that starts from a store goes on as if the last epoch had just ended.
"""

from __future__ import annotations

import pickle
import random
import time
from collections import deque
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .errors import AbortExecution, DataflowError
from .graph import Dataflow
from .limits import COOLDOWN, EPOCH_INTERVAL, LIVE_KEYS, SLEEP_MAX, WORKERS_MAX
from .plan import Kind, Plan, Stage, plan
from .stage import Batch, Exits, Splitter, StageRun, by_part, close_shared, group, list_parts, worker_of

if TYPE_CHECKING:
    from .recovery import Store


#: What goes to a worker's stage: items, or values by key.
Sent: TypeAlias = "Batch | dict[str, Batch]"


class Clock(Protocol):
    """The time that a runner goes by. Logics that ask for the time themselves have their own."""

    def now(self) -> datetime:
        """The time of day, with a time zone."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Waits."""
        ...


class SystemClock:
    """The machine's."""

    def now(self) -> datetime:
        """Now, UTC."""
        return datetime.now(timezone.utc)

    def monotonic(self) -> float:
        """Seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)


def check_how(workers: int, epoch_interval: timedelta, most: int) -> None:
    """ValueError: no number of workers up to ``most``, or no time."""
    if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= most:
        raise ValueError(f"workers: a whole number from 1 to {most}; got {workers!r}")
    if not isinstance(epoch_interval, timedelta) or epoch_interval < timedelta(0):
        raise ValueError(f"epoch_interval: a timedelta that is not negative; got {epoch_interval!r}")


class Runner:
    """A flow with its workers, for one run.

    ``epoch_interval``: an epoch ends this long after it began; zero: after every round. ``seed``: chooses at random, but the same each time,
    which partition is read and which batch goes on next; without, all take turns. ``isolated``: pickles what goes from stage to stage, as
    it is where stages run apart; slower, and finds items that can't be pickled, or are changed by a step behind a branch.
    """

    def __init__(
        self,
        flow: Dataflow,
        *,
        workers: int = 1,
        epoch_interval: timedelta = EPOCH_INTERVAL,
        store: Store | None = None,
        clock: Clock | None = None,
        seed: int | None = None,
        isolated: bool = False,
    ) -> None:
        check_how(workers, epoch_interval, WORKERS_MAX)
        self.plan: Plan = plan(flow)
        self.workers = workers
        self.epoch = 1
        self._interval = epoch_interval.total_seconds()
        self._store = store
        self._clock: Clock = SystemClock() if clock is None else clock
        self._random = None if seed is None else random.Random(seed)
        self._isolated = isolated
        self._stages = self.plan.stages
        self._number = {stage.name: index for index, stage in enumerate(self._stages)}
        self._exits = [[self._number[name] for name in stage.exits] for stage in self._stages]
        self._upstreams = [{self._number[name] for name in self.plan.upstreams(stage.name)} for stage in self._stages]
        self._splitter = Splitter({stage.name: stage for stage in self._stages})
        self._part_worker: dict[int, dict[str, int]] = {}
        self._shared: list[dict[str, Any]] = [{} for _ in range(workers)]
        self._turn = 0
        #: What was sent and is not worked on. Empty between rounds.
        self._waiting: dict[tuple[int, int], deque[Sent]] = {}

    def run(self) -> None:
        """Runs the flow to its end. Raises what went wrong; then nothing of the last epoch is kept, and nothing closed."""
        store = self._store
        if store is not None:
            self.epoch = store.resume(self.plan) + 1
        self._runs = [[self._stage_run(stage, worker) for worker in range(self.workers)] for stage in self._stages]
        self._open: set[int] = set(range(len(self._stages)))
        try:
            self._start()
            self._rounds()
        except AbortExecution:
            return
        self._close_epoch()
        for shared in self._shared:
            close_shared(self._stages, shared)
        for runs in self._runs:
            for run in runs:
                if run.stage.kind is Kind.SINK:
                    for part in list(run.live):
                        run.close(part)

    # ------------------------------------------------------------------------------------------------------------------------ start

    def _stage_run(self, stage: Stage, worker: int) -> StageRun:
        store, step = self._store, stage.name
        kwargs: dict[str, Any] = {}
        if store is not None:
            load, keys, workers = store.load, store.keys, self.workers
            kwargs["load"] = lambda key: load(step, key)
            kwargs["keys"] = lambda: (key for key in keys(step) if worker_of(key, workers) == worker)
        return StageRun(
            stage,
            worker=worker,
            workers=self.workers,
            epoch=lambda: self.epoch,
            shared=self._shared[worker],
            track=store is not None,
            **kwargs,
        )

    def _start(self) -> None:
        """Opens sources and sinks, and sets the timers that were kept."""
        store = self._store
        self._taps: list[tuple[int, int, str]] = []
        self._left: dict[int, int] = {}
        for number, stage in enumerate(self._stages):
            runs = self._runs[number]
            if stage.kind is Kind.SOURCE:
                parts = list_parts(stage)
                if store is not None:
                    store.check_parts(stage, parts)
                self._taps += [(number, index % self.workers, part) for index, part in enumerate(parts)]
                self._left[number] = len(parts)
            elif stage.kind is Kind.WORKER_SOURCE:
                self._taps += [(number, worker, f"worker-{worker}") for worker in range(self.workers)]
                self._left[number] = self.workers
            elif stage.kind is Kind.SINK:
                parts = self._splitter.parts(stage)
                if store is not None:
                    store.check_parts(stage, parts)
                self._part_worker[number] = {part: index % self.workers for index, part in enumerate(parts)}
                for part, worker in self._part_worker[number].items():
                    # At once: what a crash left behind has to go even where nothing more is written.
                    runs[worker].open(part)
            elif stage.kind is Kind.KEYED and store is not None:
                for key, at in store.timers(stage.name):
                    runs[worker_of(key, self.workers)].set_due(key, at)
        for number, worker, part in self._taps:
            self._runs[number][worker].open(part)
        self._keyed = [run for runs in self._runs for run in runs if run.stage.kind is Kind.KEYED]

    # ----------------------------------------------------------------------------------------------------------------------- rounds

    def _rounds(self) -> None:
        clock, runs = self._clock, self._runs
        began = clock.monotonic()
        self._end_stages()
        while self._taps or self._open:
            now = clock.now()
            moved = False
            taps = list(self._taps)
            if self._random is not None:
                self._random.shuffle(taps)
            for tap in taps:
                number, worker, part = tap
                run = runs[number][worker]
                at = run.awake.get(part)
                if at is not None and at > now:
                    continue
                exits, over = run.poll(part, now)
                if over:
                    self._taps.remove(tap)
                    if self._store is None:
                        run.close(part)
                    self._left[number] -= 1
                    if self._left[number] == 0:
                        self._end_stages()
                    moved = True
                elif exits is not None:
                    self._send(number, exits)
                    self._drain(now)
                    moved = True
                else:
                    # Items that went no further count too: only a partition that waits lets the runner rest.
                    moved = moved or part not in run.awake
            # The time as it is now: what a logic just asked for may have come, and comes before its next value.
            now = clock.now()
            for run in self._keyed:
                at = run.next_due()
                if at is not None and at <= now:
                    exits = run.due(now)
                    if exits is not None:
                        self._send(self._number[run.stage.name], exits)
                        self._drain(now)
                    moved = True
            elapsed = clock.monotonic() - began
            if elapsed >= self._interval and (moved or self._interval):
                self._close_epoch()
                began = clock.monotonic()
            elif not moved and self._taps:
                self._rest(now, self._interval - elapsed if self._store is not None else None)

    def _rest(self, now: datetime, epoch_left: float | None) -> None:
        """Sleeps until something is due."""
        times = [at for number, worker, part in self._taps if (at := self._runs[number][worker].awake.get(part)) is not None]
        times += [at for run in self._keyed if (at := run.next_due()) is not None]
        left = min((at - now).total_seconds() for at in times) if times else COOLDOWN.total_seconds()
        if epoch_left is not None and epoch_left > 0:
            left = min(left, epoch_left)
        if left > 0:
            self._clock.sleep(min(left, SLEEP_MAX.total_seconds()))

    def _send(self, number: int, exits: Exits) -> None:
        for to, items in zip(self._exits[number], exits):
            if items:
                for worker, some in self._split(to, items):
                    if self._isolated:
                        some = self._copied(to, some)
                    self._waiting.setdefault((to, worker), deque()).append(some)

    def _copied(self, to: int, items: Sent) -> Sent:
        try:
            return pickle.loads(pickle.dumps(items, protocol=5))  # type: ignore[no-any-return]
        except Exception as e:
            raise DataflowError(
                f"what goes to {self._stages[to].entry.title()} can't be pickled: {type(e).__name__}: {e}; "
                "items that go from worker to worker must be plain data"
            ) from e

    def _split(self, to: int, items: Batch) -> Iterable[tuple[int, Sent]]:
        """Each worker's share. That of a keyed stage is values by key: it had to be looked at by key anyway."""
        workers = self.workers
        if workers == 1:
            return ((0, items),)
        stage = self._stages[to]
        by: dict[int, Batch] = {}
        if stage.kind is Kind.SPREAD:
            for item in items:
                if self._random is None:
                    self._turn += 1
                by.setdefault(self._turn % workers if self._random is None else self._random.randrange(workers), []).append(item)
        elif stage.kind is Kind.KEYED:
            shares: dict[int, dict[str, Batch]] = {}
            for key, values in group(stage.entry, items).items():
                shares.setdefault(worker_of(key, workers), {})[key] = values
            return shares.items()
        else:
            # Whole items by partition: the worker that has it takes them apart.
            for part, some in by_part(stage, self._splitter.parts(stage), items, whole=True).items():
                by.setdefault(self._part_worker[to][part], []).extend(some)
        return by.items()

    def _drain(self, now: datetime) -> None:
        """Works on all that was sent, and on what comes of it."""
        waiting = self._waiting
        while waiting:
            if self._random is None:
                place = next(iter(waiting))
            else:
                place = self._random.choice(list(waiting))
            queue = waiting[place]
            items = queue.popleft()
            if not queue:
                del waiting[place]
            number, worker = place
            run = self._runs[number][worker]
            exits = run.groups(items, now) if isinstance(items, dict) else run.items(items, now)
            if exits is not None:
                self._send(number, exits)

    def _end_stages(self) -> None:
        """Ends each stage whose sources have all ended, in the order in which they send to each other."""
        now = self._clock.now()
        for number, stage in enumerate(self._stages):
            if number not in self._open:
                continue
            if number in self._left:
                if self._left[number]:
                    continue
            elif self._upstreams[number] & self._open:
                continue
            for run in self._runs[number]:
                for exits in run.end():
                    self._send(number, exits)
                    self._drain(now)
            self._open.discard(number)
            if stage.kind is Kind.KEYED:
                self._keyed = [run for run in self._keyed if run.stage is not stage]

    # ----------------------------------------------------------------------------------------------------------------------- epochs

    def _close_epoch(self) -> None:
        """Keeps all that changed since the last one."""
        store = self._store
        if store is not None:
            with store.epoch(self.epoch) as keep:
                for runs in self._runs:
                    for run in runs:
                        if run.stage.kind is not Kind.WORKER_SOURCE:
                            for key, state, at in run.changes():
                                keep(run.stage.name, key, state, at)
            for runs in self._runs:
                for run in runs:
                    if run.slim(LIVE_KEYS):
                        store.spilled(run.stage.name)
                    # Not before: an ended partition's place was to be kept.
                    run.close_ended()
        self.epoch += 1


def run(flow: Dataflow, **kwargs: Any) -> None:
    """Runs a flow to its end: ``Runner(flow, ...).run()``."""
    Runner(flow, **kwargs).run()
