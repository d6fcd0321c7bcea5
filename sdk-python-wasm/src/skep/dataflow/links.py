"""Sockets between the processes of a run: a line from each worker to the parent, a link between each two workers.

Both carry messages in their order, whole or not at all. What lies on them was pickled by the same code a moment ago, in a process that this one
forked or was forked with: it is as trusted as the flow itself, and no one else has an end of them.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections import deque
from itertools import islice
from typing import Any

from .forks import closed_by_forks
from .limits import LINK_BUFFERS, LINK_READ_BYTES

_LENGTH = struct.Struct("!Q")
#: Kind, stage, a number, bytes that follow.
_HEAD = struct.Struct("!BHIQ")


class Line:
    """A worker's line to the parent, or the parent's to a worker. It waits: to send until there is room, to receive until a message is whole."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        closed_by_forks(sock)

    def send(self, *message: object) -> None:
        """Sends a message. OSError: the other end is gone."""
        data = pickle.dumps(message, 5)
        self.sock.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self) -> tuple[Any, ...]:
        """The next message. EOFError: the other end is gone."""
        found: tuple[Any, ...] = pickle.loads(self._exactly(_LENGTH.unpack(self._exactly(_LENGTH.size))[0]))
        return found

    def _exactly(self, count: int) -> bytearray:
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            try:
                got = self.sock.recv_into(rest)
            except ConnectionError:
                got = 0
            if not got:
                raise EOFError
            rest = rest[got:]
        return data


class Link:
    """A worker's link to another. It never waits: what can't be sent yet is held, and :meth:`flush` sends on.

    How much is held is bounded by who sends: see :class:`.worker.Worker`.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        closed_by_forks(sock)
        self.sock = sock
        #: Whether the other end is there.
        self.open = True
        self._out: deque[bytes | memoryview] = deque()
        self._in = bytearray()

    @property
    def waits(self) -> bool:
        """Whether there is something to send that found no room."""
        return bool(self._out) and self.open

    def send(self, kind: int, stage: int, number: int = 0, payload: bytes = b"") -> None:
        """Sends a message, or holds it until :meth:`flush`."""
        self._out.append(_HEAD.pack(kind, stage, number, len(payload)) + payload)

    def flush(self) -> None:
        """Sends what there is room for."""
        out = self._out
        try:
            while out and self.open:
                sent = self.sock.sendmsg(list(islice(out, LINK_BUFFERS)))
                while sent:
                    first = out[0]
                    if sent < len(first):
                        out[0] = memoryview(first)[sent:]
                        break
                    sent -= len(first)
                    out.popleft()
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionError):
            # The parent sees it too, and says what it means.
            self.open = False

    def receive(self) -> list[tuple[int, int, int, bytes]]:
        """The messages that came: kind, stage, number and payload."""
        try:
            data = self.sock.recv(LINK_READ_BYTES)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        if not data:
            self.open = False
            return []
        held = self._in
        held += data
        found = []
        at = 0
        while len(held) - at >= _HEAD.size:
            kind, stage, number, length = _HEAD.unpack_from(held, at)
            end = at + _HEAD.size + length
            if len(held) < end:
                break
            found.append((kind, stage, number, bytes(memoryview(held)[at + _HEAD.size : end])))
            at = end
        if at:
            del held[:at]
        return found
