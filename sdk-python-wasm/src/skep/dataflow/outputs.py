"""Where items go: the base classes of sinks.

A sink with fixed partitions takes keyed items, remembers how far it wrote, and may go back there: so what a crash left behind is written
over, and each item is there once. A dynamic sink has a part on each worker and remembers nothing: at least once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar
from zlib import adler32

X = TypeVar("X")
S = TypeVar("S")

__all__ = ["DynamicSink", "FixedPartitionedSink", "S", "Sink", "StatefulSinkPartition", "StatelessSinkPartition", "X"]


class Sink(ABC, Generic[X]):
    """What :func:`~skep.dataflow.operators.output` writes to. Derive from one of the classes below, not from this one."""


class StatefulSinkPartition(ABC, Generic[X, S]):
    """A partition that knows how far it was written."""

    @abstractmethod
    def write_batch(self, values: list[X]) -> None:
        """Writes the values of these items, without their keys."""

    @abstractmethod
    def snapshot(self) -> S:
        """Where to go on, once all that was written so far is safe. Must be picklable, and not change later. Not called after ``close``."""

    def close(self) -> None:
        """Called at the end of the flow; not when it is stopped or fails."""
        return


class FixedPartitionedSink(Sink[tuple[str, X]], Generic[X, S]):
    """A sink of partitions that are known when the flow starts; items are ``(key, value)``."""

    @abstractmethod
    def list_parts(self) -> list[str]:
        """The names of all partitions."""

    def part_fn(self, item_key: str) -> int:
        """A number for a key, the same on every worker and in every run (so not ``hash``). It chooses from the sorted partitions, wrapping round."""
        return adler32(item_key.encode())

    @abstractmethod
    def build_part(self, step_id: str, for_part: str, resume_state: S | None) -> StatefulSinkPartition[X, S]:
        """Opens a partition at the place that ``resume_state`` names, or at the start."""


class StatelessSinkPartition(ABC, Generic[X]):
    """A worker's part of a dynamic sink."""

    @abstractmethod
    def write_batch(self, items: list[X]) -> None:
        """Writes items."""

    def close(self) -> None:
        """Called at the end of the flow; not when it is stopped or fails."""
        return


class DynamicSink(Sink[X]):
    """A sink that each worker writes to for itself."""

    @abstractmethod
    def build(self, step_id: str, worker_index: int, worker_count: int) -> StatelessSinkPartition[X]:
        """Opens this worker's part."""
