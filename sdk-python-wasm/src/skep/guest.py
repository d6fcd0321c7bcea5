"""The module's side of the WIT world: what the node calls, and what a Bee's Swarm calls of the node.

Imported only where a component is made, for the bindings exist nowhere else.
"""

from __future__ import annotations

import gc
import importlib
import logging
import random
import sys
from collections.abc import Mapping
from typing import Any

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.handler import Bee
from wit_world.imports import (
    logging as node_log,
)
from wit_world.imports import models as node_models
from wit_world.imports import reply, secrets, state, step, store, timers

try:
    from wit_world.imports import types
except ImportError:
    # Where `wasi:http` comes with types of its own, both are named by their packages.
    from wit_world.imports import skep_bee_types as types

from . import host, models, registry, watch
from .errors import NO_CALLER, QUOTA, UNKEYED, BeeError, CallerGone
from .message import Message
from .models import Port, Signature, Wire
from .process import Ends, process
from .report import Report, report
from .swarm import Swarm, no_such_secret, not_granted


def _refused(error: Err) -> Exception:
    """What the node says no to, in the same words as a DevSwarm's."""
    kind = type(error.value).__name__
    if kind in ("Error_Unkeyed", "Error_NoStep"):
        return BeeError(UNKEYED)
    if kind == "Error_TooLarge":
        return ValueError(f"a name or value in state has at most {error.value.value} bytes")
    return BeeError(QUOTA)


def _no_prediction(error: Err) -> Exception:
    kind = error.value.kind.name.lower().replace("_", "-")
    return models.model_error(kind, error.value.text)


def _ports(ports: Any) -> tuple[Port, ...]:
    return tuple(Port(port.name, port.kind, tuple(port.shape)) for port in ports)


class Node:
    """The node, through its imports."""

    #: A module that uses `random` has its generator as the build left it; each message brings its own seed, the same at each attempt.
    reseed = False

    def begin(self, index: int, message: Any) -> None:
        step.begin(index)
        if self.reseed:
            random.seed(message.uid)
        if message.attempt > 1:
            watch.start()

    def abandon(self, index: int) -> None:
        step.abandon(index)

    def state_get(self, name: str) -> bytes | None:
        try:
            return state.get(name)  # type: ignore[no-any-return]
        except Err as e:
            raise _refused(e) from None

    def state_put(self, name: str, value: bytes) -> None:
        try:
            state.put(name, value)
        except Err as e:
            raise _refused(e) from None

    def state_delete(self, name: str) -> None:
        try:
            state.delete(name)
        except Err as e:
            raise _refused(e) from None

    def timer_set(self, name: str, at_ms: int) -> None:
        try:
            timers.set(name, at_ms)
        except Err as e:
            raise _refused(e) from None

    def timer_cancel(self, name: str) -> None:
        try:
            timers.cancel(name)
        except Err as e:
            raise _refused(e) from None

    def part(self, data: bytes) -> None:
        try:
            reply.part(data)
        except Err as e:
            kind = type(e.value).__name__
            if kind == "Error_Closed":
                raise CallerGone("the caller went away") from None
            if kind == "Error_TooLarge":
                raise ValueError(f"parts of a response have at most {e.value.value} bytes here: split it") from None
            raise BeeError(NO_CALLER) from None

    def config(self) -> Mapping[str, str]:
        return dict(store.get_all())

    def secret(self, name: str) -> str:
        try:
            value: bytes = secrets.get(name)
        except Err as e:
            if type(e.value).__name__ == "Error_Missing":
                raise no_such_secret(name) from None
            raise not_granted(name) from None
        return value.decode()

    def describe(self, name: str) -> Signature:
        try:
            found = node_models.describe(name)
        except Err as e:
            raise _no_prediction(e) from None
        return Signature(_ports(found.inputs), _ports(found.outputs))

    def predict(self, name: str, inputs: list[Wire]) -> list[Wire]:
        given = [(name, node_models.Tensor(kind, list(shape), data)) for name, kind, shape, data in inputs]
        try:
            answer = node_models.predict(name, given)
        except Err as e:
            raise _no_prediction(e) from None
        return [(name, tensor.kind, tensor.shape, tensor.data) for name, tensor in answer]

    #: Set where the module sends requests: else the component has none of it.
    fetch: Any = None

    @staticmethod
    def emit(payload: Any, data: bytes, to: str | None, key: str | None, headers: Any) -> Any:
        return types.Emit(to, key, headers, data)

    @staticmethod
    def response(payload: Any, data: bytes) -> Any:
        return data


_DONE = types.Disposition_Done()


class Outcomes(Ends):
    one = types.Input_One
    timer = types.Input_Timer

    def done(self, publish: list[Any], respond: list[Any]) -> Any:
        return types.Outcome(publish, respond, _DONE)

    def retry(self, after_ms: int) -> Any:
        return types.Outcome([], [], types.Disposition_RetryAfter(after_ms))

    def reject(self, reason: str) -> Any:
        return types.Outcome([], [], types.Disposition_Reject(reason))

    def fail(self, found: Report, error: BaseException | None) -> Any:
        node_log.log(node_log.Level.ERROR, "skep", found.detail)
        return types.Outcome([], [], types.Disposition_Fail(types.Failure(found.reason, found.detail)))


class ToNode(logging.Handler):
    """`logging` to `skep logs`."""

    def emit(self, record: logging.LogRecord) -> None:
        level = node_log.Level.DEBUG
        for least, named in _LEVELS:
            if record.levelno >= least:
                level = named
                break
        node_log.log(level, record.name, self.format(record))


_LEVELS = (
    (logging.CRITICAL, node_log.Level.CRITICAL),
    (logging.ERROR, node_log.Level.ERROR),
    (logging.WARNING, node_log.Level.WARN),
    (logging.INFO, node_log.Level.INFO),
)

_node = Node()
_swarm = Swarm(_node)
_ends = Outcomes()
_started = False


#: What the standard library itself imports only when it is needed, and could not any more at run time.
_LATE = (
    "_strptime",
    *(f"encodings.{name}" for name in ("ascii", "cp1252", "idna", "latin_1", "utf_16", "utf_16_be", "utf_16_le", "utf_8_sig")),
    *(f"encodings.{name}" for name in ("base64_codec", "hex_codec", "raw_unicode_escape", "unicode_escape")),
)


def prepare() -> None:
    """Before the user's module is read."""
    for name in _LATE:
        importlib.import_module(name)
    logging.getLogger().addHandler(ToNode())
    logging.getLogger().setLevel(logging.INFO)
    logging.raiseExceptions = False
    # Else what is printed would wait in a buffer that goes with the instance.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def ready() -> None:
    """After it was read, as the last thing before the memory is kept."""
    _node.reseed = any(
        value is random or getattr(value, "__self__", None) is random._inst
        for name, module in list(sys.modules.items())
        if not name.startswith("skep") and getattr(module, "__file__", None) and _is_users(module.__file__)
        for value in vars(module).values()
    )
    if "skep.http" in sys.modules:
        from .guest_http import fetch

        Node.fetch = staticmethod(fetch)
    _WARMERS.extend(_warmers())
    _warm(_TURNS)
    # What is here for good need not be looked at, nor its pages be written, by each instance's collections.
    gc.collect()
    gc.freeze()


class _NoNode(Node):
    """In the node's place while the component is made."""

    def begin(self, index: int, message: Any) -> None: ...
    def abandon(self, index: int) -> None: ...
    def state_put(self, name: str, value: bytes) -> None: ...

    def state_get(self, name: str) -> bytes | None:
        return b"1"


#: CPython fits code to what it sees within fewer turns.
_TURNS = 64
#: What `_warm` runs: a Bee a form of payload.
_WARMERS: list[registry.Bee] = []


def _warmers() -> list[registry.Bee]:
    def json_bee(swarm: Swarm, payload: Any, context: Any) -> None:
        swarm.state["n"] = swarm.state.get("n", 0) + 1
        swarm.publish(payload, context=context, key="k")
        swarm.respond(payload)

    def raw_bee(swarm: Swarm, payload: bytes) -> None:
        swarm.publish(payload)
        swarm.respond(payload)

    def text_bee(swarm: Swarm, payload: str) -> None:
        swarm.publish(payload)

    def batch_bee(swarm: Swarm, messages: list[Message[bytes]]) -> None:
        for message in messages:
            swarm.publish(message.payload, context=message)

    return [registry.Bee("", function, None) for function in (json_bee, raw_bee, text_bee, batch_bee)]


def _warm(turns: int) -> None:
    """Runs what every message runs, so that no caller waits for what only the first one does.

    At the build: CPython writes into code that is new to it, and does not any more once the code has run, so instances find it fitted, and
    share its pages instead of each copying its own. In an instance: what is still written to is copied then, and not in its first call.
    """
    inputs = [types.Input_One(types.Message(bytes(16), "k", [], b'{"a":1}', 1, 1)) for _ in range(turns)]
    swarm = Swarm(_NoNode())
    for bee in _WARMERS:
        # No Bee of a user has an empty name.
        registry.BEES[""] = bee
        process("", inputs, swarm, _ends)
    del registry.BEES[""]


def _is_users(path: str | None) -> bool:
    return path is not None and any(path.startswith(root) for root in registry.ROOTS)


def started(inputs: Any) -> list[Any] | None:
    """Before an instance's first call: what is to be done once. The outcomes of these inputs, where it failed."""
    global _started
    if not _started:
        host.use(_node)
        try:
            for start in registry.STARTS:
                start()
        except BaseException as e:
            found = report(e)
            found = Report(found.reason, f"in a function marked @on_start: {found.detail}")
            return [_ends.fail(found, e) for _ in inputs]
        _started = True
    return None


class Handler(exports.Handler):  # type: ignore[misc]
    def bees(self) -> Any:
        # The node asks at an upload, and again in each instance that it prepares for a call to come.
        _warm(1)
        return [Bee(name) for name in registry.BEES]

    def process(self, bee: str, inputs: Any) -> Any:
        failed = started(inputs)
        if failed is not None:
            return failed
        # Read anew: another stage may run the same module.
        _swarm._config = None
        outcomes = process(bee, inputs, _swarm, _ends)
        watch.stop()
        return outcomes
