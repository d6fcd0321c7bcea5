"""What tests of a flow need: a source and a sink of lists, ways to run a flow here and now, and time that tests set."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import AbortExecution
from .graph import Dataflow
from .inputs import FixedPartitionedSource, StatefulSourcePartition, StatelessSourcePartition
from .limits import EPOCH_INTERVAL
from .local import Runner
from .outputs import DynamicSink, StatelessSinkPartition

if TYPE_CHECKING:
    from .recovery import RecoveryConfig

X = TypeVar("X")

__all__ = ["TestingSink", "TestingSource", "TimeTestingGetter", "cluster_main", "ffwd_iter", "poll_next_batch", "run_main"]


@dataclass
class TimeTestingGetter:
    """A clock that stands still until it is told otherwise.

    >>> from datetime import datetime, timedelta, timezone
    >>> clock = TimeTestingGetter(datetime(2024, 1, 1, tzinfo=timezone.utc))
    >>> clock.advance(timedelta(hours=1))
    >>> clock.get().isoformat()
    '2024-01-01T01:00:00+00:00'
    """

    now: datetime

    def advance(self, td: timedelta) -> None:
        """Moves the time on."""
        self.now += td

    def get(self) -> datetime:
        """The time; give this method to what wants a getter."""
        return self.now


def ffwd_iter(it: Iterator[Any], n: int) -> None:
    """Skips ``n`` items of an iterator.

    >>> it = iter("abc")
    >>> ffwd_iter(it, 2)
    >>> next(it)
    'c'
    """
    next(islice(it, n, n), None)


class TestingSource(FixedPartitionedSource[X, int]):
    """Items of an iterable, ``batch_size`` at a time, read by one worker. It remembers how many it gave.

    Among the items may be :class:`EOF` (the stream ends here, and goes on behind it in the next run), :class:`ABORT` (the flow stops as if it
    had crashed, the first time only) and :class:`PAUSE`.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> flow = Dataflow("eg")
    >>> _ = op.inspect("out", op.input("in", flow, TestingSource([1, TestingSource.EOF(), 2])))
    >>> run_main(flow)
    eg.out: 1
    """

    __test__ = False

    @dataclass
    class EOF:
        """The end of the stream, until the next run."""

    @dataclass
    class ABORT:
        """Stops the flow at once, without keeping or closing anything. Only the first time."""

        _triggered: bool = field(default=False, repr=False)

    @dataclass
    class PAUSE:
        """Nothing comes for a while."""

        for_duration: timedelta

    def __init__(self, ib: Iterable[X | EOF | ABORT | PAUSE], batch_size: int = 1) -> None:
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size: a whole number, at least 1; got {batch_size!r}")
        iter(ib)
        self._ib = ib
        self._batch_size = batch_size

    def list_parts(self) -> list[str]:
        """One partition."""
        return ["iterable"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Iterated[X]:
        """Begins anew, behind so many items."""
        return _Iterated(self._ib, self._batch_size, resume_state or 0)


class _Iterated(StatefulSourcePartition[X, int]):
    def __init__(self, ib: Iterable[Any], batch_size: int, start: int) -> None:
        self._at = start
        self._batch_size = batch_size
        self._it: Iterator[Any] = iter(ib)
        ffwd_iter(self._it, start)
        self._next: datetime | None = None
        #: What was taken from the iterable and not given yet: a batch in which there was a mark.
        self._back: deque[Any] = deque()

    def next_batch(self) -> list[X]:
        self._next = None
        if self._back:
            return self._one_by_one()
        found: list[Any] = list(islice(self._it, self._batch_size))
        if not found:
            raise StopIteration()
        if _MARKS.isdisjoint(map(type, found)):
            self._at += len(found)
            return found
        self._back.extend(found)
        return self._one_by_one()

    def _one_by_one(self) -> list[X]:
        out: list[X] = []
        while len(out) < self._batch_size:
            item: Any = self._back.popleft() if self._back else next(self._it, self)
            if item is self:
                break
            if isinstance(item, TestingSource.EOF) or (isinstance(item, TestingSource.ABORT) and not item._triggered):
                if out:
                    # What came before it goes first.
                    self._back.appendleft(item)
                    break
                self._at += 1
                if isinstance(item, TestingSource.EOF):
                    raise StopIteration()
                item._triggered = True
                raise AbortExecution()
            self._at += 1
            if isinstance(item, TestingSource.PAUSE):
                self._next = datetime.now(timezone.utc) + item.for_duration
                break
            if not isinstance(item, TestingSource.ABORT):
                out.append(item)
        return out

    def next_awake(self) -> datetime | None:
        return self._next

    def snapshot(self) -> int:
        return self._at


_MARKS = frozenset({TestingSource.EOF, TestingSource.ABORT, TestingSource.PAUSE})


class TestingSink(DynamicSink[X]):
    """Appends items to a list, which it never clears.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> flow, out = Dataflow("eg"), []
    >>> op.output("out", op.input("in", flow, TestingSource("ab")), TestingSink(out))
    >>> run_main(flow)
    >>> out
    ['a', 'b']
    """

    __test__ = False
    #: Workers of a flow that has one share a process: the list is in it.
    one_process = True

    def __init__(self, ls: list[X]) -> None:
        self._ls = ls

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Appended[X]:
        """A part that appends to the one list."""
        return _Appended(self._ls)


class _Appended(StatelessSinkPartition[X]):
    def __init__(self, ls: list[X]) -> None:
        self._ls = ls

    def write_batch(self, items: list[X]) -> None:
        self._ls.extend(items)


def poll_next_batch(
    part: StatefulSourcePartition[X, Any] | StatelessSourcePartition[X], timeout: timedelta = timedelta(seconds=5)
) -> list[X]:
    """Asks a partition again and again until it has items. TimeoutError: it had none for so long."""
    until = time.monotonic() + timeout.total_seconds()
    while True:
        found = list(part.next_batch())
        if found:
            return found
        if time.monotonic() >= until:
            raise TimeoutError(f"no items within {timeout}")


def run_main(flow: Dataflow, *, epoch_interval: timedelta | None = None, recovery_config: RecoveryConfig | None = None) -> None:
    """Runs a flow here, on one worker, to its end.

    ``epoch_interval``: 10 seconds unless given. ``recovery_config``: where state is kept, so that the next run goes on. Raises a
    :class:`~skep.dataflow.errors.StepError` where a step fails.
    """
    _run(flow, 1, epoch_interval, recovery_config)


def cluster_main(
    flow: Dataflow,
    addresses: list[str] | None,
    proc_id: int,
    *,
    epoch_interval: timedelta | None = None,
    recovery_config: RecoveryConfig | None = None,
    worker_count_per_proc: int = 1,
) -> None:
    """Runs a flow here, on as many workers as the ancestor's processes had together.

    Its processes found each other by addresses. These workers share a process, so process 0 runs those of all of them and the others return
    at once: a script that starts one for each address writes everything once.
    """
    count = max(len(addresses or ()), 1)
    if not 0 <= proc_id < count:
        raise ValueError(f"proc_id: from 0 to {count - 1}, as there {'is' if count == 1 else 'are'} {count}; got {proc_id!r}")
    if proc_id == 0:
        _run(flow, count * worker_count_per_proc, epoch_interval, recovery_config)


def _run(flow: Dataflow, workers: int, epoch_interval: timedelta | None, recovery_config: RecoveryConfig | None) -> None:
    interval = EPOCH_INTERVAL if epoch_interval is None else epoch_interval
    if recovery_config is None:
        Runner(flow, workers=workers, epoch_interval=interval).run()
        return
    with recovery_config.open() as store:
        Runner(flow, workers=workers, epoch_interval=interval, store=store).run()


if __name__ == "__main__":
    from skep.run import main

    sys.exit(main(testing=True))
