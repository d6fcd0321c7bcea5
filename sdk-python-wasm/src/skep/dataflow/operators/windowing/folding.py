"""Windows that keep one accumulator each, for the clocks and windowers that come with skep: the fast path.

What is general (a clock, a windower and a logic for each window, asked about every value) is in ``driver``. Here the three are one, and what
can be done for a batch at once is: times are looked up and compared by loops in C, a run of values of one window is folded by one call. Values of
one batch are nearly always in order and in one window or two, so little is done for each. Results are those of the general way; the tests hold
them against each other.

Times are compared as datetimes, as to turn one into an integer takes ten times as long; the state has integers, see ``moments``.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from .clocks import NOW_GETTER, TS_GETTER, EventClock, SystemClock, same
from .moments import ONLY_UTC, TICK, UTC, UTC_MAX, UTC_MIN, after, before, micros, moment_of, to_utc
from .waking import WokenLogic
from .windowers import LATE_SESSION_ID, Pane, SessionWindower, SlidingWindower, TumblingWindower

_ZONE = attrgetter("tzinfo")

#: What a step emits: window ID, kind, and a value, a late value, or what a ``WindowMetadata`` is made of.
Event: TypeAlias = tuple[int, int, Any]
DOWN, LATE, META = 0, 1, 2

#: A batch that is this many times shorter than the queue is put into it value by value, a longer one by sorting all.
SORT_ALL = 16


class Fold(NamedTuple):
    """How a window's accumulator is made of its values."""

    #: An empty one.
    start: Callable[[], Any]
    #: With one more value.
    one: Callable[[Any, Any], Any]
    #: With a list of values. The list is not to be kept.
    many: Callable[[Any, list[Any]], Any]
    #: Of two windows that became one, first the one that goes on.
    merge: Callable[[Any, Any], Any]
    #: Whether the order of values makes no difference at all.
    any_order: bool = False


class Plan:
    """What all keys of a step share."""

    __slots__ = ("fold", "gap", "get", "late_ids", "now", "ordered", "pane", "remember", "to_system", "wait")

    def __init__(self, clock: EventClock[Any] | SystemClock, windower: Any, fold: Fold, ordered: bool) -> None:
        self.fold = fold
        self.now = clock.now_getter
        if isinstance(clock, EventClock):
            self.get: Callable[[Any], datetime] | None = clock.ts_getter
            self.wait = clock.wait_for_system_duration
            self.remember = clock.remember
            self.to_system = None if clock.to_system_utc is same else clock.to_system_utc
            # Windows of a fixed length are the same in any order.
            self.ordered = ordered and not (fold.any_order and not isinstance(windower, SessionWindower))
        else:
            # A system clock's values come in order.
            self.get = self.to_system = None
            self.wait = self.remember = timedelta(0)
            self.ordered = False
        self.gap = timedelta(0)
        self.pane = Pane(TICK, TICK, UTC_MIN)
        if isinstance(windower, SessionWindower):
            self.gap = windower.gap
        elif isinstance(windower, SlidingWindower):
            self.pane = Pane(windower.length, windower.offset, windower.align_to)
        else:
            self.pane = Pane(windower.length, windower.length, windower.align_to)


def builder(clock: Any, windower: Any, fold: Fold, ordered: bool) -> Callable[[Any], FoldLogic] | None:
    """Builds the logic of a key, if the fast path can: for exactly these classes, as a class derived from one may do anything."""
    if type(clock) not in (EventClock, SystemClock):
        return None
    if type(windower) in (SlidingWindower, TumblingWindower):
        kind: type[FoldLogic] = FixedFoldLogic
    elif type(windower) is SessionWindower:
        kind = SessionFoldLogic
    else:
        return None
    plan = Plan(clock, windower, fold, ordered)
    return lambda resume_state: kind(plan, resume_state)


class FoldLogic(WokenLogic[Any, Event]):
    """A key's clock, its open windows, and, where they are to be folded in order, values that the watermark has not reached."""

    __slots__ = ("base", "due", "plan", "queue", "queue_ts", "sys")

    def __init__(self, plan: Plan, resume_state: Any) -> None:
        super().__init__()
        self.plan = plan
        #: The watermark when a value moved it last, and the system time then.
        self.base: datetime | None = None
        self.sys = UTC_MIN
        #: The watermark at which the next window closes.
        self.due: datetime | None = None
        #: Values that wait for their turn, by their time and then as they came.
        self.queue_ts: list[datetime] = []
        self.queue: list[Any] = []
        if resume_state is not None:
            base, sys, windows, queue = resume_state
            self.base = moment_of(base)
            self.sys = moment_of(sys)
            if queue:
                self.queue_ts = [moment_of(us) for us, _ in queue]
                self.queue = [value for _, value in queue]
            self.resume(windows)

    @abstractmethod
    def resume(self, windows: Any) -> None: ...
    @abstractmethod
    def windows_state(self) -> Any: ...
    @abstractmethod
    def add(self, ts: datetime, value: Any) -> None:
        """Folds a value into its windows."""

    @abstractmethod
    def add_run(self, tss: list[datetime], values: list[Any]) -> None:
        """Folds values that are in order of their times."""

    @abstractmethod
    def close(self, watermark: datetime, out: list[Event]) -> None:
        """Closes what is due."""

    @abstractmethod
    def late(self, ts: datetime, value: Any, out: list[Event]) -> None: ...
    @abstractmethod
    def due_with(self, ts: datetime) -> datetime:
        """The watermark at which the first window of a value in the queue would close."""

    def on_batch(self, values: list[Any]) -> tuple[Iterable[Event], bool]:
        plan = self.plan
        now = plan.now()
        if getattr(now, "tzinfo", None) is not UTC:
            now = to_utc(now, NOW_GETTER)
        self.early = None
        out: list[Event] = []
        get = plan.get
        if get is None:
            watermark = self.tick(now)
            self.add_run([watermark] * len(values), values)
        else:
            base = self.base
            watermark = UTC_MIN if base is None else after(base, now - self.sys) if now > self.sys else base
            if len(values) == 1:
                value = values[0]
                ts = get(value)
                try:
                    if ts.tzinfo is not UTC:
                        ts = to_utc(ts, TS_GETTER)
                except AttributeError:
                    ts = to_utc(ts, TS_GETTER)
                if ts < watermark:
                    self.late(ts, value, out)
                else:
                    new = before(ts, plan.wait)
                    if new > watermark or base is None:
                        self.base = watermark = new
                        self.sys = now
                    if plan.ordered and (ts > watermark or self.queue):
                        self.enqueue([ts], [value])
                    else:
                        self.add(ts, value)
            else:
                tss = list(map(get, values))
                try:
                    in_utc = set(map(_ZONE, tss)) == ONLY_UTC
                except AttributeError:
                    in_utc = False
                if not in_utc:
                    tss = [to_utc(ts, TS_GETTER) for ts in tss]
                watermark = self.on_many(tss, values, watermark, now, out)
            if self.queue and self.queue_ts[0] <= watermark:
                self.drain(watermark)
        if self.due is not None and watermark >= self.due:
            self.close(watermark, out)
            return out, self.due is None and not self.queue and self.forgotten(now)
        return out, False

    def on_many(self, tss: list[datetime], values: list[Any], watermark: datetime, now: datetime, out: list[Event]) -> datetime:
        plan = self.plan
        in_turn = sorted(tss)
        sorted_already = in_turn == tss
        last = in_turn[-1]
        new = before(last, plan.wait)
        moved = new > watermark or self.base is None
        if in_turn[0] < watermark or not (sorted_already or in_turn[0] >= new):
            # Some are late. A value is, when it is behind the watermark as of when it came.
            tss, values = self.sift(tss, values, watermark, out)
            in_turn = sorted(tss)
            sorted_already = in_turn == tss
        if moved:
            self.base = watermark = new
            self.sys = now
        if not tss:
            return watermark
        if not sorted_already and (plan.ordered or plan.fold.any_order and type(self) is FixedFoldLogic):
            # Stable: values of one time stay as they came.
            turn = sorted(range(len(tss)), key=tss.__getitem__)
            values = [values[i] for i in turn]
            tss = in_turn
            sorted_already = True
        if plan.ordered and (self.queue or tss[-1] > watermark):
            self.enqueue(tss, values)
        elif sorted_already:
            self.add_run(tss, values)
        else:
            for ts, value in zip(tss, values):
                self.add(ts, value)
        return watermark

    def sift(self, tss: list[datetime], values: list[Any], watermark: datetime, out: list[Event]) -> tuple[list[datetime], list[Any]]:
        """Those that are not late."""
        wait = self.plan.wait
        latest = UTC_MIN
        kept_ts, kept = [], []
        for ts, value in zip(tss, values):
            if ts < watermark:
                self.late(ts, value, out)
                continue
            if ts > latest:
                latest = ts
                watermark = max(watermark, before(ts, wait))
            kept_ts.append(ts)
            kept.append(value)
        return kept_ts, kept

    def enqueue(self, tss: list[datetime], values: list[Any]) -> None:
        """Puts values, in order, where they belong in the queue."""
        queue_ts, queue = self.queue_ts, self.queue
        if not queue_ts or tss[0] >= queue_ts[-1]:
            queue_ts += tss
            queue += values
        elif len(tss) * SORT_ALL < len(queue_ts):
            for ts, value in zip(tss, values):
                at = bisect_right(queue_ts, ts)
                queue_ts.insert(at, ts)
                queue.insert(at, value)
        else:
            queue_ts += tss
            queue += values
            turn = sorted(range(len(queue_ts)), key=queue_ts.__getitem__)
            self.queue_ts = [queue_ts[i] for i in turn]
            self.queue = [queue[i] for i in turn]

    def drain(self, watermark: datetime) -> None:
        """Folds what the watermark has reached: nothing can come before it any more."""
        until = bisect_right(self.queue_ts, watermark)
        if until:
            tss, values = self.queue_ts[:until], self.queue[:until]
            del self.queue_ts[:until], self.queue[:until]
            self.add_run(tss, values)

    def tick(self, now: datetime) -> datetime:
        """The system clock's watermark, which never goes back."""
        if self.base is None or now > self.base:
            self.base = self.sys = now
        return self.base

    def forgotten(self, now: datetime) -> bool:
        """Whether a key without windows may go."""
        return self.plan.get is None or now >= after(self.sys, self.plan.remember)

    def on_notify(self) -> tuple[Iterable[Event], bool]:
        plan = self.plan
        now = to_utc(plan.now(), NOW_GETTER)
        if plan.get is None:
            watermark = self.tick(now)
        elif self.base is None:
            return (), True
        else:
            watermark = after(self.base, now - self.sys) if now > self.sys else self.base
        out: list[Event] = []
        waiting = len(self.queue)
        self.drain(watermark)
        self.close(watermark, out)
        gone = self.due is None and not self.queue and self.forgotten(now)
        self.woken(bool(out) or gone or len(self.queue) < waiting)
        return out, gone

    def on_eof(self) -> tuple[Iterable[Event], bool]:
        out: list[Event] = []
        self.drain(UTC_MAX)
        self.close(UTC_MAX, out)
        return out, True

    def notify_at(self) -> datetime | None:
        due = self.due
        if due is None and self.queue:
            # With a window open this can't come earlier: what is in the queue is later than what is in the window.
            due = self.due_with(self.queue_ts[0])
        base = self.base
        if base is None:
            return None
        try:
            if due is None:
                at = self.sys + self.plan.remember
            elif self.plan.get is None:
                at = due
            else:
                at = self.sys + (due - base)
        except OverflowError:
            return None
        if self.plan.to_system is not None:
            asked = self.plan.to_system(at)
            if asked is None:
                return None
            at = to_utc(asked, "what `to_system_utc` returns")
        return at if self.early is None else self.not_too_early(at)

    def snapshot(self) -> Any:
        if self.base is None:
            return None
        queue = [(micros(ts), value) for ts, value in zip(self.queue_ts, self.queue)] if self.queue else None
        return micros(self.base), micros(self.sys), self.windows_state(), queue


class FixedFoldLogic(FoldLogic):
    """Tumbling and sliding windows."""

    __slots__ = ("hi", "lo", "slots", "windows")

    def __init__(self, plan: Plan, resume_state: Any) -> None:
        #: Accumulators in lists of one, by window ID.
        self.windows: dict[int, list[Any]] = {}
        #: Values from here to before there go into these.
        self.lo = self.hi = UTC_MAX
        self.slots: list[list[Any]] = []
        super().__init__(plan, resume_state)

    def resume(self, windows: Any) -> None:
        for window, acc in windows:
            self.windows[window] = [acc]
        if windows:
            self.due = self.plan.pane.times(windows[0][0])[1]

    def windows_state(self) -> Any:
        windows = self.windows
        return [(window, windows[window][0]) for window in sorted(windows)]

    def turn_to(self, ts: datetime) -> None:
        """Makes the windows of this time those that :attr:`slots` are of."""
        pane, windows = self.plan.pane, self.windows
        ids = pane.at(ts)
        self.lo, self.hi = pane.lo, pane.hi
        slots = []
        for window in ids:
            slot = windows.get(window)
            if slot is None:
                slot = windows[window] = [self.plan.fold.start()]
            slots.append(slot)
        self.slots = slots
        closes = pane.times(ids[0])[1]
        if self.due is None or closes < self.due:
            self.due = closes

    def add(self, ts: datetime, value: Any) -> None:
        if not self.lo <= ts < self.hi:
            self.turn_to(ts)
        one = self.plan.fold.one
        for slot in self.slots:
            slot[0] = one(slot[0], value)

    def add_run(self, tss: list[datetime], values: list[Any]) -> None:
        many = self.plan.fold.many
        at, end = 0, len(tss)
        while at < end:
            if not self.lo <= tss[at] < self.hi:
                self.turn_to(tss[at])
            # At least one: the last moment of all is not before the end of its pane.
            until = end if tss[-1] < self.hi else max(bisect_left(tss, self.hi, at), at + 1)
            run = values if at == 0 and until == end else values[at:until]
            for slot in self.slots:
                slot[0] = many(slot[0], run)
            at = until

    def close(self, watermark: datetime, out: list[Event]) -> None:
        due = self.due
        if due is None or due > watermark:
            return
        pane, windows = self.plan.pane, self.windows
        self.due = None
        for window in sorted(windows):
            opens, closes = pane.times(window)
            if closes > watermark:
                self.due = closes
                break
            out.append((window, DOWN, windows.pop(window)[0]))
            out.append((window, META, (opens, closes, ())))
        self.lo = self.hi = UTC_MAX
        self.slots = []

    def late(self, ts: datetime, value: Any, out: list[Event]) -> None:
        out.extend((window, LATE, value) for window in self.plan.pane.at(ts))

    def due_with(self, ts: datetime) -> datetime:
        return self.plan.pane.times(self.plan.pane.at(ts)[0])[1]


class Session:
    """An open session."""

    __slots__ = ("acc", "first", "last", "merged", "window")

    def __init__(self, window: int, first: datetime, last: datetime, acc: Any, merged: tuple[int, ...] = ()) -> None:
        self.window = window
        self.first = first
        self.last = last
        self.acc = acc
        self.merged = merged


class SessionFoldLogic(FoldLogic):
    """Sessions. More than one is open only while values may come out of order and are not ordered first."""

    __slots__ = ("next", "sessions")

    def __init__(self, plan: Plan, resume_state: Any) -> None:
        self.next = 0
        #: By their beginnings; further apart than the gap.
        self.sessions: list[Session] = []
        super().__init__(plan, resume_state)

    def resume(self, windows: Any) -> None:
        self.next, sessions = windows
        self.sessions = [Session(window, moment_of(first), moment_of(last), acc, merged) for window, first, last, acc, merged in sessions]
        self.schedule()

    def windows_state(self) -> Any:
        return self.next, [(s.window, micros(s.first), micros(s.last), s.acc, s.merged) for s in self.sessions]

    def schedule(self) -> None:
        # A session closes when the watermark is past its last moment by more than the gap, as a value just that late is part of it.
        self.due = after(self.sessions[0].last, self.plan.gap + TICK) if self.sessions else None

    def open(self, at: int, ts: datetime) -> Session:
        session = Session(self.next, ts, ts, self.plan.fold.start())
        self.next += 1
        self.sessions.insert(at, session)
        return session

    def add(self, ts: datetime, value: Any) -> None:
        sessions, fold, gap = self.sessions, self.plan.fold, self.plan.gap
        #: The first session that does not begin too late for this value to be after it.
        at = len(sessions)
        while at and sessions[at - 1].first > ts:
            at -= 1
        left = sessions[at - 1] if at and ts <= after(sessions[at - 1].last, gap) else None
        right = sessions[at] if at < len(sessions) and sessions[at].first <= after(ts, gap) else None
        if left is None and right is None:
            session = self.open(at, ts)
            session.acc = fold.one(session.acc, value)
        else:
            # The value goes into the session with the lower ID, and then the later of the two into the earlier: what the ancestor's
            # users see where the order of folding matters.
            taker = right if left is None or (right is not None and right.window < left.window) else left
            assert taker is not None
            taker.acc = fold.one(taker.acc, value)
            taker.first = min(taker.first, ts)
            taker.last = max(taker.last, ts)
            if left is not None and right is not None:
                left.acc = fold.merge(left.acc, right.acc)
                left.last = max(left.last, right.last)
                left.merged = (*left.merged, *right.merged, right.window)
                del sessions[at]
        self.schedule()

    def add_run(self, tss: list[datetime], values: list[Any]) -> None:
        gap, many, sessions = self.plan.gap, self.plan.fold.many, self.sessions
        at, end = 0, len(tss)
        while at < end:
            current = sessions[-1] if sessions else None
            if current is None or tss[at] > after(current.last, gap):
                current = self.open(len(sessions), tss[at])
                until = at
            elif tss[at] < current.first:
                # Before the last session: one by one, as others may be near.
                self.add(tss[at], values[at])
                at += 1
                continue
            else:
                until = at
            last = max(current.last, tss[at])
            while True:
                reached = end if tss[-1] <= after(last, gap) else bisect_right(tss, after(last, gap), until)
                if reached == until:
                    break
                until = reached
                last = max(last, tss[until - 1])
                if until == end:
                    break
            current.acc = many(current.acc, values if at == 0 and until == end else values[at:until])
            current.last = last
            at = until
        self.schedule()

    def close(self, watermark: datetime, out: list[Event]) -> None:
        if self.due is None or self.due > watermark:
            return
        sessions, span = self.sessions, self.plan.gap + TICK
        done = 0
        for session in sessions:
            if after(session.last, span) > watermark:
                break
            out.append((session.window, DOWN, session.acc))
            out.append((session.window, META, (session.first, session.last, session.merged)))
            done += 1
        del sessions[:done]
        self.schedule()

    def late(self, ts: datetime, value: Any, out: list[Event]) -> None:
        out.append((LATE_SESSION_ID, LATE, value))

    def due_with(self, ts: datetime) -> datetime:
        return after(ts, self.plan.gap + TICK)
