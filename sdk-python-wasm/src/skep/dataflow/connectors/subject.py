"""A Swarm's own door: items that are sent to a subject of a node, and answers to who asked.

For flows that are deployed to a node. Run in this process, a :class:`SubjectSource` gives what it was told to, for tests, and a
:class:`RespondSink` holds what it would answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias

from ...errors import Reject
from ...message import Message
from ...payload import JSON, Form, encode
from ..errors import DataflowError
from ..inputs import DynamicSource, StatelessSourcePartition
from ..outputs import DynamicSink, StatelessSinkPartition

__all__ = ["RespondSink", "SubjectSource"]

#: What an item is: the payload read as JSON, the items of a JSON list, text, bytes, or the whole :class:`skep.Message`.
Take: TypeAlias = Literal["json", "list", "text", "bytes", "message"]
_TAKES = ("json", "list", "text", "bytes", "message")
_READ_AT_ONCE = 1_000


class Desk:
    """Who is answered now."""

    #: On a node: the answers to the input that it works on.
    answers: list[bytes] | None = None


desk = Desk()


class _Given(StatelessSourcePartition[Any]):
    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items

    def next_batch(self) -> list[Any]:
        found = [item for _, item in zip(range(_READ_AT_ONCE), self._items)]
        if not found:
            raise StopIteration()
        return found


class SubjectSource(DynamicSource[Any]):
    """Items are what is sent to ``subject``: by ``skep submit``, ``skep request``, a Gateway's client.

    ``take`` says what an item is; what is not of that form is rejected, and its sender told. With ``keyed``, items are ``(key, item)`` of
    messages that have keys, and a key's keep their order. Of many small items send lists (``take="list"``): a message costs more than an item.

    ``items``: what it gives where the flow runs in this process.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import run_main
    >>> flow = Dataflow("double")
    >>> numbers = op.input("numbers", flow, SubjectSource("numbers", items=[1, 2]))
    >>> answer = RespondSink()
    >>> op.output("answer", op.map("twice", numbers, lambda n: n * 2), answer)
    >>> run_main(flow)
    >>> answer.held
    [b'2', b'4']
    """

    def __init__(self, subject: str, take: Take = "json", *, keyed: bool = False, items: Iterable[Any] | None = None) -> None:
        if not isinstance(subject, str) or not subject:
            raise ValueError(f"subject: the name that clients call; got {subject!r}")
        if take not in _TAKES:
            raise ValueError(f"take: one of {', '.join(_TAKES)}; got {take!r}")
        self.subject = subject
        self.take = take
        self.keyed = keyed
        self._items = items

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Given:
        """What it was given, on the first worker."""
        if self._items is None:
            raise DataflowError(
                f"the items of {step_id!r} come to the subject `{self.subject}` of a node: `skep deploy` the flow; or give it `items=` to run it here"
            )
        return _Given(iter(self._items) if worker_index == 0 else iter(()))

    def items_of(self, wire: Any) -> list[Any]:
        """The items of a message. Raises :class:`skep.Reject`."""
        message: Message[Any] = Message._from_wire(wire, _FORMS[self.take], 0)
        found: Any = message if self.take == "message" else message.payload
        items = [found]
        if self.take == "list":
            if type(found) is not list:
                raise Reject(f"the payload is no JSON list, and a message to `{self.subject}` is a list of items")
            items = found
        if not self.keyed:
            return items
        return [(message.key, item) for item in items]


_FORMS = {"json": JSON, "list": JSON, "text": Form("text"), "bytes": Form("bytes"), "message": Form("bytes")}


class _Responded(StatelessSinkPartition[Any]):
    def __init__(self, held: list[bytes]) -> None:
        self._held = held

    def write_batch(self, items: list[Any]) -> None:
        made = [encode(item, JSON) for item in items]
        (self._held if desk.answers is None else desk.answers).extend(made)


class RespondSink(DynamicSink[Any]):
    """Answers whoever's request an item came of, by JSON, text or bytes. Where nobody waits, it goes nowhere."""

    #: Workers of a flow that has one share a process: what it holds is in it.
    one_process = True

    def __init__(self) -> None:
        #: In this process: what it would have answered.
        self.held: list[bytes] = []

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Responded:
        """A worker's part; all answer alike."""
        return _Responded(self.held)
