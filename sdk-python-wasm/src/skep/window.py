"""Windows over event time: values of a key, gathered by when they happened.

    MINUTES = Windows.tumbling(60, of=int, wait=5)

    def close(swarm, timer):
        for window in MINUTES.on_timer(swarm, timer):
            swarm.publish([window.start_ms, window.value])

    @register_bee(name="count", timer=close)
    def count(swarm, event):
        seen = MINUTES.add(swarm, event["at"], lambda n: n + 1)
        for window in seen.closed:
            swarm.publish([window.start_ms, window.value])
        if seen.late:
            swarm.publish(event, to="late")

Each key has a *watermark*: the event time up to which no more is expected. It is the latest event time seen, less ``wait``, and it runs on
with the clock while nothing comes, so that the last window of a key that falls silent closes too. A window closes once, when the watermark
reaches its end. What comes for a window that closed is *late*: it is given back, and counted nowhere. The clock is the message's own, or
the timer's, so an attempt repeats what the one before decided.

Names and values in the key's state are those of Rust's ``skep::window``, so a Bee may be written anew in the other language and go on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .errors import BeeError, Reject, milliseconds
from .message import Timer

if TYPE_CHECKING:
    from .swarm import Swarm

A = TypeVar("A")

#: Open windows of one key in one set: each is a value in its state, of which a node keeps 1,000.
OPEN_MAX = 900
#: How long a silent key is remembered unless ``remember`` says otherwise.
REMEMBER = 3_600
#: The end of time: whatever is later, or lasts longer, ends here.
TIME_MAX = (1 << 63) - 1
#: What gathers only by giving back a new one.
_UNCHANGEABLE = (int, float, str, bytes, tuple, type(None))

Span = tuple[int, int]


class TooManyWindows(BeeError):
    """The key has as many open windows as it may."""


@dataclass(frozen=True)
class Closed(Generic[A]):
    """A window that closed, with what it gathered."""

    #: Its first millisecond, since the Unix epoch.
    start_ms: int
    #: The first millisecond behind it.
    end_ms: int
    value: A


@dataclass(frozen=True)
class Seen(Generic[A]):
    """What came of a value."""

    #: Windows that this value's time closed, by their end.
    closed: list[Closed[A]]
    #: Every window that it belongs to had closed before: it is counted nowhere. The usual thing is to publish it to an output of its own.
    late: bool


class Windows(Generic[A]):
    """A set of windows: their form, what they gather, how long they wait. Made once, at the module's top level.

    ``of`` makes what an empty window holds, as ``int`` and ``list`` do; it is kept as JSON. ``merge`` makes one of two, where a value between
    two sessions makes them one; numbers are summed and lists appended without it.

    Times are seconds or a timedelta. ``wait``: how much later than others of its key a value may come and still count. ``ahead``: how far
    ahead of the clock a value's time may be; what is further is rejected, for else one device whose clock is wrong makes all others of its
    key late. ``remember``: how long a silent key's watermark is kept. ``name`` tells several sets of one Bee apart.
    """

    __slots__ = ("_ahead_ms", "_every_ms", "_gap_ms", "_merge", "_name", "_of", "_remember_ms", "_size_ms", "_wait_ms")

    def __init__(
        self,
        size_ms: int,
        every_ms: int,
        gap_ms: int,
        of: Callable[[], A],
        merge: Callable[[A, A], A] | None,
        wait: float | timedelta,
        ahead: float | timedelta | None,
        remember: float | timedelta,
        name: str,
    ) -> None:
        if not callable(of):
            raise TypeError(f"of= makes an empty window's value, as int and list do; this is {of!r}")
        if not isinstance(name, str) or not name or len(name.encode()) > 128:
            raise ValueError("name= is text of 1 to 128 bytes")
        if merge is None:
            if gap_ms and not isinstance(of(), (int, float, str, list)):
                raise TypeError(f"merge= must say how two sessions of {type(of()).__name__} become one")
            merge = operator.add
        self._size_ms = size_ms
        self._every_ms = every_ms
        self._gap_ms = gap_ms
        self._of = of
        self._merge: Callable[[A, A], A] = merge
        self._wait_ms = milliseconds(wait)
        self._ahead_ms = None if ahead is None else milliseconds(ahead)
        self._remember_ms = milliseconds(remember)
        self._name = name

    @classmethod
    def tumbling(
        cls,
        size: float | timedelta,
        *,
        of: Callable[[], A],
        wait: float | timedelta = 0,
        ahead: float | timedelta | None = None,
        remember: float | timedelta = REMEMBER,
        name: str = "main",
    ) -> Windows[A]:
        """Windows side by side, aligned to the Unix epoch."""
        return cls.sliding(size, size, of=of, wait=wait, ahead=ahead, remember=remember, name=name)

    @classmethod
    def sliding(
        cls,
        size: float | timedelta,
        every: float | timedelta,
        *,
        of: Callable[[], A],
        wait: float | timedelta = 0,
        ahead: float | timedelta | None = None,
        remember: float | timedelta = REMEMBER,
        name: str = "main",
    ) -> Windows[A]:
        """Windows of ``size``, one beginning at each multiple of ``every``, so that each value is in ``size / every`` of them."""
        size_ms, every_ms = milliseconds(size), milliseconds(every)
        if every_ms <= 0:
            raise ValueError("windows last a millisecond or more")
        if every_ms > size_ms:
            raise ValueError("`every` is at most `size`, or values fall between windows")
        if -(-size_ms // every_ms) > OPEN_MAX:
            raise ValueError(f"a value is in at most {OPEN_MAX} windows: choose a larger `every`")
        return cls(size_ms, every_ms, 0, of, None, wait, ahead, remember, name)

    @classmethod
    def session(
        cls,
        gap: float | timedelta,
        *,
        of: Callable[[], A],
        merge: Callable[[A, A], A] | None = None,
        wait: float | timedelta = 0,
        ahead: float | timedelta | None = None,
        remember: float | timedelta = REMEMBER,
        name: str = "main",
    ) -> Windows[A]:
        """Windows that last until nothing came for ``gap``."""
        gap_ms = milliseconds(gap)
        if gap_ms <= 0:
            raise ValueError("a gap is a millisecond or more")
        return cls(0, 0, gap_ms, of, merge, wait, ahead, remember, name)

    def add(self, swarm: Swarm, at: int | datetime, gather: Callable[[A], A | None]) -> Seen[A]:
        """Gathers what happened ``at`` some time (milliseconds since the Unix epoch, or a datetime with its zone) into each open window that
        it belongs to, and gives out what closed.

        ``gather`` gets what a window holds and gives back what it holds then; a list or dict that it changed need not be given back.
        """
        at_ms, clock = _event_ms(at), swarm.now_ms
        if self._ahead_ms is not None and at_ms > clock + self._ahead_ms:
            raise Reject(f"event time {at_ms} is {at_ms - clock} ms ahead of the clock, at most {self._ahead_ms} may be")
        at_ms = min(at_ms, TIME_MAX)
        book = _Book(self, swarm)
        closed = book.advance(at_ms)
        late = book.gather(at_ms, gather)
        book.write()
        return Seen(closed, late)

    def on_timer(self, swarm: Swarm, timer: Timer) -> list[Closed[A]]:
        """Gives out what closed because its time has come. Nothing for a timer of somebody else, so that several sets and timers of your own
        share one function."""
        if timer.name != self._timer:
            return []
        book = _Book(self, swarm)
        if book.now is not None:
            book.now.timer = None
        closed = book.advance(None)
        book.write()
        return closed

    @property
    def _timer(self) -> str:
        return f"window/{self._name}"

    def _around(self, at_ms: int) -> list[Span]:
        """The windows of fixed size that a value of this time belongs to. The first since the epoch are cut off."""
        last = at_ms - at_ms % self._every_ms
        first = max(at_ms - self._size_ms + 1, 0)
        first += -first % self._every_ms
        return [(start, _end(start, self._size_ms)) for start in range(first, last + 1, self._every_ms)]

    def __repr__(self) -> str:
        form = f"session({self._gap_ms} ms" if self._gap_ms else f"sliding({self._size_ms} ms, {self._every_ms} ms"
        return f"Windows.{form}, wait={self._wait_ms} ms, name={self._name!r})"


def _event_ms(at: int | datetime) -> int:
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise ValueError("an event's datetime needs its time zone")
        at = round(at.timestamp() * 1000)
    if type(at) is not int:
        raise TypeError(f"an event's time is whole milliseconds since the Unix epoch, or a datetime; this is {at!r}")
    if at < 0:
        raise Reject(f"event time {at} lies before 1970")
    return at


def _end(start_ms: int, lasts_ms: int) -> int:
    return min(start_ms + lasts_ms, TIME_MAX)


class _Kept:
    """What is known of a key, as it stands in its state."""

    __slots__ = ("ahead", "mark", "open", "timer")

    def __init__(self, ahead: int, mark: int = 0, timer: int | None = None, open: list[Span] | None = None) -> None:
        #: How far event time was ahead of the clock at most; below 0: behind. The watermark is the clock, and this, less the wait, so one
        #: number says when each window closes while nothing comes.
        self.ahead = ahead
        #: The highest watermark so far: the clock of several doors may step back a little, a watermark may not.
        self.mark = mark
        #: When the timer is set to.
        self.timer = timer
        #: Open windows, by start.
        self.open = open or []

    def json(self) -> dict[str, Any]:
        return {"ahead": self.ahead, "mark": self.mark, "timer": self.timer, "open": [list(span) for span in self.open]}


class _Book(Generic[A]):
    """One key's windows while a message or timer is worked on."""

    def __init__(self, windows: Windows[A], swarm: Swarm) -> None:
        self.windows = windows
        self.swarm = swarm
        #: None: the key is new, or was forgotten.
        self.before: dict[str, Any] | None = swarm.state.get(windows._timer)
        self.now: _Kept | None = None
        if self.before is not None:
            kept = self.before
            self.now = _Kept(kept["ahead"], kept["mark"], kept["timer"], [(start, end) for start, end in kept["open"]])

    def _value(self, start: int) -> str:
        return f"window/{self.windows._name}/{start}"

    def _held(self, start: int) -> A:
        held = self.swarm.state.get(self._value(start), self)
        return self.windows._of() if held is self else held  # type: ignore[no-any-return]

    def advance(self, event_ms: int | None) -> list[Closed[A]]:
        """Moves the watermark on, by the clock and by an event if there is one, and closes what it reaches."""
        clock, now = self.swarm.now_ms, self.now
        if event_ms is not None:
            ahead = event_ms - min(clock, TIME_MAX)
            if now is None:
                now = self.now = _Kept(ahead)
            now.ahead = max(now.ahead, ahead)
        if now is None:
            return []
        now.mark = mark = max(now.mark, min(clock, TIME_MAX) - self.windows._wait_ms + now.ahead)
        over = sorted((span for span in now.open if span[1] <= mark), key=lambda span: (span[1], span[0]))
        now.open = [span for span in now.open if span[1] > mark]
        closed = []
        for start, end in over:
            closed.append(Closed(start, end, self._held(start)))
            self.swarm.state.delete(self._value(start))
        return closed

    def gather(self, at_ms: int, gather: Callable[[A], A | None]) -> bool:
        """Gathers into the open windows that a value belongs to. Whether there is none: it is late."""
        now = self.now
        assert now is not None
        late = True
        for span in self._session(now, at_ms) if self.windows._gap_ms else self.windows._around(at_ms):
            if span[1] <= now.mark:
                continue
            late = False
            held = self._held(span[0])
            value = gather(held)
            if value is None:
                if isinstance(held, _UNCHANGEABLE):
                    raise TypeError(f"what gathers gave nothing back for {held!r}: give back what the window holds then")
                value = held
            self.swarm.state.put(self._value(span[0]), value)
            if span not in now.open:
                if len(now.open) >= OPEN_MAX:
                    raise TooManyWindows(f"this key has {OPEN_MAX} open windows: choose larger ones, or a shorter `wait`")
                now.open.append(span)
                now.open.sort()
        return late

    def _session(self, now: _Kept, at_ms: int) -> list[Span]:
        """The session that a value belongs to, made of all that it touches. None, where it would have closed already."""
        behind = _end(at_ms, self.windows._gap_ms)
        touched = [span for span in now.open if at_ms < span[1] and span[0] < behind]
        if not touched:
            return [(at_ms, behind)]
        session = (min(touched[0][0], at_ms), max(touched[-1][1], behind))
        now.open = sorted([*(span for span in now.open if span not in touched), session])
        # One that only lasts longer stays where it is.
        if len(touched) > 1 or touched[0][0] != session[0]:
            whole = self.windows._of()
            for start, _ in touched:
                whole = self.windows._merge(whole, self._held(start))
                self.swarm.state.delete(self._value(start))
            self.swarm.state.put(self._value(session[0]), whole)
        return [session]

    def write(self) -> None:
        """Keeps what is known, and sets the timer for what closes next while nothing comes; without open windows, for the time at which the
        key is forgotten."""
        now, windows, swarm = self.now, self.windows, self.swarm
        if now is None:
            return
        name = windows._timer
        if now.open:
            due = min(end for _, end in now.open) - now.ahead + windows._wait_ms
        else:
            # The timer of a silent key fired: it is forgotten.
            if now.timer is None and self.before is not None and not self.before["open"]:
                swarm.state.delete(name)
                return
            due = swarm.now_ms + windows._remember_ms
        due = min(max(due, 0), TIME_MAX)
        if now.timer != due:
            swarm.timer.set(name, at=due)
            now.timer = due
        kept = now.json()
        if kept != self.before:
            swarm.state.put(name, kept)
