"""A Swarm for tests, without WebAssembly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from . import host, models as _models
from . import registry
from .errors import PART_BYTES_MAX, QUOTA, UNKEYED, BeeError, Reject, Retry
from .message import Emit, Message, Timer
from .models import Signature, Tensor, model_error
from .payload import JSON, encode
from .process import Ends, process
from .report import Report
from .swarm import Swarm, not_granted

# As on a node, so that a test finds what a node would refuse.
STATE_VALUE_BYTES_MAX = 256 << 10
STATE_NAME_BYTES_MAX = 256
STATE_NAMES_MAX = 1_000
STATE_KEY_BYTES_MAX = 4 << 20
TIMERS_PER_KEY_MAX = 1_000


class Failed(BeeError):
    """A message that failed, as the node would see it; the Bee's own exception is its cause."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass
class Outcome:
    """What became of one message: the same whether a DevSwarm or the real engine ran the Bee."""

    #: Payload, output, key and headers of each.
    publish: list[tuple[bytes, str | None, str | None, list[tuple[str, str]]]] = field(default_factory=list)
    respond: list[bytes] = field(default_factory=list)
    #: ``done``, ``retry``, ``reject`` or ``fail``; with what it carries.
    ended: str = "done"
    about: str = ""
    #: The traceback of a failure. Its paths depend on where the Bee ran, so it does not count in a comparison.
    detail: str = field(default="", compare=False)


class DevSwarm(Swarm):
    """Records what a Bee did, and keeps state, timers and configuration in memory.

    A Bee is called as the plain function that it is::

        swarm = DevSwarm()
        hello(swarm, {"name": "Bee"}, None)
        assert swarm.published == [{"greeting": "Hello Bee"}]

    ``models={"digits": "digits.onnx"}`` grants models: the path of a file, which ``onnxruntime`` then runs, or a function that takes a dict of
    :class:`skep.Tensor` by name and answers another, of tensors or lists. ``http=function`` answers the Bee's requests in the network's place: it
    takes a :class:`skep.http.Request` and gives a :class:`skep.http.Response`, or raises a :class:`skep.http.HttpError`.

    :meth:`deliver` and :meth:`run` do more, and do it as a node would: payloads are bytes, state and timers belong to the message's
    key, and an exception drops what its message did.
    """

    __slots__ = ("_failures", "_memory", "_outcomes", "emits", "published", "responded", "responses")

    def __init__(
        self,
        key: str | None = None,
        *,
        config: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        models: Mapping[str, Any] | None = None,
        http: Callable[[Any], Any] | None = None,
        now_ms: int = 0,
    ) -> None:
        self._memory = Memory(dict(config or {}), dict(secrets or {}), dict(models or {}), http)
        super().__init__(self._memory)
        #: What was published and responded, as it was given, in order.
        self.published: list[Any] = []
        self.responded: list[Any] = []
        #: The same with outputs, keys and headers; and the bytes of the responses.
        self.emits: list[Emit] = []
        self.responses: list[bytes] = []
        self._outcomes: list[Outcome] = []
        self._failures: list[BaseException | None] = []
        # For plain calls: `skep.model` and `skep.http` have no Swarm at hand, so the DevSwarm made last, or running, is asked.
        host.use(self._memory)
        message: Message[Any] = Message(key=key, accepted_ms=now_ms)
        self._memory.begin(0, message)
        self._current = message
        self._effects.publish = _Recorded(self)
        self._effects.respond = _Answered(self)

    # --- as a node would ---------------------------------------------------------------------------------------------

    def run(self, bee: str, messages: Iterable[Any]) -> list[BaseException | None]:
        """Gives the Bee of this name a batch: messages, or payloads. Tells of each the exception that ended it, or None."""
        self._process(bee, [_one(message) for message in messages])
        return self._failures

    def outcomes(self, bee: str, messages: Iterable[Any]) -> list[Outcome]:
        """As :meth:`run`; tells all of what became of each, to be compared with what the real engine did."""
        self._process(bee, [_one(message) for message in messages])
        return self._outcomes

    def deliver(self, bee: str | Callable[..., Any], message: Any) -> None:
        """Gives the Bee one message, and raises what the Bee raised; what it did for it is then dropped."""
        (failure,) = self.run(_name(bee), [message])
        if failure is not None:
            raise failure

    def fire_until(self, until_ms: int, bee: str | Callable[..., Any]) -> int:
        """Fires every timer that is due, in order, those included that a firing sets. Gives back how many."""
        fired = 0
        while due := [t for t in self.pending_timers() if t.at_ms <= until_ms]:
            timer = min(due, key=lambda t: t.at_ms)
            before = dict(self._memory.timers[timer.key])
            # Before the function runs, so that it may set the same name anew.
            del self._memory.timers[timer.key][timer.name]
            self._process(_name(bee), [Fired(timer)])
            if (failure := self._failures[0]) is not None:
                self._memory.timers[timer.key] = before
                raise failure
            fired += 1
        return fired

    # --- what a test looks at ----------------------------------------------------------------------------------------

    @property
    def parts(self) -> list[bytes]:
        """The parts of responses that were sent, in order. What has left stays, however the message ended."""
        return self._memory.parts

    def stored(self, key: str, name: str, default: Any = None) -> Any:
        """A value in the state of ``key``, read as JSON."""
        data = self._memory.state.get(key, {}).get(name)
        return default if data is None else json.loads(data)

    def store(self, key: str, name: str, value: Any) -> None:
        self._memory.state.setdefault(key, {})[name] = encode(value, JSON)

    def pending_timers(self) -> list[Timer]:
        return [Timer(key, name, at) for key, timers in self._memory.timers.items() for name, at in timers.items()]

    def _process(self, bee: str, inputs: list[Any]) -> None:
        self._outcomes, self._failures = [], []
        host.use(self._memory)
        plain = (self._current, self._effects, self._form, self._memory.key)
        try:
            process(bee, inputs, self, _Recorder(self))
        finally:
            self._current, self._effects, self._form, self._memory.key = plain


def _name(bee: str | Callable[..., Any]) -> str:
    if isinstance(bee, str):
        return bee
    for found in registry.BEES.values():
        if found.function is bee:
            return found.name
    raise LookupError(f"{bee!r} is not registered: put @register_bee above it")


@dataclass
class One:
    value: Any


@dataclass
class Fired:
    value: Timer


class Wire:
    """A message as the bindings of a module have it."""

    __slots__ = ("accepted_ms", "attempt", "headers", "key", "payload", "uid")

    def __init__(self, message: Message[Any]) -> None:
        self.uid, self.key, self.headers, self.payload = message.uid, message.key, message.headers, message.data
        self.accepted_ms, self.attempt = message.accepted_ms, message.attempt


def _one(message: Any) -> One:
    return One(Wire(message if isinstance(message, Message) else Message(message)))


class _Recorded(list[Any]):
    """What a plain call publishes is recorded at once."""

    def __init__(self, swarm: DevSwarm) -> None:
        super().__init__()
        self._swarm = swarm

    def append(self, emit: Any) -> None:
        self._swarm.emits.append(emit)
        self._swarm.published.append(emit.payload)


class _Answered(list[Any]):
    def __init__(self, swarm: DevSwarm) -> None:
        super().__init__()
        self._swarm = swarm

    def append(self, response: Any) -> None:
        self._swarm.responded.append(response[0])
        self._swarm.responses.append(response[1])


class _Recorder(Ends):
    one = One
    timer = Fired

    def __init__(self, swarm: DevSwarm) -> None:
        self._swarm = swarm

    def _ended(self, outcome: Outcome, failure: BaseException | None) -> None:
        self._swarm._outcomes.append(outcome)
        self._swarm._failures.append(failure)

    def done(self, publish: list[Any], respond: list[Any]) -> None:
        swarm = self._swarm
        swarm.emits.extend(publish)
        swarm.published.extend(emit.payload for emit in publish)
        swarm.responded.extend(payload for payload, _ in respond)
        swarm.responses.extend(data for _, data in respond)
        out = [(emit.data, emit.to, emit.key, emit.headers) for emit in publish]
        self._ended(Outcome(out, [data for _, data in respond]), None)

    def retry(self, after_ms: int) -> None:
        self._ended(Outcome(ended="retry", about=str(after_ms)), Retry(after_ms / 1000))

    def reject(self, reason: str) -> None:
        self._ended(Outcome(ended="reject", about=reason), Reject(reason))

    def fail(self, found: Report, error: BaseException | None) -> None:
        failure = error if isinstance(error, Exception) else Failed(*found)
        self._ended(Outcome(ended="fail", about=found.reason, detail=found.detail), failure)


class Memory:
    """The node's side, in memory."""

    def __init__(
        self, config: dict[str, str], secrets: dict[str, str], models: dict[str, Any], http: Callable[[Any], Any] | None = None
    ) -> None:
        self._http = http
        self._config = config
        self._secrets = secrets
        #: Functions, files, and what was made of files.
        self._models = models
        self.key: str | None = None
        self.state: dict[str, dict[str, bytes]] = {}
        self.timers: dict[str, dict[str, int]] = {}
        #: What the current key had when its message began: a message can write to no other key.
        self._before: tuple[dict[str, bytes], dict[str, int]] = ({}, {})
        self.parts: list[bytes] = []

    def begin(self, index: int, message: Any) -> None:
        self.key = message.key
        if self.key is not None:
            self._before = (dict(self.state.get(self.key, {})), dict(self.timers.get(self.key, {})))

    def abandon(self, index: int) -> None:
        if self.key is not None:
            self.state[self.key], self.timers[self.key] = self._before

    def _keyed(self) -> str:
        if self.key is None:
            raise BeeError(UNKEYED)
        return self.key

    def state_get(self, name: str) -> bytes | None:
        return self.state.get(self._keyed(), {}).get(name)

    def state_put(self, name: str, value: bytes) -> None:
        values = self.state.setdefault(self._keyed(), {})
        for what, size, most in (
            ("name", len(name.encode()), STATE_NAME_BYTES_MAX),
            ("value", len(value), STATE_VALUE_BYTES_MAX),
        ):
            if size > most:
                raise ValueError(f"a {what} in state has at most {most} bytes, this one {size}")
        held = sum(len(n.encode()) + len(v) for n, v in values.items() if n != name) + len(name.encode()) + len(value)
        if (len(values) >= STATE_NAMES_MAX and name not in values) or held > STATE_KEY_BYTES_MAX:
            raise BeeError(QUOTA)
        values[name] = value

    def state_delete(self, name: str) -> None:
        self.state.get(self._keyed(), {}).pop(name, None)

    def timer_set(self, name: str, at_ms: int) -> None:
        timers = self.timers.setdefault(self._keyed(), {})
        if len(timers) >= TIMERS_PER_KEY_MAX and name not in timers:
            raise BeeError(QUOTA)
        timers[name] = at_ms

    def timer_cancel(self, name: str) -> None:
        self.timers.get(self._keyed(), {}).pop(name, None)

    def part(self, data: bytes) -> None:
        if len(data) > PART_BYTES_MAX:
            raise ValueError(f"a part of a response has at most {PART_BYTES_MAX} bytes, this one {len(data)}: split it")
        self.parts.append(data)

    def config(self) -> Mapping[str, str]:
        return self._config

    def secret(self, name: str) -> str:
        if name in self._secrets:
            return self._secrets[name]
        raise not_granted(name)

    def _model(self, name: str) -> Any:
        if name not in self._models:
            raise model_error(
                "not-granted",
                f"model {name!r} is not granted: add it to the Bee's `models: [...]` in the manifest (DevSwarm: models={{{name!r}: ...}})",
            )
        found = self._models[name]
        if isinstance(found, (str, PathLike)):
            from .onnx import Onnx

            found = self._models[name] = Onnx(name, found)
        elif not callable(found):
            raise TypeError(f"DevSwarm(models=): {name!r} is a function or the path of an .onnx file, not {type(found).__name__}")
        return found

    def describe(self, name: str) -> Signature:
        return getattr(self._model(name), "signature", None) or Signature()

    def predict(self, name: str, inputs: list[_models.Wire]) -> list[_models.Wire]:
        found = self._model(name)
        answer = found({name: Tensor._of(dtype, shape, data) for name, dtype, shape, data in inputs})
        if not isinstance(answer, Mapping):
            raise TypeError(f"the function for model {name!r} answers a dict of its outputs by name, not {type(answer).__name__}")
        outputs = [(name, Tensor(value)) for name, value in answer.items()]
        return [(name, tensor.dtype, tensor.shape, tensor._data) for name, tensor in outputs]

    def fetch(self, request: Any) -> Any:
        from .http import HttpError, Response

        if self._http is None:
            raise HttpError(
                "http-request-denied",
                f"{request.shown}: no hosts are granted: list them in the Bee's `http: [...]` in the manifest (DevSwarm: http=function)",
            )
        answer = self._http(request)
        if not isinstance(answer, Response):
            raise TypeError(f"DevSwarm(http=): the function answers a skep.http.Response, not {type(answer).__name__}")
        return answer

    def emit(self, payload: Any, data: bytes, to: str | None, key: str | None, headers: Any) -> Emit:
        return Emit(payload, data, to, key, headers)

    def response(self, payload: Any, data: bytes) -> tuple[Any, bytes]:
        return (payload, data)
