"""What a forked process must not keep open.

A step may fork, as ``multiprocessing`` does. A copy of a worker's sockets in such a process would hide from the parent that the worker is gone, and a
copy of a store's lock would keep the next run waiting for a process that has nothing to do with it.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Closes(Protocol):
    """What can be closed, twice too."""

    def close(self) -> None:
        """Closes this process's copy."""
        ...


_THINGS: WeakSet[Closes] = WeakSet()


def closed_by_forks(thing: Closes) -> None:
    """Closes the copy that a process gets which is forked from now on."""
    _THINGS.add(thing)


def _close() -> None:
    for thing in list(_THINGS):
        thing.close()
    _THINGS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close)
