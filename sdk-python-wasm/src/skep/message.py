"""What a Bee is given, and what it publishes."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .payload import JSON, Form, decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


class Message(Generic[T]):
    """One message. As ``context`` it says which message an effect belongs to.

    ``Message[bytes]``, ``Message[str]`` or ``Message[SomeDataclass]`` as a parameter's type says what :attr:`payload` is.
    """

    __slots__ = ("_form", "_index", "_payload", "accepted_ms", "attempt", "data", "headers", "key", "uid")

    def __init__(
        self,
        payload: Any = b"",
        *,
        key: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        uid: bytes = bytes(16),
        accepted_ms: int = 0,
        attempt: int = 1,
    ) -> None:
        #: The payload's very bytes.
        self.data: bytes = encode(payload, JSON)
        self.key = key
        self.headers: list[tuple[str, str]] = list(headers)
        #: 16 bytes, the same at each attempt.
        self.uid = uid
        #: When skep accepted the message, or that from which it descends; milliseconds since the Unix epoch.
        self.accepted_ms = accepted_ms
        #: From 1.
        self.attempt = attempt
        self._form = JSON
        self._index = 0
        self._payload: Any = None

    @classmethod
    def _from_wire(cls, wire: Any, form: Form, index: int) -> Message[Any]:
        """No field is copied: this runs once a message."""
        self: Message[Any] = cls.__new__(cls)
        self.data = wire.payload
        self.key = wire.key
        self.headers = wire.headers
        self.uid = wire.uid
        self.accepted_ms = wire.accepted_ms
        self.attempt = wire.attempt
        self._form = form
        self._index = index
        self._payload = None
        return self

    @property
    def payload(self) -> T:
        """The payload as the Bee takes it: JSON unless the parameter's type says otherwise. Read once.

        Raises :class:`skep.Reject` where the bytes are not of that form: another attempt would find the same.
        """
        if self._payload is None:
            self._payload = (decode(self.data, self._form),)
        return self._payload[0]  # type: ignore[no-any-return]

    @property
    def text(self) -> str:
        """The payload as text."""
        return decode(self.data, Form("text"))  # type: ignore[no-any-return]

    @property
    def accepted_at(self) -> datetime:
        return datetime.fromtimestamp(self.accepted_ms / 1000, timezone.utc)

    def header(self, name: str, default: str | None = None) -> str | None:
        """The first header of this name, without regard to case."""
        wanted = name.lower()
        return next((value for found, value in self.headers if found.lower() == wanted), default)

    def __repr__(self) -> str:
        return f"Message({self.data[:60]!r}, key={self.key!r}, attempt={self.attempt})"


class Timer:
    """A timer that fired."""

    __slots__ = ("at_ms", "attempt", "key", "name", "uid")

    def __init__(self, key: str, name: str, at_ms: int = 0, *, attempt: int = 1, uid: bytes = bytes(16)) -> None:
        self.key = key
        self.name = name
        self.at_ms = at_ms
        self.attempt = attempt
        self.uid = uid

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.at_ms / 1000, timezone.utc)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Timer):
            return NotImplemented
        return (self.key, self.name, self.at_ms) == (other.key, other.name, other.at_ms)

    def __hash__(self) -> int:
        return hash((self.key, self.name, self.at_ms))

    def __repr__(self) -> str:
        return f"Timer({self.key!r}, {self.name!r}, {self.at_ms})"


class Emit:
    """What was published: compares with other payloads by value, so that a test reads ``published == [{"a": 1}]``."""

    __slots__ = ("data", "headers", "key", "payload", "to")

    def __init__(
        self, payload: Any, data: bytes, to: str | None, key: str | None, headers: list[tuple[str, str]]
    ) -> None:
        #: As it was given.
        self.payload = payload
        #: As it travels.
        self.data = data
        self.to = to
        self.key = key
        self.headers = headers

    def message(self) -> Message[Any]:
        """What the next Bee receives."""
        return Message(self.data, key=self.key, headers=self.headers)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Emit):
            return (self.data, self.to, self.key, self.headers) == (other.data, other.to, other.key, other.headers)
        return bool(self.payload == other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        more = "".join(f", {n}={v!r}" for n, v in (("to", self.to), ("key", self.key), ("headers", self.headers)) if v)
        return f"Emit({self.payload!r}{more})"
