"""Which functions are Bees."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from .message import Message
from .payload import Form

F = TypeVar("F", bound=Callable[..., Any])
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Bee:
    """A registered function."""

    __slots__ = ("arity", "batch", "form", "function", "name", "takes_message", "timer", "where")

    def __init__(self, name: str, function: Callable[..., Any], timer: Callable[..., Any] | None) -> None:
        self.name = name
        self.function = function
        self.timer = timer
        code = inspect.unwrap(function).__code__
        # Without folders, so that a test and a component say the same.
        self.where = f"`{name}`, {code.co_filename.rpartition('/')[2]}:{code.co_firstlineno}"
        self.batch = False
        self.takes_message = False
        self.arity = 3
        annotation = self._look_at(function)
        self.form = Form.of(annotation, self.where)

    def _look_at(self, function: Callable[..., Any]) -> Any:
        """What the payload is said to be."""
        taken = [p for p in inspect.signature(function).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        needed = [p for p in taken if p.default is p.empty]
        if len(taken) < 2 or len(needed) > 3:
            names = ", ".join(p.name for p in taken)
            raise TypeError(
                f"the Bee {self.where} takes ({names}); a Bee takes (swarm, payload, context), (swarm, payload) or "
                "(swarm, messages: list[Message])"
            )
        self.arity = min(len(taken), 3)
        hint = self._hint(function, taken[1].annotation)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is list and arguments and (arguments[0] is Message or typing.get_origin(arguments[0]) is Message):
            self.batch = True
            return _of_message(arguments[0])
        if hint is Message or origin is Message:
            self.takes_message = True
            return _of_message(hint)
        return hint


    def _hint(self, function: Callable[..., Any], annotation: Any) -> Any:
        """What the annotation means. Alone: others may name what is imported for type checkers only."""
        if annotation is inspect.Parameter.empty:
            return None
        if not isinstance(annotation, str):
            return annotation
        try:
            return eval(annotation, inspect.unwrap(function).__globals__)  # As `typing.get_type_hints` does.
        except Exception as e:
            raise TypeError(
                f"the Bee {self.where}: `{annotation}` cannot be read ({e}): define it at the module's top level, above the Bee"
            ) from None


def _of_message(hint: Any) -> Any:
    arguments = typing.get_args(hint)
    return arguments[0] if arguments else None


BEES: dict[str, Bee] = {}
STARTS: list[Callable[[], Any]] = []


def register_bee(name: str, *, timer: Callable[..., Any] | None = None) -> Callable[[F], F]:
    """Makes a function the Bee of this name. It stays a plain function, for tests.

    ``timer`` is called as ``timer(swarm, timer)`` when a timer fires that the Bee has set.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"register_bee(name={name!r}): a name is of 1 to 63 lower-case letters, digits and hyphens, and begins and ends with "
            'none of these, like name="hello"'
        )

    def register(function: F) -> F:
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"register_bee(name={name!r}) goes above a function")
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            code = inspect.unwrap(function).__code__
            raise TypeError(
                f"the Bee `{name}`, {code.co_filename.rpartition('/')[2]}:{code.co_firstlineno} is an async function or a generator: write a plain "
                "one, which publishes"
            )
        bee = Bee(name, function, timer)
        before = BEES.get(name)
        # A module that is read again, as under a debugger or in a notebook, defines the same function anew.
        if before is not None and (before.function.__module__, before.function.__qualname__) != (
            function.__module__,
            function.__qualname__,
        ):
            raise ValueError(f"two Bees have one name: {before.where} and {bee.where}")
        BEES[name] = bee
        return function

    return register


def on_start(function: F) -> F:
    """Marks a function without parameters that each running instance calls once, before its first message.

    What a module does at its top level happens once, when it is built, and is found done in every instance.
    """
    STARTS.append(function)
    return function


#: Where the guest finds what it was built of, e.g. `/0/`, which means nothing to a user.
ROOTS: list[str] = []


def short(path: str) -> str:
    for root in ROOTS:
        if path.startswith(root):
            return path[len(root) :]
    return path
