"""The flow as data: steps inside steps, down to the core operators that a runner knows.

An operator is a function whose first argument is a step ID. Called, it adds a step to the flow of the streams that it was given. What it
calls meanwhile becomes its substeps, so a flow is a tree whose leaves are core operators. The tree is for people (errors, drawings); what
runs is its leaves, in the order in which they were made. That order is topological: a stream has to be there before it can be used, which
is also why a flow has no cycles.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

P = ParamSpec("P")
R = TypeVar("R")
X_co = TypeVar("X_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_HERE = os.path.abspath(__file__)
_STREAM_TEXT = re.compile(r"^['\"]?(\w+\.)*(Keyed)?Stream\b")


def f_repr(f: object) -> str:
    """A function as people look for it: its name, file and line.

    >>> f_repr(len)
    '<built-in function len>'
    """
    f = inspect.unwrap(f) if callable(f) else f
    code = getattr(f, "__code__", None)
    if code is None:
        return f"{f!r}"
    return f"<function {getattr(f, '__qualname__', code.co_name)} at {code.co_filename}:{code.co_firstlineno}>"


@dataclass(eq=False)
class Operator:
    """A step: one call of an operator."""

    #: What it is called in its scope.
    step_name: str
    #: Its whole name: the flow's, those of the steps around it, its own, with periods between.
    step_id: str
    #: The name of the operator's function.
    op_type: str
    #: Whether a runner knows it. A core operator has no substeps.
    core: bool
    #: Streams that come in, by the name of the argument.
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: Streams that go out, by the name of the result.
    outputs: dict[str, str] = field(default_factory=dict)
    #: All other arguments.
    args: dict[str, Any] = field(default_factory=dict)
    substeps: list[Operator] = field(default_factory=list)
    #: File and line of the call, where that is no code of this package.
    where: str | None = None
    #: The step that people know it by: itself, or the innermost one around it that their own code made.
    shown: Operator | None = None

    def leaves(self) -> Iterator[Operator]:
        """The core operators that it is made of."""
        if self.core:
            yield self
        for step in self.substeps:
            yield from step.leaves()

    def title(self) -> str:
        """How an error names it."""
        shown = self.shown or self
        return f"step {shown.step_id!r} ({shown.op_type}{f', {shown.where}' if shown.where else ''})"


@dataclass(eq=False)
class Dataflow:
    """A flow, empty at first. Operators add their steps to it.

    >>> from skep.dataflow import Dataflow
    >>> Dataflow("orders").flow_id
    'orders'
    """

    #: Without periods. Recovery knows the flow by it.
    flow_id: str
    substeps: list[Operator] = field(default_factory=list, repr=False)
    _ids: set[str] = field(default_factory=set, repr=False)
    #: Steps that are being made, the innermost last.
    _open: list[Operator] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.flow_id, str):
            raise TypeError(f"a flow's ID is text; got {self.flow_id!r}")
        if not self.flow_id:
            raise ValueError("a flow's ID can't be empty")
        if "." in self.flow_id:
            raise ValueError(f"a flow's ID can't have a period in it, as step IDs are made with periods; got {self.flow_id!r}")

    def leaves(self) -> Iterator[Operator]:
        """The core operators, each after those whose streams it takes."""
        for step in self.substeps:
            yield from step.leaves()


class Stream(Generic[X_co]):
    """What flows from one step to the next. Operators make streams; nobody else does.

    A keyed stream is one of ``(key, value)`` tuples, whose key is text: :data:`KeyedStream`.
    """

    __slots__ = ("_flow", "stream_id")

    def __init__(self, stream_id: str, _flow: Dataflow) -> None:
        self.stream_id = stream_id
        self._flow = _flow

    def flow(self) -> Dataflow:
        """The flow that it is part of."""
        return self._flow

    def then(self, op_fn: Callable[Concatenate[str, Stream[X_co], P], R], step_id: str, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same as ``op_fn(step_id, self, ...)``, for steps one below the other.

        >>> import skep.dataflow.operators as op
        >>> from skep.dataflow import Dataflow
        >>> from skep.dataflow.testing import TestingSource, run_main
        >>> flow = Dataflow("then")
        >>> s = (
        ...     op.input("in", flow, TestingSource(range(4)))
        ...     .then(op.map, "double", lambda x: x * 2)
        ...     .then(op.filter, "big", lambda x: x > 2)
        ... )
        >>> _ = op.inspect("out", s)
        >>> run_main(flow)
        then.out: 4
        then.out: 6
        """
        return op_fn(step_id, self, *args, **kwargs)

    def __repr__(self) -> str:
        return f"Stream({self.stream_id!r})"


@overload
def operator(builder: F) -> F: ...
@overload
def operator(builder: None = None, *, _core: bool = False) -> Callable[[F], F]: ...
def operator(builder: Any = None, *, _core: bool = False) -> Any:
    """Makes an operator of a function.

    Its first parameter is ``step_id``; at least one argument is a :class:`Stream`, or the :class:`Dataflow`. Inside, ``step_id`` is the whole
    name of the step, and the steps made there need names that are unique there only. It returns a stream, a dataclass or tuple of streams,
    or nothing. Annotate what is a stream: then a wrong argument is named at once.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow, Stream, operator
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> @operator
    ... def add(step_id: str, up: Stream[int], n: int) -> Stream[int]:
    ...     return op.map("add", up, lambda x: x + n)
    >>> flow = Dataflow("custom")
    >>> s = add("ten", op.input("in", flow, TestingSource([1, 2])), 10)
    >>> _ = op.inspect("out", s)
    >>> run_main(flow)
    custom.out: 11
    custom.out: 12
    """

    def decorate(function: F) -> F:
        form = _Form(function, _core)

        @functools.wraps(function)
        def make(*args: Any, **kwargs: Any) -> Any:
            return form.make(args, kwargs)

        return make  # type: ignore[return-value]

    return decorate if builder is None else decorate(builder)


class _Form:
    """What is known of an operator before it is called."""

    def __init__(self, function: Callable[..., Any], core: bool) -> None:
        self.function = function
        self.core = core
        self.signature = inspect.signature(function)
        self.name: str = getattr(function, "__name__", "operator")
        if "step_id" not in self.signature.parameters:
            raise TypeError(f"an operator's first parameter is `step_id`; {f_repr(function)} has none")
        self._hints: dict[str, bool] | None = None

    def hints(self) -> dict[str, bool]:
        """For each parameter and ``return``, whether it is annotated as a stream. Late, as annotations may name what comes later in the file."""
        if self._hints is None:
            raw = getattr(self.function, "__annotations__", {})
            try:
                found = typing.get_type_hints(self.function)
            except Exception:  # A name that only a type checker knows.
                found = raw
            self._hints = {name: _is_stream(found.get(name, hint)) for name, hint in raw.items()}
        return self._hints

    def make(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        where = _caller()
        at = f" ({where})" if where else ""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as e:
            raise TypeError(f"operator `{self.name}` can't be called like this: {e}; it takes {self.signature}{at}") from None
        bound.apply_defaults()
        name = bound.arguments["step_id"]
        if not isinstance(name, str):
            raise TypeError(f"operator `{self.name}`: `step_id` must be text; got {name!r}{at}")
        if not name:
            raise ValueError(f"operator `{self.name}`: `step_id` can't be empty{at}")
        if "." in name:
            raise ValueError(f"operator `{self.name}`: `step_id` can't have a period in it; got {name!r}{at}")
        inputs, others, flow = self._sort(name, bound, at)
        around = flow._open[-1] if flow._open else None
        step_id = f"{around.step_id if around else flow.flow_id}.{name}"
        if step_id in flow._ids:
            raise ValueError(f"the flow has a step {step_id!r} already; give this one another `step_id`{at}")
        step = Operator(name, step_id, self.name, self.core, inputs, {}, others, [], where)
        step.shown = step if where or around is None else around.shown
        bound.arguments["step_id"] = step_id
        siblings = around.substeps if around else flow.substeps
        siblings.append(step)
        flow._ids.add(step_id)
        flow._open.append(step)
        try:
            result = self.function(*bound.args, **bound.kwargs)
            step.outputs = self._results(step, result)
        except BaseException:
            # A step whose making failed was never there.
            siblings.remove(step)
            flow._ids = {known for known in flow._ids if known != step_id and not known.startswith(step_id + ".")}
            raise
        finally:
            flow._open.pop()
        return result

    def _sort(self, name: str, bound: inspect.BoundArguments, at: str) -> tuple[dict[str, tuple[str, ...]], dict[str, Any], Dataflow]:
        hints = self.hints()
        inputs: dict[str, tuple[str, ...]] = {}
        others: dict[str, Any] = {}
        flows: list[Dataflow] = []
        for parameter, value in bound.arguments.items():
            if parameter == "step_id":
                continue
            kind = self.signature.parameters[parameter].kind
            many = kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            if hints.get(parameter):
                for one in (value.values() if isinstance(value, dict) else value) if many else [value]:
                    if not isinstance(one, Stream):
                        raise TypeError(
                            f"operator `{self.name}`, step {name!r}: `{parameter}` must be a Stream; got {_short(one)}; "
                            f"an operator that returns several streams gives an object: take one of its fields{at}"
                        )
            streams = [one for one in _members(value) if isinstance(one, Stream)]
            if streams:
                inputs[parameter] = tuple(stream.stream_id for stream in streams)
                flows.extend(stream._flow for stream in streams)
            elif isinstance(value, Dataflow):
                flows.append(value)
                others[parameter] = value
            elif not (many and hints.get(parameter)):
                others[parameter] = value
        if not flows:
            if "flow" in self.signature.parameters:
                raise TypeError(f"operator `{self.name}`, step {name!r}: `flow` must be a Dataflow; got {_short(others.get('flow'))}{at}")
            raise ValueError(f"operator `{self.name}`, step {name!r}: it needs at least one upstream Stream; got none{at}")
        for flow in flows:
            if flow is not flows[0]:
                raise ValueError(
                    f"operator `{self.name}`, step {name!r}: its streams are of two flows, "
                    f"{flows[0].flow_id!r} and {flow.flow_id!r}; a step joins streams of one flow{at}"
                )
        return inputs, others, flows[0]

    def _results(self, step: Operator, result: Any) -> dict[str, str]:
        if self.hints().get("return") and not isinstance(result, Stream):
            raise TypeError(f"{step.title()}: {f_repr(self.function)} says that it returns a Stream; got {_short(result)}")
        if isinstance(result, Stream):
            return {"down": result.stream_id}
        if dataclasses.is_dataclass(result):
            named = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
        elif isinstance(result, (tuple, list)):
            named = dict(getattr(result, "_asdict", lambda: {str(i): one for i, one in enumerate(result)})())
        elif isinstance(result, dict):
            named = {str(key): one for key, one in result.items()}
        else:
            named = {}
        return {key: one.stream_id for key, one in named.items() if isinstance(one, Stream)}


def _is_stream(hint: Any) -> bool:
    if isinstance(hint, str):
        return _STREAM_TEXT.match(hint) is not None
    return hint is Stream or typing.get_origin(hint) is Stream


def _members(value: Any) -> list[Any]:
    """The value, or what lies in it: streams may come in a list, a tuple, a dict or a dataclass."""
    if isinstance(value, (tuple, list)):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Dataflow)):
        return [getattr(value, f.name) for f in dataclasses.fields(value)]
    return [value]


def _short(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def _caller() -> str | None:
    """File and line of who calls an operator, unless that is another operator of this package."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__ and path != _HERE:
            return None if os.path.abspath(path).startswith(_PACKAGE) else f"{path}:{frame.f_lineno}"
        back = frame.f_back
        if back is None:
            return None
        frame = back
    return None
