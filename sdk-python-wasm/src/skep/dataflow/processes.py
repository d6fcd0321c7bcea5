"""Runs a flow on several workers, each a process, so that they use as many cores.

The process that the user started is the parent: it forks the workers, gives each its partitions, owns the recovery store, and says when an epoch
ends. It touches no item. Workers (:mod:`.worker`) send items to each other, and to the parent only what is to be kept.

They are forked and not started anew: the flow is functions and objects of the user's, which can be inherited but not sent. Nothing of what a fork
leaves behind may be in use then, so a flow whose file started threads runs in one process, as does one that holds what it makes in this process's
memory: see :func:`why_in_one`.

**A reader.** Where a source has one partition, one worker would read it, and split items by key, beside its keys: it would be the slowest, and the
others wait for it. So that partition has a process of its own.

**All or nothing.** An epoch is one transaction of the store, as in one process. It begins when the parent tells the workers to close the epoch, and
is committed when all of them have sent what changed. A worker that dies takes the run with it: the others are killed, and the next run goes on from
the last epoch that was kept. So does the parent's death: a worker that finds it gone is gone as well. The store's lock is inherited, so the next
run waits until the last process of this one is gone, and nobody writes to files any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import AbortExecution, DataflowError, StepError, WorkerTraceback, user_traceback
from .forks import closed_by_forks
from .graph import Dataflow
from .limits import PROCESSES_MAX, STDOUT_TURN_BYTES
from .links import Line, Link
from .local import check_how
from .plan import Kind, Plan, plan
from .stage import list_parts, worker_of
from .worker import Part, Worker

if TYPE_CHECKING:
    from .recovery import Hold, Keep, RecoveryConfig, Store


def why_in_one(flow: Dataflow, *, cores: int | None = None) -> str | None:
    """Why the workers of a flow must share this process, for whoever asked for several; None: each can have its own.

    A source or sink says so by ``one_process = True``: it keeps in memory what is asked for after the run. ``cores``: how many there are to use.
    """
    for op in flow.leaves():
        for name in ("source", "sink"):
            if getattr(op.args.get(name), "one_process", False):
                return f"{op.title()} keeps what it {'gives' if name == 'source' else 'gets'} in this process's memory"
    if not hasattr(os, "fork"):
        return "this system can't fork processes"
    out = sys.stdout
    if out is not None and not _is_file(out):
        return "standard output is kept in this process's memory"
    if threading.active_count() > 1:
        return "the flow's file started threads, which a worker's process would not have"
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return "there is one core" if cores == 1 else None


def _is_file(out: object) -> bool:
    try:
        out.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    return True


def _may_have_reader(plan: Plan) -> bool:
    """Whether the one source of a flow can be read in a process of its own, if it has a single partition: not if its items go no further, or to a
    sink that each worker has for itself."""
    sources = [stage for stage in plan.stages if stage.kind in (Kind.SOURCE, Kind.WORKER_SOURCE)]
    return (
        len(sources) == 1
        and sources[0].kind is Kind.SOURCE
        and bool(sources[0].exits)
        and not any(node.op.op_type == "output" for node in sources[0].nodes)
    )


class _Child:
    """A worker, seen from the parent."""

    def __init__(self, number: int, name: str, pid: int, line: Line) -> None:
        self.number = number
        #: For people.
        self.name = name
        self.pid = pid
        self.line = line
        #: What became of it, once that is known.
        self.status: int | None = None

    def wait(self) -> int:
        """Waits until it is gone. Its exit status; negative: the signal that killed it."""
        if self.status is None:
            try:
                self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            except ChildProcessError:
                # Where SIGCHLD is ignored, by the flow's file or by who started this, nobody knows how it ended.
                self.status = 0
        return self.status

    def kill(self) -> None:
        """Ends it at once, whatever it does."""
        if self.status is None:
            # It may be gone, and somebody else have seen to it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Waits until it is gone, and forgets it."""
        self.wait()
        self.line.sock.close()


class Processes:
    """A flow with its workers, for one run. The arguments are those of :class:`.local.Runner`; it opens and closes the store itself."""

    def __init__(self, flow: Dataflow, *, workers: int, epoch_interval: timedelta, recovery: RecoveryConfig | None = None) -> None:
        check_how(workers, epoch_interval, PROCESSES_MAX)
        self.plan: Plan = plan(flow)
        self.workers = workers
        self.epoch = 1
        self._interval = epoch_interval.total_seconds()
        self._recovery = recovery
        self._children: list[_Child] = []
        self._moved = False
        self._done: set[int] = set()
        self._ended: set[int] = set()
        self._closed: set[int] = set()

    def run(self) -> None:
        """Runs the flow to its end. Raises what went wrong; then nothing of the last epoch is kept, and no process is left."""
        with contextlib.ExitStack() as held:
            hold = None
            if self._recovery is not None:
                # Before the workers are there, so that they hold it as well.
                hold = held.enter_context(self._recovery.hold())
            held.callback(self._kill)
            # What is in there belongs to this process.
            _flush()
            with self._room_for_processes():
                self._fork(held, hold)
            self._selector = held.enter_context(selectors.DefaultSelector())
            # Not before: what SQLite has open must not be open in two processes.
            store = held.enter_context(self._recovery.open(hold)) if self._recovery is not None else None
            try:
                self._run(store)
            except AbortExecution:
                return
            for child in self._children:
                # By itself: it may still be about to write.
                child.wait()

    def _kill(self) -> None:
        for child in self._children:
            child.kill()
        for child in self._children:
            child.close()

    # ------------------------------------------------------------------------------------------------------------------------ start

    def _fork(self, held: contextlib.ExitStack, hold: Hold | None) -> None:
        #: It closes when this process is gone, however that came.
        life, mine = os.pipe()
        held.callback(os.close, mine)
        # One byte: who has it may write to standard output.
        turn = os.pipe()
        os.write(turn[1], b"x")
        copy = None if hold is None else hold.copy()
        parent = os.getpid()
        try:
            for number in range(self.workers + _may_have_reader(self.plan)):
                ours, theirs = socket.socketpair()
                name = "the reader" if number == self.workers else f"worker {number}"
                # No Ctrl-C between the fork and what a worker makes of it.
                blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                pid = os.fork()
                if not pid:
                    _die_with(parent)
                    # It is for the parent, which ends all. No SIG_IGN: programs that steps start would inherit it.
                    signal.signal(signal.SIGINT, lambda *_: None)
                    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
                    # The parent's other lines are closed by the fork.
                    os.close(mine)
                    ours.close()
                    _be_worker(self.plan, number, name, self.workers, Line(theirs), life, turn, copy)
                self._children.append(_Child(number, name, pid, Line(ours)))
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
                theirs.close()
        finally:
            for fd in (life, *turn, *(() if copy is None else (copy,))):
                os.close(fd)

    def _start(self, parts: list[Part]) -> None:
        """Tells each process what it has, and gives each two of them a link."""
        for child in self._children[len(parts) :]:
            child.kill()
            child.close()
        del self._children[len(parts) :]
        for child, part in zip(self._children, parts):
            self._tell(child, part)
        for high in range(len(parts)):
            for low in range(high):
                for one, other, end in zip((low, high), (high, low), socket.socketpair()):
                    child = self._children[one]
                    with end, self._lost(child):
                        socket.send_fds(child.line.sock, [bytes((other,))], [end.fileno()])
        for child in self._children:
            self._selector.register(child.line.sock, selectors.EVENT_READ, child)

    @contextlib.contextmanager
    def _room_for_processes(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise DataflowError(f"can't start {self.workers} workers: {e}; use fewer, or raise the limit (`ulimit -n`, `ulimit -u`)") from e

    def _parts(self, store: Store | None) -> list[Part]:
        """What each process is told. Partitions go round, those of sinks from the last worker on: so those of a source and a sink lie apart."""
        parts = [Part(self.workers, self.epoch, store is not None, self._interval, [], {}, set(), {}) for _ in range(self.workers)]
        taps = sinks = 0
        for at, stage in enumerate(self.plan.stages):
            if stage.kind is Kind.SOURCE:
                names = list_parts(stage)
                if store is not None:
                    store.check_parts(stage, names)
                for name in names:
                    parts[taps % self.workers].taps.append((at, name))
                    taps += 1
            elif stage.kind is Kind.WORKER_SOURCE:
                for number, part in enumerate(parts):
                    part.taps.append((at, f"worker-{number}"))
            elif stage.kind is Kind.SINK:
                names = list_parts(stage)
                if store is not None:
                    store.check_parts(stage, names)
                owners = {name: self.workers - 1 - (sinks + index) % self.workers for index, name in enumerate(names)}
                sinks += len(names)
                for part in parts:
                    part.sinks[at] = owners
            elif stage.kind is Kind.KEYED and store is not None:
                for key, due in store.timers(stage.name):
                    parts[worker_of(key, self.workers)].timers.setdefault(at, []).append((key, due))
            if store is not None and store.has_none(stage.name):
                for part in parts:
                    part.empty.add(at)
        if taps == 1 and len(self._children) > self.workers:
            reader = replace(parts[0], timers={})
            parts[0] = replace(parts[0], taps=[])
            parts = [replace(part, members=self.workers + 1) for part in (*parts, reader)]
        return parts

    # -------------------------------------------------------------------------------------------------------------------------- run

    def _run(self, store: Store | None) -> None:
        if store is not None:
            self.epoch = store.resume(self.plan) + 1
        parts = self._parts(store)
        with self._room_for_processes():
            self._start(parts)
        began = time.monotonic()
        everyone = {child.number for child in self._children}
        while self._ended != everyone:
            left = None
            if store is not None and self._moved:
                left = self._interval - (time.monotonic() - began)
                if left <= 0:
                    self._close_epoch(store)
                    began = time.monotonic()
                    continue
            self._listen(store, left)
        if store is not None:
            self._close_epoch(store, go_on=False)
        for child in self._children:
            self._tell(child, "stop")
        while self._closed != everyone:
            self._listen(store, None)

    def _close_epoch(self, store: Store, *, go_on: bool = True) -> None:
        """Keeps all that changed since the last one."""
        for child in self._children:
            self._tell(child, "close")
        self._done.clear()
        with store.epoch(self.epoch) as keep:
            while len(self._done) < len(self._children):
                self._listen(store, None, keep)
            self._moved = False
            if go_on:
                # While this process writes. Whatever they ask for is answered when that is done.
                for child in self._children:
                    self._tell(child, "go")
        for child in self._children if go_on else ():
            self._tell(child, "kept")
        self.epoch += 1

    def _listen(self, store: Store | None, left: float | None, keep: Keep | None = None) -> None:
        """Takes what workers say, for so many seconds at most. Raises what a worker raised, or that it is gone."""
        for key, _ in self._selector.select(left):
            child: _Child = key.data
            with self._lost(child):
                message = child.line.receive()
            match message:
                case ("rows", rows) if keep is not None:
                    for row in rows:
                        keep(*row)
                case ("load", step, keys) if store is not None:
                    # Some of it has been in the worker's memory, and is not any more.
                    store.spilled(step)
                    self._tell(child, "answer", {key: store.load(step, key) for key in keys})
                case ("keys", step, number) if store is not None:
                    self._tell(child, "answer", [key for key in store.keys(step) if worker_of(key, self.workers) == number])
                case ("moved",):
                    self._moved = True
                case ("done",):
                    self._done.add(child.number)
                case ("ended",):
                    self._ended.add(child.number)
                case ("closed",):
                    self._closed.add(child.number)
                    self._selector.unregister(child.line.sock)
                case _:
                    _raise(message)
                    raise AssertionError(f"a worker says {message[0]!r}, which nobody asked for")

    def _tell(self, child: _Child, *message: object) -> None:
        with self._lost(child):
            child.line.send(*message)

    @contextlib.contextmanager
    def _lost(self, child: _Child) -> Iterator[None]:
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionError):
            # It may have said why, while it was told something else.
            with contextlib.suppress(EOFError):
                while True:
                    _raise(child.line.receive())
            status = child.wait()
            how = f"was killed by {_signal(-status)}" if status < 0 else f"ended with status {status}" if status else "is gone"
            next_run = "; what was kept at the end of the last epoch is where the next run goes on" if self._recovery is not None else ""
            raise DataflowError(f"{child.name} (process {child.pid}) {how}, so the flow stops{next_run}") from None


def _raise(message: tuple[Any, ...]) -> None:
    """Raises what ended a worker, if a message is about that."""
    match message:
        case ("failed", error, text):
            raise error from (WorkerTraceback(text) if text else None)
        case ("aborted",):
            raise AbortExecution
        case ("exited", code):
            raise SystemExit(code)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# ------------------------------------------------------------------------------------------------------------------- in a worker's process


def _be_worker(
    plan: Plan, number: int, name: str, workers: int, line: Line, life: int, turn: tuple[int, int], lock: int | None
) -> NoReturn:
    """All that a worker's process does. It never returns to what its parent was about."""
    status = 1
    hold = None
    try:
        if lock is not None:
            from .recovery import Hold

            hold = Hold.of(lock)
        threading.Thread(target=_die_with_parent, args=(life,), daemon=True).start()
        _share_stdout(turn)
        part: Part = line.receive()[0]
        links = {}
        for _ in range(part.members - 1):
            data, fds, _, _ = socket.recv_fds(line.sock, 1, 1)
            if not fds:
                raise DataflowError(f"{name} can't open its links to the others: {OSError(errno.EMFILE, os.strerror(errno.EMFILE))}; see `ulimit -n`")
            links[data[0]] = Link(socket.socket(fileno=fds[0]))
        worker = Worker(plan, number, workers, line, links, part)
        worker.run()
        worker.close()
        _flush()
        line.send("closed")
        status = 0
    except BaseException as e:
        with contextlib.suppress(BaseException):
            _flush()
        with contextlib.suppress(BaseException):
            line.send(*_said(name, e))
    finally:
        # Nothing of the parent's that waits for the end of Python. Until here it holds the store.
        del hold
        os._exit(status)


def _flush() -> None:
    for out in (sys.stdout, sys.stderr):
        # Python has None for one that was closed before it began.
        if out is not None:
            out.flush()


def _said(name: str, error: BaseException) -> tuple[object, ...]:
    """What the parent is told of an error."""
    if isinstance(error, AbortExecution):
        return ("aborted",)
    if isinstance(error, SystemExit):
        return "exited", error.code if isinstance(error.code, int | None) else str(error.code)
    if isinstance(error, StepError):
        return "failed", error, user_traceback(error.__cause__) if error.__cause__ is not None else None
    if isinstance(error, DataflowError):
        return "failed", DataflowError(str(error)), None
    text = "".join(traceback.format_exception(error)).rstrip()
    return "failed", DataflowError(f"{name} failed: {type(error).__name__}: {error}"), text


def _die_with(parent: int) -> None:
    """Linux ends this process with its parent then, also where it is stopped or in a long call that no other thread gets past."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            # PR_SET_PDEATHSIG of <sys/prctl.h>.
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _die_with_parent(life: int) -> None:
    """Waits for the parent's end. The main thread may be anywhere then, so this does not ask."""
    while os.read(life, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


class _Turns(io.BufferedIOBase):
    """A file that several processes write to, each what it has at once: lines of one stay whole between those of others."""

    def __init__(self, fd: int, turn: tuple[int, int]) -> None:
        self._fd = fd
        # Each process has its own ends, as the parent closes those that it made.
        self._take, self._give = turn
        self._data = bytearray()
        # Threads of a step may print.
        self._lock = threading.RLock()
        self._alone = False

    def close(self) -> None:
        """For a process that a step forked: it has no turn, for it may be killed while it has it."""
        self._alone = True
        self._data = bytearray()
        self._lock = threading.RLock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: Any) -> int:
        with self._lock:
            self._data += data
            if len(self._data) >= STDOUT_TURN_BYTES:
                self.flush()
        return len(data)

    def flush(self) -> None:
        with self._lock:
            data, self._data = self._data, bytearray()
            if not data:
                return
            if self._alone:
                self._write(data)
                return
            os.read(self._take, 1)
            try:
                self._write(data)
            finally:
                os.write(self._give, b"x")

    def _write(self, data: bytearray) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]


def _share_stdout(turn: tuple[int, int]) -> None:
    """Lets ``print`` write whole lines at once. Where standard output is no file, it is left alone."""
    out = sys.stdout
    try:
        fd = out.fileno()
    except (AttributeError, OSError, ValueError):
        return
    if isinstance(out, io.TextIOWrapper):
        # For who holds it already: a worker ends without flushing what it does not know.
        out.reconfigure(line_buffering=True)
    turns = _Turns(fd, turn)
    closed_by_forks(turns)
    sys.stdout = io.TextIOWrapper(
        turns, encoding=out.encoding, errors=out.errors, newline="\n" if os.linesep == "\n" else None, line_buffering=True
    )
