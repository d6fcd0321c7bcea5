"""Where items come from: the base classes of sources, and helpers to write one.

A source with fixed partitions is read in parallel, remembers how far it came, and goes on there. A dynamic source has one partition on each
worker and remembers nothing. :class:`SimplePollingSource` asks for one item at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .errors import AbortExecution

X = TypeVar("X")
S = TypeVar("S")
if TYPE_CHECKING:
    import asyncio

    # Type checkers know it without the package. What has a default here takes it in `SimplePollingSource.__class_getitem__` when run.
    from typing_extensions import TypeVar as DefaultTypeVar

    Sn = DefaultTypeVar("Sn", default=None)
else:
    Sn = TypeVar("Sn")

__all__ = [
    "AbortExecution",
    "DynamicSource",
    "FixedPartitionedSource",
    "S",
    "SimplePollingSource",
    "Sn",
    "Source",
    "StatefulSourcePartition",
    "StatelessSourcePartition",
    "X",
    "batch",
    "batch_async",
    "batch_getter",
    "batch_getter_ex",
]


class Source(ABC, Generic[X]):
    """What :func:`~skep.dataflow.operators.input` reads. Derive from one of the classes below, not from this one."""


class StatefulSourcePartition(ABC, Generic[X, S]):
    """A partition that knows how far it was read."""

    @abstractmethod
    def next_batch(self) -> Iterable[X]:
        """The items that are there now, perhaps none. Never blocks; raises ``StopIteration`` at the end."""

    def next_awake(self) -> datetime | None:
        """Not to be read before this time (with a time zone). None: at once, or after a millisecond when there was nothing."""
        return None

    @abstractmethod
    def snapshot(self) -> S:
        """Where to go on: given to ``build_part``, it reads what follows the last item of ``next_batch``. Must be picklable, and not change later."""

    def close(self) -> None:
        """Called at the partition's end; not when the flow is stopped or fails."""
        return


class FixedPartitionedSource(Source[X], Generic[X, S]):
    """A source of partitions that are known when the flow starts."""

    @abstractmethod
    def list_parts(self) -> list[str]:
        """The names of all partitions."""

    @abstractmethod
    def build_part(self, step_id: str, for_part: str, resume_state: S | None) -> StatefulSourcePartition[X, S]:
        """Opens a partition at the place that ``resume_state`` names, or at the start."""


class StatelessSourcePartition(ABC, Generic[X]):
    """A worker's part of a dynamic source."""

    @abstractmethod
    def next_batch(self) -> Iterable[X]:
        """The items that are there now, perhaps none. Never blocks; raises ``StopIteration`` at the end."""

    def next_awake(self) -> datetime | None:
        """Not to be read before this time (with a time zone). None: at once, or after a millisecond when there was nothing."""
        return None

    def close(self) -> None:
        """Called at the partition's end; not when the flow is stopped or fails."""
        return


class DynamicSource(Source[X]):
    """A source that each worker reads for itself. What was read before a crash is not read again: at most once."""

    @abstractmethod
    def build(self, step_id: str, worker_index: int, worker_count: int) -> StatelessSourcePartition[X]:
        """Opens this worker's part."""


class SimplePollingSource(FixedPartitionedSource[X, Sn]):
    """A source that is asked for one item every so often, by one worker.

    ``interval``: the time between two calls. ``align_to``: calls fall on this time plus whole intervals; without, they start at once.
    ``next_item`` may return None for "nothing", raise :class:`SimplePollingSource.Retry` to be asked again sooner, or ``StopIteration`` at
    the end. A source that can go on where it was overrides ``snapshot`` and ``resume``.

    >>> from datetime import timedelta
    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.inputs import SimplePollingSource
    >>> from skep.dataflow.testing import run_main
    >>> class Countdown(SimplePollingSource):
    ...     left = 3
    ...     def next_item(self):
    ...         self.left -= 1
    ...         if self.left < 0:
    ...             raise StopIteration()
    ...         return self.left
    >>> flow = Dataflow("countdown")
    >>> _ = op.inspect("out", op.input("in", flow, Countdown(timedelta(milliseconds=1))))
    >>> run_main(flow)
    countdown.out: 2
    countdown.out: 1
    countdown.out: 0
    """

    if not TYPE_CHECKING:

        def __class_getitem__(cls, params: Any) -> Any:
            """``SimplePollingSource[X]`` is one without state."""
            if cls is SimplePollingSource and not isinstance(params, tuple):
                params = (params, type(None))
            return super().__class_getitem__(params)

    class Retry(Exception):
        """Ask again after this time, without waiting for the interval."""

        def __init__(self, timeout: timedelta) -> None:
            super().__init__(timeout)
            self.timeout = timeout

    def __init__(self, interval: timedelta, align_to: datetime | None = None) -> None:
        if not isinstance(interval, timedelta):
            raise TypeError(f"interval: a timedelta; got {interval!r}")
        if interval < timedelta(0):
            raise ValueError(f"interval: not negative; got {interval!r}")
        if align_to is not None and align_to.tzinfo is None:
            raise ValueError(f"align_to: a datetime with a time zone, as in datetime(2024, 1, 1, tzinfo=timezone.utc); got {align_to!r}")
        self._interval = interval
        self._align_to = align_to

    def list_parts(self) -> list[str]:
        """One partition."""
        return ["singleton"]

    def build_part(self, step_id: str, for_part: str, resume_state: Sn | None) -> _Polling[X, Sn]:
        """The one partition. Its state is the source's own."""
        if resume_state is not None:
            self.resume(resume_state)
        return _Polling(self, datetime.now(timezone.utc))

    @abstractmethod
    def next_item(self) -> X | None:
        """The next item, or None."""

    def snapshot(self) -> Sn:
        """Where to go on. Without one, a resumed flow asks as if it were new."""
        return None  # type: ignore[return-value]

    def resume(self, resume_state: Sn) -> None:
        """Goes on where a snapshot was taken; called before the first ``next_item``."""
        return


class _Polling(StatefulSourcePartition[X, Sn]):
    def __init__(self, source: SimplePollingSource[X, Sn], now: datetime) -> None:
        self._source = source
        interval, align_to = source._interval, source._align_to
        if align_to is not None and interval:
            # The next whole interval after (or at) now.
            self._at = now + (align_to - now) % interval
        else:
            self._at = now

    def next_batch(self) -> list[X]:
        source = self._source
        try:
            item = source.next_item()
        except SimplePollingSource.Retry as e:
            self._at = datetime.now(timezone.utc) + e.timeout
            return []
        # From when it was due, not from now: or calls drift. Those that were missed are not made up for.
        self._at += source._interval
        now = datetime.now(timezone.utc)
        if self._at < now and source._interval:
            self._at += (now - self._at) // source._interval * source._interval
        return [] if item is None else [item]

    def next_awake(self) -> datetime | None:
        return self._at

    def snapshot(self) -> Sn:
        return self._source.snapshot()


def batch(ib: Iterable[X], batch_size: int) -> Iterator[list[X]]:
    """Cuts an iterable into lists of at most ``batch_size`` items.

    >>> from skep.dataflow.inputs import batch
    >>> list(batch(range(5), 2))
    [[0, 1], [2, 3], [4]]
    """
    _at_least_one(batch_size)
    it = iter(ib)
    while found := list(islice(it, batch_size)):
        yield found


def batch_getter(getter: Callable[[], X], batch_size: int, yield_on: X | None = None) -> Iterator[list[X]]:
    """Calls ``getter`` until it returns ``yield_on`` ("nothing yet"), or a batch is full. ``StopIteration`` from it ends the batches.

    >>> from skep.dataflow.inputs import batch_getter
    >>> it = iter([1, 2, None, 3])
    >>> list(batch_getter(lambda: next(it), 10))
    [[1, 2], [3]]
    """
    _at_least_one(batch_size)
    while True:
        found: list[X] = []
        while len(found) < batch_size:
            try:
                item = getter()
            except StopIteration:
                yield found
                return
            if item == yield_on:
                break
            found.append(item)
        yield found


def batch_getter_ex(getter: Callable[[], X], batch_size: int, yield_ex: type[Exception] | None = None) -> Iterator[list[X]]:
    """As :func:`batch_getter`, for a ``getter`` that raises ``yield_ex`` (``queue.Empty`` unless given) when there is nothing yet.

    >>> import queue
    >>> from skep.dataflow.inputs import batch_getter_ex
    >>> q = queue.Queue()
    >>> q.put(1); q.put(2)
    >>> batches = batch_getter_ex(q.get_nowait, 10)
    >>> next(batches), next(batches)
    ([1, 2], [])
    """
    _at_least_one(batch_size)
    if yield_ex is None:
        from queue import Empty

        yield_ex = Empty
    while True:
        found: list[X] = []
        while len(found) < batch_size:
            try:
                found.append(getter())
            except yield_ex:
                break
            except StopIteration:
                yield found
                return
        yield found


def batch_async(
    aib: AsyncIterable[X], timeout: timedelta, batch_size: int, loop: asyncio.AbstractEventLoop | None = None
) -> Iterator[list[X]]:
    """Runs an async iterable for at most ``timeout`` a batch, so that the rest of the flow goes on meanwhile.

    An item that is awaited when the time is over is not lost: the next batch waits on. ``loop``: the event loop to run it in; a new one
    unless given.

    >>> from datetime import timedelta
    >>> from skep.dataflow.inputs import batch_async
    >>> async def numbers():
    ...     for i in range(3):
    ...         yield i
    >>> list(batch_async(numbers(), timedelta(seconds=5), 2))
    [[0, 1], [2]]
    """
    import asyncio

    _at_least_one(batch_size)
    own = loop is None
    run = asyncio.new_event_loop() if loop is None else loop
    it = aib.__aiter__()
    waiting: asyncio.Task[X] | None = None

    async def step(task: asyncio.Task[X], left: float) -> bool:
        done, _ = await asyncio.wait([task], timeout=left)
        return bool(done)

    async def following() -> X:
        return await it.__anext__()

    try:
        while True:
            found: list[X] = []
            until = run.time() + timeout.total_seconds()
            while len(found) < batch_size:
                task: asyncio.Task[X] = waiting if waiting is not None else run.create_task(following())
                waiting = task
                if not run.run_until_complete(step(task, max(until - run.time(), 0.0))):
                    break
                waiting = None
                try:
                    found.append(task.result())
                except StopAsyncIteration:
                    if found:
                        yield found
                    return
            yield found
    finally:
        if waiting is not None:
            waiting.cancel()
        if own:
            run.close()


def _at_least_one(batch_size: Any) -> None:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size: a whole number, at least 1; got {batch_size!r}")
