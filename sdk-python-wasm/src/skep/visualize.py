"""Draws a dataflow: ``python -m skep.visualize FLOW``, as Mermaid, PlantUML or JSON."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

from .dataflow.graph import Dataflow, Operator
from .run import UsageError, find_flow

__all__ = ["RenderedDataflow", "RenderedOperator", "RenderedPort", "main", "to_json", "to_mermaid", "to_plantuml", "to_rendered"]


@dataclass(frozen=True)
class RenderedPort:
    """Where streams go into a step or come out of it."""

    port_name: str
    port_id: str
    #: The ports next to it that it takes from, of a step beside, around or inside.
    from_port_ids: list[str]
    #: The streams that come through these, by the step that made them.
    from_stream_ids: list[str]


@dataclass(frozen=True)
class RenderedOperator:
    """A step."""

    op_type: str
    step_name: str
    step_id: str
    inp_ports: list[RenderedPort]
    out_ports: list[RenderedPort]
    substeps: list[RenderedOperator]


@dataclass(frozen=True)
class RenderedDataflow:
    """A flow, with all ports named and connected."""

    flow_id: str
    substeps: list[RenderedOperator]


def to_rendered(flow: Dataflow) -> RenderedDataflow:
    """The flow with its ports connected."""
    return RenderedDataflow(flow.flow_id, _rendered(flow.substeps, {}))


def _rendered(steps: list[Operator], around: dict[str, str]) -> list[RenderedOperator]:
    """``around``: for each stream that the scope knows, the port that it comes from."""
    known = dict(around)
    found = []
    for step in steps:
        inputs = [
            RenderedPort(name, f"{step.step_id}.{name}", [known[stream] for stream in streams if stream in known], list(streams))
            for name, streams in step.inputs.items()
        ]
        inside = dict(known)
        for port in inputs:
            inside.update(dict.fromkeys(port.from_stream_ids, port.port_id))
        substeps = _rendered(step.substeps, inside)
        made = {stream: port.port_id for sub in substeps for port, stream in zip(sub.out_ports, _streams(step, sub))}
        outputs = [
            RenderedPort(
                name,
                f"{step.step_id}.{name}",
                [] if step.core else [made.get(stream, inside.get(stream, stream))],
                [] if step.core else [stream],
            )
            for name, stream in step.outputs.items()
        ]
        for name, stream in step.outputs.items():
            known[stream] = f"{step.step_id}.{name}"
        found.append(RenderedOperator(step.op_type, step.step_name, step.step_id, inputs, outputs, substeps))
    return found


def _streams(step: Operator, rendered: RenderedOperator) -> list[str]:
    return list(next(sub for sub in step.substeps if sub.step_id == rendered.step_id).outputs.values())


def to_json(flow: Dataflow) -> str:
    """JSON of :func:`to_rendered`, in which ``typ`` names the class of each object."""

    def plain(value: Any) -> dict[str, Any]:
        return {"typ": type(value).__name__, **vars(value)}

    return json.dumps(to_rendered(flow), default=plain, indent=2)


def to_mermaid(flow: Dataflow) -> str:
    """A Mermaid flowchart of the flow's own steps.

    >>> import skep.dataflow.operators as op
    >>> from skep.dataflow import Dataflow
    >>> from skep.dataflow.testing import TestingSource
    >>> flow = Dataflow("eg")
    >>> _ = op.inspect("out", op.input("in", flow, TestingSource([])))
    >>> print(to_mermaid(flow))
    flowchart TD
    subgraph "eg (Dataflow)"
    eg.in["in (input)"]
    eg.out["out (inspect)"]
    eg.in -- "down → up" --> eg.out
    end
    """
    rendered = to_rendered(flow)
    owner = {port.port_id: (step, port) for step in rendered.substeps for port in step.out_ports}
    lines = ["flowchart TD", f'subgraph "{_quoted(rendered.flow_id)} (Dataflow)"']
    for step in rendered.substeps:
        lines.append(f'{step.step_id}["{_quoted(step.step_name)} ({step.op_type})"]')
        for port in step.inp_ports:
            for source in port.from_port_ids:
                other, out = owner[source]
                lines.append(f'{other.step_id} -- "{out.port_name} → {port.port_name}" --> {step.step_id}')
    return "\n".join([*lines, "end"])


def _quoted(text: str) -> str:
    return text.replace('"', "#quot;")


def to_plantuml(flow: Dataflow, recursive: bool = False) -> str:
    """A PlantUML component diagram; ``recursive``: with the steps inside steps."""
    lines = ["@startuml"]
    for step in to_rendered(flow).substeps:
        lines += _plantuml(step, recursive)
    return "\n".join([*lines, "@enduml"])


def _plantuml(step: RenderedOperator, recursive: bool) -> list[str]:
    inside = [f"portin {port.port_id}" for port in step.inp_ports] + [f"portout {port.port_id}" for port in step.out_ports]
    for port in step.inp_ports:
        inside += [f"{source} --> {port.port_id} : {stream}" for source, stream in zip(port.from_port_ids, port.from_stream_ids)]
    if recursive:
        for sub in step.substeps:
            inside += _plantuml(sub, True)
        for port in step.out_ports:
            inside += [f"{source} --> {port.port_id} : {stream}" for source, stream in zip(port.from_port_ids, port.from_stream_ids)]
    head = [f"component {step.step_id} [", f"    {step.step_id} ({step.op_type})", "]", f"component {step.step_id} {{"]
    return [*head, *(textwrap.indent(line, "    ") for line in inside), "}"]


def main(argv: list[str] | None = None) -> int:
    """The command. Its exit status."""
    parser = argparse.ArgumentParser(prog="python -m skep.visualize", description="Draws a dataflow.")
    parser.add_argument("import_str", metavar="FLOW", help="module or file, and name or call: orders, orders.py:flow, orders:make(5)")
    parser.add_argument("-o", "--output-format", choices=["json", "mermaid", "plantuml"], default="mermaid", help="default: mermaid")
    parser.add_argument("-r", "--recursive", action="store_true", help="show the steps inside steps (PlantUML; JSON always does)")
    parser.add_argument("--bytewax", action="store_true", help="let `import bytewax` mean skep.dataflow")
    args = parser.parse_args(argv)
    if args.bytewax:
        from .dataflow import alias

        alias.install()
    try:
        flow = find_flow(args.import_str)
    except UsageError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    if args.output_format == "json":
        print(to_json(flow))
    elif args.output_format == "plantuml":
        print(to_plantuml(flow, args.recursive))
    else:
        print(to_mermaid(flow))
    return 0


if __name__ == "__main__":
    sys.exit(main())
