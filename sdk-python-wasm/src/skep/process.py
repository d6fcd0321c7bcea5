"""One call of the node: a batch in, one outcome an input out.

    inputs -> begin(i) -> the user's function -> done:      what it published and responded
                                              -> exception: abandon(i) if it wrote; nothing but the failure

An exception is its message's failure and no other's. A Bee that takes batches is called with all messages of a run; when it raises,
nothing of that run has happened, and its messages come again one at a time, so that the next exception has one message to blame. Only
what such a Bee kept in state cannot be taken back: then the messages before the current one are done, for it had passed them.
"""

from __future__ import annotations

from typing import Any

from . import registry
from .errors import Reject, Retry
from .message import Message, Timer
from .report import Report, report
from .swarm import Effects, Swarm


class Ends:
    """How inputs come and end, in whatever form the host has for it."""

    #: The types of a message and of a timer that fired, each with its ``value``.
    one: type[Any]
    timer: type[Any]

    def done(self, publish: list[Any], respond: list[Any]) -> Any:
        raise NotImplementedError

    def retry(self, after_ms: int) -> Any:
        raise NotImplementedError

    def reject(self, reason: str) -> Any:
        raise NotImplementedError

    def fail(self, found: Report, error: BaseException | None) -> Any:
        raise NotImplementedError


def process(name: str, inputs: list[Any], swarm: Swarm, ends: Ends) -> list[Any]:
    """Runs the Bee of this name. An unknown name fails every input: a manifest that names it can be mended while they wait."""
    bee = registry.BEES.get(name)
    if bee is None:
        has = ", ".join(registry.BEES) or "none"
        found = Report("unknown-bee", f"this module has no Bee `{name}`; it has: {has}")
        return [ends.fail(found, None) for _ in inputs]
    if bee.batch:
        return _batches(bee, inputs, swarm, ends)
    outcomes = []
    function, form, arity, whole = bee.function, bee.form, bee.arity, bee.takes_message
    begin, from_wire, one = swarm._host.begin, Message._from_wire, ends.one
    swarm._batch = None
    for index, given in enumerate(inputs):
        if type(given) is not one:
            outcomes.append(_alone(bee, given, index, swarm, ends))
            continue
        message = from_wire(given.value, form, index)
        begin(index, message)
        swarm._begin(message, form)
        try:
            payload = message if whole else message.payload
            if arity == 3:
                function(swarm, payload, message)
            else:
                function(swarm, payload)
        except BaseException as e:
            outcomes.append(_failed(e, index, swarm, ends))
        else:
            effects = swarm._effects
            outcomes.append(ends.done(effects.publish, effects.respond))
    return outcomes


def _failed(error: BaseException, index: int, swarm: Swarm, ends: Ends) -> Any:
    if swarm._wrote:
        swarm._wrote = False
        swarm._host.abandon(index)
    return _ended(error, ends)


def _ended(error: BaseException, ends: Ends) -> Any:
    if isinstance(error, Retry):
        return ends.retry(error.after_ms)
    if isinstance(error, Reject):
        return ends.reject(error.reason)
    try:
        found = report(error)
    except BaseException as e:  # An exception whose own text cannot be had.
        found = Report(type(error).__name__, f"{type(error).__name__}; and its text cannot be had: {type(e).__name__}")
    return ends.fail(found, error)


def _alone(bee: registry.Bee, given: Any, index: int, swarm: Swarm, ends: Ends) -> Any:
    """Whatever is not a message."""
    value = given.value
    if type(given) is not ends.timer:
        found = Report("joined-input", f"the Bee {bee.where} takes messages one by one, not joined ones")
        return ends.fail(found, None)
    if bee.timer is None:
        text = f"the timer `{value.name}` fired and the Bee {bee.where} has no function for it: add timer= to register_bee"
        return ends.fail(Report("no-timer-function", text), None)
    timer = Timer(value.key, value.name, value.at_ms, attempt=value.attempt, uid=value.uid)
    swarm._batch = None
    swarm._host.begin(index, timer)
    swarm._begin(timer, bee.form)
    try:
        bee.timer(swarm, timer)
    except BaseException as e:
        return _failed(e, index, swarm, ends)
    return ends.done(swarm._effects.publish, swarm._effects.respond)


class Run(list[Message[Any]]):
    """The messages of one call of a Bee for batches. Passing over one makes it current: state, clock and log are its."""

    __slots__ = ("_first", "_swarm")

    def __init__(self, messages: list[Message[Any]], swarm: Swarm, first: int) -> None:
        super().__init__(messages)
        self._swarm = swarm
        self._first = first

    def __iter__(self) -> Any:
        swarm, first = self._swarm, self._first
        for position, message in enumerate(super().__iter__()):
            # Once only: a second pass finds the last message current.
            if swarm._current is None or position > swarm._current._index:
                swarm._host.begin(first + position, message)
                swarm._current = message
                if swarm._wrote:
                    swarm._wrote = False
                    swarm._kept = position
            yield message


def _batches(bee: registry.Bee, inputs: list[Any], swarm: Swarm, ends: Ends) -> list[Any]:
    outcomes: list[Any] = []
    run: list[Any] = []

    def flush() -> None:
        # One that failed before comes alone.
        if all(wire.attempt == 1 for wire in run):
            outcomes.extend(_together(bee, run, len(outcomes), swarm, ends))
        else:
            for wire in run:
                outcomes.extend(_together(bee, [wire], len(outcomes), swarm, ends))
        run.clear()

    for given in inputs:
        if type(given) is ends.one:
            run.append(given.value)
        else:
            flush()
            outcomes.append(_alone(bee, given, len(outcomes), swarm, ends))
    flush()
    return outcomes


def _together(bee: registry.Bee, wires: list[Any], first: int, swarm: Swarm, ends: Ends) -> list[Any]:
    if not wires:
        return []
    messages = [Message._from_wire(wire, bee.form, position) for position, wire in enumerate(wires)]
    batch = [Effects() for _ in messages]
    swarm._batch = batch
    swarm._form = bee.form
    swarm._current = None
    swarm._wrote = False
    swarm._kept = 0
    if len(messages) == 1:
        swarm._host.begin(first, messages[0])
        swarm._current = messages[0]
    try:
        bee.function(swarm, Run(messages, swarm, first))
    except BaseException as e:
        return _torn(e, batch, first, swarm, ends)
    finally:
        swarm._batch = None
    return [
        ends.done(effects.publish, effects.respond) if effects.ended is None else _ended(effects.ended, ends)
        for effects in batch
    ]


def _torn(error: BaseException, batch: list[Effects], first: int, swarm: Swarm, ends: Ends) -> list[Any]:
    """A batch that raised: what was kept in state stays, the rest did not happen."""
    current = 0 if swarm._current is None else swarm._current._index
    if swarm._wrote:
        swarm._wrote = False
        swarm._host.abandon(first + current)
    kept = swarm._kept
    outcomes = []
    for position, effects in enumerate(batch):
        if position < kept and effects.ended is None:
            outcomes.append(ends.done(effects.publish, effects.respond))
        else:
            outcomes.append(_ended(effects.ended or error, ends))
    return outcomes
