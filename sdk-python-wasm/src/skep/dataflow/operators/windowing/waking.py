"""Wake-ups that turn out to be too early."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from .. import StatefulBatchLogic
from .moments import UTC_MIN, system_utc

V = TypeVar("V")
W = TypeVar("W")

#: After a wake-up that was too early, the next is at least this much later, twice that the time after ...
EARLY_WAKE = timedelta(milliseconds=1)
#: ... up to this: a clock of the user's own that says nothing useful costs one call a second.
EARLY_WAKE_MAX = timedelta(seconds=1)


class WokenLogic(StatefulBatchLogic[V, W, Any], Generic[V, W]):
    """A logic whose clock may differ from the runner's.

    Where it runs behind, or stands (a test's), a wake-up finds nothing to do, and the time to wake at is still in the past: without a brake the
    runner would call again at once, and for ever. This one doubles the distance each time, until there is something to do.
    """

    __slots__ = ("early", "waked")

    def __init__(self) -> None:
        self.early: timedelta | None = None
        self.waked = UTC_MIN

    def woken(self, useful: bool) -> None:
        """To call at the end of a wake-up."""
        if useful:
            self.early = None
        else:
            self.early = min(self.early * 2, EARLY_WAKE_MAX) if self.early else EARLY_WAKE
            self.waked = system_utc()

    def not_too_early(self, at: datetime) -> datetime:
        """When to wake, for a wake-up that is due then."""
        return at if self.early is None else max(at, self.waked + self.early)
