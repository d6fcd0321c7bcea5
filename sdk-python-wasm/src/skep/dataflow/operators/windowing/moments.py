"""Moments: every one here is a datetime in UTC, or microseconds since 1970 where it is stored.

UTC, because two datetimes of one time zone are compared and subtracted by what their clocks on the wall show, which goes wrong in the hours when
summer time begins and ends. Microseconds, because a pickled integer costs a tenth of a pickled datetime.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

UTC = timezone.utc
#: The first moment: no watermark is before it.
UTC_MIN = datetime.min.replace(tzinfo=UTC)
#: The last moment: every window has closed by then.
UTC_MAX = datetime.max.replace(tzinfo=UTC)
ZERO_TD = timedelta(0)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: The resolution of datetimes.
TICK = timedelta(microseconds=1)

#: What a batch in UTC has for zones.
ONLY_UTC = {UTC}


def system_utc() -> datetime:
    """What the machine's clock shows."""
    return datetime.now(UTC)


def to_utc(moment: object, what: str) -> datetime:
    """The moment in UTC. ``what`` names in an error where it comes from."""
    if not isinstance(moment, datetime):
        raise TypeError(f"{what} must be a datetime; got {moment!r} ({type(moment).__name__})")
    if moment.utcoffset() is None:
        raise ValueError(
            f"{what} must have a time zone; got the naive {moment!r}; for a time that is in UTC, use `.replace(tzinfo=timezone.utc)`"
        )
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return UTC_MIN if moment.year < 5000 else UTC_MAX


def micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - EPOCH) // TICK


def moment_of(us: int) -> datetime:
    """The other way."""
    return EPOCH + us * TICK


def after(moment: datetime, span: timedelta) -> datetime:
    """So much later, at most the last moment."""
    try:
        return moment + span
    except OverflowError:
        return UTC_MAX


def before(moment: datetime, span: timedelta) -> datetime:
    """So much earlier, at least the first moment."""
    try:
        return moment - span
    except OverflowError:
        return UTC_MIN


def check_span(span: object, what: str, *, least: timedelta = ZERO_TD) -> timedelta:
    """The span, if it is one and long enough."""
    if not isinstance(span, timedelta):
        raise TypeError(f"{what} must be a timedelta; got {span!r} ({type(span).__name__})")
    if span < least:
        raise ValueError(f"{what} must {'be positive' if least > ZERO_TD else 'not be negative'}; got {span}")
    return span
