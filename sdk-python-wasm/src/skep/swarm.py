"""What a Bee does: its side of the node, as an object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from .errors import PART_OF_BATCH, BeeError, Reject, Retry, milliseconds
from .message import Message, Timer
from .payload import JSON, PAYLOAD_BYTES_MAX, Form, encode, loads, to_bytes

if TYPE_CHECKING:
    Headers = Mapping[str, str] | list[tuple[str, str]] | None


class Host(Protocol):
    """The node, as a module reaches it or as :class:`skep.DevSwarm` keeps it in memory."""

    def begin(self, index: int, message: Any) -> None: ...
    def abandon(self, index: int) -> None: ...
    def state_get(self, name: str) -> bytes | None: ...
    def state_put(self, name: str, value: bytes) -> None: ...
    def state_delete(self, name: str) -> None: ...
    def timer_set(self, name: str, at_ms: int) -> None: ...
    def timer_cancel(self, name: str) -> None: ...
    def part(self, data: bytes) -> None: ...
    def config(self) -> Mapping[str, str]: ...
    def secret(self, name: str) -> str: ...
    def emit(self, payload: Any, data: bytes, to: str | None, key: str | None, headers: Any) -> Any: ...
    def response(self, payload: Any, data: bytes) -> Any: ...


class Effects:
    """What one message has caused so far."""

    __slots__ = ("ended", "publish", "respond")

    def __init__(self) -> None:
        self.publish: list[Any] = []
        self.respond: list[Any] = []
        #: How it ended, where the Bee of a batch said so.
        self.ended: BeeError | None = None


class Swarm:
    """Given to a Bee with each message. Nothing has happened before the message is done; an exception drops all of it."""

    __slots__ = ("_batch", "_config", "_current", "_effects", "_form", "_host", "_kept", "_wrote", "state", "timer")

    def __init__(self, host: Host) -> None:
        self._host = host
        self._form = JSON
        self._effects = Effects()
        self._batch: list[Effects] | None = None
        self._current: Any = None
        self._config: Config | None = None
        #: The current message has written state or timers; and how many messages of a batch are passed that had.
        self._wrote = False
        self._kept = 0
        #: The state of the current message's key.
        self.state = State(self)
        #: The timers of the current message's key.
        self.timer = Timers(self)

    def publish(
        self,
        data: Any,
        context: Any = None,
        *,
        to: str | None = None,
        key: str | None = None,
        headers: Headers = None,
    ) -> None:
        """Passes a message on: to every next Bee, or to the output ``to``.

        Dataclasses, models and everything that JSON knows travel as JSON, bytes as they are; see :mod:`skep.payload` for text.
        """
        if type(data) is bytes and len(data) <= PAYLOAD_BYTES_MAX:
            wire = data
        else:
            wire = encode(data, self._form)
        effects = self._effects if self._batch is None else self._of(context)
        pairs = [] if headers is None else list(headers.items() if isinstance(headers, Mapping) else headers)
        effects.publish.append(self._host.emit(data, wire, to, key, pairs))

    def respond(self, data: Any, context: Any = None) -> None:
        """Answers the caller, who waits for the first response of the Swarm."""
        wire = encode(data, self._form)
        effects = self._effects if self._batch is None else self._of(context)
        effects.respond.append(self._host.response(data, wire))

    def part(self, data: Any) -> None:
        """Sends a part of the response to the caller now, and waits while the caller does not keep up. Text and bytes travel as they are,
        anything else as JSON.

        Unlike all else this happens at once: after its first part a message is never run again. A caller that takes no parts gets them
        joined, where the Bee responds and publishes nothing. :class:`skep.CallerGone` is raised when nobody listens any more.
        """
        if self._batch is not None:
            raise BeeError(PART_OF_BATCH)
        self._host.part(data.encode() if type(data) is str else encode(data, JSON))

    def retry(self, after: float | timedelta, context: Any = None) -> None:
        """Ends this message's attempt; it comes again after that many seconds. What was done for it is dropped.

        In a batch, ``context=message`` says which, and the Bee goes on with the others.
        """
        self._end(Retry(after), context)

    def reject(self, reason: str, context: Any = None) -> None:
        """Sets this message aside as a dead letter at once: no attempt could help. Otherwise as :meth:`retry`."""
        self._end(Reject(str(reason)), context)

    @property
    def now_ms(self) -> int:
        """The current message's time, in milliseconds since the Unix epoch: when skep accepted it; for a timer, when it was due. The same at
        each attempt."""
        current = self._current
        if current is None:
            raise BeeError("no message of the batch is the current one: pass over the messages with `for`")
        return int(current.at_ms if isinstance(current, Timer) else current.accepted_ms)

    @property
    def config(self) -> Config:
        """The stage's ``config:``."""
        if self._config is None:
            self._config = Config(self._host.config())
        return self._config

    def secret(self, name: str) -> str:
        """A secret of the tenant that the manifest grants with ``secrets: [NAME]``, as text.

        Ask each time rather than keep it: a new value counts from the next batch on. The node takes it out of log lines and errors.

        Raises `LookupError` when it is not granted or was never set.
        """
        return self._host.secret(name)

    def _end(self, error: BeeError, context: Any) -> None:
        if self._batch is None:
            raise error
        self._of(context, "say which message of the batch: context=message").ended = error

    def _of(self, context: Any, why: str = "") -> Effects:
        batch = self._batch
        assert batch is not None
        if isinstance(context, Message):
            if context is not self._current and not (0 <= context._index < len(batch)):
                raise ValueError("this context is of no message of the batch")
            index: int = context._index
            return batch[index]
        if len(batch) == 1:
            return batch[0]
        if self._current is None:
            raise ValueError(why or "say which message of the batch this is for: context=message")
        current: int = self._current._index
        return batch[current]

    def _begin(self, message: Any, form: Form) -> None:
        self._current = message
        self._form = form
        self._effects = Effects()
        self._wrote = False


class State:
    """Named values of the message's key, committed with the message. Values are JSON; see the ``_bytes`` forms for others."""

    __slots__ = ("_swarm",)

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm

    def get(self, name: str, default: Any = None) -> Any:
        data = self._swarm._host.state_get(name)
        return default if data is None else loads(data.decode())

    def put(self, name: str, value: Any) -> None:
        self.put_bytes(name, to_bytes(value, JSON))

    def add(self, name: str, by: float = 1) -> Any:
        """Adds to a number, which is 0 where there is none, and returns the sum."""
        total = self.get(name, 0) + by
        self.put(name, total)
        return total

    def delete(self, name: str) -> None:
        self._swarm._wrote = True
        self._swarm._host.state_delete(name)

    def get_bytes(self, name: str, default: bytes | None = None) -> bytes | None:
        data = self._swarm._host.state_get(name)
        return default if data is None else data

    def put_bytes(self, name: str, value: bytes) -> None:
        self._swarm._wrote = True
        self._swarm._host.state_put(name, bytes(value))

    def __getitem__(self, name: str) -> Any:
        data = self._swarm._host.state_get(name)
        if data is None:
            raise KeyError(name)
        return loads(data.decode())

    __setitem__ = put
    __delitem__ = delete

    def __contains__(self, name: str) -> bool:
        return self._swarm._host.state_get(name) is not None


class Timers:
    """Timers of the message's key. When one fires, the Bee's ``timer`` function is called."""

    __slots__ = ("_swarm",)

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm

    def set(
        self, name: str, *, after: float | timedelta | None = None, at: datetime | int | None = None
    ) -> None:
        """Sets the timer, or sets it anew: ``after`` so many seconds from the message's own time, or ``at`` a moment (a datetime with
        its zone, or milliseconds since the Unix epoch)."""
        if (after is None) == (at is None):
            raise TypeError("give either after= or at=")
        if after is not None:
            at_ms = self._swarm.now_ms + milliseconds(after)
        elif isinstance(at, datetime):
            if at.tzinfo is None:
                raise ValueError("at= needs a datetime with its time zone")
            at_ms = round(at.timestamp() * 1000)
        else:
            at_ms = int(at)  # type: ignore[arg-type]
        if at_ms < 0:
            raise ValueError("at= lies before 1970")
        self._swarm._wrote = True
        self._swarm._host.timer_set(name, at_ms)

    def cancel(self, name: str) -> None:
        self._swarm._wrote = True
        self._swarm._host.timer_cancel(name)


class Config(Mapping[str, str]):
    """The stage's ``config:``: read only, text to text."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[name]
        except KeyError:
            known = ", ".join(sorted(self._values)) or "nothing"
            raise KeyError(f"`{name}` is not in the stage's config, which has {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Config({dict(self._values)!r})"


def not_granted(name: str) -> LookupError:
    return LookupError(f"the secret `{name}` is not granted: add it to the Bee's `secrets: [...]` in the manifest")


def no_such_secret(name: str) -> LookupError:
    return LookupError(f"there is no secret `{name}`: set it with `skep secret set {name}`")
