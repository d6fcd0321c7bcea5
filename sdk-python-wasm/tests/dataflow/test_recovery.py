"""State that outlives a run: going on, with other workers, after any end; and stores that are not what they should be."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from flows import NO_TIME, Later

import skep.dataflow.operators as op
from skep.dataflow import Dataflow, limits
from skep.dataflow.connectors.files import CSVSource, DirSink, DirSource, FileSink, FileSource
from skep.dataflow.errors import StepError, StoreInUseError
from skep.dataflow.inputs import FixedPartitionedSource, SimplePollingSource, StatefulSourcePartition
from skep.dataflow.local import Runner
from skep.dataflow.recovery import (
    FILE,
    InconsistentPartitionsError,
    MissingPartitionsError,
    NoPartitionsError,
    RecoveryConfig,
    init_db_dir,
    main,
)
from skep.dataflow.testing import TestingSink, TestingSource, cluster_main, run_main

EOF, ABORT, PAUSE = TestingSource.EOF, TestingSource.ABORT, TestingSource.PAUSE


@pytest.fixture
def config(tmp_path: Path) -> RecoveryConfig:
    init_db_dir(tmp_path / "db", 1)
    return RecoveryConfig(tmp_path / "db")


def counting(items: Any, out: list[Any], **names: str) -> Dataflow:
    """Running counts by the first letter."""
    flow = Dataflow(names.get("flow", "f"))
    s = op.key_on("key", op.input(names.get("inp", "in"), flow, TestingSource(items)), lambda x: x[0])
    op.output("out", op.stateful_map(names.get("count", "count"), s, lambda st, x: ((st or 0) + 1,) * 2), TestingSink(out))
    return flow


def kept(config: RecoveryConfig) -> dict[str, int]:
    with config.open() as store:
        return {step: count for step, _, count in store.summary()}


@pytest.mark.parametrize("interval", [NO_TIME, timedelta(seconds=10)])
def test_a_run_goes_on_behind_the_end(config: RecoveryConfig, interval: timedelta) -> None:
    out: list[Any] = []
    flow = counting(["a", "b", EOF(), "a", EOF(), "b", "a"], out)
    for want in ([("a", 1), ("b", 1)], [("a", 2)], [("b", 2), ("a", 3)], [], []):
        out.clear()
        run_main(flow, epoch_interval=interval, recovery_config=config)
        assert out == want


def test_a_run_goes_on_with_the_epoch_that_was_cut_off(config: RecoveryConfig) -> None:
    out: list[Any] = []
    flow = counting(["a", "a", ABORT(), "a"], out)
    run_main(flow, recovery_config=config)
    assert out == [("a", 1), ("a", 2)]
    out.clear()
    # All was one epoch, of which nothing was kept.
    run_main(flow, recovery_config=config)
    assert out == [("a", 1), ("a", 2), ("a", 3)]


def test_workers_change_from_run_to_run(config: RecoveryConfig) -> None:
    out: list[Any] = []
    items = [f"{letter}{i}" for i in range(4) for letter in "abcdefgh"]
    marks: list[Any] = list(items)
    marks[20:20], marks[10:10] = [ABORT()], [ABORT()]
    flow = counting(marks, out)
    for workers in (1, 3, 2, 5):
        cluster_main(flow, [], 0, worker_count_per_proc=workers, epoch_interval=NO_TIME, recovery_config=config)
    assert Counter(out) == Counter((letter, n) for letter in "abcdefgh" for n in range(1, 5))


def test_ends_reach_keys_of_former_runs(config: RecoveryConfig) -> None:
    out: list[Any] = []

    class Keep(op.StatefulBatchLogic[Any, Any, Any]):
        def __init__(self, state: Any) -> None:
            self.seen = list(state or [])

        def on_batch(self, values: list[Any]) -> Any:
            self.seen += values
            return (), False

        def on_eof(self) -> Any:
            return [list(self.seen)], self.seen == ["b1"]

        def snapshot(self) -> Any:
            return self.seen

    flow = Dataflow("f")
    s = op.key_on("key", op.input("in", flow, TestingSource(["a1", "b1", EOF(), "a2"])), lambda x: x[0])
    op.output("out", op.stateful_batch("keep", s, Keep), TestingSink(out))
    for workers, want in ((1, [("a", ["a1"]), ("b", ["b1"])]), (3, [("a", ["a1", "a2"])]), (2, [("a", ["a1", "a2"])])):
        out.clear()
        cluster_main(flow, [], 0, worker_count_per_proc=workers, recovery_config=config)
        assert sorted(out) == want


def test_timers_outlive_a_run(config: RecoveryConfig) -> None:
    out: list[Any] = []
    due = datetime.now(timezone.utc) + timedelta(milliseconds=200)

    flow = Dataflow("f")
    items = [("a", 1), EOF(), PAUSE(timedelta(milliseconds=400))]
    op.output("out", op.stateful_batch("later", op.input("in", flow, TestingSource(items)), lambda state: Later(state or due)), TestingSink(out))
    run_main(flow, recovery_config=config)
    assert out == [] and kept(config) == {"f.in": 1, "f.later": 1}
    run_main(flow, recovery_config=config)
    assert out == [("a", "now")] and kept(config) == {"f.in": 1}


def test_what_was_discarded_leaves_nothing(config: RecoveryConfig) -> None:
    flow = Dataflow("f")
    s = op.input("in", flow, TestingSource([(str(i), i) for i in range(500)]))
    op.inspect("a", op.stateful_map("gone", s, lambda st, x: (None, x)), lambda *_: None)
    op.inspect("b", op.max_final("max", s), lambda *_: None)
    op.inspect("c", op.collect("lists", s, timedelta(days=1), 3), lambda *_: None)
    op.inspect("d", op.join("join", s, s), lambda *_: None)
    run_main(flow, epoch_interval=NO_TIME, recovery_config=config)
    assert kept(config) == {"f.in": 1}


def test_memory_holds_no_more_keys_than_its_bound(config: RecoveryConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skep.dataflow.local.LIVE_KEYS", 10)
    out: list[Any] = []
    flow = Dataflow("f")
    items = [(str(i % 50), 1) for i in range(500)]
    op.output("out", op.stateful_map("sum", op.input("in", flow, TestingSource(items, 7)), lambda st, x: ((st or 0) + x,) * 2), TestingSink(out))
    with config.open() as store:
        runner = Runner(flow, workers=2, epoch_interval=NO_TIME, store=store)
        runner.run()
        assert all(len(run.live) <= 10 + 7 for runs in runner._runs for run in runs if run.stage.kind.value == "keyed")
    assert Counter(out) == Counter((str(key), n) for key in range(50) for n in range(1, 11))
    assert limits.LIVE_KEYS > 10


def test_an_epoch_is_kept_whole_or_not_at_all(config: RecoveryConfig) -> None:
    def picky(state: Any, value: Any) -> Any:
        return (value if value != "bad" else (lambda: 1)), value

    flow = Dataflow("f")
    s = op.input("in", flow, TestingSource([("k", "good"), ("k", "bad")]))
    op.inspect("ia", op.stateful_map("a", s, lambda st, x: (x, x)), lambda *_: None)
    op.inspect("ib", op.stateful_map("b", s, picky), lambda *_: None)
    text = "step 'f.b' .*the state of the key 'k' can't be pickled: .*let `snapshot` return plain data; got function"
    with pytest.raises(StepError, match=text):
        run_main(flow, epoch_interval=NO_TIME, recovery_config=config)
    from skep.dataflow.stage import unpack

    with config.open() as store:
        states = {step: unpack(store.load(step, "k") or b"") for step in ("f.a.stateful_batch", "f.b.stateful_batch")}
        assert states == {"f.a.stateful_batch": "good", "f.b.stateful_batch": "good"}
        assert unpack(store.load("f.in", "iterable") or b"") == (False, 1)


def test_a_key_that_is_no_text_of_the_world(config: RecoveryConfig) -> None:
    for key, wrong in (("grün \0 ☃", False), ("\ud800", True)):
        flow = Dataflow("f")
        s = op.input("in", flow, TestingSource([(key, 1), (key, 1), EOF(), (key, 1)]))
        out: list[Any] = []
        op.output("out", op.stateful_map("s", s, lambda st, x: ((st or 0) + x,) * 2), TestingSink(out))
        if wrong:
            with pytest.raises(RuntimeError, match="surrogate"):
                cluster_main(flow, [], 0, worker_count_per_proc=2, recovery_config=config)
            continue
        cluster_main(flow, [], 0, worker_count_per_proc=2, recovery_config=config)
        run_main(flow, recovery_config=config)
        assert out == [(key, 1), (key, 2), (key, 3)]
        with config.open() as store:
            store.forget("f.in")


def test_an_epoch_in_which_nothing_happens_writes_nothing(config: RecoveryConfig) -> None:
    class Quiet(SimplePollingSource[Any, Any]):
        polls = 0

        def next_item(self) -> Any:
            self.polls += 1
            if self.polls > 20:
                raise StopIteration()
            return None

    flow = Dataflow("f")
    op.inspect("i", op.input("in", flow, Quiet(timedelta(milliseconds=5))), lambda *_: None)
    with config.open() as store:
        Runner(flow, epoch_interval=timedelta(milliseconds=1), store=store).run()
        # The first place, the end, and the epochs' numbers.
        assert store._db.total_changes < 10


def test_sources_and_sinks_of_files_go_on(config: RecoveryConfig, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i}\n" for i in range(10)))
    (tmp_path / "rows.csv").write_text("k,n\nx,1\n")
    sink = tmp_path / "sink"
    sink.mkdir()

    def flow() -> Dataflow:
        flow = Dataflow("f")
        lines = op.input("in", flow, DirSource(tmp_path, "*.txt", batch_size=3))
        rows = op.map("row", op.input("rows", flow, CSVSource(tmp_path / "rows.csv")), lambda row: f"{row['k']}{row['n']}")
        keyed = op.key_on("key", op.merge("all", lines, rows), lambda x: x[0])
        counted = op.stateful_map("count", keyed, lambda st, x: ((st or 0) + 1, f"{x} {(st or 0) + 1}"))
        op.output("out", counted, DirSink(sink, 3))
        op.output("one", counted, FileSink(tmp_path / "one.out"))
        return flow

    run_main(flow(), recovery_config=config)
    with open(tmp_path / "a.txt", "a") as file:
        file.write("a10\na11\n")
    with open(tmp_path / "rows.csv", "a") as file:
        file.write("x,2\n")
    # Behind what was kept: what a run that died had written.
    with open(tmp_path / "one.out", "a") as file:
        file.write("half a li")
    cluster_main(flow(), [], 0, worker_count_per_proc=2, recovery_config=config)
    want = Counter([f"{name}{i} {i + 1}" for name in "ab" for i in range(12 if name == "a" else 10)] + ["x1 1", "x2 2"])
    assert Counter((tmp_path / "one.out").read_text().splitlines()) == want
    assert Counter(line for part in sink.iterdir() for line in part.read_text().splitlines()) == want


@pytest.mark.parametrize("what", ["source", "sink"])
def test_a_file_that_became_shorter_is_no_place_to_go_on(config: RecoveryConfig, tmp_path: Path, what: str) -> None:
    path = tmp_path / "in.txt"
    path.write_text("one\ntwo\n")

    def flow() -> Dataflow:
        flow = Dataflow("f")
        op.output("out", op.key_on("k", op.input("in", flow, FileSource(path)), lambda x: x), FileSink(tmp_path / "out.txt"))
        return flow

    run_main(flow(), recovery_config=config)
    (path if what == "source" else tmp_path / "out.txt").write_text("x\n")
    with pytest.raises(StepError, match="has 2 bytes and .* 8 .*it was cut or replaced since"):
        run_main(flow(), recovery_config=config)


# ------------------------------------------------------------------------------------------------------------ stores that are not right


def run_with(path: Path) -> None:
    run_main(counting(["a"], []), recovery_config=RecoveryConfig(path))


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(NoPartitionsError, match="is no directory: make a recovery store with"):
        run_with(tmp_path / "none")
    with pytest.raises(NoPartitionsError, match="is it the right directory"):
        run_with(tmp_path)
    (tmp_path / f"{FILE}-wal").write_bytes(b"")
    with pytest.raises(MissingPartitionsError, match="bring both back"):
        run_with(tmp_path)


def test_a_store_of_bytewax(tmp_path: Path) -> None:
    their = pytest.importorskip("bytewax.recovery")
    their.init_db_dir(tmp_path, 2)
    with pytest.raises(NoPartitionsError, match="of Bytewax, which skep can't read"):
        run_with(tmp_path)
    # And another one's name for ours.
    shutil.copy(tmp_path / "part-0.sqlite3", tmp_path / FILE)
    with pytest.raises(InconsistentPartitionsError, match="is no recovery store of skep"):
        run_with(tmp_path)


def test_a_damaged_store(config: RecoveryConfig, tmp_path: Path) -> None:
    flow = Dataflow("f")
    s = op.input("in", flow, TestingSource([(str(i), "x" * 500) for i in range(200)], 200))
    op.inspect("i", op.stateful_map("s", s, lambda st, x: (x, x)), lambda *_: None)
    run_main(flow, recovery_config=config)
    whole = (config.db_dir / FILE).read_bytes()
    for name, data in {
        "empty": b"",
        "text": b"hello",
        "noise": random.Random(1).randbytes(8192),
        "cut": whole[:4096],
        "holes": whole[:8192] + bytes(len(whole) - 8192),
    }.items():
        broken = tmp_path / name
        broken.mkdir()
        (broken / FILE).write_bytes(data)
        with pytest.raises(InconsistentPartitionsError, match="is damaged|is no recovery store of skep"):
            run_main(flow, recovery_config=RecoveryConfig(broken))
    assert kept(config)["f.s.stateful_batch"] == 200


def test_what_a_later_skep_wrote(config: RecoveryConfig) -> None:
    run_with(config.db_dir)
    with sqlite3.connect(config.db_dir / FILE) as db:
        db.execute("UPDATE snaps SET state = x'FF00' WHERE step LIKE '%count%'")
    db.close()
    with pytest.raises(StepError, match="step 'f.count' .*the kept state of 'a' can't be read: .*version 255 .*by a later one"):
        run_main(counting(["a", "a"], []), recovery_config=config)
    db = sqlite3.connect(config.db_dir / FILE)
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(InconsistentPartitionsError, match="has version 9 and this skep reads up to 1"):
        run_with(config.db_dir)


def test_state_that_is_no_pickle(config: RecoveryConfig) -> None:
    run_with(config.db_dir)
    with sqlite3.connect(config.db_dir / FILE) as db:
        db.execute("UPDATE snaps SET state = x'01AABB' WHERE step LIKE '%count%'")
    db.close()
    with pytest.raises(StepError, match="the kept state of 'a' can't be read: UnpicklingError"):
        run_main(counting(["a", "a"], []), recovery_config=config)


def test_a_disk_that_is_full_costs_the_epoch_and_no_more(config: RecoveryConfig) -> None:
    out: list[Any] = []

    def flow() -> Dataflow:
        flow = Dataflow("f")
        s = op.input("in", flow, TestingSource([(str(i), "x" * 900) for i in range(300)], 10))
        op.output("out", op.stateful_map("s", s, lambda st, x: (x, st)), TestingSink(out))
        return flow

    with config.open() as store:
        store._db.execute("PRAGMA max_page_count = 40")
        with pytest.raises(RuntimeError, match="recovery.sqlite3 can't be written: database or disk is full"):
            Runner(flow(), epoch_interval=NO_TIME, store=store).run()
    assert 20 < len(out) < 300
    # Room again: on from the last epoch that was kept, whose items are the only ones to come twice.
    before = len(out)
    run_main(flow(), recovery_config=config)
    assert 300 <= len(out) <= 310 and before < 300


def test_two_runs_can_not_share_a_store(config: RecoveryConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skep.dataflow.recovery.LOCK_WAIT", 0.05)
    with config.open():
        code = f"import sys; sys.path[:0] = {sys.path!r}; from test_recovery import *; run_with(Path({str(config.db_dir)!r}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
        assert done.returncode != 0 and "StoreInUseError" in done.stderr and "in use by another process" in done.stderr
        with pytest.raises(StoreInUseError):
            config.open()
    run_with(config.db_dir)


def test_steps_that_changed_are_shown(config: RecoveryConfig, capsys: pytest.CaptureFixture[str]) -> None:
    run_with(config.db_dir)
    with pytest.raises(InconsistentPartitionsError) as caught:
        run_main(counting(["a"], [], count="total"), recovery_config=config)
    text = str(caught.value)
    assert "  - f.count.stateful_batch (keyed; 1 kept)\n  + f.total.stateful_batch (keyed; nothing kept)\n" in text
    assert f"python -m skep.dataflow.recovery {config.db_dir} --rename OLD=NEW" in text
    with pytest.raises(InconsistentPartitionsError, match="written by the flow 'f'"):
        run_main(counting(["a"], [], flow="g"), recovery_config=config)
    # As it says: the old name's state goes to the new one.
    dir = str(config.db_dir)
    assert main([dir, "--rename", "f.count.stateful_batch=f.total.stateful_batch"]) == 0
    out: list[Any] = []
    run_main(counting(["a", "a"], out, count="total"), recovery_config=config)
    assert out == [("a", 2)]
    assert main([dir, "--forget", "f.total.stateful_batch", "--list"]) == 0
    assert capsys.readouterr().out.endswith("1 kept of f.total.stateful_batch dropped\nf.in\tsource\t1\n")
    run_with(config.db_dir)


def test_a_step_that_became_of_another_kind(config: RecoveryConfig) -> None:
    run_with(config.db_dir)
    flow = Dataflow("f")
    op.inspect("i", op.redistribute("in", op.input("x", flow, TestingSource([1]))), lambda *_: None)
    with pytest.raises(InconsistentPartitionsError, match=r"- f.in \(source; 1 kept\)"):
        run_main(flow, recovery_config=config)


class Parts(FixedPartitionedSource[Any, int]):
    """Partitions of five numbers each; the first ones stop short."""

    def __init__(self, parts: list[str], stop: int = 5) -> None:
        self.parts, self.stop = parts, stop

    def list_parts(self) -> list[str]:
        return self.parts

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> StatefulSourcePartition[Any, int]:
        outer = self

        class Part(StatefulSourcePartition[Any, int]):
            at = resume_state or 0

            def next_batch(self) -> list[Any]:
                if self.at == 5:
                    raise StopIteration()
                if self.at == outer.stop:
                    from skep.dataflow.errors import AbortExecution

                    raise AbortExecution()
                self.at += 1
                return [(for_part, self.at)]

            def snapshot(self) -> int:
                return self.at

        return Part()


def test_partitions_of_a_source_that_went(config: RecoveryConfig) -> None:
    out: list[Any] = []

    def run(source: Parts) -> None:
        flow = Dataflow("f")
        op.output("out", op.input("in", flow, source), TestingSink(out))
        run_main(flow, epoch_interval=NO_TIME, recovery_config=config)

    run(Parts(["p", "q"], stop=3))
    with pytest.raises(InconsistentPartitionsError, match="step 'f.in' .*were not read to the end, and are gone(.|\n)*- q(.|\n)*--forget f.in"):
        run(Parts(["p"]))
    run(Parts(["p", "q", "r"]))
    assert Counter(out) == Counter((part, n) for part in "pqr" for n in range(1, 6))
    # All were read to their ends: nothing is lost with them.
    run(Parts(["s"]))
    assert len(out) == 20


def test_partitions_of_a_sink_that_changed(config: RecoveryConfig, tmp_path: Path) -> None:
    def run(count: int) -> None:
        flow = Dataflow("f")
        op.output("out", op.input("in", flow, TestingSource([(str(i), str(i)) for i in range(20)])), DirSink(tmp_path, count))
        run_main(flow, recovery_config=config)

    run(2)
    with pytest.raises(InconsistentPartitionsError, match="step 'f.out' .*keys would change place(.|\n)*  . part_2"):
        run(3)
    with pytest.raises(InconsistentPartitionsError, match="(.|\n)*  - part_1"):
        run(1)
    run(2)


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (["{}/new", "3"], 0, ""),
        (["{}/db", "1"], 0, ""),
        (["{}/db"], 2, "say what to do"),
        (["{}/db", "0"], 1, "count: a whole number, at least 1; got 0"),
        (["{}/none", "--list"], 1, "is no directory"),
        (["{}/db", "--rename", "x"], 2, "OLD=NEW; got 'x'"),
        (["{}/db", "--backup", "{}/copy"], 0, ""),
        (["{}/db", "--backup", "{}/db"], 1, "is there already"),
    ],
)
def test_the_command(config: RecoveryConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], status: int, text: str) -> None:
    run_with(config.db_dir)
    try:
        got = main([arg.format(tmp_path) for arg in argv])
    except SystemExit as e:
        got = int(str(e.code))
    assert got == status
    assert text in capsys.readouterr().err
    assert kept(config) == {"f.count.stateful_batch": 1, "f.in": 1}
    if "{}/copy" in argv:
        assert kept(RecoveryConfig(tmp_path / "copy")) == kept(config)


# --------------------------------------------------------------------------------------------------------------------------- kill -9

LINES = 20_000
KEYS = 23
FLOW = """
import time
from pathlib import Path
import skep.dataflow.operators as op
from skep.dataflow import Dataflow
from skep.dataflow.connectors.files import FileSink, FileSource

def key(line):
    # A millisecond a batch: no machine is so fast that a run ends before the story's last moment to kill it.
    if line.endswith("00"):
        time.sleep(0.001)
    return line.split()[0]

def make(dir):
    flow = Dataflow("counts")
    lines = op.input("lines", flow, FileSource(Path(dir) / "in.txt", batch_size=100))
    keyed = op.key_on("key", lines, key)
    counts = op.stateful_map("count", keyed, lambda n, line: ((n or 0) + 1, f"{line} {(n or 0) + 1}"))
    op.output("out", counts, FileSink(Path(dir) / "out.txt"))
    return flow
"""


def expected() -> Iterator[str]:
    counts: Counter[int] = Counter()
    for line in range(LINES):
        key = line * line % KEYS
        counts[key] += 1
        yield f"k{key} {line} {counts[key]}"


def processes_of(run: subprocess.Popen[bytes]) -> list[int]:
    """The process and those that it started."""
    try:
        found = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    except FileNotFoundError:  # It has just ended; or there is no /proc.
        found = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
    return [run.pid, *map(int, found)]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill_story(tmp_path: Path, seed: int) -> tuple[int, int, int]:
    """Of two runs, of 1 and 3 workers, kills any process at a random moment, and lets one of 2 end. How many lines are wrong, how many runs were
    killed, and of how many of these a worker was."""
    chance = random.Random(seed)
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "in.txt").write_text("".join(f"k{line * line % KEYS} {line}\n" for line in range(LINES)))
    init_db_dir(tmp_path / "db", 1)
    killed = workers_killed = 0
    for workers in (1, 3, 2):
        command = [sys.executable, "-m", "skep.run", f"flow.py:make({str(tmp_path)!r})", "-r", "db", "-s", "0.01", "-b", "0"]
        environ = {**os.environ, "SKEP_IN_PROCESS": "0"}
        with open(tmp_path / "err.txt", "w") as err:
            # No pipe: to read one to its end would wait for the workers of a parent that was killed.
            run = subprocess.Popen([*command, "-w", str(workers)], cwd=tmp_path, stderr=err, env=environ)
        pids: list[int] = []
        victim = None
        if workers != 2:
            # Not before it writes, so that there is something to kill; then at any moment.
            until = time.monotonic() + 10
            size = (tmp_path / "out.txt").stat().st_size if (tmp_path / "out.txt").exists() else 0
            while run.poll() is None and time.monotonic() < until:
                if (tmp_path / "out.txt").exists() and (tmp_path / "out.txt").stat().st_size != size:
                    break
                time.sleep(0.001)
            time.sleep(chance.random() * 0.08)
            pids = processes_of(run)
            if run.poll() is None:
                # With several workers there is one that reads the file, and the parent.
                assert len(pids) == (1 if workers == 1 else workers + 2)
                victim = chance.choice(pids)
                os.kill(victim, signal.SIGKILL)
                killed += 1
                workers_killed += victim != run.pid
        # Workers whose parent was killed may still be there when the next run begins.
        run.wait(timeout=60)
        stderr = (tmp_path / "err.txt").read_text()
        if victim in (None, run.pid):
            assert run.returncode == (0 if victim is None else -signal.SIGKILL), stderr
        elif run.returncode:
            # It may have ended just then.
            assert run.returncode == 1 and f"(process {victim}) was killed by SIGKILL" in stderr
        if victim not in (None, run.pid):
            # It ends its workers before itself.
            assert not any(map(is_there, pids))
    got, want = Counter((tmp_path / "out.txt").read_text().splitlines()), Counter(expected())
    return sum(((got - want) + (want - got)).values()), killed, workers_killed


def test_kill_9_at_any_moment_with_other_workers_each_time(tmp_path: Path) -> None:
    """SKEP_KILL_RUNS: how many runs; 20 unless it is given."""
    wrong = killed = workers_killed = 0
    runs = int(os.environ.get("SKEP_KILL_RUNS", "20"))
    for seed in range(runs):
        dir = tmp_path / str(seed)
        dir.mkdir()
        found = kill_story(dir, seed)
        wrong += found[0]
        killed += found[1]
        workers_killed += found[2]
        shutil.rmtree(dir)
    print(f"{runs} runs, {killed} kills, {workers_killed} of them of a worker's process: {wrong} wrong lines")
    assert wrong == 0
    # A test of kills kills.
    assert killed >= runs and workers_killed >= runs // 4
