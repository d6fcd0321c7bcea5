"""Where an endless loop is.

A call that uses up its time ends from outside, without a word of Python. So from a message's second attempt on, loops are counted, and
now and then stderr is told which one is running: its end is in the dead letter. First attempts pay nothing.
"""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any

from .registry import short

#: Turns of loops until the first word; each next one comes after four times as many.
TURNS_FIRST = 1 << 16

_monitoring: Any = getattr(sys, "monitoring", None)
_running = False
_turns = 0
_next = TURNS_FIRST


def start() -> None:
    global _running, _turns, _next
    if _running or _monitoring is None:
        return
    _running, _turns, _next = True, 0, TURNS_FIRST
    tool = _monitoring.DEBUGGER_ID
    _monitoring.use_tool_id(tool, "skep")
    _monitoring.register_callback(tool, _monitoring.events.JUMP, _jump)
    _monitoring.set_events(tool, _monitoring.events.JUMP)


def stop() -> None:
    global _running
    if _running:
        _running = False
        tool = _monitoring.DEBUGGER_ID
        _monitoring.set_events(tool, 0)
        _monitoring.free_tool_id(tool)


def _jump(code: CodeType, offset: int, to: int) -> None:
    global _turns, _next
    _turns += 1
    if _turns >= _next:
        _next = _turns * 4
        line = next((line for start, end, line in code.co_lines() if start <= offset < end), code.co_firstlineno)
        print(f"{short(code.co_filename)}:{line}, in {code.co_name}: in a loop, {_turns} turns so far", file=sys.stderr)
