"""An exception in words: first what and where, then the traceback."""

from __future__ import annotations

import traceback
from typing import NamedTuple

from .registry import short

#: The node shows callers the first KiB of it; the dead letter has all.
DETAIL_BYTES_MAX = 8 << 10
REASON_BYTES_MAX = 64
_OWN = ("/skep/", "/_skep_app.py")


class Report(NamedTuple):
    #: A short stable word: the exception's class.
    reason: str
    detail: str


def report(error: BaseException) -> Report:
    """What happened, the user's line, and the frames of the user's code."""
    kind = type(error).__name__
    if isinstance(error, SystemExit):
        text = f"the Bee ended its program (exit status {error.code}): return, or raise an exception"
    elif isinstance(error, MemoryError):
        text = f"MemoryError: the Bee needs more memory than the stage's `memory` gives{_after(error)}"
    elif isinstance(error, OSError) and error.errno is not None:
        text = f"{kind}: {error}: a Bee has no files, network or processes; ship data beside its source and read it at the top level"
    elif isinstance(error, ModuleNotFoundError):
        text = f"{kind}: {error}: import it at the top level, for at run time a component has nothing left to import from"
    elif isinstance(error, RuntimeError) and "thread" in str(error):
        text = f"{kind}: {error}: a Bee runs in one thread; the stage's `concurrency` and `partitions` run several at once"
    else:
        text = "".join(traceback.format_exception_only(type(error), error)).strip()
    frames = [f for f in traceback.extract_tb(error.__traceback__, limit=-200) if not _is_own(f.filename)]
    for frame in frames:
        frame.filename = short(frame.filename)
    if frames:
        # The user's own line says more than that in the library which it called.
        last = next((f for f in reversed(frames) if not _is_library(f.filename)), frames[-1])
        text += f" ({last.filename}:{last.lineno}, in {last.name})"
        lines = "".join(traceback.StackSummary.from_list(frames).format())
        text += f"\nTraceback (most recent call last):\n{lines}"
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and not isinstance(cause, RecursionError):
        about = "".join(traceback.format_exception_only(type(cause), cause)).strip()
        text += f"because of {about}\n"
    return Report(_cut(kind, REASON_BYTES_MAX), _cut(text.rstrip(), DETAIL_BYTES_MAX))


def _after(error: MemoryError) -> str:
    return f": {error}" if str(error) else ""


def _is_own(path: str) -> bool:
    return any(own in path for own in _OWN) and "/tests/" not in path


def _is_library(path: str) -> bool:
    return path.startswith(("/python/", "<")) or "site-packages" in path or "/lib/python" in path


def _cut(text: str, most: int) -> str:
    data = text.encode(errors="replace")
    if len(data) <= most:
        return data.decode()
    return data[: most - 3].decode(errors="ignore") + "…"
