"""A worker that is a process: its share of a flow's partitions and keys, and what it says to the others.

It runs the same stages as the runner of :mod:`.local`, by the same :class:`~.stage.StageRun`; what differs is how items change hands. Those of
an exchange are gathered until there are enough or nothing else is to do, grouped by key, cut into shares by the hash of the key, and each share is
pickled once. So what is paid for a message is paid for a thousand items, and the other worker gets values by key, as it needs them.

**Nothing grows.** A worker begins nothing (reads no source, takes no message, calls no timer) of a stage while a stage behind it has
:data:`~.limits.SHARES_UNDER_WAY` shares under way to any worker, itself included: sent, and not said to be worked on. Stages send only to later
ones, and what the last ones take makes nothing, so there is always something that can go on: no two workers wait for each other for ever.

**Nothing waits long.** An epoch ends when all that is under way was worked on, and what a share makes goes on when all of it is made. So where
shares take long from being sent to being worked on, batches are no longer gathered, and few shares are under way. Where steps are quick, up to
:data:`~.limits.PASS_ITEMS` items are, as each message costs some.

**Epochs.** The parent tells all workers to close one. A worker stops its sources and timers then; of each stage, in order, it says to the others
that it is past it, once all of them said so of the stages before and it worked on all that came. Links keep the order, so behind that word nothing
of the epoch comes any more. When it is past all stages, nothing of the epoch is under way to it, and what changed goes to the parent, which keeps
that of all workers in one transaction. When all have sent theirs, all go on.

**Ends.** A stage ends on a worker when those before it have ended on all workers; it says so, behind all that it sent. It does so while an epoch
is being closed, too, and is not past it before: so a stage ends on all workers in one epoch, as it does in one process. Else a crash between two
epochs would let some of its keys hear of the end twice. (A stage that has ended somewhere tells no one that it is past. So where one worker heard
that all stages before have ended, the others must hear it as well before they can be past.)
"""

from __future__ import annotations

import functools
import math
import pickle
import select
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Any
from zlib import crc32

from .errors import StepError
from .limits import (
    LIVE_KEYS,
    PASS_ITEMS,
    ROWS_BATCH,
    ROWS_BATCH_BYTES,
    SHARE_FORGET,
    SHARE_QUICK,
    SHARE_SLOW,
    SHARES_UNDER_WAY,
    SHARES_UNDER_WAY_SLOW,
    SLEEP_MAX,
    TURN_SECONDS,
)
from .links import Line, Link
from .local import SystemClock
from .plan import Kind, Plan, Stage
from .stage import Batch, Exits, StageRun, by_part, check_keys, close_shared, group, list_parts

#: What is said over a link, beside a share of items: so many shares were worked on; past a stage in this epoch; a stage has ended.
SHARE, WORKED, PAST, ENDED = range(4)


@dataclass
class Part:
    """What a worker is told when it starts."""

    #: How many processes take part: the workers, and perhaps a reader.
    members: int
    #: The number of the first epoch.
    epoch: int
    #: Whether epochs are kept.
    keeps: bool
    #: Seconds.
    interval: float
    #: Partitions of sources that it reads, by the number of their stage.
    taps: list[tuple[int, str]]
    #: The sorted partitions of each sink, by the number of its stage, and who has them.
    sinks: dict[int, dict[str, int]]
    #: Stages of which nothing is kept.
    empty: set[int]
    #: Timers of its keys that were kept, by the number of their stage.
    timers: dict[int, list[tuple[str, datetime]]]


class Held:
    """What goes to a stage and is not sent yet."""

    __slots__ = ("count", "groups", "items")

    def __init__(self) -> None:
        self.count = 0
        #: Values by key, or by a sink's partition.
        self.groups: defaultdict[str, Batch] = defaultdict(list)
        self.items: Batch = []


class Worker:
    """One of several workers, or their reader. :meth:`run` returns when the parent has told it to stop.

    The reader, whose number is that behind the last worker's, has a partition of a source and no keys, no partitions of sinks: it does what a worker
    does, and nobody sends it any share. What its steps are told of workers is what the first one's are.
    """

    def __init__(self, plan: Plan, number: int, workers: int, line: Line, links: dict[int, Link], part: Part) -> None:
        self.number = number
        self.workers = workers
        self.epoch = part.epoch
        self._part = part
        self._line = line
        self._links = links
        self._clock = SystemClock()
        self._stages: tuple[Stage, ...] = plan.stages
        index = {stage.name: at for at, stage in enumerate(self._stages)}
        self._exits = [[index[name] for name in stage.exits] for stage in self._stages]
        self._upstreams = [[index[name] for name in plan.upstreams(stage.name)] for stage in self._stages]
        self._sink_parts = {at: list(owners) for at, owners in part.sinks.items()}
        self._shared: dict[str, Any] = {}
        self._empty = set(part.empty)
        self._loaded: list[dict[str, bytes | None]] = [{} for _ in self._stages]
        self._runs = [self._stage_run(at, stage) for at, stage in enumerate(self._stages)]
        self._taps = list(part.taps)
        self._left = [sum(1 for at, _ in self._taps if at == stage) for stage in range(len(self._stages))]
        self._open = set(range(len(self._stages)))
        self._ending: dict[int, Iterator[Exits]] = {}
        self._turn = number
        self._held = [Held() for _ in self._stages]
        #: Shares that came and are not worked on, and from whom. Bounded by what each worker may have under way.
        self._inbox: list[deque[tuple[int, Any]]] = [deque() for _ in self._stages]
        #: By stage and worker: when each share that is under way was sent.
        self._under_way: list[list[deque[float]]] = [[deque() for _ in range(workers)] for _ in self._stages]
        #: By stage: how many may be under way to a worker, and how many items are gathered. The first shares tell whether it may be more.
        self._most_shares = [min(SHARES_UNDER_WAY_SLOW, SHARES_UNDER_WAY)] * len(self._stages)
        self._most_items = [1] * len(self._stages)
        #: By stage: seconds that the slowest share took of late.
        self._took = [0.0] * len(self._stages)
        #: Shares of others that were worked on, by worker and stage: to be told.
        self._worked: dict[tuple[int, int], int] = {}
        #: Processes on which a stage has ended, and that are past it in this epoch.
        self._ended: list[set[int]] = [set() for _ in self._stages]
        self._past: list[set[int]] = [set() for _ in self._stages]
        self._passed: set[int] = set()
        #: The parent's commands that came while something else was asked for.
        self._commands: deque[tuple[Any, ...]] = deque()
        self._closing = self._kept = self._stopped = self._told_moved = self._told_end = False
        #: Partitions that had ended when the last epoch was handed to the parent, by stage: to be closed once that is kept.
        self._over: list[set[str]] = []
        self._poll = select.poll()
        self._writing: set[int] = set()

    # ------------------------------------------------------------------------------------------------------------------------ start

    def _stage_run(self, at: int, stage: Stage) -> StageRun:
        kwargs: dict[str, Any] = {}
        if self._part.keeps:
            kwargs["load"] = functools.partial(self._load, at)
            kwargs["keys"] = functools.partial(self._ask, "keys", stage.name, self.number)
            if stage.kind is Kind.KEYED and at not in self._empty:
                kwargs["fetch"] = functools.partial(self._fetch, at)
        return StageRun(
            stage,
            worker=self.number % self.workers,
            workers=self.workers,
            epoch=lambda: self.epoch,
            shared=self._shared,
            track=self._part.keeps,
            **kwargs,
        )

    def _load(self, at: int, key: str) -> bytes | None:
        if at in self._empty:
            return None
        if key not in self._loaded[at]:
            self._fetch(at, [key])
        return self._loaded[at].pop(key)

    def _fetch(self, at: int, keys: list[str]) -> None:
        """Asks the parent for the kept state of keys at once: it costs as much as for one."""
        self._loaded[at] = self._ask("load", self._stages[at].name, keys)

    def _ask(self, *question: object) -> Any:
        self._line.send(*question)
        while True:
            message = self._line.receive()
            if message[0] == "answer":
                return message[1]
            self._commands.append(message)

    def run(self) -> None:
        """Works until the parent says stop. Raises what a step raises; EOFError: the parent is gone."""
        self._poll.register(self._line.sock, select.POLLIN)
        for link in self._links.values():
            self._poll.register(link.sock, select.POLLIN)
        for stage in self._stages:
            if stage.kind in (Kind.SOURCE, Kind.SINK):
                # What it remembers of that, the parent has.
                list_parts(stage)
        for at, owners in self._part.sinks.items():
            for part, worker in owners.items():
                if worker == self.number:
                    # At once: what a crash left behind has to go even where nothing more is written.
                    self._runs[at].open(part)
        for at, timers in self._part.timers.items():
            for key, due in timers:
                self._runs[at].set_due(key, due)
        for at, part in self._taps:
            self._runs[at].open(part)
        self._keyed = [at for at, stage in enumerate(self._stages) if stage.kind is Kind.KEYED]
        self._began = monotonic()
        while not self._stopped:
            moved = False
            if not self._kept:
                moved = self._work()
                if not self._closing:
                    moved = self._read() or moved
                    moved = self._timers() or moved
                self._send_held()
                self._end_stages()
                if self._closing:
                    self._pass_stages()
                elif not self._part.keeps and monotonic() - self._began >= self._part.interval:
                    # Nobody waits for its end: the number is for who inspects.
                    self.epoch += 1
                    self._began = monotonic()
            self._tell_worked()
            self._exchange(moved)

    # ------------------------------------------------------------------------------------------------------------------------- work

    def _has_room(self, at: int) -> bool:
        return all(len(shares) < self._most_shares[to] for to in self._exits[at] for shares in self._under_way[to])

    def _work(self) -> bool:
        """Takes what came, the last stages first."""
        moved = False
        for at in range(len(self._stages) - 1, -1, -1):
            queue = self._inbox[at]
            while queue and self._has_room(at):
                worker, share = queue.popleft()
                self._take(at, worker, share)
                moved = True
        if moved:
            self._say_moved()
        return moved

    def _take(self, at: int, worker: int, share: Any) -> None:
        run = self._runs[at]
        kind = run.stage.kind
        if worker != self.number:
            share = self._unpickled(at, share)
        exits: Exits | None = None
        if kind is Kind.KEYED:
            exits = run.groups(share, self._clock.now())
        elif kind is Kind.SINK:
            for part, values in share.items():
                run.write(part, values)
        else:
            exits = run.items(share, self._clock.now())
        if worker == self.number:
            self._was_worked(at, worker, 1)
        else:
            self._worked[worker, at] = self._worked.get((worker, at), 0) + 1
        if exits is not None:
            self._hold(at, exits)

    def _was_worked(self, at: int, worker: int, count: int) -> None:
        under_way = self._under_way[at][worker]
        sent = 0.0
        for _ in range(count):
            sent = under_way.popleft()
        # The slowest of late: where a later step is slow, one share waits for it and those behind it pass at once.
        took = self._took[at] = max(monotonic() - sent, self._took[at] * SHARE_FORGET)
        if took > SHARE_SLOW:
            self._most_shares[at] = min(SHARES_UNDER_WAY_SLOW, SHARES_UNDER_WAY)
            self._most_items[at] = max(self._most_items[at] // 2, 1)
        elif took < SHARE_QUICK:
            self._most_shares[at] = SHARES_UNDER_WAY
            self._most_items[at] = min(self._most_items[at] * 2, PASS_ITEMS)

    def _read(self) -> bool:
        """Reads sources for a turn: until there is enough to send, or the time is over, or none has anything."""
        moved = polled = False
        until = monotonic() + TURN_SECONDS
        ready = [tap for tap in self._taps if self._has_room(tap[0])]
        while ready:
            now = self._clock.now()
            for tap in list(ready):
                at, part = tap
                run = self._runs[at]
                due = run.awake.get(part)
                if due is not None and due > now:
                    ready.remove(tap)
                    continue
                exits, over = run.poll(part, now)
                polled = True
                if over:
                    ready.remove(tap)
                    self._taps.remove(tap)
                    if not self._part.keeps:
                        run.close(part)
                    self._left[at] -= 1
                    moved = True
                elif exits is not None:
                    moved = True
                    self._hold(at, exits)
                    if not self._has_room(at):
                        ready.remove(tap)
                else:
                    moved = moved or part not in run.awake
            if any(queue for queue in self._inbox) or monotonic() >= until:
                break
        if moved or (polled and self._part.interval):
            self._say_moved()
        return moved

    def _timers(self) -> bool:
        moved = False
        now = self._clock.now()
        for at in self._keyed:
            run = self._runs[at]
            due = run.next_due()
            if due is not None and due <= now and self._has_room(at):
                exits = run.due(now)
                if exits is not None:
                    self._hold(at, exits)
                moved = True
        if moved:
            self._say_moved()
        return moved

    def _say_moved(self) -> None:
        """Once an epoch: one in which nothing moves need not end."""
        if not self._told_moved and self._part.keeps:
            self._told_moved = True
            self._line.send("moved")

    # --------------------------------------------------------------------------------------------------------------------- exchanges

    def _hold(self, at: int, exits: Exits) -> None:
        for to, items in zip(self._exits[at], exits):
            if not items:
                continue
            held, stage = self._held[to], self._stages[to]
            if stage.kind is Kind.KEYED:
                group(stage.entry, items, held.groups)
            elif stage.kind is Kind.SINK:
                for part, values in by_part(stage, self._sink_parts[to], items).items():
                    held.groups[part] += values
            else:
                held.items += items
            held.count += len(items)
            if held.count >= self._most_items[to]:
                self._send(to)

    def _send_held(self) -> None:
        for to, held in enumerate(self._held):
            if held.count:
                self._send(to)

    def _send(self, to: int) -> None:
        """Sends what is held for a stage: each worker its share."""
        stage, held, workers = self._stages[to], self._held[to], self.workers
        if not held.count:
            return
        self._held[to] = Held()
        shares: list[Any]
        if stage.kind is Kind.KEYED:
            groups = held.groups
            check_keys(stage.entry, groups)
            shares = [{} for _ in range(workers)]
            for key, values in groups.items():
                # As `worker_of`.
                shares[crc32(key.encode("utf-8", "surrogatepass")) % workers][key] = values
        elif stage.kind is Kind.SINK:
            shares = [{} for _ in range(workers)]
            for part, values in held.groups.items():
                shares[self._part.sinks[to][part]][part] = values
        else:
            shares = [held.items[(worker - self._turn) % workers :: workers] for worker in range(workers)]
            self._turn += len(held.items)
        now = monotonic()
        for worker, share in enumerate(shares):
            if not share:
                continue
            if worker == self.number:
                self._inbox[to].append((worker, share))
            else:
                self._links[worker].send(SHARE, to, payload=self._pickled(to, share))
                self._links[worker].flush()
            self._under_way[to][worker].append(now)

    def _pickled(self, to: int, share: Any) -> bytes:
        try:
            return pickle.dumps(share, 5)
        except Exception as e:
            op = self._stages[to].entry
            key, wrong = _culprit(share)
            raise StepError(
                f"what goes to {op.title()} can't be pickled{f', under the key {key!r}' if key is not None else ''}: {type(e).__name__}: {e}; "
                f"items that go from worker to worker must be plain data; got {wrong}. "
                "Send other items, or run the workers in one process (`--in-process`)",
                (op.shown or op).step_id,
                key=key,
            ) from e

    def _unpickled(self, at: int, data: bytes) -> Any:
        try:
            return pickle.loads(data)
        except Exception as e:
            op = self._stages[at].entry
            raise StepError(
                f"what came to {op.title()} can't be unpickled: {type(e).__name__}: {e}; items that go from worker to worker must be plain data, "
                "or classes that pickle can build again. Or run the workers in one process (`--in-process`)",
                (op.shown or op).step_id,
            ) from e

    def _tell_worked(self) -> None:
        for (worker, at), count in self._worked.items():
            self._links[worker].send(WORKED, at, count)
        self._worked.clear()

    def _tell_all(self, kind: int, at: int) -> None:
        for link in self._links.values():
            link.send(kind, at)

    def _exchange(self, moved: bool) -> None:
        """Sends and receives. Waits for something to come unless there is something to do."""
        for worker, link in self._links.items():
            link.flush()
            waits = link.waits
            if waits is not (worker in self._writing) and link.open:
                self._poll.modify(link.sock, select.POLLIN | (select.POLLOUT if waits else 0))
                (self._writing.add if waits else self._writing.discard)(worker)
        ready = self._poll.poll(0 if moved or self._commands else self._rest())
        if ready:
            line = self._line.sock.fileno()
            filenos = {fileno for fileno, _ in ready}
            if line in filenos:
                self._commands.append(self._line.receive())
            for worker, link in self._links.items():
                if link.sock.fileno() in filenos:
                    for message in link.receive() if link.open else ():
                        self._heard(worker, *message)
                    if not link.open:
                        # Whose other end is gone: so is the run, as the parent will say.
                        self._poll.unregister(link.sock)
        while self._commands and not self._stopped:
            self._command(*self._commands.popleft())

    def _rest(self) -> int:
        """How long there is nothing to do unless something comes, in milliseconds."""
        if self._kept:
            return math.ceil(SLEEP_MAX.total_seconds() * 1000)
        if any(queue and self._has_room(at) for at, queue in enumerate(self._inbox)) or any(self._has_room(at) for at in self._ending):
            return 0
        left = SLEEP_MAX.total_seconds()
        if not self._closing:
            now = self._clock.now()
            for at, part in self._taps:
                if self._has_room(at):
                    due = self._runs[at].awake.get(part)
                    left = min(left, (due - now).total_seconds() if due is not None else 0.0)
            for at in self._keyed:
                due = self._runs[at].next_due()
                if due is not None and self._has_room(at):
                    left = min(left, (due - now).total_seconds())
        return math.ceil(max(left, 0.0) * 1000)

    def _heard(self, worker: int, kind: int, at: int, number: int, payload: bytes) -> None:
        if kind == SHARE:
            self._inbox[at].append((worker, payload))
        elif kind == WORKED:
            self._was_worked(at, worker, number)
        elif kind == PAST:
            self._past[at].add(worker)
        else:
            self._ended[at].add(worker)

    # -------------------------------------------------------------------------------------------------------------- ends and epochs

    def _end_stages(self) -> None:
        for at in range(len(self._stages)):
            if at not in self._open or at in self._passed:
                continue
            if at not in self._ending:
                if self._inbox[at] or not self._can_end(at):
                    continue
                self._ending[at] = self._runs[at].end()
            while self._has_room(at):
                exits = next(self._ending[at], None)
                if exits is None:
                    self._ended_here(at)
                    break
                self._say_moved()
                self._hold(at, exits)

    def _can_end(self, at: int) -> bool:
        """Whether nothing more can come to a stage."""
        if self._stages[at].kind in (Kind.SOURCE, Kind.WORKER_SOURCE):
            return not self._left[at]
        return all(len(self._ended[up]) == self._part.members for up in self._upstreams[at])

    def _ended_here(self, at: int) -> None:
        for to in self._exits[at]:
            self._send(to)
        del self._ending[at]
        self._open.discard(at)
        self._ended[at].add(self.number)
        if at in self._keyed:
            self._keyed.remove(at)
        if self._exits[at]:
            self._tell_all(ENDED, at)
        if not self._open and not self._told_end:
            self._told_end = True
            self._line.send("ended")

    def _pass_stages(self) -> None:
        """Goes past each stage for which nothing more of the epoch can come. Past all of them, says what changed."""
        for at in range(len(self._stages)):
            if at in self._passed:
                continue
            if at in self._open:
                if self._inbox[at] or self._can_end(at):
                    continue
                if any(len(self._past[up] | self._ended[up]) < self._part.members for up in self._upstreams[at]):
                    continue
                if self._exits[at]:
                    for to in self._exits[at]:
                        self._send(to)
                    self._past[at].add(self.number)
                    self._tell_all(PAST, at)
            self._passed.add(at)
        if len(self._passed) == len(self._stages) and not any(self._inbox):
            self._keep()

    def _keep(self) -> None:
        rows: list[tuple[str, str, bytes | None, datetime | None]] = []
        size = 0
        for run in self._runs:
            if run.stage.kind is Kind.WORKER_SOURCE:
                continue
            for key, state, at in run.changes():
                rows.append((run.stage.name, key, state, at))
                size += len(state or b"")
                if len(rows) >= ROWS_BATCH or size >= ROWS_BATCH_BYTES:
                    self._line.send("rows", rows)
                    rows, size = [], 0
        if rows:
            self._line.send("rows", rows)
        self._over = [run.ended_parts() for run in self._runs]
        # What others say of the next epoch may come before the parent's word to go on.
        for past in self._past:
            past.clear()
        self._passed.clear()
        self._kept = True
        self._line.send("done")

    def _command(self, command: str) -> None:
        if command == "close":
            self._closing = True
        elif command == "go":
            self._closing = self._kept = self._told_moved = False
            self.epoch += 1
            for at, run in enumerate(self._runs):
                if run.slim(LIVE_KEYS):
                    # From now on their state is somewhere else.
                    self._empty.discard(at)
                    run.fetch = functools.partial(self._fetch, at)
        else:
            # Kept, or the end, which is behind the last that was kept. Not before: a source may let go of what it gave, and its place would be lost.
            for run, parts in zip(self._runs, self._over):
                for part in parts & run.live.keys():
                    run.close(part)
            self._stopped = command == "stop"

    def close(self) -> None:
        """At the end of the flow: closes sinks."""
        close_shared(self._stages, self._shared)
        for run in self._runs:
            if run.stage.kind is Kind.SINK:
                for part in list(run.live):
                    run.close(part)


def _culprit(share: Any) -> tuple[str | None, str]:
    """The key and type of what can't be pickled."""
    for key, values in share.items() if isinstance(share, dict) else ((None, share),):
        for value in values:
            try:
                pickle.dumps(value, 5)
            except Exception:
                return key, type(value).__name__
    return None, "items that can't be pickled together"
