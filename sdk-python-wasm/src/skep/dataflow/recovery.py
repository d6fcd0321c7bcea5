"""Where a flow's state is kept between runs: one file in a directory, one transaction an epoch.

``python -m skep.dataflow.recovery DIR COUNT`` makes a store. A run with it keeps, at the end of each epoch, what changed of the state of
every step and key, and how far every partition of a source was read and of a sink was written. All of an epoch is there or nothing is, so
whatever moment a process dies at, the next run goes on from the end of an epoch, with as many workers as it likes: state belongs to steps
and keys, not to workers.

The ancestor cut its store in as many files as COUNT says, to spread them over machines. This one has a single file, for only that is kept at
once; the count is taken and means nothing. A key whose state was discarded leaves no row.

The store trusts who can write to it: state is pickled. Keep the directory as private as the flow's code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeAlias

from .errors import DataflowError, StoreInUseError
from .forks import closed_by_forks
from .limits import LOCK_AGAIN, LOCK_WAIT, NAMES_SHOWN, ROWS_BATCH
from .plan import Kind, Plan, Stage

try:
    import fcntl
except ImportError:  # On Windows, where no process is forked.
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "InconsistentPartitionsError",
    "MissingPartitionsError",
    "NoPartitionsError",
    "RecoveryConfig",
    "Store",
    "init_db_dir",
]

FILE = "recovery.sqlite3"
LOCK_FILE = "recovery.lock"
#: "Skep" in ASCII: SQLite's mark of whose file it is.
APPLICATION_ID = 0x536B6570
#: The version of the tables. A later one is refused.
STORE_VERSION = 1

_ZERO = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)

#: What an epoch keeps: step, key, state or None, timer.
Keep: TypeAlias = Callable[[str, str, "bytes | None", "datetime | None"], None]


class NoPartitionsError(FileNotFoundError):
    """There is no store in the directory: perhaps it is the wrong one."""


class MissingPartitionsError(FileNotFoundError):
    """A part of the store is missing."""


class InconsistentPartitionsError(ValueError):
    """The store is damaged, or does not belong to this flow as it is now."""


class RecoveryConfig:
    """Which store a run uses.

    ``db_dir``: the directory. ``backup_interval``: taken for the ancestor's sake. Its stores had to keep old state until all parts were copied
    away; a copy of this one is whole at any time (``--backup``).
    """

    def __init__(self, db_dir: str | os.PathLike[str], backup_interval: timedelta | None = None) -> None:
        if backup_interval is not None and not isinstance(backup_interval, timedelta):
            raise TypeError(f"backup_interval: a timedelta; got {backup_interval!r}")
        self.db_dir = Path(db_dir)
        self.backup_interval = timedelta(0) if backup_interval is None else backup_interval

    def hold(self) -> Hold:
        """Keeps others from opening the store, before it is opened: for who forks processes that shall keep them from it as well."""
        return Hold(self.db_dir)

    def open(self, hold: Hold | None = None) -> Store:
        """The store, for one run: use it as a context manager. ``hold``: what keeps others from it already."""
        return Store(self.db_dir, hold)

    def __repr__(self) -> str:
        return f"RecoveryConfig({str(self.db_dir)!r}, {self.backup_interval!r})"


def init_db_dir(db_dir: str | os.PathLike[str], count: int) -> None:
    """Makes a store in a directory. One that is there stays as it is. ``count`` is taken for the ancestor's sake.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as dir:
    ...     init_db_dir(dir, 1)
    ...     with RecoveryConfig(dir).open() as store:
    ...         print(store.steps())
    []
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"count: a whole number, at least 1; got {count!r}")
    path = Path(db_dir)
    path.mkdir(parents=True, exist_ok=True)
    if (path / FILE).exists():
        Store(path).close()
        return
    import sqlite3

    # Under another name first: who dies here leaves no half of a store.
    draft = path / f"{FILE}.{os.getpid()}"
    draft.unlink(missing_ok=True)
    db = sqlite3.connect(draft, isolation_level=None)
    try:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {STORE_VERSION}")
        db.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID")
        db.execute("CREATE TABLE steps (step TEXT PRIMARY KEY, kind TEXT NOT NULL) WITHOUT ROWID")
        db.execute(
            "CREATE TABLE snaps (step TEXT NOT NULL, key TEXT NOT NULL, state BLOB NOT NULL, due INTEGER, PRIMARY KEY (step, key)) WITHOUT ROWID"
        )
        db.execute("CREATE INDEX dues ON snaps (step, due) WHERE due IS NOT NULL")
    finally:
        db.close()
    os.replace(draft, path / FILE)


class Hold:
    """The lock of a store: a file that is locked as long as a process of the run has it open. SQLite's own is that of one process, and a run may be
    several: while one of them writes to a file, no other run may cut that to where it was.

    A process that is forked lets go of it at once, unless it has a :meth:`copy`.
    """

    def __init__(self, db_dir: Path) -> None:
        self._fd: int | None = None
        closed_by_forks(self)
        path = Path(db_dir) / FILE
        if not path.is_file():
            raise _no_store(Path(db_dir))
        if fcntl is None:
            return
        try:
            self._fd = os.open(path.with_name(LOCK_FILE), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as e:
            raise DataflowError(f"{path.with_name(LOCK_FILE)} can't be written: {e}") from e
        until = time.monotonic() + LOCK_WAIT
        try:
            while True:
                try:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise StoreInUseError(_in_use(path)) from None
                    time.sleep(LOCK_AGAIN)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def copy(self) -> int | None:
        """A file descriptor for a process that is to be forked, which makes a hold :meth:`of` it. None: this system has no such lock."""
        return None if self._fd is None else os.dup(self._fd)

    @classmethod
    def of(cls, fd: int | None) -> Hold:
        """That of a worker."""
        hold = cls.__new__(cls)
        hold._fd = fd
        closed_by_forks(hold)
        return hold

    def close(self) -> None:
        """Lets go. Other processes of the run hold on: so the file is closed and not unlocked."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _in_use(path: Path) -> str:
    return f"{path} is in use by another process: a store serves one run at a time"


class Store:
    """An open store, which no other process can open meanwhile. ``hold``: what keeps them from it already; else it has its own."""

    def __init__(self, db_dir: Path, hold: Hold | None = None) -> None:
        import sqlite3

        self.path = Path(db_dir) / FILE
        if not self.path.is_file():
            raise _no_store(Path(db_dir))
        self._hold = Hold(db_dir) if hold is None else None
        self._errors = sqlite3.DatabaseError
        #: Steps of which nothing was kept when the run began, and all is in memory since: their keys need not be looked up.
        self._empty: set[str] = set()
        try:
            with self._explained():
                self._db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=LOCK_WAIT)
                try:
                    self._check_file()
                except BaseException:
                    self._db.close()
                    raise
        except BaseException:
            if self._hold is not None:
                self._hold.close()
            raise

    def _check_file(self) -> None:
        db = self._db
        owner = db.execute("PRAGMA application_id").fetchone()[0]
        if owner != APPLICATION_ID:
            raise InconsistentPartitionsError(
                f"{self.path} is no recovery store of skep, or the rest of one: make another directory with "
                "`python -m skep.dataflow.recovery DIR 1`, or bring the file back from a backup"
            )
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > STORE_VERSION:
            raise InconsistentPartitionsError(
                f"{self.path} has version {version} and this skep reads up to {STORE_VERSION}: it was written by a later skep; use that"
            )
        # In this order: the lock is taken with the first change of the mode, and held to the end.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        db.execute("COMMIT")
        for table in ("meta", "steps", "snaps"):
            db.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._errors as e:
            if "locked" in str(e):
                raise StoreInUseError(_in_use(self.path)) from e
            if "too big" in str(e) or "too large" in str(e):
                raise DataflowError(f"{self.path}: the state of a key is larger than SQLite keeps, a billion bytes") from e
            if "full" in str(e) or "I/O" in str(e) or "readonly" in str(e) or "unable to open" in str(e):
                raise DataflowError(f"{self.path} can't be written: {e}") from e
            raise InconsistentPartitionsError(
                f"{self.path} is damaged ({e}): bring it back from a backup, or begin anew with an empty directory"
            ) from e

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others open it. What is under way is undone."""
        self._db.close()
        if self._hold is not None:
            self._hold.close()

    # ------------------------------------------------------------------------------------------------------------------------- a run

    def resume(self, plan: Plan) -> int:
        """Checks that what is kept belongs to the flow. The last epoch that was kept; 0 at first."""
        with self._explained():
            now = {stage.name: stage.kind.value for stage in plan.stages if stage.kind in (Kind.SOURCE, Kind.KEYED, Kind.SINK)}
            kept = self.steps()
            kinds = dict(self._db.execute("SELECT step, kind FROM steps").fetchall())
            gone = [step for step in kept if step not in now or kinds.get(step, now[step]) != now[step]]
            if gone:
                raise self._changed_steps(plan.flow_id, gone, kinds, now)
            self._empty = set(now) - set(kept)
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO steps VALUES (?, ?)", now.items())
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('flow', ?)", (plan.flow_id,))
            self._db.execute("COMMIT")
            row = self._db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
            return int(row[0]) if row else 0

    def _changed_steps(self, flow_id: str, gone: list[str], kinds: dict[str, str], now: dict[str, str]) -> InconsistentPartitionsError:
        lines = []
        for step in gone:
            count = self._db.execute("SELECT count(*) FROM snaps WHERE step = ?", (step,)).fetchone()[0]
            lines.append(f"  - {step} ({kinds.get(step, '?')}; {count} kept)")
        lines += [f"  + {step} ({kind}; nothing kept)" for step, kind in now.items() if step in gone or step not in kinds]
        owner = self._db.execute("SELECT value FROM meta WHERE name = 'flow'").fetchone()
        other = f" It was written by the flow {owner[0]!r}." if owner and owner[0] != flow_id else ""
        return InconsistentPartitionsError(
            f"{self.path} holds state of steps that the flow {flow_id!r} has not.{other} Kept (-) and new (+):\n"
            + "\n".join(lines)
            + f"\nGive the steps their names back, or say what became of them: `python -m skep.dataflow.recovery {self.path.parent} "
            "--rename OLD=NEW`, or `--forget STEP`"
        )

    def check_parts(self, stage: Stage, parts: list[str]) -> None:
        """Refuses to go on where partitions of a source went before they were read to the end, or those of a sink changed."""
        from .stage import unpack

        source = stage.kind is Kind.SOURCE
        with self._explained():
            kept = self._db.execute("SELECT key, state FROM snaps WHERE step = ?", (stage.name,)).fetchall()
        left = {key for key, state in kept} - set(parts)
        if source and left:
            # One that was read to its end may go: there is nothing left to lose.
            left = {key for key, state in kept if key in left and not unpack(state)[0]}
        new = [] if source or not kept else [part for part in parts if part not in {key for key, _ in kept}]
        if not left and not new:
            return
        lines = [f"  - {part}" for part in sorted(left)[:NAMES_SHOWN]] + [f"  + {part}" for part in new[:NAMES_SHOWN]]
        more = max(len(left) - NAMES_SHOWN, 0) + max(len(new) - NAMES_SHOWN, 0)
        if more:
            lines.append(f"  and {more} more")
        why = "were not read to the end, and are gone" if source else "are not those that were written: keys would change place"
        raise InconsistentPartitionsError(
            f"{stage.entry.title()}: partitions {why}. Kept (-) and new (+):\n"
            + "\n".join(lines)
            + f"\nBring them back, or drop what is kept of them: `python -m skep.dataflow.recovery {self.path.parent} --forget {stage.name}` "
            "(then its partitions begin anew)"
        )

    def steps(self) -> list[str]:
        """Steps with kept state."""
        found: list[str] = []
        with self._explained():
            # One look a step, not one a row.
            while row := self._db.execute(
                "SELECT step FROM snaps WHERE step > ? ORDER BY step LIMIT 1", (found[-1] if found else "",)
            ).fetchone():
                found.append(row[0])
        return found

    def has_none(self, step: str) -> bool:
        """Whether there is nothing to look up of a step."""
        return step in self._empty

    def load(self, step: str, key: str) -> bytes | None:
        """The kept state of a key."""
        if step in self._empty:
            return None
        with self._explained():
            row = self._db.execute("SELECT state FROM snaps WHERE step = ? AND key = ?", (step, key)).fetchone()
        return None if row is None else row[0]

    def keys(self, step: str) -> Iterator[str]:
        """All keys of a step with kept state."""
        with self._explained():
            for row in self._db.execute("SELECT key FROM snaps WHERE step = ?", (step,)):
                yield row[0]

    def timers(self, step: str) -> Iterator[tuple[str, datetime]]:
        """Keys of a step that wait for a time."""
        with self._explained():
            for key, due in self._db.execute("SELECT key, due FROM snaps WHERE step = ? AND due IS NOT NULL", (step,)):
                yield key, _ZERO + due * _MICROSECOND

    def spilled(self, step: str) -> None:
        """Not all keys of the step are in memory any more."""
        self._empty.discard(step)

    @contextlib.contextmanager
    def epoch(self, epoch: int) -> Iterator[Keep]:
        """One transaction: what is kept within is there together, once this ends. What is equal to what is kept costs no write."""
        db = self._db
        rows: list[tuple[str, str, bytes, int | None]] = []
        gone: list[tuple[str, str]] = []

        def flush() -> None:
            db.executemany(
                "INSERT INTO snaps VALUES (?, ?, ?, ?) ON CONFLICT (step, key) DO UPDATE SET state = excluded.state, due = excluded.due "
                "WHERE state IS NOT excluded.state OR due IS NOT excluded.due",
                rows,
            )
            db.executemany("DELETE FROM snaps WHERE step = ? AND key = ?", gone)
            rows.clear()
            gone.clear()

        def keep(step: str, key: str, state: bytes | None, due: datetime | None) -> None:
            if not key.isascii():
                try:
                    key.encode()
                except UnicodeEncodeError:
                    raise DataflowError(f"{step}: the key {key!r} can't be kept: it has half of a surrogate pair") from None
            if state is None:
                gone.append((step, key))
            else:
                rows.append((step, key, state, None if due is None else (due - _ZERO) // _MICROSECOND))
            if len(rows) + len(gone) >= ROWS_BATCH:
                with self._explained():
                    flush()

        with self._explained():
            db.execute("BEGIN IMMEDIATE")
        before = db.total_changes
        try:
            yield keep
            with self._explained():
                flush()
                if db.total_changes != before:
                    db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (epoch,))
                db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    # --------------------------------------------------------------------------------------------------------------------- by hand

    def forget(self, step: str) -> int:
        """Drops what is kept of a step. How many keys or partitions that was."""
        with self._explained():
            count = self._db.execute("DELETE FROM snaps WHERE step = ?", (step,)).rowcount
            self._db.execute("DELETE FROM steps WHERE step = ?", (step,))
        return count

    def rename(self, old: str, new: str) -> int:
        """Gives what is kept of a step to another. ValueError: that has state of its own."""
        with self._explained():
            if self._db.execute("SELECT 1 FROM snaps WHERE step = ? LIMIT 1", (new,)).fetchone():
                raise ValueError(f"{new} has state of its own in {self.path}: `--forget {new}` first")
            count = self._db.execute("UPDATE snaps SET step = ? WHERE step = ?", (new, old)).rowcount
            self._db.execute("UPDATE OR REPLACE steps SET step = ? WHERE step = ?", (new, old))
        return count

    def backup(self, to: Path) -> None:
        """Copies the store, as it is at the end of the last epoch, to another directory."""
        import sqlite3

        to.mkdir(parents=True, exist_ok=True)
        if (to / FILE).exists():
            raise ValueError(f"{to / FILE} is there already: choose another directory")
        draft = to / f"{FILE}.{os.getpid()}"
        with self._explained(), contextlib.closing(sqlite3.connect(draft)) as copy:
            self._db.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
        os.replace(draft, to / FILE)

    def summary(self) -> list[tuple[str, str, int]]:
        """Step, kind and number of keys or partitions, for each with kept state."""
        with self._explained():
            kinds = dict(self._db.execute("SELECT step, kind FROM steps").fetchall())
            return [(s, kinds.get(s, "?"), n) for s, n in self._db.execute("SELECT step, count(*) FROM snaps GROUP BY step ORDER BY step")]


def _no_store(db_dir: Path) -> Exception:
    if not db_dir.is_dir():
        return NoPartitionsError(f"{db_dir} is no directory: make a recovery store with `python -m skep.dataflow.recovery {db_dir} 1`")
    if any(db_dir.glob("part-*.sqlite3")):
        return NoPartitionsError(
            f"{db_dir} holds a recovery store of Bytewax, which skep can't read: its state is tied to Bytewax's own code; "
            "make a store in another directory with `python -m skep.dataflow.recovery DIR 1`, and let the flow read its input anew"
        )
    if (db_dir / f"{FILE}-wal").exists():
        return MissingPartitionsError(f"{db_dir} has the journal of a recovery store but not {FILE}: bring both back from a backup")
    return NoPartitionsError(
        f"{db_dir} holds no recovery store: is it the right directory? Make one with `python -m skep.dataflow.recovery {db_dir} 1`"
    )


def main(argv: list[str] | None = None) -> int:
    """``python -m skep.dataflow.recovery``. The exit status."""
    parser = argparse.ArgumentParser(prog="python -m skep.dataflow.recovery", description="Makes and tends recovery stores.")
    parser.add_argument("db_dir", type=Path, metavar="DIR", help="the directory of the store")
    parser.add_argument("part_count", type=int, nargs="?", metavar="COUNT", help="make a store; the number is Bytewax's, and means nothing here")
    parser.add_argument("--list", action="store_true", help="show the steps with kept state")
    parser.add_argument("--rename", action="append", default=[], metavar="OLD=NEW", help="give the state of a step to another")
    parser.add_argument("--forget", action="append", default=[], metavar="STEP", help="drop the state of a step")
    parser.add_argument("--backup", type=Path, metavar="TO", help="copy the store to another directory; no run may use it meanwhile")
    args = parser.parse_args(argv)
    if args.part_count is None and not (args.list or args.rename or args.forget or args.backup):
        parser.error("say what to do: COUNT makes a store; --list, --rename, --forget and --backup tend one")
    try:
        if args.part_count is not None:
            init_db_dir(args.db_dir, args.part_count)
        with RecoveryConfig(args.db_dir).open() as store:
            return _tend(store, args, parser)
    except (OSError, ValueError, DataflowError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


def _tend(store: Store, args: Any, parser: argparse.ArgumentParser) -> int:
    for pair in args.rename:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            parser.error(f"--rename takes OLD=NEW; got {pair!r}")
        print(f"{store.rename(old, new)} kept of {old} belong to {new} now")
    for step in args.forget:
        print(f"{store.forget(step)} kept of {step} dropped")
    if args.backup:
        store.backup(args.backup)
    if args.list:
        for step, kind, count in store.summary():
            print(f"{step}\t{kind}\t{count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
