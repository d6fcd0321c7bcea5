"""From a dataflow to what a node takes: a component, a manifest, and what is sent to start it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .._version import WIT
from .build import build
from .failure import Failure


def place(given: str) -> tuple[Path, str]:
    """File and flow of ``FILE[:FLOW]``; a module's name is a file here, too.

    >>> place("shop/orders.py:make(3)"), place("orders")
    ((PosixPath('shop/orders.py'), 'make(3)'), (PosixPath('orders.py'), 'flow'))
    """
    file, _, what = given.partition(":")
    if len(file) == 1 and what[:1] in ("\\", "/"):
        # A drive's letter.
        rest, _, what = what.partition(":")
        file = f"{file}:{rest}"
    if not file.strip("./\\"):
        raise Failure(f"{given!r} names no file", "write FILE[:FLOW], as in orders.py:flow")
    path = Path(file if file.endswith(".py") or "/" in file or "\\" in file else file.replace(".", "/"))
    return (path if path.suffix == ".py" else path.with_name(f"{path.name}.py")), what.strip() or "flow"


def build_flow(arguments: argparse.Namespace) -> None:
    """``skep-py flow``."""
    file, what = place(arguments.flow)
    out = arguments.out or file.with_suffix(".wasm")
    written = arguments.manifest or out.with_suffix(".yaml")
    probed, cached = build(file, out, arguments.quiet or arguments.json, arguments.wit, what, arguments.bytewax)
    made = probed.deployment
    try:
        written.write_text(made["manifest"], encoding="utf-8")
    except OSError as e:
        raise Failure(f"cannot write {written}: {e.strerror}", "choose another with -m") from None
    if arguments.json:
        said = {"out": str(out), "manifest": str(written), "cached": cached, "files": probed.files, "wit": WIT}
        print(json.dumps(said | {key: made[key] for key in ("name", "starts", "warnings", "stages")}))
        return
    for warning in made["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{out}, {written}: {', '.join(made['stages'].values())}" + (" (as built before)" if cached else ""))
    print(f"next:  skep push {out} --name {made['name']} && skep apply {written}")
    for subject, key in made["starts"]:
        print(f"       skep submit {subject} --key {json.dumps(key)} start")
