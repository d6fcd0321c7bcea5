"""A flow as a Swarm: its manifest, what starts its sources, and whether it can run on a node at all."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .connectors.subject import SubjectSource
from .errors import DataflowError
from .graph import Dataflow, Operator
from .inputs import DynamicSource, FixedPartitionedSource
from .limits import NAMES_SHOWN, SOURCE_PARTS_MAX
from .names import label, stage_names
from .node import address
from .plan import Kind, Plan, Stage, manifest, plan
from .stage import list_parts
from .testing import TestingSink

_PACKAGE = __name__.rpartition(".")[0]
#: Connectors that need what a sandbox has not, and what that is.
_OUTSIDE = {
    f"{_PACKAGE}.connectors.files": "files, and a flow on a node has none",
    f"{_PACKAGE}.connectors.kafka": "a Kafka client, and a flow on a node has no sockets",
}
_INSTEAD = "take a source or sink of your own in plain Python, `connectors.subject` or `connectors.stdio`; or run the flow with `python -m skep.run`"
#: A timer of a source that fails is tried so often, half a minute apart at last: a service that it reads may be away for three quarters of an hour.
_SOURCE_ATTEMPTS = 100
#: A node that dies takes no item for the cause so soon as it does elsewhere: what runs here is Python in a sandbox, and one item less is a wrong
#: count.
_CRASHES = 100
#: As large as a node takes: what a batch costs beside its messages is shared by more.
_BATCH_MESSAGES = 2_048
_BATCH_BYTES = "4MiB"


@dataclass(frozen=True)
class Deployment:
    """A flow as a node takes it."""

    #: The Swarm's name, and the module's.
    name: str
    #: The manifest, YAML.
    manifest: str
    #: What is sent once it runs, any number of times: ``(subject, key)``.
    starts: tuple[tuple[str, str], ...]
    #: What is otherwise than in process.
    warnings: tuple[str, ...]
    #: Of each stage: its label.
    stages: dict[str, str] = field(default_factory=dict)


def deployment(flow: Dataflow) -> Deployment:
    """What `skep deploy` sends. A :class:`DataflowError` names the first step that can't run on a node."""
    whole = plan(flow)
    for stage in whole.stages:
        for node in stage.nodes:
            _check(node.op)
    names = stage_names(whole)
    name = label(flow.flow_id)
    subjects = {stage.name: _subject(stage, name, names) for stage in whole.stages if stage.kind in (Kind.SOURCE, Kind.WORKER_SOURCE)}
    starts = []
    for stage in whole.stages:
        if stage.kind is Kind.SOURCE:
            parts = list_parts(stage)
            if len(parts) > SOURCE_PARTS_MAX:
                raise DataflowError(f"{stage.entry.title()} has {len(parts)} partitions; on a node a source has at most {SOURCE_PARTS_MAX}")
            for part in parts:
                try:
                    starts.append((subjects[stage.name], address(part)))
                except ValueError as e:
                    raise DataflowError(f"{stage.entry.title()}: the name of a partition is its key: {e}") from None
    ends = _ends(flow, whole)
    return Deployment(name, _yaml(name, whole, names, subjects, ends), tuple(starts), tuple(_warnings(flow, whole, ends)), names)


def _ends(flow: Dataflow, whole: Plan) -> dict[str, str]:
    """What each stage of which the stream can end says of it, in YAML: the partitions that end it, or that its keys are told; or nothing."""
    wants = {stage["name"] for stage in manifest(flow)["stages"] if stage["wants_end"]}
    found: dict[str, str] = {}
    for stage in whole.stages:
        if stage.kind is Kind.SOURCE:
            parts = list_parts(stage)
            if parts:
                found[stage.name] = f"[{', '.join(_quoted(address(part)) for part in parts)}]"
        elif stage.kind is not Kind.WORKER_SOURCE and all(up in found for up in whole.upstreams(stage.name)):
            found[stage.name] = "true" if stage.name in wants else ""
    return found


def _quoted(text: str) -> str:
    """A text as both YAML and JSON have it. JSON's way to escape what lies beyond U+FFFF, in two halves, is none of YAML's."""
    return '"' + "".join(c if c > "\uffff" else json.dumps(c)[1:-1] for c in text) + '"'


def _check(op: Operator) -> None:
    for role in ("source", "sink"):
        owner = op.args.get(role)
        if owner is None:
            continue
        for kind in type(owner).__mro__:
            for module, needs in _OUTSIDE.items():
                if kind.__module__ == module or kind.__module__.startswith(f"{module}."):
                    raise DataflowError(f"{op.title()} can't run on a node: {kind.__name__} needs {needs}; {_INSTEAD}")
        if isinstance(owner, TestingSink):
            raise DataflowError(f"{op.title()} can't run on a node: nobody could read the list that a TestingSink appends to; {_INSTEAD}")
        if isinstance(owner, DynamicSource) and not isinstance(owner, SubjectSource):
            raise DataflowError(
                f"{op.title()} can't run on a node: a DynamicSource has its place in memory only, and an instance on a node ends at any time; "
                "derive it from FixedPartitionedSource or SimplePollingSource"
            )
        if role == "source" and not isinstance(owner, (FixedPartitionedSource, DynamicSource)):
            raise DataflowError(f"{op.title()}: a source is a FixedPartitionedSource or a SubjectSource; got {type(owner).__name__}")


def _warnings(flow: Dataflow, whole: Plan, ends: dict[str, str]) -> list[str]:
    wants = {stage["name"] for stage in manifest(flow)["stages"] if stage["wants_end"]}
    endless = [
        (stage.entry.shown or stage.entry).step_id
        for stage in whole.stages
        if stage.kind is Kind.KEYED and stage.name in wants and stage.name not in ends
    ]
    if not endless:
        return []
    shown = ", ".join(endless[:NAMES_SHOWN]) + (" and others" if len(endless) > NAMES_SHOWN else "")
    return [
        f"what is sent to a subject has no end: what {shown} would do at the end of the stream is never done. Windows close by the clock; what "
        "emits at the end only, as count_final, emits nothing"
    ]


def _subject(stage: Stage, name: str, names: dict[str, str]) -> str:
    source = stage.entry.args["source"]
    return source.subject if isinstance(source, SubjectSource) else label(f"{name}-{names[stage.name]}")


def _yaml(name: str, whole: Plan, names: dict[str, str], subjects: dict[str, str], ends: dict[str, str]) -> str:
    lines = [f"# The dataflow {json.dumps(whole.flow_id)}, made by `skep deploy`.", f"name: {name}", "bees:"]
    for stage in whole.stages:
        inputs: list[str] = []
        if stage.name in subjects:
            inputs.append(f"{{ gateway: {json.dumps(subjects[stage.name])} }}")
        inputs += [f"{{ bee: {names[up]}, output: {names[stage.name]} }}" for up in whole.upstreams(stage.name)]
        source = stage.entry.args.get("source")
        subject = source if isinstance(source, SubjectSource) else None
        fields: dict[str, Any] = {"module": name, "input": f"[{', '.join(inputs)}]", "instances": "pooled", "clock": "real"}
        if subject is None and stage.kind is not Kind.SPREAD:
            fields |= {"key": "message", "state": "true"}
        elif subject is not None and subject.keyed:
            fields |= {"key": "message"}
        if ends.get(stage.name):
            fields["ends"] = ends[stage.name]
        fields["batch"] = f"{{ messages: {_BATCH_MESSAGES}, bytes: {_BATCH_BYTES} }}"
        attempts = f"attempts: {_SOURCE_ATTEMPTS}, " if stage.kind is Kind.SOURCE else ""
        fields["retry"] = f"{{ {attempts}crashes: {_CRASHES} }}"
        lines.append(f"  - name: {names[stage.name]}")
        lines += [f"    {field}: {value}" for field, value in fields.items()]
    return "\n".join(lines) + "\n"
