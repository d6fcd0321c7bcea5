"""Whoever runs Bees now, for what a Bee asks without its Swarm at hand: models and requests."""

from __future__ import annotations

from typing import Any

#: A node, as a module reaches it, or the memory of the :class:`skep.DevSwarm` that was made last or runs. None: nobody, as while a file is read.
_host: Any = None


def use(host: Any) -> None:
    """Says who is asked from here on."""
    global _host
    _host = host


def current() -> Any:
    """Who is asked now, or None."""
    return _host
