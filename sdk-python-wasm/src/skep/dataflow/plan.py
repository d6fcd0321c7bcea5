"""What of a flow runs where: its core operators, cut into stages.

Items change hands at *exchanges*: before a keyed operator (to the worker of the key), before a partitioned sink (to that of the partition)
and at ``redistribute`` (to any). A stage is what lies behind one entry, up to the next exchanges: a source, or an exchange. It takes a batch
and passes it from step to step without leaving Python, so a chain of a hundred maps costs one crossing.

A stateless step that can be reached from several entries, as one behind a ``merge``, is in the stage of each: that needs no exchange, and
such a step can't tell. So each stage has one entry, and its state, timers and end are those of that entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .errors import DataflowError
from .graph import Dataflow, Operator
from .inputs import FixedPartitionedSource
from .outputs import FixedPartitionedSink

MANIFEST_VERSION = 1


class Kind(str, Enum):
    """How a stage is entered."""

    #: A source of fixed partitions. Key: the partition's name. State: its snapshot. Driven by timers: each reads a batch.
    SOURCE = "source"
    #: A source of which each worker has a part, without state.
    WORKER_SOURCE = "worker-source"
    #: A stateful operator. Key: the items'. State: the logic's snapshot.
    KEYED = "keyed"
    #: A partitioned sink. Key: the partition's name. State: its snapshot.
    SINK = "sink"
    #: ``redistribute``: any worker, no state.
    SPREAD = "spread"


@dataclass(frozen=True)
class Node:
    """A core operator in a stage."""

    op: Operator
    #: For each stream that it makes, where that goes: the number of a node of the stage, or behind these that of an exit.
    targets: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Stage:
    """An entry, and the steps up to the next exchanges."""

    #: The whole name of the entry's step.
    name: str
    kind: Kind
    #: The entry first; each after those that it takes from.
    nodes: tuple[Node, ...]
    #: Names of the stages that it sends to.
    exits: tuple[str, ...]

    @property
    def entry(self) -> Operator:
        """The operator that the stage begins with."""
        return self.nodes[0].op


@dataclass(frozen=True)
class Plan:
    """All stages of a flow, each after those that send to it."""

    flow_id: str
    stages: tuple[Stage, ...]

    def upstreams(self, name: str) -> tuple[str, ...]:
        """Names of the stages that send to this one: it ends when all of them have."""
        return tuple(stage.name for stage in self.stages if name in stage.exits)


_PORTS: dict[str, tuple[str, ...]] = {"branch": ("trues", "falses"), "output": ()}


def plan(flow: Dataflow) -> Plan:
    """Cuts a flow into stages. A flow without input, or without output or inspect step, is refused.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource
    >>> flow = Dataflow("words")
    >>> s = op.input("in", flow, TestingSource(["a b"]))
    >>> s = op.count_final("count", op.flat_map("split", s, str.split), lambda word: word)
    >>> _ = op.inspect("out", s)
    >>> [(stage.name, stage.kind.value) for stage in plan(flow).stages]
    [('words.in', 'source'), ('words.count.count', 'keyed')]
    """
    if not isinstance(flow, Dataflow):
        raise TypeError(f"a flow is a Dataflow; got {flow!r} ({type(flow).__name__})")
    ops = list(flow.leaves())
    if not any(op.op_type == "input" for op in ops):
        raise DataflowError(f"the flow {flow.flow_id!r} has no input: add one with skep.dataflow.operators.input")
    if not any(op.op_type in ("output", "inspect_debug") for op in ops):
        raise DataflowError(f"the flow {flow.flow_id!r} has no output: add one with skep.dataflow.operators.output, or an inspect step")
    takers: dict[str, list[Operator]] = {}
    for op in ops:
        for streams in op.inputs.values():
            for stream in streams:
                takers.setdefault(stream, []).append(op)
    order = {op.step_id: number for number, op in enumerate(ops)}
    return Plan(flow.flow_id, tuple(_stage(op, kind, takers, order) for op in ops if (kind := _entry(op)) is not None))


def _entry(op: Operator) -> Kind | None:
    if op.op_type == "input":
        return Kind.SOURCE if isinstance(op.args["source"], FixedPartitionedSource) else Kind.WORKER_SOURCE
    if op.op_type == "stateful_batch":
        return Kind.KEYED
    if op.op_type == "output" and isinstance(op.args["sink"], FixedPartitionedSink):
        return Kind.SINK
    return Kind.SPREAD if op.op_type == "redistribute" else None


def _stage(entry: Operator, kind: Kind, takers: dict[str, list[Operator]], order: dict[str, int]) -> Stage:
    inside: dict[str, Operator] = {}
    exits: dict[str, Operator] = {}
    waiting = [entry]
    while waiting:
        op = waiting.pop()
        for taker in _following(op, takers):
            if _entry(taker) is not None:
                exits[taker.step_id] = taker
            elif taker.step_id not in inside:
                inside[taker.step_id] = taker
                waiting.append(taker)
    ops = [entry, *sorted(inside.values(), key=lambda op: order[op.step_id])]
    names = tuple(sorted(exits, key=order.__getitem__))
    number = {op.step_id: index for index, op in enumerate(ops)} | {name: len(ops) + index for index, name in enumerate(names)}
    nodes = [
        Node(op, tuple(tuple(number[taker.step_id] for taker in takers.get(stream, ())) for stream in _streams(op))) for op in ops
    ]
    return Stage(entry.step_id, kind, tuple(nodes), names)


def _streams(op: Operator) -> list[str]:
    return [op.outputs[port] for port in _PORTS.get(op.op_type, ("down",))]


def _following(op: Operator, takers: dict[str, list[Operator]]) -> Iterable[Operator]:
    for stream in _streams(op):
        yield from takers.get(stream, ())


def _wants_end(builder: object) -> bool:
    return not getattr(builder, "quiet_end", False) or getattr(builder, "timed", False)


def manifest(flow: Dataflow) -> dict[str, Any]:
    """The stages as data that JSON can hold, for whoever runs them elsewhere than in this process.

    ``stages`` is a list of: ``name``; ``kind`` (of :class:`Kind`); ``steps``, the core operators in it; ``inputs``, the stages that send to
    it; ``outputs``, those that it sends to, each ``{"to", "by"}`` with ``by`` one of ``key`` (the item's), ``partition`` (the sink's) and
    ``any``; ``keyed``, ``state`` and ``timers``, whether it needs a key, state under it and timers; ``starts``, how its first input comes to
    be: ``partitions`` (the source's names, one key each, all due at once), ``workers`` (one key a worker) or None (by what is sent to it);
    ``ends``, when the stream ends there: ``self`` (the source says so, key by key) or ``inputs`` (when all of these have ended; then each key
    gets an end); ``wants_end``, whether anything is done at a key's end, or a timer goes with it (else none need be told); ``sinks``, steps in it
    that write without a key; ``resumes``, whether its place is state: if not, it is in memory only, and the stage needs an instance that is kept.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource
    >>> flow = Dataflow("words")
    >>> s = op.count_final("count", op.input("in", flow, TestingSource("ab")), lambda x: x)
    >>> _ = op.inspect("out", s)
    >>> for stage in manifest(flow)["stages"]:
    ...     print(stage["name"], stage["outputs"], stage["ends"])
    words.in [{'to': 'words.count.count', 'by': 'key'}] self
    words.count.count [] inputs
    """
    whole = plan(flow)
    by = {Kind.KEYED: "key", Kind.SINK: "partition", Kind.SPREAD: "any"}
    kinds = {stage.name: stage.kind for stage in whole.stages}
    starts = {Kind.SOURCE: "partitions", Kind.WORKER_SOURCE: "workers"}
    stages = [
        {
            "name": stage.name,
            "kind": stage.kind.value,
            "steps": [node.op.step_id for node in stage.nodes],
            "inputs": list(whole.upstreams(stage.name)),
            "outputs": [{"to": name, "by": by[kinds[name]]} for name in stage.exits],
            "keyed": stage.kind is not Kind.SPREAD,
            "state": stage.kind in (Kind.SOURCE, Kind.KEYED, Kind.SINK),
            "timers": stage.kind in (Kind.SOURCE, Kind.WORKER_SOURCE, Kind.KEYED),
            "starts": starts.get(stage.kind),
            "ends": "self" if stage.kind in starts else "inputs",
            "wants_end": stage.kind is Kind.SINK
            or (stage.kind is Kind.KEYED and _wants_end(stage.entry.args["builder"])),
            "sinks": [node.op.step_id for node in stage.nodes if node.op.op_type == "output" and stage.kind is not Kind.SINK],
            "resumes": stage.kind is not Kind.WORKER_SOURCE,
        }
        for stage in whole.stages
    ]
    return {"version": MANIFEST_VERSION, "flow": whole.flow_id, "stages": stages}
