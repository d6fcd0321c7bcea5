"""Sources, sinks, their helpers and the connectors."""

from __future__ import annotations

import asyncio
import queue
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import skep.dataflow.operators as op
from skep.dataflow import Dataflow
from skep.dataflow.connectors.demo import RandomMetricSource
from skep.dataflow.connectors.files import CSVSource, DirSink, DirSource, FileSink, FileSource
from skep.dataflow.connectors.stdio import StdOutSink
from skep.dataflow.errors import StepError
from skep.dataflow.inputs import (
    DynamicSource,
    SimplePollingSource,
    StatelessSourcePartition,
    batch,
    batch_async,
    batch_getter,
    batch_getter_ex,
)
from skep.dataflow.local import Runner, SystemClock
from skep.dataflow.outputs import DynamicSink, StatelessSinkPartition
from skep.dataflow.testing import TestingSink, TestingSource, TimeTestingGetter, ffwd_iter, poll_next_batch, run_main


def read(source: Any, **how: Any) -> list[Any]:
    flow, out = Dataflow("f"), []
    op.output("out", op.input("in", flow, source), TestingSink(out))
    Runner(flow, **how).run()
    return out


def test_helpers_that_make_batches() -> None:
    assert list(batch(iter(range(5)), 3)) == [[0, 1, 2], [3, 4]]
    assert list(batch([], 3)) == []
    it = iter([1, 2, None, None, 3])
    assert list(batch_getter(lambda: next(it), 2)) == [[1, 2], [], [], [3]]
    it = iter("ab-")
    assert next(batch_getter(lambda: next(it), 9, "-")) == ["a", "b"]
    q: queue.Queue[int] = queue.Queue()
    batches = batch_getter_ex(q.get_nowait, 2)
    assert next(batches) == []
    for n in range(3):
        q.put(n)
    assert [next(batches), next(batches), next(batches)] == [[0, 1], [2], []]

    def raising() -> int:
        raise KeyError

    assert next(batch_getter_ex(raising, 2, KeyError)) == []
    for make in (batch, batch_getter, batch_getter_ex):
        with pytest.raises(ValueError, match="batch_size"):
            next(make(iter, 0))  # type: ignore[operator]


def test_an_async_iterable_loses_nothing_when_time_is_over() -> None:
    async def slow() -> AsyncIterator[int]:
        for n in range(4):
            await asyncio.sleep(0.03)
            yield n

    found = list(batch_async(slow(), timedelta(seconds=0.01), 10))
    assert [item for part in found for item in part] == [0, 1, 2, 3]
    assert [] in found
    loop = asyncio.new_event_loop()
    assert list(batch_async(slow(), timedelta(seconds=5), 3, loop)) == [[0, 1, 2], [3]]
    assert not loop.is_closed()
    loop.close()

    async def failing() -> AsyncIterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(batch_async(failing(), timedelta(seconds=5), 9))


def test_helpers_for_tests() -> None:
    it = iter(range(5))
    ffwd_iter(it, 3)
    assert next(it) == 3
    ffwd_iter(it, 10)
    clock = TimeTestingGetter(datetime(2024, 1, 1, tzinfo=timezone.utc))
    clock.advance(timedelta(1))
    assert clock.get() == datetime(2024, 1, 2, tzinfo=timezone.utc)

    class Third(StatelessSourcePartition[int]):
        n = 0

        def next_batch(self) -> list[int]:
            self.n += 1
            return [self.n] if self.n == 3 else []

    assert poll_next_batch(Third()) == [3]
    with pytest.raises(TimeoutError):
        poll_next_batch(Third(), timedelta(0))


class Asleep(SystemClock):
    """A clock that stands still while nobody sleeps."""

    def __init__(self) -> None:
        self.at = datetime(2024, 1, 1, tzinfo=timezone.utc)
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += timedelta(seconds=seconds)


def test_a_runner_sleeps_until_something_is_due_and_not_longer() -> None:
    clock = Asleep()

    class Rare(DynamicSource[int]):
        def build(self, step_id: str, worker_index: int, worker_count: int) -> StatelessSourcePartition[int]:
            class Part(StatelessSourcePartition[int]):
                n = 0
                closed = False

                def next_batch(self) -> list[int]:
                    self.n += 1
                    if self.n > 3:
                        raise StopIteration()
                    return [self.n]

                def next_awake(self) -> datetime:
                    return clock.at + timedelta(seconds=0.25)

                def close(self) -> None:
                    closed.append(self.n)

            return Part()

    closed: list[int] = []
    assert read(Rare(), clock=clock) == [1, 2, 3]
    # A year of this costs three wakes a second, not a thousand.
    assert clock.slept == [0.25] * 4
    assert closed == [4]


def test_polling_keeps_its_rhythm(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Poll(SimplePollingSource[Any, int]):
        n = 0

        def next_item(self) -> Any:
            self.n += 1
            calls.append(str(self.n))
            if self.n == 2:
                raise self.Retry(timedelta(milliseconds=1))
            if self.n == 4:
                return None
            if self.n == 6:
                raise StopIteration()
            return self.n

        def snapshot(self) -> int:
            return self.n

        def resume(self, resume_state: int) -> None:
            self.n = resume_state

    assert read(Poll(timedelta(milliseconds=10))) == [1, 3, 5]
    part = Poll(timedelta(hours=1), datetime(2024, 1, 1, tzinfo=timezone.utc)).build_part("f.in", "singleton", 4)
    at = part.next_awake()
    assert at is not None and (at.minute, at.second, at.microsecond) == (0, 0, 0)
    assert timedelta(0) <= at - datetime.now(timezone.utc) <= timedelta(hours=1)
    assert part.next_batch() == [5] and part.snapshot() == 5
    after = part.next_awake()
    assert after is not None and after - at == timedelta(hours=1)


def test_a_polling_source_needs_no_type_for_its_state() -> None:
    class One(SimplePollingSource[int]):
        def next_item(self) -> int:
            raise StopIteration()

    assert read(One(timedelta(0))) == []
    assert SimplePollingSource[int, str].__args__ == (int, str)  # type: ignore[attr-defined]


def test_sinks_and_sources_are_built_and_closed_on_each_worker() -> None:
    seen: list[Any] = []

    class Sink(DynamicSink[Any]):
        def build(self, step_id: str, worker_index: int, worker_count: int) -> StatelessSinkPartition[Any]:
            class Part(StatelessSinkPartition[Any]):
                def write_batch(self, items: list[Any]) -> None:
                    seen.append((worker_index, items))

                def close(self) -> None:
                    seen.append((worker_index, "closed"))

            seen.append((step_id, worker_index, worker_count))
            return Part()

    flow = Dataflow("f")
    op.output("out", op.redistribute("r", op.input("in", flow, TestingSource(range(4), 4))), Sink())
    Runner(flow, workers=2).run()
    assert Counter(map(str, seen)) == Counter(
        map(str, [("f.out", 0, 2), ("f.out", 1, 2), (0, [1, 3]), (1, [0, 2]), (0, "closed"), (1, "closed")])
    )


def test_lines_of_files(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for data, want in (
        (b"", []),
        (b"one", ["one"]),
        (b"one\n\ntwo\n", ["one", "", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        ("grün\n".encode(), ["grün"]),
        (b"a\n" * 2500, ["a"] * 2500),
    ):
        path.write_bytes(data)
        assert read(FileSource(path)) == want
        assert read(FileSource(str(path), batch_size=1)) == want
    path.write_bytes(b"ok\n\xff\n")
    with pytest.raises(StepError, match="for the partition 'fs::.*x.txt': ValueError: .* is not UTF-8 at byte 3"):
        read(FileSource(path))
    with pytest.raises(StepError, match="FileNotFoundError: no file .*none"):
        read(FileSource(tmp_path / "none"))
    with pytest.raises(ValueError, match="dir_path: no directory .*none"):
        DirSource(tmp_path / "none")
    (tmp_path / "gone").mkdir()
    gone = DirSource(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StepError, match="FileNotFoundError: no directory .*gone"):
        read(gone)
    with pytest.raises(ValueError, match="batch_size"):
        FileSource(path, batch_size=0)
    assert read(DirSource(tmp_path, "*.none")) == []


def test_a_directory_is_read_by_all_workers(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"{n}.txt").write_text(f"{n}a\n{n}b\n")
    (tmp_path / "sub").mkdir()
    assert sorted(read(DirSource(tmp_path), workers=3)) == [f"{n}{c}" for n in range(5) for c in "ab"]
    assert DirSource(tmp_path, "1*", get_fs_id=lambda path: "disk").list_parts() == ["disk::1.txt"]


def test_rows_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("\ufeffname;n\r\nbee;1\r\n\r\n'two\r\nlines';2\r\n".encode())
    want = [{"name": "bee", "n": "1"}, {"name": "two\r\nlines", "n": "2"}]
    assert read(CSVSource(path, 1, delimiter=";", quotechar="'")) == want
    # From every place between rows, the rest.
    source = CSVSource(path, 1, delimiter=";", quotechar="'")
    part = source.build_part("f.in", "p", None)
    for n in range(3):
        rest = source.build_part("f.in", "p", part.snapshot())
        found = []
        while True:
            try:
                found += list(rest.next_batch())
            except StopIteration:
                break
        assert found == want[n:]
        if n < 2:
            part.next_batch()
    path.write_text("")
    assert read(CSVSource(path)) == []
    path.write_text("a,b\n1\n1,2,3\n")
    assert read(CSVSource(path)) == [{"a": "1", "b": None}, {"a": "1", "b": "2", None: ["3"]}]


def test_files_are_written_anew_without_recovery(tmp_path: Path) -> None:
    path = tmp_path / "x.out"
    path.write_text("of another day\n")
    flow = Dataflow("f")
    op.output("out", op.input("in", flow, TestingSource([("a", "1"), ("b", "2")])), FileSink(path, end=";"))
    run_main(flow)
    assert path.read_text() == "1;2;"
    flow = Dataflow("f")
    op.output("out", op.input("in", flow, TestingSource([])), FileSink(path))
    run_main(flow)
    assert path.read_text() == ""


def test_a_key_goes_to_the_file_that_was_assigned(tmp_path: Path) -> None:
    items = [(str(n), str(n)) for n in range(24)]
    sink = DirSink(tmp_path, 12, file_namer=lambda i, n: f"{i}-of-{n}", assign_file=int)
    flow = Dataflow("f")
    op.output("out", op.input("in", flow, TestingSource(items)), sink)
    Runner(flow, workers=5).run()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {f"{i}-of-12": f"{i}\n{i + 12}\n" for i in range(12)}
    with pytest.raises(ValueError, match="same name twice"):
        DirSink(tmp_path, 2, file_namer=lambda i, n: "x")
    with pytest.raises(ValueError, match="file_count"):
        DirSink(tmp_path, 0)


def test_stdout_and_demo(capsys: pytest.CaptureFixture[str]) -> None:
    flow = Dataflow("f")
    op.output("out", op.input("in", flow, RandomMetricSource("m", timedelta(milliseconds=1), 3)), StdOutSink())
    run_main(flow)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.startswith("('m', ") and 0 <= int(line[6:-1]) <= 9 for line in lines)


def test_pauses_and_ends_of_a_testing_source() -> None:
    began = datetime.now(timezone.utc)
    items = [1, TestingSource.PAUSE(timedelta(milliseconds=50)), 2, TestingSource.ABORT(), 3]
    source = TestingSource(items, 10)
    assert read(source) == [1, 2]
    assert datetime.now(timezone.utc) - began >= timedelta(milliseconds=50)
    assert read(source) == [1, 2, 3]
    # An ABORT that is over is as if it were not there.
    part = source.build_part("f.in", "iterable", 2)
    assert part.next_batch() == [2, 3] and part.snapshot() == 5
    marks = [TestingSource.EOF(), 1, TestingSource.EOF(), TestingSource.EOF(), 2]
    found = []
    state = 0
    for _ in range(5):
        part = TestingSource(marks, 3).build_part("f.in", "iterable", state)
        try:
            while True:
                found.append(part.next_batch())
        except StopIteration:
            found.append([])
        state = part.snapshot()
    assert found == [[], [1], [], [], [2], [], []]
    with pytest.raises(TypeError):
        TestingSource(3)  # type: ignore[arg-type]
