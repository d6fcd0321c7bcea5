"""Bounds of dataflows, in process and on a node, each with its reason."""

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
#: Workers that are processes: each has a link to each other, and no machine has more cores for Python.
PROCESSES_MAX = 64
#: Shares of items that a worker has under way to another, of one stage, before it begins nothing more that could make some: what one has while it
#: works on one, and some for when the other is late.
SHARES_UNDER_WAY = 8
#: ... and where steps are slow: an epoch's end waits for all of them.
SHARES_UNDER_WAY_SLOW = 2
#: Seconds from when a share is sent to when it was worked on: below the first, more items are gathered for the next; above the second, fewer.
#: A machine that is busy makes a worker wait some tens of milliseconds for its turn.
SHARE_QUICK = 0.05
SHARE_SLOW = 0.25
#: How much of a slow share's time still counts at the next one: a second is forgotten after thirty.
SHARE_FORGET = 0.9
#: How long a worker reads its sources before it looks for what others sent, in seconds: a link's message costs some tens of microseconds, so small
#: batches are sent together, and nothing waits longer than anyone sees.
TURN_SECONDS = 0.002
#: Bytes that a worker takes from a link at once; and pieces that it hands to it at once.
LINK_READ_BYTES = 256 << 10
LINK_BUFFERS = 16
#: State that a worker sends to the parent at once, about.
ROWS_BATCH_BYTES = 1 << 20
#: Keys whose end is worked on before what they emitted goes on: the end of a stream of many keys is no one batch.
END_BATCH = 1_000
#: Rows that a store writes with one call.
ROWS_BATCH = 10_000
#: How long a store waits for a process that is just ending, in seconds.
LOCK_WAIT = 2.0
#: How often it looks meanwhile.
LOCK_AGAIN = 0.005
#: What a worker holds of its standard output until a line of it is whole.
STDOUT_TURN_BYTES = 64 << 10
#: Names that an error about partitions lists.
NAMES_SHOWN = 10

# ------------------------------------------------------------------------------------------------------------------------------ on a node

#: Items that one timer of a source's partition reads, give or take a batch, at first and at most. What it makes must fit into one message's
#: effects, and all of it happens in one call, which has its stage's time; but the more it reads, the more items of a key share a message, which
#: costs as much as twenty items. So it begins with what any steps get through, and reads twice as much while there is room and time.
READ_ITEMS = 1_024
READ_ITEMS_MAX = 131_072
#: How long a call may take, in seconds by the clock, for its source to read more the next time; and from when on it reads less. A message for each
#: bucket is some 50 ms of a small read, many times that on a machine that is busy: less time would keep its reads small there, and so itself busy.
READ_QUICK = 0.5
READ_SLOW = 2.0
#: How long it reads on, in seconds: a slow source's items are not held back for more.
READ_SECONDS = 0.05
#: So many of them, give or take a batch, go through the steps at once: what steps make of more is too much for a processor's cache, which made a
#: pair of key and value cost four times as much.
PASS_ITEMS = 2_048
#: Pickled items of one message, about: a quarter of what a payload may have, so that a step behind it may make much of little.
MESSAGE_BYTES = 64 << 10
#: A payload, as nodes bound it.
PAYLOAD_BYTES_MAX = 256 << 10
#: What one input may make: messages and state, as nodes bound it; and what an output costs there beside its bytes.
EFFECTS_BYTES_MAX = 1 << 20
OUTPUT_OVERHEAD_BYTES = 64
#: What all inputs of one call may make, as nodes bound a commit: those behind it are not begun, for a node would discard what came of them.
COMMIT_BYTES_MAX = 2 << 20
#: Messages that one input may make.
EMITS_MAX = 10_000
#: A key, as nodes bound it.
KEY_BYTES_MAX = 1 << 10
#: One value of a key's state; a larger state lies in several.
STATE_VALUE_BYTES_MAX = 256 << 10
#: Values that the state of one key takes: with what an input sends they must fit into its effects.
STATE_VALUES_MAX = 3
#: Buckets that the keys of a stage share, a power of two: a message each is a small part of what a large read costs, and their state, of which
#: each may have 4 MiB, is 4 GiB together. Another number begins a flow's state anew.
BUCKETS = 1_024
#: A bucket's state lies in pages of about so many bytes, each read and written whole; it gets more pages beyond that, a power of two, up to so many:
#: all of them written anew are half of what one input may write.
PAGE_BYTES = 8 << 10
PAGES_MAX = 64
#: A larger state of one key lies beside the pages.
STATE_IN_PAGE_BYTES = 8 << 10
#: Partitions of a stage that an instance holds in memory beside what is kept.
HELD_KEYS = 20_000
#: What keys of a stage have in an instance's memory beside what is kept, about, of its 256 MiB; a key costs so much beside its state, and a state
#: four times its bytes: packed, and built.
HELD_BYTES = 64 << 20
HELD_KEY_BYTES = 500
HELD_STATE_TIMES = 4
#: Partitions of one source: each has a timer of its own.
SOURCE_PARTS_MAX = 10_000
