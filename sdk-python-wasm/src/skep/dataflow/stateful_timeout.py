"""State that goes when a key falls silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from . import KeyedStream
from .graph import f_repr, operator
from .operators import StatefulBatchLogic, quiet_end, stateful_batch
from .operators.windowing.moments import TICK, after, check_span, micros, moment_of, system_utc, to_utc

V = TypeVar("V")
W = TypeVar("W")
S = TypeVar("S")

__all__ = ["stateful_flat_map_timeout", "stateful_map_timeout"]


class _TimeoutLogic(StatefulBatchLogic[Any, Any, Any]):
    """A key's state, and when its last value came."""

    __slots__ = ("_last", "_mapper", "_now", "_on_timeout", "_state", "_step_id", "_timeout")

    def __init__(
        self,
        step_id: str,
        mapper: Callable[[Any, Any], tuple[Any, Iterable[Any]]],
        timeout: timedelta,
        on_timeout: Callable[[Any], Iterable[Any]] | None,
        now: Callable[[], datetime],
        resume_state: Any,
    ) -> None:
        self._step_id = step_id
        self._mapper = mapper
        self._timeout = timeout
        self._on_timeout = on_timeout
        self._now = now
        self._state: Any = None
        self._last: datetime | None = None
        if resume_state is not None:
            self._state, last = resume_state
            self._last = moment_of(last)

    def _expire(self, now: datetime) -> Iterable[Any]:
        if self._state is None or self._last is None or now < after(self._last, self._timeout):
            return ()
        state, self._state = self._state, None
        return () if self._on_timeout is None else self._on_timeout(state)

    def on_batch(self, values: list[Any]) -> tuple[Iterable[Any], bool]:
        now = to_utc(self._now(), "what `_now_getter` returns")
        out = list(self._expire(now))
        self._last = now
        for value in values:
            got = self._mapper(self._state, value)
            if not isinstance(got, tuple) or len(got) != 2:
                raise TypeError(f"step {self._step_id!r}: {f_repr(self._mapper)} must return (state, what to emit); got {got!r}")
            self._state, emit = got
            out.extend(emit)
        return out, self._state is None

    def on_notify(self) -> tuple[Iterable[Any], bool]:
        out = self._expire(to_utc(self._now(), "what `_now_getter` returns"))
        return out, self._state is None

    def notify_at(self) -> datetime | None:
        try:
            return None if self._last is None else self._last + self._timeout
        except OverflowError:
            return None

    def snapshot(self) -> Any:
        assert self._last is not None
        return self._state, micros(self._last)


def _quiet(
    step_id: str,
    mapper: Callable[[Any, Any], Any],
    timeout: timedelta,
    on_timeout: Callable[[Any], Iterable[Any]] | None,
    now_getter: Callable[[], datetime],
) -> Callable[[Any], _TimeoutLogic]:
    def build(state: Any) -> _TimeoutLogic:
        return _TimeoutLogic(step_id, mapper, timeout, on_timeout, now_getter, state)

    return quiet_end(build, timed=True)


def _check(step_id: str, mapper: object, timeout: object, on_timeout: object) -> None:
    check_span(timeout, f"step {step_id!r}: `timeout`", least=TICK)
    for name, function in (("mapper", mapper), ("on_timeout", on_timeout)):
        if not callable(function) and not (name == "on_timeout" and function is None):
            raise TypeError(f"step {step_id!r}: `{name}` must be a function; got {function!r} ({type(function).__name__})")


@operator
def stateful_flat_map_timeout(
    step_id: str,
    up: KeyedStream[V],
    mapper: Callable[[S | None, V], tuple[S | None, Iterable[W]]],
    timeout: timedelta,
    on_timeout: Callable[[S], Iterable[W]] | None = None,
    _now_getter: Callable[[], datetime] = system_utc,
) -> KeyedStream[W]:
    """As ``stateful_flat_map``, and the state of a key to which no value came for ``timeout`` is discarded.

    ``on_timeout(state)`` says what to emit then: nothing, unless given.

    >>> from datetime import timedelta
    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.stateful_timeout import stateful_flat_map_timeout
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> flow = Dataflow("eg")
    >>> s = op.input("in", flow, TestingSource([("a", 1), ("a", 2)]))
    >>> s = stateful_flat_map_timeout("sum", s, lambda total, n: ((total or 0) + n, [(total or 0) + n]), timedelta(hours=1))
    >>> _ = op.inspect("out", s)
    >>> run_main(flow)
    eg.out: ('a', 1)
    eg.out: ('a', 3)
    """
    _check(step_id, mapper, timeout, on_timeout)
    return stateful_batch("stateful_batch", up, _quiet(step_id, mapper, timeout, on_timeout, _now_getter))


@operator
def stateful_map_timeout(
    step_id: str,
    up: KeyedStream[V],
    mapper: Callable[[S | None, V], tuple[S | None, W]],
    timeout: timedelta,
    _now_getter: Callable[[], datetime] = system_utc,
) -> KeyedStream[W]:
    """As ``stateful_map``, and the state of a key to which no value came for ``timeout`` is discarded. Nothing is emitted then."""
    _check(step_id, mapper, timeout, None)

    def flat(state: S | None, value: V) -> tuple[S | None, Iterable[W]]:
        got = mapper(state, value)
        if not isinstance(got, tuple) or len(got) != 2:
            raise TypeError(f"step {step_id!r}: {f_repr(mapper)} must return (state, value); got {got!r}")
        return got[0], (got[1],)

    return stateful_batch("stateful_batch", up, _quiet(step_id, flat, timeout, None, _now_getter))
