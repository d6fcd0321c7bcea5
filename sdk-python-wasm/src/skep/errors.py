"""How a message ends that is not done."""

from __future__ import annotations

from datetime import timedelta

RETRY_AFTER_MS_MAX = 24 * 60 * 60 * 1_000


class BeeError(Exception):
    """The message failed: tried again by the stage's policy, then a dead letter. Any other exception does the same."""


class CallerGone(BeeError):
    """Nobody takes more parts of the response: the caller hung up, or its deadline passed. What is left need not be done."""


class Reject(BeeError):
    """A message that no attempt can help: a dead letter at once."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Retry(BeeError):
    """Try the message again, not before this time has passed."""

    def __init__(self, after: float | timedelta) -> None:
        self.after_ms = milliseconds(after)
        if self.after_ms > RETRY_AFTER_MS_MAX:
            raise ValueError("after: at most 24 hours")
        super().__init__(f"again after {self.after_ms} ms")


def milliseconds(time: float | timedelta) -> int:
    """Seconds or a timedelta, as whole milliseconds."""
    if isinstance(time, timedelta):
        seconds = time.total_seconds()
    elif isinstance(time, (int, float)) and not isinstance(time, bool):
        seconds = float(time)
    else:
        raise TypeError(f"a time is seconds or a timedelta, not {type(time).__name__}")
    if not 0 <= seconds < 1e12:
        raise ValueError(f"a time is not negative and finite, not {seconds}")
    return round(seconds * 1000)


PART_BYTES_MAX = 256 << 10
NO_CALLER = "no caller waits for this message, so there is nobody to send parts to: it was submitted, or is a timer or a dead letter"
PART_OF_BATCH = "a Bee that takes a batch sends no parts: register it for one message"
UNKEYED = "no state here: the stage needs `key:` and `state: true` in the manifest, and the message a key (DevSwarm: key=)"
QUOTA = "a key's state has at most 1000 names and 4 MiB in all, and 1000 timers"
