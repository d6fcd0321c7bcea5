"""Files, line by line.

A file is a partition: one worker reads or writes it. Sources remember the byte where they are, and read on there; what is appended after the
end of a run is read by the next. Sinks remember how long the file is, and cut off what a crash left behind it: each line is there once.
Text is UTF-8.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from zlib import adler32

from ..inputs import FixedPartitionedSource, StatefulSourcePartition
from ..outputs import FixedPartitionedSink, StatefulSinkPartition

__all__ = ["CSVSource", "DirSink", "DirSource", "FileSink", "FileSource"]


def _one_fs(path: Path) -> str:
    """One name for every file system. Its device number would tell mounts apart, but changes when a machine starts anew, and then nothing
    could be resumed."""
    return "fs"


def _check_batch(batch_size: Any) -> int:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size: a whole number, at least 1; got {batch_size!r}")
    return batch_size


def _open_at(path: Path, at: int) -> BinaryIO:
    file = open(path, "rb")
    size = os.fstat(file.fileno()).st_size
    if size < at:
        file.close()
        raise ValueError(f"{path} has {size} bytes and was read up to byte {at} before: it was cut or replaced since")
    file.seek(at)
    return file


class _FilePartition(StatefulSourcePartition[str, int]):
    def __init__(self, path: Path, batch_size: int, resume_state: int | None) -> None:
        self._path = path
        self._batch_size = batch_size
        self._at = resume_state or 0
        self._file = _open_at(path, self._at)

    def next_batch(self) -> list[str]:
        lines = list(islice(self._file, self._batch_size))
        if not lines:
            raise StopIteration()
        whole = b"".join(lines)
        try:
            text = whole.decode()
        except UnicodeDecodeError as e:
            raise ValueError(f"{self._path} is not UTF-8 at byte {self._at + e.start}: {e.reason}") from e
        self._at += len(whole)
        found = text.split("\n")
        if not found[-1]:
            found.pop()
        return [line.removesuffix("\r") for line in found] if "\r" in text else found

    def snapshot(self) -> int:
        return self._at

    def close(self) -> None:
        self._file.close()


class FileSource(FixedPartitionedSource[str, int]):
    """The lines of a file, without their ends.

    ``batch_size``: lines that are read at once. ``get_fs_id``: names the file system of a path; where workers have different files at one
    path, it tells them apart.

    >>> import tempfile, pathlib
    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import run_main
    >>> with tempfile.TemporaryDirectory() as dir:
    ...     path = pathlib.Path(dir) / "lines.txt"
    ...     _ = path.write_text("one\\ntwo\\n")
    ...     flow = Dataflow("eg")
    ...     _ = op.inspect("out", op.input("in", flow, FileSource(path)))
    ...     run_main(flow)
    eg.out: 'one'
    eg.out: 'two'
    """

    def __init__(self, path: Path | str, batch_size: int = 1000, get_fs_id: Callable[[Path], str] = _one_fs) -> None:
        self._path = Path(path)
        self._batch_size = _check_batch(batch_size)
        self._get_fs_id = get_fs_id

    def list_parts(self) -> list[str]:
        """The file."""
        if not self._path.is_file():
            raise FileNotFoundError(f"no file {self._path} (looked in {Path.cwd()})")
        return [f"{self._get_fs_id(self._path)}::{self._path}"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> StatefulSourcePartition[str, int]:
        """Opens the file behind what was read."""
        return _FilePartition(self._path, self._batch_size, resume_state)


class DirSource(FixedPartitionedSource[str, int]):
    """The lines of all files of a directory whose names match ``glob_pat``, as they are when the flow starts.

    >>> import tempfile, pathlib
    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import run_main
    >>> with tempfile.TemporaryDirectory() as dir:
    ...     for name in "ab":
    ...         _ = (pathlib.Path(dir) / f"{name}.txt").write_text(f"{name}1\\n{name}2\\n")
    ...     flow = Dataflow("eg")
    ...     _ = op.inspect("out", op.input("in", flow, DirSource(dir, "*.txt", batch_size=1)))
    ...     run_main(flow)
    eg.out: 'a1'
    eg.out: 'b1'
    eg.out: 'a2'
    eg.out: 'b2'
    """

    def __init__(
        self, dir_path: Path | str, glob_pat: str = "*", batch_size: int = 1000, get_fs_id: Callable[[Path], str] = _one_fs
    ) -> None:
        self._dir = Path(dir_path)
        if not self._dir.is_dir():
            raise ValueError(f"dir_path: no directory {self._dir} (looked in {Path.cwd()})")
        self._glob_pat = glob_pat
        self._batch_size = _check_batch(batch_size)
        self._get_fs_id = get_fs_id

    def list_parts(self) -> list[str]:
        """The files."""
        if not self._dir.is_dir():
            raise FileNotFoundError(f"no directory {self._dir} (looked in {Path.cwd()})")
        fs_id = self._get_fs_id(self._dir)
        return [f"{fs_id}::{path.relative_to(self._dir)}" for path in sorted(self._dir.glob(self._glob_pat)) if path.is_file()]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> StatefulSourcePartition[str, int]:
        """Opens a file behind what was read."""
        return _FilePartition(self._dir / for_part.split("::", 1)[1], self._batch_size, resume_state)


class _CSVPartition(StatefulSourcePartition[dict[str, str], int]):
    def __init__(self, path: Path, batch_size: int, resume_state: int | None, fmtparams: dict[str, Any]) -> None:
        self._path = path
        self._batch_size = batch_size
        self._at = 0
        self._file = _open_at(path, 0)
        self._reader = csv.DictReader(self._lines(), **fmtparams)
        # The first row, where it has the names. The reader takes no line before it needs one, so the place is right between rows.
        self._names = self._reader.fieldnames
        if resume_state is not None and resume_state > self._at:
            self._file.close()
            self._file = _open_at(path, resume_state)
            self._at = resume_state

    def _lines(self) -> Iterator[str]:
        while line := self._file.readline():
            try:
                text = line.decode("utf-8-sig" if self._at == 0 else "utf-8")
            except UnicodeDecodeError as e:
                raise ValueError(f"{self._path} is not UTF-8 at byte {self._at + e.start}: {e.reason}") from e
            self._at += len(line)
            yield text

    def next_batch(self) -> list[dict[str, str]]:
        rows: list[dict[str, str]] = list(islice(self._reader, self._batch_size))
        if not rows:
            raise StopIteration()
        return rows

    def snapshot(self) -> int:
        return self._at

    def close(self) -> None:
        self._file.close()


class CSVSource(FixedPartitionedSource[dict[str, str], int]):
    """The rows of a CSV file as dicts, named by its first row. ``fmtparams`` go to :class:`csv.DictReader`.

    >>> import tempfile, pathlib
    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import run_main
    >>> with tempfile.TemporaryDirectory() as dir:
    ...     path = pathlib.Path(dir) / "rows.csv"
    ...     _ = path.write_text('name,n\\nbee,1\\n"a ""hive""\\nof two lines",2\\n')
    ...     flow = Dataflow("eg")
    ...     _ = op.inspect("out", op.input("in", flow, CSVSource(path)))
    ...     run_main(flow)
    eg.out: {'name': 'bee', 'n': '1'}
    eg.out: {'name': 'a "hive"\\nof two lines', 'n': '2'}
    """

    def __init__(
        self, path: Path | str, batch_size: int = 1000, get_fs_id: Callable[[Path], str] = _one_fs, **fmtparams: Any
    ) -> None:
        self._lines = FileSource(path, batch_size, get_fs_id)
        self._fmtparams = fmtparams

    def list_parts(self) -> list[str]:
        """The file."""
        return self._lines.list_parts()

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> StatefulSourcePartition[dict[str, str], int]:
        """Opens the file behind the rows that were read."""
        return _CSVPartition(self._lines._path, self._lines._batch_size, resume_state, self._fmtparams)


class _FileSinkPartition(StatefulSinkPartition[str, int]):
    def __init__(self, path: Path, resume_state: int | None, end: str) -> None:
        self._end = end
        self._path = path
        at = resume_state or 0
        self._file = open(path, "ab")
        size = self._file.tell()
        if size < at:
            self._file.close()
            raise ValueError(f"{path} has {size} bytes and had {at} when the last epoch ended: it was cut or replaced since")
        self._file.truncate(at)
        self._file.seek(at)
        self._at = at

    def write_batch(self, values: list[str]) -> None:
        try:
            data = (self._end.join(values) + self._end).encode()
        except TypeError:
            wrong = next(value for value in values if not isinstance(value, str))
            raise TypeError(f"{self._path} takes text; got {wrong!r} ({type(wrong).__name__}); convert it with map_value") from None
        self._file.write(data)
        self._at += len(data)

    def snapshot(self) -> int:
        # On the disk, or a machine that loses its power has a store that is ahead of the file.
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._at

    def close(self) -> None:
        self._file.close()


class DirSink(FixedPartitionedSink[str, int]):
    """Values as lines, in ``file_count`` files of a directory. Items are ``(key, value)``; a key's values are in one file.

    ``file_namer(index, file_count)`` names the files; ``assign_file(key)`` gives a key's index, wrapping round; ``end`` follows each value.
    The files are cut to where the run goes on; without recovery, that is their start.
    """

    def __init__(
        self,
        dir_path: Path | str,
        file_count: int,
        file_namer: Callable[[int, int], str] = lambda i, _n: f"part_{i}",
        assign_file: Callable[[str], int] = lambda k: adler32(k.encode()),
        end: str = "\n",
    ) -> None:
        if not isinstance(file_count, int) or isinstance(file_count, bool) or file_count < 1:
            raise ValueError(f"file_count: a whole number, at least 1; got {file_count!r}")
        self._dir = Path(dir_path)
        self._names = [file_namer(index, file_count) for index in range(file_count)]
        if len(set(self._names)) != file_count:
            raise ValueError(f"file_namer gives the same name twice: {', '.join(self._names)}")
        self._place = {name: place for place, name in enumerate(sorted(self._names))}
        self._assign_file = assign_file
        self._end = end

    def list_parts(self) -> list[str]:
        """The files' names."""
        if not self._dir.is_dir():
            raise FileNotFoundError(f"no directory {self._dir} (looked in {Path.cwd()}): make it first")
        return list(self._names)

    def part_fn(self, item_key: str) -> int:
        """The place of the key's file among the sorted names."""
        return self._place[self._names[self._assign_file(item_key) % len(self._names)]]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> StatefulSinkPartition[str, int]:
        """Opens a file, cut to what was kept."""
        return _FileSinkPartition(self._dir / for_part, resume_state, self._end)


class FileSink(FixedPartitionedSink[str, int]):
    """Values as lines, in one file. Items are ``(key, value)``.

    >>> import tempfile, pathlib
    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource, run_main
    >>> with tempfile.TemporaryDirectory() as dir:
    ...     path = pathlib.Path(dir) / "out.txt"
    ...     flow = Dataflow("eg")
    ...     op.output("out", op.input("in", flow, TestingSource([("a", "one"), ("b", "two")])), FileSink(path))
    ...     run_main(flow)
    ...     path.read_text()
    'one\\ntwo\\n'
    """

    def __init__(self, path: Path | str, end: str = "\n") -> None:
        self._path = Path(path)
        self._end = end

    def list_parts(self) -> list[str]:
        """The file."""
        return [str(self._path)]

    def part_fn(self, item_key: str) -> int:
        """The one file."""
        return 0

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> StatefulSinkPartition[str, int]:
        """Opens the file, cut to what was kept."""
        return _FileSinkPartition(self._path, resume_state, self._end)
