"""Windowers: which windows a moment is in, and when they close."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from .moments import TICK, UTC_MAX, after, before, check_span, micros, moment_of, to_utc

S = TypeVar("S")

#: The window ID of a value that is late for a session: which session it would have been in is not known any more.
LATE_SESSION_ID = -1
#: Panes and windows whose times a step keeps at hand.
PANES = 4_096


@dataclass
class WindowMetadata:
    """What is known of a window when it closes. A session's last moment is part of it; that of other windows is not."""

    open_time: datetime
    close_time: datetime
    #: IDs of windows that were merged into it.
    merged_ids: set[int] = field(default_factory=set)


class WindowerLogic(ABC, Generic[S]):
    """The windows of one key. Write one, with a :class:`Windower` that builds it, for windows of your own."""

    @abstractmethod
    def open_for(self, timestamp: datetime) -> Iterable[int]:
        """IDs of the windows that a value of this time is in. From now on they are open."""

    @abstractmethod
    def late_for(self, timestamp: datetime) -> Iterable[int]:
        """IDs of the windows that a late value would have been in. Nothing is to be remembered of it."""

    @abstractmethod
    def merged(self) -> Iterable[tuple[int, int]]:
        """Windows that became one since the last call: ``(from, into)``. Called after each value; what was merged away is not closed later."""

    @abstractmethod
    def close_for(self, watermark: datetime) -> Iterable[tuple[int, WindowMetadata]]:
        """Windows that have closed by now, the first to close first. They are forgotten. The watermark never goes back."""

    @abstractmethod
    def notify_at(self) -> datetime | None:
        """The watermark at which the next window closes."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Whether nothing needs to be remembered. The key's state goes then, if its clock allows that too."""

    @abstractmethod
    def snapshot(self) -> S:
        """The state, for :meth:`Windower.build`. It is pickled before the windower is used again."""


class Windower(ABC, Generic[S]):
    """What a key's :class:`WindowerLogic` is built from."""

    @abstractmethod
    def build(self, resume_state: S | None) -> WindowerLogic[S]:
        """The windows of a key: none, or as their snapshot was."""


@dataclass
class SlidingWindower(Windower[Any]):
    """Windows of one length, one from each multiple of ``offset``; where that is less than the length they overlap.

    The moment at which a window opens is in it, the one at which it closes is not. Window 0 opens at ``align_to``, the ones before have negative
    IDs. Lengths are true lengths: an hour is an hour also when summer time begins. Changed settings put the values of windows that were open into
    windows of the new kind with the same IDs, so change the step's ID with them.
    """

    length: timedelta
    #: Between the beginnings of two windows that follow each other.
    offset: timedelta
    #: With a time zone. A full hour, so that windows begin on the hour.
    align_to: datetime

    def __post_init__(self) -> None:
        check_span(self.length, "a window's `length`", least=TICK)
        check_span(self.offset, "a sliding window's `offset`", least=TICK)
        if self.offset > self.length:
            raise ValueError(
                f"a sliding window's `offset` can't be longer than its `length`, as values between windows would be lost; "
                f"got offset {self.offset}, length {self.length}"
            )
        self.align_to = to_utc(self.align_to, "`align_to`")

    def build(self, resume_state: Any) -> SlidingWindowerLogic:
        return SlidingWindowerLogic(Pane(self.length, self.offset, self.align_to), resume_state)


@dataclass
class TumblingWindower(Windower[Any]):
    """Windows of one length, side by side. See :class:`SlidingWindower`."""

    length: timedelta
    #: With a time zone. A full hour, so that windows begin on the hour.
    align_to: datetime

    def __post_init__(self) -> None:
        check_span(self.length, "a window's `length`", least=TICK)
        self.align_to = to_utc(self.align_to, "`align_to`")

    def build(self, resume_state: Any) -> SlidingWindowerLogic:
        return SlidingWindowerLogic(Pane(self.length, self.length, self.align_to), resume_state)


class Pane:
    """Arithmetic of windows of a fixed length, with recent answers kept: the keys of a step are mostly in the same few windows.

    A pane is the time between two moments at which any window opens or closes: all its moments are in the same windows.
    """

    __slots__ = ("_panes", "_times", "align_to", "hi", "ids", "length", "lo", "offset")

    def __init__(self, length: timedelta, offset: timedelta, align_to: datetime) -> None:
        self.length = length
        self.offset = offset
        self.align_to = align_to
        #: The pane that was looked at last: from here to before there, in these windows.
        self.lo = self.hi = align_to
        self.ids: range = range(0)
        #: Panes by their last window and the one before their first, and windows' times by their IDs.
        self._panes: dict[tuple[int, int], tuple[datetime, datetime, range]] = {}
        self._times: dict[int, tuple[datetime, datetime]] = {}

    def at(self, ts: datetime) -> range:
        """The windows of a moment. Sets :attr:`lo`, :attr:`hi` and :attr:`ids`."""
        if self.lo <= ts < self.hi:
            return self.ids
        since = ts - self.align_to
        last = since // self.offset
        gone = last - 1 if self.offset == self.length else (since - self.length) // self.offset
        pane = self._panes.get((last, gone))
        if pane is None:
            # From the last opening or closing up to here to the next after.
            lo = max(self.times(last)[0], self.times(gone)[1])
            hi = min(self.times(last + 1)[0], self.times(gone + 1)[1])
            if len(self._panes) >= PANES:
                self._panes.clear()
            pane = self._panes[last, gone] = lo, hi, range(gone + 1, last + 1)
        self.lo, self.hi, self.ids = pane
        return pane[2]

    def times(self, window: int) -> tuple[datetime, datetime]:
        """When a window opens and closes."""
        times = self._times.get(window)
        if times is None:
            span = window * self.offset
            opens = after(self.align_to, span) if window >= 0 else before(self.align_to, -span)
            if len(self._times) >= PANES:
                self._times.clear()
            times = self._times[window] = opens, after(opens, self.length)
        return times


class SlidingWindowerLogic(WindowerLogic[Any]):
    """See :class:`SlidingWindower`. Its state is the IDs of open windows."""

    def __init__(self, pane: Pane, resume_state: Iterable[int] | None) -> None:
        self._pane = pane
        self._open: set[int] = set(resume_state or ())

    def open_for(self, timestamp: datetime) -> list[int]:
        ids = self._pane.at(to_utc(timestamp, "a timestamp"))
        self._open.update(ids)
        return list(ids)

    def late_for(self, timestamp: datetime) -> list[int]:
        return list(self._pane.at(to_utc(timestamp, "a timestamp")))

    def merged(self) -> list[tuple[int, int]]:
        return []

    def close_for(self, watermark: datetime) -> list[tuple[int, WindowMetadata]]:
        pane = self._pane
        closed = []
        for window in sorted(self._open):
            opens, closes = pane.times(window)
            if closes > watermark:
                break
            closed.append((window, WindowMetadata(opens, closes)))
        self._open.difference_update(window for window, _ in closed)
        return closed

    def notify_at(self) -> datetime | None:
        return self._pane.times(min(self._open))[1] if self._open else None

    def is_empty(self) -> bool:
        return not self._open

    def snapshot(self) -> list[int]:
        return sorted(self._open)


@dataclass
class SessionWindower(Windower[Any]):
    """Windows that last while values come. A session closes when none came for longer than ``gap``; it is from its first value to its last.

    Sessions of a key are numbered from 0, and from 0 again when the key was forgotten meanwhile. A value between two sessions, within the gap of
    both, makes them one: the one that begins first goes on.
    """

    gap: timedelta

    def __post_init__(self) -> None:
        check_span(self.gap, "a session's `gap`")

    def build(self, resume_state: Any) -> SessionWindowerLogic:
        return SessionWindowerLogic(self.gap, resume_state)


class SessionWindowerLogic(WindowerLogic[Any]):
    """See :class:`SessionWindower`. Its state is the next ID, and of each session its ID, first and last moment and what was merged into it."""

    def __init__(self, gap: timedelta, resume_state: Any) -> None:
        self._gap = gap
        self._next = 0
        #: By their first moment; no two are within the gap of each other.
        self._open: list[tuple[datetime, datetime, int, set[int]]] = []
        self._merged: list[tuple[int, int]] = []
        if resume_state is not None:
            self._next, sessions = resume_state
            self._open = [(moment_of(first), moment_of(last), window, set(ids)) for first, last, window, ids in sessions]

    def open_for(self, timestamp: datetime) -> list[int]:
        ts = to_utc(timestamp, "a timestamp")
        near = [s for s in self._open if before(s[0], self._gap) <= ts <= after(s[1], self._gap)]
        window = min((s[2] for s in near), default=self._next)
        if not near:
            self._next += 1
        grown: tuple[datetime, datetime, int, set[int]] = (ts, ts, window, set())
        if near:
            # At most two, as they are further apart than the gap; the first of them began first.
            into = near[0]
            ids = set(into[3])
            for other in near[1:]:
                ids |= other[3] | {other[2]}
                self._merged.append((other[2], into[2]))
            grown = (min(ts, *(s[0] for s in near)), max(ts, *(s[1] for s in near)), into[2], ids)
            self._open = [s for s in self._open if s not in near]
        self._open.append(grown)
        self._open.sort(key=lambda s: s[0])
        return [window]

    def late_for(self, timestamp: datetime) -> list[int]:
        return [LATE_SESSION_ID]

    def merged(self) -> list[tuple[int, int]]:
        merged, self._merged = self._merged, []
        return merged

    def close_for(self, watermark: datetime) -> list[tuple[int, WindowMetadata]]:
        closed = [s for s in self._open if after(s[1], self._gap) < watermark or watermark == UTC_MAX]
        if closed:
            self._open = self._open[len(closed) :]
        return [(window, WindowMetadata(first, last, ids)) for first, last, window, ids in closed]

    def notify_at(self) -> datetime | None:
        return after(self._open[0][1], self._gap + TICK) if self._open else None

    def is_empty(self) -> bool:
        return not self._open

    def snapshot(self) -> tuple[int, list[tuple[int, int, int, list[int]]]]:
        return self._next, [(micros(first), micros(last), window, sorted(ids)) for first, last, window, ids in self._open]
