"""Workers that are processes: the same results as one worker gives, whatever goes wrong; nothing that grows, nothing that is left."""

from __future__ import annotations

import ast
import contextlib
import faulthandler
import io
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from flows import NO_TIME, Later
from programs import Program
from windows import SKEP, WINDOWERS, ancestor, comparable, event_clock, stream
from windows import run as run_windows

import skep.dataflow.operators as op
from skep.dataflow import Dataflow
from skep.dataflow.connectors.files import DirSink, DirSource, FileSink, FileSource
from skep.dataflow.connectors.subject import RespondSink
from skep.dataflow.errors import AbortExecution, DataflowError, StepError
from skep.dataflow.inputs import DynamicSource, FixedPartitionedSource, StatefulSourcePartition, StatelessSourcePartition
from skep.dataflow.limits import PASS_ITEMS, PROCESSES_MAX, SHARES_UNDER_WAY
from skep.dataflow.links import Line, Link
from skep.dataflow.outputs import DynamicSink, StatelessSinkPartition
from skep.dataflow.processes import Processes, _Child, why_in_one
from skep.dataflow.recovery import Hold, RecoveryConfig, Store, init_db_dir
from skep.dataflow.stage import unpack
from skep.dataflow.testing import TestingSink, TestingSource, run_main

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")

SECOND = timedelta(seconds=1)
EOF = TestingSource.EOF


class Lines(DynamicSink[Any]):
    """Each item on a line of a file, which all workers append to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def form(self, item: Any) -> str:
        return repr(item)

    def build(self, step_id: str, worker_index: int, worker_count: int) -> StatelessSinkPartition[Any]:
        path, form = self.path, self.form

        class Part(StatelessSinkPartition[Any]):
            def write_batch(self, items: list[Any]) -> None:
                with open(path, "ab", buffering=0) as file:
                    file.write("".join(f"{form(item)}\n" for item in items).encode())

        return Part()


class Parts(FixedPartitionedSource[Any, int]):
    """Partitions of items, each of which may have the marks of a TestingSource."""

    def __init__(self, parts: dict[str, list[Any]], batch_size: int = 1) -> None:
        self.parts, self.batch_size = parts, batch_size

    def list_parts(self) -> list[str]:
        return list(self.parts)

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> StatefulSourcePartition[Any, int]:
        return TestingSource(self.parts[for_part], self.batch_size).build_part(step_id, for_part, resume_state)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.txt"


@pytest.fixture
def config(tmp_path: Path) -> RecoveryConfig:
    init_db_dir(tmp_path / "db", 1)
    return RecoveryConfig(tmp_path / "db")


def open_files() -> Counter[str]:
    """What they are, and how many of each kind."""
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self") else ():
        try:
            found[os.readlink(f"/proc/self/fd/{fd}").split(":")[0]] += 1
        except FileNotFoundError:  # That of the list itself.
            pass
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Neither processes nor open files."""
    before = open_files()
    # A deadlock is to show where it is, and not to wait for the end of days.
    faulthandler.dump_traceback_later(1_200, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert not open_files() - before


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def take(path: Path) -> list[Any]:
    """What was written since the last time."""
    found = [ast.literal_eval(line) for line in lines(path)]
    path.unlink(missing_ok=True)
    return found


def go(flow: Dataflow, workers: int = 3, interval: timedelta = SECOND, recovery: RecoveryConfig | None = None) -> None:
    Processes(flow, workers=workers, epoch_interval=interval, recovery=recovery).run()


# ---------------------------------------------------------------------------------------------------------------------------- results


def run_program(program: Program, out: Path, workers: int, interval: timedelta, recovery: RecoveryConfig | None) -> Counter[str]:
    flow = Dataflow("f")
    source = TestingSource(program.items, program.batch_size)
    op.output("out", program.make(op, flow, source), Lines(out))
    if workers == 1:
        run_main(flow)
    else:
        go(flow, workers, interval, recovery)
    found = Counter(lines(out))
    out.unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("block", range(4))
def test_generated_flows_give_what_one_worker_and_bytewax_give(
    block: int, tight: bool, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs_op = pytest.importorskip("bytewax.operators")
    from bytewax.dataflow import Dataflow as TheirFlow
    from bytewax.testing import TestingSink as TheirSink
    from bytewax.testing import TestingSource as TheirSource
    from bytewax.testing import run_main as their_run

    if tight:
        # One item a share, one share under way: who could wait for ever, does.
        monkeypatch.setattr("skep.dataflow.worker.PASS_ITEMS", 1)
        monkeypatch.setattr("skep.dataflow.worker.SHARES_UNDER_WAY", 1)
    for seed in range(block * 12, block * 12 + 12):
        program = Program(seed)
        theirs: list[Any] = []
        flow = TheirFlow("f")
        theirs_op.output("out", program.make(theirs_op, flow, TheirSource(program.items, program.batch_size)), TheirSink(theirs))
        their_run(flow)
        want = Counter(map(repr, theirs))
        chance = random.Random(seed)
        recovery = None
        if seed % 2:
            init_db_dir(tmp_path / f"db{seed}", 1)
            recovery = RecoveryConfig(tmp_path / f"db{seed}")
        interval = chance.choice([NO_TIME, timedelta(milliseconds=1), SECOND])
        assert run_program(program, out, 1, interval, None) == want
        assert run_program(program, out, 3, interval, recovery) == want, (seed, program.names, program.items, program.batch_size, interval)


@pytest.mark.parametrize("windower", WINDOWERS)
def test_windows_give_what_bytewax_gives(windower: str, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    pytest.importorskip("bytewax")

    def flow(lib: Any, sides: Any) -> Any:
        return lib.win.collect_window("w", sides[0], event_clock(lib, 4), WINDOWERS[windower](lib))

    for seed in range(3):
        events = stream(seed, keys=8)
        theirs = comparable(run_windows(ancestor(), [events], flow, 1))
        with monkeypatch.context() as patch:
            # The same flow, but for where it runs and what it is written to.
            patch.setattr(SKEP.testing, "TestingSink", lambda held: Collected(held, out))
            patch.setattr(SKEP.testing, "run_main", lambda flow: Collected.after(lambda: go(flow, 3)))
            ours = comparable(run_windows(SKEP, [events], flow, 7))
        assert ours == theirs, seed


class Collected(Lines):
    """Lines, and a list that has the items after the run."""

    held: list[Collected] = []

    def __init__(self, found: list[Any], path: Path) -> None:
        super().__init__(path.with_name(f"{path.name}{len(self.held)}"))
        self.found = found
        self.held.append(self)

    def form(self, item: Any) -> str:
        return pickle.dumps(item).hex()

    @classmethod
    def after(cls, run: Callable[[], None]) -> None:
        run()
        for one in cls.held:
            one.found += [pickle.loads(bytes.fromhex(line)) for line in lines(one.path)]
            one.path.unlink(missing_ok=True)
        cls.held.clear()


def test_partitions_are_spread_and_sources_of_workers_are_one_each(out: Path) -> None:
    class Own(DynamicSource[Any]):
        def build(self, step_id: str, worker_index: int, worker_count: int) -> StatelessSourcePartition[Any]:
            class Part(StatelessSourcePartition[Any]):
                over = False

                def next_batch(self) -> list[Any]:
                    if self.over:
                        raise StopIteration()
                    self.over = True
                    return [("dynamic", worker_index, worker_count, os.getpid())]

            return Part()

    flow = Dataflow("f")
    a = op.map("a", op.input("fixed", flow, Parts({name: [name] for name in "abcdef"})), lambda x: ("fixed", x, os.getpid()))
    op.output("out", op.merge("all", a, op.input("dynamic", flow, Own())), Lines(out))
    go(flow)
    found = take(out)
    assert {item[:-1] for item in found} == {("dynamic", n, 3) for n in range(3)} | {("fixed", name) for name in "abcdef"}
    pids = {item[-1] for item in found}
    assert len(pids) == 3 and os.getpid() not in pids
    assert all(sum(item[-1] == pid for item in found if item[0] == "fixed") == 2 for pid in pids)


def test_a_single_partition_is_read_beside_the_workers(out: Path) -> None:
    flow = Dataflow("f")
    s = op.map("read", op.input("in", flow, TestingSource(range(50))), lambda n: (str(n), os.getpid()))
    worked = op.stateful_map("work", s, lambda st, pid: (1, (pid, os.getpid())))
    op.output("out", worked, Lines(out))
    go(flow, 2)
    found = [pids for _, pids in take(out)]
    readers, workers = {a for a, _ in found}, {b for _, b in found}
    assert len(readers) == 1 and len(workers) == 2 and not readers & workers
    # But not where there is nobody to read for: its sink would be there once more than there are workers.
    flow = Dataflow("f")
    op.output("out", op.map("m", op.input("in", flow, TestingSource([1])), lambda x: x), Lines(out))
    go(flow, 2)
    assert take(out) == [1]


def test_values_of_a_key_keep_their_order(out: Path) -> None:
    items = [(f"k{n % 7}", n) for n in range(5_000)]
    flow = Dataflow("f")
    s = op.stateful_map("s", op.input("in", flow, TestingSource(items, 3)), lambda last, n: (n, (last or 0) < n or n < 7))
    counted = op.stateful_map("again", s, lambda n, fine: ((n or 0) + 1, (fine, (n or 0) + 1)))
    op.output("out", counted, Lines(out))
    go(flow, 3)
    found = take(out)
    assert len(found) == 5_000 and all(fine for _, (fine, _) in found)
    for key in {key for key, _ in found}:
        numbers = [n for k, (_, n) in found if k == key]
        assert numbers == list(range(1, len(numbers) + 1))


def test_files_in_and_out(tmp_path: Path, config: RecoveryConfig) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i}\n" for i in range(100)))
    (tmp_path / "out").mkdir()

    def flow() -> Dataflow:
        flow = Dataflow("f")
        s = op.key_on("k", op.input("in", flow, DirSource(tmp_path, "*.txt", batch_size=4)), lambda x: x[1:])
        counted = op.stateful_map("n", s, lambda st, x: ((st or 0) + 1, f"{x[1:]} {(st or 0) + 1}"))
        op.output("out", counted, DirSink(tmp_path / "out", 5))
        op.output("one", counted, FileSink(tmp_path / "one"))
        return flow

    go(flow(), 3, NO_TIME, config)
    with open(tmp_path / "b.txt", "a") as file:
        file.write("b0\nb1\n")
    with open(tmp_path / "one", "a") as file:
        file.write("what a crash left")
    go(flow(), 2, SECOND, config)
    want = Counter([f"{i} {n}" for i in range(100) for n in (1, 2, 3)] + ["0 4", "1 4"])
    assert Counter(lines(tmp_path / "one")) == want
    assert Counter(line for part in (tmp_path / "out").iterdir() for line in lines(part)) == want


def test_lines_on_standard_output_are_whole(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(
        "import skep.dataflow.operators as op\n"
        "from skep.dataflow import Dataflow\n"
        "from skep.dataflow.connectors.stdio import StdOutSink\n"
        "from skep.dataflow.testing import TestingSource\n"
        "flow = Dataflow('f')\n"
        "s = op.redistribute('r', op.input('in', flow, TestingSource(range(20_000), 1000)))\n"
        "op.inspect('i', s)\n"
        "op.output('out', op.map('m', s, lambda n: f'{n}:' + 'x' * (n % 300)), StdOutSink())\n"
    )
    command = [sys.executable, "-m", "skep.run", "flow", "-w", "3"]
    environ = {**os.environ, "SKEP_IN_PROCESS": "0"}
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environ)
    assert run.stdout is not None
    # A pipe that is full most of the time.
    time.sleep(0.5)
    found = Counter(run.stdout.read().splitlines())
    assert run.wait() == 0
    run.stdout.close()
    assert found == Counter([f"f.i: {n}" for n in range(20_000)] + [f"{n}:" + "x" * (n % 300) for n in range(20_000)])


# --------------------------------------------------------------------------------------------------------------------------- recovery


def counting(source: Any, out: Path) -> Dataflow:
    flow = Dataflow("f")
    s = op.key_on("key", op.input("in", flow, source), lambda x: x[0])
    op.output("out", op.stateful_map("count", s, lambda st, x: ((st or 0) + 1,) * 2), Lines(out))
    return flow


@pytest.mark.parametrize("interval", [NO_TIME, timedelta(milliseconds=5), timedelta(seconds=10)])
def test_workers_change_from_run_to_run(config: RecoveryConfig, out: Path, interval: timedelta) -> None:
    """An ABORT costs an epoch, as a crash does; what is kept counts each item once."""
    chance = random.Random(1)
    parts: dict[str, list[Any]] = {part: [f"{chance.choice('abcdefgh')}{i}" for i in range(40)] for part in "pqr"}
    want = Counter(item[0] for items in parts.values() for item in items)
    crashes = {parts["p"][30], parts["q"][5], parts["r"][39]}
    for at, part in ((20, "p"), (10, "r")):
        parts[part].insert(at, EOF())

    def crash_once(item: str) -> str:
        mark = out.with_name(f"crashed-{item}")
        if item in crashes and not mark.exists():
            mark.touch()
            raise AbortExecution
        return item

    for workers in (2, 3, 1, 5, 2, 3, 4):
        flow = Dataflow("f")
        s = op.key_on("key", op.map("crash", op.input("in", flow, Parts(parts)), crash_once), lambda x: x[0])
        op.output("out", op.stateful_map("count", s, lambda st, x: ((st or 0) + 1,) * 2), Lines(out))
        if workers == 1:
            run_main(flow, epoch_interval=interval, recovery_config=config)
        else:
            go(flow, workers, interval, config)
    with config.open() as store:
        kept = {key: unpack(store.load("f.count.stateful_batch", key) or b"") for key in store.keys("f.count.stateful_batch")}
        # Marks count there, too.
        assert {key: unpack(store.load("f.in", key) or b"")[1] for key in "pqr"} == {"p": 41, "q": 40, "r": 41}
    assert kept == want


def test_an_end_that_is_no_end(config: RecoveryConfig, out: Path) -> None:
    flow = counting(TestingSource(["a", "b", EOF(), "a", EOF(), "b", "a"]), out)
    for want in ([("a", 1), ("b", 1)], [("a", 2)], [("a", 3), ("b", 2)], []):
        go(flow, 2, SECOND, config)
        assert sorted(take(out)) == want


def test_ends_reach_keys_of_former_runs_once(config: RecoveryConfig, out: Path) -> None:
    class Keep(op.StatefulBatchLogic[Any, Any, Any]):
        def __init__(self, state: Any) -> None:
            self.seen = list(state or [])

        def on_batch(self, values: list[Any]) -> Any:
            self.seen += values
            return (), False

        def on_eof(self) -> Any:
            return [list(self.seen)], False

        def snapshot(self) -> Any:
            return self.seen

    items = [(f"k{n}", n) for n in range(3_000)]
    flow = Dataflow("f")
    source = Parts({"p": [*items[:2_000], EOF()], "q": [EOF(), *items[2_000:]]}, 100)
    op.output("out", op.stateful_batch("keep", op.input("in", flow, source), Keep), Lines(out))
    for workers, count in ((3, 2_000), (2, 3_000), (4, 3_000)):
        go(flow, workers, timedelta(milliseconds=1), config)
        assert sorted(take(out)) == sorted((f"k{n}", [n]) for n in range(count))


def test_a_crash_while_stages_end_lets_no_key_hear_of_it_twice(config: RecoveryConfig, tmp_path: Path) -> None:
    """A stage ends on all workers in one epoch: what is kept after a crash tells of all of its keys' ends, or of none."""
    path = tmp_path / "out"
    slept: list[bool] = []

    class Last(op.StatefulBatchLogic[Any, Any, Any]):
        def on_batch(self, values: list[Any]) -> Any:
            if values == [299]:
                # So its worker hears of the end of the source, and that an epoch is to be closed, when others have ended.
                time.sleep(0.15)
                slept.append(True)
            return (), False

        def on_eof(self) -> Any:
            if slept:
                time.sleep(0.002)
            return ["end"], False

        def snapshot(self) -> Any:
            return None

    def flow() -> Dataflow:
        flow = Dataflow("f")
        s = op.input("in", flow, TestingSource([(f"k{n}", n) for n in range(300)], 50))
        op.output("out", op.map_value("m", op.stateful_batch("last", s, lambda _: Last()), str), FileSink(path))
        return flow

    seen = set()
    for after in (0.05, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, None):
        path.unlink(missing_ok=True)
        db = tmp_path / f"db {after}"
        init_db_dir(db, 1)
        pid = os.fork()
        if not pid:
            try:
                go(flow(), 3, timedelta(milliseconds=40), RecoveryConfig(db))
            finally:
                os._exit(0)
        if after is not None:
            # The ends of that worker's keys take some 200 ms, behind 150 of its last value; those of others take no time.
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with RecoveryConfig(db).open() as store:
            kept = store.load("f.out", str(path))
            place = 0 if kept is None else unpack(kept)
        assert place in (0, 300 * len("end\n")), after
        seen.add(place)
    assert seen == {0, 300 * len("end\n")}


def test_memory_holds_no_more_keys_than_its_bound(config: RecoveryConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skep.dataflow.worker.LIVE_KEYS", 10)
    items = [(str(i % 50), 1) for i in range(1_000)]
    flow = Dataflow("f")
    # Slow enough for some epochs.
    s = op.map("slow", op.input("in", flow, TestingSource(items, 7)), lambda x: (time.sleep(0.0005), x)[1])
    op.output("out", op.stateful_map("sum", s, lambda st, x: ((st or 0) + x,) * 2), Lines(out))
    go(flow, 2, timedelta(milliseconds=1), config)
    assert Counter(take(out)) == Counter((str(key), n) for key in range(50) for n in range(1, 21))


def test_timers_outlive_a_run(config: RecoveryConfig, out: Path) -> None:
    due = datetime.now(timezone.utc) + timedelta(milliseconds=300)

    flow = Dataflow("f")
    items = [*[(key, 1) for key in "abcdef"], EOF(), TestingSource.PAUSE(timedelta(milliseconds=600))]
    op.output("out", op.stateful_batch("later", op.input("in", flow, TestingSource(items)), lambda state: Later(state or due)), Lines(out))
    go(flow, 2, SECOND, config)
    assert take(out) == []
    go(flow, 3, SECOND, config)
    assert sorted(take(out)) == [(key, "now") for key in "abcdef"]
    with config.open() as store:
        assert [step for step, _, _ in store.summary()] == ["f.in"]


def test_a_disk_that_is_full_costs_the_epoch_and_no_more(config: RecoveryConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flow() -> Dataflow:
        flow = Dataflow("f")
        s = op.input("in", flow, TestingSource([(str(i), "x" * 900) for i in range(300)], 10))
        slow = op.map("slow", s, lambda x: (time.sleep(0.001), x)[1])
        op.output("out", op.stateful_map("s", slow, lambda st, x: (x, x)), Lines(out))
        return flow

    with monkeypatch.context() as patch:
        resume = Store.resume

        def small(self: Store, plan: Any) -> int:
            self._db.execute("PRAGMA max_page_count = 40")
            return resume(self, plan)

        patch.setattr(Store, "resume", small)
        with pytest.raises(DataflowError, match="recovery.sqlite3 can't be written: database or disk is full"):
            go(flow(), 2, timedelta(milliseconds=1), config)
    go(flow(), 3, timedelta(milliseconds=1), config)
    assert {key for key, _ in take(out)} == {str(i) for i in range(300)}


def test_a_store_serves_one_run_until_its_last_process_is_gone(config: RecoveryConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from skep.dataflow.errors import StoreInUseError

    monkeypatch.setattr("skep.dataflow.recovery.LOCK_WAIT", 0.05)
    hold = config.hold()
    copy = hold.copy()
    pid = os.fork()
    if not pid:
        assert copy is not None
        hold = Hold.of(copy)
        time.sleep(60)
        os._exit(0)
    if copy is not None:
        os.close(copy)
    try:
        # Whoever had it first is gone; who was forked by that is not.
        hold.close()
        with pytest.raises(StoreInUseError, match="in use by another process"):
            config.open()
        with pytest.raises(StoreInUseError):
            config.hold()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with config.hold() as hold, config.open(hold):
        pass
    # Who was forked for something else has nothing to do with it.
    store = config.open()
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    store.close()
    try:
        config.open().close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# ----------------------------------------------------------------------------------------------------------------------------- errors


def failing(build: Callable[[Any], Any], items: list[Any], out: Path) -> Dataflow:
    flow = Dataflow("f")
    op.output("out", build(op.input("in", flow, Parts({"p": items, "q": items}))), Lines(out))
    return flow


def no(value: Any) -> Any:
    raise ValueError(f"no {value}")


class Final(op.StatefulBatchLogic[Any, Any, Any]):
    def on_batch(self, values: list[Any]) -> Any:
        return (), False

    def on_eof(self) -> Any:
        return no("end"), False

    def snapshot(self) -> Any:
        return lambda: 1


@pytest.mark.parametrize(
    ("build", "text", "key"),
    [
        (lambda s: op.map("m", s, no), r"step 'f.m' \(map, .*test_processes.py:\d+\) failed: ValueError: no \('a', 1\); raised at .* in no", None),
        (
            lambda s: op.stateful_map("sm", s, lambda st, x: no(x)),
            r"step 'f.sm' .* failed in on_batch for the key 'a': ValueError: no 1; raised at .*test_processes.py:\d+ in no",
            "a",
        ),
        (lambda s: op.stateful_batch("sb", s, lambda _: Final()), "failed in on_eof for the key 'a': ValueError: no end", "a"),
        (lambda s: op.stateful_map("sm", op.map("m", s, lambda x: x[1]), lambda st, x: (st, x)), r"takes \(key, value\) tuples", None),
        (lambda s: op.stateful_map("sm", op.map("m", s, lambda x: (1, x)), lambda st, x: (st, x)), "takes text for a key; got 1 ", None),
        (
            lambda s: op.redistribute("r", op.map("m", s, lambda x: lambda: x)),
            "what goes to step 'f.r' .* can't be pickled: .*got function. Send other items, or .*--in-process",
            None,
        ),
    ],
)
def test_errors_of_workers_name_step_key_and_line(build: Any, text: str, key: str | None, out: Path) -> None:
    with pytest.raises(DataflowError, match=text) as caught:
        go(failing(build, [("a", 1), ("a", 2)], out), 2)
    assert isinstance(caught.value, StepError) and caught.value.key == key
    if "raised at" in text:
        # The user's part of the traceback comes along.
        cause = str(caught.value.__cause__)
        assert cause.startswith("Traceback") and "in no" in cause and "skep/dataflow/worker.py" not in cause


def test_state_that_can_not_be_pickled_costs_the_epoch(config: RecoveryConfig, out: Path) -> None:
    flow = failing(lambda s: op.stateful_batch("sb", s, lambda _: Final()), [("a", 1)], out)
    with pytest.raises(StepError, match="the state of the key 'a' can't be pickled: .*let `snapshot` return plain data|no end"):
        go(flow, 2, NO_TIME, config)
    with config.open() as store:
        assert store.steps() == []


def test_what_a_worker_said_last_counts_while_it_is_told_something() -> None:
    """It failed, and is gone, when an epoch is to be closed."""
    flow = Dataflow("f")
    op.inspect("i", op.input("in", flow, TestingSource([])), lambda *_: None)
    run = Processes(flow, workers=2, epoch_interval=SECOND)
    for said, want in ((("failed", StepError("it failed", "f.i"), None), StepError), (("aborted",), AbortExecution), (("moved",), DataflowError)):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            Line(theirs).send(*said)
            os._exit(1)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        theirs.close()
        child = _Child(1, "worker 1", pid, Line(ours))
        with pytest.raises(want, match={StepError: "it failed", DataflowError: "ended with status 1"}.get(want)):
            run._tell(child, "close")
        child.close()


def test_a_step_that_ends_the_process_ends_the_run(out: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        go(failing(lambda s: op.map("m", s, lambda x: sys.exit(7)), [("a", 1)], out), 2)
    assert caught.value.code == 7
    with pytest.raises(DataflowError, match=r"(worker \d) \(process \d+\) ended with status 9, so the flow stops$"):
        go(failing(lambda s: op.map("m", s, lambda x: os._exit(9)), [("a", 1)], out), 2)


def test_a_source_that_stops_the_flow(config: RecoveryConfig, out: Path) -> None:
    def stop(x: Any) -> Any:
        raise AbortExecution

    go(failing(lambda s: op.map("m", s, stop), [("a", 1)], out), 2, NO_TIME, config)
    with config.open() as store:
        assert store.steps() == []


def test_stores_that_do_not_fit(config: RecoveryConfig, out: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no directory: make a recovery store with"):
        go(counting(TestingSource(["a"]), out), 2, SECOND, RecoveryConfig(tmp_path / "none"))
    go(counting(Parts({"p": ["a"], "q": ["b"]}), out), 2, SECOND, config)
    flow = Dataflow("f")
    op.output("out", op.stateful_map("other", op.input("in", flow, TestingSource([])), lambda st, x: (st, x)), Lines(out))
    with pytest.raises(ValueError, match=r"- f.count.stateful_batch \(keyed; 2 kept\)"):
        go(flow, 2, SECOND, config)
    assert len(take(out)) == 2


@pytest.mark.parametrize("workers", [0, PROCESSES_MAX + 1, True, "2"])
def test_numbers_of_workers_that_are_wrong(workers: Any, out: Path) -> None:
    with pytest.raises(ValueError, match=f"workers: a whole number from 1 to {PROCESSES_MAX}; got"):
        Processes(counting(TestingSource([]), out), workers=workers, epoch_interval=SECOND)


def test_as_many_workers_as_there_may_be(out: Path) -> None:
    go(counting(TestingSource([f"{letter}{n}" for n in range(3) for letter in "abcdefgh"]), out), PROCESSES_MAX)
    assert Counter(take(out)) == Counter((letter, n) for letter in "abcdefgh" for n in (1, 2, 3))


# ------------------------------------------------------------------------------------------------------------------------------ bounds


def test_a_slow_step_slows_its_source(tmp_path: Path) -> None:
    """What is read and not worked on is bounded, however long the source is."""
    read, worked = tmp_path / "read", tmp_path / "worked"
    worked.touch()

    def tick(path: Path, items: list[Any]) -> list[Any]:
        with open(path, "ab") as file:
            file.write(b"." * len(items))
        return items

    def slow(items: list[Any]) -> list[Any]:
        if worked.stat().st_size < 30_000:
            time.sleep(0.02)
        lead.append(read.stat().st_size - worked.stat().st_size)
        if lead[-1] > bound:
            raise AssertionError(f"{lead[-1]} items are under way, where {bound} may be")
        return tick(worked, items)

    # Of each stage behind a step: shares under way to each worker and one more that is being made, each of at most so many items and a batch.
    lead: list[int] = []
    bound = 2 * 2 * (SHARES_UNDER_WAY + 2) * (PASS_ITEMS + 100)
    flow = Dataflow("f")
    s = op.flat_map_batch("read", op.input("in", flow, TestingSource(range(400_000), 100)), lambda items: tick(read, items))
    s = op.flat_map_batch("slow", op.redistribute("r", s), slow)
    s = op.stateful_map("count", op.key_on("k", s, lambda n: str(n % 10)), lambda st, x: ((st or 0) + 1,) * 2)
    op.output("out", op.filter("last", s, lambda kv: kv[1] == 40_000), Lines(tmp_path / "out"))
    go(flow, 2)
    assert sorted(take(tmp_path / "out")) == [(str(n), 40_000) for n in range(10)]
    assert read.stat().st_size == worked.stat().st_size == 400_000


def test_slow_steps_get_no_more_at_once_than_their_source_gives(
    tmp_path: Path, config: RecoveryConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are gathered where that costs nobody time: else an epoch's end would wait for hundreds of items, and so would what the first makes."""
    monkeypatch.setattr("skep.dataflow.worker.SHARE_QUICK", 0.01)
    monkeypatch.setattr("skep.dataflow.worker.SHARE_SLOW", 0.03)
    log = tmp_path / "log"

    def note(what: str) -> Callable[[list[Any]], list[Any]]:
        def noted(items: list[Any]) -> list[Any]:
            if what == "work":
                time.sleep(0.02 * len(items))
            with open(log, "a") as file:
                file.write(f"{what} {len(items)}\n")
            return items

        return noted

    flow = Dataflow("f")
    s = op.flat_map_batch("read", op.input("in", flow, TestingSource(range(240))), note("read"))
    for name in ("a", "b"):
        # The first of them is quick; what it makes waits for the second.
        s = op.flat_map_batch(name, op.redistribute("to_" + name, s), note("work" if name == "b" else "pass"))
    op.output("out", s, Lines(tmp_path / "out"))
    go(flow, 2, timedelta(milliseconds=1), config)
    read = worked = lead = 0
    for line in lines(log):
        what, count = line.split()
        read += int(count) * (what == "read")
        worked += int(count) * (what == "work")
        if worked > 160:
            # By then it is known.
            lead = max(lead, read - worked)
    assert read == worked == 240
    # Two shares to each worker of each stage, and one in hand.
    assert lead <= 24


def test_shares_larger_than_any_buffer(out: Path) -> None:
    flow = Dataflow("f")
    s = op.input("in", flow, Parts({part: [(f"k{n}", bytes([n]) * 3_000_000) for n in range(12)] for part in "pqr"}))
    s = op.map_value("there", op.stateful_map("s", s, lambda st, x: (st, x)), lambda x: x)
    s = op.stateful_map("t", op.map("m", s, lambda kv: (kv[0] + "x", kv[1])), lambda st, x: (st, x))
    op.output("out", op.map_value("size", s, len), Lines(out))
    go(flow, 3)
    assert Counter(take(out)) == Counter({(f"k{n}x", 3_000_000): 3 for n in range(12)})


def test_links_carry_messages_in_whatever_pieces() -> None:
    chance = random.Random(3)
    ours, theirs = socket.socketpair()
    a, b = Link(ours), Link(theirs)
    sizes = [0, 1, 500, 400_000]
    sent = [(chance.randrange(4), chance.randrange(9), chance.randrange(99), chance.randbytes(chance.choice(sizes))) for _ in range(60)]
    found: list[Any] = []
    for message in sent:
        a.send(*message)
        if chance.random() < 0.5:
            a.flush()
        if chance.random() < 0.5:
            found += b.receive()
    while len(found) < len(sent):
        a.flush()
        found += b.receive()
    assert found == sent and not a.waits
    assert b.receive() == []
    ours.close()
    assert b.receive() == [] and not b.open
    b.send(0, 0, 0, b"x")
    b.flush()
    assert not b.waits
    theirs.close()


def test_a_line_that_ends_within_a_message() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall((1_000).to_bytes(8, "big") + b"x" * 999)
    ours.close()
    with pytest.raises(EOFError):
        Line(theirs).receive()
    theirs.close()


# ------------------------------------------------------------------------------------------------------------- one process, or several


def test_why_workers_share_a_process(out: Path) -> None:
    def flow(source: Any, sink: Any) -> Dataflow:
        flow = Dataflow("f")
        op.output("out", op.input("in", flow, source), sink)
        return flow

    assert why_in_one(flow(TestingSource([]), Lines(out)), cores=2) is None
    assert "there is one core" in (why_in_one(flow(TestingSource([]), Lines(out)), cores=1) or "")
    for sink in (TestingSink([]), RespondSink()):
        assert "step 'f.out' (output, " in (why_in_one(flow(TestingSource([]), sink), cores=2) or "")
        assert "keeps what it gets in this process's memory" in (why_in_one(flow(TestingSource([]), sink), cores=2) or "")
    source = TestingSource([])
    source.one_process = True  # type: ignore[attr-defined]
    assert "keeps what it gives in this" in (why_in_one(flow(source, Lines(out)), cores=2) or "")
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert "started threads" in (why_in_one(flow(TestingSource([]), Lines(out)), cores=2) or "")
    stop.set()
    thread.join()


FLOW = """
import os, time
import skep.dataflow.operators as op
from skep.dataflow import Dataflow
from skep.dataflow.connectors.demo import RandomMetricSource
from skep.dataflow.testing import TestingSink, TestingSource
from datetime import timedelta

def endless(stuck=False):
    flow = Dataflow("endless")
    s = op.input("in", flow, RandomMetricSource("m", timedelta(milliseconds=1)))
    op.inspect("out", op.map("m", op.redistribute("r", s), lambda x: time.sleep(60) if stuck and print("stuck", flush=True) is None else x))
    return flow

def who():
    flow = Dataflow("who")
    s = op.redistribute("r", op.input("in", flow, TestingSource(range(4))))
    op.inspect("out", op.map("pid", s, lambda n: (n, os.getpid() == parent)))
    return flow

def forking():
    import multiprocessing
    flow = Dataflow("forking")
    s = op.redistribute("r", op.input("in", flow, RandomMetricSource("m", timedelta(milliseconds=1))))

    def work(x):
        if not helpers:
            # They outlive whoever starts them.
            helpers.append(multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,)))
            helpers[0].start()
            print("helper", helpers[0].pid, flush=True)
        return x

    op.inspect("out", op.map("work", s, work))
    return flow

helpers = []
held = []
def testing():
    flow = Dataflow("testing")
    op.output("out", op.redistribute("r", op.input("in", flow, TestingSource(range(4)))), TestingSink(held))
    import atexit
    atexit.register(lambda: print(held))
    return flow

def broken():
    flow = Dataflow("broken")
    s = op.redistribute("r", op.input("in", flow, TestingSource([1, 0, 1])))
    op.inspect("out", op.map("divide", s, lambda x: 1 // x))
    return flow

parent = os.getpid()
"""


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    (tmp_path / "flow.py").write_text(FLOW)

    def start(*argv: str, **environ: str) -> subprocess.Popen[str]:
        env = {**os.environ, "SKEP_IN_PROCESS": "0", **environ}
        return subprocess.Popen(
            [sys.executable, "-m", "skep.run", *argv], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def test_the_command_has_several_processes_or_one(command: Callable[..., subprocess.Popen[str]]) -> None:
    def ran(*argv: str, **environ: str) -> tuple[str, str]:
        return command(*argv, **environ).communicate(timeout=30)

    here, elsewhere = [[f"who.out: {(n, yes)}" for n in range(4)] for yes in (True, False)]
    found, err = ran("flow:who", "-w", "2")
    assert sorted(found.splitlines()) == elsewhere and err == ""
    for argv, environ in ((["-w", "1"], {}), (["-w", "2", "--in-process"], {}), (["-w", "2"], {"SKEP_IN_PROCESS": "1"})):
        found, err = ran("flow:who", *argv, **environ)
        assert sorted(found.splitlines()) == here and err == ""
    found, err = ran("flow:testing", "-w", "2")
    assert sorted(ast.literal_eval(found)) == [0, 1, 2, 3]
    assert err.startswith("note: the 2 workers share this process, as step 'testing.out' (output, ") and "no faster than one" in err


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a core")
def test_on_one_core_nothing_is_forked(command: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    code = "import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from skep.run import main; sys.exit(main(sys.argv[1:]))"
    env = {key: value for key, value in os.environ.items() if key != "SKEP_IN_PROCESS"}
    for more, here in (({}, True), ({"SKEP_IN_PROCESS": "0"}, False)):
        done = subprocess.run(
            [sys.executable, "-c", code, "flow:who", "-w", "2"], cwd=tmp_path, env={**env, **more}, capture_output=True, text=True, timeout=30
        )
        assert sorted(done.stdout.splitlines()) == [f"who.out: {(n, here)}" for n in range(4)]
        assert ("as there is one core" in done.stderr) == here


def test_an_error_shows_the_users_part_of_the_traceback(command: Callable[..., subprocess.Popen[str]]) -> None:
    run = command("flow:broken", "-w", "2")
    _, err = run.communicate(timeout=30)
    assert run.returncode == 1
    assert err.startswith("Traceback (most recent call last):\n") and "skep/dataflow" not in err
    assert err.splitlines()[-1].startswith("error: step 'broken.divide' (map, ") and "ZeroDivisionError" in err


def children_of(pid: int) -> list[int]:
    return [int(child) for child in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()]


def is_there(pid: int) -> bool:
    """Whether a process runs. One that is dead and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_within(pids: list[int], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while any(map(is_there, pids)):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.parametrize("how", ["ctrl-c", "ctrl-c of a terminal", "kill a worker", "kill the parent", "terminate the parent"])
def test_whatever_ends_one_ends_all(command: Callable[..., subprocess.Popen[str]], how: str, stuck: bool) -> None:
    run = command(f"flow:endless({stuck})", "-w", "3")
    assert run.stdout is not None and run.stdout.readline()
    pids = children_of(run.pid)
    # One more reads.
    assert len(pids) == 4
    began = time.monotonic()
    if how.startswith("ctrl-c"):
        for pid in [run.pid] if how == "ctrl-c" else [*pids, run.pid]:
            os.kill(pid, signal.SIGINT)
    elif how == "kill a worker":
        os.kill(pids[1], signal.SIGKILL)
    else:
        os.kill(run.pid, signal.SIGKILL if how.startswith("kill") else signal.SIGTERM)
    _, err = run.communicate(timeout=30)
    assert gone_within(pids, 5)
    # A second on a machine that does nothing else.
    assert time.monotonic() - began < 10
    if how.startswith("ctrl-c"):
        assert run.returncode == 130 and err.startswith("interrupted: ") and "Traceback" not in err
    elif how == "kill a worker":
        assert run.returncode == 1
        assert err == f"error: worker 1 (process {pids[1]}) was killed by SIGKILL, so the flow stops\n"
    else:
        assert run.returncode == (-signal.SIGKILL if how == "kill the parent" else -signal.SIGTERM) and err == ""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_what_a_step_forked_hides_no_death_and_holds_no_store(command: Callable[..., subprocess.Popen[str]], config: RecoveryConfig) -> None:
    run = command("flow:forking", "-w", "2", "-r", str(config.db_dir), "-s", "0.01")
    assert run.stdout is not None and run.stderr is not None
    helpers: list[int] = []
    try:
        while len(helpers) < 2:
            words = run.stdout.readline().split()
            assert words, run.stderr.read()
            if words[0] == "helper":
                helpers.append(int(words[1]))
        victim = children_of(run.pid)[0]
        os.kill(victim, signal.SIGKILL)
        # Not `communicate`: its helpers have its standard output.
        assert run.wait(timeout=15) == 1
        assert f"(process {victim}) was killed by SIGKILL" in run.stderr.readline()
        assert all(map(is_there, helpers))
        config.open().close()
    finally:
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)
        run.stdout.close()
        run.stderr.close()
        if run.poll() is None:
            run.kill()
            run.wait()


class Told(Parts):
    """Remembers what it listed, and writes down which partitions were closed."""

    def __init__(self, parts: dict[str, list[Any]], path: Path) -> None:
        super().__init__(parts)
        self.path = path

    def list_parts(self) -> list[str]:
        self.sizes = {name: len(items) for name, items in self.parts.items()}
        return super().list_parts()

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> StatefulSourcePartition[Any, int]:
        inner, path, size = super().build_part(step_id, for_part, resume_state), self.path, self.sizes[for_part]

        class Part(StatefulSourcePartition[Any, int]):
            def next_batch(self) -> Any:
                return inner.next_batch()

            def snapshot(self) -> int:
                return inner.snapshot()

            def close(self) -> None:
                with open(path, "ab", buffering=0) as file:
                    file.write(f"{for_part} of {size}\n".encode())

        return Part()


def told(path: Path) -> Dataflow:
    flow = Dataflow("told")
    items = op.input("in", flow, Told({"a": [("k", 1)], "b": [("k", 2), ("l", 3)], "c": []}, path.with_name("closed")))
    op.output("out", op.stateful_map("sum", items, lambda s, n: ((s or 0) + n,) * 2), Lines(path))
    return flow


@pytest.mark.parametrize("interval", [0, 0.01, 10])
@pytest.mark.parametrize("keeps", [False, True])
def test_each_partition_of_a_source_is_closed_once(out: Path, config: RecoveryConfig, keeps: bool, interval: float) -> None:
    Processes(told(out), workers=2, epoch_interval=timedelta(seconds=interval), recovery=config if keeps else None).run()
    assert sorted(lines(out.with_name("closed"))) == ["a of 1", "b of 2", "c of 0"]
    assert len(lines(out)) == 3


def test_no_partition_is_closed_before_its_place_is_kept(out: Path, config: RecoveryConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store.epoch

    @contextlib.contextmanager
    def full(store: Store, epoch: int) -> Iterator[Any]:
        with real(store, epoch) as keep:
            yield keep
            # Time enough for who does not wait.
            time.sleep(0.3)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "epoch", full)
    with pytest.raises(OSError, match="No space left"):
        Processes(told(out), workers=2, epoch_interval=timedelta(), recovery=config).run()
    assert lines(out.with_name("closed")) == []


PRINTING = """
import sys
from concurrent.futures import ThreadPoolExecutor

import skep.dataflow.operators as op
from skep.dataflow import Dataflow
from skep.dataflow.connectors.stdio import StdOutSink
from skep.dataflow.testing import TestingSource


def shout(item):
    global pool
    pool = globals().get("pool") or ThreadPoolExecutor(8)
    list(pool.map(print, [f"line {item} {n}" for n in range(40)]))
    return str(item)


flow = Dataflow("printing")
op.output("out", op.map("shout", op.redistribute("spread", op.input("in", flow, TestingSource(range(100)))), shout), StdOutSink())


def big(item):
    sys.stdout.buffer.write(b"x" * 2**20)
    return str(item)


large = Dataflow("large")
op.output("out", op.map("big", op.redistribute("spread", op.input("in", large, TestingSource(range(20)))), big), StdOutSink())
"""


def test_threads_of_a_step_may_print_and_what_has_no_lines_is_written_too(tmp_path: Path) -> None:
    (tmp_path / "printing.py").write_text(PRINTING)
    env = {**os.environ, "SKEP_IN_PROCESS": "0"}

    def printed(flow: str) -> str:
        run = subprocess.run(
            [sys.executable, "-m", "skep.run", f"printing:{flow}", "-w", "2"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    found = printed("flow").splitlines()
    assert sorted(found) == sorted([f"line {item} {n}" for item in range(100) for n in range(40)] + [str(item) for item in range(100)])
    assert printed("large").count("x") == 20 * 2**20


def test_what_is_printed_into_memory_is_printed_by_this_process(out: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert why_in_one(told(out), cores=2) == "standard output is kept in this process's memory"


def test_a_run_whose_children_nobody_waits_for_ends_well(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    # A supervisor may ignore it, and what it starts inherits that.
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.executable, [sys.executable, '-m', 'skep.run', *sys.argv[1:]])"
    env = {**os.environ, "SKEP_IN_PROCESS": "0"}
    run = subprocess.run([sys.executable, "-c", code, "flow:who", "-w", "2"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30)
    assert (run.returncode, run.stderr) == (0, "") and len(run.stdout.splitlines()) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="other systems end no stopped process")
def test_a_stopped_worker_ends_with_its_parent(command: Callable[..., subprocess.Popen[str]]) -> None:
    run = command("flow:endless(False)", "-w", "2")
    assert run.stdout is not None and run.stdout.readline()
    pids = children_of(run.pid)
    os.kill(pids[0], signal.SIGSTOP)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=30)
    assert gone_within(pids, 5)
