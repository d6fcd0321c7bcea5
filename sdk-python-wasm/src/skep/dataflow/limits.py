"""Bounds of the in-process runner, each with its reason."""

from __future__ import annotations

from datetime import timedelta

#: How long an epoch lasts unless it is said: state is kept, and a sink made safe, this often. The ancestor's.
EPOCH_INTERVAL = timedelta(seconds=10)
#: A source that had nothing, and names no time, is asked again after this.
COOLDOWN = timedelta(milliseconds=1)
#: The longest that a runner sleeps at once: a clock that is set anew is seen within it.
SLEEP_MAX = timedelta(seconds=1)
#: Keys of one step on one worker whose logic is held in memory between epochs where a store keeps their state; more are built again from it.
LIVE_KEYS = 200_000
#: Logical workers of a process: each costs a share of every table, and no flow gains by more.
WORKERS_MAX = 1_024
#: Keys whose end is worked on before what they emitted goes on: the end of a stream of many keys is no one batch.
END_BATCH = 1_000
#: Rows that a store writes with one call.
ROWS_BATCH = 10_000
#: How long a store waits for a process that is just ending, in seconds.
LOCK_WAIT = 2.0
#: Names that an error about partitions lists.
NAMES_SHOWN = 10
