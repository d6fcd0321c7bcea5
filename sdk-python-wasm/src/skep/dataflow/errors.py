"""What goes wrong while a flow runs."""

from __future__ import annotations

import os
import traceback

__all__ = ["AbortExecution", "BytewaxRuntimeError", "DataflowError", "StepError", "StoreInUseError"]

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_SKEP = os.path.dirname(os.path.dirname(_PACKAGE)) + os.sep
_LIBRARY = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


class DataflowError(RuntimeError):
    """A flow that can't run, or failed. What caused it is its ``__cause__``."""


#: The ancestor's name for it: scripts that catch one, catch the other.
BytewaxRuntimeError = DataflowError


class StepError(DataflowError):
    """A step failed. The message names the step, the key or partition, and the file and line of the user's code."""

    def __init__(self, message: str, step_id: str, *, key: str | None = None, part: str | None = None, where: str | None = None) -> None:
        super().__init__(message)
        #: The whole name of the step, as its author gave it.
        self.step_id = step_id
        #: The key whose state or values were worked on, if that is known.
        self.key = key
        #: The partition of a source or sink, if it is about one.
        self.part = part
        #: ``file:line`` of the user's code that raised, if any did.
        self.where = where

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (str(self), self.step_id, self.key, self.part, self.where)


def _rebuild(message: str, step_id: str, key: str | None, part: str | None, where: str | None) -> StepError:
    return StepError(message, step_id, key=key, part=part, where=where)


class StoreInUseError(DataflowError):
    """Another process has the recovery store."""


class AbortExecution(RuntimeError):
    """Raised by a source to stop the flow at once, as if it had crashed: nothing is kept of the epoch, nothing is closed."""


class WorkerTraceback(Exception):
    """What the user's code raised in a worker's process, as text: the cause of an error that came from there."""


def user_traceback(error: BaseException) -> str | None:
    """The user's part of a traceback: what lies above it is how the flow was run. None: there is none."""
    if isinstance(error, WorkerTraceback):
        return str(error)
    tb = error.__traceback__
    while tb is not None and os.path.abspath(tb.tb_frame.f_code.co_filename).startswith(_SKEP):
        tb = tb.tb_next
    return None if tb is None else "".join(traceback.format_exception(type(error), error, tb)).rstrip()


def user_frame(error: BaseException) -> str | None:
    """``file:line in function`` of the innermost frame of the user's own code: neither this package's, nor a library's that it called."""
    own = foreign = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = os.path.abspath(frame.f_code.co_filename)
        if path.startswith(_PACKAGE) or frame.f_code.co_filename.startswith("<frozen"):
            continue
        found = f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"
        if path.startswith(_LIBRARY):
            foreign = found
        else:
            own = found
    return own or foreign
